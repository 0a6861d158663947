//! The health of the store, as one shared value. It determines the served state and the permitted
//! operations.
//!
//! The reader reports the results of its reads and probes, the writers those of their writes. The
//! causes are kept apart, so that each ends separately: reads fail, writes fail, the store is not
//! the original one. Each is a condition.

mod causes;
mod probes;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use registry::store::{RefusedCause, StoreError};
use tokio::{sync::watch, time::Instant};
use tracing::{error, info, warn};

use causes::{Causes, refused};

use crate::{
    conditions::Code,
    metrics::{Metrics, ModeLabel},
};

/// After this many failed writes in a row, writing stops.
const WRITE_FAILURES_MAX: u32 = 3;
/// A longer write counts as slow: session renewals are of this order.
const SLOW_WRITE: Duration = Duration::from_millis(500);
/// This many slow writes in a row are a condition.
const SLOW_WRITES_MAX: u32 = 3;
/// Between two test writes.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How far the store is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Normal,
    /// No member is reachable: the last good state is served.
    L1,
    /// A member answers, but cannot serve: the last good state is served, and dynamic weights are
    /// frozen.
    L2,
    /// Writes fail: nothing is registered or granted, and the known state is served.
    L3,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::Normal, Level::L1, Level::L2, Level::L3];

    /// The name for metrics and operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::L1 => "L1",
            Level::L2 => "L2",
            Level::L3 => "L3",
        }
    }

    /// As a word: `normal`, `unreachable`, `degraded`, `read_only`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::L1 => "unreachable",
            Level::L2 => "degraded",
            Level::L3 => "read_only",
        }
    }
}

/// The mode at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub level: Level,
    /// When the level began.
    pub since: Instant,
    /// Why it is not normal, or why the served state is stale; empty if all is well.
    pub reason: String,
    /// The served state comes from disk, or has not been confirmed by the store since.
    pub stale: bool,
    /// Whether there is any state.
    pub any: bool,
    /// Whether an operator has to confirm that the store is trusted again.
    pub confirm: bool,
    /// Whether writes to the store are so slow that sessions are at risk.
    pub slow: bool,
    /// Whether the store has rejected the last write for a reason that concerns others, too.
    pub refused: bool,
}

/// The shared value. Clones share it.
#[derive(Clone)]
pub struct StoreHealth {
    inner: Arc<Inner>,
}

struct Inner {
    causes: Mutex<Causes>,
    status: watch::Sender<Status>,
    metrics: Metrics,
}

impl StoreHealth {
    /// Normal until a fault is reported, without a state.
    pub fn new(metrics: Metrics) -> StoreHealth {
        let status = Status {
            level: Level::Normal,
            since: Instant::now(),
            reason: String::new(),
            stale: false,
            any: false,
            confirm: false,
            slow: false,
            refused: false,
        };
        let store_health = StoreHealth {
            inner: Arc::new(Inner {
                causes: Mutex::default(),
                status: watch::Sender::new(status),
                metrics,
            }),
        };
        store_health.update(|_| ());
        store_health
    }

    /// The present status.
    pub fn status(&self) -> Status {
        self.inner.status.borrow().clone()
    }

    /// Subscribes to changes.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    /// Whether dynamic weights are frozen (L2, L3): their sources may be old.
    pub fn frozen(&self) -> bool {
        matches!(self.inner.status.borrow().level, Level::L2 | Level::L3)
    }

    /// Why writes to the store are stopped at present; none if they are not.
    pub fn writes_refused(&self) -> Option<String> {
        let causes = self.causes();
        causes.unwritten.as_ref().map(|reason| {
            format!(
                "{reason}. No registration, keepalive or removal is possible meanwhile; a test write is sent every {PROBE_INTERVAL:?}, and the first success ends this. Retry the request"
            )
        })
    }

    /// The store returned everything, or confirmed that nothing is missing.
    pub fn confirmed(&self) {
        self.update(|causes| {
            causes.unread = None;
            causes.read_refused = None;
            causes.doubted = None;
            causes.any = true;
            causes.current = true;
            causes.confirmed = Some(Instant::now());
        });
    }

    /// A state from disk that is `age` old was loaded.
    pub fn loaded(&self, age: Duration) {
        self.update(|causes| {
            causes.any = true;
            causes.confirmed = Instant::now().checked_sub(age);
        });
    }

    /// A read of the store failed.
    pub fn unread(&self, error: &StoreError) {
        let level = match error {
            StoreError::Unreachable { .. } => Level::L1,
            _ => Level::L2,
        };
        self.update(|causes| {
            causes.unread = Some((level, error.to_string()));
            causes.read_refused = refused(error);
            causes.current = false;
        });
    }

    /// The store answers, but with a state that a sanity guard rejects: it waits for an operator.
    pub fn doubted(&self, reason: &str) {
        self.update(|causes| {
            causes.unread = None;
            causes.read_refused = None;
            causes.doubted = Some(reason.to_owned());
            causes.current = false;
        });
    }

    /// Some of the store's state is not served until an operator confirms it; none: all of it is
    /// served.
    pub fn held(&self, reason: Option<String>) {
        self.update(|causes| causes.held = reason);
    }

    /// Reports the outcome of a write. Lease keepalives do not count: etcd does not persist them.
    pub fn wrote<T>(&self, outcome: &Result<T, StoreError>) {
        match outcome {
            Err(error) => self.write_failed(error),
            // Most writes change nothing, and need not wake any watcher.
            Ok(_) if self.causes().writes_well() => {}
            Ok(_) => self.update(Causes::wrote),
        }
    }

    /// Reports the outcome of a write that took `took` from its sending.
    pub fn wrote_in<T>(&self, outcome: &Result<T, StoreError>, took: Duration) {
        self.wrote(outcome);
        let slow = took >= SLOW_WRITE;
        if slow || self.causes().slow_writes > 0 {
            self.update(|causes| causes.took(slow, took));
        }
    }

    fn write_failed(&self, error: &StoreError) {
        let told = error.to_string();
        self.update(|causes| {
            causes.write_error = Some(told.clone());
            let counts = match error {
                StoreError::Timeout { .. } => 1,
                StoreError::Refused { cause, .. } => match cause {
                    // Other writes will fail as well.
                    RefusedCause::Full | RefusedCause::CorruptData => WRITE_FAILURES_MAX,
                    RefusedCause::Forbidden | RefusedCause::Busy => 1,
                    // The store answered; the request was at fault.
                    RefusedCause::Other => return causes.wrote_badly(),
                },
                // Says nothing about the health of writes.
                StoreError::Unavailable { .. } | StoreError::Unreachable { .. } => return,
                _ => return causes.wrote_badly(),
            };
            causes.write_failures = causes.write_failures.saturating_add(counts);
            causes.write_refused = refused(error);
            if causes.write_failures >= WRITE_FAILURES_MAX {
                causes.unwritten = Some(match error {
                    StoreError::Timeout { .. } => {
                        format!("{WRITE_FAILURES_MAX} writes in a row to the store timed out")
                    }
                    StoreError::Refused {
                        cause: RefusedCause::Forbidden | RefusedCause::Busy,
                        ..
                    } => format!("{WRITE_FAILURES_MAX} writes in a row failed: {told}"),
                    _ => told,
                });
            }
        });
    }

    /// The last failed write, unless one has succeeded since.
    pub fn write_error(&self) -> Option<String> {
        self.causes().write_error.clone()
    }

    /// Updates the age of the served state, for a reader of the metrics.
    pub fn measure(&self) {
        let confirmed = self.causes().confirmed;
        let age = confirmed.map_or(0, |at| at.elapsed().as_secs());
        let age = i64::try_from(age).unwrap_or(i64::MAX);
        self.inner.metrics.state_age_seconds.set(age);
    }

    fn causes(&self) -> MutexGuard<'_, Causes> {
        let causes = self.inner.causes.lock();
        causes.unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Causes)) {
        // Locked to the end: statuses are published in the order of the causes.
        let mut causes = self.causes();
        change(&mut causes);
        self.inner.status.send_if_modified(|status| {
            let next = causes.status(status);
            let changed = *status != next;
            if changed {
                log(status, &next);
                *status = next;
            }
            changed
        });
        let status = self.inner.status.borrow();
        self.show(&status);
        self.raise(&causes, &status);
    }

    /// Raises the store's faults as conditions.
    fn raise(&self, causes: &Causes, status: &Status) {
        let conditions = &self.inner.metrics.conditions;
        let at = |level| {
            let unread = causes.unread.as_ref().filter(|(is, _)| *is == level);
            unread.map(|(_, reason)| reason)
        };
        conditions.set(Code::StoreUnreachable, "", at(Level::L1));
        conditions.set(Code::StoreDegraded, "", at(Level::L2));
        conditions.set(Code::StoreReadOnly, "", causes.unwritten.as_ref());
        for (cause, code) in [
            (RefusedCause::Full, Code::StoreFull),
            (RefusedCause::CorruptData, Code::StoreCorrupt),
            (RefusedCause::Forbidden, Code::StoreForbidden),
            (RefusedCause::Busy, Code::StoreBusy),
        ] {
            let reading = causes.unread.as_ref().map(|(_, reason)| reason);
            let reading = reading.filter(|_| causes.read_refused == Some(cause));
            let writing = causes.write_error.as_ref();
            let writing = writing.filter(|_| causes.write_refused == Some(cause));
            conditions.set(code, "", reading.or(writing));
        }
        let slow = causes
            .slow
            .map(|took| format!("the last write took {took:?}"));
        conditions.set(Code::StoreSlow, "", slow);
        conditions.set(Code::StoreDoubted, "", causes.doubted.as_ref());
        conditions.set(Code::ChangeHeld, "", causes.held.as_ref());
        let stale = status.stale.then_some(&status.reason);
        conditions.set(Code::StateStale, "", stale);
    }

    fn show(&self, status: &Status) {
        let metrics = &self.inner.metrics;
        for level in Level::ALL {
            let (mode, name) = (level.as_str(), level.name());
            let present = i64::from(level == status.level);
            let label = ModeLabel { mode, name };
            metrics.mode.get_or_create(&label).set(present);
        }
        metrics.state_stale.set(i64::from(status.stale));
    }
}

fn log(before: &Status, now: &Status) {
    let (from, to) = (before.level.as_str(), now.level.as_str());
    let (reason, stale) = (&now.reason, now.stale);
    if before.level != now.level {
        let lasted = before.since.elapsed();
        match now.level {
            Level::Normal => info!(from, to, ?lasted, stale, "the store's mode is normal again"),
            Level::L1 | Level::L2 => {
                warn!(
                    from,
                    to,
                    reason,
                    stale,
                    "the store's mode has changed: this replica keeps serving the last known state"
                );
            }
            Level::L3 => {
                error!(
                    from,
                    to,
                    reason,
                    stale,
                    "the store's mode has changed: this replica registers nothing and keeps serving the last known state"
                );
            }
        }
    }
    if before.stale != now.stale {
        match now.stale {
            true => warn!(reason, "the served state is stale"),
            false => info!("the served state agrees with the store"),
        }
    }
}

#[cfg(test)]
mod tests;
