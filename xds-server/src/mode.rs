//! How it stands with the store, as one value that everybody shares: what is served, and what is let through, follows.
//!
//! The reader reports what its reads and probes find, the writers what became of their writes. The causes are kept
//! apart, so that each ends by itself: the store cannot be read, writes fail, the store is not the one that was. Each is a
//! condition.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use registry::{
    record::TIDEGATE_PREFIX,
    store::{Compare, Op, RefusedCause, Revision, Store, StoreError},
};
use tokio::{sync::watch, time::Instant};
use tracing::{error, info, warn};

use crate::{
    conditions::Code,
    metrics::{Metrics, ModeLabel},
};

/// So many writes in a row that fail end the writing.
const WRITE_FAILURES_MAX: u32 = 3;
/// A write that takes longer is slow: sessions are renewed in times of this order.
const SLOW_WRITE: Duration = Duration::from_millis(500);
/// So many in a row are a condition.
const SLOW_WRITES_MAX: u32 = 3;
/// Between two looks at the store's alarms.
const ALARMS_INTERVAL: Duration = Duration::from_secs(10);
/// Between two test writes.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How far the store can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Normal,
    /// No member can be reached: the last good state is served.
    L1,
    /// Something answers, but cannot serve: the last good state is served, and dynamic weights are frozen.
    L2,
    /// Writes fail: nothing is registered or granted, what is known is served.
    L3,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::Normal, Level::L1, Level::L2, Level::L3];

    /// As metrics and people see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::L1 => "L1",
            Level::L2 => "L2",
            Level::L3 => "L3",
        }
    }
}

/// The mode at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub level: Level,
    /// When the level began.
    pub since: Instant,
    /// Why it is not normal, or why what is served is stale; empty where all is well.
    pub reason: String,
    /// What is served comes from disk, or the store has not confirmed it since.
    pub stale: bool,
    /// Whether there is any state at all.
    pub any: bool,
    /// Whether an operator has to confirm that the store is to be believed again.
    pub confirm: bool,
}

/// The shared value. Copies are the same one.
#[derive(Clone)]
pub struct Mode {
    inner: Arc<Inner>,
}

struct Inner {
    causes: Mutex<Causes>,
    status: watch::Sender<Status>,
    metrics: Metrics,
}

#[derive(Default)]
struct Causes {
    /// Why the store cannot be read: L1 or L2.
    unread: Option<(Level, String)>,
    /// What the store has against reads.
    read_refused: Option<RefusedCause>,
    /// Writes in a row that timed out or were refused.
    write_failures: u32,
    /// Why nothing is written.
    unwritten: Option<String>,
    /// What the store has against writes.
    write_refused: Option<RefusedCause>,
    /// The last write that failed, until one succeeds.
    write_error: Option<String>,
    /// Writes in a row that were slow, and how long the last one took.
    slow_writes: u32,
    slow: Option<Duration>,
    /// Why the store is not believed.
    doubted: Option<String>,
    /// Why some of what the store says is not served.
    held: Option<String>,
    any: bool,
    /// Whether the store has confirmed what is known, and nothing has failed since.
    current: bool,
    /// When the store last confirmed what is served.
    confirmed: Option<Instant>,
}

impl Mode {
    /// Normal until something else is found, with nothing known.
    pub fn new(metrics: Metrics) -> Mode {
        let status = Status {
            level: Level::Normal,
            since: Instant::now(),
            reason: String::new(),
            stale: false,
            any: false,
            confirm: false,
        };
        let mode = Mode {
            inner: Arc::new(Inner {
                causes: Mutex::default(),
                status: watch::Sender::new(status),
                metrics,
            }),
        };
        mode.update(|_| ());
        mode
    }

    /// What holds now.
    pub fn status(&self) -> Status {
        self.inner.status.borrow().clone()
    }

    /// To wait for changes.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    /// Whether dynamic weights must stay as they are (L2, L3): what they follow from may be old.
    pub fn frozen(&self) -> bool {
        matches!(self.inner.status.borrow().level, Level::L2 | Level::L3)
    }

    /// Why nothing is written to the store at present; none if it is.
    pub fn writes_refused(&self) -> Option<String> {
        let causes = self.causes();
        causes.unwritten.as_ref().map(|reason| {
            format!(
                "{reason}. Nothing is registered, kept alive or removed meanwhile; a test write is made every {PROBE_INTERVAL:?}, and the first one that succeeds ends this. Repeat the request"
            )
        })
    }

    /// The store gave everything, or confirmed that nothing is missing.
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

    /// There is a state from disk that is `age` old.
    pub fn loaded(&self, age: Duration) {
        self.update(|causes| {
            causes.any = true;
            causes.confirmed = Instant::now().checked_sub(age);
        });
    }

    /// The store could not be read.
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

    /// The store answers, but not with what may be believed: it waits for an operator.
    pub fn doubted(&self, reason: &str) {
        self.update(|causes| {
            causes.unread = None;
            causes.read_refused = None;
            causes.doubted = Some(reason.to_owned());
            causes.current = false;
        });
    }

    /// Some of what the store says is not served until an operator confirms it; none: all of it is.
    pub fn held(&self, reason: Option<String>) {
        self.update(|causes| causes.held = reason);
    }

    /// What became of a write. Lease keepalives are none: etcd does not write them down.
    pub fn wrote<T>(&self, outcome: &Result<T, StoreError>) {
        match outcome {
            Err(error) => self.write_failed(error),
            // Most writes: nothing changes, and nobody need be woken.
            Ok(_) if self.causes().writes_well() => {}
            Ok(_) => self.update(Causes::wrote),
        }
    }

    /// The same for a write that was timed from when it was sent.
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
                    // No other write will do better.
                    RefusedCause::Full | RefusedCause::CorruptData => WRITE_FAILURES_MAX,
                    RefusedCause::Forbidden | RefusedCause::Busy => 1,
                    // The store answered; the request was at fault.
                    RefusedCause::Other => return causes.wrote_badly(),
                },
                // Says nothing about how writes fare.
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

    /// The last write that failed, unless one has succeeded since.
    pub fn write_error(&self) -> Option<String> {
        self.causes().write_error.clone()
    }

    /// Whenever writes have ended, tries one until it succeeds. Never ends.
    ///
    /// The test write takes the way of every write, through consensus, quota and disk, but makes no revision and wakes no
    /// watch: a put under a condition that never holds, or else a delete of a key that nobody puts. A read would prove
    /// nothing: etcd answers linearizable reads from memory while its disk hangs. Neither would a delete alone: a full etcd
    /// takes it.
    pub async fn probe_writes(self, store: Arc<dyn Store>) {
        let key = format!("{TIDEGATE_PREFIX}probe");
        let mut status = self.subscribe();
        loop {
            // No error: this task itself keeps the sender.
            let _ = status.wait_for(|status| status.level == Level::L3).await;
            let never = Compare::CreateRevision {
                key: key.clone(),
                is: Revision(i64::MAX),
            };
            let (put, delete) = (Op::put(key.clone(), ""), Op::delete(key.clone()));
            let outcome = store.txn(vec![never], vec![put], Some(vec![delete])).await;
            self.wrote(&outcome);
            if outcome.is_err() {
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        }
    }

    /// Looks at the store's alarms from time to time, so that a full store is noticed where nothing is written. Never ends.
    pub async fn watch_alarms(self, store: Arc<dyn Store>) {
        let mut ticks = tokio::time::interval(ALARMS_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // What else is wrong with the store is known from elsewhere.
            let alarms = store.alarms().await.unwrap_or_default();
            for cause in alarms {
                let detail = match cause {
                    RefusedCause::Full => "etcd's alarm NOSPACE is on",
                    _ => "etcd's alarm CORRUPT is on",
                };
                let detail = detail.to_owned();
                self.write_failed(&StoreError::Refused { cause, detail });
            }
        }
    }

    /// Brings the age of what is served up to date, for whoever reads the metrics now.
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
        // Held to the end: statuses are published in the order of the causes.
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

    /// What is wrong with the store as conditions.
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
            let mode = level.as_str();
            let present = i64::from(level == status.level);
            metrics.mode.get_or_create(&ModeLabel { mode }).set(present);
        }
        metrics.state_stale.set(i64::from(status.stale));
    }
}

/// What a store has against a request.
fn refused(error: &StoreError) -> Option<RefusedCause> {
    match error {
        StoreError::Refused { cause, .. } => Some(*cause),
        _ => None,
    }
}

impl Causes {
    fn writes_well(&self) -> bool {
        self.write_failures == 0 && self.unwritten.is_none() && self.write_error.is_none()
    }

    /// A write has succeeded.
    fn wrote(&mut self) {
        self.write_error = None;
        self.wrote_badly();
    }

    /// A write was answered, and by its own fault not made.
    fn wrote_badly(&mut self) {
        self.write_failures = 0;
        self.unwritten = None;
        self.write_refused = None;
    }

    fn took(&mut self, slow: bool, took: Duration) {
        self.slow_writes = if slow {
            self.slow_writes.saturating_add(1)
        } else {
            0
        };
        self.slow = (self.slow_writes >= SLOW_WRITES_MAX).then_some(took);
    }

    /// What follows from them, after `before`.
    fn status(&self, before: &Status) -> Status {
        let unread = self.unread.as_ref();
        let level = match unread {
            _ if self.unwritten.is_some() => Level::L3,
            Some((level, _)) => *level,
            None => Level::Normal,
        };
        let reasons = [
            self.unwritten.as_ref(),
            unread.map(|(_, reason)| reason),
            self.doubted.as_ref(),
            self.held.as_ref(),
        ];
        let reasons: Vec<&str> = reasons.into_iter().flatten().map(String::as_str).collect();
        let since = match before.level == level {
            true => before.since,
            false => Instant::now(),
        };
        Status {
            level,
            since,
            reason: reasons.join("; "),
            stale: self.any && (!self.current || self.held.is_some()),
            any: self.any,
            confirm: self.doubted.is_some() || self.held.is_some(),
        }
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
                    to, reason, stale, "the store's mode has changed: what is known is served on"
                );
            }
            Level::L3 => {
                error!(
                    from,
                    to,
                    reason,
                    stale,
                    "the store's mode has changed: nothing is registered, what is known is served on"
                );
            }
        }
    }
    if before.stale != now.stale {
        match now.stale {
            true => warn!(reason, "what is served is stale"),
            false => info!("what is served is what the store says"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout() -> Result<(), StoreError> {
        let after = Duration::from_secs(2);
        Err(StoreError::Timeout { after })
    }

    fn unreachable() -> StoreError {
        let detail = "refused".to_owned();
        StoreError::Unreachable { detail }
    }

    fn unavailable() -> StoreError {
        let detail = "no leader".to_owned();
        StoreError::Unavailable { detail }
    }

    #[track_caller]
    fn is(mode: &Mode, level: Level, stale: bool) {
        let status = mode.status();
        assert_eq!((status.level, status.stale), (level, stale), "{status:?}");
    }

    #[tokio::test]
    async fn each_failure_of_a_read_has_its_level_and_an_answer_ends_it() {
        let mode = Mode::new(Metrics::default());
        is(&mode, Level::Normal, false);
        mode.confirmed();
        mode.unread(&unreachable());
        is(&mode, Level::L1, true);
        assert!(!mode.frozen());
        mode.unread(&unavailable());
        is(&mode, Level::L2, true);
        assert!(mode.frozen());
        mode.confirmed();
        is(&mode, Level::Normal, false);
        assert_eq!(mode.status().reason, "");
    }

    #[tokio::test]
    async fn what_is_loaded_is_stale_until_it_is_confirmed() {
        let mode = Mode::new(Metrics::default());
        mode.unread(&unreachable());
        is(&mode, Level::L1, false);
        mode.loaded(Duration::from_secs(60));
        is(&mode, Level::L1, true);
        mode.confirmed();
        is(&mode, Level::Normal, false);
    }

    #[tokio::test]
    async fn three_timeouts_in_a_row_end_writing_and_one_success_begins_it_again() {
        let mode = Mode::new(Metrics::default());
        mode.confirmed();
        for outcome in [timeout(), timeout(), Ok(()), timeout(), timeout()] {
            mode.wrote(&outcome);
        }
        // Neither a time-out nor a success.
        mode.wrote::<()>(&Err(unreachable()));
        assert_eq!(mode.writes_refused(), None);
        mode.wrote(&timeout());
        is(&mode, Level::L3, false);
        assert!(mode.frozen());
        let told = mode.writes_refused().expect("a reason");
        assert!(
            told.contains("3 writes in a row") && told.contains("1s"),
            "{told}"
        );
        // Reads are another matter: they do not end it.
        mode.unread(&unreachable());
        is(&mode, Level::L3, true);
        mode.confirmed();
        is(&mode, Level::L3, false);
        mode.wrote(&Ok(()));
        is(&mode, Level::Normal, false);
        assert_eq!(mode.writes_refused(), None);
    }

    fn refusal(cause: RefusedCause) -> StoreError {
        let detail = "etcdserver: a reason".to_owned();
        StoreError::Refused { cause, detail }
    }

    /// The codes of the conditions that hold.
    fn codes(metrics: &Metrics) -> Vec<Code> {
        let all = metrics.conditions.list().into_iter();
        all.map(|condition| condition.code).collect()
    }

    #[tokio::test]
    async fn a_store_that_is_full_or_corrupt_ends_writing_at_once_until_a_write_succeeds() {
        for (cause, code) in [
            (RefusedCause::Full, Code::StoreFull),
            (RefusedCause::CorruptData, Code::StoreCorrupt),
        ] {
            let metrics = Metrics::default();
            let mode = Mode::new(metrics.clone());
            mode.confirmed();
            mode.wrote::<()>(&Err(refusal(cause)));
            is(&mode, Level::L3, false);
            assert_eq!(codes(&metrics), [Code::StoreReadOnly, code]);
            let told = mode.writes_refused().expect("a reason");
            assert!(told.contains("a reason"), "{told}");
            // Reads go on, and prove nothing.
            mode.confirmed();
            is(&mode, Level::L3, false);
            mode.wrote(&Ok(()));
            is(&mode, Level::Normal, false);
            assert_eq!(codes(&metrics), []);
        }
    }

    #[tokio::test]
    async fn a_store_that_denies_or_is_busy_ends_writing_after_the_third_time() {
        for (cause, code) in [
            (RefusedCause::Forbidden, Code::StoreForbidden),
            (RefusedCause::Busy, Code::StoreBusy),
        ] {
            let metrics = Metrics::default();
            let mode = Mode::new(metrics.clone());
            mode.confirmed();
            mode.wrote::<()>(&Err(refusal(cause)));
            assert_eq!(codes(&metrics), [code]);
            is(&mode, Level::Normal, false);
            mode.wrote::<()>(&Err(refusal(cause)));
            mode.wrote::<()>(&Err(refusal(cause)));
            is(&mode, Level::L3, false);
            assert_eq!(
                mode.write_error().as_deref(),
                Some("the store refused: etcdserver: a reason")
            );
            mode.wrote(&Ok(()));
            is(&mode, Level::Normal, false);
            assert_eq!((codes(&metrics), mode.write_error()), (vec![], None));
        }
    }

    #[tokio::test]
    async fn a_request_that_is_at_fault_itself_says_nothing_about_the_store() {
        let metrics = Metrics::default();
        let mode = Mode::new(metrics.clone());
        mode.confirmed();
        for _ in 0..5 {
            mode.wrote::<()>(&Err(refusal(RefusedCause::Other)));
        }
        is(&mode, Level::Normal, false);
        assert_eq!(codes(&metrics), []);
    }

    #[tokio::test]
    async fn each_state_of_reading_is_a_condition_until_the_store_confirms() {
        let metrics = Metrics::default();
        let mode = Mode::new(metrics.clone());
        mode.confirmed();
        let stale = Code::StateStale;
        mode.unread(&unreachable());
        assert_eq!(codes(&metrics), [Code::StoreUnreachable, stale]);
        mode.unread(&unavailable());
        assert_eq!(codes(&metrics), [Code::StoreDegraded, stale]);
        mode.unread(&refusal(RefusedCause::Forbidden));
        assert_eq!(
            codes(&metrics),
            [Code::StoreDegraded, Code::StoreForbidden, stale]
        );
        mode.doubted("restored");
        assert_eq!(codes(&metrics), [stale, Code::StoreDoubted]);
        mode.confirmed();
        mode.held(Some("all gone".to_owned()));
        assert_eq!(codes(&metrics), [stale, Code::ChangeHeld]);
        mode.held(None);
        assert_eq!(codes(&metrics), []);
    }

    #[tokio::test]
    async fn slow_writes_in_a_row_are_a_condition_until_a_quick_one() {
        let metrics = Metrics::default();
        let mode = Mode::new(metrics.clone());
        mode.confirmed();
        for _ in 0..SLOW_WRITES_MAX {
            assert_eq!(codes(&metrics), []);
            mode.wrote_in(&Ok(()), SLOW_WRITE);
        }
        assert_eq!(codes(&metrics), [Code::StoreSlow]);
        mode.wrote_in(&Ok(()), SLOW_WRITE / 10);
        assert_eq!(codes(&metrics), []);
    }

    #[tokio::test]
    async fn doubts_wait_for_the_operator() {
        let mode = Mode::new(Metrics::default());
        mode.confirmed();
        mode.doubted("restored");
        is(&mode, Level::Normal, true);
        assert!(mode.status().confirm);
        mode.confirmed();
        mode.held(Some("gone".to_owned()));
        is(&mode, Level::Normal, true);
        assert!(mode.status().confirm);
        mode.held(None);
        is(&mode, Level::Normal, false);
        assert!(!mode.status().confirm);
    }
}
