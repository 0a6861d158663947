//! A limit for the log lines about one subject: a burst, then one now and then, with the number of
//! suppressed lines.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// The burst of lines; used ones come back one by one.
pub(crate) const BURST: u32 = 20;
/// The time for one line to come back.
pub(crate) const REFILL: Duration = Duration::from_secs(3);

/// How many lines may still be written, by subject. There must be few such keys: none is removed.
pub(crate) struct Budget<K> {
    left: BTreeMap<K, Left>,
}

struct Left {
    lines: u32,
    refilled: Instant,
    /// Lines suppressed since the last written one.
    suppressed: u64,
}

impl<K> Default for Budget<K> {
    fn default() -> Self {
        Budget {
            left: BTreeMap::new(),
        }
    }
}

impl<K: Ord> Budget<K> {
    /// Accounts for a line: returns how many were suppressed before it, or none if it has to be
    /// suppressed itself.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> Option<u64> {
        let left = self.left.entry(key).or_insert(Left {
            lines: BURST,
            refilled: now,
            suppressed: 0,
        });
        let refills = now.duration_since(left.refilled).as_secs() / REFILL.as_secs();
        if refills > 0 {
            let more = u32::try_from(refills).unwrap_or(BURST);
            left.lines = left.lines.saturating_add(more).min(BURST);
            left.refilled = now;
        }
        match left.lines.checked_sub(1) {
            Some(lines) => {
                left.lines = lines;
                Some(std::mem::take(&mut left.suppressed))
            }
            None => {
                left.suppressed += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_writes_a_bounded_number_of_lines_and_says_how_many_were_left_out() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let written = |budget: &mut Budget<u8>, at| {
            let lines = (0..1_000).filter_map(|_| budget.take(1, at));
            lines.collect::<Vec<u64>>()
        };
        assert_eq!(written(&mut budget, start), [0; BURST as usize]);
        assert_eq!(written(&mut budget, start + REFILL), [980]);
        // Another key has its own budget.
        assert_eq!(budget.take(2, start), Some(0));
        let later = start + 100 * REFILL;
        assert_eq!(written(&mut budget, later).len(), BURST as usize);
    }
}
