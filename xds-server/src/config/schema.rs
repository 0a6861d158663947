//! The configuration as YAML and its types go: shapes, defaults and places, but no meaning.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use agent::etcd_access::{EtcdTlsFiles, EtcdUserFile};
use policy::{Class, KeySource, RegionRule, TraceRule};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_saphyr::Spanned;

use super::{
    Protocol,
    authority::RawAuthority,
    failover::{RawDemand, RawFailover, RawGuard},
    istio::RawIstio,
    listen::{RawAccess, RawListen},
    listeners::RawListeners,
    proxy_tls::RawUpstreamTls,
    resilience::{CircuitBreakers, OutlierDetection, RawOutlier, RawSessions, RawStrategy},
    routing::RawUpstreamOptions,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    #[serde(default)]
    pub(super) listen: RawListen,
    pub(super) access: Option<Spanned<RawAccess>>,
    pub(super) store: RawStore,
    pub(super) xds: Option<Spanned<RawXds>>,
    pub(super) state: Option<RawState>,
    pub(super) filter: RawFilter,
    #[serde(default)]
    pub(super) listeners: RawListeners,
    pub(super) zones: Spanned<Vec<Spanned<RawZone>>>,
    #[serde(default)]
    pub(super) links: Vec<Spanned<RawLink>>,
    pub(super) explain: Option<Spanned<RawExplain>>,
    pub(super) guard: Option<Spanned<RawGuard>>,
    pub(super) authority: Option<Spanned<RawAuthority>>,
    pub(super) istio: Option<Spanned<RawIstio>>,
    pub(super) services: Spanned<Vec<Spanned<RawService>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawXds {
    #[serde(default = "every_ten_seconds")]
    pub(super) load_report_interval_s: u32,
    pub(super) ttl_s: Option<Spanned<RawTtls>>,
}

fn every_ten_seconds() -> u32 {
    10
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub(super) enum RawStore {
    Embedded { path: PathBuf },
    Etcd(Box<RawEtcd>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEtcd {
    pub(super) endpoints: Spanned<Vec<String>>,
    pub(super) tls: Option<EtcdTlsFiles>,
    pub(super) user: Option<EtcdUserFile>,
    pub(super) compaction: Option<RawCompaction>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCompaction {
    pub(super) keep_s: Spanned<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawState {
    pub(super) path: Spanned<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFilter {
    pub(super) path: Spanned<String>,
    #[serde(default = "first_generation")]
    pub(super) generation: u64,
}

fn first_generation() -> u64 {
    1
}

/// Not for virtual hosts: an entry without a body there means that there is none, so that there are no heartbeats.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTtls {
    pub(super) cds: Option<u32>,
    pub(super) eds: Option<u32>,
    pub(super) lds: Option<u32>,
    pub(super) rds: Option<u32>,
    pub(super) ecds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawZone {
    pub(super) name: String,
    pub(super) region: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLink {
    pub(super) between: (String, String),
    pub(super) rtt_ms: f64,
    #[serde(default = "default_cost")]
    pub(super) cost: f64,
}

fn default_cost() -> f64 {
    1.0
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExplain {
    pub(super) header: String,
    pub(super) token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawService {
    pub(super) name: String,
    #[serde(default)]
    pub(super) protocol: Protocol,
    pub(super) routes: Vec<Spanned<RawRoute>>,
    #[serde(default)]
    pub(super) region: RawRegion,
    #[serde(default)]
    pub(super) trace: RawTrace,
    pub(super) weights: Option<Spanned<RawWeights>>,
    pub(super) thresholds: Option<Spanned<RawThresholds>>,
    pub(super) failover: Option<Spanned<RawFailover>>,
    pub(super) demand: Option<Spanned<BTreeMap<String, RawDemand>>>,
    pub(super) zone_affinity: Option<Spanned<RawAffinity>>,
    pub(super) fenced: Option<Spanned<bool>>,
    pub(super) cell_key: Option<Spanned<RawAffinity>>,
    pub(super) strategy: Option<Spanned<RawStrategy>>,
    pub(super) stateful_session: Option<Spanned<RawSessions>>,
    pub(super) outlier_detection: Option<Spanned<OutlierDetection>>,
    pub(super) circuit_breakers: Option<Spanned<CircuitBreakers>>,
    pub(super) hedging: Option<Spanned<RawHedging>>,
    pub(super) timeout_ms: Option<Spanned<u32>>,
    pub(super) idle_timeout_ms: Option<Spanned<u32>>,
    pub(super) max_stream_duration_ms: Option<Spanned<u32>>,
    #[serde(default)]
    pub(super) upgrades: Vec<Spanned<String>>,
    pub(super) common_http_protocol_options: Option<Spanned<RawUpstreamOptions>>,
    pub(super) tls: Option<Spanned<RawUpstreamTls>>,
    /// Former names, see [`Validator::renamed`](super::validate::Validator::renamed). This one has other units, too.
    pub(super) outlier: Option<Spanned<RawOutlier>>,
    pub(super) circuit: Option<Spanned<CircuitBreakers>>,
    pub(super) affinity: Option<Spanned<RawAffinity>>,
    pub(super) sessions: Option<Spanned<RawSessions>>,
    pub(super) hedge_after_ms: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    #[serde(default = "any_host")]
    pub(super) host: String,
    pub(super) prefix: Option<String>,
    pub(super) grpc: Option<String>,
    pub(super) reads: Option<Vec<String>>,
    pub(super) class: Option<Class>,
    pub(super) timeout_ms: Option<Spanned<u32>>,
    pub(super) idle_timeout_ms: Option<Spanned<u32>>,
    pub(super) max_stream_duration_ms: Option<Spanned<u32>>,
    pub(super) hedging: Option<Spanned<RawHedging>>,
    /// A former name.
    pub(super) hedge_after_ms: Option<Spanned<u32>>,
}

/// When a read without an answer is sent elsewhere, too.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHedging {
    pub(super) delay_ms: u32,
}

fn any_host() -> String {
    "*".to_owned()
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRegion {
    pub(super) missing: RegionRule,
    pub(super) unknown: RegionRule,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTrace {
    pub(super) missing: TraceRule,
}

pub(super) enum RawWeights {
    Computed,
    Operator(RawOperatorWeights),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOperatorWeights {
    pub(super) zone: u32,
    pub(super) region: u32,
}

/// By hand, because an untagged enum would lose the fault and its place.
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
pub(super) struct RawThresholds {
    pub(super) down_below_percent: u8,
    pub(super) up_from_percent: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum RawAffinity {
    Header(String),
    Cookie(String),
    PathSegment(u8),
}

impl RawAffinity {
    pub(super) fn source(&self) -> KeySource {
        match self {
            RawAffinity::Header(name) => KeySource::Header(name.to_ascii_lowercase()),
            RawAffinity::Cookie(name) => KeySource::Cookie(name.clone()),
            RawAffinity::PathSegment(at) => KeySource::PathSegment(*at),
        }
    }
}
