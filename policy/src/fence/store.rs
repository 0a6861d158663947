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
    /// The registration of this incarnation as a grantor of the cell.
    Grantor(Name, SessionId),
    /// The terms that all replicas have agreed on.
    Terms,
}

/// A condition on a key. A transaction is committed only if it holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// It was last put at this revision; 0: it is absent.
    PutAt(Key, Revision),
    /// It was created at this revision, and not deleted since; 0: it is absent.
    CreatedAt(Key, Revision),
    /// No existing session was created after this revision.
    NoSessionSince(Revision),
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    Authority(Name, Authority),
    Session(SessionId),
    /// The registration of this incarnation as a grantor of the cell, under the terms of this
    /// revision.
    Grantor(Name, SessionId, Revision),
    Terms(Agreement),
    Delete(Key),
}

/// Puts all of `writes`, in one revision, if all of `conditions` hold; otherwise nothing. Without
/// writes it reads whether the conditions hold. That read is linearizable: a member of the store
/// does not answer it from its own copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transaction {
    pub conditions: Vec<Condition>,
    pub writes: Vec<Write>,
}
