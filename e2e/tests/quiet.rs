//! The cost of the fence in etcd, and its reaction to a hung member: real control planes, a real
//! etcd.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cells::Cells;
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::etcd::Etcd;
use e2e::idle::Idle;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::json;
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_mesh_puts_nothing() -> Result<()> {
    let workdir = Workdir::kept("an-idle-mesh")?;
    let idle = Idle::start(workdir.path()).await?;
    let written = idle.measure(Duration::from_secs(10)).await?;
    written.print();
    // Six replicas that renew by puts make 80. A busy machine may delay a round, which costs a put.
    ensure!(written.puts <= 20.0, "{written:?}");
    Ok(())
}

/// The endpoints, a follower first: the control planes connect to that one.
async fn follower_first(etcd: &Etcd) -> Result<Vec<String>> {
    let mut ranked = Vec::new();
    for member in etcd.members() {
        let mut client = etcd_client::Client::connect([member.endpoint()], None).await?;
        let status = client.status().await?;
        let own = status.header().context("no header")?.member_id();
        ranked.push((status.leader() == own, member.endpoint()));
    }
    ranked.sort();
    Ok(ranked.into_iter().map(|(_, endpoint)| endpoint).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_costs_the_shortest_session_nothing() -> Result<()> {
    let workdir = Workdir::kept("a-hung-member")?;
    let etcd = Etcd::start(workdir.path(), 3).await?;
    let endpoints = follower_first(&etcd).await?;
    let mut replicas = Vec::new();
    for (zone, _) in &ZONES[..2] {
        let directory = workdir.path().join(zone);
        std::fs::create_dir_all(&directory)?;
        let store = StoreConfig::Etcd {
            endpoints: endpoints.clone(),
        };
        let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
        let mut config = Config::new(store, vec![service]);
        config.authority = Some(json!({
            "zones": [zone],
            "session_ttl_ms": 2_000,
            "cells": [{ "name": "main", "owners": [ZONES[0].0] }],
        }));
        replicas.push(ControlPlane::start(&directory, config).await?);
    }
    let cells = Cells::new(replicas[0].admin());
    let active = eventually(3 * PATIENCE, "the cell to be active", async || {
        let cell = cells.get("main").await?;
        ensure!(cell.is_active_in(ZONES[0].0), "{cell:?}");
        Ok(cell)
    })
    .await?;
    let asked = endpoints.first().context("no endpoint")?;
    let mut members = etcd.members().iter();
    let hung = members.find(|member| member.endpoint() == *asked);
    let hung = hung.context("no such member")?;
    hung.process().pause()?;
    // Longer than a session, and everything under it, lasts.
    let paused = Instant::now();
    while paused.elapsed() < Duration::from_secs(8) {
        let cell = cells.get("main").await?;
        ensure!(cell.epoch == active.epoch, "the cell has moved: {cell:?}");
        sleep(Duration::from_millis(100)).await;
    }
    let cell = cells.get("main").await?;
    ensure!(cell.is_active_in(ZONES[0].0), "{cell:?}");
    hung.process().resume()
}
