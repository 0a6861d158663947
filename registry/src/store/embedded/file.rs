//! The file of the embedded store: tables, reads from a snapshot, and changes in one durable
//! transaction.
//!
//! All functions block; callers run them outside of the async threads.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};

use super::mark::{self, Mark};
use crate::store::{
    ClusterId, Compare, Entry, Event, LeaseId, Listing, Op, RefusedCause, Revision, StoreError,
    WatchBatch, random_lease,
};

/// (create revision, mod revision, lease or 0, value)
type EntryRow<'a> = (i64, i64, i64, &'a [u8]);
/// (is a put, key, create revision, lease or 0, value)
type HistoryRow<'a> = (bool, &'a str, i64, i64, &'a [u8]);

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const ENTRIES: TableDefinition<&str, EntryRow<'static>> = TableDefinition::new("entries");
/// By revision and position within it: a watch resumes from here.
const HISTORY: TableDefinition<(i64, u32), HistoryRow<'static>> = TableDefinition::new("history");
/// Time to live in milliseconds. The expiry of a lease is not stored: see `writer.rs`.
const LEASES: TableDefinition<i64, u64> = TableDefinition::new("leases");
const LEASE_KEYS: TableDefinition<(i64, &str), ()> = TableDefinition::new("lease_keys");

const FORMAT: &str = "format";
const CLUSTER: &str = "cluster";
const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";
/// The generation of the store: see `mark.rs`.
const GENERATION: &str = "generation";

/// The layout of the tables above; any other layout is rejected.
const FORMAT_VERSION: u64 = 1;

/// A read of the history ends after the revision in which it exceeds one of these. They bound a
/// watch's memory.
const HISTORY_PAGE_EVENTS: usize = 256;
const HISTORY_PAGE_BYTES: usize = 1024 * 1024;

/// redb's cache; its default of 1 GiB is too much for a program of a sidecar's size.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

pub(super) struct StoreFile {
    database: Database,
    path: PathBuf,
    pub(super) cluster: ClusterId,
    history_revisions: i64,
    generation: u64,
}

/// The result of a read of the history.
pub(super) enum History {
    Compacted(Revision),
    /// All batches in the revisions up to `read_to`.
    Read {
        batches: Vec<WatchBatch>,
        read_to: Revision,
    },
}

impl StoreFile {
    /// Opens the file, or creates it. `fresh_cluster` is the id of a new one.
    pub(super) fn open(
        path: &Path,
        history_revisions: u64,
        fresh_cluster: ClusterId,
    ) -> Result<Self, StoreError> {
        // redb would create a new store in it, and the mesh would see a store without
        // registrations.
        if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
            return Err(corrupt(path, "it is empty".to_owned()));
        }
        // redb documents that it may panic on a file that another program has written to.
        let mark_path = mark::path_of(path);
        let mark = Mark::read(&mark_path).map_err(|error| unmarked(&mark_path, &error))?;
        let opened = catch_unwind(AssertUnwindSafe(|| {
            Self::try_open(path, fresh_cluster, mark, &mark_path)
        }));
        let (database, cluster, generation) = match opened {
            Ok(opened) => opened.map_err(|error| store_error(path, error))?,
            Err(_) => return Err(corrupt(path, "its pages contradict each other".to_owned())),
        };
        Ok(StoreFile {
            database,
            path: path.to_owned(),
            cluster,
            generation,
            history_revisions: i64::try_from(history_revisions.max(1)).unwrap_or(i64::MAX),
        })
    }

    fn try_open(
        path: &Path,
        fresh_cluster: ClusterId,
        mark: Option<Mark>,
        mark_path: &Path,
    ) -> Result<(Database, ClusterId, u64), redb::Error> {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            // Reads the whole file, which is small. Without the check, damage would show later, as
            // a wrong answer.
            .set_check_integrity_on_open(true)
            .create(path)?;
        let txn = database.begin_write()?;
        let cluster = {
            let mut tables = Tables::open(&txn)?;
            if tables.meta(FORMAT)? == 0 {
                tables.meta.insert(FORMAT, FORMAT_VERSION)?;
                tables.meta.insert(CLUSTER, fresh_cluster.0)?;
            }
            let format = tables.meta(FORMAT)?;
            if format != FORMAT_VERSION {
                let detail = format!("its format is {format}, this build knows {FORMAT_VERSION}");
                return Err(redb::Error::Corrupted(detail));
            }
            let cluster = ClusterId(tables.meta(CLUSTER)?);
            let found = (tables.meta(GENERATION)?, tables.revision.0);
            let (generation, revision) = found;
            let known = match mark {
                Some(mark) => mark.is_of(generation, revision),
                // A new file, or one of a version without marks.
                None => generation == 0,
            };
            let cluster = match known {
                true => cluster,
                false => {
                    tracing::error!(
                        file = %path.display(),
                        revision,
                        marked = ?mark,
                        "an older copy of the embedded store was put back: it counts as another store, and no zone writes under its authority records. Put the newest file back with its mark, or recover the cells: `tidegate override`"
                    );
                    tables.meta.insert(CLUSTER, fresh_cluster.0)?;
                    fresh_cluster
                }
            };
            let above = mark.map_or(0, |mark| mark.generation);
            let next = generation.max(above).saturating_add(1);
            let mark = Mark {
                generation: next,
                revision,
                settled: false,
            };
            // If the file is already another store, its mark has to know that store.
            let mark = match known {
                true => mark,
                false => Mark {
                    settled: true,
                    ..mark
                },
            };
            mark.write(mark_path).map_err(redb::Error::Io)?;
            tables.meta.insert(GENERATION, next)?;
            (cluster, next)
        };
        txn.commit()?;
        let (cluster, generation) = cluster;
        Ok((database, cluster, generation))
    }

    /// Writes this revision to the mark, durably.
    pub(super) fn mark(&self, revision: Revision) -> std::io::Result<()> {
        let mark = Mark {
            generation: self.generation,
            revision: revision.0,
            settled: true,
        };
        mark.write(&mark::path_of(&self.path))
    }

    pub(super) fn revision(&self) -> Result<Revision, StoreError> {
        self.read(|txn| Ok(Revision(meta(txn, REVISION)?)))
    }

    pub(super) fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, StoreError> {
        self.read(|txn| {
            let mut leases = Vec::new();
            for row in txn.open_table(LEASES)?.iter()? {
                let (id, ttl_ms) = row?;
                leases.push((LeaseId(id.value()), Duration::from_millis(ttl_ms.value())));
            }
            Ok(leases)
        })
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read(|txn| {
            let row = txn.open_table(ENTRIES)?.get(key)?;
            Ok(row.map(|row| entry(key, row.value())))
        })
    }

    pub(super) fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.read(|txn| {
            let mut entries = Vec::new();
            for row in txn.open_table(ENTRIES)?.range(prefix..)? {
                let (key, row) = row?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                entries.push(entry(key.value(), row.value()));
            }
            let revision = Revision(meta(txn, REVISION)?);
            Ok(Listing { revision, entries })
        })
    }

    /// The events under `prefix` after `after`, from one page of the history.
    pub(super) fn history(&self, prefix: &str, after: Revision) -> Result<History, StoreError> {
        self.read(|txn| {
            let compacted = Revision(meta(txn, COMPACTED)?);
            if after < compacted {
                return Ok(History::Compacted(compacted));
            }
            let mut page = Page {
                prefix,
                batches: Vec::new(),
                read_to: after,
                events: 0,
                bytes: 0,
            };
            for row in txn.open_table(HISTORY)?.range((after.0 + 1, 0)..)? {
                let (at, row) = row?;
                if page.add(Revision(at.value().0), row.value()).is_break() {
                    return Ok(page.finish());
                }
            }
            page.read_to = page.read_to.max(Revision(meta(txn, REVISION)?));
            Ok(page.finish())
        })
    }

    /// Applies changes: all of them or, on an error, none. They are on the disk when this returns.
    pub(super) fn change<T>(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.try_change(work)
            .map_err(|error| store_error(&self.path, error))
    }

    fn try_change<T>(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let txn = self.database.begin_write()?;
        let (result, changed) = {
            let mut tables = Tables::open(&txn)?;
            let result = work(&mut tables)?;
            tables.forget(self.history_revisions)?;
            (result, tables.changed)
        };
        if changed {
            txn.commit()?;
        } else {
            txn.abort()?; // spares the disk a sync
        }
        Ok(result)
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let txn = self.database.begin_read().map_err(redb::Error::from);
        txn.and_then(|txn| work(&txn))
            .map_err(|error| store_error(&self.path, error))
    }
}

/// A page of the history under construction.
struct Page<'a> {
    prefix: &'a str,
    batches: Vec<WatchBatch>,
    read_to: Revision,
    events: usize,
    bytes: usize,
}

impl Page<'_> {
    /// Adds a row, or stops before it, if it would begin a revision on a full page.
    fn add(&mut self, revision: Revision, row: HistoryRow<'_>) -> ControlFlow<()> {
        let full = self.events >= HISTORY_PAGE_EVENTS || self.bytes >= HISTORY_PAGE_BYTES;
        if full && revision > self.read_to {
            return ControlFlow::Break(());
        }
        self.read_to = revision;
        self.events += 1; // those of other prefixes too: they cost time
        let (is_put, key, create_revision, lease, value) = row;
        if !key.starts_with(self.prefix) {
            return ControlFlow::Continue(());
        }
        self.bytes += key.len() + value.len();
        let event = if is_put {
            Event::Put(entry(key, (create_revision, revision.0, lease, value)))
        } else {
            let key = key.to_owned();
            Event::Delete { key, revision }
        };
        match self.batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => self.batches.push(WatchBatch {
                revision,
                events: vec![event],
            }),
        }
        ControlFlow::Continue(())
    }

    fn finish(self) -> History {
        History::Read {
            batches: self.batches,
            read_to: self.read_to,
        }
    }
}

/// The tables inside one write transaction.
pub(super) struct Tables<'txn> {
    meta: Table<'txn, &'static str, u64>,
    entries: Table<'txn, &'static str, EntryRow<'static>>,
    history: Table<'txn, (i64, u32), HistoryRow<'static>>,
    leases: Table<'txn, i64, u64>,
    lease_keys: Table<'txn, (i64, &'static str), ()>,
    pub(super) revision: Revision,
    changed: bool,
}

impl<'txn> Tables<'txn> {
    fn open(txn: &'txn WriteTransaction) -> Result<Self, redb::Error> {
        let mut tables = Tables {
            meta: txn.open_table(META)?,
            entries: txn.open_table(ENTRIES)?,
            history: txn.open_table(HISTORY)?,
            leases: txn.open_table(LEASES)?,
            lease_keys: txn.open_table(LEASE_KEYS)?,
            revision: Revision(0),
            changed: false,
        };
        tables.revision = Revision(signed(tables.meta(REVISION)?));
        Ok(tables)
    }

    pub(super) fn holds(&self, compare: &Compare) -> Result<bool, redb::Error> {
        if let Compare::NoneCreatedAfter { prefix, after } = compare {
            return self.none_created_after(prefix, *after);
        }
        let row = self.entries.get(compare.key())?;
        let row = row.as_ref().map(|row| row.value());
        Ok(match compare {
            Compare::ModRevision { is, .. } => row.map_or(0, |row| row.1) == is.0,
            Compare::CreateRevision { is, .. } => row.map_or(0, |row| row.0) == is.0,
            Compare::Value { is, .. } => row.is_some_and(|row| row.3 == is),
            Compare::NoneCreatedAfter { .. } => false,
        })
    }

    fn none_created_after(&self, prefix: &str, after: Revision) -> Result<bool, redb::Error> {
        for row in self.entries.range(prefix..)? {
            let (key, row) = row?;
            if !key.value().starts_with(prefix) {
                break;
            }
            if row.value().0 > after.0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Applies all of `ops` in one new revision, or in none if they change nothing.
    pub(super) fn apply(&mut self, ops: &[Op]) -> Result<(), redb::Error> {
        let revision = Revision(self.revision.0 + 1);
        let mut place = 0;
        for op in ops {
            let change = match op {
                Op::Put { key, value, lease } => self.put(revision, key, value, *lease)?,
                Op::Delete { key } => match self.remove(key)? {
                    true => (false, key.as_str(), 0, 0, &[] as &[u8]),
                    false => continue,
                },
            };
            self.history.insert((revision.0, place), change)?;
            place += 1;
        }
        if place > 0 {
            self.revision = revision;
            self.meta.insert(REVISION, unsigned(revision.0))?;
            self.changed = true;
        }
        Ok(())
    }

    fn put<'a>(
        &mut self,
        revision: Revision,
        key: &'a str,
        value: &'a Bytes,
        lease: Option<LeaseId>,
    ) -> Result<HistoryRow<'a>, redb::Error> {
        let before = self
            .entries
            .get(key)?
            .map(|row| (row.value().0, row.value().2));
        let (created, lease_before) = before.unwrap_or((revision.0, 0));
        let lease = lease.map_or(0, |lease| lease.0);
        if lease_before != lease {
            self.lease_keys.remove((lease_before, key))?;
        }
        if lease != 0 {
            self.lease_keys.insert((lease, key), ())?;
        }
        self.entries
            .insert(key, (created, revision.0, lease, value.as_ref()))?;
        Ok((true, key, created, lease, value.as_ref()))
    }

    /// Whether there was a key to remove.
    fn remove(&mut self, key: &str) -> Result<bool, redb::Error> {
        let Some(lease) = self.entries.remove(key)?.map(|row| row.value().2) else {
            return Ok(false);
        };
        self.lease_keys.remove((lease, key))?;
        Ok(true)
    }

    pub(super) fn grant(&mut self, ttl: Duration) -> Result<LeaseId, redb::Error> {
        let mut lease = random_lease();
        // With a chance of one in 2^63 it exists already. An expired lease has no keys any more, so
        // its name may return.
        while self.leases.get(lease.0)?.is_some() {
            lease = random_lease();
        }
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.leases.insert(lease.0, ttl_ms)?;
        self.changed = true;
        Ok(lease)
    }

    /// Ends a lease and deletes its keys in one revision.
    pub(super) fn end_lease(&mut self, lease: LeaseId) -> Result<(), redb::Error> {
        let mut deletes = Vec::new();
        for row in self.lease_keys.range((lease.0, "")..(lease.0 + 1, ""))? {
            deletes.push(Op::delete(row?.0.value().1));
        }
        self.leases.remove(lease.0)?;
        self.changed = true;
        self.apply(&deletes)
    }

    /// Drops the history except for the last `keep` revisions.
    fn forget(&mut self, keep: i64) -> Result<(), redb::Error> {
        let compacted = self.revision.0.saturating_sub(keep);
        if self.changed && compacted > signed(self.meta(COMPACTED)?) {
            self.history.retain_in(..(compacted + 1, 0), |_, _| false)?;
            self.meta.insert(COMPACTED, unsigned(compacted))?;
        }
        Ok(())
    }

    fn meta(&self, name: &str) -> Result<u64, redb::Error> {
        Ok(self.meta.get(name)?.map_or(0, |value| value.value()))
    }
}

fn meta(txn: &ReadTransaction, name: &str) -> Result<i64, redb::Error> {
    let value = txn.open_table(META)?.get(name)?;
    Ok(value.map_or(0, |value| signed(value.value())))
}

// Revisions count up from 0 by one, so they are in the range of both types.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn entry(key: &str, row: EntryRow<'_>) -> Entry {
    let (create_revision, mod_revision, lease, value) = row;
    Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        create_revision: Revision(create_revision),
        mod_revision: Revision(mod_revision),
        lease: Some(lease).filter(|&id| id != 0).map(LeaseId),
    }
}

fn unmarked(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable {
        detail: format!("{}: {error}", path.display()),
    }
}

fn corrupt(path: &Path, detail: String) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        detail,
    }
}

/// The disk is full, or the user's quota is used up.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

fn store_error(path: &Path, error: redb::Error) -> StoreError {
    use std::io::ErrorKind;
    match error {
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse {
            path: path.to_owned(),
        },
        redb::Error::Corrupted(detail) => corrupt(path, detail),
        // redb's error for a file that has another header, or ends too early.
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) =>
        {
            corrupt(path, error.to_string())
        }
        redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. } => corrupt(path, error.to_string()),
        redb::Error::Io(error) if is_full(&error) => StoreError::Refused {
            cause: RefusedCause::Full,
            detail: error.to_string(),
        },
        error => StoreError::Unavailable {
            detail: format!("{}: {error}", path.display()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_errors() {
        let path = Path::new("x");
        let of = |kind: std::io::ErrorKind| store_error(path, redb::Error::Io(kind.into()));
        for kind in [
            std::io::ErrorKind::StorageFull,
            std::io::ErrorKind::QuotaExceeded,
        ] {
            let cause = RefusedCause::Full;
            assert!(matches!(of(kind), StoreError::Refused { cause: is, .. } if is == cause));
        }
        let other = of(std::io::ErrorKind::PermissionDenied);
        assert!(matches!(other, StoreError::Unavailable { .. }), "{other}");
    }
}
