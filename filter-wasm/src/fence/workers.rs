//! What one worker holds, and its writes in flight.

use std::collections::BTreeMap;

use policy::fence::{Name, Terms, Worker, WorkerId};

use super::{
    ledger,
    process::{Process, Reading},
};
use crate::metrics::Metric;

/// A worker's part in every cell. One for the life of its memory: policies come and go, writes in flight stay.
#[derive(Debug)]
pub struct Workers {
    me: WorkerId,
    /// Those of which something is held or in flight, and a few more until the next look.
    cells: BTreeMap<Name, Held>,
}

#[derive(Debug, Default)]
struct Held {
    worker: Worker,
    /// The lead of the wall clock when its permit was asked for.
    lead_us: i64,
}

impl Held {
    fn holds(&self) -> bool {
        self.worker.admits(0).is_some()
    }

    fn let_go(&mut self, cell: &str, me: WorkerId, process: &mut (impl Process + ?Sized)) {
        // Where this fails it is tried again at the next look.
        if ledger::change(process, cell, |entry| entry.ledger.let_go(me)).is_some() {
            self.worker.let_go();
        }
    }
}

impl Workers {
    pub fn new(me: WorkerId) -> Workers {
        Workers {
            me,
            cells: BTreeMap::new(),
        }
    }

    pub fn me(&self) -> WorkerId {
        self.me
    }

    /// A write comes: it counts as in flight from here on, and until [`end`](Workers::end), whatever the answer is. The
    /// answer is the epoch for which it is admitted.
    pub fn admit(
        &mut self,
        cell: &str,
        terms: &Terms,
        process: &mut (impl Process + ?Sized),
    ) -> Option<u64> {
        if !self.cells.contains_key(cell) {
            self.cells.insert(Name::from(cell), Held::default());
        }
        self.cells.get_mut(cell)?.worker.begin();
        let at = process.now()?;
        self.forget_if_jumped(at, process);
        let held = self.cells.get_mut(cell)?;
        if let Some(epoch) = held.worker.admits(at.monotonic_us) {
            return Some(epoch);
        }
        let me = self.me;
        let others = held.worker.others_in_flight();
        let (permit, lead_us) = ledger::change(process, cell, |entry| {
            (entry.take(me, others, at, terms), entry.lead_us)
        })?;
        held.worker.took(permit);
        held.lead_us = lead_us;
        // Taking it took time.
        held.worker.admits(process.now()?.monotonic_us)
    }

    /// A write is over, or was not admitted.
    pub fn end(&mut self, cell: &str, terms: &Terms, process: &mut (impl Process + ?Sized)) {
        let me = self.me;
        if let Some(held) = self.cells.get_mut(cell)
            && held.worker.end(terms)
        {
            held.let_go(cell, me, process);
        }
    }

    /// Another zone has named a newer epoch: this one is behind, and gives up what it holds of older ones.
    pub fn behind(
        &mut self,
        cell: &str,
        epoch: u64,
        terms: &Terms,
        process: &mut (impl Process + ?Sized),
    ) {
        ledger::change(process, cell, |entry| entry.ledger.behind(epoch));
        self.look_at(cell, terms, process);
    }

    /// Looks whether what is held is still good. To be called every few milliseconds.
    pub fn look(&mut self, terms: &Terms, process: &mut (impl Process + ?Sized)) {
        if self.cells.is_empty() {
            return;
        }
        match process.now() {
            Some(at) => self.forget_if_jumped(at, process),
            None => self.forget(),
        }
        let listed = (self.cells.iter()).filter(|(_, held)| held.worker.listed());
        let listed: Vec<Name> = listed.map(|(cell, _)| Name::clone(cell)).collect();
        for cell in listed {
            self.look_at(&cell, terms, process);
        }
        self.cells
            .retain(|_, held| held.worker.listed() || held.worker.in_flight() > 0);
    }

    fn look_at(&mut self, cell: &str, terms: &Terms, process: &mut (impl Process + ?Sized)) {
        let me = self.me;
        let Some(held) = self.cells.get_mut(cell) else {
            return;
        };
        match ledger::read(process, cell) {
            Some(entry) => {
                if held.worker.fenced(&entry.ledger, terms) {
                    held.let_go(cell, me, process);
                }
            }
            None => held.worker.forget(),
        }
    }

    fn forget_if_jumped(&mut self, at: Reading, process: &mut (impl Process + ?Sized)) {
        let jumped = |at: Reading| {
            let mut cells = self.cells.values();
            cells.any(|held| held.holds() && at.jumped_since(held.lead_us))
        };
        // The two clocks are read one after the other: looked at again, lest a pause between the two counts for a jump.
        if jumped(at) && process.now().is_none_or(jumped) {
            self.forget();
            process.count(Metric::ClockAnomalies, 1);
        }
    }

    fn forget(&mut self) {
        for held in self.cells.values_mut() {
            held.worker.forget();
        }
    }
}
