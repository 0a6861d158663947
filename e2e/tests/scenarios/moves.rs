//! Cells move as they should, and stay as they should: several cells, and a control plane for each
//! side.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::cells::{Cell, Cells};
use e2e::client::Request;
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::envoy::{Envoy, Options};
use e2e::mesh::{Builder, Mesh, Store};
use e2e::paths;
use e2e::registry::{InstanceName, Registry};
use e2e::upstream::Upstream;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

use crate::support::{on, operate, run, until_held};

const A: &str = "shanghai-a";
const B: &str = "shanghai-b";
const C: &str = "beijing-c";

/// With sessions short enough to wait for, and long enough for a busy machine.
fn authority(zones: &[&str], cells: Value) -> Value {
    json!({
        "zones": zones,
        "session_ttl_ms": 4_000,
        "grant_ttl_ms": 1_500,
        "write_drain_ms": 1_000,
        "forward_token": "gateways-of-one-mesh",
        "cells": cells,
    })
}

fn one_cell() -> Value {
    json!([{ "name": "main", "owners": [A], "standby": [B, C], "cool_down_s": 0 }])
}

fn service(name: &str) -> Value {
    let prefix = format!("/{name}");
    json!({ "name": name, "routes": [{ "prefix": prefix }], "fenced": true })
}

/// Waits until a cell is active in a zone, as a control plane reports.
async fn until_active(admin: SocketAddr, cell: &str, zone: &str) -> Result<Cell> {
    let what = format!("{cell} to be active in {zone}");
    eventually(PATIENCE, &what, async || {
        let cell = Cells::new(admin).get(cell).await?;
        ensure!(cell.is_active_in(zone), "{cell:?}");
        Ok(cell)
    })
    .await
}

/// Waits until a write by a gateway is accepted.
async fn until_taken(mesh: &Mesh, gateway: &str) -> Result<()> {
    let what = format!("a write by {gateway} to be taken");
    let taken = mesh.eventually(gateway, &what, Request::post("/orders"), |reply| {
        reply.echo().map(drop)
    });
    taken.await.map(drop)
}

/// Runs an operator's command at any admin interfaces; returns its output, or its error as text.
fn operate_at(admin: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(paths::tidegate()?)
        .args(arguments)
        .args(["--admin", admin])
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(text(&output.stdout))
}

/// The text of a refusal.
fn refusal(outcome: Result<String>) -> Result<String> {
    match outcome {
        Ok(output) => Err(anyhow!("it was done: {output}")),
        Err(error) => Ok(format!("{error:#}")),
    }
}

#[test]
fn an_override_of_one_cell_leaves_the_other_cells_alone() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let admin = mesh.control_plane.admin();
        let mut before = vec![];
        for (cell, zone) in [("one", A), ("two", A), ("three", B)] {
            before.push(until_active(admin, cell, zone).await?);
        }
        until_held(mesh).await?;
        let forced = ["override", "one", "--to", B, "--reason", "a test"];
        operate(mesh, &forced)?;
        // Until earlier grants have settled: longer than a session, in which the others would have
        // moved.
        until_active(admin, "one", B).await?;
        for (cell, zone) in [("two", A), ("three", B)] {
            let now = until_active(admin, cell, zone).await?;
            let was = before.iter().find(|was| was.cell == cell);
            assert_eq!(Some(now.epoch), was.map(|was| was.epoch), "{cell}");
        }

        let again = refusal(operate(mesh, &forced))?;
        ensure!(
            again.contains("TG7002") && again.contains("--accept"),
            "{again}"
        );
        let accepted = [&forced[..], &["--accept", "TG7002"]].concat();
        let told = operate(mesh, &accepted)?;
        ensure!(told.contains("warning, accepted"), "{told}");
        until_active(admin, "one", B).await?;
        let three = until_active(admin, "three", B).await?;
        assert_eq!(
            three.epoch, before[2].epoch,
            "another cell of the same zone"
        );
        let unknown = refusal(operate(mesh, &[&forced[..], &["--accept", "TG1"]].concat()))?;
        ensure!(unknown.contains("TG1"), "{unknown}");
        Ok(())
    }
    run(async {
        let cells = json!([
            { "name": "one", "owners": [A], "standby": [B], "shards": 400, "cool_down_s": 0 },
            { "name": "two", "owners": [A], "standby": [B], "shards": 400, "cool_down_s": 0 },
            { "name": "three", "owners": [B], "standby": [A], "shards": 224, "cool_down_s": 0 },
        ]);
        let mut service = service("orders");
        service["cell_key"] = json!({ "header": "x-user-id" });
        let mesh = Builder::new(Workdir::kept("moves-override")?)
            .service(service)
            .authority(authority(&ZONES.map(|(zone, _)| zone), cells))
            .gateways()
            .upstreams("orders", 1)
            .start()
            .await?;
        on(&mesh, scenario).await
    });
}

/// A control plane and a gateway for shanghai-a; another control plane for the other zones, of
/// which only beijing-c has a gateway.
struct Sides {
    mesh: Mesh,
    others: ControlPlane,
    _gateway: Envoy,
    /// An instance in each zone, registered with `others`: those that are registered with a control
    /// plane that is killed expire, and a cell may then move because its owner cannot serve.
    _upstreams: Vec<Upstream>,
}

impl Sides {
    async fn set(name: &str) -> Result<Sides> {
        let mesh = Builder::new(Workdir::kept(name)?)
            .store(Store::Etcd(1))
            .service(service("orders"))
            .authority(authority(&[A], one_cell()))
            .envoy(Options::gateway("shanghai", A))
            .start()
            .await?;
        let endpoints = mesh.etcd.as_ref().context("etcd")?.endpoints();
        let mut config = Config::new(StoreConfig::Etcd { endpoints }, vec![service("orders")]);
        config.authority = Some(authority(&[B, C], one_cell()));
        let directory = mesh.workdir().path().join("others");
        std::fs::create_dir_all(&directory)?;
        let others = ControlPlane::start(&directory, config).await?;
        let options = Options::gateway("beijing", C);
        let gateway = Envoy::start(&directory, &options, others.xds()).await?;
        let registry = Registry::new(others.admin());
        let mut upstreams = Vec::new();
        for (zone, _) in ZONES {
            let name = InstanceName::new("orders", zone, &format!("orders-{zone}"));
            upstreams.push(Upstream::start_registered(name, &registry).await?);
        }
        let sides = Sides {
            mesh,
            others,
            _gateway: gateway,
            _upstreams: upstreams,
        };
        until_taken(&sides.mesh, A).await?;
        eventually(PATIENCE, "the proxies to be counted", async || {
            let cell = Cells::new(sides.others.admin()).get("main").await?;
            let proxies = [A, B, C].map(|zone| cell.zones.get(zone).and_then(|z| z.proxies));
            ensure!(proxies == [Some(1), Some(0), Some(1)], "{cell:?}");
            Ok(())
        })
        .await?;
        Ok(sides)
    }
}

#[test]
fn a_restart_in_order_moves_nothing_and_a_lost_cell_passes_by_a_zone_without_proxies() {
    run(async {
        let mut sides = Sides::set("moves-restart").await?;
        let outcome = restart_and_loss(&mut sides).await;
        let logs = [sides.mesh.logs(), sides.others.process().tail()].join("\n");
        outcome.map_err(|error| anyhow!("{error:#}\n{logs}"))
    });

    async fn restart_and_loss(sides: &mut Sides) -> Result<()> {
        let others = sides.others.admin();
        let before = until_active(others, "main", A).await?;
        sides.mesh.control_plane.stop().await?;
        sides.mesh.control_plane.restart().await?;
        until_taken(&sides.mesh, A).await?;
        let after = until_active(others, "main", A).await?;
        assert_eq!(after.epoch, before.epoch, "it moved and came back");

        let admin = format!("http://{others}");
        let unheld = refusal(operate_at(&admin, &["move", "main", "--to", B]))?;
        ensure!(unheld.contains("TG7003") && unheld.contains(B), "{unheld}");
        let table = operate_at(&admin, &["cells"])?;
        ensure!(
            table.contains("shanghai-b:0") && table.contains("beijing-c:1"),
            "{table}"
        );

        sides.mesh.control_plane.process().kill()?;
        let lost = until_active(others, "main", C).await?;
        ensure!(lost.epoch > before.epoch, "{lost:?}");
        let operations = Cells::new(others).operations().await?;
        let newest = &operations[0];
        ensure!(
            newest["cause"] == "session_lost" && newest["to"] == json!([C]),
            "{newest}"
        );
        ensure!(
            newest["reason"].as_str().is_some_and(|r| r.contains(A)),
            "{newest}"
        );
        Ok(())
    }
}

#[test]
fn a_control_plane_that_hands_over_moves_its_cells_before_it_ends() {
    run(async {
        let mut sides = Sides::set("moves-hand-over").await?;
        sides.mesh.control_plane.stop().await?;
        sides.mesh.control_plane.hands_over = true;
        sides.mesh.control_plane.restart().await?;
        until_taken(&sides.mesh, A).await?;
        let others = sides.others.admin();
        let before = until_active(others, "main", A).await?;
        sides.mesh.control_plane.stop().await?;
        let after = Cells::new(others).get("main").await?;
        ensure!(
            after.owners == [C] && after.epoch > before.epoch,
            "{after:?}"
        );
        until_active(others, "main", C).await?;
        let operations = Cells::new(others).operations().await?;
        let newest = &operations[0];
        ensure!(newest["cause"] == "operator", "{newest}");
        ensure!(
            newest["reason"]
                .as_str()
                .is_some_and(|r| r.contains("hands over")),
            "{newest}"
        );
        Ok(())
    });
}

#[test]
fn another_replica_says_what_became_of_a_move_asked_of_a_frozen_one() {
    run(async {
        let sides = Sides::set("moves-frozen").await?;
        let frozen = &sides.mesh.control_plane;
        frozen.process().pause()?;
        let admins = format!("http://{},http://{}", frozen.admin(), sides.others.admin());
        let told = refusal(operate_at(&admins, &["move", "main", "--to", C]))?;
        let said = format!("{} says: main belongs to", sides.others.admin());
        ensure!(told.contains(&said), "{told}");
        // Read-only commands use the other one.
        let table = operate_at(&admins, &["cells"])?;
        ensure!(table.contains("main"), "{table}");
        frozen.process().resume()
    });
}

#[test]
fn a_move_is_judged_by_every_service_and_holds_for_its_time() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let admin = mesh.control_plane.admin();
        until_active(admin, "main", A).await?;
        until_held(mesh).await?;
        for how in [&["move"][..], &["override", "--reason", "a test"]] {
            let refused = [how, &["main", "--to", B]].concat();
            let refused = refusal(operate(mesh, &refused))?;
            ensure!(
                refused.contains("TG7004") && refused.contains("users"),
                "{refused}"
            );
        }
        let accepted = [
            "move", "main", "--to", B, "--accept", "TG7004", "--reason", "a test",
        ];
        let told = operate(mesh, &accepted)?;
        ensure!(
            told.contains("stays there for 600 s") && told.contains("users"),
            "{told}"
        );
        let held = until_active(admin, "main", B).await?;
        ensure!(held.hold_ms == 600_000, "{held:?}");
        // In a zone that serves it better there is nothing to accept, and nothing to hold.
        operate(mesh, &["move", "main", "--to", A])?;
        let back = until_active(admin, "main", A).await?;
        ensure!(back.hold_ms == 0, "{back:?}");

        // The hold has ended, and the cell moves automatically, which is recorded with its reason.
        operate(mesh, &[&accepted[..], &["--hold", "1"]].concat())?;
        until_active(admin, "main", A).await?;
        let operations = Cells::new(admin).operations().await?;
        let newest = &operations[0];
        ensure!(newest["cause"] == "unfit", "{newest}");
        ensure!(
            newest["reason"]
                .as_str()
                .is_some_and(|r| r.contains("users")),
            "{newest}"
        );
        Ok(())
    }
    run(async {
        let mut mesh = Builder::new(Workdir::kept("moves-judged")?)
            .service(service("orders"))
            .service(service("users"))
            .authority(authority(&ZONES.map(|(zone, _)| zone), one_cell()))
            .gateways()
            .upstreams("orders", 1)
            .start()
            .await?;
        mesh.add_upstream("users", A, "users-a").await?;
        mesh.eventually(A, "users to be served", Request::get("/users"), |reply| {
            reply.echo().map(drop)
        })
        .await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn cells_are_marked_stale_while_the_store_is_away() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        until_taken(mesh, A).await?;
        let fresh = operate(mesh, &["cells"])?;
        ensure!(!fresh.contains("STALE"), "{fresh}");
        mesh.etcd.as_ref().context("etcd")?.kill()?;
        eventually(PATIENCE, "the cells to be marked", async || {
            let cell = Cells::new(mesh.control_plane.admin()).get("main").await?;
            ensure!(cell.stale.is_some(), "{cell:?}");
            let table = operate(mesh, &["cells"])?;
            ensure!(
                table.contains("STALE") && table.contains("active?"),
                "{table}"
            );
            Ok(())
        })
        .await
    }
    run(async {
        let mesh = Builder::new(Workdir::kept("moves-stale")?)
            .store(Store::Etcd(1))
            .service(service("orders"))
            .authority(authority(&ZONES.map(|(zone, _)| zone), one_cell()))
            .gateways()
            .upstreams("orders", 1)
            .start()
            .await?;
        on(&mesh, scenario).await
    });
}
