//! The inputs of a replica, and its effects.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::fence::{
    Agreed, Agreement, Authority, Grant, HolderId, Name, Revision, SessionId, Stamp, TermsId,
    Transaction, Withheld,
};

/// An input of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The whole content of the store, at one revision: at the start, and after events may have
    /// been missed.
    Listed(Listing),
    /// An authority was put; none: deleted.
    Authority {
        cell: Name,
        revision: Revision,
        authority: Option<Authority>,
    },
    /// A session was put at this revision; none: deleted.
    Session {
        id: SessionId,
        put: Option<Revision>,
    },
    /// The session `from` sends a sign of life to the session `to`.
    Beat {
        from: SessionId,
        to: SessionId,
        round: u64,
    },
    /// The session `by` acknowledges that beat of the session `of`.
    Heard {
        by: SessionId,
        of: SessionId,
        round: u64,
    },
    /// A grantor registered, or left.
    Grantor {
        cell: Name,
        id: SessionId,
        /// The revision of its terms; none: it left.
        registered: Option<Revision>,
    },
    /// The agreed terms were put; none: deleted.
    Terms {
        revision: Revision,
        agreement: Option<Agreement>,
    },
    /// The terms that this replica is configured with.
    Configured(Agreed),
    /// Whether all live replicas are configured with the next terms.
    Rolled(bool),
    /// The outcome of a transaction.
    Answer {
        number: u64,
        outcome: TransactionOutcome,
    },
    /// A proxy of this zone has connected.
    Connected(HolderId),
    Disconnected(HolderId),
    /// A proxy requests all grants that it may have.
    Asked {
        holder: HolderId,
        nonce: u64,
        /// The terms of its policy; none if it does not report them.
        terms: Option<TermsId>,
    },
    /// A proxy has no write from before `fence` in flight, and never will have.
    Drained {
        holder: HolderId,
        cell: Name,
        fence: Stamp,
    },
    /// The configured cells.
    Cells(BTreeMap<Name, CellRules>),
    /// The zone that should own the cell, since its owners cannot serve writes; none while they
    /// can.
    Better {
        cell: Name,
        zone: Option<Name>,
        /// An explanation for operators.
        reason: Name,
    },
    /// The zones in which some fenced service cannot be written to: poor targets of a move.
    Unfit(BTreeSet<Name>),
    /// The zones that have replicas, but no proxy that could hold grants. Authority does not move
    /// there automatically while another zone has one.
    Unheld(BTreeSet<Name>),
    /// The content of the session's record has changed: the record is put at once.
    Restated,
    /// A sanity guard distrusts the store that answers: nothing is granted or moved until it is
    /// listed again.
    Doubted,
    /// The process shuts down.
    Stop,
    /// Time has passed.
    Tick,
}

/// The content of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Listing {
    /// The store that answers.
    pub store: u64,
    /// The revision of the listing.
    pub revision: Revision,
    /// The agreed terms, with the revision of their last put.
    pub terms: Option<(Revision, Agreement)>,
    pub authorities: Vec<(Name, Revision, Authority)>,
    pub sessions: BTreeMap<SessionId, Revision>,
    /// The incarnations registered to grant, with the revision of their terms.
    pub grantors: BTreeMap<(Name, SessionId), Revision>,
}

/// The outcome of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionOutcome {
    Committed(Revision),
    /// A condition did not hold; nothing was changed.
    Refused,
    /// Unknown: it was committed, may still be, or never is.
    Unknown,
}

/// An effect of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Commit this transaction, and report its outcome.
    Commit {
        number: u64,
        transaction: Transaction,
    },
    /// Send a sign of life to the session `to`: [`Input::Beat`].
    Beat { to: SessionId, round: u64 },
    /// Acknowledge the beat of the session `of`: [`Input::Heard`].
    Heard { of: SessionId, round: u64 },
    /// Answer a request for grants: for these cells.
    Grant {
        holder: HolderId,
        nonce: u64,
        grants: Vec<(Name, Grant)>,
        withheld: Option<Withheld>,
    },
    /// Ask holders to return grants older than `fence`.
    Revoke {
        holder: HolderId,
        cell: Name,
        fence: Stamp,
    },
    /// Invite the holder to request grants: some are available.
    Invite { holder: HolderId },
    /// This incarnation has ended: [`Replica::reborn`].
    Ended,
    /// It has released everything: the process may exit.
    Stopped,
}

/// The configuration of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CellRules {
    /// Its first owners.
    pub owners: Vec<Name>,
    pub standby: Vec<Name>,
    /// Whether it moves automatically.
    pub automatic: bool,
    /// For how long after a move the cell does not move because its owners cannot serve writes.
    pub cool_down: u64,
    /// A bound above every epoch that was ever seen.
    pub epoch_min: u64,
}

/// Why a move is rejected. The text names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveRejected {
    #[error("there is no such cell")]
    NoCell,
    #[error("this replica has no session: wait until it reaches the store, or use another replica")]
    NoSession,
    #[error(
        "this replica's configured terms differ from the agreed terms, so it moves nothing: `tidegate terms` shows them; use a replica that agrees"
    )]
    TermsDiffer,
    #[error("the cell belongs to these zones already, so there is nothing to move")]
    SameOwners,
    #[error("another move of this cell is under way: wait for it, or override it")]
    Moving,
    #[error("no replica serves zone {0}: start one there, or move to another zone")]
    TargetSilent(Name),
    #[error(
        "the authority comes from another store, restored or replaced: only an override can recover the cell"
    )]
    OtherStore,
}
