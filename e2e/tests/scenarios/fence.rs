//! Writes are fenced: who admits them, where they go instead, and how that moves.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use e2e::client::{Reply, Request};
use e2e::config::ZONES;
use e2e::load::{Load, RunningLoad};
use e2e::mesh::{Builder, Mesh, Store};
use e2e::registry::Health;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

use crate::support::{assert_refused, on, operate, run, until_held};

/// What the gateways of a mesh prove to each other that they are.
const TOKEN: &str = "gateways-of-one-mesh";
const HOP: &str = "tidegate-hop";
const PRESENTED: &str = "tidegate-epoch";

/// With sessions short enough to wait for, and long enough for a busy machine.
fn authority(cells: Value) -> Value {
    json!({
        "zones": ZONES.map(|(zone, _)| zone),
        "session_ttl_ms": 4_000,
        "grant_ttl_ms": 1_500,
        "write_drain_ms": 1_000,
        "forward_token": TOKEN,
        "cells": cells,
    })
}

/// One cell, of shanghai-a at first.
fn one_cell() -> Value {
    authority(json!([{
        "name": "main",
        "owners": ["shanghai-a"],
        "standby": ["shanghai-b", "beijing-c"],
        "cool_down_s": 0,
    }]))
}

fn service() -> Value {
    json!({ "name": "orders", "routes": [{ "prefix": "/orders" }], "fenced": true })
}

async fn mesh(name: &str, store: Store, authority: Value, service: Value) -> Result<Mesh> {
    Builder::new(Workdir::kept(name)?)
        .store(store)
        .service(service)
        .authority(authority)
        .gateways()
        .upstreams("orders", 1)
        .start()
        .await
}

fn write() -> Request {
    Request::post("/orders")
}

/// The epoch by which a write was admitted, as its upstream saw it.
fn epoch(reply: &Reply) -> Result<u64> {
    let echo = reply.echo()?;
    let epoch = echo.headers.get("x-tidegate-epoch");
    let epoch = epoch.with_context(|| format!("no epoch: {:?}", echo.headers))?;
    Ok(epoch.parse()?)
}

/// Waits until a write by a gateway is taken by a zone; its epoch.
async fn until_taken(mesh: &Mesh, gateway: &str, zone: &str) -> Result<u64> {
    let what = format!("a write by {gateway} to be taken by {zone}");
    let taken = mesh.eventually(gateway, &what, write(), |reply| {
        let by = reply.echo()?.zone;
        ensure!(by == zone, "{by} took it");
        Ok(())
    });
    epoch(&taken.await?)
}

/// Waits until a write by a gateway is refused for this reason.
async fn until_refused(mesh: &Mesh, gateway: &str, reason: &str) -> Result<Reply> {
    let what = format!("a write by {gateway} to be refused: {reason}");
    let refused = mesh.eventually(gateway, &what, write(), |reply| {
        let refusal = reply.refusal()?;
        ensure!(refusal == reason, "{refusal}");
        Ok(())
    });
    refused.await
}

/// Reads by all gateways, from when each is served in its own zone.
async fn reads(mesh: &Mesh) -> Result<RunningLoad> {
    let mut requests = vec![];
    for (zone, _) in ZONES {
        mesh.eventually(zone, "reads", Request::get("/orders"), |reply| {
            let by = reply.echo()?.zone;
            ensure!(by == zone, "{by} answered");
            Ok(())
        })
        .await?;
        requests.push((mesh.address(zone)?, Request::get("/orders")));
    }
    Ok(Load::steady(requests).start())
}

#[test]
fn a_write_is_admitted_by_its_owner_forwarded_in_the_region_and_refused_elsewhere() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let here = until_taken(mesh, "shanghai-a", "shanghai-a").await?;
        let forwarded = until_taken(mesh, "shanghai-b", "shanghai-a").await?;
        assert_eq!(forwarded, here);
        let refused = until_refused(mesh, "beijing-c", "not_owner").await?;
        assert_refused(&refused, 421, "not_owner");
        assert_eq!(refused.header("x-tidegate-owner"), Some("shanghai-a"));
        // What a client says of itself counts for nothing.
        let spoofed = write()
            .header("x-tidegate-epoch", "7")
            .header("x-tidegate-class", "read")
            .header("x-tidegate-to", "orders/beijing-c");
        let spoofed = mesh.send("beijing-c", spoofed).await?;
        assert_refused(&spoofed, 421, "not_owner");
        // Reads are nobody's matter.
        let mut reads = reads(mesh).await?;
        let seen = reads.next(60).await?;
        ensure!(seen.zones.len() == ZONES.len(), "{:?}", seen.zones);
        reads.stop().await.check_no_failure()
    }
    run(async {
        let mesh = mesh("fence-owner", Store::Embedded, one_cell(), service()).await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn an_operator_moves_a_cell_and_its_epoch_rises() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let first = until_taken(mesh, "shanghai-a", "shanghai-a").await?;
        until_held(mesh).await?;
        let mut reads = reads(mesh).await?;
        operate(mesh, &["move", "main", "--to", "shanghai-b"])?;
        let second = until_taken(mesh, "shanghai-b", "shanghai-b").await?;
        ensure!(second > first, "{second} after {first}");
        assert_eq!(until_taken(mesh, "shanghai-a", "shanghai-b").await?, second);
        let table = operate(mesh, &["cells"])?;
        ensure!(
            table.contains("main") && table.contains("shanghai-b"),
            "{table}"
        );

        operate(mesh, &["move", "main", "--to", "beijing-c"])?;
        let third = until_taken(mesh, "beijing-c", "beijing-c").await?;
        ensure!(third > second, "{third} after {second}");
        let refused = until_refused(mesh, "shanghai-a", "not_owner").await?;
        assert_eq!(refused.header("x-tidegate-owner"), Some("beijing-c"));
        let forced = [
            "override",
            "main",
            "--to",
            "shanghai-a",
            "--reason",
            "a test",
        ];
        operate(mesh, &forced)?;
        let fourth = until_taken(mesh, "shanghai-a", "shanghai-a").await?;
        ensure!(fourth > third, "{fourth} after {third}");

        let same = operate(mesh, &["move", "main", "--to", "shanghai-a"]);
        ensure!(same.is_err(), "it belongs to shanghai-a already: {same:?}");
        for wrong in [["main", "shanghai-z"], ["nothing", "shanghai-b"]] {
            let [cell, zone] = wrong;
            let moved = operate(mesh, &["move", cell, "--to", zone]);
            ensure!(moved.is_err(), "{wrong:?}: {moved:?}");
        }
        reads.next(100).await?;
        reads.stop().await.check_no_failure()
    }
    run(async {
        let mesh = mesh("fence-moves", Store::Embedded, one_cell(), service()).await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn an_epoch_counts_only_from_another_gateway() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let now = until_taken(mesh, "shanghai-a", "shanghai-a").await?;
        let presented = |epoch: u64| write().header(PRESENTED, epoch.to_string());
        for epoch in [now - 1, now, now + 1_000] {
            let reply = mesh.send("shanghai-a", presented(epoch)).await?;
            assert_eq!(self::epoch(&reply)?, now, "without the token");
            let wrong = presented(epoch).header(HOP, "somebody-who-guesses");
            assert_eq!(self::epoch(&mesh.send("shanghai-a", wrong).await?)?, now);
        }
        let forwarded = |epoch| presented(epoch).header(HOP, TOKEN);
        let reply = mesh.send("shanghai-a", forwarded(now)).await?;
        assert_eq!(epoch(&reply)?, now);
        let stale = mesh.send("shanghai-a", forwarded(now - 1)).await?;
        assert_refused(&stale, 412, "stale_epoch");
        // Somebody has seen a later epoch: this zone is behind.
        let ahead = mesh.send("shanghai-a", forwarded(now + 1)).await?;
        assert_refused(&ahead, 503, "ahead_epoch");
        Ok(())
    }
    run(async {
        let mesh = mesh("fence-epochs", Store::Embedded, one_cell(), service()).await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn without_a_control_plane_writes_end_with_the_grants_and_reads_go_on() {
    run(async {
        let mut mesh = mesh("fence-alone", Store::Embedded, one_cell(), service()).await?;
        let before = until_taken(&mesh, "shanghai-a", "shanghai-a").await?;
        let mut reads = reads(&mesh).await?;
        mesh.control_plane.process().kill()?;
        let refused = until_refused(&mesh, "shanghai-a", "fenced").await?;
        assert_refused(&refused, 503, "fenced");
        ensure!(refused.header("retry-after").is_some(), "no Retry-After");
        reads.next(200).await.context("without a control plane")?;

        mesh.control_plane.restart().await?;
        let after = until_taken(&mesh, "shanghai-a", "shanghai-a").await?;
        ensure!(after >= before, "{after} after {before}");
        reads.next(50).await?;
        reads.stop().await.check_no_failure()
    });
}

#[test]
fn a_gateway_that_starts_without_a_store_serves_reads_and_admits_no_write() {
    run(async {
        let mut mesh = mesh("fence-restarted", Store::Etcd(1), one_cell(), service()).await?;
        until_taken(&mesh, "shanghai-a", "shanghai-a").await?;
        mesh.etcd.as_ref().context("etcd")?.kill()?;
        until_refused(&mesh, "shanghai-a", "fenced").await?;
        mesh.control_plane.process().kill()?;
        mesh.control_plane.begin().await?;
        let (options, gateway) = mesh.take_envoy("gateway-shanghai-a")?;
        drop(gateway);
        mesh.add_envoy(options).await?;
        mesh.eventually("shanghai-a", "a read", Request::get("/orders"), |reply| {
            reply.echo().map(drop)
        })
        .await?;
        until_refused(&mesh, "shanghai-a", "fenced").await?;

        mesh.etcd.as_mut().context("etcd")?.restart().await?;
        until_taken(&mesh, "shanghai-a", "shanghai-a").await?;
        Ok(())
    });
}

#[test]
fn a_zone_whose_instances_are_gone_loses_its_cell() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let before = until_taken(mesh, "shanghai-a", "shanghai-a").await?;
        let instance = mesh.upstream("orders-shanghai-a-1")?;
        instance
            .registration()
            .set_health(Health::Unhealthy)
            .await?;
        let after = until_taken(mesh, "shanghai-a", "shanghai-b").await?;
        ensure!(after > before, "{after} after {before}");
        Ok(())
    }
    run(async {
        let mesh = mesh("fence-unfit", Store::Embedded, one_cell(), service()).await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn cells_are_told_apart_by_a_key_and_move_by_themselves() {
    /// Which cell each user's write belongs to, and who took it.
    async fn users(mesh: &Mesh) -> Result<BTreeMap<String, (String, String)>> {
        let mut seen = BTreeMap::new();
        for user in 0..40 {
            let user = format!("user-{user}");
            let reply = mesh
                .send("shanghai-a", write().header("x-user-id", &user))
                .await?;
            let echo = reply.echo()?;
            let cell = echo.headers.get("x-tidegate-cell").context("no cell")?;
            seen.insert(user, (cell.clone(), echo.zone));
        }
        Ok(seen)
    }
    async fn until_owned(
        mesh: &Mesh,
        owners: &[(&str, &str)],
    ) -> Result<BTreeMap<String, (String, String)>> {
        let expected: BTreeSet<(String, String)> = (owners.iter())
            .map(|(cell, zone)| ((*cell).to_owned(), (*zone).to_owned()))
            .collect();
        eventually(PATIENCE, "the cells to be where they should", async || {
            let seen = users(mesh).await?;
            let owners: BTreeSet<_> = seen.values().cloned().collect();
            ensure!(owners == expected, "{owners:?}");
            Ok(seen)
        })
        .await
    }
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let before = until_owned(mesh, &[("east", "shanghai-a"), ("west", "shanghai-b")]).await?;
        until_held(mesh).await?;
        operate(mesh, &["move", "east", "--to", "shanghai-b"])?;
        let after = until_owned(mesh, &[("east", "shanghai-b"), ("west", "shanghai-b")]).await?;
        for (user, (cell, _)) in &before {
            assert_eq!(after[user].0, *cell, "{user}");
        }
        Ok(())
    }
    run(async {
        let cells = json!([
            { "name": "east", "owners": ["shanghai-a"], "standby": ["shanghai-b"], "shards": 512 },
            { "name": "west", "owners": ["shanghai-b"], "standby": ["shanghai-a"], "shards": 512 },
        ]);
        let mut service = service();
        service["cell_key"] = json!({ "header": "x-user-id" });
        let mesh = mesh("fence-cells", Store::Embedded, authority(cells), service).await?;
        on(&mesh, scenario).await
    });
}
