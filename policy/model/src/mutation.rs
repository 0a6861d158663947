//! Mistakes of the processes that run the machines.

/// A mistake of a process, not of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// A restarted process reuses the previous incarnation.
    IncarnationReused,
    /// Two processes of a node share a holder.
    HolderPerNode,
    /// A replica that shuts down deletes its session and its grantor keys without waiting.
    StopUnclean,
    /// The process does not notice that another store answers.
    RestoreUnnoticed,
    /// A restored store has the identity of the old one.
    StoreIdKept,
    /// A process acknowledges a revocation on receipt.
    AcknowledgesOnReceipt,
    /// A write is checked, but not counted.
    WriteNotCounted,
    /// A rebuilt worker removes the lost one from the ledger.
    LostWorkerLetsGo,
    /// A route accepts writes with a longer timeout than the policy that admitted them permits.
    LongerRouteTaken,
    /// An answer counts for the proxy's policy at its arrival, not for the policy at the request.
    AnswerForAnyPolicy,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 10] = [
        Mutation::IncarnationReused,
        Mutation::HolderPerNode,
        Mutation::StopUnclean,
        Mutation::RestoreUnnoticed,
        Mutation::StoreIdKept,
        Mutation::AcknowledgesOnReceipt,
        Mutation::WriteNotCounted,
        Mutation::LostWorkerLetsGo,
        Mutation::LongerRouteTaken,
        Mutation::AnswerForAnyPolicy,
    ];
}
