//! The write fence: write authority, and its moves without two zones ever writing at once.
//!
//! State machines, as pure as the rest of this crate: messages and time in, messages and
//! transactions out. The control plane runs [`Replica`], one for each zone that it speaks for; a
//! proxy's workers run [`Ledger`], [`Worker`] and [`Asker`]. The processes feed them and carry out
//! what they say; a model checker explores these very machines.
//!
//! The way of the permission to write:
//!
//! 1. A replica keeps a *session* alive ([`session`], [`round`]): a key that tells others that it
//!    lives, and signs of life.
//! 2. It registers as *grantor* for a cell at a revision of the cell's [`Authority`] ([`grantor`]).
//! 3. It gives *grants* to the proxies of its zone, none longer than what is left of its session.
//! 4. A move ([`moves`]) takes every owner out first (*fencing*), waits until each grantor has gone
//!    or its session and all that hung on it is certainly over, and only then names the new owners.
//!
//! Time is a plain number in any unit, of a clock that never goes back and counts while the machine
//! is suspended: `now` and whatever else is called a time belong to the clock of the process that
//! says it, and are never sent. Only spans are sent. Processes count microseconds.
//!
//! Every rule that safety rests on has a name, [`Clause`], and stands in the code as
//! `terms.keeps(Clause::…)`: true, always, but in a build for the model checker, which takes one
//! rule away at a time and must then find two zones writing.

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

/// The highest epoch: the largest whole number of JSON readers, so that there is always a higher
/// one. Records, messages and headers with a higher one are refused or passed over.
pub const EPOCH_MAX: u64 = 1 << 53;

/// The name of a zone, a cell or an incarnation. Records outlive the configuration, so zones are
/// names here, not indices.
pub type Name = Arc<str>;

/// A point in the history of the store; 0 is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A revision of a cell's authority with its epoch, in the order of history: an operator who begins
/// anew on a restored store, whose revisions start low again, raises the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    pub epoch: u64,
    pub revision: Revision,
}

/// One process of a proxy, by a number that it drew at random. Not a node's name: during a hot
/// restart a node has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId(pub u128);

/// The spans that all processes agree on, and how far clocks may drift. Where they are being
/// changed ([`Agreement`]) a span that is promised is shorter than the same one as it is waited
/// for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Which agreement they are of; [`TermsId::NONE`] where that is not known.
    pub id: TermsId,
    /// There were others before. Then each admitted write says how long it may live, and only a
    /// route takes it that lets it live no longer: the routes of a proxy may be older than its
    /// policy.
    pub changed: bool,
    /// A change was completed: no write is admitted any more that does not say how long it may
    /// live.
    pub drains_said: bool,
    /// How long a session outlives its last renewal.
    pub session_ttl: u64,
    /// The longest grant.
    pub grant_ttl: u64,
    /// The longest that an admitted write lives.
    pub write_drain: u64,
    /// `session_ttl`, as others wait for it: no shorter.
    pub session_ttl_waited: u64,
    /// `write_drain`, as it is waited for: no shorter.
    pub write_drain_waited: u64,
    /// Taken off every session's deadline.
    pub margin: u64,
    /// While one clock counts 1000, no other counts less than 1000 minus this. Below 1000.
    pub drift_permille: u16,
    /// The rule that is taken away.
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

    /// How long to wait by one's own clock so that at least `span` has passed by any other: `span /
    /// (1 - rho)`.
    pub fn stretch(&self, span: u64) -> u64 {
        let rate = u64::from(1000_u16.saturating_sub(self.drift_permille)).max(1);
        span.saturating_mul(1000).div_ceil(rate)
    }

    /// How long after its last renewal, as another saw that, a session is over.
    pub fn session_over(&self) -> u64 {
        self.stretch(self.session_ttl_waited)
    }

    /// How long after its last renewal, as another saw that, nothing that hung on a session can be
    /// under way any more.
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

    /// Whether the rule holds. Always, but under a model checker that takes it away.
    #[cfg(not(feature = "weaken"))]
    #[inline(always)]
    pub const fn keeps(&self, _: Clause) -> bool {
        true
    }

    /// Whether the rule holds: it is not the one that was taken away.
    #[cfg(feature = "weaken")]
    #[inline]
    pub fn keeps(&self, clause: Clause) -> bool {
        self.weakened != Some(clause)
    }
}

/// Why spans cannot be agreed on.
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
    #[error("the margin leaves nothing of a session's time to live: raise it")]
    SessionTtl,
}

/// The rules that safety rests on, by where they are kept. Without any one of them two zones can
/// write at once, and the model checker shows how. The last two keep cells where they are instead.
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
    /// A beat is acknowledged only while its session is known to be there.
    HeardWhilePresent,
    /// A beat is not acknowledged while a transaction may be under way that ends its session.
    PassedOverUnheard,
    /// The silence of others is counted from no earlier than the own session's creation.
    SilenceAnewAfterCreation,
    // Grantor
    /// An incarnation that has not registered at that very revision grants nothing.
    Registered,
    /// Registration compares the authority's revision, which is active.
    RegistrationComparesAuthority,
    /// Knowledge of an authority never goes back.
    ViewNeverBack,
    /// A grant ends no later than the session.
    GrantWithinSession,
    /// While a cell is fenced no incarnation grants.
    StopAtFence,
    /// The holder of a grant is remembered with it.
    HolderRecorded,
    /// A grantor leaves only when each holder has acknowledged, or its grant has run out.
    WaitForHolders,
    /// A grant has run out only when the writes admitted under it are over too.
    RunOutDrain,
    /// The wait for it leaves room for the drift of clocks.
    RunOutDrift,
    /// An acknowledgement counts only for the fence that it names.
    AcknowledgementNamesFence,
    /// A grantor that stopped under an authority that did not change comes back as another
    /// incarnation.
    ResumedAsAnother,
    // Holder
    /// A grant counts from before it was asked for, not from the answer.
    GrantFromAsk,
    /// An answer counts only for the question that it answers.
    GrantMatched,
    /// No grant is installed that is older than a fence that was seen.
    GrantNotOlder,
    /// A worker is known to the process before it admits anything.
    WorkerListed,
    /// A write in flight is waited for.
    InFlightCounted,
    /// The writes that a lost worker may have in flight are waited for.
    LostWorkerCounted,
    /// A write that ended without an answer is waited for: its instance may go on with it.
    AbandonedCounted,
    // Moves
    /// Authority moves only out of a fence.
    FenceFirst,
    /// A move compares the authority's revision.
    MoveComparesAuthority,
    /// A move waits until every grantor has gone, or its session is over: those of zones that stay
    /// owners, too.
    MoveWaitsForGrantors,
    /// A move compares that the sessions which it takes to be over were not renewed since.
    MoveComparesSessions,
    /// A move ends those sessions, so that they cannot be renewed.
    MoveEndsSessions,
    /// The remains of such a session are waited for before the new owner may write.
    MoveSettles,
    /// That wait covers the session's time to live.
    SettleTtl,
    /// That wait covers the drain of writes.
    SettleDrain,
    /// That wait leaves room for the drift of clocks.
    SettleDrift,
    /// A wait that is not over survives another move.
    UnsettledCarried,
    /// After events may have been missed, silence is counted anew.
    SilenceAnewAfterListing,
    /// The grantor key of a session that was ended stays until nothing of that session can be under
    /// way: the session may have been ended for another cell's sake.
    KeyOutlivesSession,
    /// A record without a history is waited for as if everything before it were under way.
    UnknownPastSettles,
    /// An authority of another store counts for nothing.
    BoundToStore,
    // Availability: without these two no two zones write, but a cell moves that nobody has to move
    /// A takeover compares that the owners' sessions were not renewed since this replica last heard
    /// of them.
    TakeoverComparesSessions,
    /// A zone whose session was deleted is given as long to come back as one whose session is
    /// silent.
    DeletedIsAwaited,
    // Terms
    /// A replica whose configuration is not agreed on neither grants nor takes a step.
    TermsAgreed,
    /// Registration compares that the terms are those by which it promises.
    RegistrationComparesTerms,
    /// Terms that are agreed on shorten the session that is being kept.
    SessionShortened,
    /// While two sets of terms are agreed on, the smaller of both is promised.
    WidenedPromise,
    /// And the larger is waited for.
    WidenedWait,
    /// Terms are narrowed only when every grantor has registered under both.
    NarrowWaitsForGrantors,
    /// And when earlier promises are over.
    NarrowSettles,
    /// A holder is granted something only under the terms that its policy has: others wait for what
    /// these promise.
    HolderUnderTerms,
    /// A holder that does not say which terms its policy has is granted something only while they
    /// were never changed.
    UnsaidBeforeChange,
    /// A worker takes a permit only under the terms that its own policy has: workers get a policy
    /// one after the other.
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
