//! The history of authority, read back from etcd.
//!
//! Without a watch: etcd keeps every revision of a key until it is compacted, which no test here
//! does. So this module reads the newest revision, then the previous one, and so on back to the
//! known ones. No revision is missed while etcd is down, and the time of a read does not matter.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etcd_client::{Client, ConnectOptions, GetOptions, KeyValue};
use serde::Deserialize;
use tokio::time::timeout;

use super::Record;

const PREFIX: &str = "/tidegate/v1/authority/";
/// How long one member may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The most revisions of one read.
const STEPS_MAX: usize = 100_000;

/// The records that were read so far.
pub struct Authority {
    endpoints: Vec<String>,
    /// The cluster that answered last, and the number of clusters before it.
    cluster: Option<u64>,
    stores: u32,
    /// By cell, the newest known revision of this cluster.
    known: BTreeMap<String, i64>,
    records: BTreeMap<String, Vec<Record>>,
}

impl Authority {
    pub fn new(endpoints: Vec<String>) -> Authority {
        Authority {
            endpoints,
            cluster: None,
            stores: 0,
            known: BTreeMap::new(),
            records: BTreeMap::new(),
        }
    }

    /// All records so far, by cell. They exclude records of another store that a restored one
    /// contains: these are invalid there.
    pub fn records(&self) -> &BTreeMap<String, Vec<Record>> {
        &self.records
    }

    /// Reads new records, from the first member that answers.
    pub async fn read(&mut self) -> Result<()> {
        let mut last = None;
        for endpoint in self.endpoints.clone() {
            match self.read_from(&endpoint).await {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error.context(endpoint)),
            }
        }
        Err(last.context("no etcd")?).context("no member of etcd answers")
    }

    async fn read_from(&mut self, endpoint: &str) -> Result<()> {
        let options = ConnectOptions::new().with_connect_timeout(ANSWER_MAX);
        let connecting = Client::connect([endpoint], Some(options));
        let mut client = timeout(ANSWER_MAX, connecting).await??;
        let all = client.get(PREFIX, Some(GetOptions::new().with_prefix()));
        let all = timeout(ANSWER_MAX, all).await??;
        let cluster = all.header().context("no header")?.cluster_id();
        let mut fresh = Vec::new();
        let is_known = self.cluster == Some(cluster);
        for newest in all.kvs() {
            let cell = cell_of(newest)?;
            let known = self.known.get(&cell).filter(|_| is_known);
            let known = known.copied().unwrap_or(0);
            let versions = back_to(&mut client, newest, known).await?;
            fresh.push((cell, versions));
        }
        // Only after all reads: a failure half-way has changed nothing.
        if !is_known {
            self.stores += u32::from(self.cluster.is_some());
            self.cluster = Some(cluster);
            self.known.clear();
        }
        for (cell, versions) in fresh {
            let Some(newest) = versions.first() else {
                continue;
            };
            self.known.insert(cell.clone(), newest.mod_revision());
            let records = self.records.entry(cell).or_default();
            for version in versions.iter().rev() {
                records.extend(parse(version, cluster, self.stores)?);
            }
        }
        Ok(())
    }
}

/// The versions of a key that are newer than a revision, the newest first.
async fn back_to(client: &mut Client, newest: &KeyValue, known: i64) -> Result<Vec<KeyValue>> {
    let mut versions = Vec::new();
    let mut next = Some(newest.clone());
    for _ in 0..STEPS_MAX {
        let Some(version) = next.filter(|version| version.mod_revision() > known) else {
            return Ok(versions);
        };
        let before = version.mod_revision() - 1;
        versions.push(version);
        if before == 0 {
            return Ok(versions);
        }
        let options = GetOptions::new().with_revision(before);
        let found = client.get(newest.key(), Some(options));
        let found = timeout(ANSWER_MAX, found).await??;
        next = found.kvs().first().cloned();
    }
    bail!("more than {STEPS_MAX} new records of one cell")
}

fn cell_of(record: &KeyValue) -> Result<String> {
    let cell = record.key_str()?.strip_prefix(PREFIX);
    Ok(cell.context("another key")?.to_owned())
}

/// None for a record of another store.
fn parse(version: &KeyValue, cluster: u64, store: u32) -> Result<Option<Record>> {
    #[derive(Deserialize)]
    struct Stored {
        store: String,
        epoch: u64,
        owners: Vec<String>,
        state: String,
    }
    let text = version.value_str()?;
    let stored: Stored = serde_json::from_str(text).with_context(|| text.to_owned())?;
    let written_by = u64::from_str_radix(stored.store.trim_start_matches("0x"), 16)
        .with_context(|| text.to_owned())?;
    Ok((written_by == cluster).then(|| Record {
        store,
        revision: version.mod_revision(),
        epoch: stored.epoch,
        owners: stored.owners,
        state: stored.state,
    }))
}
