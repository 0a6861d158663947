//! The last good state on disk: the store's last state, so that a start without the store has a
//! state to serve.
//!
//! `file.rs` is the file and `keeper.rs` the task that writes it.

mod file;
mod keeper;
mod place;

use std::time::{Duration, SystemTime};

use imbl::OrdMap;
use registry::authority::{GRANTORS_PREFIX, SESSIONS_PREFIX};
use registry::confirmation::CONFIRMATIONS_PREFIX;
use registry::record::{COMPACTOR_KEY, REPLICAS_PREFIX};
use registry::store::{ClusterId, Entry, Event, Listing, Revision, WatchBatch};

pub use file::{FILE_BYTES_MAX, StateError, read, set_aside, write};
pub use keeper::Keeper;
pub use place::default_path;

/// The state of a store at one revision. Cheap to clone: copies share their entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastGood {
    /// The store of this state; revisions of other stores are unrelated.
    pub cluster: ClusterId,
    pub revision: Revision,
    /// When it was written; only for operators, since clocks err. The Unix epoch before that.
    pub written_at: SystemTime,
    /// Everything under `/tidegate/v1/`, by key, except keys that [are not kept](is_kept). Leases
    /// are not kept.
    pub entries: OrdMap<String, Entry>,
}

/// Whether a key is kept on disk. Sessions, and the grantors under them, are not: they change all
/// the time, and mean nothing to another process. A confirmation expires soon.
pub fn is_kept(key: &str) -> bool {
    let passing = [
        SESSIONS_PREFIX,
        GRANTORS_PREFIX,
        REPLICAS_PREFIX,
        CONFIRMATIONS_PREFIX,
        COMPACTOR_KEY,
    ];
    !passing.iter().any(|prefix| key.starts_with(prefix))
}

impl LastGood {
    /// The state of a listing.
    pub fn listed(cluster: ClusterId, listing: Listing) -> LastGood {
        let entries = listing.entries.into_iter();
        let entries = entries.filter(|entry| is_kept(&entry.key));
        LastGood {
            cluster,
            revision: listing.revision,
            written_at: SystemTime::UNIX_EPOCH,
            entries: entries.map(|entry| (entry.key.clone(), entry)).collect(),
        }
    }

    /// Whether `listing` contains every entry of this state, unchanged or newer.
    pub fn is_covered_by(&self, listing: &Listing) -> bool {
        let listed = listing.entries.iter();
        let ours = listed.filter(|entry| {
            let known = self.entries.get(&entry.key);
            known.is_some_and(|known| known.mod_revision <= entry.mod_revision)
        });
        ours.count() == self.entries.len()
    }

    /// Applies the events of a watch.
    pub fn take(&mut self, batch: &WatchBatch) {
        for event in &batch.events {
            match event {
                event if !is_kept(event.key()) => {}
                Event::Put(entry) => {
                    self.entries.insert(entry.key.clone(), entry.clone());
                }
                Event::Delete { key, .. } => {
                    self.entries.remove(key);
                }
            }
        }
        self.revision = batch.revision;
    }

    /// The age of the file, as far as the clock can be trusted.
    pub fn age(&self) -> Duration {
        #[allow(clippy::disallowed_methods, reason = "for people only")]
        let now = SystemTime::now();
        now.duration_since(self.written_at).unwrap_or_default()
    }

    /// Equal content, regardless of when it was written.
    fn says_the_same(&self, other: &LastGood) -> bool {
        (self.cluster, self.revision) == (other.cluster, other.revision)
            && self.entries == other.entries
    }

    /// Whether `listing` of the same store can have developed from this state. It cannot if its
    /// revision is lower, or if it has an entry from before our revision that we do not have: then
    /// the store was restored and written to afterwards.
    pub fn may_become(&self, listing: &Listing) -> bool {
        let ours = |entry: &Entry| {
            let known = self.entries.get(&entry.key);
            known.is_some_and(|known| known.mod_revision == entry.mod_revision)
        };
        let mut entries = listing.entries.iter().filter(|entry| is_kept(&entry.key));
        listing.revision >= self.revision
            && entries.all(|entry| entry.mod_revision > self.revision || ours(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries by the revision of their last put.
    fn listing(revision: i64, entries: &[(&str, i64)]) -> Listing {
        let entry = |(key, at): &(&str, i64)| Entry {
            key: (*key).to_owned(),
            value: "{}".into(),
            create_revision: Revision(1),
            mod_revision: Revision(*at),
            lease: None,
        };
        Listing {
            revision: Revision(revision),
            entries: entries.iter().map(entry).collect(),
        }
    }

    #[test]
    fn a_store_that_went_on_is_told_from_one_that_was_restored() {
        let known = LastGood::listed(ClusterId(1), listing(10, &[("a", 4), ("b", 8)]));
        for (next, goes_on, covers) in [
            (listing(10, &[("a", 4), ("b", 8)]), true, true),
            // Deleted, put again, new.
            (listing(13, &[("b", 12), ("c", 13)]), true, false),
            (listing(13, &[("a", 4), ("b", 12), ("c", 13)]), true, true),
            // Older; put otherwise at a known revision; unchanged.
            (listing(9, &[("a", 4), ("b", 8)]), false, true),
            (listing(12, &[("a", 4), ("b", 9)]), false, true),
            (listing(12, &[("a", 4), ("b", 8), ("c", 7)]), false, true),
            (listing(12, &[("a", 3), ("b", 8)]), false, false),
        ] {
            assert_eq!(known.may_become(&next), goes_on, "{next:?}");
            assert_eq!(known.is_covered_by(&next), covers, "{next:?}");
        }
    }
}
