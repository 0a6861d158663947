//! The election of the worker that keeps the control stream for the process. Another replaces it
//! only when it has fallen silent.
//!
//! A single one saves streams. Safety does not rest on it: two elected workers, each with a stream
//! of its own, change the same ledgers by compare-and-swap.

use policy::fence::{HolderId, WorkerId};

use super::{
    ledger::{PREFIX, take, take_u64},
    process::{self, Process},
};

/// The elected worker renews its record this often.
const BEAT_US: u64 = 100_000;
/// An elected worker that was silent for this long is replaced.
const SILENT_US: u64 = 300_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Election {
    /// Drawn by the first worker of the process.
    holder: HolderId,
    worker: WorkerId,
    /// The monotonic time of its last beat.
    beat_us: u64,
}

impl Election {
    fn encode(self) -> Vec<u8> {
        let mut bytes = self.holder.0.to_le_bytes().to_vec();
        bytes.extend(self.worker.0.to_le_bytes());
        bytes.extend(self.beat_us.to_le_bytes());
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Election> {
        let at = &mut bytes;
        let election = Election {
            holder: HolderId(u128::from_le_bytes(take(at)?)),
            worker: WorkerId(take_u64(at)?),
            beat_us: take_u64(at)?,
        };
        at.is_empty().then_some(election)
    }
}

/// Keeps or takes the election: the process's id if `me` is elected.
///
/// A record that cannot be read is made anew, with another id of the process. That is safe: the new
/// one acknowledges only by the ledgers, which know everything of both, and grants to the old one
/// are waited for.
pub fn elect(process: &mut (impl Process + ?Sized), me: WorkerId) -> Option<HolderId> {
    let now = process.now()?.monotonic_us;
    let key = format!("{PREFIX}speaker");
    let election = process.get(&key).ok()?;
    let fresh = match election.and_then(|(bytes, _)| Election::decode(&bytes)) {
        Some(_) => None,
        None => Some(HolderId(process.random()?)),
    };
    process::change(process, &key, |bytes| {
        let mine = |holder| Election {
            holder,
            worker: me,
            beat_us: now,
        };
        let Some(election) = bytes.and_then(Election::decode) else {
            let fresh = fresh?;
            return Some((Some(mine(fresh).encode()), Some(fresh)));
        };
        // A beat from the future is as good as none: otherwise it might never be replaced.
        let age_us = now.abs_diff(election.beat_us);
        let beat = || Some(mine(election.holder).encode());
        Some(match election.worker == me {
            true if age_us < BEAT_US => (None, Some(election.holder)),
            true => (beat(), Some(election.holder)),
            false if age_us > SILENT_US => (beat(), Some(election.holder)),
            false => (None, None),
        })
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::testing::Fake;

    const A: WorkerId = WorkerId(1);
    const B: WorkerId = WorkerId(2);

    #[test]
    fn one_worker_stays_elected_until_it_falls_silent() {
        let mut fake = Fake::default();
        let holder = elect(&mut fake, A).unwrap();
        for _ in 0..100 {
            fake.pass(10_000);
            assert_eq!(elect(&mut fake, B), None);
            assert_eq!(elect(&mut fake, A), Some(holder));
        }
        fake.pass(SILENT_US - BEAT_US);
        assert_eq!(elect(&mut fake, B), None);
        fake.pass(BEAT_US + 1);
        assert_eq!(
            elect(&mut fake, B),
            Some(holder),
            "the process stays the same"
        );
        assert_eq!(elect(&mut fake, A), None);
    }

    #[test]
    fn an_unreadable_record_is_made_anew() {
        let mut fake = Fake::default();
        let holder = elect(&mut fake, A).unwrap();
        fake.put("tidegate/3/speaker", b"?");
        let next = elect(&mut fake, B).unwrap();
        assert_ne!(holder, next);
        assert_eq!(elect(&mut fake, A), None);
    }

    #[test]
    fn no_worker_is_elected_without_clock_or_random_numbers() {
        let mut fake = Fake::default();
        fake.fails = true;
        assert_eq!(elect(&mut fake, A), None);
    }
}
