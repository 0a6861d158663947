//! Rounds: how a session is renewed without a write.
//!
//! A put shows all replicas through the store that its session lives, and stays in the store's
//! history. A round shows the same to each replica directly, and the store only confirms it. It
//! begins at a moment `t` of its replica P:
//!
//! 1. The store confirms to P, in a linearizable read, that P's session was not ended, and that no
//!    session was created after the newest that P has seen.
//! 2. Only then P sends a *beat* to every other session that existed when the round began. So a
//!    replica that does not reach the store does not count as alive.
//! 3. Each of them restarts its count of P's silence at the beat, and acknowledges.
//! 4. Once all have acknowledged, P's session lasts until `t` plus its time to live, as if P had
//!    put its key at `t`.
//!
//! A round that is incomplete when the next one is due fails. Until a round completes, P also puts
//! its key.
//!
//! Why no replica ends P too early: take any replica Q whose transaction passes over P, and a round
//! of P that counts. A transaction compares that Q's session exists.
//!
//! - Q's session was created before the confirmation: P has seen it (2nd condition) and Q has
//!   acknowledged. Q counts from the beat, later than `t`. A transaction that Q had sent before the
//!   beat would end P's session unless P was put since, so Q acknowledges nothing until it has seen
//!   such a put.
//! - Q's session was created after the confirmation: Q counts from when it learned of its creation,
//!   which is later than `t` too.
//!
//! A round need not wait for a session whose deletion P has seen. A transaction of Q that passes
//! over P came before that deletion, since it compares that Q's session exists. If it also came
//! before the confirmation, the confirmation would have failed. Otherwise P has seen it before it
//! saw the deletion, since the watch reports events in order, and P's session had ended then. A
//! listing has no order: sessions that it lacks are waited for until the next round.

use alloc::collections::BTreeSet;

use super::{Clause, Condition, Key, Revision, SessionId, Terms, Transaction};

/// A round under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Round {
    /// The number of the transaction that confirms it.
    pub(super) number: u64,
    pub(super) began: u64,
    /// The other sessions that exist and have not acknowledged.
    awaited: BTreeSet<SessionId>,
    confirmed: bool,
}

/// The part of the store that a replica has seen when it begins a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Company {
    /// The other sessions that exist.
    pub others: BTreeSet<SessionId>,
    /// Every session created up to this revision was seen.
    pub seen: Revision,
}

impl Round {
    pub(super) fn new(number: u64, began: u64, others: BTreeSet<SessionId>) -> Round {
        Round {
            number,
            began,
            awaited: others,
            confirmed: false,
        }
    }

    /// The store has confirmed it: returns the sessions to send a beat to.
    pub(super) fn confirmed(&mut self) -> BTreeSet<SessionId> {
        self.confirmed = true;
        self.awaited.clone()
    }

    /// Another session has acknowledged the beat of round `number`.
    pub(super) fn heard(&mut self, by: &SessionId, number: u64, terms: &Terms) {
        if number == self.number || !terms.keeps(Clause::HeardMatched) {
            self.awaited.remove(by);
        }
    }

    /// Another session's key was deleted, as the store's watch reports: that session cannot pass
    /// over others any more.
    pub(super) fn gone(&mut self, id: &SessionId) {
        self.awaited.remove(id);
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// The sessions that have not acknowledged.
    pub(super) fn awaited(&self) -> &BTreeSet<SessionId> {
        &self.awaited
    }

    pub(super) fn complete(&self, terms: &Terms) -> bool {
        self.confirmed && (self.awaited.is_empty() || !terms.keeps(Clause::RoundAcknowledged))
    }
}

/// The store's confirmation, as a transaction that changes nothing.
pub(super) fn confirmation(
    id: &SessionId,
    created: Revision,
    seen: Revision,
    terms: &Terms,
) -> Transaction {
    let mut conditions = alloc::vec::Vec::new();
    if terms.keeps(Clause::RoundComparesOwn) {
        conditions.push(Condition::CreatedAt(Key::Session(id.clone()), created));
    }
    if terms.keeps(Clause::RoundComparesSessions) {
        conditions.push(Condition::NoSessionSince(seen));
    }
    Transaction {
        conditions,
        writes: alloc::vec::Vec::new(),
    }
}
