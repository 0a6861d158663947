//! The time that sessions, grants and waits are counted by.

use nix::time::{ClockId, clock_gettime};

/// A clock in microseconds that never goes back, and counts while the machine is suspended.
pub trait Clock: Send + Sync + 'static {
    fn now_us(&self) -> u64;
}

/// Linux's `CLOCK_BOOTTIME`. Not `CLOCK_MONOTONIC`, which stands still while the machine is
/// suspended: a replica that slept would take its session for alive.
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
            // Never on Linux since 2.6.39. The end of time: every session is over, nothing is
            // granted.
            Err(_) => u64::MAX,
        }
    }
}
