//! The shipped bootstraps, with the control planes of other zones at `priority: 1`: when a zone's
//! own control plane dies or hangs, its Envoys connect to those, including Envoys that start
//! meanwhile, and they return when it is back.

#![allow(
    clippy::disallowed_methods,
    reason = "it says how long each change over took"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::cells::Cells;
use e2e::certificates::{self, Ca};
use e2e::client::{Client, Request, Version};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::envoy::{Envoy, Protocol, Role};
use e2e::etcd::Etcd;
use e2e::registry::{Instance, InstanceName};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

const HOME: (&str, &str) = ZONES[0];
const NEXT: &str = ZONES[1].0;
const CELL: &str = "main";

fn authority(zone: &str) -> Value {
    json!({
        "zones": [zone],
        "session_ttl_ms": 2_000,
        "grant_ttl_ms": 500,
        "write_drain_ms": 500,
        "cells": [{
            "name": CELL,
            "owners": [HOME.0],
            "standby": [NEXT],
            "failover": "manual",
            "forward": "never",
        }],
    })
}

/// A control plane in each zone, on one etcd. The fields are dropped in order.
struct Site {
    envoys: Vec<(String, Envoy)>,
    /// In the order of [`ZONES`].
    planes: Vec<ControlPlane>,
    _etcd: Etcd,
    ca: Option<Ca>,
    workdir: Workdir,
}

impl Site {
    async fn start(name: &str, ca: Option<Ca>) -> Result<Site> {
        let workdir = Workdir::kept(name)?;
        let etcd = Etcd::start(workdir.path(), 1).await?;
        let mut planes = vec![];
        for (zone, _) in ZONES {
            let directory = workdir.path().join(zone);
            fs::create_dir_all(&directory)?;
            let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
            let store = StoreConfig::Etcd {
                endpoints: etcd.endpoints(),
            };
            let mut config = Config::new(store, vec![service]);
            config.authority = Some(authority(zone));
            if let Some(ca) = &ca {
                let certificates = directory.join("certificates");
                ca.issue(&certificates, "tidegate", &[ca])?;
                config.listen = certificates::listen(&certificates, &["admin"]);
            }
            planes.push(ControlPlane::start(&directory, config).await?);
        }
        // A store without any instance may have been emptied, and proxies that hold resources would
        // get none. So there are instances, which get no requests.
        let mut store = etcd.client().await?;
        for (port, (zone, _)) in (1..).zip(ZONES) {
            let name = InstanceName::new("orders", zone, "one");
            let record = Instance::at(SocketAddr::from(([127, 0, 0, 1], port)));
            let record = serde_json::to_vec(&record)?;
            store.put(name.key(), record, None).await?;
        }
        for plane in &planes {
            eventually(PATIENCE, "the instances", async || {
                let known = plane.registry().metric("tidegate_instances").await?;
                ensure!(known >= ZONES.len() as f64, "{known}");
                Ok(())
            })
            .await?;
        }
        Ok(Site {
            envoys: vec![],
            planes,
            _etcd: etcd,
            ca,
            workdir,
        })
    }

    /// Starts an Envoy of the first zone with its shipped bootstrap.
    async fn add(&mut self, id: &str, role: Role, protocol: Protocol) -> Result<()> {
        let directory = self.workdir.path().join(id);
        fs::create_dir_all(&directory)?;
        let bootstrap = self.bootstrap(&directory, id, role, protocol)?;
        let envoy = Envoy::start_with(&directory, id, &bootstrap, 1).await?;
        self.envoys.push((id.to_owned(), envoy));
        Ok(())
    }

    fn bootstrap(
        &self,
        directory: &Path,
        id: &str,
        role: Role,
        protocol: Protocol,
    ) -> Result<Bootstrap> {
        let (zone, region) = HOME;
        let mut bootstrap = Bootstrap::read(&format!("{}.yaml", role.as_str()))?
            .node(id, region, zone)?
            .cluster_at("tidegate", self.planes[0].xds())?;
        for plane in &self.planes[1..] {
            bootstrap = bootstrap.cluster_else_at("tidegate", 1, plane.xds())?;
        }
        if protocol == Protocol::Sotw {
            bootstrap = bootstrap.state_of_the_world()?;
        }
        if let Some(ca) = &self.ca {
            let certificates = directory.join("certificates");
            ca.issue(&certificates, &format!("{id}.mesh"), &[ca])?;
            bootstrap = bootstrap.tls(directory, &certificates)?;
        }
        Ok(bootstrap)
    }

    /// Waits until each Envoy has its stream with one of these control planes, and with no other.
    async fn until_with(&self, planes: &[usize]) -> Result<Duration> {
        let begin = Instant::now();
        let connected = eventually(PATIENCE, "all Envoys to change over", async || {
            let mut with = vec![];
            for at in planes {
                with.push(self.planes[*at].registry().proxies().await?.to_string());
            }
            for (id, envoy) in &self.envoys {
                let id = format!("{id:?}");
                let streams = with.iter().filter(|proxies| proxies.contains(&id));
                ensure!(streams.count() == 1, "{id}: {with:?}");
                let stats = envoy.admin().stats("^control_plane").await?;
                let state = stats.get("control_plane.connected_state").copied();
                ensure!(state == Some(1), "{id}: {stats:?}");
            }
            Ok(())
        });
        connected.await?;
        Ok(begin.elapsed())
    }

    /// Waits until each Envoy holds a grant, or none does.
    async fn until_holding(&self, holding: bool) -> Result<()> {
        for (id, envoy) in &self.envoys {
            let what = format!("{id} to hold a grant: {holding}");
            eventually(PATIENCE, &what, async || {
                let held = envoy.admin().stat("wasmcustom.tidegate.fence.holding");
                let held = held.await?;
                ensure!(held == u64::from(holding), "{held}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn until_active_in(&self, zone: &str) -> Result<()> {
        let next = self.cells(1);
        eventually(PATIENCE, "the cell's owner", async || {
            let cell = next.get(CELL).await?;
            ensure!(cell.is_active_in(zone), "{cell:?}");
            Ok(())
        })
        .await
    }

    /// Waits until each Envoy rejects writes because they belong to the other zone.
    async fn until_refused_by_owner(&self) -> Result<()> {
        let client = Client::new(Version::Http1);
        for (id, envoy) in &self.envoys {
            let ingress = envoy.ingress().await.with_context(|| id.clone())?;
            eventually(PATIENCE, &format!("{id} to know the owner"), async || {
                let reply = client.send(ingress, &Request::post("/orders")).await?;
                let owner = reply.header("x-tidegate-owner");
                ensure!(owner == Some(NEXT), "{} {}", reply.status, reply.text());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    fn cells(&self, of: usize) -> Cells {
        Cells::new(self.planes[of].admin())
    }

    fn logs(&self) -> String {
        let planes = self.planes.iter().map(|plane| plane.process().tail());
        let envoys = self.envoys.iter();
        let envoys = envoys.map(|(_, envoy)| envoy.process().tail());
        planes.chain(envoys).collect::<Vec<_>>().join("\n")
    }
}

/// The fault of the zone's own control plane.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Hangs,
    Dies,
}

async fn change_over_and_back(site: &mut Site, fault: Fault) -> Result<()> {
    match fault {
        Fault::Hangs => site.planes[0].process().pause()?,
        Fault::Dies => site.planes[0].process().kill()?,
    }
    let took = site.until_with(&[1, 2]).await?;
    println!("{fault:?}: with another control plane after {took:?}");
    site.until_holding(false).await?;

    // An Envoy that starts meanwhile.
    let id = format!("newcomer-{fault:?}");
    site.add(&id, Role::Gateway, Protocol::Delta).await?;
    let took = site.until_with(&[1, 2]).await?;
    println!("{fault:?}: a newcomer after {took:?}");

    // There they learn the owner.
    let next = site.cells(1);
    next.override_to(CELL, NEXT, "its control plane is gone")
        .await?;
    site.until_active_in(NEXT).await?;
    site.until_refused_by_owner().await?;

    match fault {
        Fault::Hangs => site.planes[0].process().resume()?,
        Fault::Dies => site.planes[0].restart().await?,
    }
    let took = site.until_with(&[0]).await?;
    println!("{fault:?}: back after {took:?}");
    eventually(PATIENCE, "the move back", async || {
        next.move_to(CELL, HOME.0, "back").await
    })
    .await?;
    site.until_active_in(HOME.0).await?;
    site.until_holding(true).await
}

async fn play(name: &str, ca: Option<Ca>) -> Result<()> {
    let mut site = Site::start(name, ca).await?;
    for role in [Role::Gateway, Role::Sidecar] {
        for protocol in [Protocol::Delta, Protocol::Sotw] {
            let id = format!("{}-{protocol:?}", role.as_str());
            site.add(&id, role, protocol).await?;
        }
    }
    site.until_with(&[0]).await?;
    site.until_holding(true).await?;
    for fault in [Fault::Hangs, Fault::Dies] {
        let played = change_over_and_back(&mut site, fault).await;
        played.map_err(|error| anyhow!("{fault:?}: {error:#}\n{}", site.logs()))?;
    }
    Ok(())
}

#[tokio::test]
async fn envoys_turn_to_the_control_planes_of_other_zones_and_back() -> Result<()> {
    play("control-planes", None).await
}

#[tokio::test]
async fn envoys_turn_to_the_control_planes_of_other_zones_and_back_over_tls() -> Result<()> {
    play("control-planes-tls", Some(Ca::new("mesh")?)).await
}
