//! What was admitted, and whether it was right: checked as it happens.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use policy::fence::Authority;

/// Everything that happened about writes to the one cell. Copies are the same one.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// Owners by epoch, as the store had them.
    owners: BTreeMap<u64, Vec<String>>,
    /// Writes in flight, by number: epoch, zone, and when it is over at the upstream. A proxy that is stopped meanwhile notices
    /// that later; what it has not sent yet when it is stopped only storage can refuse, by the epoch.
    in_flight: BTreeMap<u64, (u64, String, Duration)>,
    admitted: u64,
    refused: u64,
    epoch_max: u64,
    last: Option<Duration>,
    violations: Vec<String>,
}

impl History {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The store has this authority now.
    pub(crate) fn authority(&self, authority: &Authority) {
        let owners = authority.owners.iter().map(|owner| owner.to_string());
        let owners: Vec<String> = owners.collect();
        let mut inner = self.inner();
        let before = inner.owners.insert(authority.epoch, owners.clone());
        if let Some(before) = before.filter(|before| *before != owners) {
            let epoch = authority.epoch;
            let violation = format!("epoch {epoch} had the owners {before:?}, now {owners:?}");
            inner.violations.push(violation);
        }
    }

    /// A write begins that will be over at `ends`: its number.
    pub(crate) fn begin(&self, at: Duration, ends: Duration, zone: &str, epoch: u64) -> u64 {
        let mut inner = self.inner();
        inner.in_flight.retain(|_, (.., ends)| *ends > at);
        let number = inner.admitted;
        inner.admitted += 1;
        inner.last = Some(at);
        let mut found = Vec::new();
        let others = inner.in_flight.values();
        if let Some((other, there, _)) = others.into_iter().find(|(other, ..)| *other != epoch) {
            found.push(format!(
                "{at:?}: {zone} writes for epoch {epoch} while {there} writes for {other}"
            ));
        }
        if epoch < inner.epoch_max {
            let max = inner.epoch_max;
            found.push(format!(
                "{at:?}: {zone} writes for epoch {epoch} after {max}"
            ));
        }
        let owners = inner.owners.get(&epoch);
        if !owners.is_some_and(|owners| owners.iter().any(|owner| owner == zone)) {
            found.push(format!(
                "{at:?}: {zone} writes for epoch {epoch}, which is {owners:?}'s"
            ));
        }
        inner.violations.extend(found);
        inner.epoch_max = inner.epoch_max.max(epoch);
        inner
            .in_flight
            .insert(number, (epoch, zone.to_owned(), ends));
        number
    }

    pub(crate) fn end(&self, number: u64) {
        self.inner().in_flight.remove(&number);
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

    pub(crate) fn epoch_max(&self) -> u64 {
        self.inner().epoch_max
    }

    /// The highest epoch that any store has seen, used or not: what an operator begins anew above.
    pub(crate) fn epoch_seen(&self) -> u64 {
        self.inner().owners.keys().max().copied().unwrap_or(0)
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }
}
