//! The applied policies of a process's workers, as they share them.
//!
//! All numbers are little-endian, of 8 bytes. The number of workers, and five numbers for each;
//! then nothing, or a refusal: its time, version and generation, and its text to the end. An
//! unreadable table is made anew: nothing rests on it.

use std::collections::BTreeMap;

use protos::status::{Applied, AppliedReport, Refused};

use crate::fence::ledger::take_u64;

/// With a number of its own that is raised when the encoding changes: old and new code run side by
/// side for a while.
pub(super) const KEY: &str = "tidegate/applied/1";

/// The most workers: those that are gone stay for a while, so it is more than a machine has
/// processors.
const ROWS_MAX: usize = 1024;

/// One worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Drawn by itself.
    pub(super) worker: u64,
    pub(super) version: u64,
    pub(super) generation: u64,
    /// When it applied that, and when it last said so: monotonic times.
    pub(super) since_us: u64,
    pub(super) beat_us: u64,
}

/// All workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// In the order of their numbers.
    rows: Vec<Row>,
    /// The last refusal, and when it was.
    pub(super) refused: Option<(u64, Refused)>,
}

impl Table {
    /// Enters a worker, and drops those that were silent for longer than `silent_us`. True if there
    /// is something to write: a beat that is not older than `beat_us` need not be renewed.
    pub(super) fn enter(&mut self, row: Row, beat_us: u64, silent_us: u64) -> bool {
        let before = self.rows.len();
        // A beat from the future is as good as none: otherwise it might stay for ever.
        self.rows
            .retain(|other| row.beat_us.abs_diff(other.beat_us) <= silent_us);
        let dropped = self.rows.len() < before;
        match self.rows.binary_search_by_key(&row.worker, |r| r.worker) {
            Ok(at) => {
                let Some(old) = self.rows.get_mut(at) else {
                    return dropped;
                };
                let fresh = row.beat_us.abs_diff(old.beat_us) < beat_us;
                let same = (old.version, old.generation, old.since_us)
                    == (row.version, row.generation, row.since_us);
                if same && fresh {
                    return dropped;
                }
                *old = row;
                true
            }
            Err(_) if self.rows.len() >= ROWS_MAX => dropped,
            Err(at) => {
                self.rows.insert(at, row);
                true
            }
        }
    }

    /// The worker that reports for all.
    pub(super) fn first(&self) -> Option<u64> {
        self.rows.first().map(|row| row.worker)
    }

    /// Everything in it, without a name.
    pub(super) fn report(&self) -> AppliedReport {
        let mut editions: BTreeMap<(u64, u64), u32> = BTreeMap::new();
        for row in &self.rows {
            *editions.entry((row.version, row.generation)).or_default() += 1;
        }
        let newest_us = self.rows.iter().map(|row| row.since_us).max();
        let is_news = |(at_us, _): &&(u64, Refused)| newest_us.is_none_or(|newest| *at_us > newest);
        AppliedReport {
            node: String::new(),
            applied: (editions.into_iter())
                .map(|((version, generation), threads)| Applied {
                    version,
                    generation,
                    threads,
                })
                .collect(),
            refused: (self.refused.as_ref().filter(is_news)).map(|(_, refused)| refused.clone()),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.rows.len() as u64).to_le_bytes().to_vec();
        let mut put = |number: u64| bytes.extend(number.to_le_bytes());
        for row in &self.rows {
            put(row.worker);
            put(row.version);
            put(row.generation);
            put(row.since_us);
            put(row.beat_us);
        }
        if let Some((at_us, refused)) = &self.refused {
            put(*at_us);
            put(refused.version);
            put(refused.generation);
            bytes.extend(refused.message.as_bytes());
        }
        bytes
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Option<Table> {
        let at = &mut bytes;
        let count = usize::try_from(take_u64(at)?).ok()?;
        let mut rows = Vec::with_capacity(count.min(ROWS_MAX));
        for _ in 0..count {
            rows.push(Row {
                worker: take_u64(at)?,
                version: take_u64(at)?,
                generation: take_u64(at)?,
                since_us: take_u64(at)?,
                beat_us: take_u64(at)?,
            });
        }
        if !rows.is_sorted_by_key(|row| row.worker) {
            return None;
        }
        let refused = match at.is_empty() {
            true => None,
            false => Some((
                take_u64(at)?,
                Refused {
                    version: take_u64(at)?,
                    generation: take_u64(at)?,
                    message: String::from_utf8(at.to_vec()).ok()?,
                },
            )),
        };
        Some(Table { rows, refused })
    }
}
