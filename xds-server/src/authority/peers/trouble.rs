//! Faults of streams between replicas. They are counted, and their log lines are limited, since any
//! client can cause many of them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Status;
use tracing::warn;

use super::proof::Doubt;
use crate::{
    conditions::Code,
    log_budget::Budget,
    metrics::{Metrics, ReasonLabel},
};

/// How long another replica is tried before it is reported as unreachable: a restarted one is back
/// by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clones share their state.
#[derive(Clone)]
pub(super) struct Trouble {
    metrics: Metrics,
    lines: Arc<Mutex<Budget<Doubt>>>,
}

impl Trouble {
    pub(super) fn new(metrics: Metrics) -> Trouble {
        Trouble {
            metrics,
            lines: Arc::default(),
        }
    }

    /// A message on a stream with this session is rejected: returns the final status of the stream.
    pub(super) fn doubted(&self, session: &str, doubt: Doubt) -> Status {
        let reason = doubt.reason();
        let label = ReasonLabel { reason };
        let counts = &self.metrics.peer_messages_refused;
        counts.get_or_create(&label).inc();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = lines.take(doubt, Instant::now()) {
            warn!(
                session,
                reason,
                suppressed,
                "a stream between replicas is ended, and its last message is ignored: {doubt}"
            );
        }
        Status::unauthenticated(doubt.to_string())
    }
}

/// Whether another replica is reached, as a condition. The condition ends when this is dropped:
/// then there is no replica to reach.
pub(super) struct Reached {
    trouble: Trouble,
    subject: String,
    /// Since when it has not been reached.
    failing: Option<Instant>,
}

impl Reached {
    pub(super) fn new(trouble: &Trouble, from: &str, to: &str) -> Reached {
        Reached {
            trouble: trouble.clone(),
            subject: format!("{from} to {to}"),
            failing: None,
        }
    }

    /// A stream was opened.
    pub(super) fn yes(&mut self) {
        self.failing = None;
        self.clear();
    }

    /// No stream could be opened. A fault that `lasts` is permanent without an operator.
    pub(super) fn no(&mut self, why: &str, lasts: bool) {
        let since = *self.failing.get_or_insert_with(Instant::now);
        if lasts || since.elapsed() >= PATIENCE {
            let conditions = &self.trouble.metrics.conditions;
            conditions.raise(Code::PeerUnreached, &self.subject, why);
        }
    }

    fn clear(&self) {
        let conditions = &self.trouble.metrics.conditions;
        conditions.clear(Code::PeerUnreached, &self.subject);
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// The log's content.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn callers_that_prove_nothing_are_all_counted_and_few_of_them_logged() {
        let (metrics, log) = (Metrics::default(), Log::default());
        let trouble = Trouble::new(metrics.clone());
        let to = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || to.clone());
        tracing::subscriber::with_default(subscriber.finish(), || {
            for _ in 0..1_000 {
                trouble.doubted("a-1", Doubt::Caller);
            }
            trouble.doubted("a-1", Doubt::Unproved);
        });
        let reason = Doubt::Caller.reason();
        let count = (metrics.peer_messages_refused).get_or_create(&ReasonLabel { reason });
        assert_eq!(count.get(), 1_000);
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines = log.lines().filter(|line| line.contains("a-1")).count();
        assert!((1..100).contains(&lines), "{lines} lines");
        assert!(log.contains("unproved"), "another reason is not hidden");
    }
}
