//! The write fence: write authority, and its moves without two zones ever writing at once.
//!
//! State machines, as pure as the rest of this crate: messages and time in, messages and
//! transactions out. The control plane runs one [`Replica`] for each zone that it serves. A proxy's
//! workers run [`Ledger`], [`Worker`] and [`Asker`]. The processes feed them and execute their
//! effects; a model checker explores these same machines.
//!
//! The way of the permission to write:
//!
//! 1. A replica keeps a *session* alive ([`session`], [`round`]): a key that shows other replicas
//!    that it lives, and heartbeats.
//! 2. It registers as *grantor* for a cell at a revision of the cell's [`Authority`] ([`grantor`]).
//! 3. It gives *grants* to the proxies of its zone, none longer than the rest of its session.
//! 4. A move ([`moves`]) removes every owner first (*fencing*). It waits until each grantor has
//!    left, or its session and all grants under it have certainly expired. Only then it names the
//!    new owners.
//!
//! Time is a plain number in any unit, of a monotonic clock that counts while the machine is
//! suspended. `now` and every other time belongs to the clock of one process, and is never sent.
//! Only spans are sent. Processes count microseconds.
//!
//! Every rule that safety rests on has a name, [`Clause`], and is checked in the code as
//! `terms.keeps(Clause::…)`. That is always true, except in a build for the model checker, which
//! disables one rule at a time and must then find two zones writing.

pub mod agreement;
pub mod authority;
pub mod grantor;
pub mod holder;
pub mod moves;
pub mod replica;
pub mod round;
pub mod session;
mod store;

use alloc::sync::Arc;

pub use agreement::{Agreed, Agreement, Layout, TermsId};
pub use authority::{Authority, AuthorityState, Cause, Move, Unsettled};
pub use grantor::{Grant, Grantor, Withheld};
pub use holder::{Asker, Ledger, Permit, Worker, WorkerId};
pub use replica::{
    CellRules, Effect, Input, Listing, MoveRejected, Replica, TransactionOutcome, move_id,
};
pub use round::Company;
pub use session::{Aloud, Session, SessionId, Sessions};
pub use store::{Condition, Key, Transaction, Write};

/// The highest epoch: the largest integer that all JSON readers represent. Records, messages and
/// headers with a higher epoch are rejected or ignored, so that a higher one always exists.
pub const EPOCH_MAX: u64 = 1 << 53;

/// The name of a zone, a cell or an incarnation. Records outlive the configuration, so they hold
/// names of zones, not indices.
pub type Name = Arc<str>;

/// A point in the history of the store; 0 is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A revision of a cell's authority with its epoch, ordered by epoch first. An operator who
/// recovers a cell in a restored store, whose revisions start low again, raises the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    pub epoch: u64,
    pub revision: Revision,
}

/// One process of a proxy, identified by a random number. A node's name would not do: during a hot
/// restart a node has two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId(pub u128);

/// The spans that all processes agree on, and the bound of clock drift. During a change
/// ([`Agreement`]) a promised span is shorter than the span that others wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// The agreement of these terms; [`TermsId::NONE`] if unknown.
    pub id: TermsId,
    /// The terms have changed before. Then each admitted write carries its lifetime, and only a
    /// route with a timeout no longer than that accepts it: the routes of a proxy may be older than
    /// its policy.
    pub changed: bool,
    /// A change was completed: a write without a lifetime is not admitted any more.
    pub drains_said: bool,
    /// How long a session outlives its last renewal.
    pub session_ttl: u64,
    /// The longest grant.
    pub grant_ttl: u64,
    /// The longest that an admitted write lives.
    pub write_drain: u64,
    /// `session_ttl`, as other replicas wait for it: at least as long.
    pub session_ttl_waited: u64,
    /// `write_drain`, as others wait for it: at least as long.
    pub write_drain_waited: u64,
    /// Subtracted from every session's deadline.
    pub margin: u64,
    /// The bound of clock drift: while one clock counts 1000, every other counts at least 1000
    /// minus this. Below 1000.
    pub drift_permille: u16,
    /// The rule that is disabled.
    #[cfg(feature = "weaken")]
    pub weakened: Option<Clause>,
}

impl Terms {
    /// Terms under which every rule is kept. Spans are in microseconds.
    ///
    /// # Errors
    ///
    /// [`InvalidTerms`] names the first span that cannot work, and the change that mends it.
    pub fn new(
        session_ttl: u64,
        grant_ttl: u64,
        write_drain: u64,
        margin: u64,
        drift_permille: u16,
    ) -> Result<Terms, InvalidTerms> {
        let terms = Terms {
            id: TermsId::NONE,
            changed: false,
            drains_said: false,
            session_ttl,
            grant_ttl,
            write_drain,
            session_ttl_waited: session_ttl,
            write_drain_waited: write_drain,
            margin,
            drift_permille,
            #[cfg(feature = "weaken")]
            weakened: None,
        };
        if drift_permille >= 1000 {
            return Err(InvalidTerms::Drift);
        }
        if grant_ttl == 0 || write_drain == 0 {
            return Err(InvalidTerms::Zero);
        }
        if grant_ttl > session_ttl {
            return Err(InvalidTerms::GrantTtl);
        }
        if session_ttl <= margin {
            return Err(InvalidTerms::SessionTtl);
        }
        Ok(terms)
    }

    /// How long to wait by the local clock so that at least `span` has passed by any other: `span /
    /// (1 - rho)`.
    pub fn stretch(&self, span: u64) -> u64 {
        let rate = u64::from(1000_u16.saturating_sub(self.drift_permille)).max(1);
        span.saturating_mul(1000).div_ceil(rate)
    }

    /// How long after another replica saw its last renewal a session has ended.
    pub fn session_over(&self) -> u64 {
        self.stretch(self.session_ttl_waited)
    }

    /// How long after another replica saw its last renewal every grant and write under a session
    /// has expired.
    pub fn session_settled(&self) -> u64 {
        let ttl = match self.keeps(Clause::SettleTtl) {
            true => self.session_ttl_waited,
            false => 0,
        };
        let drain = match self.keeps(Clause::SettleDrain) {
            true => self.write_drain_waited,
            false => 0,
        };
        match self.keeps(Clause::SettleDrift) {
            true => self.stretch(ttl.saturating_add(drain)),
            false => ttl.saturating_add(drain),
        }
    }

    /// Whether the rule holds. Always true, except in a model checker that disables it.
    #[cfg(not(feature = "weaken"))]
    #[inline(always)]
    pub const fn keeps(&self, _: Clause) -> bool {
        true
    }

    /// Whether the rule holds: it is not the disabled one.
    #[cfg(feature = "weaken")]
    #[inline]
    pub fn keeps(&self, clause: Clause) -> bool {
        self.weakened != Some(clause)
    }
}

/// Why spans are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTerms {
    #[error("clocks may drift by less than 1000 per mille")]
    Drift,
    #[error("a grant and the drain of writes last longer than 0")]
    Zero,
    #[error(
        "a grant cannot last longer than a session: raise the session's time to live, or lower the grant's"
    )]
    GrantTtl,
    #[error("the margin uses up a session's time to live: raise the time to live")]
    SessionTtl,
}

/// The rules that safety rests on, grouped by the machine that keeps them. Without any one of them
/// two zones can write at once, and the model checker shows how. The two under "Availability" keep
/// cells in place instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Clause {
    // Session
    /// A session's deadline counts from before its renewal was sent, not from the answer.
    DeadlineFromSend,
    /// An answer counts only for the renewal that it answers.
    RenewalMatched,
    /// A renewal succeeds only while no other process has ended the session.
    RenewalCompared,
    /// A round counts only when every other session that is there has acknowledged it.
    RoundAcknowledged,
    /// A round counts only when no session was created that its replica has not seen.
    RoundComparesSessions,
    /// A round counts only while no other process has ended the session.
    RoundComparesOwn,
    /// A round counts from before it was confirmed, not from the last acknowledgement.
    RoundFromBegin,
    /// An acknowledgement counts only for the round that it names.
    HeardMatched,
    /// A beat is acknowledged only while its session is known to exist.
    HeardWhilePresent,
    /// A beat is not acknowledged while a transaction that ends its session may be under way.
    PassedOverUnheard,
    /// The silence of others is counted from the creation of the replica's own session, not
    /// earlier.
    SilenceAnewAfterCreation,
    // Grantor
    /// An incarnation that has not registered at that very revision grants nothing.
    Registered,
    /// Registration compares the authority's revision, which is active.
    RegistrationComparesAuthority,
    /// A replica's view of an authority never goes back.
    ViewNeverBack,
    /// A grant ends no later than the session.
    GrantWithinSession,
    /// While a cell is fenced no incarnation grants.
    StopAtFence,
    /// The holder of a grant is remembered with it.
    HolderRecorded,
    /// A grantor leaves only when each holder has acknowledged, or its grant has expired.
    WaitForHolders,
    /// A grant has expired only when the writes admitted under it have ended too.
    RunOutDrain,
    /// The wait for its expiry leaves room for clock drift.
    RunOutDrift,
    /// An acknowledgement counts only for the fence that it names.
    AcknowledgementNamesFence,
    /// A grantor that stopped under an authority that did not change returns as another
    /// incarnation.
    ResumedAsAnother,
    // Holder
    /// A grant counts from before its request, not from the answer.
    GrantFromAsk,
    /// An answer counts only for the question that it answers.
    GrantMatched,
    /// A grant that is older than a known fence is not installed.
    GrantNotOlder,
    /// A worker is listed in the process's ledger before it admits anything.
    WorkerListed,
    /// A write in flight is waited for.
    InFlightCounted,
    /// The writes that a lost worker may have in flight are waited for.
    LostWorkerCounted,
    /// A write that ended without a response is waited for: its instance may still work on it.
    AbandonedCounted,
    // Moves
    /// Authority moves only out of a fence.
    FenceFirst,
    /// A move compares the authority's revision.
    MoveComparesAuthority,
    /// A move waits until every grantor has left, or its session has ended. This includes the zones
    /// that stay owners.
    MoveWaitsForGrantors,
    /// A move compares that the sessions which it assumes ended were not renewed since.
    MoveComparesSessions,
    /// A move ends those sessions, so that they cannot be renewed.
    MoveEndsSessions,
    /// Grants under such a session are waited for before the new owner may write.
    MoveSettles,
    /// That wait covers the session's time to live.
    SettleTtl,
    /// That wait covers the drain of writes.
    SettleDrain,
    /// That wait leaves room for clock drift.
    SettleDrift,
    /// A wait that has not ended survives another move.
    UnsettledCarried,
    /// After events may have been missed, silence is counted from zero.
    SilenceAnewAfterListing,
    /// The grantor key of an ended session stays until every grant under that session has expired:
    /// the session may have been ended because of another cell.
    KeyOutlivesSession,
    /// A record without a history is waited for as if everything before it were under way.
    UnknownPastSettles,
    /// An authority of another store is invalid.
    BoundToStore,
    // Availability: without these two rules no two zones write, but a cell moves without need
    /// A takeover compares that the owners' sessions were not renewed since this replica last saw
    /// them alive.
    TakeoverComparesSessions,
    /// A zone whose session was deleted gets as long to return as one whose session is silent.
    DeletedIsAwaited,
    // Terms
    /// A replica whose configuration is not agreed on neither grants nor takes a step.
    TermsAgreed,
    /// Registration compares that the terms are those by which it promises.
    RegistrationComparesTerms,
    /// An agreement on shorter terms shortens the present session.
    SessionShortened,
    /// While two sets of terms are agreed on, the smaller of both is promised.
    WidenedPromise,
    /// And the larger is waited for.
    WidenedWait,
    /// Terms are narrowed only when every grantor has registered under both.
    NarrowWaitsForGrantors,
    /// And when earlier promises are over.
    NarrowSettles,
    /// A holder receives grants only under the terms of its policy: other replicas wait for the
    /// promises of these terms.
    HolderUnderTerms,
    /// A holder that does not report the terms of its policy receives grants only while they have
    /// never changed.
    UnsaidBeforeChange,
    /// A worker takes a permit only under the terms of its own policy: workers receive a policy one
    /// after the other.
    PermitUnderTerms,
}

impl Clause {
    /// All of them.
    pub const ALL: [Clause; 55] = [
        Clause::DeadlineFromSend,
        Clause::RenewalMatched,
        Clause::RenewalCompared,
        Clause::RoundAcknowledged,
        Clause::RoundComparesSessions,
        Clause::RoundComparesOwn,
        Clause::RoundFromBegin,
        Clause::HeardMatched,
        Clause::HeardWhilePresent,
        Clause::PassedOverUnheard,
        Clause::SilenceAnewAfterCreation,
        Clause::Registered,
        Clause::RegistrationComparesAuthority,
        Clause::ViewNeverBack,
        Clause::GrantWithinSession,
        Clause::StopAtFence,
        Clause::HolderRecorded,
        Clause::WaitForHolders,
        Clause::RunOutDrain,
        Clause::RunOutDrift,
        Clause::AcknowledgementNamesFence,
        Clause::ResumedAsAnother,
        Clause::GrantFromAsk,
        Clause::GrantMatched,
        Clause::GrantNotOlder,
        Clause::WorkerListed,
        Clause::InFlightCounted,
        Clause::LostWorkerCounted,
        Clause::AbandonedCounted,
        Clause::FenceFirst,
        Clause::MoveComparesAuthority,
        Clause::MoveWaitsForGrantors,
        Clause::MoveComparesSessions,
        Clause::MoveEndsSessions,
        Clause::MoveSettles,
        Clause::SettleTtl,
        Clause::SettleDrain,
        Clause::SettleDrift,
        Clause::UnsettledCarried,
        Clause::SilenceAnewAfterListing,
        Clause::KeyOutlivesSession,
        Clause::UnknownPastSettles,
        Clause::BoundToStore,
        Clause::TakeoverComparesSessions,
        Clause::DeletedIsAwaited,
        Clause::TermsAgreed,
        Clause::RegistrationComparesTerms,
        Clause::SessionShortened,
        Clause::WidenedPromise,
        Clause::WidenedWait,
        Clause::NarrowWaitsForGrantors,
        Clause::NarrowSettles,
        Clause::HolderUnderTerms,
        Clause::UnsaidBeforeChange,
        Clause::PermitUnderTerms,
    ];
}
