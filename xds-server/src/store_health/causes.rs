//! Why the store is not fully usable, cause by cause, and the resulting status. Pure.

use std::time::Duration;

use registry::store::{RefusedCause, StoreError};
use tokio::time::Instant;

use super::{Level, SLOW_WRITES_MAX, Status};

#[derive(Default)]
pub(super) struct Causes {
    /// Why reads fail: L1 or L2.
    pub(super) unread: Option<(Level, String)>,
    /// The store's reason to reject reads.
    pub(super) read_refused: Option<RefusedCause>,
    /// Writes in a row that timed out or were rejected.
    pub(super) write_failures: u32,
    /// Why writing is stopped.
    pub(super) unwritten: Option<String>,
    /// The store's reason to reject writes.
    pub(super) write_refused: Option<RefusedCause>,
    /// The last failed write, until one succeeds.
    pub(super) write_error: Option<String>,
    /// Slow writes in a row, and the duration of the last one.
    pub(super) slow_writes: u32,
    pub(super) slow: Option<Duration>,
    /// Why the store is distrusted.
    pub(super) doubted: Option<String>,
    /// Why some of the store's state is not served.
    pub(super) held: Option<String>,
    pub(super) any: bool,
    /// Whether the store has confirmed the known state, without a failure since.
    pub(super) current: bool,
    /// When the store last confirmed the served state.
    pub(super) confirmed: Option<Instant>,
}

/// A store's reason to reject a request.
pub(super) fn refused(error: &StoreError) -> Option<RefusedCause> {
    match error {
        StoreError::Refused { cause, .. } => Some(*cause),
        _ => None,
    }
}

impl Causes {
    pub(super) fn writes_well(&self) -> bool {
        self.write_failures == 0 && self.unwritten.is_none() && self.write_error.is_none()
    }

    /// A write has succeeded.
    pub(super) fn wrote(&mut self) {
        self.write_error = None;
        self.wrote_badly();
    }

    /// A write was answered and rejected because of its own fault.
    pub(super) fn wrote_badly(&mut self) {
        self.write_failures = 0;
        self.unwritten = None;
        self.write_refused = None;
    }

    pub(super) fn took(&mut self, slow: bool, took: Duration) {
        self.slow_writes = if slow {
            self.slow_writes.saturating_add(1)
        } else {
            0
        };
        self.slow = (self.slow_writes >= SLOW_WRITES_MAX).then_some(took);
    }

    /// The resulting status, after `before`.
    pub(super) fn status(&self, before: &Status) -> Status {
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
            slow: self.slow.is_some(),
            refused: self.write_refused.is_some(),
        }
    }
}
