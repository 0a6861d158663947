//! The reactions of a service's proxies themselves when instances fail.

use policy::{KeySource, rules::check_key};
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{
    routing::{RoutesOptions, Upgrades},
    schema::RawAffinity,
};

/// The proxies' own reactions, and the options of their routes beside destinations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resilience {
    pub strategy: Strategy,
    pub outlier_detection: OutlierDetection,
    pub circuit_breakers: CircuitBreakers,
    pub routes: RoutesOptions,
    pub upgrades: Upgrades,
    /// How long a connection to an instance may be idle, in milliseconds; 0: for ever; none: as its protocol needs it.
    pub upstream_idle_timeout_ms: Option<u32>,
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

/// When a proxy takes an instance out by itself, by Envoy's names.
///
/// By default only *gateway errors* count: status 502, 503 and 504, a refused or broken connection, no answer in time. Those are about
/// the instance. A status 500 may be about the request, and any client that may ask for it could empty a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Gateway errors in a row.
    pub consecutive_gateway_failure: u32,
    /// Errors in a row, every status 5xx among them; none: they are not counted.
    pub consecutive_5xx: Option<u32>,
    /// The share of errors in a window, every status 5xx among them, in percent; none: it is not looked at.
    pub failure_percentage_threshold: Option<u32>,
    /// The requests in a window from which on that share says something.
    pub failure_percentage_request_volume: u32,
    /// The window; at its end, too, instances come back whose time is over.
    pub interval_ms: u32,
    /// How long it is out the first time; one more of it each time it happens again.
    pub base_ejection_time_ms: u32,
    /// The bound of that time.
    pub max_ejection_time_ms: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        OutlierDetection {
            consecutive_gateway_failure: 5,
            consecutive_5xx: None,
            failure_percentage_threshold: None,
            failure_percentage_request_volume: 100,
            interval_ms: 60_000,
            base_ejection_time_ms: 30_000,
            max_ejection_time_ms: 300_000,
        }
    }
}

/// The former names, and times in seconds. Errors were every status 5xx; they are gateway errors now, but for the share of them,
/// which Envoy counts no other way.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawOutlier {
    consecutive_errors: u32,
    error_percent: Option<u32>,
    window_s: u32,
    ejection_s: u32,
    ejection_max_s: u32,
}

impl Default for RawOutlier {
    fn default() -> Self {
        let now = OutlierDetection::default();
        RawOutlier {
            consecutive_errors: now.consecutive_gateway_failure,
            error_percent: None,
            window_s: now.interval_ms / 1_000,
            ejection_s: now.base_ejection_time_ms / 1_000,
            ejection_max_s: now.max_ejection_time_ms / 1_000,
        }
    }
}

impl From<RawOutlier> for OutlierDetection {
    fn from(raw: RawOutlier) -> OutlierDetection {
        let millis = |s: u32| s.saturating_mul(1_000);
        OutlierDetection {
            consecutive_gateway_failure: raw.consecutive_errors,
            failure_percentage_threshold: raw.error_percent,
            interval_ms: millis(raw.window_s),
            base_ejection_time_ms: millis(raw.ejection_s),
            max_ejection_time_ms: millis(raw.ejection_max_s),
            ..OutlierDetection::default()
        }
    }
}

impl OutlierDetection {
    fn check(self) -> Result<OutlierDetection, String> {
        let counts = [
            Some(self.consecutive_gateway_failure),
            self.consecutive_5xx,
            Some(self.failure_percentage_request_volume),
        ];
        let times = [
            self.interval_ms,
            self.base_ejection_time_ms,
            self.max_ejection_time_ms,
        ];
        let possible = counts.into_iter().flatten().all(|count| count > 0)
            && (self.failure_percentage_threshold).is_none_or(|p| (1..=100).contains(&p))
            && times.iter().all(|ms| (1..=TIME_MS_MAX).contains(ms))
            && self.base_ejection_time_ms <= self.max_ejection_time_ms;
        match possible {
            true => Ok(self),
            false => Err(format!(
                "numbers from 1; shares at most 100 percent; times at most {TIME_MS_MAX} ms; the first ejection at most as long as the longest"
            )),
        }
    }
}

/// The most that one proxy sends to one zone at a time; more is refused at once. By Envoy's names;
/// the former ones are read, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreakers {
    #[serde(alias = "connections")]
    pub max_connections: u32,
    /// Requests that wait for a connection.
    #[serde(alias = "pending")]
    pub max_pending_requests: u32,
    #[serde(alias = "requests")]
    pub max_requests: u32,
}

impl Default for CircuitBreakers {
    /// More than a healthy service has under way, and few enough that one that hangs is cut off before it takes the proxy down.
    fn default() -> Self {
        CircuitBreakers {
            max_connections: 4_096,
            max_pending_requests: 4_096,
            max_requests: 4_096,
        }
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
    pub(super) outlier_detection: Option<&'r Spanned<OutlierDetection>>,
    pub(super) outlier: Option<&'r Spanned<RawOutlier>>,
    pub(super) circuit_breakers: Option<&'r Spanned<CircuitBreakers>>,
    /// Whether something is configured that only the weighted strategy knows.
    pub(super) weighs: bool,
}

/// A day: the longest time that Envoy's configuration is given here.
const TIME_MS_MAX: u32 = 86_400_000;

/// The longest life of a session's cookie, in seconds: some two and a half years.
const SESSION_S_MAX: u32 = 86_400_000;

/// The last segment of a path that can be hashed: Envoy finds it by a regular expression, whose size it bounds.
const HASHED_SEGMENT_MAX: u8 = 16;

/// The line of the field that is wrong, its name, and why.
type Wrong = (u64, &'static str, String);

impl Raw<'_> {
    /// The resilience by these fields; the rest of it is as if nothing were said.
    pub(super) fn read(&self) -> Result<Resilience, Wrong> {
        Ok(Resilience {
            strategy: self.strategy()?,
            outlier_detection: self.outlier_detection()?,
            circuit_breakers: self.circuit_breakers()?,
            ..Resilience::default()
        })
    }

    fn strategy(&self) -> Result<Strategy, Wrong> {
        let sessions = self.sessions.map(|at| {
            let name = &at.value.cookie;
            let token = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if name.is_empty() || !name.bytes().all(token) || at.value.ttl_s > SESSION_S_MAX {
                let message = "cookie: letters, digits, '-', '_' and '.'; ttl_s: at most 86400000";
                return Err((at.referenced.line(), "stateful_session", message.to_owned()));
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
        match (hash, self.sessions) {
            (Some((line, _)), _) if self.weighs => {
                let message = "region_first_hash uses all instances of a region alike: leave out `weights` and `zone_affinity`";
                Err((line, "strategy", message.to_owned()))
            }
            (Some((line, key)), _) => {
                let key = key.source();
                check_key(&key).map_err(|error| (line, "strategy", error.to_string()))?;
                if matches!(key, KeySource::PathSegment(at) if at > HASHED_SEGMENT_MAX) {
                    let message = format!("path_segment: 0 to {HASHED_SEGMENT_MAX} are possible");
                    return Err((line, "strategy", message));
                }
                Ok(Strategy::RegionFirstHash { key, sessions })
            }
            (None, Some(at)) => {
                let message = "only the strategy region_first_hash keeps sessions";
                Err((at.referenced.line(), "stateful_session", message.to_owned()))
            }
            (None, None) => Ok(Strategy::Weighted),
        }
    }

    fn outlier_detection(&self) -> Result<OutlierDetection, Wrong> {
        let (line, name, read) = match (self.outlier_detection, self.outlier) {
            (Some(at), _) => (at.referenced.line(), "outlier_detection", at.value),
            (None, Some(at)) => (at.referenced.line(), "outlier", at.value.into()),
            (None, None) => return Ok(OutlierDetection::default()),
        };
        read.check().map_err(|message| (line, name, message))
    }

    fn circuit_breakers(&self) -> Result<CircuitBreakers, Wrong> {
        let Some(at) = self.circuit_breakers else {
            return Ok(CircuitBreakers::default());
        };
        let read = at.value;
        if [
            read.max_connections,
            read.max_pending_requests,
            read.max_requests,
        ]
        .contains(&0)
        {
            let message = "numbers from 1: 0 would refuse everything";
            return Err((at.referenced.line(), "circuit_breakers", message.to_owned()));
        }
        Ok(read)
    }
}
