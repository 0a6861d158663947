//! The configuration of a guest: small and static, so that any host can carry it.
//!
//! ```json
//! {"control_plane": "tidegate", "zone": "shanghai-a", "mode": "fence", "drain_ms": 15000,
//!  "unfenced": [{"host": "*", "prefix": "/metrics"}],
//!  "classes": [{"host": "*", "grpc": "shop.Orders", "reads": ["Get"]}]}
//! ```

use std::collections::BTreeMap;

use policy::{
    Class, ClassRule, InvalidRules, Route, RouteMatch,
    guest::{Guest, Mode},
};
use serde::Deserialize;

use super::templates::{InvalidTemplate, Templates};

/// A guest's configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The host's cluster that leads to the control plane.
    pub control_plane: String,
    pub zone: ZoneSource,
    pub guest: Guest,
    /// The lists of `guest`, as they are told to the control plane.
    pub unfenced: Vec<Route>,
    pub classes: Vec<Route>,
    /// The names of the host's clusters, where it has such.
    pub clusters: Templates,
}

/// Where a guest finds its zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZoneSource {
    Named(String),
    /// The zone of the node's locality.
    Locality,
    /// The locality, or the labels that Istio puts into the node's metadata.
    Istio,
    /// A text in the node's metadata, by its path.
    Metadata(Vec<String>),
}

/// Why a configuration is not valid. Every variant says what to change.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("the configuration is no JSON object of a guest: {0}")]
    Json(serde_json::Error),
    #[error("control_plane: empty; name the cluster that leads to Tidegate's control plane")]
    ControlPlane,
    #[error("zone: {0}")]
    Zone(&'static str),
    #[error("{list}[{at}]: {why}")]
    Listed {
        list: &'static str,
        at: usize,
        why: &'static str,
    },
    #[error("{0}")]
    Route(InvalidRules),
    #[error("drain_ms: 0; leave it out, or give the max_stream_duration of the host's routes")]
    Drain,
    #[error("clusters: {0}")]
    Template(InvalidTemplate),
    #[error("clusters: only mode \"route\" uses clusters; remove them, or change the mode")]
    ClustersOfFence,
}

/// Whether the bytes are a guest's configuration, and not a policy: JSON begins with a brace, and
/// no policy does, since field 15 of a policy would be a group.
pub fn is_guest(configuration: &[u8]) -> bool {
    configuration.trim_ascii_start().first() == Some(&b'{')
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] names the field, and says what to change.
    pub fn read(configuration: &[u8]) -> Result<Config, InvalidConfig> {
        let raw: Schema = serde_json::from_slice(configuration).map_err(InvalidConfig::Json)?;
        if raw.control_plane.is_empty() {
            return Err(InvalidConfig::ControlPlane);
        }
        if raw.drain_ms == Some(0) {
            return Err(InvalidConfig::Drain);
        }
        let mode = match raw.mode {
            ModeName::Fence => Mode::Fence,
            ModeName::Route => Mode::Route,
        };
        if mode == Mode::Fence && !raw.clusters.is_empty() {
            return Err(InvalidConfig::ClustersOfFence);
        }
        let unfenced = list("unfenced", raw.unfenced)?;
        let classes = list("classes", raw.classes)?;
        let guest = Guest::new(mode, raw.drain_ms, classes.clone(), unfenced.clone());
        Ok(Config {
            control_plane: raw.control_plane,
            zone: raw
                .zone
                .unwrap_or(Zone::From {
                    from: "istio".into(),
                })
                .try_into()?,
            guest: guest.map_err(InvalidConfig::Route)?,
            unfenced,
            classes,
            clusters: Templates::new(raw.clusters, raw.namespace)
                .map_err(InvalidConfig::Template)?,
        })
    }
}

impl Config {
    /// The fallback for a configuration that is not valid but names its control plane.
    pub fn of_control_plane(configuration: &[u8]) -> Option<Config> {
        #[derive(Deserialize)]
        struct Part {
            control_plane: String,
        }
        let Part { control_plane } = serde_json::from_slice(configuration).ok()?;
        (!control_plane.is_empty()).then(|| Config {
            control_plane,
            zone: ZoneSource::Locality,
            guest: Guest::fallback(),
            unfenced: Vec::new(),
            classes: Vec::new(),
            clusters: Templates::default(),
        })
    }
}

/// The configuration as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Schema {
    control_plane: String,
    zone: Option<Zone>,
    mode: ModeName,
    #[serde(default)]
    unfenced: Vec<Listed>,
    #[serde(default)]
    classes: Vec<Listed>,
    drain_ms: Option<u64>,
    #[serde(default)]
    clusters: BTreeMap<String, String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Zone {
    Named(String),
    From { from: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ModeName {
    Fence,
    Route,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    #[serde(default = "any_host")]
    host: String,
    prefix: Option<String>,
    grpc: Option<String>,
    class: Option<ClassName>,
    #[serde(default)]
    reads: Vec<String>,
}

fn any_host() -> String {
    "*".to_owned()
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ClassName {
    Read,
    Write,
}

impl TryFrom<Zone> for ZoneSource {
    type Error = InvalidConfig;

    fn try_from(zone: Zone) -> Result<ZoneSource, InvalidConfig> {
        let from = match zone {
            Zone::Named(name) if name.is_empty() => {
                return Err(InvalidConfig::Zone(
                    "empty; give the zone's name, or {\"from\": \"locality\"}",
                ));
            }
            Zone::Named(name) => return Ok(ZoneSource::Named(name)),
            Zone::From { from } => from,
        };
        match (from.as_str(), from.strip_prefix("metadata:")) {
            ("locality", _) => Ok(ZoneSource::Locality),
            ("istio", _) => Ok(ZoneSource::Istio),
            (_, Some(path)) if !path.is_empty() && path.split('.').all(|part| !part.is_empty()) => {
                let parts = path.split('.').map(str::to_owned);
                Ok(ZoneSource::Metadata(parts.collect()))
            }
            _ => Err(InvalidConfig::Zone(
                "from: use \"locality\", \"istio\" or \"metadata:\" and a path like topology.zone",
            )),
        }
    }
}

fn list(list: &'static str, entries: Vec<Listed>) -> Result<Vec<Route>, InvalidConfig> {
    if entries.len() > protos::guest::LISTED_MAX {
        let (at, why) = (entries.len(), "256 entries are allowed");
        return Err(InvalidConfig::Listed { list, at, why });
    }
    let route = |(at, entry): (usize, Listed)| {
        let refuse = |why| Err(InvalidConfig::Listed { list, at, why });
        let is_grpc = entry.grpc.is_some();
        let matches = match (entry.prefix, entry.grpc) {
            (Some(prefix), None) => RouteMatch::Prefix(prefix),
            (None, Some(name)) => RouteMatch::Grpc(name),
            _ => return refuse("give either prefix or grpc"),
        };
        let class = match (entry.class, entry.reads.is_empty()) {
            (None, true) if list == "classes" => {
                return refuse(
                    "give a class, \"read\" or \"write\", or the reads of a gRPC service",
                );
            }
            (Some(_), _) | (None, false) if list == "unfenced" => {
                return refuse("an unfenced route has no class: it takes reads and writes");
            }
            (None, true) => ClassRule::ByMethod,
            (None, false) if is_grpc => ClassRule::GrpcReads(entry.reads),
            (None, false) => return refuse("reads are methods of a gRPC service: give grpc"),
            (Some(ClassName::Read), true) => ClassRule::Always(Class::Read),
            (Some(ClassName::Write), true) => ClassRule::Always(Class::Write),
            (Some(_), false) => return refuse("give either class or reads"),
        };
        Ok(Route {
            host: entry.host,
            matches,
            class,
        })
    };
    entries.into_iter().enumerate().map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::read(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_small_configuration_is_enough() {
        let config = read(r#"{"control_plane": "tidegate", "mode": "fence"}"#).unwrap();
        assert_eq!(config.control_plane, "tidegate");
        assert_eq!(config.zone, ZoneSource::Istio);
        assert_eq!(
            (config.guest.mode, config.guest.drain_ms),
            (Mode::Fence, None)
        );
    }

    #[test]
    fn every_field_is_read() {
        let config = read(
            r#" {"control_plane": "tidegate", "mode": "route", "drain_ms": 15000,
                "zone": {"from": "metadata:topology.zone"},
                "unfenced": [{"prefix": "/metrics"}],
                "classes": [{"host": "*.shop", "grpc": "shop.Orders", "reads": ["Get"]},
                            {"prefix": "/graphql", "class": "read"}],
                "clusters": {"orders": "outbound|80|{zone}|orders.{namespace}.svc"},
                "namespace": "shop"}"#,
        )
        .unwrap();
        let path = vec!["topology".to_owned(), "zone".to_owned()];
        assert_eq!(config.zone, ZoneSource::Metadata(path));
        assert_eq!(config.guest.drain_ms, Some(15_000));
        assert_eq!(config.unfenced.len(), 1);
        let reads = ClassRule::GrpcReads(vec!["Get".to_owned()]);
        assert_eq!(config.classes[0].class, reads);
        assert_eq!(config.classes[1].class, ClassRule::Always(Class::Read));
    }

    #[test]
    fn an_error_says_what_to_change() {
        for (text, error) in [
            (r#"{"mode": "fence"}"#, "missing field `control_plane`"),
            (r#"{"control_plane": "t"}"#, "missing field `mode`"),
            (
                r#"{"control_plane": "", "mode": "fence"}"#,
                "control_plane: empty",
            ),
            (
                r#"{"control_plane": "t", "mode": "watch"}"#,
                "unknown variant `watch`",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "zones": 1}"#,
                "unknown field `zones`",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "zone": ""}"#,
                "zone: empty",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "zone": {"from": "metadata:"}}"#,
                "zone: from: use",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "drain_ms": 0}"#,
                "drain_ms: 0",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "classes": [{"prefix": "/a"}]}"#,
                "classes[0]: give a class",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "unfenced": [{"prefix": "/a", "class": "read"}]}"#,
                "unfenced[0]: an unfenced route has no class",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "unfenced": [{"prefix": "a"}]}"#,
                "prefix \"a\"",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "unfenced": [{}]}"#,
                "unfenced[0]: give either prefix or grpc",
            ),
            (
                r#"{"control_plane": "t", "mode": "fence", "clusters": {"a": "b"}}"#,
                "only mode \"route\" uses clusters",
            ),
            (
                r#"{"control_plane": "t", "mode": "route", "clusters": {"a": "{cell}"}}"#,
                "clusters: ",
            ),
            ("[]", "no JSON object of a guest"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(error), "{text}: {told}");
        }
    }

    #[test]
    fn a_policy_is_told_from_a_guests_configuration() {
        assert!(is_guest(b" \n{"));
        assert!(!is_guest(b""));
        let (policy, _) = protos::encode(&crate::testing::serving(), 1, "tidegate");
        assert!(!is_guest(&policy));
    }
}
