//! What upstreams and the store have seen of writes, and the writes that they can tell apart.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Stage, etcd_endpoints, name, zones};
use crate::client::Request;
use crate::clock::monotonic_us;
use crate::history::{Authority, Collector, History, Pause, Report, Write, check};
use crate::write_log::{ID, Reader, SENT};

/// The cell of everything here.
pub const CELL: &str = "main";

/// The spans of a fence, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    pub session_ttl_ms: u64,
    pub grant_ttl_ms: u64,
    pub write_drain_ms: u64,
}

/// One cell that any zone may own and forward to, as the configuration has it.
pub fn authority(spans: Spans, enforcement: &str) -> Value {
    json!({
        "session_ttl_ms": spans.session_ttl_ms,
        "grant_ttl_ms": spans.grant_ttl_ms,
        "write_drain_ms": spans.write_drain_ms,
        "drift_permille": 10,
        "enforcement": enforcement,
        "forward_token": "gateways-of-one-mesh",
        "cells": [{
            "name": CELL,
            "owners": [name(0)],
            "standby": [name(1), name(2)],
            "forward": "any",
            "failover": "automatic",
            "cool_down_s": 0,
        }],
    })
}

/// A write that takes so many milliseconds, with what tells it apart.
pub fn write(gateway: u8, count: u64, ms: u64) -> Request {
    let path = match ms {
        0 => "/orders".to_owned(),
        ms => format!("/orders/slow?ms={ms}"),
    };
    Request::post(&path)
        .header(ID, format!("w-{gateway}-{count}"))
        .header(SENT, monotonic_us().to_string())
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

    /// Notes that the gateway of a zone was stopped from a time until now.
    pub fn paused(&mut self, zone: u8, begin_us: u64) {
        self.pauses.push(Pause {
            zone: name(zone).to_owned(),
            begin_us,
            end_us: monotonic_us(),
        });
    }

    /// Reads what is new: the writes first, so that the authority is never older than they are.
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

    /// Judges everything so far.
    pub fn judge(&self) -> Report {
        check(&History {
            writes: self.collector.writes().to_vec(),
            authority: self.authority.records().clone(),
            pauses: self.pauses.clone(),
        })
    }

    /// The newest authority over [`CELL`], in words.
    pub fn newest(&self) -> String {
        let records = self.authority.records().get(CELL);
        let newest = records.and_then(|records| records.last());
        newest.map_or("nobody".to_owned(), |record| {
            format!(
                "{} at epoch {}, {}",
                record.owners.join(" and "),
                record.epoch,
                record.state
            )
        })
    }
}
