//! How loaded the machine and the applications are, reported only where it changed enough to
//! matter.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode, Uri};
use registry::record::InstanceKey;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::http::Client;
use crate::instances::Instances;
use crate::metrics::Metrics;

/// How long an application has to say its load.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(200);
/// The longest answer.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Loads are reported in steps of this, and a change from one full step on.
const LOAD_STEP: f64 = 0.05;
/// A number of requests is reported when it changed by this share of what was reported, and at
/// least by [`IN_FLIGHT_STEP`]. To and from 0 always: that ends a drain.
const IN_FLIGHT_SHARE: f64 = 0.1;
const IN_FLIGHT_STEP: u32 = 5;

/// The load of one instance, as it is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// One-minute load average per core.
    pub load1_per_core: f64,
    /// None where the application says nothing.
    pub in_flight: Option<u32>,
    /// The load that the application reports; none where it reports none.
    pub app_load: Option<f64>,
}

impl Load {
    /// The load to report, where `seen` was measured and `self` was reported last: the same unless
    /// it changed enough.
    pub fn next(self, seen: Load) -> Load {
        Load {
            load1_per_core: next_load(self.load1_per_core, seen.load1_per_core),
            in_flight: match (self.in_flight, seen.in_flight) {
                (Some(was), Some(is)) => Some(next_in_flight(was, is)),
                (_, seen) => seen,
            },
            app_load: match (self.app_load, seen.app_load) {
                (Some(was), Some(is)) => Some(next_load(was, is)),
                (None, Some(is)) => Some(rounded(is)),
                (_, None) => None,
            },
        }
    }
}

fn next_load(was: f64, is: f64) -> f64 {
    if (is - was).abs() >= LOAD_STEP {
        rounded(is)
    } else {
        was
    }
}

/// Rounds to hundredths: finer steps are noise in a record.
fn rounded(load: f64) -> f64 {
    (load * 100.0).round() / 100.0
}

fn next_in_flight(was: u32, is: u32) -> u32 {
    let step = (f64::from(was) * IN_FLIGHT_SHARE).max(f64::from(IN_FLIGHT_STEP));
    let changed = f64::from(is.abs_diff(was)) >= step;
    let to_or_from_zero = (was == 0) != (is == 0);
    if changed || to_or_from_zero { is } else { was }
}

/// The machine's one-minute load average per core. None where the kernel does not say.
pub fn load1_per_core() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let cores = std::thread::available_parallelism().ok()?;
    let cores = u32::try_from(cores.get()).ok()?;
    Some(parse_load1(&text)? / f64::from(cores))
}

fn parse_load1(text: &str) -> Option<f64> {
    let load: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    is_load(load).then_some(load)
}

fn is_load(load: f64) -> bool {
    load.is_finite() && load >= 0.0
}

/// The answer of an application. Other fields are ignored.
#[derive(Debug, PartialEq, Deserialize)]
struct Answer {
    load: Option<f64>,
    in_flight: Option<u32>,
}

fn parse_answer(status: StatusCode, body: &[u8]) -> Result<Answer, String> {
    if status != StatusCode::OK {
        return Err(format!("status {}", status.as_u16()));
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    match answer.load {
        Some(load) if !is_load(load) => Err(format!("load {load}: a number of at least 0")),
        _ => Ok(answer),
    }
}

/// Reports load to the table, for as long as it is polled.
pub struct Reporter {
    /// Every instance, with the address where its application says its load.
    pub sources: Vec<(InstanceKey, Option<Uri>)>,
    pub every: Duration,
    pub instances: Instances,
    pub metrics: Metrics,
}

impl Reporter {
    /// Reports for ever. All applications are asked in parallel; one that does not answer is
    /// reported without its word.
    pub async fn run(self) {
        let client = Client::plain();
        let me = Arc::new(self);
        let mut ticks = interval(me.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let machine = load1_per_core().unwrap_or(0.0);
            let mut asked = JoinSet::new();
            for index in 0..me.sources.len() {
                let (me, client) = (Arc::clone(&me), client.clone());
                asked.spawn(async move { me.report(index, machine, &client).await });
            }
            asked.join_all().await;
        }
    }

    async fn report(&self, index: usize, load1_per_core: f64, client: &Client) {
        let Some((key, uri)) = self.sources.get(index) else {
            return;
        };
        let answer = match uri {
            Some(uri) => self.ask(key, uri, client).await,
            None => None,
        };
        let seen = Load {
            load1_per_core,
            in_flight: answer.as_ref().and_then(|answer| answer.in_flight),
            app_load: answer.as_ref().and_then(|answer| answer.load),
        };
        self.instances
            .update(key, |known| known.load = known.load.next(seen));
    }

    async fn ask(&self, key: &InstanceKey, uri: &Uri, client: &Client) -> Option<Answer> {
        let url = uri.to_string();
        let sent = client.send(
            Method::GET,
            &url,
            Bytes::new(),
            ANSWER_TIMEOUT,
            ANSWER_BYTES_MAX,
        );
        let answer = match sent.await {
            Ok((status, body)) => parse_answer(status, &body),
            Err(failure) => Err(failure.to_string()),
        };
        answer
            .inspect_err(|error| {
                self.metrics.load_errors.inc();
                let InstanceKey {
                    service, instance, ..
                } = key;
                debug!(%service, %instance, %uri, %error, "the application reports no load");
            })
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_not_reported_and_changes_are() {
        let was = Load {
            load1_per_core: 0.5,
            in_flight: Some(100),
            app_load: Some(0.7),
        };
        let noise = Load {
            load1_per_core: 0.53,
            in_flight: Some(95),
            app_load: Some(0.66),
        };
        assert_eq!(was.next(noise), was);
        let change = Load {
            load1_per_core: 0.4567,
            in_flight: Some(111),
            app_load: None,
        };
        let reported = Load {
            load1_per_core: 0.5,
            ..change
        };
        assert_eq!(was.next(change), reported);
        let small = next_in_flight(3, 0);
        assert_eq!(small, 0, "an idle instance may go");
        assert_eq!(next_in_flight(3, 6), 3);
    }

    #[test]
    fn a_malformed_load_is_refused() {
        assert_eq!(parse_load1("0.52 0.58 0.59 1/467 12345\n"), Some(0.52));
        for text in ["", "none", "-1 0 0", "NaN", "inf"] {
            assert_eq!(parse_load1(text), None, "{text:?}");
        }
        let ok = parse_answer(StatusCode::OK, br#"{"load": 0.7, "future": 1}"#);
        let expected = Answer {
            load: Some(0.7),
            in_flight: None,
        };
        assert_eq!(ok, Ok(expected));
        for body in ["", "[]x", r#"{"load": -1}"#, r#"{"in_flight": -1}"#] {
            assert!(
                parse_answer(StatusCode::OK, body.as_bytes()).is_err(),
                "{body}"
            );
        }
        assert!(parse_answer(StatusCode::NOT_FOUND, b"{}").is_err());
    }
}
