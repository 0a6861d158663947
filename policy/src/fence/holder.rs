//! A proxy that holds grants: the state that its workers share, the state of each worker, and its
//! requests for grants.
//!
//! The workers of a process share a [`Ledger`] for each cell, which they change by
//! compare-and-swap. A [`Worker`] takes a permit from the ledger and admits writes by it without
//! another look. The ledger lists every worker that has taken a permit, so a fence is acknowledged
//! only when each of them has released it and has no write in flight. A worker that was lost with
//! its memory stays listed for as long as a write that it admitted may live.

use alloc::vec::Vec;

use super::{Clause, Grant, Stamp, Terms, TermsId};

/// A worker of a proxy, identified by a random number. A rebuilt worker gets another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// A grant in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Permit {
    pub stamp: Stamp,
    /// When it expires, by the process's clock, exclusive.
    pub until: u64,
    /// The terms of the policy under which it was requested.
    pub terms: TermsId,
}

impl Permit {
    /// Whether it is valid under a policy of these terms.
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
    /// The highest epoch that was granted. Epochs in requests do not change it.
    pub epoch_min: u64,
    pub permit: Option<Permit>,
    /// The workers that have taken a permit and not released it.
    pub workers: Vec<Listed>,
}

/// A worker that may have writes in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listed {
    pub worker: WorkerId,
    /// The oldest permit whose writes may be in flight.
    pub since: Stamp,
    /// Until then a write may be in flight: the end of the newest permit that it took, plus the
    /// lifetime of writes under its policy at that time.
    pub until: u64,
}

impl Ledger {
    /// Installs a grant that was requested at `asked` under these `terms`; false if it is not
    /// usable.
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

    /// The clock is unreliable: the permit may have expired.
    pub fn forget(&mut self) {
        self.permit = None;
    }

    /// A worker, whose policy has these `terms`, takes the permit and is listed with it. `busy`
    /// says whether [another write](Worker::busy) may be under way there.
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
        // The longest that it may have a write under way, by its present policy.
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

    /// A worker holds no permit and has no write in flight.
    pub fn release(&mut self, worker: WorkerId) {
        self.workers.retain(|listed| listed.worker != worker);
    }

    /// The newest fence before which no write is in flight, or ever will be; none while one may be.
    pub fn drained(&mut self, now: u64, terms: &Terms) -> Option<Stamp> {
        let lives_on =
            |listed: &Listed| listed.until > now && terms.keeps(Clause::LostWorkerCounted);
        self.workers.retain(lives_on);
        let fence = Some(self.fence).filter(|fence| *fence > Stamp::default())?;
        let mut workers = self.workers.iter();
        workers.all(|listed| listed.since > fence).then_some(fence)
    }
}

/// The state of one cell in one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Worker {
    permit: Option<Permit>,
    in_flight: u32,
    /// Until then a write that ended here without a response may be under way; inclusive.
    abandoned_until: Option<u64>,
    /// Listed in the ledger.
    listed: bool,
}

impl Worker {
    /// A write arrives. It counts as in flight before the permit is checked. Each needs an
    /// [`end`](Worker::end), or is [abandoned](Worker::abandon).
    pub fn begin(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// The epoch that admits a write which was counted. `terms` are those of the worker's present
    /// policy. That policy may be newer or older than the one under which it took the permit, and
    /// may map a key to another cell.
    pub fn admits(&self, now: u64, terms: &Terms) -> Option<u64> {
        let permit = self.permit.filter(|permit| permit.until > now)?;
        permit.is_under(terms).then_some(permit.stamp.epoch)
    }

    /// Whether it holds a permit, expired or not.
    pub fn holds(&self) -> bool {
        self.permit.is_some()
    }

    /// Whether a write other than the one just counted may be under way.
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

    /// A write has ended: it was answered, or never sent.
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A write that was admitted at `begun` has ended without a complete response: the client
    /// disconnected, or the instance's response broke off. The instance may work on it for as long
    /// as a write lives.
    pub fn abandon(&mut self, begun: u64, terms: &Terms) {
        if terms.keeps(Clause::AbandonedCounted) {
            let until = begun.saturating_add(terms.write_drain_waited);
            self.abandoned_until = self.abandoned_until.max(Some(until));
        }
        self.end();
    }

    /// Updates from the ledger: its fence, and its permit as far as this worker may use it.
    pub fn fenced(&mut self, ledger: &Ledger) {
        let valid = |held: &Permit| {
            let of_ledger = ledger.permit.is_some_and(|p| p.stamp == held.stamp);
            of_ledger && held.stamp > ledger.fence && held.stamp.epoch >= ledger.epoch_min
        };
        if !self.permit.as_ref().is_some_and(valid) {
            self.permit = None;
        }
    }

    /// Whether the worker should [release](Worker::release) its entry in the ledger: it holds no
    /// permit, and no write is under way.
    pub fn can_release(&self, now: u64, terms: &Terms) -> bool {
        let in_flight = self.in_flight > 0 || self.abandoned(now);
        let idle = !in_flight || !terms.keeps(Clause::InFlightCounted);
        self.listed && idle && self.permit.is_none()
    }

    /// Whether it is listed in the ledger.
    pub fn listed(&self) -> bool {
        self.listed
    }

    /// Its entry was removed from the ledger.
    pub fn release(&mut self) {
        self.listed = false;
    }

    /// The clock is unreliable.
    pub fn forget(&mut self) {
        self.permit = None;
    }
}

/// How a process requests grants: one request at a time. Only the answer to that request counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Asker {
    nonce: u64,
    /// When the open request was sent.
    asked: Option<u64>,
}

impl Asker {
    /// Sends a request and returns its number. An earlier request is abandoned.
    pub fn ask(&mut self, now: u64) -> u64 {
        self.nonce = self.nonce.wrapping_add(1);
        self.asked = Some(now);
        self.nonce
    }

    /// When the answered request was sent; none if it is not the open one.
    pub fn answered(&mut self, nonce: u64, terms: &Terms) -> Option<u64> {
        if nonce != self.nonce && terms.keeps(Clause::GrantMatched) {
            return None;
        }
        self.asked.take()
    }

    /// When the open request was sent.
    pub fn open_since(&self) -> Option<u64> {
        self.asked
    }
}
