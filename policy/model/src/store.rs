//! The store: the agreement of its majority, and its events for watchers.

use std::collections::BTreeMap;

use policy::fence::{
    Agreement, Authority, Condition, Input, Key, Listing, Name, Revision, SessionId, Transaction,
    Write,
};

/// A store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    pub id: u64,
    revision: u64,
    authorities: BTreeMap<Name, (Stands, Authority)>,
    sessions: BTreeMap<SessionId, Stands>,
    /// With the revision of the terms that each registered under.
    grantors: BTreeMap<(Name, SessionId), (Stands, Revision)>,
    terms: Option<(Stands, Agreement)>,
}

/// The revisions of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stands {
    created: Revision,
    put: Revision,
}

impl Store {
    pub fn new(id: u64) -> Store {
        Store {
            id,
            revision: 0,
            authorities: BTreeMap::new(),
            sessions: BTreeMap::new(),
            grantors: BTreeMap::new(),
            terms: None,
        }
    }

    pub fn authority(&self, cell: &str) -> Option<&Authority> {
        self.authorities.get(cell).map(|(_, authority)| authority)
    }

    pub fn authorities(&self) -> impl Iterator<Item = (&Name, &Authority)> {
        (self.authorities.iter()).map(|(cell, (_, authority))| (cell, authority))
    }

    /// The agreed terms, and the revision of their last put.
    pub fn terms(&self) -> Option<(Revision, &Agreement)> {
        let (stands, agreement) = self.terms.as_ref()?;
        Some((stands.put, agreement))
    }

    fn stands(&self, key: &Key) -> Option<Stands> {
        match key {
            Key::Authority(cell) => self.authorities.get(cell).map(|(stands, _)| *stands),
            Key::Session(id) => self.sessions.get(id).copied(),
            Key::Grantor(cell, id) => {
                let key = (cell.clone(), id.clone());
                self.grantors.get(&key).map(|(stands, _)| *stands)
            }
            Key::Terms => self.terms.as_ref().map(|(stands, _)| *stands),
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        let none = Revision(0);
        match condition {
            Condition::PutAt(key, at) => self.stands(key).map_or(none, |s| s.put) == *at,
            Condition::CreatedAt(key, at) => self.stands(key).map_or(none, |s| s.created) == *at,
            Condition::NoSessionSince(seen) => self.sessions.values().all(|s| s.created <= *seen),
        }
    }

    /// Commits a transaction: its revision, and the events for watchers; none if a condition does
    /// not hold.
    pub fn apply(&mut self, transaction: &Transaction) -> Option<(Revision, Vec<Input>)> {
        if !transaction.conditions.iter().all(|c| self.holds(c)) {
            return None;
        }
        if transaction.writes.is_empty() {
            return Some((Revision(self.revision), Vec::new()));
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        let told = transaction.writes.iter();
        let told = told.filter_map(|write| self.write(write, revision));
        Some((revision, told.collect()))
    }

    fn write(&mut self, write: &Write, put: Revision) -> Option<Input> {
        let anew = |old: Option<Stands>| Stands {
            created: old.map_or(put, |old| old.created),
            put,
        };
        Some(match write {
            Write::Authority(cell, authority) => {
                let stands = anew(self.authorities.get(cell).map(|(stands, _)| *stands));
                (self.authorities).insert(cell.clone(), (stands, authority.clone()));
                Input::Authority {
                    cell: cell.clone(),
                    revision: put,
                    authority: Some(authority.clone()),
                }
            }
            Write::Session(id) => {
                let stands = anew(self.sessions.get(id).copied());
                self.sessions.insert(id.clone(), stands);
                Input::Session {
                    id: id.clone(),
                    put: Some(put),
                }
            }
            Write::Grantor(cell, id, terms) => {
                let key = (cell.clone(), id.clone());
                let stands = anew(self.grantors.get(&key).map(|(stands, _)| *stands));
                self.grantors.insert(key, (stands, *terms));
                Input::Grantor {
                    cell: cell.clone(),
                    id: id.clone(),
                    registered: Some(*terms),
                }
            }
            Write::Terms(agreement) => {
                let stands = anew(self.terms.as_ref().map(|(stands, _)| *stands));
                self.terms = Some((stands, agreement.clone()));
                Input::Terms {
                    revision: put,
                    agreement: Some(agreement.clone()),
                }
            }
            Write::Delete(key) => return self.delete(key, put),
        })
    }

    fn delete(&mut self, key: &Key, at: Revision) -> Option<Input> {
        match key {
            Key::Authority(cell) => self.authorities.remove(cell).map(|_| Input::Authority {
                cell: cell.clone(),
                revision: at,
                authority: None,
            }),
            Key::Session(id) => self.sessions.remove(id).map(|_| Input::Session {
                id: id.clone(),
                put: None,
            }),
            Key::Grantor(cell, id) => {
                let gone = self.grantors.remove(&(cell.clone(), id.clone()));
                gone.map(|_| Input::Grantor {
                    cell: cell.clone(),
                    id: id.clone(),
                    registered: None,
                })
            }
            Key::Terms => self.terms.take().map(|_| Input::Terms {
                revision: at,
                agreement: None,
            }),
        }
    }

    /// The whole content, at one revision.
    pub fn list(&self) -> Listing {
        let authorities = self.authorities.iter();
        let sessions = self.sessions.iter();
        let grantors = self.grantors.iter();
        let terms = self.terms.as_ref();
        Listing {
            store: self.id,
            revision: Revision(self.revision),
            terms: terms.map(|(stands, agreement)| (stands.put, agreement.clone())),
            authorities: authorities
                .map(|(cell, (stands, authority))| (cell.clone(), stands.put, authority.clone()))
                .collect(),
            sessions: sessions.map(|(id, s)| (id.clone(), s.put)).collect(),
            grantors: grantors
                .map(|(key, (_, terms))| (key.clone(), *terms))
                .collect(),
        }
    }
}
