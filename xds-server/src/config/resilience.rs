//! What a service's proxies do by themselves when instances fail.

use policy::KeySource;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::raw::RawAffinity;

/// What proxies do before anybody tells them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resilience {
    pub strategy: Strategy,
    pub outlier: Outlier,
    pub circuit: Circuit,
    pub hedging: Hedging,
}

/// How requests of a home are spread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Over zones by weight, then to the least busy of two instances.
    #[default]
    Weighted,
    /// To the instance that a hash of the key gives among all of the home's region.
    RegionFirstHash {
        key: KeySource,
        sessions: Option<Sessions>,
    },
}

/// A cookie that keeps a session on its instance, also while that is draining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions {
    pub cookie: String,
    /// Seconds; 0: as long as the client keeps it.
    pub ttl_s: u32,
}

/// When a proxy takes an instance out by itself (Envoy's outlier detection).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// Errors in a row: status 5xx, a refused or broken connection, no answer in time.
    pub consecutive_errors: u32,
    /// Share of errors in a window.
    pub error_percent: u32,
    /// The window; at its end, too, instances come back whose time is over.
    pub window_s: u32,
    /// How long it is out the first time; one more of it each time it happens again.
    pub ejection_s: u32,
    /// The bound of that time.
    pub ejection_max_s: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Outlier {
            consecutive_errors: 5,
            error_percent: 60,
            window_s: 60,
            ejection_s: 30,
            ejection_max_s: 300,
        }
    }
}

/// What one proxy sends to one zone at the most, at a time; more is refused at once (Envoy's circuit breakers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Circuit {
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    pub requests: u32,
}

impl Default for Circuit {
    /// More than a healthy service has under way, and few enough that one that hangs is cut off before it takes the proxy down.
    fn default() -> Self {
        Circuit {
            connections: 4_096,
            pending: 4_096,
            requests: 4_096,
        }
    }
}

/// When a read that is not answered is asked again elsewhere, while the first goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedging {
    /// Milliseconds; 0: never.
    pub after_ms: u32,
}

impl Default for Hedging {
    /// Longer than reads take that are well: what is slower counts as an error of its instance, and costs a second read.
    fn default() -> Self {
        Hedging { after_ms: 1_000 }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawStrategy {
    #[default]
    Weighted,
    RegionFirstHash(RawAffinity),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSessions {
    cookie: String,
    #[serde(default)]
    ttl_s: u32,
}

/// The fields of a service that are about this.
pub(super) struct Raw<'r> {
    pub(super) strategy: Option<&'r Spanned<RawStrategy>>,
    pub(super) sessions: Option<&'r Spanned<RawSessions>>,
    pub(super) outlier: Option<&'r Spanned<Outlier>>,
    pub(super) circuit: Option<&'r Spanned<Circuit>>,
    pub(super) hedge_after_ms: Option<u32>,
    /// Whether something is configured that only the weighted strategy knows.
    pub(super) weighs: bool,
}

/// The longest time, in seconds or milliseconds, that Envoy's configuration is given here.
const TIME_MAX: u32 = 86_400_000;

impl Raw<'_> {
    /// What they say, or the line of the field that is wrong, its name, and why.
    pub(super) fn read(&self) -> Result<Resilience, (u64, &'static str, &'static str)> {
        let sessions = self.sessions.map(|at| {
            let name = &at.value.cookie;
            let token = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if name.is_empty() || !name.bytes().all(token) || at.value.ttl_s > TIME_MAX {
                let message = "cookie: letters, digits, '-', '_' and '.'; ttl_s: at most 86400000";
                return Err((at.referenced.line(), "sessions", message));
            }
            Ok(Sessions {
                cookie: name.clone(),
                ttl_s: at.value.ttl_s,
            })
        });
        let sessions = sessions.transpose()?;
        let hash = self.strategy.and_then(|at| match &at.value {
            RawStrategy::Weighted => None,
            RawStrategy::RegionFirstHash(key) => Some((at.referenced.line(), key)),
        });
        let strategy = match (hash, self.sessions) {
            (Some((line, _)), _) if self.weighs => {
                let message = "region_first_hash uses all instances of a region alike: leave out `weights` and `affinity`";
                return Err((line, "strategy", message));
            }
            (Some((_, key)), _) => Strategy::RegionFirstHash {
                key: key.source(),
                sessions,
            },
            (None, Some(at)) => {
                let message = "only the strategy region_first_hash keeps sessions";
                return Err((at.referenced.line(), "sessions", message));
            }
            (None, None) => Strategy::Weighted,
        };
        let outlier = match self.outlier {
            None => Outlier::default(),
            Some(at) => {
                let o = at.value;
                let times = [o.window_s, o.ejection_s, o.ejection_max_s];
                let possible = (1..=100).contains(&o.error_percent)
                    && o.consecutive_errors > 0
                    && times.iter().all(|s| (1..=TIME_MAX).contains(s))
                    && o.ejection_s <= o.ejection_max_s;
                if !possible {
                    let message = "numbers from 1; error_percent at most 100; ejection_s at most ejection_max_s";
                    return Err((at.referenced.line(), "outlier", message));
                }
                o
            }
        };
        let circuit = match self.circuit {
            None => Circuit::default(),
            Some(at) => {
                let c = at.value;
                if [c.connections, c.pending, c.requests].contains(&0) {
                    let message = "numbers from 1: 0 would refuse everything";
                    return Err((at.referenced.line(), "circuit", message));
                }
                c
            }
        };
        let hedging = match self.hedge_after_ms {
            None => Hedging::default(),
            Some(after_ms) => Hedging {
                after_ms: after_ms.min(TIME_MAX),
            },
        };
        Ok(Resilience {
            strategy,
            outlier,
            circuit,
            hedging,
        })
    }
}
