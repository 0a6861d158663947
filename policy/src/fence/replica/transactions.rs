//! Transactions: requests to the store, and their outcomes.

use alloc::vec::Vec;

use super::{
    Clause, Condition, Effect, HolderId, Key, Pending, Replica, Transaction, TransactionOutcome,
};

impl Replica {
    pub(super) fn commit(
        &mut self,
        pending: Pending,
        mut transaction: Transaction,
        effects: &mut Vec<Effect>,
    ) {
        if matches!(pending, Pending::Step(..) | Pending::Sweep) {
            self.vouch_for(&mut transaction);
        }
        self.numbers += 1;
        let number = self.numbers;
        if let Pending::Step(name, registers) = &pending
            && let Some(cell) = self.cells.get_mut(name)
        {
            cell.stepping = true;
            if registers.is_some() {
                cell.grantor.registers_with_move();
            }
        }
        self.pending.insert(number, pending);
        effects.push(Effect::Commit {
            number,
            transaction,
        });
    }

    /// A step rests on this replica's knowledge of others, so it counts only while its session
    /// exists: once that has ended, other replicas do not wait for its acknowledgements. (No
    /// clause: with one cell the model finds nothing without it, since a replica sees a fence
    /// before it sees the end of the fencing replica.) From when the step is sent, no beat of a
    /// session that it passes over is acknowledged.
    pub(super) fn vouch_for(&mut self, transaction: &mut Transaction) {
        for condition in &transaction.conditions {
            if let Condition::PutAt(Key::Session(id), _) = condition {
                self.sessions.pass_over(id);
            }
        }
        let own = Key::Session(self.session.id().clone());
        let lives = Condition::CreatedAt(own, self.session.created().unwrap_or_default());
        if !transaction.conditions.contains(&lives) {
            transaction.conditions.push(lives);
        }
    }

    pub(super) fn answered(
        &mut self,
        number: u64,
        outcome: TransactionOutcome,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let pending = self.pending.remove(&number);
        match pending {
            // Nothing waits for this answer; the session may still use it.
            None => {
                if !self.terms.keeps(Clause::RenewalMatched)
                    && let TransactionOutcome::Committed(revision) = outcome
                {
                    self.session.renewed(number, revision, now, &self.terms);
                }
            }
            Some(Pending::Renewal) => match outcome {
                TransactionOutcome::Committed(revision) => {
                    let was_over = self.session.was_over(now);
                    self.session.renewed(number, revision, now, &self.terms);
                    self.back(was_over, now);
                }
                TransactionOutcome::Refused => self.session.refused(number),
                TransactionOutcome::Unknown => self.session.failed(number),
            },
            Some(Pending::Round) => match outcome {
                TransactionOutcome::Committed(_) => {
                    let others = self.session.confirmed(number);
                    let beat = |to| Effect::Beat { to, round: number };
                    effects.extend(others.into_iter().map(beat));
                    self.complete_round(now);
                }
                TransactionOutcome::Refused | TransactionOutcome::Unknown => {
                    self.session.unconfirmed(number)
                }
            },
            Some(Pending::Grantor(name)) => {
                let Some(cell) = self.cells.get_mut(&name) else {
                    return;
                };
                let before = cell.grantor.granting();
                cell.grantor.answered(
                    number,
                    match outcome {
                        TransactionOutcome::Committed(_) => Some(true),
                        TransactionOutcome::Refused => Some(false),
                        TransactionOutcome::Unknown => None,
                    },
                );
                if cell.grantor.granting().is_some() && before.is_none() {
                    self.invite(effects);
                }
            }
            Some(Pending::Step(name, registers)) => {
                let courtesy = self.courtesy();
                let Some(cell) = self.cells.get_mut(&name) else {
                    return;
                };
                cell.stepping = false;
                match (outcome, registers) {
                    (TransactionOutcome::Refused | TransactionOutcome::Unknown, _) => {
                        cell.step_after = now.saturating_add(courtesy);
                    }
                    (TransactionOutcome::Committed(revision), Some(authority)) => {
                        self.take_over(&name, revision, authority, now, effects);
                    }
                    _ => {}
                }
            }
            Some(Pending::Again(name)) => {
                let after = now.saturating_add(self.courtesy());
                if let Some(cell) = self.cells.get_mut(&name) {
                    cell.again_after = after;
                }
            }
            Some(Pending::Terms) => self.terms_answered(now),
            // The change that caused the rejection may not have been seen yet.
            Some(Pending::Sweep) => self.sweep_after = now.saturating_add(self.courtesy()),
            Some(Pending::Farewell) => match outcome {
                TransactionOutcome::Unknown => {}
                // The watch may have reported it before.
                TransactionOutcome::Committed(_) | TransactionOutcome::Refused if !self.stopped => {
                    self.stopped = true;
                    effects.push(Effect::Stopped);
                }
                TransactionOutcome::Committed(_) | TransactionOutcome::Refused => {}
            },
        }
    }

    pub(super) fn invite(&self, effects: &mut Vec<Effect>) {
        if !self.stopping {
            let invite = |holder: &HolderId| Effect::Invite { holder: *holder };
            effects.extend(self.connected.iter().map(invite));
        }
    }
}
