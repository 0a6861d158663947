//! Grants to the proxies of this replica's zone, and registration as a grantor.

use alloc::vec::Vec;

use super::{Clause, Condition, Effect, HolderId, Key, Name, Pending, Replica, Transaction, Write};
use crate::fence::{TermsId, Withheld};

impl Replica {
    /// Sends a proxy that connects now the fences that connected proxies already have.
    pub(super) fn greet(&mut self, holder: HolderId, effects: &mut Vec<Effect>) {
        if self.stopping || !self.believes {
            return;
        }
        for (name, cell) in &self.cells {
            if let Some(fence) = cell.grantor.revoked() {
                effects.push(Effect::Revoke {
                    holder,
                    cell: name.clone(),
                    fence,
                });
            }
        }
    }

    pub(super) fn asked(
        &mut self,
        holder: HolderId,
        nonce: u64,
        said: Option<TermsId>,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let may_grant = self.believes && self.may_grant();
        let withheld = self.withheld(said).filter(|_| may_grant);
        let left = match may_grant && withheld.is_none() {
            true => self.session.left(now),
            false => 0,
        };
        let mut grants = Vec::new();
        let configured = (self.cells.iter_mut()).filter(|(_, cell)| cell.rules.is_some());
        for (name, cell) in configured {
            let grant = cell.grantor.grant(holder, left, now, &self.terms);
            grants.extend(grant.map(|grant| (name.clone(), grant)));
        }
        effects.push(Effect::Grant {
            holder,
            nonce,
            grants,
            withheld,
        });
    }

    /// Why a holder with a policy of these terms receives no grant. Under other terms its writes
    /// may live longer than anyone waits, or belong to other cells: a change does not wait until
    /// proxies know it.
    fn withheld(&self, said: Option<TermsId>) -> Option<Withheld> {
        let changed = || self.agreement().is_some_and(|(_, of)| of.was_changed());
        match said {
            Some(said) if said == self.terms.id => None,
            Some(_) => (self.terms.keeps(Clause::HolderUnderTerms)).then_some(Withheld::OtherTerms),
            // An older filter. Before the first change every policy had the same terms.
            None if changed() => {
                (self.terms.keeps(Clause::UnsaidBeforeChange)).then_some(Withheld::UnsaidTerms)
            }
            None => None,
        }
    }

    pub(super) fn stop_granting(&mut self) {
        for cell in self.cells.values_mut() {
            cell.grantor.stop();
        }
    }

    pub(super) fn grant_or_leave(&mut self, name: &Name, now: u64, effects: &mut Vec<Effect>) {
        let id = self.session.id().clone();
        let created = self.session.created();
        let alive = created.filter(|_| self.session.left(now) > 0 && !self.stopping);
        let joins = |pending: &Pending| match pending {
            Pending::Step(cell, Some(_)) | Pending::Again(cell) => cell == name,
            _ => false,
        };
        let joining = self.pending.values().any(joins);
        let number = self.numbers + 1;
        let (terms_at, terms_unchanged) = (self.terms_at(), self.terms_unchanged());
        let may_grant = self.may_grant();
        let Some(cell) = self.cells.get_mut(name) else {
            return;
        };
        let authority = Key::Authority(name.clone());
        let register = |revision, created| {
            let mut conditions = Vec::new();
            if self.terms.keeps(Clause::RegistrationComparesAuthority) {
                conditions.push(Condition::PutAt(authority.clone(), revision));
            }
            if self.terms.keeps(Clause::RegistrationComparesTerms) {
                conditions.push(terms_unchanged.clone());
            }
            // So that an ended session leaves no key behind, which others would wait for.
            conditions.push(Condition::CreatedAt(Key::Session(id.clone()), created));
            Transaction {
                conditions,
                writes: alloc::vec![Write::Grantor(name.clone(), id.clone(), terms_at)],
            }
        };
        let granting = cell.grantor.granting().filter(|_| may_grant);
        let before = cell.acting.get(&id).is_some_and(|at| *at != terms_at);
        if let (Some(stamp), Some(created)) = (granting, alive)
            && before
            && !joining
            && now >= cell.again_after
        {
            let transaction = register(stamp.revision, created);
            self.commit(Pending::Again(name.clone()), transaction, effects);
            return;
        }
        let registers = |_: &_| may_grant && cell.grantor.wants_registration();
        let transaction = if let Some(created) = alive.filter(registers) {
            let registration = cell.grantor.register(number);
            registration.map(|revision| register(revision, created))
        } else if joining {
            None
        } else {
            let left = cell.grantor.leave(number, now, &self.terms);
            left.map(|fence| Transaction {
                conditions: alloc::vec![Condition::PutAt(authority, fence)],
                writes: alloc::vec![Write::Delete(Key::Grantor(name.clone(), id))],
            })
        };
        if let Some(transaction) = transaction {
            self.commit(Pending::Grantor(name.clone()), transaction, effects);
        }
    }

    /// Ends the replica's own session, once no grant could outlive it.
    pub(super) fn say_farewell(&mut self, effects: &mut Vec<Effect>) {
        // A key that is deleted before it is created would exist afterwards.
        if self.session.is_being_created() {
            return;
        }
        let id = self.session.id().clone();
        let registered = self.cells.values().any(|cell| cell.grantors.contains(&id));
        let owed = self.cells.values().any(|cell| cell.grantor.holders() > 0);
        let asked = self
            .pending
            .values()
            .any(|pending| *pending == Pending::Farewell);
        if registered || owed || asked {
            return;
        }
        let key = Key::Session(id);
        // If its creation is unknown, it is deleted nevertheless.
        let created = self.session.created();
        let created = created.map(|at| Condition::CreatedAt(key.clone(), at));
        let transaction = Transaction {
            conditions: created.into_iter().collect(),
            writes: alloc::vec![Write::Delete(key)],
        };
        self.commit(Pending::Farewell, transaction, effects);
    }
}
