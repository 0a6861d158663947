//! The clock that all processes of this machine share.

use nix::time::{ClockId, clock_gettime};

/// Microseconds of CLOCK_MONOTONIC: comparable between processes and network namespaces, and never
/// stepped.
pub fn monotonic_us() -> u64 {
    // Fails only for clocks that do not exist.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000
    })
}
