//! Moves that an operator requests.

use alloc::{collections::BTreeSet, vec::Vec};

use super::{AuthorityState, Cause, Effect, Move, MoveRejected, Name, Pending, Replica};

impl Replica {
    /// An operator requests to move authority over `cell`. `accepted`: the target may be the
    /// present owner.
    ///
    /// # Errors
    ///
    /// [`MoveRejected`] says why the move does not begin, and names the remedy. Nothing has
    /// changed.
    pub fn request_move(
        &mut self,
        cell: &Name,
        next: Move,
        accepted: bool,
        now: u64,
    ) -> Result<Vec<Effect>, MoveRejected> {
        let forced = next.cause == Cause::Override;
        if !self.believes || self.session.left(now) == 0 {
            return Err(MoveRejected::NoSession);
        }
        if !self.acts() {
            return Err(MoveRejected::TermsDiffer);
        }
        let silent = |zone: &&Name| !self.sessions.alive(zone, now, &self.terms);
        if let Some(silent) = next.to.iter().find(silent).filter(|_| !forced) {
            return Err(MoveRejected::TargetSilent(silent.clone()));
        }
        let store = self.store;
        let terms = self.terms.clone();
        let view = self.view(cell).ok_or(MoveRejected::NoCell)?;
        let transaction = if view.authority.store != store {
            if !forced {
                return Err(MoveRejected::OtherStore);
            }
            view.recover(store, next.epoch_min, next.to, &terms, next.hold)
        } else {
            let moving = matches!(view.authority.state, AuthorityState::Fencing(_));
            if moving && !forced {
                return Err(MoveRejected::Moving);
            }
            let same: BTreeSet<&Name> = view.authority.owners.iter().collect();
            // An override to the present owner is useful if it aborts a move under way. Otherwise
            // it only interrupts writes.
            let pointless = !(moving || forced && accepted);
            if same == next.to.iter().collect() && pointless {
                return Err(MoveRejected::SameOwners);
            }
            view.begin(next, &terms)
        };
        let mut effects = Vec::new();
        self.commit(Pending::Step(cell.clone(), None), transaction, &mut effects);
        Ok(effects)
    }
}
