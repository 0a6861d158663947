//! The agreed terms in one replica: how it acts by them, and creates and narrows their record.

use alloc::vec::Vec;

use super::{
    Clause, Condition, Effect, Key, Name, Pending, Replica, Revision, SessionId, Terms,
    Transaction, Write,
};
use crate::fence::{Agreed, Agreement, AuthorityState, Layout};

/// The known state of the record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Known {
    /// The configuration of this replica.
    own: Agreed,
    /// The same, including the spans that are not agreed on.
    own_terms: Terms,
    agreement: Option<Agreement>,
    /// The revision of the record, or of its deletion.
    revision: Revision,
    present: bool,
    /// The record has lost its history, which `agreement` still has: it is written again.
    lost: bool,
    /// Whether all live replicas are configured with the next terms.
    rolled: bool,
    /// Since when nothing has prevented the narrowing.
    narrow_since: Option<u64>,
    /// A change of the record was rejected: the newer record is not seen yet.
    after: u64,
}

impl Known {
    pub(super) fn new(terms: Terms) -> Known {
        Known {
            own: Agreed::of(&terms, Layout::default()),
            own_terms: terms,
            agreement: None,
            revision: Revision(0),
            present: false,
            lost: false,
            rolled: false,
            narrow_since: None,
            after: 0,
        }
    }
}

impl Replica {
    /// The record of the agreed terms, and its revision, once known.
    pub fn agreement(&self) -> Option<(Revision, &Agreement)> {
        let known = &self.agreed;
        let agreement = known.agreement.as_ref().filter(|_| known.present)?;
        Some((known.revision, agreement))
    }

    /// This replica's configuration.
    pub fn configured(&self) -> &Agreed {
        &self.agreed.own
    }

    /// The terms that it acts by.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether its configuration is among the agreed terms. Only then does it grant, and take
    /// steps.
    pub fn acts(&self) -> bool {
        match self.terms.keeps(Clause::TermsAgreed) {
            true => (self.agreement()).is_some_and(|(_, agreed)| agreed.admits(&self.agreed.own)),
            false => true,
        }
    }

    /// Whether the agreed terms permit grants, and this replica may grant.
    pub(super) fn may_grant(&self) -> bool {
        let stopped = self
            .agreement()
            .is_some_and(|(_, agreed)| agreed.is_stopped());
        self.acts() && !stopped && !self.stopping
    }

    /// The revision of the terms that it acts by.
    pub(super) fn terms_at(&self) -> Revision {
        match self.agreed.present {
            true => self.agreed.revision,
            false => Revision(0),
        }
    }

    pub(super) fn terms_unchanged(&self) -> Condition {
        Condition::PutAt(Key::Terms, self.terms_at())
    }

    /// Sets this replica's configuration.
    pub(super) fn configure(&mut self, own: Agreed) {
        self.agreed.own_terms = own.terms(&self.agreed.own_terms);
        self.agreed.own = own;
        self.adopt();
    }

    /// Sets whether all live replicas are configured with the next terms.
    pub(super) fn rolled(&mut self, rolled: bool) {
        self.agreed.rolled = rolled;
    }

    /// Another store answers: the terms in the last one are invalid.
    pub(super) fn forget_terms(&mut self) {
        let known = &mut self.agreed;
        known.agreement = None;
        known.revision = Revision(0);
        known.present = false;
        known.lost = false;
        known.narrow_since = None;
        known.after = 0;
    }

    /// The record was put; none: deleted.
    pub(super) fn learn_terms(&mut self, revision: Revision, agreement: Option<Agreement>) {
        let known = &mut self.agreed;
        if revision <= known.revision && self.terms.keeps(Clause::ViewNeverBack) {
            return;
        }
        known.revision = revision;
        known.present = agreement.is_some();
        let before = known.agreement.as_ref();
        let mended = (agreement.as_ref().zip(before)).and_then(|(new, old)| new.after_loss(old));
        known.lost = mended.is_some();
        let agreement = mended.or(agreement);
        // A deleted record is remembered, to create it again unchanged.
        known.agreement = agreement.or(known.agreement.take());
        known.narrow_since = None;
        known.after = 0;
        for cell in self.cells.values_mut() {
            cell.grantor.terms_changed();
        }
        self.adopt();
    }

    fn adopt(&mut self) {
        let own = &self.agreed.own_terms;
        let terms = match self.agreement() {
            Some((_, agreement)) if own.keeps(Clause::TermsAgreed) => agreement.terms(own),
            _ => own.clone(),
        };
        let shorter = self.terms.session_ttl.saturating_sub(terms.session_ttl);
        if terms.keeps(Clause::SessionShortened) {
            self.session.shorten(shorter);
        }
        self.terms = terms;
        if !self.may_grant() {
            self.stop_granting();
        }
    }

    /// The reason not to grant has ended: if this zone owns an active cell, the replica may
    /// register again, as another incarnation.
    ///
    /// A leave with an unknown outcome may still be committed, since it compares an authority that
    /// has not changed. It would delete the key of a grantor that grants again, unless that grantor
    /// has another name.
    pub(super) fn resume(&mut self, name: &Name) {
        let zone = self.session.id().zone.clone();
        let (store, may_grant) = (self.store, self.may_grant());
        let Some(cell) = self.cells.get(name) else {
            return;
        };
        let authority = cell.authority.as_ref();
        let ours = authority.is_some_and(|authority| {
            let own = authority.store == store && authority.is_owner(&zone);
            own && authority.state == AuthorityState::Active
        });
        if !may_grant || !ours || !cell.grantor.has_left() {
            return;
        }
        match self.terms.keeps(Clause::ResumedAsAnother) {
            true => self.session.end(),
            false => {
                if let Some(cell) = self.cells.get_mut(name) {
                    cell.grantor.resume();
                }
            }
        }
    }

    /// The incarnations that are registered under earlier terms.
    pub fn registered_before(&self) -> impl Iterator<Item = &SessionId> {
        let at = self.terms_at();
        let cells = self.cells.values();
        cells.flat_map(move |cell| {
            let before = move |id: &&SessionId| cell.acting.get(*id) != Some(&at);
            cell.grantors.iter().filter(before)
        })
    }

    /// Creates the record, restores its history, adds this replica's services to it, or narrows it,
    /// if due.
    pub(super) fn agree(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let asking = |pending: &Pending| *pending == Pending::Terms;
        if now < self.agreed.after || self.pending.values().any(asking) {
            return;
        }
        let transaction = match self.agreement() {
            None => self.create_terms(),
            Some((_, agreement)) if self.agreed.lost => Some(self.replace_terms(agreement.clone())),
            Some((_, agreement)) => {
                let with = agreement.with_services_of(&self.agreed.own);
                match with.filter(|_| self.acts()) {
                    Some(with) => Some(self.replace_terms(with)),
                    None => self.narrow_terms(now),
                }
            }
        };
        if let Some(transaction) = transaction {
            self.commit(Pending::Terms, transaction, effects);
        }
    }

    fn replace_terms(&self, agreement: Agreement) -> Transaction {
        Transaction {
            conditions: alloc::vec![self.terms_unchanged()],
            writes: alloc::vec![Write::Terms(agreement)],
        }
    }

    /// The first replica creates the agreement. If an operator deleted the record, a replica that
    /// remembers it creates it unchanged: replicas registered under it rely on that.
    fn create_terms(&self) -> Option<Transaction> {
        let agreement = match &self.agreed.agreement {
            Some(remembered) => remembered.clone(),
            None => {
                let cells = self.cells.values();
                let mut acting = cells.flat_map(|cell| cell.acting.values());
                if acting.any(|at| *at > Revision(0)) {
                    return None;
                }
                Agreement::first(self.agreed.own.clone())
            }
        };
        Some(self.replace_terms(agreement))
    }

    /// Ends a change of terms, once no promise made under the old terms alone can be under way:
    /// every grantor has registered under both or has left, and earlier promises have expired.
    /// Sessions without a grantor key promise nothing, and a registration compares the terms. So
    /// the number of grantors seen can only have shrunk.
    fn narrow_terms(&mut self, now: u64) -> Option<Transaction> {
        let terms = self.terms.clone();
        let (_, agreement) = self.agreement()?;
        let narrowed = agreement.narrowed()?;
        let stopped = agreement.is_stopped();
        let grantors = match stopped {
            true => self.cells.values().all(|cell| cell.grantors.is_empty()),
            false => self.registered_before().next().is_none(),
        };
        let free = grantors || !terms.keeps(Clause::NarrowWaitsForGrantors);
        if !free || !self.acts() || !self.agreed.rolled {
            self.agreed.narrow_since = None;
            return None;
        }
        let since = *self.agreed.narrow_since.get_or_insert(now);
        let wait = match terms.keeps(Clause::NarrowSettles) {
            true => terms.session_settled(),
            false => 0,
        };
        if now < since.saturating_add(wait) {
            return None;
        }
        Some(self.replace_terms(narrowed))
    }

    /// The answer to a change of the record.
    pub(super) fn terms_answered(&mut self, now: u64) {
        // The change that caused the rejection may not have been seen yet.
        self.agreed.after = now.saturating_add(self.courtesy());
    }
}
