use super::{Implausible, Rejected, Statuses, Warnings};

/// The states of services, for operators.
#[derive(Clone, Default)]
pub struct Overview {
    pub statuses: Statuses,
    /// The change of the store that the guard rejects.
    pub implausible: Option<Implausible>,
    /// Instances that are served although their records are gone.
    pub kept: usize,
    /// Rejected records, and oddities of accepted ones, by store key.
    pub rejected: Rejected,
    pub warnings: Warnings,
    /// The time of this overview, on the clock of the times in `statuses`.
    pub now_ms: u64,
}
