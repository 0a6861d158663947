//! Log lines on standard error, limited in number and independent of the reader's speed.
//!
//! Clients can cause any number of log lines. So each place in the code logs a limited number of
//! lines per second, and no caller waits for the reader of the log. Dropped lines are counted.

#![allow(
    clippy::disallowed_methods,
    reason = "an edge: how often lines come is measured by the clock"
)]

use std::{
    collections::HashMap,
    fmt,
    io::{IsTerminal, stderr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::counter::ConstCounter,
};
use tracing::{Event, Metadata, Subscriber, callsite::Identifier};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::FilterExt,
    layer::{Context, Filter, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// The most lines per second from one place in the code.
const LINES_MAX: u64 = 100;
const SECOND: Duration = Duration::from_secs(1);
/// The most lines that wait for the reader.
const WAITING_MAX: usize = 10_000;

/// The dropped lines, for the metrics. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LeftOut {
    /// Over the limit of a place.
    repeated: Arc<AtomicU64>,
    /// The reader was too slow.
    unread: ErrorCounter,
}

/// Logs to standard error from now on, as `RUST_LOG` says. Waiting lines are written when the guard
/// is dropped.
pub(crate) fn begin(json: bool) -> (LeftOut, WorkerGuard) {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(WAITING_MAX);
    let (writer, guard) = builder.finish(stderr());
    let left_out = LeftOut {
        repeated: Arc::default(),
        unread: writer.error_counter(),
    };
    let by_level = by_level(&std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default());
    let by_place = ByPlace {
        windows: Mutex::default(),
        left_out: Arc::clone(&left_out.repeated),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(stderr().is_terminal())
        .with_writer(writer);
    let lines = match json {
        true => lines.json().boxed(),
        false => lines.boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(by_level.and(by_place)))
        .init();
    (left_out, guard)
}

/// The filter of `RUST_LOG`. `h2` warns of frames that any client may send: only its errors are
/// logged, unless `RUST_LOG` says otherwise.
fn by_level(rust_log: &str) -> EnvFilter {
    let asked_for = match rust_log.trim() {
        "" => "info",
        some => some,
    };
    // Of two directives for one target the last one counts.
    EnvFilter::builder().parse_lossy(format!("h2=error,{asked_for}"))
}

/// Lets through a limited number of events per second of each place.
struct ByPlace {
    /// Bounded by the number of places in the code.
    windows: Mutex<HashMap<Identifier, Window>>,
    left_out: Arc<AtomicU64>,
}

struct Window {
    began: Instant,
    lines: u64,
}

impl ByPlace {
    fn permits(&self, place: Identifier, now: Instant) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Window {
            began: now,
            lines: 0,
        };
        let window = windows.entry(place).or_insert(fresh);
        if now.duration_since(window.began) >= SECOND {
            (window.began, window.lines) = (now, 0);
        }
        window.lines += 1;
        window.lines <= LINES_MAX
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Filter<S> for ByPlace {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let permitted = self.permits(event.metadata().callsite(), Instant::now());
        if !permitted {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        permitted
    }
}

impl fmt::Debug for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeftOut").finish_non_exhaustive()
    }
}

impl Collector for LeftOut {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let unread = u64::try_from(self.unread.dropped_lines()).unwrap_or(u64::MAX);
        let count = self.repeated.load(Ordering::Relaxed).saturating_add(unread);
        let counter = ConstCounter::new(count);
        counter.encode(encoder.encode_descriptor(
            "log_lines_left_out",
            "Dropped log lines: over 100 per second from one place, or a slow reader",
            None,
            counter.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use tracing::{info, subscriber::with_default, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Heard(Arc<AtomicU64>);

    impl<S: Subscriber> Layer<S> for Heard {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_library_warns_of_clients_only_where_that_is_asked_for() {
        for (rust_log, expected) in [
            ("", 2),
            ("warn", 1),
            ("h2=warn", 1),
            ("info,h2=debug", 3),
            ("tidegate=info", 0),
        ] {
            let heard = Heard::default();
            let lines = heard.clone().with_filter(by_level(rust_log));
            with_default(tracing_subscriber::registry().with(lines), || {
                warn!(target: "h2::proto::ping_pong", "a client sent an invalid request");
                warn!(target: "xds_server::discovery", "one of ours");
                info!(target: "xds_server::discovery", "one more of ours");
            });
            assert_eq!(heard.0.load(Ordering::Relaxed), expected, "{rust_log:?}");
        }
    }

    #[test]
    fn what_says_too_much_is_cut_short_and_nothing_else_is() {
        const SAID: u64 = 1_000;
        let (heard, left_out) = (Heard::default(), Arc::<AtomicU64>::default());
        let by_place = ByPlace {
            windows: Mutex::default(),
            left_out: Arc::clone(&left_out),
        };
        let lines = heard.clone().with_filter(by_place);
        let began = Instant::now();
        with_default(tracing_subscriber::registry().with(lines), || {
            (0..SAID).for_each(|_| info!("again"));
            let before = heard.0.load(Ordering::Relaxed);
            info!("another place");
            assert_eq!(heard.0.load(Ordering::Relaxed), before + 1);
        });
        let heard = heard.0.load(Ordering::Relaxed) - 1;
        let seconds = 1 + began.elapsed().as_secs();
        assert!(
            (LINES_MAX..=seconds * LINES_MAX).contains(&heard),
            "{heard}"
        );
        assert_eq!(heard + left_out.load(Ordering::Relaxed), SAID);
    }
}
