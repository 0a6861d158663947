//! Clusters: the one of the control plane, those that a guest names, and which of them lead to the
//! same instances.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Known,
    finding::Problem,
    guests::Guest,
    json::{at, field, list, message, text, type_of},
    view::View,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The findings about the cluster of the control plane.
pub(super) fn control_plane(name: &str, view: &View<'_>, add: &mut impl FnMut(Problem, &str)) {
    let place = format!("clusters[{name}]");
    let cluster = name.to_owned();
    let Some(config) = view.clusters.get(name) else {
        if !view.absent.contains(&"clusters") {
            add(Problem::ControlPlaneMissing { cluster }, &place);
        }
        return;
    };
    let options = field(config, "typed_extension_protocol_options");
    let options = options.and_then(|all| all.get(HTTP_OPTIONS)).map(message);
    let http2 = ["explicit_http_config", "auto_config"]
        .iter()
        .find_map(|kind| at(options?, &[kind, "http2_protocol_options"]));
    // With `auto_config` the protocol follows from the negotiation of TLS.
    let negotiated = options.and_then(|options| field(options, "auto_config"));
    let http2 = http2.or_else(|| field(config, "http2_protocol_options"));
    match http2.or(negotiated.filter(|_| field(config, "transport_socket").is_some())) {
        None => add(Problem::ControlPlaneHttp1 { cluster }, &place),
        Some(http2) if field(http2, "connection_keepalive").is_none() => {
            add(Problem::ControlPlaneKeepalive { cluster }, &place);
        }
        Some(_) => {}
    }
}

/// The clusters that a guest names for requests.
pub(super) fn named(guest: &Guest, view: &View<'_>, known: &Known) -> BTreeSet<String> {
    match (&guest.config, &known.rules) {
        (Ok(config), Some(rules)) => {
            let names = config.clusters.clusters(rules);
            names.iter().cloned().collect()
        }
        // What the templates may give, among the clusters that are there.
        _ => {
            let is_named = |name: &&str| guest.templates.iter().any(|text| fits(text, name));
            let all = view.clusters.keys().copied().filter(is_named);
            all.map(str::to_owned).collect()
        }
    }
}

/// The first cluster that a guest would name and that is not there.
pub(super) fn unknown(guest: &Guest, view: &View<'_>, known: &Known) -> Option<String> {
    if view.absent.contains(&"clusters") {
        return None;
    }
    if known.rules.is_none() {
        let mut templates = guest.templates.iter();
        let unknown = templates.find(|text| !view.clusters.keys().any(|name| fits(text, name)));
        return unknown.cloned();
    }
    let mut names = named(guest, view, known).into_iter();
    names.find(|name| !view.clusters.contains_key(name.as_str()))
}

/// Whether a template can give a name: each placeholder stands for any text.
fn fits(template: &str, name: &str) -> bool {
    let mut parts = template.split('{');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let literals: Vec<&str> = parts
        .map(|part| part.split_once('}').map_or("", |(_, text)| text))
        .collect();
    let Some((last, between)) = literals.split_last() else {
        return rest.is_empty();
    };
    for literal in between {
        match rest.find(literal) {
            Some(at) => rest = rest.get(at + literal.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// By what two clusters are the same: names, addresses of endpoints, services of Istio. The members
/// of an aggregate cluster count as its own.
pub(super) fn keys(name: &str, view: &View<'_>) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut left = vec![name.to_owned()];
    while let Some(name) = left.pop() {
        if !keys.insert(format!("name {name}")) {
            continue;
        }
        // outbound|PORT|SUBSET|HOST, and with dots and underscores for an SNI.
        if let Some(rest) = name.strip_prefix("outbound|") {
            keys.extend(
                rest.rsplit('|')
                    .next()
                    .map(|host| format!("service {host}")),
            );
        }
        if let Some(rest) = name.strip_prefix("outbound_.") {
            let host = rest.split("._.").nth(1).or_else(|| rest.split("_.").last());
            keys.extend(host.map(|host| format!("service {host}")));
        }
        let Some(config) = view.clusters.get(name.as_str()) else {
            continue;
        };
        let service = at(config, &["eds_cluster_config", "service_name"]).and_then(Value::as_str);
        keys.extend(service.map(|service| format!("eds {service}")));
        let localities = field(config, "load_assignment").map(|load| list(load, "endpoints"));
        let endpoints = localities.unwrap_or_default().iter();
        let endpoints = endpoints.flat_map(|locality| list(locality, "lb_endpoints"));
        keys.extend(endpoints.filter_map(address));
        let aggregate = at(config, &["cluster_type", "typed_config"]).map(message);
        let members = aggregate
            .map(|aggregate| list(aggregate, "clusters"))
            .unwrap_or_default();
        left.extend(
            members
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned)),
        );
    }
    keys
}

fn address(endpoint: &Value) -> Option<String> {
    let socket = at(endpoint, &["endpoint", "address", "socket_address"])?;
    let port = field(socket, "port_value")?;
    Some(format!("address {}:{port}", text(socket, "address")))
}

/// Whether a cluster leads to any address that a client names.
pub(super) fn is_open(name: &str, view: &View<'_>) -> bool {
    view.clusters.get(name).is_some_and(|config| {
        let plugin = at(config, &["cluster_type", "typed_config"]).map(type_of);
        text(config, "type") == "ORIGINAL_DST"
            || plugin.is_some_and(|kind| kind.contains("dynamic_forward_proxy"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_fit_the_names_that_they_give() {
        for (template, name, expected) in [
            ("{service}-{zone}", "orders-a", true),
            ("{service}-{zone}", "orders", false),
            (
                "outbound|80|{zone}|{service}.svc",
                "outbound|80|a|orders.svc",
                true,
            ),
            (
                "outbound|80|{zone}|{service}.svc",
                "outbound|90|a|orders.svc",
                false,
            ),
            ("orders", "orders", true),
            ("orders", "orders-a", false),
            ("{service}", "", true),
            ("{", "x", true),
        ] {
            assert_eq!(fits(template, name), expected, "{template} {name}");
        }
    }

    #[test]
    fn a_service_of_istio_is_the_same_in_each_subset() {
        let view = View::default();
        let both = |a: &str, b: &str| !keys(a, &view).is_disjoint(&keys(b, &view));
        assert!(both("outbound|80|a|orders.svc", "outbound|80||orders.svc"));
        assert!(both(
            "outbound_.80_.a_.orders.svc",
            "outbound|80||orders.svc"
        ));
        assert!(both(
            "outbound_.80_._.orders.svc",
            "outbound|80||orders.svc"
        ));
        assert!(!both("outbound|80||carts.svc", "outbound|80||orders.svc"));
    }
}
