//! The store that all processes share.

use std::collections::BTreeMap;

use policy::fence::{Agreement, Authority, Condition, Key, Listing, Name, Revision, SessionId};

const STORE: u64 = 7;

/// A store that answers at once.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) revision: u64,
    /// When each key was created and last put.
    pub(super) stands: BTreeMap<Key, (Revision, Revision)>,
    pub(super) authorities: BTreeMap<Name, Authority>,
    /// With the revision of the terms that each registered under.
    pub(super) grantors: BTreeMap<(Name, SessionId), Revision>,
    pub(super) terms: Option<Agreement>,
}

impl Shelf {
    pub(super) fn holds(&self, condition: &Condition) -> bool {
        let stands = |key| self.stands.get(key).copied().unwrap_or_default();
        match condition {
            Condition::CreatedAt(key, at) => stands(key).0 == *at,
            Condition::PutAt(key, at) => stands(key).1 == *at,
            Condition::NoSessionSince(seen) => {
                let mut all = self.stands.iter();
                all.all(|(key, stands)| !matches!(key, Key::Session(_)) || stands.0 <= *seen)
            }
        }
    }

    pub(super) fn put(&mut self, key: Key) {
        let at = Revision(self.revision);
        self.stands.entry(key).or_insert((at, at)).1 = at;
    }

    pub(super) fn list(&self) -> Listing {
        let mut listing = Listing {
            store: STORE,
            revision: Revision(self.revision),
            ..Listing::default()
        };
        for (key, (_, put)) in &self.stands {
            match key {
                Key::Authority(cell) => {
                    let authority = self.authorities[cell].clone();
                    listing.authorities.push((cell.clone(), *put, authority));
                }
                Key::Session(id) => drop(listing.sessions.insert(id.clone(), *put)),
                Key::Grantor(cell, id) => {
                    let key = (cell.clone(), id.clone());
                    listing.grantors.insert(key.clone(), self.grantors[&key]);
                }
                Key::Terms => {
                    let terms = self.terms.clone();
                    listing.terms = terms.map(|agreement| (*put, agreement));
                }
            }
        }
        listing
    }
}
