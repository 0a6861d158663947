//! Sessions: the replica's own, and those of others.
//!
//! A session is a key without a lease, which its incarnation creates and then renews: by a
//! [`round`](super::round) that all other replicas acknowledge, or, if that fails, by putting the
//! key again. Each renewal rests on an answer that a majority of the store confirms. So a stale
//! leader cannot answer for it, and no lease can end early unseen. Each replica counts the silence
//! of the others by its own clock. A session is ended by deleting its key, and never comes back: a
//! renewal compares that the key is still the one that was created.

use alloc::collections::{BTreeMap, BTreeSet};

use super::{
    Clause, Condition, Key, Name, Revision, Terms, Transaction, Write,
    round::{Company, Round, confirmation},
};

/// One incarnation of a process that serves a zone. Never used twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    pub zone: Name,
    pub incarnation: Name,
}

/// The replica's own session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    id: SessionId,
    /// The revision that created the key; none until it is known.
    created: Option<Revision>,
    deadline: u64,
    /// The renewal under way: its number, and when it was sent.
    renewing: Option<(u64, u64)>,
    /// When the last renewal was sent.
    renewed: Option<u64>,
    round: Option<Round>,
    /// When the last round was due.
    round_at: Option<u64>,
    /// The last round failed: the key is put until one completes.
    aloud: Option<Aloud>,
    /// A put is due even if rounds succeed: the record has changed, or the session is in doubt.
    owed: bool,
    /// The key is put at once, even if rounds renew the session.
    hasty: bool,
    ended: bool,
}

/// Why a session is renewed by puts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Aloud {
    /// The store has not confirmed a round: it did not answer, or a session was created that was
    /// not seen yet.
    Unconfirmed,
    /// These sessions have not acknowledged a beat.
    Unheard(BTreeSet<SessionId>),
}

impl Session {
    /// A session that does not exist yet.
    pub fn new(id: SessionId) -> Session {
        Session {
            id,
            created: None,
            deadline: 0,
            renewing: None,
            renewed: None,
            round: None,
            round_at: None,
            aloud: None,
            owed: false,
            hasty: false,
            ended: false,
        }
    }

    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// The remaining time of the session: the longest possible grant.
    pub fn left(&self, now: u64) -> u64 {
        match self.ended {
            true => 0,
            false => self.deadline.saturating_sub(now),
        }
    }

    /// Whether it did not exist yet, or had expired.
    pub fn was_over(&self, now: u64) -> bool {
        self.created.is_none() || self.deadline < now
    }

    /// Whether it has ended for good: another process ended it, or its creation failed.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The revision that created its key, once known.
    pub fn created(&self) -> Option<Revision> {
        self.created
    }

    /// Whether its creation was sent, and the outcome is unknown yet.
    pub fn is_being_created(&self) -> bool {
        self.created.is_none() && self.renewing.is_some()
    }

    /// When the next put is due; none while one is under way, while rounds suffice, or after the
    /// end.
    pub fn due(&self, terms: &Terms) -> Option<u64> {
        let quiet = self.created.is_some() && self.aloud.is_none() && !self.owed;
        if self.ended || self.renewing.is_some() || quiet {
            return None;
        }
        if self.hasty {
            return Some(0);
        }
        Some(self.renewed.map_or(0, |at| at.saturating_add(every(terms))))
    }

    /// When the next round is due; none before the session is created, or after its end.
    pub fn round_due(&self, terms: &Terms) -> Option<u64> {
        self.created.filter(|_| !self.ended)?;
        let last = self.round_at.or(self.renewed).unwrap_or(0);
        Some(last.saturating_add(every(terms)))
    }

    /// Why it is renewed by puts; none while rounds suffice.
    pub fn aloud(&self) -> Option<&Aloud> {
        self.aloud.as_ref()
    }

    /// Begins a round under this number; the clock runs from now. An unfinished one is abandoned.
    /// Without `company`, before this session was seen in the store, no round begins.
    pub fn begin_round(
        &mut self,
        number: u64,
        company: Option<Company>,
        now: u64,
        terms: &Terms,
    ) -> Option<Transaction> {
        if let Some(round) = self.round.take() {
            let awaited = round.awaited().clone();
            self.aloud = Some(match round.is_confirmed() {
                true => Aloud::Unheard(awaited),
                false => Aloud::Unconfirmed,
            });
        }
        self.round_at = Some(now);
        let (Some(created), Some(company)) = (self.created, company) else {
            self.aloud.get_or_insert(Aloud::Unconfirmed);
            return None;
        };
        let confirmation = confirmation(&self.id, created, company.seen, terms);
        self.round = Some(Round::new(number, now, company.others));
        Some(confirmation)
    }

    /// The store has confirmed a round: returns the sessions to send a beat to.
    pub fn confirmed(&mut self, number: u64) -> BTreeSet<SessionId> {
        let mut round = self.round.iter_mut().filter(|round| round.number == number);
        round.next().map(Round::confirmed).unwrap_or_default()
    }

    /// The store has not confirmed a round.
    pub fn unconfirmed(&mut self, number: u64) {
        if self.round.take_if(|round| round.number == number).is_some() {
            self.aloud = Some(Aloud::Unconfirmed);
        }
    }

    /// Another session has acknowledged a beat to session `of`.
    pub fn heard(&mut self, by: &SessionId, of: &SessionId, number: u64, terms: &Terms) {
        if let Some(round) = self.round.as_mut().filter(|_| *of == self.id) {
            round.heard(by, number, terms);
        }
    }

    /// Another session's key was deleted, and every earlier event of the store was seen: a round
    /// does not wait for it.
    pub fn gone(&mut self, id: &SessionId) {
        if let Some(round) = self.round.as_mut() {
            round.gone(id);
        }
    }

    /// Abandons the round under way: the replica's own key was not listed.
    pub fn forget_round(&mut self) {
        self.round = None;
    }

    /// Renews the session if the round under way is complete; returns whether it did.
    pub fn complete_round(&mut self, now: u64, terms: &Terms) -> bool {
        let Some(round) = self.round.take_if(|round| round.complete(terms)) else {
            return false;
        };
        self.aloud = None;
        let from = match terms.keeps(Clause::RoundFromBegin) {
            true => round.began,
            false => now,
        };
        self.lasts_from(from, terms);
        true
    }

    /// The deadline has no margin for drift: others add it when they wait for the end of this
    /// session (`Terms::session_settled`).
    fn lasts_from(&mut self, from: u64, terms: &Terms) {
        let deadline = from.saturating_add(terms.session_ttl);
        let deadline = deadline.saturating_sub(terms.margin);
        self.deadline = self.deadline.max(deadline);
    }

    /// Begins a renewal under this number; the clock runs from now.
    pub fn renew(&mut self, number: u64, now: u64, terms: &Terms) -> Transaction {
        self.renewing = Some((number, now));
        self.renewed = Some(now);
        self.hasty = false;
        let key = Key::Session(self.id.clone());
        let unended = Condition::CreatedAt(key, self.created.unwrap_or_default());
        Transaction {
            conditions: match self.created.is_none() || terms.keeps(Clause::RenewalCompared) {
                true => alloc::vec![unended],
                false => alloc::vec![],
            },
            writes: alloc::vec![Write::Session(self.id.clone())],
        }
    }

    /// The store has committed a renewal, at `revision`.
    pub fn renewed(&mut self, number: u64, revision: Revision, now: u64, terms: &Terms) {
        let (sent, matched) = match self.renewing {
            Some((current, sent)) => (sent, current == number),
            None => (now, false),
        };
        if !matched && terms.keeps(Clause::RenewalMatched) {
            return;
        }
        self.renewing = None;
        self.owed = false;
        self.created.get_or_insert(revision);
        let from = match terms.keeps(Clause::DeadlineFromSend) {
            true => sent,
            false => now,
        };
        self.lasts_from(from, terms);
    }

    /// Shortens the session by `by`: the agreed time to live is shorter than at the last renewal,
    /// and others will not wait longer.
    pub fn shorten(&mut self, by: u64) {
        self.deadline = self.deadline.saturating_sub(by);
    }

    /// The store has rejected a renewal: another process has ended the session.
    pub fn refused(&mut self, number: u64) {
        if self.renewing.is_some_and(|(current, _)| current == number) {
            self.end();
        }
    }

    /// The outcome of a renewal is unknown. Another renewal is harmless. But if the creation is
    /// unknown, the key may exist under an unknown revision, so the incarnation is abandoned.
    pub fn failed(&mut self, number: u64) {
        if self.renewing.is_some_and(|(current, _)| current == number) {
            self.renewing = None;
            self.ended |= self.created.is_none();
        }
    }

    /// The session is in doubt, or its record has changed: its key is put at once.
    pub fn hurry(&mut self) {
        self.owed = true;
        self.hasty = true;
    }

    /// Ends it: nothing more is granted.
    pub fn end(&mut self) {
        self.ended = true;
        self.renewing = None;
        self.round = None;
    }
}

/// The interval of renewals.
fn every(terms: &Terms) -> u64 {
    (terms.session_ttl / 4).max(1)
}

/// All known sessions, and since when each is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sessions {
    heard: BTreeMap<SessionId, Heard>,
    /// Every put from before this time was seen, except the entries of `heard`.
    since: u64,
    /// The newest put that was seen. Every session created up to it was seen as well.
    seen: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Heard {
    /// The revision of the last put; none after the key was deleted.
    put: Option<Revision>,
    /// When that put, or a later beat, was seen.
    at: u64,
    /// A transaction was sent that ends the session unless it was put since.
    passed_over: bool,
}

impl Heard {
    fn new(put: Option<Revision>, at: u64) -> Heard {
        Heard {
            put,
            at,
            passed_over: false,
        }
    }
}

impl Sessions {
    /// A session's key was put.
    pub fn put(&mut self, id: SessionId, revision: Revision, now: u64) {
        self.seen = self.seen.max(revision);
        let heard = self.heard.entry(id).or_insert(Heard::new(None, now));
        if heard.put != Some(revision) {
            *heard = Heard::new(Some(revision), now);
        }
    }

    /// A session's beat has arrived. Returns whether to acknowledge it; then its silence is counted
    /// from now.
    pub fn beat(&mut self, id: &SessionId, now: u64, terms: &Terms) -> bool {
        let heard = self.heard.get_mut(id);
        let Some(heard) = heard.filter(|h| h.put.is_some()) else {
            return !terms.keeps(Clause::HeardWhilePresent);
        };
        if heard.passed_over && terms.keeps(Clause::PassedOverUnheard) {
            return false;
        }
        heard.at = now;
        true
    }

    /// A transaction is sent that ends the session if its last put is the one that was seen. It may
    /// be committed at any later time, even after an error, so that only another put is a sign of
    /// life.
    pub fn pass_over(&mut self, id: &SessionId) {
        if let Some(heard) = self.heard.get_mut(id) {
            heard.passed_over = true;
        }
    }

    /// The replica's own session was created, or renewed after it had expired. Others that
    /// confirmed a round before the creation do not know it, and sent no beat.
    pub fn joined(&mut self, now: u64, terms: &Terms) {
        if terms.keeps(Clause::SilenceAnewAfterCreation) {
            self.since = now;
            for heard in self.heard.values_mut() {
                heard.at = now;
            }
        }
    }

    /// The other sessions, as `own` needs them for a round; none if `own` itself was not seen.
    pub fn company(&self, own: &SessionId) -> Option<Company> {
        self.put_at(own)?;
        let others = self.present().map(|(id, _)| id);
        Some(Company {
            others: others.filter(|id| *id != own).cloned().collect(),
            seen: self.seen,
        })
    }

    /// A session's key was deleted, and every earlier put was seen.
    pub fn gone(&mut self, id: &SessionId) {
        if let Some(heard) = self.heard.get_mut(id) {
            heard.put = None;
        }
    }

    /// Everything was listed: puts may have been missed.
    pub fn listed(&mut self, listed: &BTreeMap<SessionId, Revision>, now: u64, terms: &Terms) {
        let anew = terms.keeps(Clause::SilenceAnewAfterListing);
        if anew || self.heard.is_empty() {
            self.since = now;
        }
        for (id, heard) in &mut self.heard {
            if !listed.contains_key(id) {
                heard.put = None;
                if anew {
                    heard.at = now;
                }
            }
        }
        for (id, revision) in listed {
            self.put(id.clone(), *revision, now);
        }
    }

    /// The revision of the last put; none without a key.
    pub fn put_at(&self, id: &SessionId) -> Option<Revision> {
        self.heard.get(id).and_then(|heard| heard.put)
    }

    /// Whether the session's key shows its end: it was deleted, or silent for the time to live.
    pub fn over(&self, id: &SessionId, now: u64, terms: &Terms) -> bool {
        match self.heard.get(id) {
            Some(Heard {
                put: Some(_), at, ..
            }) => now >= at.saturating_add(terms.session_over()),
            _ => true,
        }
    }

    /// When every grant and write under the session has certainly ended, if it is never renewed
    /// again.
    pub fn settled_at(&self, id: &SessionId, terms: &Terms) -> u64 {
        let at = self.heard.get(id).map_or(self.since, |heard| heard.at);
        at.saturating_add(terms.session_settled())
    }

    /// When everything was last listed.
    pub fn listed_at(&self) -> u64 {
        self.since
    }

    /// Whether a zone is lost to authority: none of its sessions gave a sign of life for as long as
    /// a session lasts. A *deleted* session gets the same patience as a silent one, since its
    /// process may be about to begin another: a move of one cell also ends the session of the
    /// zone's other cells, and a process that stops may restart. Safety does not rest on this: a
    /// takeover waits until everything under the session has settled
    /// ([`settled_at`](Sessions::settled_at)).
    pub fn lost(&self, zone: &str, now: u64, terms: &Terms) -> bool {
        self.lost_at(zone, terms).is_none_or(|at| now >= at)
    }

    /// When a zone will be lost without another sign of life; none if it never gave one, or the
    /// last one is long ago.
    pub fn lost_at(&self, zone: &str, terms: &Terms) -> Option<u64> {
        let awaits_deleted = terms.keeps(Clause::DeletedIsAwaited);
        let of_zone = self
            .heard
            .iter()
            .filter(|(id, heard)| &*id.zone == zone && (heard.put.is_some() || awaits_deleted));
        let heard = of_zone.map(|(_, heard)| heard.at).max();
        heard.map(|at| at.saturating_add(terms.session_over()))
    }

    /// Whether a zone has a session that has not ended.
    pub fn alive(&self, zone: &str, now: u64, terms: &Terms) -> bool {
        let mut of_zone = self.of_zone(zone);
        of_zone.any(|(id, put)| put.is_some() && !self.over(id, now, terms))
    }

    /// A zone's sessions, with the revisions of their last puts.
    pub fn of_zone<'s>(
        &'s self,
        zone: &'s str,
    ) -> impl Iterator<Item = (&'s SessionId, Option<Revision>)> {
        self.heard
            .iter()
            .filter(move |(id, _)| &*id.zone == zone)
            .map(|(id, heard)| (id, heard.put))
    }

    /// All sessions whose keys exist.
    pub fn present(&self) -> impl Iterator<Item = (&SessionId, Revision)> {
        self.heard
            .iter()
            .filter_map(|(id, heard)| Some((id, heard.put?)))
    }

    /// A session whose key exists and that was silent for at least `span`.
    pub fn silent_for(&self, span: u64, now: u64) -> Option<(&SessionId, Revision)> {
        let mut heard = self.heard.iter();
        heard.find_map(|(id, heard)| match heard.put {
            Some(put) if now >= heard.at.saturating_add(span) => Some((id, put)),
            _ => None,
        })
    }

    /// Removes entries without use: sessions without a key that were waited for long enough.
    pub fn tidy(&mut self, now: u64, terms: &Terms) {
        let settled = terms.session_settled();
        let still_tells = |at: u64| at.saturating_add(settled) > now;
        self.heard
            .retain(|_, heard| heard.put.is_some() || still_tells(heard.at));
    }
}
