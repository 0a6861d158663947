//! The own session: how it is kept.

use alloc::vec::Vec;

use super::{Effect, Pending, Replica};

impl Replica {
    /// Whether the session is to go on. That of a process which is to end lives until it has left
    /// everything in order, so that others count their patience from then.
    pub(super) fn renews(&self) -> bool {
        let leaving = || self.pending.values().any(|p| *p == Pending::Farewell);
        !self.stopping || self.session.created().is_some() && !leaving()
    }

    /// Renews the own session, as far as that is due.
    pub(super) fn renew(&mut self, now: u64, effects: &mut Vec<Effect>) {
        if self
            .session
            .round_due(&self.terms)
            .is_some_and(|due| due <= now)
        {
            let company = self.sessions.company(self.session.id());
            let number = self.numbers + 1;
            let confirmation = self.session.begin_round(number, company, now, &self.terms);
            // The answer to an earlier one tells nothing any more.
            self.pending.retain(|_, pending| *pending != Pending::Round);
            if let Some(confirmation) = confirmation {
                self.commit(Pending::Round, confirmation, effects);
            }
        }
        if self.session.due(&self.terms).is_some_and(|due| due <= now) {
            let number = self.numbers + 1;
            let renewal = self.session.renew(number, now, &self.terms);
            self.commit(Pending::Renewal, renewal, effects);
        }
    }

    /// A complete round renews the own session, as this replica sees it too.
    pub(super) fn complete_round(&mut self, now: u64) {
        let was_over = self.session.was_over(now);
        if self.session.complete_round(now, &self.terms) {
            self.sessions.beat(self.session.id(), now, &self.terms);
            self.back(was_over, now);
        }
    }

    /// The own session was renewed after it had been over, or for the first time. It may have been
    /// the store that was away, and others be just as late: their silence counts from now, or the
    /// first that is back would pass over all others.
    pub(super) fn back(&mut self, was_over: bool, now: u64) {
        if was_over {
            self.sessions.joined(now, &self.terms);
        }
    }
}
