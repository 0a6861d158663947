//! The writes of an idle mesh to etcd: three zones with two replicas each, with the fence, without
//! any events.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::cells::Cells;
use crate::client::{Client, Request, Version};
use crate::config::{Config, StoreConfig, ZONES};
use crate::control_plane::ControlPlane;
use crate::etcd::Etcd;
use crate::figures::Figure;
use crate::wait::{PATIENCE, eventually};

const REPLICAS_PER_ZONE: usize = 2;
const DAY_S: f64 = 86_400.0;
/// A mesh that writes nothing for this long is idle: longer than any replica waits before it renews
/// its session.
const QUIET_FOR: Duration = Duration::from_secs(3);

/// An idle mesh. Dropping it ends it.
pub struct Idle {
    etcd: Etcd,
    replicas: Vec<ControlPlane>,
}

/// The counters of etcd.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    puts: f64,
    put_bytes: f64,
    wal_bytes: f64,
    backend_bytes: f64,
}

/// The writes and their size.
#[derive(Clone, Debug)]
pub struct Written {
    pub puts: f64,
    pub bytes_per_day: f64,
    pub puts_per_s: f64,
    wal_bytes_per_day: f64,
    backend_growth_bytes: f64,
    measured_s: f64,
}

impl Idle {
    /// Starts it in the default configuration, and waits until the cell can be written to and all
    /// is quiet.
    pub async fn start(directory: &Path) -> Result<Idle> {
        let etcd = Etcd::start(directory, 1).await?;
        let mut replicas = Vec::new();
        for (zone, _) in ZONES {
            for replica in 0..REPLICAS_PER_ZONE {
                let directory = directory.join(format!("{zone}-{replica}"));
                std::fs::create_dir_all(&directory)?;
                let store = StoreConfig::Etcd {
                    endpoints: etcd.endpoints(),
                };
                let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
                let mut config = Config::new(store, vec![service]);
                config.bare = true;
                config.authority = Some(json!({
                    "zones": [zone],
                    "cells": [{ "name": "main", "owners": [ZONES[0].0] }],
                }));
                replicas.push(ControlPlane::start(&directory, config).await?);
            }
        }
        let idle = Idle { etcd, replicas };
        idle.settle().await?;
        Ok(idle)
    }

    async fn settle(&self) -> Result<()> {
        let first = self.replicas.first().context("no replica")?;
        let cells = Cells::new(first.admin());
        eventually(3 * PATIENCE, "the cell to be active", async || {
            let cell = cells.get("main").await?;
            ensure!(cell.is_active_in(ZONES[0].0), "{cell:?}");
            Ok(())
        })
        .await?;
        let mut last = (self.counts().await?.puts, Instant::now());
        eventually(6 * PATIENCE, "the mesh to be quiet", async || {
            let puts = self.counts().await?.puts;
            if puts > last.0 {
                last = (puts, Instant::now());
            }
            ensure!(last.1.elapsed() >= QUIET_FOR, "{puts} puts");
            Ok(())
        })
        .await
    }

    /// Counts the writes in `span`.
    pub async fn measure(&self, span: Duration) -> Result<Written> {
        let (before, began) = (self.counts().await?, Instant::now());
        sleep(span).await;
        let after = self.counts().await?;
        let measured_s = began.elapsed().as_secs_f64();
        let per_day = |bytes: f64| bytes / measured_s * DAY_S;
        let puts = after.puts - before.puts;
        Ok(Written {
            puts,
            bytes_per_day: per_day(after.put_bytes - before.put_bytes),
            puts_per_s: puts / measured_s,
            wal_bytes_per_day: per_day(after.wal_bytes - before.wal_bytes),
            backend_growth_bytes: after.backend_bytes - before.backend_bytes,
            measured_s,
        })
    }

    async fn counts(&self) -> Result<Counts> {
        let member = self.etcd.members().first().context("no member")?;
        let metrics = Client::new(Version::Http1)
            .send(member.address(), &Request::get("/metrics"))
            .await?;
        let text = metrics.text();
        let of = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            let found = lines.find(|(metric, _)| *metric == name);
            let (_, value) = found.with_context(|| format!("etcd has no metric {name}"))?;
            Ok::<f64, anyhow::Error>(value.parse()?)
        };
        Ok(Counts {
            puts: of("etcd_mvcc_put_total")?,
            put_bytes: of("etcd_debugging_mvcc_total_put_size_in_bytes")?,
            wal_bytes: of("etcd_disk_wal_write_bytes_total")?,
            backend_bytes: of("etcd_mvcc_db_total_size_in_bytes")?,
        })
    }
}

impl Written {
    pub fn figures(&self) -> Vec<Figure> {
        let seconds = self.measured_s as usize;
        vec![
            Figure::of("etcd_bytes_per_day_idle", "B", self.bytes_per_day, seconds),
            Figure::of("etcd_puts_per_s_idle", "1/s", self.puts_per_s, seconds),
        ]
    }

    /// Prints the figures.
    pub fn print(&self) {
        println!(
            "idle, {} replicas, {:.0} s: {} puts, {:.0} bytes a day in the history, {:.0} bytes a day in the log, backend grown by {:.0} bytes",
            ZONES.len() * REPLICAS_PER_ZONE,
            self.measured_s,
            self.puts,
            self.bytes_per_day,
            self.wal_bytes_per_day,
            self.backend_growth_bytes,
        );
    }
}
