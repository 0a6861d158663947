//! From single probes of an instance to its health. Pure: no clock, no I/O; time is the caller's.

/// The health of an instance by its probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeVerdict {
    Healthy,
    Unhealthy,
}

/// The number of probes in a row that change the health. Both are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Failures in a row that make an instance unhealthy.
    pub failures: u32,
    /// Successes in a row that make it healthy.
    pub successes: u32,
}

/// The memory of one instance's probes.
#[derive(Clone, Debug)]
pub struct Machine {
    thresholds: Thresholds,
    verdict: Option<ProbeVerdict>,
    /// The result of the last probe, and how many in a row had it.
    streak: Option<(ProbeVerdict, u32)>,
}

impl Machine {
    /// A machine that knows nothing. The first verdict takes as many probes in a row as a change
    /// does.
    pub fn new(thresholds: Thresholds) -> Machine {
        Machine {
            thresholds,
            verdict: None,
            streak: None,
        }
    }

    /// None until probes in a row have agreed for the first time.
    pub fn verdict(&self) -> Option<ProbeVerdict> {
        self.verdict
    }

    /// Takes in one probe; returns the verdict if this probe changed it.
    pub fn observe(&mut self, success: bool) -> Option<ProbeVerdict> {
        let (seen, needed) = if success {
            (ProbeVerdict::Healthy, self.thresholds.successes)
        } else {
            (ProbeVerdict::Unhealthy, self.thresholds.failures)
        };
        let count = match self.streak {
            Some((last, count)) if last == seen => count.saturating_add(1),
            _ => 1,
        };
        self.streak = Some((seen, count));
        let changes = count >= needed && self.verdict != Some(seen);
        changes.then(|| {
            self.verdict = Some(seen);
            seen
        })
    }

    /// Whether the next probe should come soon: there is no verdict yet, or a healthy instance has
    /// begun to fail. A return to health is in no such hurry.
    pub fn in_doubt(&self) -> bool {
        match self.verdict {
            None => true,
            Some(ProbeVerdict::Healthy) => {
                matches!(self.streak, Some((ProbeVerdict::Unhealthy, _)))
            }
            Some(ProbeVerdict::Unhealthy) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Probes as text, `+` and `-`, and the changes they should make: `H` and `U` below the probe
    /// that makes it.
    #[track_caller]
    fn check(looks: &str, expected: &str) {
        let mut machine = Machine::new(Thresholds {
            failures: 3,
            successes: 2,
        });
        let seen: String = looks
            .chars()
            .map(|look| match machine.observe(look == '+') {
                None => '.',
                Some(ProbeVerdict::Healthy) => 'H',
                Some(ProbeVerdict::Unhealthy) => 'U',
            })
            .collect();
        assert_eq!(seen, expected, "{looks}");
    }

    #[test]
    fn three_failures_make_unhealthy_and_two_successes_healthy() {
        check("++---++", ".H..U.H");
        check("---", "..U");
        check("+-+-+-", "......");
        check("++--+--+---", ".H........U");
        check("---+-+-++", "..U.....H");
        check("+++++", ".H...");
    }

    #[test]
    fn only_a_first_verdict_and_a_failing_healthy_instance_are_in_doubt() {
        let mut machine = Machine::new(Thresholds {
            failures: 2,
            successes: 2,
        });
        assert!(machine.in_doubt());
        for (success, in_doubt) in [
            (true, true),
            (true, false),
            (false, true),
            (true, false),
            (false, true),
            (false, false),
            (true, false),
        ] {
            machine.observe(success);
            assert_eq!(machine.in_doubt(), in_doubt, "after {success}: {machine:?}");
        }
    }

    proptest! {
        #[test]
        fn a_change_needs_its_number_in_a_row_and_comes_with_the_last_of_them(
            failures in 1u32..6,
            successes in 1u32..6,
            looks in proptest::collection::vec(any::<bool>(), 0..200),
        ) {
            let mut machine = Machine::new(Thresholds { failures, successes });
            let mut before = None;
            for (index, &look) in looks.iter().enumerate() {
                let change = machine.observe(look);
                let run = looks[..=index].iter().rev().take_while(|&&l| l == look).count();
                let (seen, needed) = if look {
                    (ProbeVerdict::Healthy, successes)
                } else {
                    (ProbeVerdict::Unhealthy, failures)
                };
                let due = run >= needed as usize && before != Some(seen);
                prop_assert_eq!(change, due.then_some(seen));
                before = change.or(before);
                prop_assert_eq!(machine.verdict(), before);
            }
        }
    }
}
