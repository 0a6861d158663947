//! Requests of replicas to the store.

use std::sync::Arc;

use policy::fence::{Clause, Input, Revision, Transaction, TransactionOutcome, Write};

use super::Change;
use crate::{Mutation, Request, Speed, store::Store};

impl Change<'_> {
    pub(super) fn request(&mut self, index: usize, number: u64, transaction: Transaction) {
        let (there, _) = self.speeds(index, &transaction);
        let host = self.host(index);
        host.requests.push(Request {
            number,
            transaction,
            outcome: None,
            timed_out: false,
        });
        let last = host.requests.len() - 1;
        match there {
            Speed::AtOnce if !host.cut => self.apply(index, last),
            Speed::AtOnce | Speed::Late => {}
            Speed::Never => drop(host.requests.remove(last)),
        }
    }

    /// The speed of a request, and of its answer.
    pub(super) fn speeds(&self, index: usize, transaction: &Transaction) -> (Speed, Speed) {
        let (_, lines) = self.scenario.hosts[index];
        match transaction.writes[..] {
            [] if !self.scenario.rounds => (Speed::Never, Speed::Never),
            [] => (lines.confirmations, Speed::AtOnce),
            [Write::Session(_)] => (lines.renewals, lines.renewal_answers),
            [Write::Terms(_)] => (Speed::AtOnce, Speed::AtOnce),
            _ => (lines.steps, lines.step_answers),
        }
    }

    /// The store receives a replica's request.
    pub(crate) fn apply(&mut self, index: usize, request: usize) {
        let host = self.host(index);
        let transaction = host.requests[request].transaction.clone();
        let outcome = match self.commit(&transaction) {
            Some(revision) => TransactionOutcome::Committed(revision),
            None => TransactionOutcome::Refused,
        };
        let (_, back) = self.speeds(index, &transaction);
        let late = self.late_answers_count();
        let host = self.host(index);
        host.requests[request].outcome = Some(outcome);
        if host.requests[request].timed_out && !late {
            host.requests.remove(request);
        } else if back == Speed::AtOnce && !host.cut {
            self.answer(index, request);
        }
    }

    /// A replica receives the answer to a request.
    pub(crate) fn answer(&mut self, index: usize, request: usize) {
        let request = self.host(index).requests.remove(request);
        let number = request.number;
        if let Some(outcome) = request.outcome {
            self.tell(index, Input::Answer { number, outcome });
        }
    }

    /// A replica abandons a request.
    pub(crate) fn time_out(&mut self, index: usize, request: usize) {
        let request = &mut self.host(index).requests[request];
        request.timed_out = true;
        let number = request.number;
        let outcome = TransactionOutcome::Unknown;
        self.tell(index, Input::Answer { number, outcome });
    }

    /// The store commits a transaction, and notifies all watches.
    pub(crate) fn commit(&mut self, transaction: &Transaction) -> Option<Revision> {
        let store = Arc::make_mut(&mut self.state.store);
        let (revision, told) = store.apply(transaction)?;
        // The cells are in the order of their names.
        for (at, (_, authority)) in store.authorities().enumerate() {
            let epoch = (at, authority.epoch);
            if !self.state.owners.contains_key(&epoch) {
                let owners = Arc::make_mut(&mut self.state.owners);
                owners.insert(epoch, authority.owners.clone());
            }
        }
        for index in 0..self.state.hosts.len() {
            if self.state.hosts[index].replica.is_none() || told.is_empty() {
                continue;
            }
            match self.scenario.hosts[index].1.watch {
                Speed::AtOnce if !self.state.hosts[index].cut => {
                    for input in &told {
                        self.tell(index, input.clone());
                    }
                }
                Speed::AtOnce | Speed::Late => {
                    self.host(index).untold.push_back(told.clone());
                }
                Speed::Never => {}
            }
        }
        Some(revision)
    }

    /// Whether a disabled rule makes late answers count.
    pub(crate) fn late_answers_count(&self) -> bool {
        !self.scenario.terms.keeps(Clause::RenewalMatched)
    }

    /// Another store answers, with the content of the backup.
    pub(crate) fn restore(&mut self) {
        let Some(backup) = self.state.backup.take() else {
            return;
        };
        let mut store = Store::clone(&backup);
        store.id = self.state.store.id + 1;
        self.state.store = Arc::new(store);
        self.state.orphans.clear();
        for index in 0..self.state.hosts.len() {
            let host = self.host(index);
            host.untold.clear();
            host.requests.clear();
            if host.replica.is_some() && !self.mutated(Mutation::RestoreUnnoticed) {
                self.tell(index, Input::Doubted);
            }
        }
    }

    /// A replica lists the store. Events that have not reached it by then are lost.
    pub(crate) fn relist(&mut self, index: usize) {
        let mut listing = self.state.store.list();
        if self.mutated(Mutation::StoreIdKept) || self.mutated(Mutation::RestoreUnnoticed) {
            listing.store = 1;
        }
        self.host(index).untold.clear();
        self.tell(index, Input::Listed(listing));
    }
}
