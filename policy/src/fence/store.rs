//! The machines' requests to the store, as data: compare-and-swap transactions over a few kinds of
//! keys.

use alloc::vec::Vec;

use super::{Agreement, Authority, Name, Revision, SessionId};

/// A key of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The authority over a cell.
    Authority(Name),
    Session(SessionId),
    /// That this incarnation grants for the cell.
    Grantor(Name, SessionId),
    /// The agreement of all replicas.
    Terms,
}

/// A condition on a key, which must hold for a transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// It was last put at this revision; 0: it is absent.
    PutAt(Key, Revision),
    /// It was created at this revision, and not deleted since; 0: it is absent.
    CreatedAt(Key, Revision),
    /// No session that is there was created after this revision.
    NoSessionSince(Revision),
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    Authority(Name, Authority),
    Session(SessionId),
    /// That this incarnation grants for the cell, under the terms of this revision.
    Grantor(Name, SessionId, Revision),
    Terms(Agreement),
    Delete(Key),
}

/// All of `writes`, in one revision, if all of `conditions` hold; else nothing. Without writes it
/// asks whether the conditions hold: as the majority of the store sees it at some moment after it
/// was asked, never as one member remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transaction {
    pub conditions: Vec<Condition>,
    pub writes: Vec<Write>,
}
