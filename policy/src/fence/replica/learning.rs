//! Events from the store: a complete listing, or changes.

use alloc::{collections::BTreeSet, vec::Vec};

use super::{Authority, Cell, Clause, Effect, Listing, Name, Replica, Revision, SessionId};
use crate::fence::{Sessions, grantor::Seen};

impl Replica {
    pub(super) fn listed(&mut self, listing: Listing, now: u64, effects: &mut Vec<Effect>) {
        if self.store != listing.store {
            // Knowledge of the previous store is invalid, its revisions above all.
            if self.session.created().is_some() {
                self.session.end();
            }
            self.sessions = Sessions::default();
            self.forget_terms();
            for cell in self.cells.values_mut() {
                let rules = cell.rules.take();
                *cell = Cell {
                    rules,
                    ..Cell::default()
                };
            }
        }
        self.store = listing.store;
        self.believes = true;
        self.sessions.listed(&listing.sessions, now, &self.terms);
        if !listing.sessions.contains_key(self.session.id()) {
            // The session may have ended during the gap, or be younger than the listing: a renewal
            // shows which. A round that was confirmed before the gap does not.
            self.session.forget_round();
            self.session.hurry();
        }
        for cell in self.cells.values_mut() {
            cell.grantors.clear();
            cell.acting.clear();
        }
        for ((cell, id), terms) in listing.grantors {
            let cell = self.cells.entry(cell).or_default();
            cell.acting.insert(id.clone(), terms);
            cell.grantors.insert(id);
        }
        let (at, agreement) = match listing.terms {
            Some((at, agreement)) => (at, Some(agreement)),
            None => (listing.revision, None),
        };
        self.learn_terms(at, agreement);
        let listed: BTreeSet<Name> = listing
            .authorities
            .iter()
            .map(|(cell, ..)| cell.clone())
            .collect();
        for (name, cell) in &mut self.cells {
            if !listed.contains(name) && cell.authority.is_some() {
                cell.authority = None;
                cell.seen_at = now;
            }
        }
        for (cell, revision, authority) in listing.authorities {
            self.learn(&cell, revision, Some(authority), now);
        }
        let names: Vec<Name> = self.cells.keys().cloned().collect();
        for name in names {
            self.see(&name, effects);
        }
    }

    pub(super) fn learn(
        &mut self,
        cell: &Name,
        revision: Revision,
        authority: Option<Authority>,
        now: u64,
    ) {
        if let Some(authority) = &authority {
            let seen = self.epochs.entry(cell.clone()).or_default();
            *seen = authority.epoch.max(*seen);
        }
        let cell = self.cells.entry(cell.clone()).or_default();
        if revision <= cell.revision && self.terms.keeps(Clause::ViewNeverBack) {
            return;
        }
        cell.revision = revision;
        cell.authority = authority;
        cell.seen_at = now;
        cell.able = None;
        cell.step_after = 0;
    }

    /// Passes the cell's authority to the grantor, and the resulting fence to the holders.
    pub(super) fn see(&mut self, name: &Name, effects: &mut Vec<Effect>) {
        let zone = self.session.id().zone.clone();
        let may_grant = self.may_grant();
        let Some(cell) = self.cells.get_mut(name) else {
            return;
        };
        let authority = cell.authority.as_ref();
        let seen = (cell.grantor).see(cell.revision, authority, &zone, self.store, &self.terms);
        if !may_grant {
            cell.grantor.stop();
        }
        if let Seen::Fenced(fence) = seen {
            effects.extend(self.connected.iter().map(|holder| Effect::Revoke {
                holder: *holder,
                cell: name.clone(),
                fence,
            }));
        }
    }

    /// A session's key was deleted. If it is this replica's own, the incarnation ends and the next
    /// begins at once, so that cells that do not have to move lose no time.
    pub(super) fn session_gone(&mut self, id: &SessionId, now: u64) {
        self.sessions.gone(id);
        if id == self.session.id() {
            self.session.end();
        }
        self.session.gone(id);
        self.complete_round(now);
    }
}
