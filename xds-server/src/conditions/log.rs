//! The log lines of conditions: one when it begins, one when it ends, and a bound on how many a code may write.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Code, Severity};

/// So many lines a code may write at once; more come back one by one.
const BURST: u32 = 20;
/// After so long one more.
const REFILL: Duration = Duration::from_secs(3);

/// How many lines each code may still write.
#[derive(Default)]
pub(super) struct Budget {
    by_code: BTreeMap<Code, Left>,
}

struct Left {
    lines: u32,
    refilled: Instant,
    /// Lines that were not written since the last one that was.
    suppressed: u64,
}

impl Budget {
    pub(super) fn began(&mut self, code: Code, subject: &str, detail: &str) {
        let Some(suppressed) = self.take(code, Instant::now()) else {
            return;
        };
        let (name, is) = (code.name(), code.entry().meaning);
        match code.severity() {
            Severity::Error => {
                error!(%code, name, subject, detail, suppressed, "condition begins: {is}");
            }
            Severity::Warning => {
                warn!(%code, name, subject, detail, suppressed, "condition begins: {is}");
            }
        }
    }

    pub(super) fn ended(&mut self, code: Code, subject: &str, after: Duration) {
        if let Some(suppressed) = self.take(code, Instant::now()) {
            let name = code.name();
            info!(%code, name, subject, ?after, suppressed, "condition ends");
        }
    }

    /// Takes a line; gives how many were suppressed before it, or none where it is to be suppressed itself.
    fn take(&mut self, code: Code, now: Instant) -> Option<u64> {
        let left = self.by_code.entry(code).or_insert(Left {
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
    fn a_code_that_flaps_writes_a_bounded_number_of_lines_and_says_how_many_it_left_out() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let written = |budget: &mut Budget, at| {
            let lines = (0..1_000).filter_map(|_| budget.take(Code::StoreSlow, at));
            lines.collect::<Vec<u64>>()
        };
        assert_eq!(written(&mut budget, start), [0; BURST as usize]);
        assert_eq!(written(&mut budget, start + REFILL), [980]);
        // Another code has its own.
        assert_eq!(budget.take(Code::StoreFull, start), Some(0));
        let later = start + 100 * REFILL;
        assert_eq!(written(&mut budget, later).len(), BURST as usize);
    }
}
