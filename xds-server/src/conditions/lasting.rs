//! Findings of periodic checks, which become conditions once they have lasted for a while.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{Code, Conditions};

/// A finding of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub code: Code,
    pub subject: String,
    pub detail: String,
    /// The finding becomes a condition after this long without a gap.
    pub after: Duration,
}

impl Found {
    pub fn new(code: Code, subject: impl Into<String>, detail: impl Into<String>) -> Found {
        Found {
            code,
            subject: subject.into(),
            detail: detail.into(),
            after: Duration::ZERO,
        }
    }

    pub fn after(self, after: Duration) -> Found {
        Found { after, ..self }
    }
}

/// Since when each has been found.
pub struct Lasting {
    conditions: Conditions,
    /// All codes that may be found. A code that is not found does not hold.
    codes: &'static [Code],
    since: BTreeMap<(Code, String), Instant>,
}

impl Lasting {
    pub fn new(conditions: Conditions, codes: &'static [Code]) -> Lasting {
        Lasting {
            conditions,
            codes,
            since: BTreeMap::new(),
        }
    }

    /// Updates to the findings of a check at `now`, which are complete.
    pub fn look(&mut self, found: Vec<Found>, now: Instant) {
        let before = std::mem::take(&mut self.since);
        let mut hold = BTreeMap::<Code, BTreeMap<String, String>>::new();
        for found in found {
            debug_assert!(self.codes.contains(&found.code), "{}", found.code);
            let key = (found.code, found.subject);
            let since = before.get(&key).copied().unwrap_or(now);
            if now.duration_since(since) >= found.after {
                let subjects = hold.entry(key.0).or_default();
                subjects.insert(key.1.clone(), found.detail);
            }
            self.since.insert(key, since);
        }
        for code in self.codes {
            let subjects = hold.remove(code).unwrap_or_default();
            self.conditions.replace(*code, subjects);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_holds_once_it_has_lasted_and_a_gap_begins_it_anew() {
        let conditions = Conditions::new();
        let mut lasting = Lasting::new(conditions.clone(), &[Code::PolicyBehind, Code::StoreSlow]);
        let found = || {
            let patience = Duration::from_secs(60);
            vec![
                Found::new(Code::PolicyBehind, "gw-1", "").after(patience),
                Found::new(Code::StoreSlow, "", ""),
            ]
        };
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let codes = || -> Vec<Code> { conditions.list().iter().map(|c| c.code).collect() };
        lasting.look(found(), at(0));
        assert_eq!(codes(), [Code::StoreSlow]);
        lasting.look(found(), at(59));
        assert_eq!(codes(), [Code::StoreSlow]);
        lasting.look(vec![], at(60));
        assert_eq!(codes(), []);
        lasting.look(found(), at(61));
        lasting.look(found(), at(121));
        assert_eq!(codes(), [Code::StoreSlow, Code::PolicyBehind]);
        lasting.look(vec![], at(122));
        assert_eq!(codes(), []);
    }
}
