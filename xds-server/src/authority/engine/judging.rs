//! The right zones for cells: those that can serve their writes, and hold grants.

use std::{collections::BTreeSet, sync::Arc};

use policy::{
    ZoneState,
    fence::{Input, Name, moves::better_zone},
};
use tracing::warn;

use super::Engine;

impl Engine {
    /// Applies the states of services.
    pub(super) fn refresh_overview(&mut self) {
        let rules = Arc::clone(&self.sources.rules.borrow());
        let overview = Arc::clone(&self.sources.overviews.borrow_and_update());
        let unfit: BTreeSet<Name> = self.out.keys().cloned().collect();
        self.out.clear();
        for ((service, zone), status) in &overview.statuses {
            let down = status.verdict.state != ZoneState::Up;
            if down && rules.services.contains(&**service) {
                let out = self.out.entry(Name::clone(zone)).or_default();
                out.insert(Name::clone(service));
            }
        }
        let now: BTreeSet<Name> = self.out.keys().cloned().collect();
        if now != unfit {
            self.broadcast(&Input::Unfit(now));
        }
    }

    /// Informs the replicas which zone should have each cell whose owners cannot serve writes.
    pub(super) fn reevaluate(&mut self) {
        let Some(replica) = self.replicas.values().next() else {
            return;
        };
        let unheld = (self.presence).unheld(replica.sessions(), self.now(), replica.terms());
        let mut changed = Vec::new();
        for (cell, _, authority, ..) in replica.cells() {
            let better = authority.and_then(|a| better_zone(a, &self.out, &unheld));
            if self.better.get(cell) != Some(&better) {
                let owners = authority.map_or(&[][..], |authority| &authority.owners);
                let reason = match &better {
                    Some(better) => self.reason(owners, better),
                    None => Name::from(""),
                };
                changed.push((cell.clone(), better, reason));
            }
        }
        if self.presence.unheld_changes(&unheld) {
            self.broadcast(&Input::Unheld(unheld));
        }
        for (cell, zone, reason) in changed {
            if let Some(zone) = &zone {
                warn!(%cell, to = %zone, %reason, "a cell's owners cannot serve its writes: the cell moves, unless its failover is manual or an operator's move holds it");
            }
            self.better.insert(cell.clone(), zone.clone());
            self.broadcast(&Input::Better { cell, zone, reason });
        }
    }

    /// Why a cell should move from its owners to `better`.
    pub(super) fn reason(&self, owners: &[Name], better: &Name) -> Name {
        let none = BTreeSet::new();
        let out = |zone: &Name| self.out.get(zone).unwrap_or(&none);
        let missing = owners
            .iter()
            .flat_map(|owner| out(owner).difference(out(better)));
        let missing: BTreeSet<&str> = missing.map(|service| &**service).collect();
        let missing = missing.into_iter().collect::<Vec<_>>().join(", ");
        Name::from(format!("{} cannot serve {missing}", owners.join(", ")))
    }
}
