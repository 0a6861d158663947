//! The renewal of the replica's own session.

use alloc::vec::Vec;

use super::{Effect, Pending, Replica};

impl Replica {
    /// Whether the session is renewed. During a shutdown it lives until everything is released, so
    /// that others count their patience from then.
    pub(super) fn renews(&self) -> bool {
        let leaving = || self.pending.values().any(|p| *p == Pending::Farewell);
        !self.stopping || self.session.created().is_some() && !leaving()
    }

    /// Renews the replica's own session, if that is due.
    pub(super) fn renew(&mut self, now: u64, effects: &mut Vec<Effect>) {
        if self
            .session
            .round_due(&self.terms)
            .is_some_and(|due| due <= now)
        {
            let company = self.sessions.company(self.session.id());
            let number = self.numbers + 1;
            let confirmation = self.session.begin_round(number, company, now, &self.terms);
            // The answer to an earlier round has no meaning any more.
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

    /// A complete round renews the session in this replica's own view of sessions, too.
    pub(super) fn complete_round(&mut self, now: u64) {
        let was_over = self.session.was_over(now);
        if self.session.complete_round(now, &self.terms) {
            self.sessions.beat(self.session.id(), now, &self.terms);
            self.back(was_over, now);
        }
    }

    /// The session was renewed after it had expired, or for the first time. Perhaps the store was
    /// unavailable, and other replicas are just as late. So their silence counts from now;
    /// otherwise the first replica to return would pass over all others.
    pub(super) fn back(&mut self, was_over: bool, now: u64) {
        if was_over {
            self.sessions.joined(now, &self.terms);
        }
    }
}
