//! A proxy that holds grants: its workers' shared and own state, and its questions.
//!
//! The workers of a process share a [`Ledger`] for each cell, which they change by
//! compare-and-swap. A [`Worker`] admits by the permit that it took from there, without looking
//! again: the ledger lists every worker that has taken something, so that a fence is acknowledged
//! only when each of them has let go and has nothing in flight. A worker that was lost with its
//! memory stays listed for as long as anything that it admitted may live.

use alloc::vec::Vec;

use super::{Clause, Grant, Stamp, Terms, TermsId};

/// A worker of a proxy, by a number that it drew at random; a worker that is built anew has
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// A grant as it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Permit {
    pub stamp: Stamp,
    /// By the process's clock, exclusive.
    pub until: u64,
    /// Those of the policy under which it was asked for.
    pub terms: TermsId,
}

impl Permit {
    /// Whether it counts for a policy of these terms.
    fn is_under(&self, terms: &Terms) -> bool {
        self.terms == terms.id || !terms.keeps(Clause::PermitUnderTerms)
    }
}

/// The state of one cell that the workers of one process share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// The newest grant or revocation.
    pub newest: Stamp,
    /// The newest revocation; 0 for none.
    pub fence: Stamp,
    /// The highest epoch that was granted. Epochs in requests count for nothing here.
    pub epoch_min: u64,
    pub permit: Option<Permit>,
    /// The workers that have taken a permit and not released it.
    pub workers: Vec<Listed>,
}

/// A worker that may have writes in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listed {
    pub worker: WorkerId,
    /// The oldest permit of which something may be in flight.
    pub since: Stamp,
    /// Until then something may be in flight: the end of the newest permit that it took, and as
    /// long as a write lives by the policy that it had.
    pub until: u64,
}

impl Ledger {
    /// Installs a grant that was asked for at `asked` under these `terms`; false where it is not to
    /// be used.
    pub fn install(&mut self, grant: &Grant, asked: u64, now: u64, terms: &Terms) -> bool {
        let older = grant.stamp < self.newest || grant.stamp <= self.fence;
        if older && terms.keeps(Clause::GrantNotOlder) || grant.stamp.epoch < self.epoch_min {
            return false;
        }
        let from = match terms.keeps(Clause::GrantFromAsk) {
            true => asked,
            false => now,
        };
        let until = from.saturating_add(grant.ttl);
        if until <= now {
            return false;
        }
        self.newest = self.newest.max(grant.stamp);
        self.epoch_min = self.epoch_min.max(grant.stamp.epoch);
        self.permit = Some(Permit {
            stamp: grant.stamp,
            until,
            terms: terms.id,
        });
        true
    }

    /// A revocation of everything from before `fence`.
    pub fn revoke(&mut self, fence: Stamp) {
        self.fence = self.fence.max(fence);
        self.newest = self.newest.max(fence);
        if self.permit.is_some_and(|permit| permit.stamp < self.fence) {
            self.permit = None;
        }
    }

    /// The clock cannot be relied on: the permit may have expired.
    pub fn forget(&mut self) {
        self.permit = None;
    }

    /// A worker, whose policy has these `terms`, takes the permit, and is listed with it. `busy`
    /// says whether [something else](Worker::busy) may be under way there.
    pub fn take(
        &mut self,
        worker: WorkerId,
        busy: bool,
        now: u64,
        terms: &Terms,
    ) -> Option<Permit> {
        let permit = self.permit.filter(|permit| permit.until > now)?;
        if !permit.is_under(terms) {
            return None;
        }
        if !terms.keeps(Clause::WorkerListed) {
            return Some(permit);
        }
        // The longest that it may have a write under way, by the policy that it has now.
        let until = permit.until.saturating_add(terms.write_drain_waited);
        match self
            .workers
            .iter_mut()
            .find(|listed| listed.worker == worker)
        {
            Some(listed) => {
                listed.until = listed.until.max(until);
                if !busy {
                    listed.since = permit.stamp;
                }
            }
            None => self.workers.push(Listed {
                worker,
                since: permit.stamp,
                until,
            }),
        }
        Some(permit)
    }

    /// A worker holds nothing and has nothing in flight.
    pub fn release(&mut self, worker: WorkerId) {
        self.workers.retain(|listed| listed.worker != worker);
    }

    /// The fence of which nothing older is in flight, and never will be; none while something is.
    pub fn drained(&mut self, now: u64, terms: &Terms) -> Option<Stamp> {
        let lives_on =
            |listed: &Listed| listed.until > now && terms.keeps(Clause::LostWorkerCounted);
        self.workers.retain(lives_on);
        let fence = Some(self.fence).filter(|fence| *fence > Stamp::default())?;
        let mut workers = self.workers.iter();
        workers.all(|listed| listed.since > fence).then_some(fence)
    }
}

/// The state of one cell that one worker keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Worker {
    permit: Option<Permit>,
    in_flight: u32,
    /// Until then a write may be under way that ended here without an answer; inclusive.
    abandoned_until: Option<u64>,
    /// Listed in the ledger.
    listed: bool,
}

impl Worker {
    /// A write comes: it counts as in flight before anything is looked at. Each needs an
    /// [`end`](Worker::end), or is [abandoned](Worker::abandon).
    pub fn begin(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// The epoch for which a write that was counted may go on. `terms` are those of the worker's
    /// policy now: it may have another one than when it took the permit, also an older one, and
    /// another cell for a key.
    pub fn admits(&self, now: u64, terms: &Terms) -> Option<u64> {
        let permit = self.permit.filter(|permit| permit.until > now)?;
        permit.is_under(terms).then_some(permit.stamp.epoch)
    }

    /// Whether a permit is held, run out or not.
    pub fn holds(&self) -> bool {
        self.permit.is_some()
    }

    /// Whether a write may be under way besides the one that was just counted.
    pub fn busy(&self, now: u64) -> bool {
        self.in_flight > 1 || self.abandoned(now)
    }

    fn abandoned(&self, now: u64) -> bool {
        self.abandoned_until.is_some_and(|until| until >= now)
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Stores the result of [`Ledger::take`].
    pub fn took(&mut self, permit: Option<Permit>) {
        self.permit = permit;
        self.listed |= permit.is_some();
    }

    /// A write is over: it was answered, or never left.
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A write that was admitted at `begun` has ended without a complete answer: the client is
    /// gone, or the instance's answer broke off. The instance may go on with it for as long as a
    /// write lives.
    pub fn abandon(&mut self, begun: u64, terms: &Terms) {
        if terms.keeps(Clause::AbandonedCounted) {
            let until = begun.saturating_add(terms.write_drain_waited);
            self.abandoned_until = self.abandoned_until.max(Some(until));
        }
        self.end();
    }

    /// The ledger has this fence, and this much of a permit.
    pub fn fenced(&mut self, ledger: &Ledger) {
        let valid = |held: &Permit| {
            let of_ledger = ledger.permit.is_some_and(|p| p.stamp == held.stamp);
            of_ledger && held.stamp > ledger.fence && held.stamp.epoch >= ledger.epoch_min
        };
        if !self.permit.as_ref().is_some_and(valid) {
            self.permit = None;
        }
    }

    /// Whether the worker should now [let go](Worker::release) of the ledger: it holds nothing, and
    /// nothing is under way.
    pub fn can_release(&self, now: u64, terms: &Terms) -> bool {
        let in_flight = self.in_flight > 0 || self.abandoned(now);
        let idle = !in_flight || !terms.keeps(Clause::InFlightCounted);
        self.listed && idle && self.permit.is_none()
    }

    /// Whether it stands in the ledger.
    pub fn listed(&self) -> bool {
        self.listed
    }

    /// It was taken off the ledger.
    pub fn release(&mut self) {
        self.listed = false;
    }

    /// The clock cannot be relied on.
    pub fn forget(&mut self) {
        self.permit = None;
    }
}

/// How a process asks for grants: one question at a time, and only its own answer counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Asker {
    nonce: u64,
    /// When the open question was asked.
    asked: Option<u64>,
}

impl Asker {
    /// Asks: the number of the question. An older one is no longer waited for.
    pub fn ask(&mut self, now: u64) -> u64 {
        self.nonce = self.nonce.wrapping_add(1);
        self.asked = Some(now);
        self.nonce
    }

    /// When the question was asked that is answered here; none where it is not the open one.
    pub fn answered(&mut self, nonce: u64, terms: &Terms) -> Option<u64> {
        if nonce != self.nonce && terms.keeps(Clause::GrantMatched) {
            return None;
        }
        self.asked.take()
    }

    /// When the open question was asked.
    pub fn open_since(&self) -> Option<u64> {
        self.asked
    }
}
