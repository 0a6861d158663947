use super::{Implausible, Rejected, Statuses, Warnings};

/// How services are doing, for people.
#[derive(Clone, Default)]
pub struct Overview {
    pub statuses: Statuses,
    /// The change of the store that is not believed.
    pub implausible: Option<Implausible>,
    /// Instances that are served though their records are gone.
    pub kept: usize,
    /// Records that are not used, and oddities of those that are, by store key.
    pub rejected: Rejected,
    pub warnings: Warnings,
    /// When this was, on the clock of the times in `statuses`.
    pub now_ms: u64,
}
