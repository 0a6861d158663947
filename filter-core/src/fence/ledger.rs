//! The ledgers of cells in the shared data, and their encoding.
//!
//! All numbers are little-endian. One byte with [`VERSION`]; then, 8 bytes each: epoch and revision
//! of the newest stamp and of the fence, the lowest epoch, the lead of the wall clock; one byte
//! that says whether there is a permit, and its epoch, revision, end and terms; 4 bytes with the
//! number of workers, and for each its number, epoch, revision and end.
//!
//! **An unreadable ledger counts as no permission, and never as nothing in flight.** Such a value
//! is left as it is: nothing is admitted, nothing acknowledged, and every fence is waited for until
//! it has run out. It cannot be replaced by an empty ledger, since that would forget the workers
//! that hold permits, and the fence. It does not come about by itself: the version is a part of the
//! key, and a filter of another version takes the process for another holder altogether.

use policy::fence::{
    EPOCH_MAX, Ledger, Permit, Revision, Stamp, TermsId, WorkerId, holder::Listed,
};

use super::process::{self, Process, Reading};

/// Raised when the encoding of anything shared changes. Then [`PREFIX`] changes as well.
const VERSION: u8 = 3;
/// The prefix of all shared keys. Old and new code run side by side for a while, and their values
/// must not be mixed: with another prefix they also have another
/// [`HolderId`](policy::fence::HolderId), each its own grants, and each its own fences to
/// acknowledge.
pub(super) const PREFIX: &str = "tidegate/3/";

/// The most workers of a ledger: lost ones stay listed for a while, so it is more than a machine
/// has processors.
const LISTED_MAX: usize = 1024;

/// A cell's ledger as it is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub ledger: Ledger,
    /// The lead of the wall clock when the permit was asked for.
    pub lead_us: i64,
}

impl Entry {
    /// A worker takes the permit, as of [`Ledger::take`]; none where time passed that the monotonic
    /// clock does not know of.
    pub fn take(
        &mut self,
        worker: WorkerId,
        busy: bool,
        at: Reading,
        terms: &policy::fence::Terms,
    ) -> Option<Permit> {
        if at.jumped_since(self.lead_us) {
            self.ledger.forget();
        }
        if self.ledger.workers.len() >= LISTED_MAX {
            // Drops those that are lost for long enough.
            self.ledger.drained(at.monotonic_us, terms);
        }
        if self.ledger.workers.len() >= LISTED_MAX {
            return None;
        }
        self.ledger.take(worker, busy, at.monotonic_us, terms)
    }

    pub fn encode(&self) -> Vec<u8> {
        let ledger = &self.ledger;
        let mut bytes = vec![VERSION];
        put_stamp(&mut bytes, ledger.newest);
        put_stamp(&mut bytes, ledger.fence);
        bytes.extend(ledger.epoch_min.to_le_bytes());
        bytes.extend(self.lead_us.to_le_bytes());
        bytes.push(ledger.permit.is_some().into());
        let permit = ledger.permit.unwrap_or(Permit {
            stamp: Stamp::default(),
            until: 0,
            terms: TermsId::NONE,
        });
        put_stamp(&mut bytes, permit.stamp);
        bytes.extend(permit.until.to_le_bytes());
        bytes.extend(permit.terms.0.to_le_bytes());
        let count = u32::try_from(ledger.workers.len()).unwrap_or(u32::MAX);
        bytes.extend(count.to_le_bytes());
        for listed in &ledger.workers {
            bytes.extend(listed.worker.0.to_le_bytes());
            put_stamp(&mut bytes, listed.since);
            bytes.extend(listed.until.to_le_bytes());
        }
        bytes
    }

    /// None unless every byte is understood.
    pub fn decode(mut bytes: &[u8]) -> Option<Entry> {
        let at = &mut bytes;
        let [VERSION] = take(at)? else {
            return None;
        };
        let newest = take_stamp(at)?;
        let fence = take_stamp(at)?;
        let epoch_min = take_epoch(at)?;
        let lead_us = i64::from_le_bytes(take(at)?);
        let held: [u8; 1] = take(at)?;
        let permit = Permit {
            stamp: take_stamp(at)?,
            until: take_u64(at)?,
            terms: TermsId(take_u64(at)?),
        };
        let nothing = Permit {
            stamp: Stamp::default(),
            until: 0,
            terms: TermsId::NONE,
        };
        let permit = match held {
            [0] if permit == nothing => None,
            [1] => Some(permit),
            _ => return None,
        };
        let count = usize::try_from(u32::from_le_bytes(take(at)?)).ok()?;
        let mut workers = Vec::with_capacity(count.min(LISTED_MAX));
        for _ in 0..count {
            workers.push(Listed {
                worker: WorkerId(take_u64(at)?),
                since: take_stamp(at)?,
                until: take_u64(at)?,
            });
        }
        let ledger = Ledger {
            newest,
            fence,
            epoch_min,
            permit,
            workers,
        };
        at.is_empty().then_some(Entry { ledger, lead_us })
    }
}

fn put_stamp(bytes: &mut Vec<u8>, stamp: Stamp) {
    bytes.extend(stamp.epoch.to_le_bytes());
    bytes.extend(stamp.revision.0.to_le_bytes());
}

pub(crate) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

pub(crate) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(bytes)?))
}

/// No grant has a higher one, so it would outlast all of them.
fn take_epoch(bytes: &mut &[u8]) -> Option<u64> {
    take_u64(bytes).filter(|epoch| *epoch <= EPOCH_MAX)
}

fn take_stamp(bytes: &mut &[u8]) -> Option<Stamp> {
    Some(Stamp {
        epoch: take_epoch(bytes)?,
        revision: Revision(take_u64(bytes)?),
    })
}

fn key(cell: &str) -> String {
    format!("{PREFIX}cell/{cell}")
}

/// The ledger of a cell; an empty one where no worker ever took a permit. None where it cannot be
/// read.
pub fn read(process: &mut (impl Process + ?Sized), cell: &str) -> Option<Entry> {
    match process.get(&key(cell)).ok()? {
        Some((bytes, _)) => Entry::decode(&bytes),
        None => Some(Entry::default()),
    }
}

/// Changes the ledger of a cell. None where it cannot be read, or could not be changed.
pub fn change<T>(
    process: &mut (impl Process + ?Sized),
    cell: &str,
    mut step: impl FnMut(&mut Entry) -> T,
) -> Option<T> {
    process::change(process, &key(cell), |bytes| {
        let before = match bytes {
            Some(bytes) => Entry::decode(bytes)?,
            None => Entry::default(),
        };
        let mut entry = before.clone();
        let result = step(&mut entry);
        Some(((entry != before).then(|| entry.encode()), result))
    })
}

#[cfg(test)]
mod tests {
    use policy::fence::Terms;
    use proptest::{collection::vec, option, prelude::*, sample::Index};

    use super::*;
    use crate::fence::testing::Fake;

    fn any_stamp() -> impl Strategy<Value = Stamp> {
        (0..=EPOCH_MAX, any::<u64>()).prop_map(|(epoch, revision)| Stamp {
            epoch,
            revision: Revision(revision),
        })
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let permit = (any_stamp(), any::<u64>(), any::<u64>());
        let permit = permit.prop_map(|(stamp, until, terms)| Permit {
            stamp,
            until,
            terms: TermsId(terms),
        });
        let listed = (any::<u64>(), any_stamp(), any::<u64>());
        let listed = listed.prop_map(|(worker, since, until)| Listed {
            worker: WorkerId(worker),
            since,
            until,
        });
        let ledger = (
            any_stamp(),
            any_stamp(),
            0..=EPOCH_MAX,
            option::of(permit),
            vec(listed, 0..8),
        );
        let entry = (ledger, any::<i64>());
        entry.prop_map(
            |((newest, fence, epoch_min, permit, workers), lead_us)| Entry {
                ledger: Ledger {
                    newest,
                    fence,
                    epoch_min,
                    permit,
                    workers,
                },
                lead_us,
            },
        )
    }

    proptest! {
        #[test]
        fn any_ledger_comes_back_as_it_was(entry in any_entry()) {
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Entry::decode(&bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(entry in any_entry(), at: Index, byte: u8, cut: Index) {
            let mut bytes = entry.encode();
            let short = cut.index(bytes.len());
            prop_assert_eq!(Entry::decode(&bytes[..short]), None, "cut off");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Entry::decode(&bytes);
        }
    }

    #[test]
    fn an_epoch_that_no_grant_could_have_is_not_read() {
        let mut entry = Entry::default();
        entry.ledger.epoch_min = EPOCH_MAX;
        assert_eq!(Entry::decode(&entry.encode()), Some(entry.clone()));
        entry.ledger.epoch_min = EPOCH_MAX + 1;
        assert_eq!(Entry::decode(&entry.encode()), None);
    }

    #[test]
    fn an_unreadable_ledger_is_left_alone() {
        let mut fake = Fake::default();
        fake.put("tidegate/3/cell/main", b"\x03?");
        assert_eq!(read(&mut fake, "main"), None);
        assert_eq!(
            change(&mut fake, "main", |entry| entry.ledger.forget()),
            None
        );
        assert_eq!(fake.value("tidegate/3/cell/main"), b"\x03?");
    }

    #[test]
    fn a_ledger_takes_no_more_workers_than_can_be_read() {
        let terms = Terms::new(10, 10, 5, 0, 0).unwrap();
        let mut entry = Entry::default();
        let permit = |stamp, until| {
            Some(Permit {
                stamp,
                until,
                terms: terms.id,
            })
        };
        let stamp = Stamp {
            epoch: 1,
            revision: Revision(1),
        };
        let at = |monotonic_us| Reading {
            monotonic_us,
            wall_us: monotonic_us,
        };
        entry.ledger.permit = permit(stamp, 10);
        for worker in 0..LISTED_MAX as u64 {
            assert!(entry.take(WorkerId(worker), false, at(9), &terms).is_some());
        }
        assert_eq!(entry.take(WorkerId(u64::MAX), false, at(9), &terms), None);
        assert!(Entry::decode(&entry.encode()).is_some());
        entry.ledger.permit = permit(stamp, 20);
        assert!(
            entry
                .take(WorkerId(u64::MAX), false, at(15), &terms)
                .is_some()
        );
        assert_eq!(entry.ledger.workers.len(), 1, "the others are lost");
    }
}
