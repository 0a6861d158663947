//! A replica that grants: registration, grants, and leaving at a fence.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{Authority, AuthorityState, Clause, HolderId, Revision, Stamp, Terms};

/// Permission to admit writes for a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The authority under which it is granted.
    pub stamp: Stamp,
    /// Counted from before the request was sent.
    pub ttl: u64,
}

/// Why a holder is withheld a grant that others of its zone may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Withheld {
    /// Its policy has other terms than the agreed ones.
    OtherTerms,
    /// It does not report the terms of its policy, and the terms have changed before.
    UnsaidTerms,
}

/// The grants of one incarnation for one cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grantor {
    stage: Stage,
    /// The newest authority that was seen.
    seen: Stamp,
    /// Whether the grantor key may be in the store.
    key: bool,
    /// The registration under way, and the authority revision that it compares. A leave that
    /// compares the same revision waits for its outcome: their order would be unknown.
    registering: Option<(u64, Revision)>,
    /// Grants that were not returned.
    owed: BTreeMap<HolderId, Owed>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Stage {
    /// Its zone is not an owner, or the authority is not active.
    #[default]
    Idle,
    /// May register; `asked` while a registration is under way.
    Unregistered {
        at: Stamp,
        asked: Option<u64>,
    },
    Granting(Stamp),
    /// Waits for the holders; `asked` while its key is being deleted. `revoked`: the authority has
    /// moved on, so holders return their grants; otherwise only this grantor has stopped, and its
    /// grants expire.
    Leaving {
        fence: Stamp,
        asked: Option<u64>,
        revoked: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Owed {
    /// When the grant, and every write admitted under it, has expired.
    run_out: u64,
    /// The stamp of the newest grant.
    stamp: Stamp,
}

/// The result of [`Grantor::see`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// No news.
    Old,
    /// It may register.
    Active,
    /// Grants from before this stamp must be returned.
    Fenced(Stamp),
}

impl Grantor {
    /// The authority was seen at `revision`; none if it is absent. `zone` is this replica's zone,
    /// `store` the store that answered.
    pub fn see(
        &mut self,
        revision: Revision,
        authority: Option<&Authority>,
        zone: &str,
        store: u64,
        terms: &Terms,
    ) -> Seen {
        let epoch = authority.map_or(self.seen.epoch, |authority| authority.epoch);
        let at = Stamp { epoch, revision };
        if at <= self.seen && terms.keeps(Clause::ViewNeverBack) || at == self.seen {
            return Seen::Old;
        }
        self.seen = at;
        let own = authority.filter(|a| a.store == store || !terms.keeps(Clause::BoundToStore));
        match own {
            Some(own) if own.state == AuthorityState::Active && own.is_owner(zone) => {
                self.stage = match terms.keeps(Clause::Registered) {
                    true => Stage::Unregistered { at, asked: None },
                    false => Stage::Granting(at),
                };
                Seen::Active
            }
            _ => {
                self.stage = Stage::Leaving {
                    fence: at,
                    asked: None,
                    revoked: true,
                };
                Seen::Fenced(at)
            }
        }
    }

    /// Begins a registration under `number`, if one is due: returns the revision to compare.
    pub fn register(&mut self, number: u64) -> Option<Revision> {
        match &mut self.stage {
            Stage::Unregistered {
                at,
                asked: asked @ None,
            } => {
                *asked = Some(number);
                self.key = true;
                self.registering = Some((number, at.revision));
                Some(at.revision)
            }
            _ => None,
        }
    }

    /// A transaction that makes this zone an owner and registers with it is sent: the key may exist
    /// from now on.
    pub fn registers_with_move(&mut self) {
        self.key = true;
    }

    /// That transaction was committed, at `at`.
    pub fn moved(&mut self, at: Stamp) {
        let registering = matches!(self.stage, Stage::Unregistered { at: seen, .. } if seen == at);
        if at > self.seen || registering {
            self.seen = at;
            self.stage = Stage::Granting(at);
            // The answer to a leave may have arrived meanwhile.
            self.key = true;
        }
    }

    /// Whether its key is being deleted.
    pub fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving { asked: Some(_), .. })
    }

    /// Whether it waits to register.
    pub fn wants_registration(&self) -> bool {
        matches!(self.stage, Stage::Unregistered { asked: None, .. })
    }

    /// Handles the outcome of the registration, or of the leave, under `number`. `None`: unknown.
    pub fn answered(&mut self, number: u64, committed: Option<bool>) {
        if self
            .registering
            .is_some_and(|(under_way, _)| under_way == number)
        {
            self.registering = None;
        }
        match &mut self.stage {
            Stage::Unregistered { at, asked } if *asked == Some(number) => match committed {
                Some(true) => self.stage = Stage::Granting(*at),
                // The authority has moved on, or the session has ended: the watch reports which.
                Some(false) => {}
                None => *asked = None,
            },
            Stage::Leaving { asked, .. } if *asked == Some(number) => match committed {
                Some(true) => {
                    self.key = false;
                    self.stage = Stage::Idle;
                }
                Some(false) => {}
                None => *asked = None,
            },
            _ => {}
        }
    }

    /// Grants to a holder, if permitted: recording and granting are one step. `left` is the
    /// remaining time of the session.
    pub fn grant(&mut self, holder: HolderId, left: u64, now: u64, terms: &Terms) -> Option<Grant> {
        let stamp = match self.stage {
            Stage::Granting(stamp) => stamp,
            Stage::Leaving { fence, .. } if !terms.keeps(Clause::StopAtFence) => fence,
            _ => return None,
        };
        if left == 0 {
            return None;
        }
        let ttl = match terms.keeps(Clause::GrantWithinSession) {
            true => terms.grant_ttl.min(left),
            false => terms.grant_ttl,
        };
        if terms.keeps(Clause::HolderRecorded) {
            let drain = match terms.keeps(Clause::RunOutDrain) {
                true => terms.write_drain_waited,
                false => 0,
            };
            let span = ttl.saturating_add(drain);
            let wait = match terms.keeps(Clause::RunOutDrift) {
                true => terms.stretch(span),
                false => span,
            };
            let run_out = now.saturating_add(wait);
            let owed = self.owed.entry(holder).or_insert(Owed { run_out, stamp });
            owed.run_out = owed.run_out.max(run_out);
            owed.stamp = stamp;
        }
        Some(Grant { stamp, ttl })
    }

    /// A holder confirms that no write from before `fence` is under way, or ever will be.
    pub fn drained(&mut self, holder: HolderId, fence: Stamp, terms: &Terms) {
        let older = |owed: &Owed| owed.stamp < fence;
        if self.owed.get(&holder).is_some_and(older)
            || !terms.keeps(Clause::AcknowledgementNamesFence)
        {
            self.owed.remove(&holder);
        }
    }

    /// The fence that holders must acknowledge, and the holders that have not.
    pub fn fence(&self) -> Option<(Stamp, Vec<HolderId>)> {
        match self.stage {
            Stage::Leaving { fence, .. } => Some((fence, self.owed.keys().copied().collect())),
            _ => None,
        }
    }

    /// The stamp that holders which connect now have to return. It excludes grants that only this
    /// grantor has stopped: other grantors of the zone continue to grant under that stamp.
    pub fn revoked(&self) -> Option<Stamp> {
        match self.stage {
            Stage::Leaving {
                fence,
                revoked: true,
                ..
            } => Some(fence),
            _ => None,
        }
    }

    /// The terms have changed: a registration that the old terms prevented is retried.
    pub fn terms_changed(&mut self) {
        if let Stage::Unregistered { asked, .. } = &mut self.stage {
            *asked = None;
        }
    }

    /// The store has this grantor's key. A key that was put late is deleted.
    pub fn key_seen(&mut self) {
        self.key = true;
        if self.stage == Stage::Idle {
            self.stage = Stage::Leaving {
                fence: self.seen,
                asked: None,
                revoked: false,
            };
        }
    }

    /// Begins to leave under `number`, if all grants were returned or have expired: returns the
    /// revision to compare.
    pub fn leave(&mut self, number: u64, now: u64, terms: &Terms) -> Option<Revision> {
        if !self.may_leave(now, terms) {
            return None;
        }
        match &mut self.stage {
            Stage::Leaving {
                fence,
                asked: asked @ None,
                ..
            } => {
                *asked = Some(number);
                Some(fence.revision)
            }
            _ => None,
        }
    }

    fn may_leave(&mut self, now: u64, terms: &Terms) -> bool {
        let compares =
            |at| matches!(self.stage, Stage::Leaving { fence, .. } if fence.revision == at);
        if self.registering.is_some_and(|(_, at)| compares(at)) {
            return false;
        }
        if !self.key {
            if matches!(self.stage, Stage::Leaving { .. }) && self.owed.is_empty() {
                self.stage = Stage::Idle;
            }
            return false;
        }
        self.owed.retain(|_, owed| owed.run_out > now);
        self.owed.is_empty() || !terms.keeps(Clause::WaitForHolders)
    }

    /// When the last grant expires; none if there is no grant.
    pub fn run_out(&self) -> Option<u64> {
        self.owed.values().map(|owed| owed.run_out).max()
    }

    /// The stamp under which it grants.
    pub fn granting(&self) -> Option<Stamp> {
        match self.stage {
            Stage::Granting(stamp) => Some(stamp),
            _ => None,
        }
    }

    /// The number of holders with a grant.
    pub fn holders(&self) -> usize {
        self.owed.len()
    }

    /// Whether it had [stopped](Grantor::stop), and has left.
    pub fn has_left(&self) -> bool {
        self.stage == Stage::Idle && !self.key
    }

    /// Permits another registration under the authority under which it left: only a model checker
    /// allows that.
    pub(super) fn resume(&mut self) {
        self.stage = Stage::Unregistered {
            at: self.seen,
            asked: None,
        };
    }

    /// Grants nothing more until it sees a newer authority.
    pub fn stop(&mut self) {
        if matches!(self.stage, Stage::Granting(_) | Stage::Unregistered { .. }) {
            self.stage = Stage::Leaving {
                fence: self.seen,
                asked: None,
                revoked: false,
            };
        }
    }
}
