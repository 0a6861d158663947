//! How authority moves: begin, complete, settle, abort. Any replica may take the next step of a
//! move, including moves that another one began.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::{
    Authority, AuthorityState, Cause, Clause, Condition, Key, Move, Name, Revision, SessionId,
    Sessions, Terms, Transaction, Unsettled, Write,
};

/// The most sessions that a takeover compares.
const COMPARED_MAX: usize = 32;

/// A cell as one replica sees it.
#[derive(Clone, Debug)]
pub struct View<'v> {
    pub cell: &'v Name,
    pub revision: Revision,
    /// When this replica saw that revision.
    pub seen_at: u64,
    pub authority: &'v Authority,
    /// The incarnations that are registered to grant.
    pub grantors: &'v BTreeSet<SessionId>,
}

impl View<'_> {
    fn unchanged(&self) -> Condition {
        Condition::PutAt(Key::Authority(self.cell.clone()), self.revision)
    }

    fn replace(&self, authority: Authority) -> Transaction {
        Transaction {
            conditions: alloc::vec![self.unchanged()],
            writes: alloc::vec![Write::Authority(self.cell.clone(), authority)],
        }
    }

    /// Removes every owner, including those that stay owners.
    pub fn begin(&self, next: Move, terms: &Terms) -> Transaction {
        let mut fencing = self.authority.clone();
        fencing.state = AuthorityState::Fencing(next);
        if !terms.keeps(Clause::UnsettledCarried) {
            fencing.unsettled = Unsettled::none();
        }
        self.replace(fencing)
    }

    /// Removes every owner because the owners' sessions have ended. If one of those sessions was
    /// renewed since, which a replica with a lagging watch cannot know, the transaction fails.
    pub fn begin_lost(&self, next: Move, sessions: &Sessions, terms: &Terms) -> Transaction {
        let mut transaction = self.begin(next, terms);
        if !terms.keeps(Clause::TakeoverComparesSessions) {
            return transaction;
        }
        let owners = self.authority.owners.iter();
        let of_owners = owners.flat_map(|zone| sessions.of_zone(zone));
        // Only the newest matter, and a transaction has room for this many.
        let mut silent: Vec<(Revision, &SessionId)> =
            of_owners.filter_map(|(id, put)| Some((put?, id))).collect();
        silent.sort_unstable_by(|a, b| b.cmp(a));
        let unrenewed = silent.into_iter().take(COMPARED_MAX);
        transaction
            .conditions
            .extend(unrenewed.map(|(put, id)| Condition::PutAt(Key::Session(id.clone()), put)));
        transaction
    }

    /// Names the new owners, if nothing blocks the move.
    ///
    /// A grantor that is still registered blocks it until its session has ended. Then the move ends
    /// that session, unless it was renewed meanwhile. Grants under it have to settle before the new
    /// owners grant.
    pub fn complete(&self, sessions: &Sessions, now: u64, terms: &Terms) -> Option<Transaction> {
        let AuthorityState::Fencing(next) = &self.authority.state else {
            return None;
        };
        let mut unsettled = match &self.authority.unsettled {
            Unsettled::Unknown => None,
            Unsettled::Of(carried) => Some(carried.clone()),
        };
        let mut transaction = Transaction::default();
        if terms.keeps(Clause::MoveComparesAuthority) {
            transaction.conditions.push(self.unchanged());
        }
        for id in self.grantors {
            let forced = next.cause == Cause::Override;
            if !forced && !sessions.over(id, now, terms) {
                match terms.keeps(Clause::MoveWaitsForGrantors) {
                    true => return None,
                    false => continue,
                }
            }
            let key = Key::Session(id.clone());
            let put_at = sessions.put_at(id);
            if terms.keeps(Clause::MoveComparesSessions) {
                let silent = Condition::PutAt(key.clone(), put_at.unwrap_or_default());
                transaction.conditions.push(silent);
            }
            if put_at.is_some() && terms.keeps(Clause::MoveEndsSessions) {
                transaction.writes.push(Write::Delete(key));
            }
            let grantor = Key::Grantor(self.cell.clone(), id.clone());
            transaction.writes.push(Write::Delete(grantor));
            if let Some(unsettled) = &mut unsettled {
                unsettled.insert(id.clone());
            }
        }
        let unsettled = match unsettled {
            None => Unsettled::Unknown,
            Some(sessions_of_old) => Unsettled::Of(
                (sessions_of_old.into_iter())
                    .filter(|id| sessions.settled_at(id, terms) > now)
                    .collect(),
            ),
        };
        let settled = unsettled.is_none() || !terms.keeps(Clause::MoveSettles);
        let epoch = self.authority.epoch.saturating_add(1).max(next.epoch_min);
        let stays = |zone: &&Name| !next.to.contains(zone);
        let standby = self.authority.standby.iter().chain(&self.authority.owners);
        let mut in_order: Vec<Name> = Vec::new();
        for zone in standby.filter(stays) {
            if !in_order.contains(zone) {
                in_order.push(zone.clone());
            }
        }
        let moved = Authority {
            store: self.authority.store,
            epoch,
            owners: next.to.clone(),
            standby: in_order,
            state: match settled {
                true => AuthorityState::Active,
                false => AuthorityState::Settling,
            },
            unsettled: match settled {
                true => Unsettled::none(),
                false => unsettled,
            },
            hold: next.hold,
        };
        transaction
            .writes
            .push(Write::Authority(self.cell.clone(), moved));
        Some(transaction)
    }

    /// When earlier grants have certainly expired; none if none has to settle.
    pub fn settled_at(&self, sessions: &Sessions, terms: &Terms) -> Option<u64> {
        if self.authority.state != AuthorityState::Settling {
            return None;
        }
        Some(match &self.authority.unsettled {
            Unsettled::Unknown => self.seen_at.saturating_add(terms.session_settled()),
            Unsettled::Of(ids) => {
                let each = ids.iter().map(|id| sessions.settled_at(id, terms));
                each.max().unwrap_or(0)
            }
        })
    }

    /// Lets the owners write, if this replica itself has waited long enough.
    pub fn settle(&self, sessions: &Sessions, now: u64, terms: &Terms) -> Option<Transaction> {
        if self.settled_at(sessions, terms)? > now {
            return None;
        }
        let mut active = self.authority.clone();
        active.state = AuthorityState::Active;
        active.unsettled = Unsettled::none();
        Some(self.replace(active))
    }

    /// Aborts a move: the owners stay the same.
    pub fn abort(&self) -> Transaction {
        let mut back = self.authority.clone();
        back.state = match back.unsettled.is_none() {
            true => AuthorityState::Active,
            false => AuthorityState::Settling,
        };
        self.replace(back)
    }

    /// Replaces an authority that another store left behind, at an operator's request. Everything
    /// granted under it is waited for, since this store cannot know it.
    pub fn recover(
        &self,
        store: u64,
        epoch_min: u64,
        owners: Vec<Name>,
        terms: &Terms,
        hold: u64,
    ) -> Transaction {
        let old = self.authority;
        let standby = old.standby.iter().chain(&old.owners);
        let standby: BTreeSet<&Name> = standby.filter(|zone| !owners.contains(zone)).collect();
        let standby = standby.into_iter().cloned().collect();
        let epoch = old.epoch.max(epoch_min).saturating_add(1);
        let first = Authority::first(store, epoch, owners, standby, terms);
        self.replace(Authority { hold, ..first })
    }
}

/// The zone that should own a cell because its owners cannot serve writes. It is the first of the
/// standby order that is out for fewer services than the owners, and for none that the owners still
/// serve. `out` lists, by zone, the services that cannot be written to there. `unheld` lists the
/// zones without a proxy that could hold grants: none of them is better.
pub fn better_zone(
    authority: &Authority,
    out: &BTreeMap<Name, BTreeSet<Name>>,
    unheld: &BTreeSet<Name>,
) -> Option<Name> {
    let none = BTreeSet::new();
    let of = |zone: &Name| out.get(zone).unwrap_or(&none);
    // A service is served by the owners if one of them serves it.
    let (first, others) = authority.owners.split_first()?;
    let missing = others.iter().fold(of(first).clone(), |missing, owner| {
        missing.intersection(of(owner)).cloned().collect()
    });
    let better = |zone: &&Name| of(zone).is_subset(&missing) && of(zone).len() < missing.len();
    let mut held = authority
        .standby
        .iter()
        .filter(|zone| !unheld.contains(*zone));
    held.find(better).cloned()
}
