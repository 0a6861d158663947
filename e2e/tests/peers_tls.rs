//! Replicas that exchange beats over TLS: real control planes, a real etcd, real certificates.

use std::fs;

use anyhow::{Result, ensure};
use e2e::cells::Cells;
use e2e::certificates::{self, Ca};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::etcd::Etcd;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

const CELL: &str = "main";
const SESSION_TTL_MS: u64 = 2_000;

/// A control plane in each of two zones. The fields are dropped in order.
struct Site {
    planes: Vec<ControlPlane>,
    _etcd: Etcd,
    _workdir: Workdir,
}

impl Site {
    /// `advertised` is the server name that the second one publishes for its certificate, if any.
    /// All certificates are for `tidegate`.
    async fn start(name: &str, advertised: Option<&str>) -> Result<Site> {
        let workdir = Workdir::kept(name)?;
        let etcd = Etcd::start(workdir.path(), 1).await?;
        let ca = Ca::new("mesh")?;
        let mut planes = vec![];
        for (at, (zone, _)) in ZONES[..2].iter().enumerate() {
            let directory = workdir.path().join(zone);
            let certificates = directory.join("certificates");
            fs::create_dir_all(&directory)?;
            ca.issue(&certificates, "tidegate", &[&ca])?;
            let store = StoreConfig::Etcd {
                endpoints: etcd.endpoints(),
            };
            let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
            let mut config = Config::new(store, vec![service]);
            config.listen = certificates::listen(&certificates, &["admin"]);
            if let Some(name) = advertised.filter(|_| at == 1) {
                config.listen["advertise_name"] = json!(name);
            }
            config.authority = Some(json!({
                "zones": [zone],
                "session_ttl_ms": SESSION_TTL_MS,
                "cells": [{ "name": CELL, "owners": [ZONES[0].0], "standby": [ZONES[1].0] }],
            }));
            planes.push(ControlPlane::start(&directory, config).await?);
        }
        Ok(Site {
            planes,
            _etcd: etcd,
            _workdir: workdir,
        })
    }

    async fn metric(&self, of: usize, name: &str) -> Result<f64> {
        self.planes[of].registry().metric(name).await
    }

    /// The number of puts of each session.
    async fn puts(&self) -> Result<[f64; 2]> {
        let name = "tidegate_session_puts_total";
        Ok([self.metric(0, name).await?, self.metric(1, name).await?])
    }

    /// Waits until the cell is active, and every session is renewed by rounds (0) or by puts (1).
    async fn until_renewing(&self, by_puts: [u8; 2]) -> Result<()> {
        let cells = Cells::new(self.planes[0].admin());
        eventually(3 * PATIENCE, "the sessions", async || {
            let cell = cells.get(CELL).await?;
            ensure!(cell.is_active_in(ZONES[0].0), "{cell:?}");
            for (at, wanted) in by_puts.into_iter().enumerate() {
                let put = self.metric(at, "tidegate_sessions_put").await?;
                ensure!(put == f64::from(wanted), "{at}: {put}");
            }
            Ok(())
        })
        .await
    }

    /// Details of the condition that another replica is not reached.
    async fn unreached(&self, of: usize) -> Result<Vec<String>> {
        let all: Value = self.planes[of].registry().conditions().await?;
        let all = all.as_array().cloned().unwrap_or_default();
        let unreached = all.iter().filter(|c| c["name"] == "peer_unreached");
        let detail = |c: &Value| c["detail"].as_str().unwrap_or_default().to_owned();
        Ok(unreached.map(detail).collect())
    }
}

/// Waits for some session lifetimes.
async fn some_sessions() {
    let end = Instant::now() + Duration::from_millis(4 * SESSION_TTL_MS);
    while Instant::now() < end {
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_hear_each_other_by_a_name_that_their_certificates_have() -> Result<()> {
    for (name, advertised) in [("own", None), ("said", Some("tidegate"))] {
        let site = Site::start(&format!("peers-tls-{name}"), advertised).await?;
        site.until_renewing([0, 0]).await?;
        let before = site.puts().await?;
        some_sessions().await;
        let after = site.puts().await?;
        // By puts each would make 16. A busy machine may delay a round, which costs a put.
        let puts = (after[0] - before[0]) + (after[1] - before[1]);
        ensure!(puts <= 3.0, "{name}: {before:?}, then {after:?}");
        for at in [0, 1] {
            ensure!(site.unreached(at).await?.is_empty(), "{at}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_certificate_has_another_name_is_not_heard_which_is_said_once() -> Result<()>
{
    let site = Site::start("peers-tls-wrong", Some("elsewhere")).await?;
    // The first one cannot call the second, so its beats are not acknowledged; the other direction
    // works.
    site.until_renewing([1, 0]).await?;
    let detail = eventually(PATIENCE, "the condition", async || {
        let told = site.unreached(0).await?;
        ensure!(told.len() == 1, "{told:?}");
        Ok(told.concat())
    })
    .await?;
    ensure!(
        detail.contains("certificate") && detail.contains("elsewhere"),
        "{detail}"
    );
    ensure!(site.unreached(1).await?.is_empty());
    let (before, cells) = (site.puts().await?, Cells::new(site.planes[0].admin()));
    let epoch = cells.get(CELL).await?.epoch;
    some_sessions().await;
    let after = site.puts().await?;
    ensure!(after[0] - before[0] >= 8.0, "{before:?}, then {after:?}");
    ensure!(after[1] - before[1] <= 2.0, "{before:?}, then {after:?}");
    let cell = cells.get(CELL).await?;
    ensure!(
        cell.epoch == epoch && cell.is_active_in(ZONES[0].0),
        "{cell:?}"
    );
    let lines = |of: usize, what: &str| {
        let log = site.planes[of].process().tail();
        log.lines().filter(|line| line.contains(what)).count()
    };
    ensure!(
        lines(0, "peer_unreached") == 1,
        "{}",
        site.planes[0].process().tail()
    );
    // The other side sees that its certificate is rejected: at the start, and every half minute.
    ensure!(
        lines(1, "connection refused") <= 3,
        "{}",
        site.planes[1].process().tail()
    );
    Ok(())
}
