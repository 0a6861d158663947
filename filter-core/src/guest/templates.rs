//! The names of the host's clusters, by templates.

use std::{collections::BTreeMap, sync::Arc};

use policy::{
    Class, Rules,
    rules::{GATEWAY_SERVICE, cluster_name},
};

/// Templates by service: `outbound|80|{zone}|{service}.{namespace}.svc.cluster.local`. The service
/// `*` stands for all that have none of their own, `gateway` for the gateways of other zones, to
/// which writes are forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    of: BTreeMap<String, Vec<Part>>,
    namespace: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Service,
    Zone,
    Region,
    Namespace,
}

/// Why a template is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    #[error(
        "{service}: {{{name}}} is no placeholder: use {{service}}, {{zone}}, {{region}} or {{namespace}}"
    )]
    Placeholder { service: String, name: String },
    #[error("{service}: a brace is not closed")]
    Open { service: String },
    #[error("{service}: {{namespace}} stands in it, and the configuration gives no namespace")]
    Namespace { service: String },
    #[error("{service}: empty; give the name of a cluster of this proxy")]
    Empty { service: String },
}

/// The service that stands for all others.
const ANY: &str = "*";

impl Templates {
    /// Reads templates by service.
    ///
    /// # Errors
    ///
    /// [`InvalidTemplate`] names the service, and says what to change.
    pub fn new(
        templates: BTreeMap<String, String>,
        namespace: Option<String>,
    ) -> Result<Templates, InvalidTemplate> {
        let parse = |(service, text): (String, String)| {
            let parts = parse(&service, &text)?;
            if parts.contains(&Part::Namespace) && namespace.is_none() {
                return Err(InvalidTemplate::Namespace { service });
            }
            Ok((service, parts))
        };
        let of = templates.into_iter().map(parse);
        Ok(Templates {
            of: of.collect::<Result<_, _>>()?,
            namespace,
        })
    }

    /// The names of all clusters of these rules, in the order of [`Rules::in_host`]. Without a
    /// template they are `SERVICE/ZONE`, as the objects for an Istio mesh match them.
    pub fn clusters(&self, rules: &Rules) -> Arc<[String]> {
        let topology = rules.topology();
        let names = rules.services().iter().flat_map(|service| {
            let parts = self.of.get(&service.name).or_else(|| self.of.get(ANY));
            topology.zones().flat_map(move |zone| {
                let name = match parts {
                    Some(parts) => self.name(parts, &service.name, rules, zone),
                    None => cluster_name(&service.name, topology.zone_name(zone)),
                };
                Class::ALL.map(|_| name.clone())
            })
        });
        names.collect()
    }

    /// The names of the clusters that lead to the gateways of each zone; none without a template.
    pub fn gateways(&self, rules: &Rules) -> Arc<[String]> {
        let Some(parts) = self.of.get(GATEWAY_SERVICE) else {
            return Arc::default();
        };
        let zones = rules.topology().zones();
        zones
            .map(|zone| self.name(parts, GATEWAY_SERVICE, rules, zone))
            .collect()
    }

    fn name(&self, parts: &[Part], service: &str, rules: &Rules, zone: policy::ZoneId) -> String {
        let topology = rules.topology();
        let texts = parts.iter().map(|part| match part {
            Part::Text(text) => text,
            Part::Service => service,
            Part::Zone => topology.zone_name(zone),
            Part::Region => topology.region_name(topology.region_of(zone)),
            Part::Namespace => self.namespace.as_deref().unwrap_or_default(),
        });
        texts.collect()
    }
}

fn parse(service: &str, template: &str) -> Result<Vec<Part>, InvalidTemplate> {
    let service = || service.to_owned();
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((text, behind)) = rest.split_once('{') {
        let (name, behind) = behind
            .split_once('}')
            .ok_or_else(|| InvalidTemplate::Open { service: service() })?;
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        parts.push(match name {
            "service" => Part::Service,
            "zone" => Part::Zone,
            "region" => Part::Region,
            "namespace" => Part::Namespace,
            _ => {
                return Err(InvalidTemplate::Placeholder {
                    service: service(),
                    name: name.to_owned(),
                });
            }
        });
        rest = behind;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    match parts.is_empty() {
        true => Err(InvalidTemplate::Empty { service: service() }),
        false => Ok(parts),
    }
}

#[cfg(test)]
mod tests {
    use policy::Policy;

    use super::*;
    use crate::testing::serving;

    fn templates(
        of: &[(&str, &str)],
        namespace: Option<&str>,
    ) -> Result<Templates, InvalidTemplate> {
        let of = of
            .iter()
            .map(|(service, text)| ((*service).to_owned(), (*text).to_owned()));
        Templates::new(of.collect(), namespace.map(str::to_owned))
    }

    fn rules() -> Rules {
        match serving() {
            Policy::Serving(rules) => *rules,
            Policy::Fallback => unreachable!(),
        }
    }

    #[test]
    fn names_are_those_of_the_template_or_service_and_zone() {
        let templates = templates(
            &[
                ("orders", "outbound|80|{zone}|{service}.{namespace}.svc"),
                ("gateway", "gw-{region}-{zone}"),
            ],
            Some("shop"),
        )
        .unwrap();
        let rules = rules();
        let names = templates.clusters(&rules);
        assert_eq!(names[0], "outbound|80|shanghai-a|orders.shop.svc");
        let mut others = names.iter().filter(|name| name.starts_with("strict"));
        assert_eq!(others.next().unwrap(), "strict/shanghai-a");
        // The name is the same for reads and writes.
        assert_eq!(others.next().unwrap(), "strict/shanghai-a");
        assert_eq!(templates.gateways(&rules)[0], "gw-shanghai-shanghai-a");
        assert!(Templates::default().gateways(&rules).is_empty());
    }

    #[test]
    fn an_error_says_what_to_change() {
        let check = |text: &str, error: &str| {
            let told = templates(&[("orders", text)], None)
                .unwrap_err()
                .to_string();
            assert!(told.starts_with(error), "{text}: {told}");
        };
        check("a{cell}", "orders: {cell} is no placeholder");
        check("a{zone", "orders: a brace is not closed");
        check("{namespace}", "orders: {namespace} stands in it");
        check("", "orders: empty");
    }
}
