//! Sessions: one's own, and those of others.
//!
//! A session is a key without a lease, which its incarnation creates and then renews: by a
//! [`round`](super::round) in which all other replicas acknowledge that they have heard it, and
//! where that does not succeed by putting the key again. Each renewal rests on an answer that the
//! store's majority stands behind, so that no stale leader can answer for it and no lease can end
//! early unseen. Each replica counts the silence of the others by its own clock. A session is ended
//! by deleting its key, and never comes back: a renewal compares that the key is still the one that
//! was created.

use alloc::collections::{BTreeMap, BTreeSet};

use super::{
    Clause, Condition, Key, Name, Revision, Terms, Transaction, Write,
    round::{Company, Round, confirmation},
};

/// One incarnation of a process that speaks for a zone. Never used twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    pub zone: Name,
    pub incarnation: Name,
}

/// One's own session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    id: SessionId,
    /// The revision that created the key; none before that is known.
    created: Option<Revision>,
    deadline: u64,
    /// The renewal under way: its number, and when it was sent.
    renewing: Option<(u64, u64)>,
    /// When the last renewal was sent.
    renewed: Option<u64>,
    round: Option<Round>,
    /// When the last round was due.
    round_at: Option<u64>,
    /// The last round came to nothing: the key is put until one completes.
    aloud: Option<Aloud>,
    /// A put is wanted whatever rounds do: something has to be said, or is in doubt.
    owed: bool,
    /// The key is to be put now, whatever else renews the session.
    hasty: bool,
    ended: bool,
}

/// Why a session is renewed by puts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Aloud {
    /// The store has not confirmed a round: it did not answer, or a session was created that was
    /// not seen yet.
    Unconfirmed,
    /// These have not acknowledged a beat.
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

    /// The time that is left of it: the longest possible grant.
    pub fn left(&self, now: u64) -> u64 {
        match self.ended {
            true => 0,
            false => self.deadline.saturating_sub(now),
        }
    }

    /// Whether it was not there yet, or over for some time.
    pub fn was_over(&self, now: u64) -> bool {
        self.created.is_none() || self.deadline < now
    }

    /// Whether it is over for good: another process ended it, or its creation failed.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The revision that created its key, once that is known.
    pub fn created(&self) -> Option<Revision> {
        self.created
    }

    /// Whether it was asked for, and the outcome is unknown yet.
    pub fn is_being_created(&self) -> bool {
        self.created.is_none() && self.renewing.is_some()
    }

    /// When the next put is due; none while one is under way, while rounds do without, or when it
    /// has ended.
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

    /// When the next round is due; none before the session is created, or when it has ended.
    pub fn round_due(&self, terms: &Terms) -> Option<u64> {
        self.created.filter(|_| !self.ended)?;
        let last = self.round_at.or(self.renewed).unwrap_or(0);
        Some(last.saturating_add(every(terms)))
    }

    /// Why it is renewed by puts; none while rounds do without.
    pub fn aloud(&self) -> Option<&Aloud> {
        self.aloud.as_ref()
    }

    /// Begins a round under this number; the clock runs from now. An unfinished one comes to
    /// nothing. Without `company`, where the own session was not seen in the store yet, there is
    /// none.
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

    /// The store has confirmed a round: the sessions to send a beat to.
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

    /// Another session's key was deleted, and everything that the store did before was seen: a
    /// round does not wait for it.
    pub fn gone(&mut self, id: &SessionId) {
        if let Some(round) = self.round.as_mut() {
            round.gone(id);
        }
    }

    /// The round under way comes to nothing: the own key was not listed.
    pub fn forget_round(&mut self) {
        self.round = None;
    }

    /// Renews the session if the round under way is complete; says whether.
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

    /// No room for drift here: the wait for this session to be over leaves it
    /// (`Terms::session_settled`).
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

    /// The store has taken a renewal, at `revision`.
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

    /// It lasts shorter than was agreed when it was renewed last, by so much: others will not wait
    /// for longer.
    pub fn shorten(&mut self, by: u64) {
        self.deadline = self.deadline.saturating_sub(by);
    }

    /// The store has refused a renewal: another process has ended the session.
    pub fn refused(&mut self, number: u64) {
        if self.renewing.is_some_and(|(current, _)| current == number) {
            self.end();
        }
    }

    /// The outcome of a renewal is unknown. Another can do no harm; but where the creation is
    /// unknown, the key may exist under a revision that is unknown here, so that incarnation is
    /// given up.
    pub fn failed(&mut self, number: u64) {
        if self.renewing.is_some_and(|(current, _)| current == number) {
            self.renewing = None;
            self.ended |= self.created.is_none();
        }
    }

    /// Something about it is in doubt, or has to be said: its key is to be put now.
    pub fn hurry(&mut self) {
        self.owed = true;
        self.hasty = true;
    }

    /// Gives it up: nothing more is granted.
    pub fn end(&mut self) {
        self.ended = true;
        self.renewing = None;
        self.round = None;
    }
}

/// How long after a renewal the next is due.
fn every(terms: &Terms) -> u64 {
    (terms.session_ttl / 4).max(1)
}

/// All sessions as far as they are known, and since when each is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sessions {
    heard: BTreeMap<SessionId, Heard>,
    /// Everything that was put before this was seen, but for the entries of `heard`.
    since: u64,
    /// The newest put that was seen, and so every session that was created up to it.
    seen: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Heard {
    /// The revision of the last put; none when the key is gone.
    put: Option<Revision>,
    /// When that put was seen, or a beat since.
    at: u64,
    /// A transaction was sent that would end the session, unless it was put since.
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

    /// A session's beat has come: whether it may be acknowledged, since its silence is counted from
    /// now.
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
    /// be made at any time from now on, whatever is heard of it, so that nothing but another put is
    /// a sign of life.
    pub fn pass_over(&mut self, id: &SessionId) {
        if let Some(heard) = self.heard.get_mut(id) {
            heard.passed_over = true;
        }
    }

    /// The own session was created, or renewed after it had been over. Others that have confirmed a
    /// round before it was created know nothing of it, and sent no beat.
    pub fn joined(&mut self, now: u64, terms: &Terms) {
        if terms.keeps(Clause::SilenceAnewAfterCreation) {
            self.since = now;
            for heard in self.heard.values_mut() {
                heard.at = now;
            }
        }
    }

    /// The other sessions, as `own` needs them for a round; none where `own` itself was not seen.
    pub fn company(&self, own: &SessionId) -> Option<Company> {
        self.put_at(own)?;
        let others = self.present().map(|(id, _)| id);
        Some(Company {
            others: others.filter(|id| *id != own).cloned().collect(),
            seen: self.seen,
        })
    }

    /// A session's key was deleted, and every put before that was seen.
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

    /// The revision of the last put; none where there is no key.
    pub fn put_at(&self, id: &SessionId) -> Option<Revision> {
        self.heard.get(id).and_then(|heard| heard.put)
    }

    /// Whether the session is over by what its key tells: it is gone, or was silent for the time to
    /// live.
    pub fn over(&self, id: &SessionId, now: u64, terms: &Terms) -> bool {
        match self.heard.get(id) {
            Some(Heard {
                put: Some(_), at, ..
            }) => now >= at.saturating_add(terms.session_over()),
            _ => true,
        }
    }

    /// When everything that hung on the session is certainly over, if it is never renewed again.
    pub fn settled_at(&self, id: &SessionId, terms: &Terms) -> u64 {
        let at = self.heard.get(id).map_or(self.since, |heard| heard.at);
        at.saturating_add(terms.session_settled())
    }

    /// When everything was last listed.
    pub fn listed_at(&self) -> u64 {
        self.since
    }

    /// Whether a zone is lost to authority: none of its sessions was heard of for as long as a
    /// session lasts. A session that was *deleted* gets the same patience as a silent one, since
    /// its process may be about to begin another: a move of one cell ends the session on which the
    /// zone's other cells hang as well, and a process that stops may start again. Safety does not
    /// rest on this: whatever is taken over waits for what the session left behind
    /// ([`settled_at`](Sessions::settled_at)).
    pub fn lost(&self, zone: &str, now: u64, terms: &Terms) -> bool {
        self.lost_at(zone, terms).is_none_or(|at| now >= at)
    }

    /// When a zone will be lost, if nothing is heard of it; none where nothing ever was, or that is
    /// long ago.
    pub fn lost_at(&self, zone: &str, terms: &Terms) -> Option<u64> {
        let awaits_deleted = terms.keeps(Clause::DeletedIsAwaited);
        let of_zone = self
            .heard
            .iter()
            .filter(|(id, heard)| &*id.zone == zone && (heard.put.is_some() || awaits_deleted));
        let heard = of_zone.map(|(_, heard)| heard.at).max();
        heard.map(|at| at.saturating_add(terms.session_over()))
    }

    /// Whether a zone has a session that is not over.
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

    /// All sessions whose keys are there.
    pub fn present(&self) -> impl Iterator<Item = (&SessionId, Revision)> {
        self.heard
            .iter()
            .filter_map(|(id, heard)| Some((id, heard.put?)))
    }

    /// A session whose key is there and was silent for at least `span`.
    pub fn silent_for(&self, span: u64, now: u64) -> Option<(&SessionId, Revision)> {
        let mut heard = self.heard.iter();
        heard.find_map(|(id, heard)| match heard.put {
            Some(put) if now >= heard.at.saturating_add(span) => Some((id, put)),
            _ => None,
        })
    }

    /// Forgets entries without meaning: sessions without a key that were waited for long
    /// enough.
    pub fn tidy(&mut self, now: u64, terms: &Terms) {
        let settled = terms.session_settled();
        let still_tells = |at: u64| at.saturating_add(settled) > now;
        self.heard
            .retain(|_, heard| heard.put.is_some() || still_tells(heard.at));
    }
}
