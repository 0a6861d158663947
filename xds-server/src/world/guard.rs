//! The guard against implausible changes: if most instances disappear at once, a fault of the
//! registry is more likely than a fault of the instances.
//!
//! An instance whose record disappears without reporting `draining` first is kept for [`DOUBT_MS`].
//! If more than the configured share of all instances disappears in that time, all of them are kept
//! until they come back or an operator confirms. Proxies detect on their own which of them are
//! really gone.

use std::collections::BTreeMap;

use registry::store::Revision;

/// How long a disappearance is doubted, in milliseconds. Before that, the lease of a crashed
/// instance has kept its record for longer.
pub const DOUBT_MS: u64 = 1_000;

/// The least number of instances that trips the guard.
const VANISHED_MIN: usize = 2;

/// The state that an operator has seen and confirms. Later changes are not confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The revision that the operator has seen.
    pub revision: Revision,
    /// The number of instances at that revision.
    pub instances: usize,
}

impl Seen {
    /// Whether a state with this many instances may have developed from the seen one, without more
    /// disappearances than the guard permits.
    pub fn covers(self, instances: usize, vanish_percent: u8) -> bool {
        !lost_too_many(self.instances, instances, vanish_percent)
    }
}

/// Whether a larger share of `before` instances is missing than the guard permits.
pub(crate) fn lost_too_many(before: usize, now: usize, vanish_percent: u8) -> bool {
    now * 100 < before * (100 - usize::from(vanish_percent.min(100)))
}

/// Why the content of the store is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Implausible {
    /// This many of all instances disappeared within a second.
    Vanished { gone: usize, of: usize },
    /// The store seems to have been restored from an older state, or replaced; with the evidence.
    Restored(String),
}

impl Implausible {
    /// A short stable name, for metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Implausible::Vanished { .. } => "vanished",
            Implausible::Restored(_) => "restored",
        }
    }
}

impl std::fmt::Display for Implausible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Implausible::Vanished { gone, of } => write!(
                f,
                "{gone} of {of} instances disappeared within a second and are kept"
            ),
            Implausible::Restored(how) => write!(f, "{how}; the last good state is kept"),
        }
    }
}

/// Instances that have disappeared and are still served.
#[derive(Default)]
pub(super) struct Guard {
    /// Store keys, with when they disappeared.
    vanished: BTreeMap<String, Vanished>,
    /// While this is set, no instance that disappeared is removed.
    tripped: Option<Implausible>,
}

struct Vanished {
    since_ms: u64,
    /// The revision at which it disappeared, or at which that was noticed.
    revision: Revision,
}

impl Guard {
    /// The record at `key` disappeared.
    pub(super) fn vanish(&mut self, key: &str, revision: Revision, now_ms: u64) {
        self.vanished.entry(key.to_owned()).or_insert(Vanished {
            since_ms: now_ms,
            revision,
        });
    }

    /// The record at `key` exists again.
    pub(super) fn back(&mut self, key: &str) {
        self.vanished.remove(key);
    }

    /// The store is distrusted until an operator confirms it.
    pub(super) fn trip(&mut self, implausible: Implausible) {
        self.tripped = Some(implausible);
    }

    /// The store is the original one again.
    pub(super) fn restored_is_over(&mut self) {
        if matches!(self.tripped, Some(Implausible::Restored(_))) {
            self.tripped = None;
        }
    }

    /// The implausible change that is rejected at present.
    pub(super) fn tripped(&self) -> Option<&Implausible> {
        self.tripped.as_ref()
    }

    /// How many instances are served although their records are gone.
    pub(super) fn kept(&self) -> usize {
        self.vanished.len()
    }

    /// An operator confirms everything that disappeared up to this revision. The rest is checked
    /// anew.
    pub(super) fn confirm(&mut self, up_to: Revision) -> Vec<String> {
        self.tripped = None;
        let mut seen = Vec::new();
        self.vanished.retain(|key, gone| {
            let later = gone.revision > up_to;
            if !later {
                seen.push(key.clone());
            }
            later
        });
        seen
    }

    /// The instances to remove now. `count` is the number of served instances, including those that
    /// disappeared.
    pub(super) fn release(&mut self, count: usize, vanish_percent: u8, now_ms: u64) -> Vec<String> {
        let gone = self.vanished.len();
        let many = gone >= VANISHED_MIN && gone * 100 > count * usize::from(vanish_percent);
        match &self.tripped {
            Some(Implausible::Restored(_)) => return Vec::new(),
            Some(Implausible::Vanished { .. }) if many => return Vec::new(),
            // Enough of them have come back; the others are removed as usual.
            Some(Implausible::Vanished { .. }) => self.tripped = None,
            None if many && vanish_percent < 100 => {
                self.tripped = Some(Implausible::Vanished { gone, of: count });
                return Vec::new();
            }
            None => {}
        }
        let due = |at: &Vanished| vanish_percent >= 100 || at.since_ms + DOUBT_MS <= now_ms;
        let gone: Vec<String> = self
            .vanished
            .iter()
            .filter(|(_, at)| due(at))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &gone {
            self.vanished.remove(key);
        }
        gone
    }

    /// When to check again.
    pub(super) fn due_ms(&self) -> Option<u64> {
        match self.tripped {
            Some(_) => None,
            None => self
                .vanished
                .values()
                .map(|at| at.since_ms + DOUBT_MS)
                .min(),
        }
    }
}
