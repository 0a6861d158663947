//! From YAML to [`Config`].

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf};

use policy::{
    Class, ClassRule, Explain, InvalidRules, InvalidTopology, KeySource, Link, Plans, RegionRule,
    Route, RouteMatch, Rules, Thresholds, Topology, TraceRule, Weighting,
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_saphyr::Spanned;

use super::{
    Config, ConfigError, FilterConfig, Listen, ListenerAddress, Listeners, Mesh, Protocol,
    ServiceConfig, StoreConfig,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    #[serde(default)]
    listen: RawListen,
    store: RawStore,
    filter: RawFilter,
    #[serde(default)]
    listeners: RawListeners,
    zones: Spanned<Vec<Spanned<RawZone>>>,
    #[serde(default)]
    links: Vec<Spanned<RawLink>>,
    explain: Option<Spanned<RawExplain>>,
    services: Spanned<Vec<Spanned<RawService>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawListen {
    xds: SocketAddr,
    admin: SocketAddr,
}

impl Default for RawListen {
    fn default() -> Self {
        // Loopback: without transport security nothing else is a safe default.
        RawListen {
            xds: SocketAddr::from(([127, 0, 0, 1], 18_000)),
            admin: SocketAddr::from(([127, 0, 0, 1], 18_001)),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum RawStore {
    Embedded { path: PathBuf },
    Etcd { endpoints: Spanned<Vec<String>> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFilter {
    path: String,
    #[serde(default = "first_generation")]
    generation: u64,
}

fn first_generation() -> u64 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawListeners {
    gateway: RawAddress,
    sidecar: RawAddress,
}

impl Default for RawListeners {
    fn default() -> Self {
        let at = |address: &str, port| RawAddress {
            address: address.to_owned(),
            port,
            access_log: standard_output(),
        };
        RawListeners {
            gateway: at("0.0.0.0", 8080),
            sidecar: at("127.0.0.1", 15001),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAddress {
    address: String,
    port: u16,
    #[serde(default = "standard_output")]
    access_log: String,
}

fn standard_output() -> String {
    "/dev/stdout".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawZone {
    name: String,
    region: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    between: (String, String),
    rtt_ms: f64,
    #[serde(default = "cost_of_one")]
    cost: f64,
}

fn cost_of_one() -> f64 {
    1.0
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExplain {
    header: String,
    token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: String,
    #[serde(default)]
    protocol: RawProtocol,
    routes: Vec<Spanned<RawRoute>>,
    #[serde(default)]
    region: RawRegion,
    #[serde(default)]
    trace: RawTrace,
    weights: Option<Spanned<RawWeights>>,
    thresholds: Option<Spanned<RawThresholds>>,
    affinity: Option<Spanned<RawAffinity>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawProtocol {
    #[default]
    Auto,
    Http1,
    Http2,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    #[serde(default = "any_host")]
    host: String,
    prefix: Option<String>,
    grpc: Option<String>,
    reads: Option<Vec<String>>,
    class: Option<RawClass>,
}

fn any_host() -> String {
    "*".to_owned()
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawClass {
    Read,
    Write,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRegion {
    missing: RawRegionRule,
    unknown: RawRegionRule,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawRegionRule {
    #[default]
    Local,
    Reject,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTrace {
    missing: RawTraceRule,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawTraceRule {
    #[default]
    Generate,
    Reject,
}

enum RawWeights {
    Computed,
    Operator(RawOperatorWeights),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOperatorWeights {
    zone: u32,
    region: u32,
}

/// By hand, because an untagged enum would lose what is wrong and where.
impl<'de> Deserialize<'de> for RawWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WeightsVisitor;
        impl<'de> Visitor<'de> for WeightsVisitor {
            type Value = RawWeights;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`computed` or {zone: SHARE, region: SHARE}")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<RawWeights, E> {
                match word {
                    "computed" => Ok(RawWeights::Computed),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawWeights, A::Error> {
                RawOperatorWeights::deserialize(MapAccessDeserializer::new(map))
                    .map(RawWeights::Operator)
            }
        }
        deserializer.deserialize_any(WeightsVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawThresholds {
    down_below_percent: u8,
    up_from_percent: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum RawAffinity {
    Header(String),
    Cookie(String),
    PathSegment(u8),
}

/// Parses `text` as far as YAML and types go.
pub(super) fn read(file: &str, text: &str) -> Result<RawConfig, ConfigError> {
    let mut field = String::new();
    let read = serde_saphyr::with_deserializer_from_str(text, |de| {
        serde_path_to_error::deserialize(de).map_err(|error| {
            // `Spanned` shows as a field of its own; no field of ours has that name.
            field = error.path().to_string().replace(".value", "");
            error.into_inner()
        })
    });
    read.map_err(|error: serde_saphyr::Error| ConfigError {
        file: file.to_owned(),
        line: error.location().map_or(0, |location| location.line()),
        field: if field == "." { String::new() } else { field },
        message: first_line(&error.without_snippet().to_string()),
    })
}

/// The message alone: the place stands before it.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.split_once(" at line ")
        .map_or(line, |(text, _)| text)
        .to_owned()
}

/// Turns what was read into the domain's types, and knows the file for its errors.
pub(super) struct Door<'f> {
    pub(super) file: &'f str,
}

impl Door<'_> {
    fn error<T>(&self, at: &Spanned<T>, field: &str, message: impl fmt::Display) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: at.referenced.line(),
            field: field.to_owned(),
            message: message.to_string(),
        }
    }

    pub(super) fn config(&self, raw: RawConfig) -> Result<Config, ConfigError> {
        let topology = self.topology(&raw.zones, &raw.links)?;
        let services = raw
            .services
            .value
            .iter()
            .enumerate()
            .map(|(index, service)| self.service(index, service))
            .collect::<Result<Vec<_>, _>>()?;
        let explain = raw.explain.as_ref().map(|e| Explain {
            header: e.value.header.to_ascii_lowercase(),
            token: e.value.token.clone(),
        });
        self.check_rules(&topology, &services, &raw)?;
        if let Some(at) = &raw.explain {
            Rules::new(
                topology.clone(),
                first_zone(&topology),
                vec![],
                explain.clone(),
            )
            .map_err(|error| self.error(at, "explain", error))?;
        }
        Ok(Config {
            listen: Listen {
                xds: raw.listen.xds,
                admin: raw.listen.admin,
            },
            store: self.store(raw.store)?,
            mesh: Mesh {
                topology,
                services,
                filter: FilterConfig {
                    path: raw.filter.path,
                    generation: raw.filter.generation,
                },
                listeners: Listeners {
                    gateway: address(raw.listeners.gateway),
                    sidecar: address(raw.listeners.sidecar),
                },
                explain,
            },
        })
    }

    fn store(&self, raw: RawStore) -> Result<StoreConfig, ConfigError> {
        match raw {
            RawStore::Embedded { path } => Ok(StoreConfig::Embedded { path }),
            RawStore::Etcd { endpoints } if endpoints.value.is_empty() => Err(self.error(
                &endpoints,
                "store.etcd.endpoints",
                "empty: name at least one member, like http://127.0.0.1:2379",
            )),
            RawStore::Etcd { endpoints } => Ok(StoreConfig::Etcd {
                endpoints: endpoints.value,
            }),
        }
    }

    fn topology(
        &self,
        zones: &Spanned<Vec<Spanned<RawZone>>>,
        links: &[Spanned<RawLink>],
    ) -> Result<Topology, ConfigError> {
        let names = || {
            let zones = zones.value.iter().map(|zone| &zone.value);
            zones.map(|zone| (zone.name.as_str(), zone.region.as_str()))
        };
        // One by one, so that an error has its line: the shortest list that is refused ends with the culprit.
        for (index, zone) in zones.value.iter().enumerate() {
            Topology::new(names().take(index + 1), [])
                .map_err(|error| self.error(zone, &format!("zones[{index}]"), error))?;
        }
        let mut known = Vec::new();
        for (index, at) in links.iter().enumerate() {
            let raw = &at.value;
            let link = Link {
                rtt_ms: raw.rtt_ms,
                cost: raw.cost,
            };
            known.push((raw.between.0.as_str(), raw.between.1.as_str(), link));
            Topology::new(names(), known.iter().copied())
                .map_err(|error| self.error(at, &format!("links[{index}]"), error))?;
        }
        Topology::new(names(), known)
            .map_err(|error: InvalidTopology| self.error(zones, "zones", error))
    }

    /// Finds the service that makes the rules invalid, so that the error has its line.
    fn check_rules(
        &self,
        topology: &Topology,
        services: &[ServiceConfig],
        raw: &RawConfig,
    ) -> Result<(), ConfigError> {
        let rules = |services: &[ServiceConfig]| {
            let services = services.iter().map(|s| s.with_plans(Plans::default()));
            Rules::new(
                topology.clone(),
                first_zone(topology),
                services.collect(),
                None,
            )
        };
        let Err(error) = rules(services) else {
            return Ok(());
        };
        let position: BTreeMap<&str, usize> = services
            .iter()
            .enumerate()
            .map(|(index, service)| (service.name.as_str(), index))
            .collect();
        let index = match &error {
            // The one that stands later is at fault; the map holds the later of twins.
            InvalidRules::DuplicateService(name)
            | InvalidRules::DuplicateRoute { second: name, .. } => position.get(name.as_str()),
            InvalidRules::Name { service, .. }
            | InvalidRules::NoRoutes { service }
            | InvalidRules::Host { service, .. }
            | InvalidRules::Prefix { service, .. }
            | InvalidRules::GrpcName { service, .. }
            | InvalidRules::ReadsWithoutGrpc { service } => position.get(service.as_str()),
            InvalidRules::Header(_) | InvalidRules::EmptyToken => None,
        };
        let index = index.copied();
        match index.and_then(|index| Some((index, raw.services.value.get(index)?))) {
            Some((index, at)) => Err(self.error(at, &format!("services[{index}]"), error)),
            None => Err(self.error(&raw.services, "services", error)),
        }
    }

    fn service(
        &self,
        index: usize,
        at: &Spanned<RawService>,
    ) -> Result<ServiceConfig, ConfigError> {
        let raw = &at.value;
        let field = |name: &str| format!("services[{index}].{name}");
        let routes = raw
            .routes
            .iter()
            .enumerate()
            .map(|(n, route)| self.route(&field(&format!("routes[{n}]")), route))
            .collect::<Result<Vec<_>, _>>()?;
        let thresholds = match &raw.thresholds {
            None => Thresholds::default(),
            Some(at) => Thresholds::new(at.value.down_below_percent, at.value.up_from_percent)
                .map_err(|error| self.error(at, &field("thresholds"), error))?,
        };
        Ok(ServiceConfig {
            name: raw.name.clone(),
            protocol: match raw.protocol {
                RawProtocol::Auto => Protocol::Auto,
                RawProtocol::Http1 => Protocol::Http1,
                RawProtocol::Http2 => Protocol::Http2,
            },
            routes,
            region_missing: region_rule(raw.region.missing),
            region_unknown: region_rule(raw.region.unknown),
            trace_missing: match raw.trace.missing {
                RawTraceRule::Generate => TraceRule::Generate,
                RawTraceRule::Reject => TraceRule::Reject,
            },
            weighting: self.weighting(&field("weights"), raw.weights.as_ref())?,
            thresholds,
            zone_affinity: raw.affinity.as_ref().map(|at| match &at.value {
                RawAffinity::Header(name) => KeySource::Header(name.to_ascii_lowercase()),
                RawAffinity::Cookie(name) => KeySource::Cookie(name.clone()),
                RawAffinity::PathSegment(at) => KeySource::PathSegment(*at),
            }),
        })
    }

    fn weighting(
        &self,
        field: &str,
        raw: Option<&Spanned<RawWeights>>,
    ) -> Result<Weighting, ConfigError> {
        match raw {
            None => Ok(Weighting::default()),
            Some(at) => match &at.value {
                RawWeights::Computed => Ok(Weighting::Computed),
                RawWeights::Operator(RawOperatorWeights { zone: 0, region: 0 }) => {
                    Err(self.error(at, field, "both shares are 0: no zone would get anything"))
                }
                RawWeights::Operator(RawOperatorWeights { zone, region }) => {
                    Ok(Weighting::Operator {
                        zone: *zone,
                        region: *region,
                    })
                }
            },
        }
    }

    fn route(&self, field: &str, at: &Spanned<RawRoute>) -> Result<Route, ConfigError> {
        let raw = &at.value;
        let refuse = |message: &str| Err(self.error(at, field, message));
        let matches = match (&raw.prefix, &raw.grpc) {
            (Some(prefix), None) => RouteMatch::Prefix(prefix.clone()),
            (None, Some(name)) => RouteMatch::Grpc(name.clone()),
            (None, None) => return refuse("name a `prefix` or a `grpc` service"),
            (Some(_), Some(_)) => {
                return refuse("`prefix` and `grpc` exclude each other: make two routes");
            }
        };
        let class = match (raw.class, &raw.reads, &raw.grpc) {
            (Some(_), Some(_), _) => {
                return refuse("`class` and `reads` exclude each other: use one");
            }
            (None, Some(_), None) => return refuse("`reads` lists gRPC methods: it needs `grpc`"),
            (None, Some(reads), Some(_)) => ClassRule::GrpcReads(reads.clone()),
            (None, None, Some(_)) => ClassRule::GrpcReads(Vec::new()),
            (Some(RawClass::Read), None, _) => ClassRule::Always(Class::Read),
            (Some(RawClass::Write), None, _) => ClassRule::Always(Class::Write),
            (None, None, None) => ClassRule::ByMethod,
        };
        Ok(Route {
            host: raw.host.to_ascii_lowercase(),
            matches,
            class,
        })
    }
}

/// A topology that was built has a zone; any of them does for a check that does not depend on the viewer.
fn first_zone(topology: &Topology) -> policy::ZoneId {
    topology
        .zones()
        .next()
        .unwrap_or_else(|| unreachable!("a topology has at least one zone"))
}

fn region_rule(raw: RawRegionRule) -> RegionRule {
    match raw {
        RawRegionRule::Local => RegionRule::Local,
        RawRegionRule::Reject => RegionRule::Reject,
    }
}

fn address(raw: RawAddress) -> ListenerAddress {
    ListenerAddress {
        address: raw.address,
        port: raw.port,
        access_log: Some(raw.access_log).filter(|path| !path.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
store: {embedded: {path: t.redb}}
filter: {path: f.wasm}
zones:
  - {name: shanghai-a, region: shanghai}
  - {name: shanghai-b, region: shanghai}
  - {name: beijing-c, region: beijing}
services:
  - name: orders
    routes:
      - {prefix: /orders}
      - {grpc: shop.v1.Orders, reads: [GetOrder]}
    weights: {zone: 80, region: 20}
  - name: web
    routes: [{prefix: /}]
    weights: computed
";

    #[track_caller]
    fn refused(from: &str, to: &str, expected: &str) {
        assert!(
            GOOD.contains(from),
            "{from:?} does not stand in the good configuration"
        );
        let error = Config::parse("mesh.yaml", &GOOD.replacen(from, to, 1)).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_good_configuration_is_taken() {
        let config = Config::parse("mesh.yaml", GOOD).expect("a good configuration");
        assert_eq!(config.listen.xds.port(), 18_000);
        assert_eq!(config.mesh.services.len(), 2);
        let [orders, web] = &config.mesh.services[..] else {
            panic!("two services");
        };
        assert_eq!(
            orders.weighting,
            Weighting::Operator {
                zone: 80,
                region: 20
            }
        );
        assert_eq!(web.weighting, Weighting::Computed);
    }

    #[test]
    fn errors_name_file_line_field_and_what_to_do() {
        refused(
            "name: shanghai-b",
            "name: shanghai-a",
            "mesh.yaml:5: zones[1]: zone \"shanghai-a\" stands twice",
        );
        refused(
            "{prefix: /}",
            "{prefix: /orders}",
            "mesh.yaml:13: services[1]: services \"orders\" and \"web\" claim the same route: * /orders",
        );
        refused(
            "{prefix: /orders}",
            "{prefix: orders/}",
            "mesh.yaml:8: services[0]: service \"orders\": prefix \"orders/\": begin with '/', without '?', '#' or a '/' at the end",
        );
        refused(
            "{prefix: /orders}",
            "{host: shop}",
            "mesh.yaml:10: services[0].routes[0]: name a `prefix` or a `grpc` service",
        );
        refused(
            "{zone: 80, region: 20}",
            "{zone: 0, region: 0}",
            "mesh.yaml:12: services[0].weights: both shares are 0: no zone would get anything",
        );
        refused(
            "embedded: {path: t.redb}",
            "etcd: {endpoints: []}",
            "mesh.yaml:1: store.etcd.endpoints: empty: name at least one member, like http://127.0.0.1:2379",
        );
    }

    #[test]
    fn wrong_types_and_unknown_fields_have_their_place_too() {
        for (from, to, line, field) in [
            ("{prefix: /}", "{prefx: /}", 14, "services[1].routes[0]"),
            ("zone: 80", "zone: many", 12, "services[0].weights"),
            (
                "weights: computed",
                "weights: guessed",
                15,
                "services[1].weights",
            ),
            ("filter: {path: f.wasm}", "filter: 7", 2, "filter"),
        ] {
            let error = Config::parse("mesh.yaml", &GOOD.replacen(from, to, 1))
                .expect_err("an invalid configuration");
            assert_eq!(error.line, line, "{error}");
            assert!(error.field.starts_with(field), "{error}");
            assert!(!error.message.is_empty());
        }
    }
}
