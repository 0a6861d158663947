//! The clock of sessions, grants and waits.

use nix::time::{ClockId, clock_gettime};

/// A monotonic clock in microseconds that counts while the machine is suspended.
pub trait Clock: Send + Sync + 'static {
    fn now_us(&self) -> u64;
}

/// Linux's `CLOCK_BOOTTIME`. Not `CLOCK_MONOTONIC`, which does not count while the machine is
/// suspended: after a suspension a replica would assume that its session still lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Boottime;

impl Clock for Boottime {
    fn now_us(&self) -> u64 {
        match clock_gettime(ClockId::CLOCK_BOOTTIME) {
            Ok(time) => {
                let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
                let micros = u64::try_from(time.tv_nsec() / 1_000).unwrap_or(0);
                seconds.saturating_mul(1_000_000).saturating_add(micros)
            }
            // Impossible on Linux since 2.6.39. The end of time: every session has ended, and no
            // grant is given.
            Err(_) => u64::MAX,
        }
    }
}
