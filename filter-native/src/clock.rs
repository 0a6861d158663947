//! The clocks and the chance of the process.
// The edge to the machine: everything else gets times and numbers from here.
#![allow(clippy::disallowed_methods)]

use std::{
    sync::LazyLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use filter_core::fence::process::Reading;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The same for all threads of the process. None where the wall clock stands before 1970.
pub(crate) fn now() -> Option<Reading> {
    let start = *START;
    let monotonic = start.elapsed();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(Reading {
        // Not 0, which may mean "never".
        monotonic_us: u64::try_from(monotonic.as_micros())
            .ok()?
            .saturating_add(1_000_000),
        wall_us: u64::try_from(wall.as_micros()).ok()?,
    })
}

pub(crate) fn random() -> Option<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).ok()?;
    Some(u128::from_le_bytes(bytes))
}
