//! The authority to write for a cell.

use alloc::{collections::BTreeSet, vec::Vec};

use super::{Clause, Name, SessionId, Terms};

/// The authority over a cell, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority {
    /// The store in which it was written. In another store, restored from a backup, the copy is
    /// invalid.
    pub store: u64,
    /// Rises with every move.
    pub epoch: u64,
    /// The zones that may write: usually one; several of one region if the database accepts writes
    /// in all of them.
    pub owners: Vec<Name>,
    /// The successors when the owners fail: the first live one.
    pub standby: Vec<Name>,
    pub state: AuthorityState,
    /// Earlier owners' writes that may still be under way. No zone may write until they have
    /// settled.
    pub unsettled: Unsettled,
    /// The minimum hold, a span from when a replica saw this record: an operator has placed the
    /// cell here, so it does not move because another zone serves it better. The hold ends if the
    /// zone is lost.
    pub hold: u64,
}

/// The state of a cell between moves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuthorityState {
    /// Replicas of the owners may register and grant.
    Active,
    /// No incarnation grants: a move is under way.
    Fencing(Move),
    /// No incarnation grants yet.
    Settling,
}

/// The target of a move.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Move {
    /// The name of the move's record.
    pub id: Name,
    pub to: Vec<Name>,
    pub cause: Cause,
    /// An explanation for operators.
    pub reason: Name,
    /// The lower bound of the new epoch.
    pub epoch_min: u64,
    /// Becomes [`Authority::hold`].
    pub hold: u64,
}

/// Why a move was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Cause {
    /// An operator requested it. It waits for all holders of grants, and is aborted if the target
    /// is not there.
    Operator,
    /// An operator forces it, without the consent of the old owners: their sessions are ended, and
    /// grants under them are waited for.
    Override,
    /// The owners' sessions have ended.
    SessionLost,
    /// The owners cannot serve writes, and other zones can.
    Unfit,
}

/// Earlier grants that may still be under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unsettled {
    /// Grants under these sessions; none if the set is empty.
    Of(BTreeSet<SessionId>),
    /// Any grant: the past before this record is unknown.
    Unknown,
}

impl Unsettled {
    /// No grants.
    pub const fn none() -> Unsettled {
        Unsettled::Of(BTreeSet::new())
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Unsettled::Of(sessions) if sessions.is_empty())
    }
}

impl Authority {
    /// The first authority over a cell in a store. It waits for anything granted earlier.
    pub fn first(
        store: u64,
        epoch: u64,
        owners: Vec<Name>,
        standby: Vec<Name>,
        terms: &Terms,
    ) -> Authority {
        let (state, unsettled) = match terms.keeps(Clause::UnknownPastSettles) {
            true => (AuthorityState::Settling, Unsettled::Unknown),
            false => (AuthorityState::Active, Unsettled::none()),
        };
        Authority {
            store,
            epoch,
            owners,
            standby,
            state,
            unsettled,
            hold: 0,
        }
    }

    /// Whether the zone may write once the cell is active.
    pub fn is_owner(&self, zone: &str) -> bool {
        self.owners.iter().any(|owner| &**owner == zone)
    }
}
