//! The writes as upstreams and the store have seen them, and distinguishable writes.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use policy::shard::{jump_hash, key_digest};
use serde_json::{Value, json};

use super::{Stage, etcd_endpoints, name, zones};
use crate::client::Request;
use crate::clock::monotonic_us;
use crate::history::{Authority, Collector, History, Pause, Report, Write, check};
use crate::write_log::{ID, Reader, SENT};

/// The cells: name, first owner, and number of shards. Two of the first zone, one of the second.
pub const CELLS: [(&str, u8, u32); 3] = [("main", 0, 400), ("east", 0, 400), ("west", 1, 224)];
const SHARDS: u32 = 1_024;

/// The secret by which gateways sign and verify each other's hops.
pub const FORWARD_TOKEN: &str = "gateways-of-one-mesh";

/// The first of the cells, for tests that need one.
pub const CELL: &str = CELLS[0].0;

/// The header whose value selects the cell of a write.
pub const KEY: &str = "x-user-id";

/// A key of the cell at this position of [`CELLS`].
pub fn key_of(cell: usize) -> &'static str {
    static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let keys = (0..CELLS.len()).map(|cell| {
            let mut keys = (0..).map(|user| format!("user-{user}"));
            keys.find(|key| cell_of_key(key) == cell)
        });
        keys.flatten().collect()
    });
    KEYS.get(cell).map_or("", String::as_str)
}

/// The position in [`CELLS`] of the cell of a key.
fn cell_of_key(key: &str) -> usize {
    let shard = jump_hash(key_digest(key.as_bytes()), SHARDS);
    let mut first = 0;
    let mut firsts = CELLS.iter().map(|(_, _, shards)| {
        first += shards;
        first
    });
    firsts.position(|beyond| shard < beyond).unwrap_or(0)
}

/// The position in [`CELLS`] of the cell of a write.
pub fn cell_of(request: &Request) -> Option<u8> {
    let key = request.headers.get(KEY)?.to_str().ok()?;
    u8::try_from(cell_of_key(key)).ok()
}

/// The spans of a fence, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    pub session_ttl_ms: u64,
    pub grant_ttl_ms: u64,
    pub write_drain_ms: u64,
}

/// Cells that any zone may own and forward to, in the form of the configuration.
pub fn authority(spans: Spans, enforcement: &str) -> Value {
    json!({
        "session_ttl_ms": spans.session_ttl_ms,
        "grant_ttl_ms": spans.grant_ttl_ms,
        "write_drain_ms": spans.write_drain_ms,
        "drift_permille": 10,
        "enforcement": enforcement,
        "forward_token": FORWARD_TOKEN,
        "cells": CELLS.map(|(cell, owner, shards)| json!({
            "name": cell,
            "shards": shards,
            "owners": [name(owner)],
            "standby": zones().filter(|zone| *zone != owner).map(name).collect::<Vec<_>>(),
            "forward": "any",
            "failover": "automatic",
            "cool_down_s": 0,
        })),
    })
}

/// The key in a service's configuration for these cells.
pub fn cell_key() -> Value {
    json!({ "header": KEY })
}

/// A write to a cell that takes this many milliseconds, with a unique mark.
pub fn write(gateway: u8, count: u64, cell: usize, ms: u64) -> Request {
    let path = match ms {
        0 => "/orders".to_owned(),
        ms => format!("/orders/slow?ms={ms}"),
    };
    Request::post(&path)
        .header(ID, format!("w-{gateway}-{count}"))
        .header(SENT, monotonic_us().to_string())
        .header(KEY, key_of(cell))
}

/// Reads the logs of all instances and the history of authority.
pub struct Witness {
    readers: Vec<Reader>,
    collector: Collector,
    authority: Authority,
    pauses: Vec<Pause>,
}

impl Witness {
    pub fn of(stage: &Stage) -> Witness {
        let instances = zones().flat_map(|z| stage.instances().map(move |i| (z, i)));
        Witness {
            readers: instances
                .map(|(zone, instance)| Reader::new(stage.zone(zone).write_log(instance)))
                .collect(),
            collector: Collector::default(),
            authority: Authority::new(etcd_endpoints(0)),
            pauses: vec![],
        }
    }

    /// Records that the gateway of a zone was stopped from this time until now.
    pub fn paused(&mut self, zone: u8, begin_us: u64) {
        self.pauses.push(Pause {
            zone: name(zone).to_owned(),
            begin_us,
            end_us: monotonic_us(),
        });
    }

    /// Reads new lines and records: the writes first, so that the authority is never older than
    /// they are.
    pub async fn look(&mut self) -> Result<()> {
        for reader in &mut self.readers {
            self.collector.add(reader.more()?);
        }
        let read = self.authority.read().await;
        read.context("the history of authority")
    }

    pub fn writes(&self) -> &[Write] {
        self.collector.writes()
    }

    /// Checks everything so far.
    pub fn judge(&self) -> Report {
        check(&History {
            writes: self.collector.writes().to_vec(),
            authority: self.authority.records().clone(),
            pauses: self.pauses.clone(),
        })
    }

    /// The newest authority over each cell, in words.
    pub fn newest(&self) -> String {
        let records = self.authority.records();
        let each = CELLS.map(|(cell, ..)| {
            let newest = records.get(cell).and_then(|records| records.last());
            newest.map_or(format!("{cell}: nobody"), |record| {
                let owners = record.owners.join(" and ");
                format!(
                    "{cell}: {owners} at epoch {}, {}",
                    record.epoch, record.state
                )
            })
        });
        each.join("; ")
    }

    /// The owners of each cell by its newest record.
    pub fn owners(&self) -> BTreeMap<&'static str, Vec<String>> {
        let records = self.authority.records();
        let each = CELLS.into_iter().filter_map(|(cell, ..)| {
            let newest = records.get(cell)?.last()?;
            Some((cell, newest.owners.clone()))
        });
        each.collect()
    }
}
