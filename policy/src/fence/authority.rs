//! The authority to write for a cell.

use alloc::{collections::BTreeSet, vec::Vec};

use super::{Clause, Name, SessionId, Terms};

/// The authority over a cell, as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority {
    /// The store in which it was written: a copy in another one, restored from a backup, counts for
    /// nothing.
    pub store: u64,
    /// Rises with every move.
    pub epoch: u64,
    /// The zones that may write: one as a rule, several of one region where the database takes
    /// writes in all of them.
    pub owners: Vec<Name>,
    /// Where authority goes when the owners fail: the first that lives.
    pub standby: Vec<Name>,
    pub state: AuthorityState,
    /// The wait before anybody may write: earlier owners' writes that may still be under way.
    pub unsettled: Unsettled,
    /// For so long after this record was seen, the cell does not leave because others serve it
    /// better: an operator has put it here. A span. It does not hold a cell in a zone that is lost.
    pub hold: u64,
}

/// Where a cell is between two moves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuthorityState {
    /// Replicas of the owners may register and grant.
    Active,
    /// No incarnation grants: a move is under way.
    Fencing(Move),
    /// No incarnation grants yet.
    Settling,
}

/// Where authority is to go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Move {
    /// The name of its record.
    pub id: Name,
    pub to: Vec<Name>,
    pub cause: Cause,
    /// For people.
    pub reason: Name,
    /// The new epoch is at least this.
    pub epoch_min: u64,
    /// Becomes [`Authority::hold`].
    pub hold: u64,
}

/// Why a move was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Cause {
    /// An operator wants it. It waits for all who hold grants, and gives up where the target is not
    /// there.
    Operator,
    /// An operator wants it whatever the old owners say: their sessions are ended, and what hung on
    /// them is waited for.
    Override,
    /// The owners' sessions are over.
    SessionLost,
    /// The owners cannot serve writes, and others can.
    Unfit,
}

/// Grants that may still be under way from before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unsettled {
    /// Grants under these sessions; under none, where there are none.
    Of(BTreeSet<SessionId>),
    /// Anything: the past before this record is unknown.
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
    /// The first authority over a cell in a store: whatever was before, it is waited for.
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
