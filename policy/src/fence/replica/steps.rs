//! The steps of authority that any replica may take, including steps of moves that another began:
//! create, fence, complete, abort, settle, clean up.

use super::{
    Authority, AuthorityState, Cause, Cell, CellRules, Clause, Condition, Effect, Key, Move, Name,
    Pending, Replica, Revision, SWEEP_AFTER, Step, Transaction, View, Write, move_id,
};
use crate::fence::Stamp;
use alloc::vec::Vec;

impl Replica {
    /// Removes a key that an incarnation left behind. The session has ended with or without its
    /// key. But every round waits for a replica that may still pass over others. The grants under
    /// the session are waited for as after a takeover.
    pub(super) fn sweep(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let sweeping = |pending: &Pending| *pending == Pending::Sweep;
        if now < self.sweep_after || self.pending.values().any(sweeping) {
            return;
        }
        let long = self.terms.session_over().saturating_mul(SWEEP_AFTER);
        let silent = self.sessions.silent_for(long, now);
        let session = silent.map(|(id, put)| (Key::Session(id.clone()), put, None));
        let Some((session, put, grantor)) = session.or_else(|| self.left_behind(now)) else {
            return;
        };
        let transaction = Transaction {
            conditions: alloc::vec![
                Condition::PutAt(session.clone(), put),
                self.terms_unchanged()
            ],
            writes: alloc::vec![Write::Delete(grantor.unwrap_or(session))],
        };
        self.commit(Pending::Sweep, transaction, effects);
    }

    /// A session that has ended, never comes back, and has no grant that could still be under way;
    /// and its grantor key.
    fn left_behind(&self, now: u64) -> Option<(Key, Revision, Option<Key>)> {
        let cells = self.cells.iter();
        let mut keys =
            cells.flat_map(|(name, cell)| cell.grantors.iter().map(move |id| (name, id)));
        let (name, id) = keys.find(|(_, id)| {
            let gone = self.sessions.put_at(id).is_none();
            let settled = self.sessions.settled_at(id, &self.terms) <= now;
            gone && (settled || !self.terms.keeps(Clause::KeyOutlivesSession))
        })?;
        let grantor = Key::Grantor(name.clone(), id.clone());
        Some((Key::Session(id.clone()), Revision(0), Some(grantor)))
    }

    /// How long a replica leaves a step to the replica of the zone that it concerns most.
    pub(super) fn courtesy(&self) -> u64 {
        (self.terms.session_ttl / 16).max(1)
    }

    /// Takes the next step of the cell's authority, if this replica can take one.
    pub(super) fn step(&mut self, name: &Name, now: u64, effects: &mut Vec<Effect>) {
        let Some(cell) = self.cells.get(name) else {
            return;
        };
        if cell.stepping || now < cell.step_after {
            return;
        }
        let next = self.next_step(name, cell, now);
        let able = next.as_ref().map(|(step, ..)| *step);
        let since = match cell.able {
            Some((step, since)) if Some(step) == able => since,
            _ => now,
        };
        let courtesy = self.courtesy();
        if let Some(cell) = self.cells.get_mut(name) {
            cell.able = able.map(|step| (step, since));
        }
        if let Some((_, transaction, concerned)) = next
            && (concerned || now >= since.saturating_add(courtesy))
        {
            let (mut transaction, registers) = self.register_with(name, transaction);
            // Under other terms this replica would have waited differently. Its view of sessions
            // shows that too, in the order of revisions. So this condition is a second check, which
            // the model does not need.
            transaction.conditions.push(self.terms_unchanged());
            self.commit(Pending::Step(name.clone(), registers), transaction, effects);
        }
    }

    /// Registers in the transaction that lets this zone write, so that no replica has to learn of
    /// it first.
    fn register_with(
        &self,
        name: &Name,
        mut transaction: Transaction,
    ) -> (Transaction, Option<Authority>) {
        let id = self.session.id();
        let named = transaction.writes.iter().find_map(|write| match write {
            Write::Authority(_, authority) => Some(authority),
            _ => None,
        });
        let active = |authority: &&Authority| authority.state == AuthorityState::Active;
        let ours = named
            .filter(active)
            .filter(|authority| authority.is_owner(&id.zone));
        let grantor = Key::Grantor(name.clone(), id.clone());
        let ends_ours = transaction.writes.contains(&Write::Delete(grantor));
        let (Some(authority), Some(created)) = (ours.cloned(), self.session.created()) else {
            return (transaction, None);
        };
        // A put and a delete of the key are never under way together: their order would be unknown.
        let leaving = self
            .cells
            .get(name)
            .is_some_and(|cell| cell.grantor.is_leaving());
        if leaving || ends_ours || !self.may_grant() || !self.terms.keeps(Clause::Registered) {
            return (transaction, None);
        }
        let session = Key::Session(id.clone());
        transaction
            .conditions
            .push(Condition::CreatedAt(session, created));
        transaction
            .writes
            .push(Write::Grantor(name.clone(), id.clone(), self.terms_at()));
        (transaction, Some(authority))
    }

    /// This replica has named its own zone an owner, and registered in the same transaction. It
    /// cannot have missed an event of the cell in between: the transaction compared the authority,
    /// and a replica registers only while the authority is active.
    pub(super) fn take_over(
        &mut self,
        name: &Name,
        revision: Revision,
        authority: Authority,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let at = Stamp {
            epoch: authority.epoch,
            revision,
        };
        self.learn(name, revision, Some(authority), now);
        let may_grant = self.may_grant();
        if let Some(cell) = self.cells.get_mut(name)
            && cell.revision == revision
        {
            cell.grantors.insert(self.session.id().clone());
            cell.grantor.moved(at);
            if !may_grant {
                cell.grantor.stop();
            }
        }
        self.invite(effects);
    }

    /// The next step, and whether it concerns this replica's zone most.
    fn next_step(&self, name: &Name, cell: &Cell, now: u64) -> Option<(Step, Transaction, bool)> {
        let terms = &self.terms;
        let zone = &self.session.id().zone;
        let concerns = |zones: &[Name]| zones.contains(zone);
        let Some(view) = self.view(name) else {
            let rules = cell.rules.as_ref()?;
            let (owners, standby) = (rules.owners.clone(), rules.standby.clone());
            let seen = self
                .epochs
                .get(name)
                .map_or(0, |epoch| epoch.saturating_add(1));
            let epoch = rules.epoch_min.max(seen).max(1);
            let first = Authority::first(self.store, epoch, owners, standby, terms);
            let key = Key::Authority(name.clone());
            let transaction = Transaction {
                conditions: alloc::vec![Condition::CreatedAt(key, Revision(0))],
                writes: alloc::vec![Write::Authority(name.clone(), first)],
            };
            return Some((Step::Create, transaction, concerns(&rules.owners)));
        };
        let authority = view.authority;
        if authority.store != self.store && terms.keeps(Clause::BoundToStore) {
            return None;
        }
        let alive = |zone: &Name| self.sessions.alive(zone, now, terms);
        let lost = |zone: &Name| self.sessions.lost(zone, now, terms);
        if let AuthorityState::Fencing(next) = &authority.state {
            if let Some(transaction) = view.complete(&self.sessions, now, terms)
                && (next.to.iter().any(alive) || next.cause == Cause::Override)
            {
                return Some((Step::Complete, transaction, concerns(&next.to)));
            }
            let hopeless = next.to.iter().all(lost) && next.cause != Cause::Override;
            if hopeless && authority.owners.iter().any(alive) {
                return Some((Step::Abort, view.abort(), concerns(&authority.owners)));
            }
            if !hopeless {
                return None;
            }
        }
        if let Some(transaction) = view.settle(&self.sessions, now, terms)
            && authority.owners.iter().any(alive)
        {
            return Some((Step::Settle, transaction, concerns(&authority.owners)));
        }
        let rules = cell.rules.as_ref().filter(|rules| rules.automatic)?;
        let (to, cause, reason) = self.wanted(&view, cell, rules, now)?;
        let concerned = *zone == to;
        let next = Move {
            id: move_id(name, authority),
            to: alloc::vec![to],
            cause,
            reason,
            epoch_min: 0,
            hold: 0,
        };
        let transaction = match terms.keeps(Clause::FenceFirst) {
            true if cause == Cause::SessionLost => view.begin_lost(next, &self.sessions, terms),
            true => view.begin(next, terms),
            false => {
                let mut unfenced = authority.clone();
                unfenced.state = AuthorityState::Fencing(next);
                let view = View {
                    authority: &unfenced,
                    ..view
                };
                view.complete(&self.sessions, now, terms)?
            }
        };
        Some((Step::Begin, transaction, concerned))
    }

    /// The zone to which the cell should move automatically, the cause, and the reason in words.
    fn wanted(
        &self,
        view: &View<'_>,
        cell: &Cell,
        rules: &CellRules,
        now: u64,
    ) -> Option<(Name, Cause, Name)> {
        let terms = &self.terms;
        let alive = |zone: &&Name| self.sessions.alive(zone, now, terms);
        let owners = view.authority.owners.iter();
        if owners
            .clone()
            .all(|zone| self.sessions.lost(zone, now, terms))
        {
            // If the owners were never seen, the mesh may just have been started, and gets time to
            // become complete. So does a zone to which an operator has just moved the cell by
            // force.
            let heard_of = |zone: &Name| self.sessions.of_zone(zone).next().is_some();
            let from = match owners.clone().any(heard_of) {
                true => view.seen_at,
                false => self.sessions.listed_at().max(view.seen_at),
            };
            if now < from.saturating_add(terms.session_over()) {
                return None;
            }
            let next = self.heir(view.authority, now)?;
            let zones: Vec<&str> = owners.map(|zone| &**zone).collect();
            let reason = alloc::format!("no replica of {} was seen alive", zones.join(", "));
            return Some((next, Cause::SessionLost, Name::from(reason)));
        }
        if !owners.clone().any(|zone| alive(&zone)) {
            // They may come back.
            return None;
        }
        let quiet = rules.cool_down.max(view.authority.hold);
        let cooled = now >= view.seen_at.saturating_add(quiet);
        let (better, reason) = cell.better.as_ref().filter(|(zone, _)| alive(&zone))?;
        let active = view.authority.state == AuthorityState::Active;
        (active && cooled && !view.authority.is_owner(better))
            .then(|| (better.clone(), Cause::Unfit, reason.clone()))
    }

    /// The zone to which a cell with lost owners should move: of the live ones the first that has a
    /// proxy that could hold grants and that can serve; if there is none, the first live one.
    fn heir(&self, authority: &Authority, now: u64) -> Option<Name> {
        let alive = |zone: &&Name| self.sessions.alive(zone, now, &self.terms);
        let living = authority.standby.iter().filter(alive);
        let next =
            living.min_by_key(|zone| (self.unheld.contains(*zone), self.unfit.contains(*zone)));
        next.cloned()
    }

    /// The zone to which a cell should move at shutdown, if this replica's zone alone owns it and
    /// no other replica serves the zone.
    pub fn successor(&self, cell: &str, now: u64) -> Option<Name> {
        let authority = self.cells.get(cell)?.authority.as_ref()?;
        let own = self.session.id();
        let alone = authority.owners.iter().all(|zone| *zone == own.zone);
        let mut others = self.sessions.of_zone(&own.zone);
        let others_live = others.any(|(id, put)| {
            id != own && put.is_some() && !self.sessions.over(id, now, &self.terms)
        });
        if !alone || others_live || authority.store != self.store {
            return None;
        }
        let next = self.heir(authority, now)?;
        (!self.unheld.contains(&next) && !self.unfit.contains(&next)).then_some(next)
    }
}
