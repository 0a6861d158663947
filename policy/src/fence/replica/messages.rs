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
    /// Everything that the store has, at one revision: at first, and after events may have been
    /// missed.
    Listed(Listing),
    /// An authority was put, or with none deleted.
    Authority {
        cell: Name,
        revision: Revision,
        authority: Option<Authority>,
    },
    /// A session was put at this revision, or with none deleted.
    Session {
        id: SessionId,
        put: Option<Revision>,
    },
    /// The session `from` says to the session `to` that it lives.
    Beat {
        from: SessionId,
        to: SessionId,
        round: u64,
    },
    /// The session `by` has heard that beat of the session `of`.
    Heard {
        by: SessionId,
        of: SessionId,
        round: u64,
    },
    /// A grantor registered, or left.
    Grantor {
        cell: Name,
        id: SessionId,
        /// Under the terms of this revision; none: it left.
        registered: Option<Revision>,
    },
    /// The agreed terms were put, or with none deleted.
    Terms {
        revision: Revision,
        agreement: Option<Agreement>,
    },
    /// The terms that this replica is configured with.
    Configured(Agreed),
    /// Whether all living replicas are configured with the terms that come next.
    Rolled(bool),
    /// The outcome of a transaction.
    Answer {
        number: u64,
        outcome: TransactionOutcome,
    },
    /// A proxy of this zone can be spoken to.
    Connected(HolderId),
    Disconnected(HolderId),
    /// A proxy asks for whatever it may get.
    Asked {
        holder: HolderId,
        nonce: u64,
        /// Those of its policy; none where it does not say.
        terms: Option<TermsId>,
    },
    /// A proxy has nothing in flight from before `fence`, and never will have.
    Drained {
        holder: HolderId,
        cell: Name,
        fence: Stamp,
    },
    /// Which cells there are.
    Cells(BTreeMap<Name, CellRules>),
    /// The zone that should own the cell, since its owners cannot serve writes; none while they
    /// can.
    Better {
        cell: Name,
        zone: Option<Name>,
        /// For people.
        reason: Name,
    },
    /// The zones where some fenced service cannot be written to: where authority should rather not
    /// go.
    Unfit(BTreeSet<Name>),
    /// The zones that have replicas, and no proxy that could hold grants: where authority should
    /// not go by itself while another zone has one.
    Unheld(BTreeSet<Name>),
    /// The content of the session's record has changed: the record is put now.
    Restated,
    /// The store that answers is not believed: nothing is granted or moved until it is listed
    /// again.
    Doubted,
    /// The process is to end.
    Stop,
    /// Time has passed.
    Tick,
}

/// The content of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Listing {
    /// Which store answers.
    pub store: u64,
    /// At which revision.
    pub revision: Revision,
    /// The agreed terms, with the revision of their last put.
    pub terms: Option<(Revision, Agreement)>,
    pub authorities: Vec<(Name, Revision, Authority)>,
    pub sessions: BTreeMap<SessionId, Revision>,
    /// The incarnations registered to grant, and the revision of their terms.
    pub grantors: BTreeMap<(Name, SessionId), Revision>,
}

/// The outcome of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionOutcome {
    Committed(Revision),
    /// A condition did not hold; nothing was changed.
    Refused,
    /// Unknown: it may have been made, or may still be.
    Unknown,
}

/// An effect of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Make this transaction, and report its outcome.
    Commit {
        number: u64,
        transaction: Transaction,
    },
    /// Say to the session `to` that this one lives: [`Input::Beat`].
    Beat { to: SessionId, round: u64 },
    /// Say to the session `of` that its beat was heard: [`Input::Heard`].
    Heard { of: SessionId, round: u64 },
    /// Answer a question: for these cells.
    Grant {
        holder: HolderId,
        nonce: u64,
        grants: Vec<(Name, Grant)>,
        withheld: Option<Withheld>,
    },
    /// Give back grants that are older than `fence`.
    Revoke {
        holder: HolderId,
        cell: Name,
        fence: Stamp,
    },
    /// Ask now: there is something to be had.
    Invite { holder: HolderId },
    /// This incarnation is over: [`Replica::reborn`].
    Ended,
    /// It has left everything behind in order: the process may end.
    Stopped,
}

/// The configuration of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CellRules {
    /// Its first owners.
    pub owners: Vec<Name>,
    pub standby: Vec<Name>,
    /// Whether it moves by itself.
    pub automatic: bool,
    /// For how long after a change it does not move because its owners cannot serve.
    pub cool_down: u64,
    /// Every epoch that was ever seen is below this.
    pub epoch_min: u64,
}

/// Why a move is rejected. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveRejected {
    #[error("there is no such cell")]
    NoCell,
    #[error("this replica has no session: wait until it reaches the store, or ask another one")]
    NoSession,
    #[error(
        "this replica's configured terms differ from the agreed terms, so it moves nothing: `tidegate terms` shows them; ask a replica that agrees"
    )]
    TermsDiffer,
    #[error("the cell belongs to these zones already, so there is nothing to move")]
    SameOwners,
    #[error("another move of this cell is under way: wait for it, or override it")]
    Moving,
    #[error("no replica speaks for zone {0}: start one there, or move to another zone")]
    TargetSilent(Name),
    #[error(
        "the authority comes from another store, restored or replaced: only an override begins anew from here"
    )]
    OtherStore,
}
