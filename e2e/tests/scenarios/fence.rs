//! Fenced writes: the zones that admit them, forwarding, and moves of both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::ZONES;
use e2e::envoy::{Options, Role};
use e2e::load::{Load, RunningLoad};
use e2e::mesh::{Builder, Mesh, Store};
use e2e::registry::Health;
use e2e::upstream::Conduct;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use policy::fence::EPOCH_MAX;
use policy::hop::{BUCKET_US, Claim, Keys};
use serde_json::{Value, json};

use crate::support::{assert_refused, on, operate, run, until_held};

/// The token with which the gateways of a mesh sign hops.
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
pub(crate) fn one_cell() -> Value {
    authority(json!([{
        "name": "main",
        "owners": ["shanghai-a"],
        "standby": ["shanghai-b", "beijing-c"],
        "cool_down_s": 0,
    }]))
}

pub(crate) fn service() -> Value {
    json!({ "name": "orders", "routes": [{ "prefix": "/orders" }], "fenced": true })
}

pub(crate) async fn mesh(
    name: &str,
    store: Store,
    authority: Value,
    service: Value,
) -> Result<Mesh> {
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

/// The epoch with which a write was admitted, as its upstream saw it.
fn epoch(reply: &Reply) -> Result<u64> {
    let echo = reply.echo()?;
    let epoch = echo.headers.get("x-tidegate-epoch");
    let epoch = epoch.with_context(|| format!("no epoch: {:?}", echo.headers))?;
    Ok(epoch.parse()?)
}

/// Waits until a zone accepts a write by a gateway; returns its epoch.
pub(crate) async fn until_taken(mesh: &Mesh, gateway: &str, zone: &str) -> Result<u64> {
    let what = format!("a write by {gateway} to be taken by {zone}");
    let taken = mesh.eventually(gateway, &what, write(), |reply| {
        let by = reply.echo()?.zone;
        ensure!(by == zone, "{by} took it");
        Ok(())
    });
    epoch(&taken.await?)
}

/// Waits until a write by a gateway is rejected for this reason.
pub(crate) async fn until_refused(mesh: &Mesh, gateway: &str, reason: &str) -> Result<Reply> {
    let what = format!("a write by {gateway} to be refused: {reason}");
    let refused = mesh.eventually(gateway, &what, write(), |reply| {
        let refusal = reply.refusal()?;
        ensure!(refusal == reason, "{refusal}");
        Ok(())
    });
    refused.await
}

/// Reads by all gateways, once each is served in its own zone.
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
        // A client's claims about itself are ignored.
        let spoofed = write()
            .header("x-tidegate-epoch", "7")
            .header("x-tidegate-class", "read")
            .header("x-tidegate-to", "orders/beijing-c");
        let spoofed = mesh.send("beijing-c", spoofed).await?;
        assert_refused(&spoofed, 421, "not_owner");
        // Reads do not depend on the owner.
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

/// The signature of another zone's gateway on a [`write`] to this gateway, now.
fn signed(mesh: &Mesh, gateway: &str, secret: &str, epoch: u64) -> Result<String> {
    let authority = mesh.address(gateway)?.to_string();
    let claim = Claim {
        method: b"POST",
        authority: authority.as_bytes(),
        path: b"/orders",
        cell: "main",
        epoch,
    };
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let bucket = u64::try_from(now_us)? / BUCKET_US;
    Ok(Keys::new(vec![secret.to_owned()])?.sign(&claim, bucket))
}

#[test]
fn an_epoch_counts_only_from_another_gateway_and_for_one_write() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        const HERE: &str = "shanghai-a";
        let now = until_taken(mesh, HERE, HERE).await?;
        // The gateway has its keys once it forwards itself.
        until_taken(mesh, "shanghai-b", HERE).await?;
        let presented = |epoch: u64| write().header(PRESENTED, epoch.to_string());
        for epoch in [now - 1, now, now + 1_000, u64::MAX] {
            let reply = mesh.send(HERE, presented(epoch)).await?;
            assert_eq!(self::epoch(&reply)?, now, "unsigned");
            let guessed = signed(mesh, HERE, "somebody-who-guesses", epoch)?;
            for wrong in [TOKEN.to_owned(), guessed] {
                let wrong = presented(epoch).header(HOP, wrong);
                assert_eq!(self::epoch(&mesh.send(HERE, wrong).await?)?, now);
            }
        }
        let by_gateway = |epoch: u64| -> Result<Request> {
            Ok(presented(epoch).header(HOP, signed(mesh, HERE, TOKEN, epoch)?))
        };
        let reply = mesh.send(HERE, by_gateway(now)?).await?;
        assert_eq!(epoch(&reply)?, now);
        assert_eq!(reply.echo()?.headers["x-tidegate-hop"], "1");
        for header in [HOP, PRESENTED] {
            assert!(!reply.echo()?.headers.contains_key(header), "{header}");
        }
        let stale = mesh.send(HERE, by_gateway(now - 1)?).await?;
        assert_refused(&stale, 412, "stale_epoch");
        // A later epoch was seen, or is claimed: other writes continue.
        for ahead in [now + 1, EPOCH_MAX] {
            let ahead = mesh.send(HERE, by_gateway(ahead)?).await?;
            assert_refused(&ahead, 503, "ahead_epoch");
            assert_eq!(epoch(&mesh.send(HERE, write()).await?)?, now);
        }
        let impossible = mesh.send(HERE, by_gateway(u64::MAX)?).await?;
        assert_eq!(epoch(&impossible)?, now);
        operate(mesh, &["move", "main", "--to", "shanghai-b"])?;
        let next = until_taken(mesh, HERE, "shanghai-b").await?;
        ensure!(next > now, "{next} after {now}");
        Ok(())
    }
    run(async {
        let mesh = mesh("fence-epochs", Store::Embedded, one_cell(), service()).await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn no_configuration_shows_the_secret_of_hops_and_sidecars_have_none() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        until_taken(mesh, "shanghai-b", "shanghai-a").await?;
        let to = mesh.ingress("sidecar")?;
        let client = Client::new(Version::Http1);
        let refused = eventually(PATIENCE, "the sidecar to name the owner", async || {
            let reply = client.send(to, &write()).await?;
            let reason = reply.refusal()?;
            ensure!(reason == "not_owner", "{reason}");
            Ok(reply)
        })
        .await?;
        assert_eq!(refused.header("x-tidegate-owner"), Some("shanghai-a"));
        for id in [
            "gateway-shanghai-a",
            "gateway-shanghai-b",
            "gateway-beijing-c",
            "sidecar",
        ] {
            let dump = mesh
                .envoy(id)?
                .admin()
                .get("/config_dump?include_eds")
                .await?;
            ensure!(dump.contains("tidegate"), "no dump of {id}");
            ensure!(!dump.contains(TOKEN), "{id} shows the secret");
            // It contains the policy as base64, at any of three offsets.
            for at in 0..3 {
                let encoded = base64(&TOKEN.as_bytes()[at..at + 15]);
                ensure!(!dump.contains(&encoded), "{id} shows the secret, encoded");
            }
        }
        Ok(())
    }
    run(async {
        let sidecar = Options {
            id: "sidecar".to_owned(),
            role: Role::Sidecar,
            ..Options::gateway("shanghai", "shanghai-b")
        };
        let builder = Builder::new(Workdir::kept("fence-secret")?);
        let builder = builder.service(service()).authority(one_cell()).gateways();
        let mesh = builder
            .envoy(sidecar)
            .upstreams("orders", 1)
            .start()
            .await?;
        on(&mesh, scenario).await
    });
}

/// The base64 of a multiple of three bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|three| {
        let bits = three
            .iter()
            .fold(0, |bits, byte| (bits << 8) | usize::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[(bits >> shift) & 63]))
    });
    digits.collect()
}

#[test]
fn a_write_whose_client_gave_up_ends_before_another_zone_writes() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        until_taken(mesh, "shanghai-a", "shanghai-a").await?;
        let instance = mesh.upstream("orders-shanghai-a-1")?.server();
        instance.conduct(Conduct::GoesOn);
        let served = instance.served();
        let client = Client::new(Version::Http1);
        let to = mesh.address("shanghai-a")?;
        let slow = Request::post("/orders/slow?ms=400");
        let begun = eventually(PATIENCE, "the write to begin", async || {
            ensure!(instance.served() > served, "it has not come");
            Ok(())
        });
        tokio::select! {
            reply = client.send(to, &slow) => anyhow::bail!("it was answered: {reply:?}"),
            begun = begun => begun?,
        }
        // The client is gone, and its connection with it.
        drop(client);
        ensure!(instance.in_flight() == 1, "the instance gave up as well");
        operate(mesh, &["move", "main", "--to", "shanghai-b"])?;
        let over = eventually(PATIENCE, "the move", async || {
            let reply = mesh.send("shanghai-b", write()).await?;
            let running = instance.in_flight();
            let by = reply.echo()?.zone;
            ensure!(by == "shanghai-b", "{by} took it");
            Ok(running)
        });
        assert_eq!(over.await?, 0, "two zones write");
        Ok(())
    }
    run(async {
        let mesh = mesh("fence-abandoned", Store::Embedded, one_cell(), service()).await?;
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
    /// The cell of each user's write, and the zone that accepted it.
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
