//! The store: what a majority has agreed to, and what it tells those who watch.

use std::collections::BTreeMap;

use policy::fence::{
    Authority, Condition, Input, Key, Listing, Name, Revision, SessionId, Transaction, Write,
};

/// A store with one cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    pub id: u64,
    revision: u64,
    authority: Option<(Stands, Authority)>,
    sessions: BTreeMap<SessionId, Stands>,
    grantors: BTreeMap<SessionId, Stands>,
}

/// Since when a key stands there.
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
            authority: None,
            sessions: BTreeMap::new(),
            grantors: BTreeMap::new(),
        }
    }

    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref().map(|(_, authority)| authority)
    }

    fn stands(&self, key: &Key) -> Option<Stands> {
        match key {
            Key::Authority(_) => self.authority.as_ref().map(|(stands, _)| *stands),
            Key::Session(id) => self.sessions.get(id).copied(),
            Key::Grantor(_, id) => self.grantors.get(id).copied(),
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

    /// Makes a transaction: its revision, and what watchers are told; none where a condition does not hold.
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
                let stands = anew(self.authority.as_ref().map(|(stands, _)| *stands));
                self.authority = Some((stands, authority.clone()));
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
            Write::Grantor(cell, id) => {
                let stands = anew(self.grantors.get(id).copied());
                self.grantors.insert(id.clone(), stands);
                Input::Grantor {
                    cell: cell.clone(),
                    id: id.clone(),
                    present: true,
                }
            }
            Write::Delete(key) => return self.delete(key, put),
        })
    }

    fn delete(&mut self, key: &Key, at: Revision) -> Option<Input> {
        match key {
            Key::Authority(cell) => self.authority.take().map(|_| Input::Authority {
                cell: cell.clone(),
                revision: at,
                authority: None,
            }),
            Key::Session(id) => self.sessions.remove(id).map(|_| Input::Session {
                id: id.clone(),
                put: None,
            }),
            Key::Grantor(cell, id) => self.grantors.remove(id).map(|_| Input::Grantor {
                cell: cell.clone(),
                id: id.clone(),
                present: false,
            }),
        }
    }

    /// Everything, at one revision.
    pub fn list(&self, cell: &Name) -> Listing {
        let authority = self.authority.iter();
        let sessions = self.sessions.iter();
        let grantors = self.grantors.keys();
        Listing {
            store: self.id,
            authorities: authority
                .map(|(stands, authority)| (cell.clone(), stands.put, authority.clone()))
                .collect(),
            sessions: sessions.map(|(id, s)| (id.clone(), s.put)).collect(),
            grantors: grantors.map(|id| (cell.clone(), id.clone())).collect(),
        }
    }
}
