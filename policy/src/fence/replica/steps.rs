//! The steps of authority that any replica may take, whoever began: create, fence, complete, give up, settle, tidy up.

use super::{
    Authority, Cause, Cell, CellRules, Clause, Condition, Effect, Key, Move, Name, Pending,
    Replica, Revision, SWEEP_AFTER, State, Step, Transaction, View, Write, move_id,
};
use alloc::vec::Vec;

impl Replica {
    /// Removes a key that an incarnation left behind long ago. Without it the session is as over as with it.
    pub(super) fn sweep(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let sweeping = |pending: &Pending| *pending == Pending::Sweep;
        if now < self.sweep_after || self.pending.values().any(sweeping) {
            return;
        }
        let long = self.terms.session_settled().saturating_mul(SWEEP_AFTER);
        let Some((id, put)) = self.sessions.silent_for(long, now) else {
            return;
        };
        let key = Key::Session(id.clone());
        let transaction = Transaction {
            conditions: alloc::vec![Condition::PutAt(key.clone(), put)],
            writes: alloc::vec![Write::Delete(key)],
        };
        self.commit(Pending::Sweep, transaction, effects);
    }

    /// How long a step is left to the replica that it concerns most.
    pub(super) fn courtesy(&self) -> u64 {
        (self.terms.session_ttl / 16).max(1)
    }

    /// Takes the next step of the cell's authority, if there is one that this replica can take.
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
            self.commit(Pending::Step(name.clone()), transaction, effects);
        }
    }

    /// The next step, and whether it concerns this replica's zone most.
    fn next_step(&self, name: &Name, cell: &Cell, now: u64) -> Option<(Step, Transaction, bool)> {
        let terms = &self.terms;
        let zone = &self.session.id().zone;
        let concerns = |zones: &[Name]| zones.contains(zone);
        let Some(view) = self.view(name) else {
            let rules = cell.rules.as_ref()?;
            let (owners, standby) = (rules.owners.clone(), rules.standby.clone());
            let epoch = rules.epoch_min.max(1);
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
        if let State::Fencing(next) = &authority.state {
            if let Some(transaction) = view.complete(&self.sessions, now, terms)
                && (next.to.iter().any(alive) || next.cause == Cause::Override)
            {
                return Some((Step::Complete, transaction, concerns(&next.to)));
            }
            let hopeless = !next.to.iter().any(alive) && next.cause != Cause::Override;
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
        let (to, cause) = self.wanted(&view, cell, rules, now)?;
        let concerned = *zone == to;
        let next = Move {
            id: move_id(name, authority),
            to: alloc::vec![to],
            cause,
            reason: Name::from(""),
            epoch_min: 0,
        };
        let transaction = match terms.keeps(Clause::FenceFirst) {
            true => view.begin(next, terms),
            false => {
                let mut unfenced = authority.clone();
                unfenced.state = State::Fencing(next);
                let view = View {
                    authority: &unfenced,
                    ..view
                };
                view.complete(&self.sessions, now, terms)?
            }
        };
        Some((Step::Begin, transaction, concerned))
    }

    /// Where the cell should go by itself, and why.
    fn wanted(
        &self,
        view: &View<'_>,
        cell: &Cell,
        rules: &CellRules,
        now: u64,
    ) -> Option<(Name, Cause)> {
        let terms = &self.terms;
        let alive = |zone: &&Name| self.sessions.alive(zone, now, terms);
        if !view.authority.owners.iter().any(|zone| alive(&zone)) {
            // Where nothing was ever heard of the owners, the mesh may just have been started, and is given time to be complete.
            let owners = view.authority.owners.iter();
            let heard_of = |zone: &Name| self.sessions.of_zone(zone).next().is_some();
            let patience = self.sessions.listed_at().max(view.seen_at);
            if !owners.clone().any(heard_of) && now < patience.saturating_add(terms.session_over())
            {
                return None;
            }
            let next = view.authority.standby.iter().find(alive)?;
            return Some((next.clone(), Cause::SessionLost));
        }
        let cooled = now >= view.seen_at.saturating_add(rules.cool_down);
        let better = cell.better.as_ref().filter(alive)?;
        let active = view.authority.state == State::Active;
        (active && cooled && !view.authority.is_owner(better))
            .then(|| (better.clone(), Cause::Unfit))
    }
}
