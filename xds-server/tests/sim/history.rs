//! The admitted writes. Each is checked as it happens.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use policy::fence::Authority;

/// The history of writes, cell by cell. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    cells: BTreeMap<String, OfCell>,
    /// By key, the writes in flight: the cell, and the end.
    keys: BTreeMap<u64, BTreeMap<u64, (String, Duration)>>,
    admitted: u64,
    refused: u64,
    violations: Vec<String>,
}

/// The history of writes to one cell.
#[derive(Default)]
struct OfCell {
    /// Owners by epoch, as the store had them.
    owners: BTreeMap<u64, Vec<String>>,
    /// Writes in flight, by number: epoch, zone, and the end at the upstream. A proxy that is
    /// stopped meanwhile notices that later. Only storage can reject, by the epoch, a write that
    /// was not sent yet when its proxy was stopped.
    in_flight: BTreeMap<u64, (u64, String, Duration)>,
    admitted: u64,
    epoch_max: u64,
    last: Option<Duration>,
    /// The longest time without an admitted write since [`History::mark`].
    gap: Duration,
}

impl History {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The store has this authority now.
    pub(crate) fn authority(&self, cell: &str, authority: &Authority) {
        let owners = authority.owners.iter().map(|owner| owner.to_string());
        let owners: Vec<String> = owners.collect();
        let mut inner = self.inner();
        let of_cell = inner.cells.entry(cell.to_owned()).or_default();
        let before = of_cell.owners.insert(authority.epoch, owners.clone());
        if let Some(before) = before.filter(|before| *before != owners) {
            let epoch = authority.epoch;
            let violation =
                format!("epoch {epoch} of {cell} had the owners {before:?}, now {owners:?}");
            inner.violations.push(violation);
        }
    }

    /// A write begins that will end at `ends`: returns its number.
    pub(crate) fn begin(
        &self,
        at: Duration,
        ends: Duration,
        zone: &str,
        cell: &str,
        epoch: u64,
    ) -> u64 {
        let mut inner = self.inner();
        let number = inner.admitted;
        inner.admitted += 1;
        let of_cell = inner.cells.entry(cell.to_owned()).or_default();
        of_cell.in_flight.retain(|_, (.., ends)| *ends > at);
        of_cell.admitted += 1;
        let silence = of_cell
            .last
            .map_or(Duration::ZERO, |last| at.saturating_sub(last));
        of_cell.gap = of_cell.gap.max(silence);
        of_cell.last = Some(at);
        let mut found = Vec::new();
        let others = of_cell.in_flight.values();
        if let Some((other, there, _)) = others.into_iter().find(|(other, ..)| *other != epoch) {
            found.push(format!(
                "{at:?}: {zone} writes to {cell} for epoch {epoch} while {there} writes for {other}"
            ));
        }
        if epoch < of_cell.epoch_max {
            let max = of_cell.epoch_max;
            found.push(format!(
                "{at:?}: {zone} writes to {cell} for epoch {epoch} after {max}"
            ));
        }
        let owners = of_cell.owners.get(&epoch);
        if !owners.is_some_and(|owners| owners.iter().any(|owner| owner == zone)) {
            found.push(format!(
                "{at:?}: {zone} writes to {cell} for epoch {epoch}, which is {owners:?}'s"
            ));
        }
        of_cell.epoch_max = of_cell.epoch_max.max(epoch);
        let in_flight = (epoch, zone.to_owned(), ends);
        of_cell.in_flight.insert(number, in_flight);
        inner.violations.extend(found);
        number
    }

    /// Sets the key of a write, which belongs to one cell at a time.
    pub(crate) fn about(&self, number: u64, at: Duration, ends: Duration, key: u64, cell: &str) {
        let mut inner = self.inner();
        let of_key = inner.keys.entry(key).or_default();
        of_key.retain(|_, (_, ends)| *ends > at);
        let other = of_key.values().find(|(other, _)| other != cell);
        let other = other.map(|(other, _)| other.clone());
        of_key.insert(number, (cell.to_owned(), ends));
        if let Some(other) = other {
            let violation = format!("{at:?}: key {key} is written to in {cell} and in {other}");
            inner.violations.push(violation);
        }
    }

    pub(crate) fn end(&self, number: u64) {
        for of_key in self.inner().keys.values_mut() {
            of_key.remove(&number);
        }
        for of_cell in self.inner().cells.values_mut() {
            of_cell.in_flight.remove(&number);
        }
    }

    pub(crate) fn refused(&self) {
        self.inner().refused += 1;
    }

    pub(crate) fn admitted(&self) -> u64 {
        self.inner().admitted
    }

    pub(crate) fn refusals(&self) -> u64 {
        self.inner().refused
    }

    /// The number of admitted writes to each cell.
    pub(crate) fn admitted_by_cell(&self) -> BTreeMap<String, u64> {
        let inner = self.inner();
        let cells = inner.cells.iter();
        cells
            .map(|(cell, of_cell)| (cell.clone(), of_cell.admitted))
            .collect()
    }

    /// Resets the gaps.
    pub(crate) fn mark(&self) {
        for of_cell in self.inner().cells.values_mut() {
            of_cell.gap = Duration::ZERO;
        }
    }

    /// The longest time without a write to a cell since the mark.
    pub(crate) fn gap(&self, cell: &str) -> Duration {
        self.inner()
            .cells
            .get(cell)
            .map_or(Duration::MAX, |of_cell| of_cell.gap)
    }

    pub(crate) fn epoch_max(&self) -> u64 {
        let inner = self.inner();
        let epochs = inner.cells.values().map(|of_cell| of_cell.epoch_max);
        epochs.max().unwrap_or(0)
    }

    /// The highest epoch that any store has seen, used or not: an operator recovers a cell above
    /// it.
    pub(crate) fn epoch_seen(&self) -> u64 {
        let inner = self.inner();
        let epochs = inner
            .cells
            .values()
            .flat_map(|of_cell| of_cell.owners.keys());
        epochs.max().copied().unwrap_or(0)
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }
}
