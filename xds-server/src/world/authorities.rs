//! The owners of cells, as proxies receive them: a hint for forwarding writes. Only grants give the
//! authority to write.

use std::collections::BTreeMap;

use policy::topology::check_name;
use registry::{
    authority::{AUTHORITY_PREFIX, AuthorityRecord},
    record::InvalidRecord,
    store::Entry,
};

/// The part of the record that proxies receive; changes of other parts do not affect them.
#[derive(Clone, PartialEq, Eq)]
struct Ownership {
    epoch: u64,
    owners: Vec<String>,
}

/// The last readable owners, by cell.
#[derive(Default)]
pub(super) struct Authorities(BTreeMap<String, Ownership>);

impl Authorities {
    /// The owners of a cell, and its epoch.
    pub(super) fn of(&self, cell: &str) -> Option<(Vec<String>, u64)> {
        let known = self.0.get(cell)?;
        Some((known.owners.clone(), known.epoch))
    }

    /// Applies a record. Returns the cell if its owners or epoch changed; an unreadable record
    /// changes nothing.
    pub(super) fn put(&mut self, entry: &Entry) -> Result<Option<String>, InvalidRecord> {
        let cell = cell(&entry.key).ok_or(InvalidRecord::RecordKey)?;
        let authority = AuthorityRecord::parse(&entry.value)?;
        let record = Ownership {
            epoch: authority.epoch,
            owners: authority
                .owners
                .iter()
                .map(|zone| zone.to_string())
                .collect(),
        };
        let before = self.0.insert(cell.to_owned(), record.clone());
        Ok((before != Some(record)).then(|| cell.to_owned()))
    }

    /// Removes a record. Returns its cell, if it was known.
    pub(super) fn delete(&mut self, key: &str) -> Option<String> {
        let (cell, _) = self.0.remove_entry(cell(key)?)?;
        Some(cell)
    }

    pub(super) fn store_keys(&self) -> impl Iterator<Item = String> {
        let cells = self.0.keys();
        cells.map(|cell| format!("{AUTHORITY_PREFIX}{cell}"))
    }
}

fn cell(key: &str) -> Option<&str> {
    let cell = key.strip_prefix(AUTHORITY_PREFIX)?;
    check_name(cell).is_ok().then_some(cell)
}
