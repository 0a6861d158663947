//! A process of a proxy, and how it uses the fence.

use policy::fence::{Asker, Grant, HolderId, Ledger, Stamp, Terms, TermsId, Worker, WorkerId};

use crate::Mutation;

/// One process. During a hot restart a node has two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    pub zone: usize,
    pub clock: u64,
    pub holder: HolderId,
    pub ledger: Ledger,
    pub workers: Vec<(WorkerId, Worker)>,
    pub writes: Vec<InFlight>,
    /// The longest that its routes let a write live.
    pub drain: u64,
    /// The policy of each worker. The first worker sends requests and acknowledgements for all.
    pub policies: Vec<Policy>,
    /// The policy that the control plane offers now.
    pub offered: Offered,
    /// The policies that were offered before. The proxy may connect to a lagging replica that still
    /// offers one of them.
    pub earlier: Vec<Policy>,
    asker: Asker,
    /// The terms sent with the open request.
    said_terms: TermsId,
    /// The newest fence that it has acknowledged.
    said: Stamp,
    workers_built: u64,
}

/// An offer of a control plane to a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offered {
    /// The longest that its routes let a write live.
    pub drain: u64,
    pub policy: Policy,
}

/// The content of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policy {
    /// The terms of its agreement.
    pub terms: TermsId,
    /// The longest lifetime of a write that it admits.
    pub drain: u64,
    /// How long others wait for such a write.
    pub drain_waited: u64,
}

/// A write that was admitted and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InFlight {
    pub epoch: u64,
    /// By the clock of the process: when it was admitted, and the last moment of its lifetime.
    pub since: u64,
    pub until: u64,
    /// The worker that counts it; none if that worker was lost, or gets no more events of it.
    pub worker: Option<WorkerId>,
}

impl Proxy {
    pub fn new(zone: usize, holder: HolderId, workers: u64) -> Proxy {
        let each = (1..=workers).map(|number| (WorkerId(number), Worker::default()));
        Proxy {
            zone,
            clock: 0,
            holder,
            ledger: Ledger::default(),
            workers: each.collect(),
            writes: Vec::new(),
            drain: 0,
            policies: vec![Policy::default(); workers as usize],
            offered: Offered::default(),
            earlier: Vec::new(),
            asker: Asker::default(),
            said_terms: TermsId::NONE,
            said: Stamp::default(),
            workers_built: workers,
        }
    }

    /// Whether it has a policy.
    pub fn is_given(&self) -> bool {
        self.offered != Offered::default()
    }

    /// It applies the offered routes.
    pub fn take_routes(&mut self) {
        self.drain = self.offered.drain;
    }

    /// A worker applies the offered policy.
    pub fn take_policy(&mut self, worker: usize) {
        self.policies[worker] = self.offered.policy;
    }

    /// A worker applies an earlier policy.
    pub fn take_earlier_policy(&mut self, worker: usize, earlier: usize) {
        self.policies[worker] = self.earlier[earlier];
    }

    /// The terms of a worker's policy.
    fn terms_of(&self, worker: usize, terms: &Terms) -> Terms {
        let policy = self.policies[worker];
        Terms {
            id: policy.terms,
            write_drain: policy.drain,
            write_drain_waited: policy.drain_waited,
            ..terms.clone()
        }
    }

    /// Requests grants: the number of the request, and the terms that it carries.
    pub fn ask(&mut self) -> (u64, TermsId) {
        self.said_terms = self.policies[0].terms;
        (self.asker.ask(self.clock), self.said_terms)
    }

    /// An answer arrives. It counts for the policy at the request.
    pub fn granted(
        &mut self,
        nonce: u64,
        grant: &Grant,
        terms: &Terms,
        mutation: Option<Mutation>,
    ) {
        let terms = self.terms_of(0, terms);
        let of_any = mutation == Some(Mutation::AnswerForAnyPolicy);
        if let Some(asked) = self.asker.answered(nonce, &terms)
            && (self.said_terms == terms.id || of_any)
        {
            self.ledger.install(grant, asked, self.clock, &terms);
        }
    }

    /// A revocation arrives. A repeated one is acknowledged again.
    pub fn revoked(&mut self, fence: Stamp) {
        self.ledger.revoke(fence);
        self.said = Stamp::default();
    }

    /// A write arrives at a worker: returns the epoch for which it was admitted.
    pub fn write(
        &mut self,
        index: usize,
        terms: &Terms,
        mutation: Option<Mutation>,
    ) -> Option<u64> {
        let now = self.clock;
        let terms = &self.terms_of(index, terms);
        let takes_longer = mutation == Some(Mutation::LongerRouteTaken);
        let has_route = self.drain <= terms.write_drain || takes_longer;
        let (id, worker) = &mut self.workers[index];
        worker.begin();
        let mut admitted = worker.admits(now, terms);
        if admitted.is_none() {
            let busy = worker.busy(now);
            worker.took(self.ledger.take(*id, busy, now, terms));
            admitted = worker.admits(now, terms);
        }
        // A route with a longer timeout than the write's policy permits rejects the write.
        admitted = admitted.filter(|_| has_route);
        match admitted {
            Some(epoch) => {
                self.writes.push(InFlight {
                    epoch,
                    since: now,
                    until: now + self.drain,
                    worker: Some(*id),
                });
                self.writes.sort();
                if mutation == Some(Mutation::WriteNotCounted) {
                    worker.end();
                }
            }
            None => self.count_down(index, terms),
        }
        admitted
    }

    /// A write ends.
    pub fn end(&mut self, index: usize, terms: &Terms) {
        let write = self.writes.remove(index);
        let counts = |(id, _): &(WorkerId, Worker)| Some(*id) == write.worker;
        if let Some(worker) = self.workers.iter().position(counts) {
            self.count_down(worker, terms);
        }
    }

    /// The client of a write disconnects: the worker gets no more events of it, and its instance
    /// continues.
    pub fn abandon(&mut self, index: usize, terms: &Terms) {
        let write = &mut self.writes[index];
        let (since, counting) = (write.since, write.worker.take());
        self.writes.sort();
        let counts = |(id, _): &(WorkerId, Worker)| Some(*id) == counting;
        if let Some(worker) = self.workers.iter().position(counts) {
            let terms = &self.terms_of(worker, terms);
            self.workers[worker].1.abandon(since, terms);
            self.release_if_idle(worker, terms);
        }
    }

    fn count_down(&mut self, index: usize, terms: &Terms) {
        self.workers[index].1.end();
        self.release_if_idle(index, terms);
    }

    fn release_if_idle(&mut self, index: usize, terms: &Terms) {
        let now = self.clock;
        let (id, worker) = &mut self.workers[index];
        if worker.can_release(now, terms) {
            self.ledger.release(*id);
            worker.release();
        }
    }

    /// A worker reads the ledger.
    pub fn look(&mut self, index: usize, terms: &Terms) {
        self.workers[index].1.fenced(&self.ledger);
        self.release_if_idle(index, terms);
    }

    /// A worker loses its memory, and is rebuilt. The writes that it admitted live on.
    pub fn lose(&mut self, index: usize, mutation: Option<Mutation>) {
        let lost = self.workers[index].0;
        self.workers_built += 1;
        self.workers[index] = (WorkerId(self.workers_built), Worker::default());
        for write in &mut self.writes {
            if write.worker == Some(lost) {
                write.worker = None;
            }
        }
        if mutation == Some(Mutation::LostWorkerLetsGo) {
            self.ledger.release(lost);
        }
    }

    /// The stamp that it can acknowledge and has not acknowledged yet.
    pub fn acknowledge(&mut self, terms: &Terms, mutation: Option<Mutation>) -> Option<Stamp> {
        let terms = self.terms_of(0, terms);
        let drained = match mutation == Some(Mutation::AcknowledgesOnReceipt) {
            true => Some(self.ledger.fence),
            false => self.ledger.drained(self.clock, &terms),
        };
        let fence = drained.filter(|fence| *fence > self.said)?;
        self.said = fence;
        Some(fence)
    }

    /// Time passes by its clock. Writes are cut off at the end of their longest lifetime.
    pub fn tick(&mut self, by: u64, terms: &Terms) {
        self.clock += by;
        let now = self.clock;
        let over = |write: &InFlight| write.until < now;
        while let Some(index) = self.writes.iter().position(over) {
            self.end(index, terms);
        }
    }
}
