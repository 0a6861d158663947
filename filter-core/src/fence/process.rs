//! The proxy's process as the fence needs it, and the agreement of its workers.

use std::num::NonZeroU32;

use crate::{apply::HostFailed, metrics::Metric};

/// The process around a worker.
pub trait Process {
    /// None where the clocks cannot be read.
    fn now(&mut self) -> Option<Reading>;
    /// Random bits. None where there are none.
    fn random(&mut self) -> Option<u128>;
    /// A value that the workers share, with its version.
    fn get(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, HostFailed>;
    /// Replaces the value of that version, or makes one where there was none. False if another
    /// worker was faster.
    fn swap(&mut self, key: &str, seen: Option<Version>, value: &[u8]) -> Result<bool, HostFailed>;
    /// Raises a counter.
    fn count(&mut self, counter: Metric, by: u32);
    /// Sets a gauge.
    fn record(&mut self, gauge: Metric, value: u64);
}

/// The version of a shared value.
pub type Version = NonZeroU32;

/// Both clocks at one moment, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The same for all workers of the process. May stand still while the machine is suspended.
    pub monotonic_us: u64,
    /// Goes on while the machine is suspended, and may be set.
    pub wall_us: u64,
}

/// How far the wall clock may run ahead of the monotonic one during the life of a grant: less than
/// the margin that a session's deadline has, so that a sleep that is not noticed does no harm.
const JUMP_US: i64 = 40_000;

impl Reading {
    /// By how much the wall clock is ahead of the monotonic one. Differences of it count, it says
    /// nothing by itself.
    pub fn lead_us(self) -> i64 {
        self.wall_us.wrapping_sub(self.monotonic_us) as i64
    }

    /// Whether more time has passed than the monotonic clock knows, since the wall clock had that
    /// lead: the machine was suspended, or the wall clock was set. A wall clock that was set back
    /// shows nothing, and does no harm by itself.
    pub fn jumped_since(self, lead_us: i64) -> bool {
        self.lead_us().saturating_sub(lead_us) > JUMP_US
    }
}

/// How often a change is tried anew. Workers change a value for microseconds, a few times in a
/// second.
const TRIES: usize = 32;

/// Changes a shared value by compare-and-swap. `step` gets the present value, and gives the new
/// one, if it is to be another, with a result; none gives up. None also where the proxy fails, or
/// others were faster every time.
pub fn change<T>(
    process: &mut (impl Process + ?Sized),
    key: &str,
    mut step: impl FnMut(Option<&[u8]>) -> Option<(Option<Vec<u8>>, T)>,
) -> Option<T> {
    for _ in 0..TRIES {
        let (value, version) = process.get(key).ok()?.unzip();
        let (changed, result) = step(value.as_deref())?;
        let Some(changed) = changed else {
            return Some(result);
        };
        if process.swap(key, version, &changed).ok()? {
            return Some(result);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::testing::Fake;

    #[test]
    fn a_change_is_tried_anew_until_nobody_was_faster() {
        let mut fake = Fake::default();
        let add = |value: Option<&[u8]>| {
            let next = value.map_or(0, |value| value[0]) + 1;
            Some((Some(vec![next]), next))
        };
        fake.lost_swaps = 3;
        assert_eq!(change(&mut fake, "k", add), Some(1));
        assert_eq!(change(&mut fake, "k", add), Some(2));
        fake.lost_swaps = TRIES;
        assert_eq!(change(&mut fake, "k", add), None);
        fake.fails = true;
        assert_eq!(change(&mut fake, "k", add), None);
    }

    #[test]
    fn a_suspended_machine_shows_in_the_lead_of_the_wall_clock() {
        let before = Reading {
            monotonic_us: 5_000_000,
            wall_us: 1_700_000_000_000_000,
        };
        let later = |monotonic_us, wall_us| Reading {
            monotonic_us: before.monotonic_us + monotonic_us,
            wall_us: before.wall_us.wrapping_add_signed(wall_us),
        };
        let jumped = |reading: Reading| reading.jumped_since(before.lead_us());
        assert!(!jumped(later(1_000_000, 1_000_000)));
        assert!(!jumped(later(1_000_000, 1_040_000)));
        assert!(jumped(later(1_000_000, 1_040_001)));
        assert!(!jumped(later(1_000_000, -3_600_000_000)));
        let odd = Reading {
            monotonic_us: u64::MAX,
            wall_us: 0,
        };
        assert!(!odd.jumped_since(i64::MIN + 1) || odd.lead_us() == 1);
    }
}
