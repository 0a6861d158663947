//! Whether a history of writes kept the fence's promise: a write is admitted only while no write of
//! another epoch is in flight, and never below an epoch already admitted. Pure: the inputs are the
//! writes that upstreams saw and the records of the store, the outputs are violations.
//!
//! There is one exception, the gap that no lease can close (the design's rule 12): a proxy that was
//! stopped between admitting a write and sending it sends it when it continues. Only storage that
//! compares epochs can reject that write. So it is counted separately, as [`Report::late`], and
//! only if its client had sent it before its zone's proxy was stopped.

mod authority;
mod collect;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

pub use authority::Authority;
pub use collect::Collector;

/// How many violations of a kind are described.
const EXAMPLES_MAX: usize = 5;

/// One write, as the upstream saw it. Times are microseconds of the machine's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub zone: Arc<str>,
    pub instance: Arc<str>,
    /// None: it carried none, as with a single cell.
    pub cell: Option<Arc<str>>,
    pub epoch: Option<u64>,
    pub id: Option<Arc<str>>,
    /// When its client sent it.
    pub sent_us: Option<u64>,
    pub begin_us: u64,
    /// None: it has not ended.
    pub end_us: Option<u64>,
}

/// The store's record of a cell, in the order of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The number of the store (cluster id), in the order in which they answered.
    pub store: u32,
    pub revision: i64,
    pub epoch: u64,
    pub owners: Vec<String>,
    pub state: String,
}

/// A period in which the proxies of a zone were stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    pub zone: String,
    pub begin_us: u64,
    pub end_us: u64,
}

/// The history to check.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub writes: Vec<Write>,
    /// By cell.
    pub authority: BTreeMap<String, Vec<Record>>,
    pub pauses: Vec<Pause>,
}

/// How the promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Violation {
    /// The write carried no epoch, or no cell although there are several: no zone had permitted it.
    Unpermitted,
    /// There never was an active authority of that epoch.
    NeverGranted,
    /// The zone did not own the cell at that epoch.
    NotOwner,
    /// It began with an epoch below one that had begun before.
    EpochBack,
    /// It began while a write of another epoch was in flight.
    Overlap,
    /// The authority's own epoch fell, or changed hands without rising.
    AuthorityBack,
}

impl Violation {
    pub const fn as_str(self) -> &'static str {
        match self {
            Violation::Unpermitted => "writes without an epoch",
            Violation::NeverGranted => "writes of an epoch that was never granted",
            Violation::NotOwner => "writes in a zone that did not own the cell",
            Violation::EpochBack => "writes below an epoch that had begun",
            Violation::Overlap => "writes beside one of another epoch",
            Violation::AuthorityBack => "records of authority whose epoch did not rise",
        }
    }
}

/// The verdict on a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub writes: usize,
    /// Epochs that writes carried.
    pub epochs: usize,
    /// Writes that a stopped proxy sent after it continued; see the module's text.
    pub late: usize,
    pub found: BTreeMap<Violation, Findings>,
}

/// All violations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub count: usize,
    /// The first few.
    pub examples: Vec<String>,
}

impl Report {
    pub fn violations(&self) -> usize {
        self.found.values().map(|found| found.count).sum()
    }

    fn note(&mut self, violation: Violation, what: impl FnOnce() -> String) {
        let found = self.found.entry(violation).or_default();
        found.count += 1;
        if found.examples.len() < EXAMPLES_MAX {
            found.examples.push(what());
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report {
            writes,
            epochs,
            late,
            ..
        } = self;
        let violations = self.violations();
        write!(
            out,
            "{writes} writes of {epochs} epochs, {violations} violations"
        )?;
        if *late > 0 {
            write!(
                out,
                "; {late} late writes of a proxy that was stopped in between"
            )?;
        }
        for (violation, found) in &self.found {
            write!(out, "\n  {} x {}", found.count, violation.as_str())?;
            for example in &found.examples {
                write!(out, "\n    {example}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Write {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Write {
            zone,
            instance,
            begin_us,
            ..
        } = self;
        let or_none = |text: &Option<Arc<str>>| text.as_deref().unwrap_or("none").to_owned();
        let epoch = self
            .epoch
            .map_or("none".to_owned(), |epoch| epoch.to_string());
        let end = self.end_us.map_or("open".to_owned(), |end| end.to_string());
        let sent = self
            .sent_us
            .map_or(String::new(), |sent| format!(", sent {sent}"));
        write!(
            out,
            "{} at {zone}/{instance}: cell {}, epoch {epoch}, {begin_us} .. {end} us{sent}",
            or_none(&self.id),
            or_none(&self.cell)
        )
    }
}

/// Checks a history. The records of the authority must be newer than the writes.
pub fn check(history: &History) -> Report {
    let mut report = Report {
        writes: history.writes.len(),
        ..Report::default()
    };
    for (cell, records) in &history.authority {
        check_authority(cell, records, &mut report);
    }
    let mut cells: BTreeMap<&str, Vec<(u64, &Write)>> = BTreeMap::new();
    let mut names = history.authority.keys().map(String::as_str);
    let only = names.next().filter(|_| names.next().is_none());
    for write in &history.writes {
        match (write.cell.as_deref().or(only), write.epoch) {
            (Some(cell), Some(epoch)) => cells.entry(cell).or_default().push((epoch, write)),
            _ => report.note(Violation::Unpermitted, || write.to_string()),
        }
    }
    for (cell, writes) in &mut cells {
        let records = history.authority.get(*cell).map_or(&[][..], Vec::as_slice);
        check_owners(records, writes, &mut report);
        writes.sort_by_key(|(_, write)| write.begin_us);
        check_order(writes, &history.pauses, &mut report);
    }
    report
}

/// Within one epoch the owners stay; from record to record the epoch does not fall.
fn check_authority(cell: &str, records: &[Record], report: &mut Report) {
    for (before, after) in records.iter().zip(records.iter().skip(1)) {
        let moved = before.owners != after.owners || before.store != after.store;
        if after.epoch < before.epoch || (moved && after.epoch == before.epoch) {
            report.note(Violation::AuthorityBack, || {
                format!("cell {cell}: {before:?}, then {after:?}")
            });
        }
    }
}

fn check_owners(records: &[Record], writes: &[(u64, &Write)], report: &mut Report) {
    let mut owners: HashMap<u64, BTreeSet<&str>> = HashMap::new();
    for record in records.iter().filter(|record| record.state == "active") {
        let of = owners.entry(record.epoch).or_default();
        of.extend(record.owners.iter().map(String::as_str));
    }
    let mut epochs = BTreeSet::new();
    for (epoch, write) in writes {
        epochs.insert(*epoch);
        match owners.get(epoch) {
            None => report.note(Violation::NeverGranted, || write.to_string()),
            Some(of) if !of.contains(&*write.zone) => {
                report.note(Violation::NotOwner, || format!("{write}; owners {of:?}"))
            }
            Some(_) => {}
        }
    }
    report.epochs += epochs.len();
}

/// Checks the writes of one cell in the order in which they began.
fn check_order(writes: &[(u64, &Write)], pauses: &[Pause], report: &mut Report) {
    let mut highest: Option<(u64, u64, &Write)> = None;
    // By their end: all writes that have begun and are not known to have ended.
    let mut open: BTreeMap<(u64, usize), (u64, &Write)> = BTreeMap::new();
    // The number of open writes of each epoch.
    let mut epochs: BTreeMap<u64, usize> = BTreeMap::new();
    for (at, (epoch, write)) in writes.iter().enumerate() {
        while let Some(entry) = open.first_entry() {
            let (end_us, _) = *entry.key();
            // Within one microsecond the order is unknown.
            if end_us > write.begin_us {
                break;
            }
            let (ended, _) = entry.remove();
            if let Some(count) = epochs.get_mut(&ended) {
                *count -= 1;
                if *count == 0 {
                    epochs.remove(&ended);
                }
            }
        }
        let below = highest
            .filter(|(high, begin_us, _)| epoch < high && *begin_us < write.begin_us)
            .map(|(_, _, earlier)| earlier);
        let beside = epochs
            .keys()
            .find(|other| *other != epoch)
            .and_then(|other| {
                let mut of = open.values();
                of.find(|(epoch, _)| epoch == other)
                    .map(|(_, write)| *write)
            });
        if (below.is_some() || beside.is_some()) && is_late(write, pauses) {
            report.late += 1;
            // Effects on other writes are its fault, not theirs.
            continue;
        }
        if let Some(earlier) = below {
            report.note(Violation::EpochBack, || format!("{write}; after {earlier}"));
        }
        if let Some(other) = beside {
            report.note(Violation::Overlap, || format!("{write}; beside {other}"));
        }
        if highest.is_none_or(|(high, _, _)| high < *epoch) {
            highest = Some((*epoch, write.begin_us, write));
        }
        open.insert((write.end_us.unwrap_or(u64::MAX), at), (*epoch, write));
        *epochs.entry(*epoch).or_default() += 1;
    }
}

/// Whether the write was sent before its zone's proxies were stopped, and arrived after.
fn is_late(write: &Write, pauses: &[Pause]) -> bool {
    let mut of_zone = pauses.iter().filter(|pause| *pause.zone == *write.zone);
    of_zone.any(|pause| {
        write.sent_us.is_some_and(|sent| sent <= pause.begin_us) && write.begin_us >= pause.end_us
    })
}

#[cfg(test)]
mod tests;
