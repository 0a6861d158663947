//! Mistakes of processes around machines that are right.

/// A mistake of a process, not of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// A process that starts again takes the incarnation of the one before.
    IncarnationReused,
    /// Two processes of a node share a holder.
    HolderPerNode,
    /// A replica that is to end deletes its session and its grantor keys, and waits for nothing.
    StopUnclean,
    /// The process does not notice that another store answers.
    RestoreUnnoticed,
    /// A restored store has the identity of the old one.
    StoreIdKept,
    /// A process acknowledges a revocation when it comes.
    AcknowledgesOnReceipt,
    /// A write is looked at, and not counted.
    WriteNotCounted,
    /// A worker that is built anew takes the lost one off the list.
    LostWorkerLetsGo,
    /// A route takes writes that it lets live longer than the policy says by which they were
    /// admitted.
    LongerRouteTaken,
    /// An answer counts for the policy that a proxy has when it comes, not for the one by which it
    /// asked.
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
