//! The permits of one worker, and its writes in flight.

use std::collections::BTreeMap;

use policy::fence::{Name, Terms, Worker, WorkerId};

use super::{
    ledger,
    process::{Process, Reading},
};
use crate::metrics::Metric;

/// A worker's part in every cell. One for the life of its memory: policies come and go, writes in
/// flight stay.
#[derive(Debug)]
pub struct Permits {
    me: WorkerId,
    /// Cells with a permit or a write in flight, and a few more until the next look.
    cells: BTreeMap<Name, Held>,
}

#[derive(Debug, Default)]
struct Held {
    worker: Worker,
    /// The lead of the wall clock when its permit was asked for.
    lead_us: i64,
}

/// A write that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub epoch: u64,
    /// When, by the monotonic clock.
    pub at_us: u64,
}

impl Held {
    fn admits(&self, at: Reading, terms: &Terms) -> Option<Admitted> {
        Some(Admitted {
            epoch: self.worker.admits(at.monotonic_us, terms)?,
            at_us: at.monotonic_us,
        })
    }

    fn release_if_idle(
        &mut self,
        cell: &str,
        me: WorkerId,
        at: Reading,
        terms: &Terms,
        process: &mut (impl Process + ?Sized),
    ) {
        // Where this fails it is tried again at the next look.
        if self.worker.can_release(at.monotonic_us, terms)
            && ledger::change(process, cell, |entry| entry.ledger.release(me)).is_some()
        {
            self.worker.release();
        }
    }
}

impl Permits {
    pub fn new(me: WorkerId) -> Permits {
        Permits {
            me,
            cells: BTreeMap::new(),
        }
    }

    pub fn me(&self) -> WorkerId {
        self.me
    }

    /// A write comes: it counts as in flight from here on, and until it is [over](Permits::end) or
    /// [abandoned](Permits::abandon), whatever the answer is. The answer is that it is admitted,
    /// and for which epoch.
    pub fn admit(
        &mut self,
        cell: &str,
        terms: &Terms,
        process: &mut (impl Process + ?Sized),
    ) -> Option<Admitted> {
        if !self.cells.contains_key(cell) {
            self.cells.insert(Name::from(cell), Held::default());
        }
        self.cells.get_mut(cell)?.worker.begin();
        let at = process.now()?;
        self.forget_if_jumped(at, process);
        let held = self.cells.get_mut(cell)?;
        if let Some(admitted) = held.admits(at, terms) {
            return Some(admitted);
        }
        let me = self.me;
        let busy = held.worker.busy(at.monotonic_us);
        let (permit, lead_us) = ledger::change(process, cell, |entry| {
            (entry.take(me, busy, at, terms), entry.lead_us)
        })?;
        held.worker.took(permit);
        held.lead_us = lead_us;
        // Taking it took time.
        held.admits(process.now()?, terms)
    }

    /// A write is over, or was not admitted.
    pub fn end(&mut self, cell: &str, terms: &Terms, process: &mut (impl Process + ?Sized)) {
        if let Some(held) = self.cells.get_mut(cell) {
            held.worker.end();
            self.release_if_fenced(cell, terms, process);
        }
    }

    /// A write that was admitted then has ended without a complete answer: it may go on for as long
    /// as a write lives.
    pub fn abandon(
        &mut self,
        cell: &str,
        admitted_us: u64,
        terms: &Terms,
        process: &mut (impl Process + ?Sized),
    ) {
        if let Some(held) = self.cells.get_mut(cell) {
            held.worker.abandon(admitted_us, terms);
            self.release_if_fenced(cell, terms, process);
        }
    }

    /// At once where a fence waits for it. While a permit is held no clock need be read.
    fn release_if_fenced(
        &mut self,
        cell: &str,
        terms: &Terms,
        process: &mut (impl Process + ?Sized),
    ) {
        let me = self.me;
        if let Some(held) = self.cells.get_mut(cell)
            && !held.worker.holds()
            && let Some(at) = process.now()
        {
            held.release_if_idle(cell, me, at, terms, process);
        }
    }

    /// Checks whether the permits are still good. To be called every few milliseconds.
    pub fn look(&mut self, terms: &Terms, process: &mut (impl Process + ?Sized)) {
        if self.cells.is_empty() {
            return;
        }
        let Some(at) = process.now() else {
            // Without a clock nothing is known to be valid. Listed workers stay listed.
            self.forget();
            return;
        };
        self.forget_if_jumped(at, process);
        let listed = (self.cells.iter()).filter(|(_, held)| held.worker.listed());
        let listed: Vec<Name> = listed.map(|(cell, _)| Name::clone(cell)).collect();
        for cell in listed {
            self.look_at(&cell, at, terms, process);
        }
        self.cells
            .retain(|_, held| held.worker.listed() || held.worker.in_flight() > 0);
    }

    fn look_at(
        &mut self,
        cell: &str,
        at: Reading,
        terms: &Terms,
        process: &mut (impl Process + ?Sized),
    ) {
        let me = self.me;
        let Some(held) = self.cells.get_mut(cell) else {
            return;
        };
        match ledger::read(process, cell) {
            Some(entry) => {
                held.worker.fenced(&entry.ledger);
                held.release_if_idle(cell, me, at, terms, process);
            }
            None => held.worker.forget(),
        }
    }

    fn forget_if_jumped(&mut self, at: Reading, process: &mut (impl Process + ?Sized)) {
        let jumped = |at: Reading| {
            let mut cells = self.cells.values();
            cells.any(|held| held.worker.holds() && at.jumped_since(held.lead_us))
        };
        // The two clocks are read one after the other: looked at again, lest a pause between the
        // two counts for a jump.
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
