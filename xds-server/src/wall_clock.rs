//! The wall clock.

use std::time::SystemTime;

/// Milliseconds since 1970 by the wall clock: for operators, and for numbers that only have to
/// rise.
pub fn unix_ms() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "nothing is decided by it")]
    let now = SystemTime::now();
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
