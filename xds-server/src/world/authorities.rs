//! The owners of cells, as far as proxies are told of them: a hint where a write should go. Write
//! authority is told by grants alone.

use std::collections::BTreeMap;

use policy::topology::check_name;
use registry::{
    authority::{AUTHORITY_PREFIX, AuthorityRecord},
    record::InvalidRecord,
    store::Entry,
};

/// The part of the record that proxies are told; the rest of it changes nothing for them.
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

    /// Takes a record in. The cell, if something about it changed; one that cannot be read changes
    /// nothing.
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

    /// The cell, if its record is forgotten.
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
