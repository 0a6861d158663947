//! The agreed terms, with real control planes, etcd and Envoys: replicas with another
//! configuration, and a change while all run.

#![allow(clippy::disallowed_methods, reason = "it reads the clock")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::envoy::Envoy;
use e2e::etcd::Etcd;
use e2e::registry::{Instance, InstanceName};
use e2e::relay::Relay;
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

fn authority(zone: &str, session_ttl_ms: u64) -> Value {
    json!({
        "zones": [zone],
        "session_ttl_ms": session_ttl_ms,
        "grant_ttl_ms": 1_500,
        "write_drain_ms": 1_000,
        "cells": [{
            "name": "main",
            "owners": [ZONES[0].0],
            "standby": [ZONES[1].0],
            "forward": "never",
            "cool_down_s": 0,
        }],
    })
}

/// A zone with its control plane, an Envoy and an instance. The fields are dropped in order.
struct Zone {
    envoy: Envoy,
    ingress: SocketAddr,
    plane: ControlPlane,
    _instance: Server,
    relay: Relay,
}

/// The first two zones, on one etcd.
struct Site {
    zones: Vec<Zone>,
    _etcd: Etcd,
    _workdir: Workdir,
}

impl Site {
    /// With these times to live of sessions. The first zone's control plane starts before the
    /// second's.
    async fn start(name: &str, session_ttl_ms: [u64; 2]) -> Result<Site> {
        let workdir = Workdir::kept(name)?;
        let etcd = Etcd::start(workdir.path(), 1).await?;
        let mut zones = vec![];
        for (at, ttl_ms) in session_ttl_ms.into_iter().enumerate() {
            let (zone, region) = ZONES[at];
            let directory = workdir.path().join(zone);
            fs::create_dir_all(&directory)?;
            let relay = Relay::start(etcd.members()[0].address()).await?;
            let store = StoreConfig::Etcd {
                endpoints: vec![format!("http://{}", relay.address())],
            };
            let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
            let mut config = Config::new(store, vec![service]);
            config.authority = Some(authority(zone, ttl_ms));
            let plane = ControlPlane::start(&directory, config).await?;
            let name = InstanceName::new("orders", zone, "one");
            let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let instance = Server::start(name.clone(), any_port).await?;
            let record = Instance::at(instance.address());
            let put = plane.registry().put(&name, &record, None).await?;
            ensure!(put.status.is_success(), "{}", put.text());
            let id = format!("gateway-{zone}");
            let bootstrap = Bootstrap::read("gateway.yaml")?
                .node(&id, region, zone)?
                .cluster_at("tidegate", plane.xds())?;
            let own = directory.join("envoy");
            fs::create_dir_all(&own)?;
            let envoy = Envoy::start_with(&own, &id, &bootstrap, 1).await?;
            let ingress = eventually(PATIENCE, "the listener", async || envoy.ingress().await);
            zones.push(Zone {
                ingress: ingress.await?,
                envoy,
                plane,
                _instance: instance,
                relay,
            });
        }
        Ok(Site {
            zones,
            _etcd: etcd,
            _workdir: workdir,
        })
    }

    fn logs(&self) -> String {
        let logs = self.zones.iter().map(|zone| {
            let (plane, envoy) = (zone.plane.process().tail(), zone.envoy.process().tail());
            format!("{plane}\n{envoy}")
        });
        logs.collect::<Vec<_>>().join("\n")
    }
}

impl Zone {
    async fn write(&self) -> Result<Reply> {
        let client = Client::new(Version::Http1);
        client.send(self.ingress, &Request::post("/orders")).await
    }

    /// The epoch for which a write is finally admitted.
    async fn until_admits(&self) -> Result<u64> {
        eventually(PATIENCE, "a write to be admitted", async || {
            let reply = self.write().await?;
            let epoch = reply.echo()?.headers.get("x-tidegate-epoch").cloned();
            Ok(epoch.context("no epoch")?.parse()?)
        })
        .await
    }

    async fn ask(&self, request: &Request) -> Result<Reply> {
        let client = Client::new(Version::Http1);
        client.send(self.plane.admin(), request).await
    }

    async fn terms(&self) -> Result<Value> {
        self.ask(&Request::get("/v1/terms")).await?.json()
    }

    async fn until_agrees(&self, agrees: bool) -> Result<Value> {
        eventually(PATIENCE, "a replica to know the terms", async || {
            let terms = self.terms().await?;
            let known = terms["revision"].as_u64().unwrap_or(0) > 0;
            ensure!(known && terms["agrees"] == json!(agrees), "{terms:#}");
            Ok(terms)
        })
        .await
    }
}

fn run<T>(scenario: impl Future<Output = Result<T>>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Err(error) = runtime.block_on(scenario) {
        panic!("{error:?}");
    }
}

#[test]
fn a_standby_that_is_configured_otherwise_never_writes_beside_the_owner() {
    async fn scenario(site: &mut Site) -> Result<()> {
        let [a, b] = &mut site.zones[..] else {
            unreachable!("two zones");
        };
        let first = a.until_admits().await?;
        let terms = b.until_agrees(false).await?;
        let differences = terms["differences"].to_string();
        let said = "session_ttl_ms is 3000, the agreed value is 10000";
        ensure!(differences.contains(said), "{differences}");
        let (_, ready) = b.plane.registry().readiness().await?;
        ensure!(ready.to_string().contains("TG1003"), "{ready:#}");
        let agreed = b.plane.registry().metric("tidegate_terms_agreed").await?;
        ensure!(agreed == 0.0, "{agreed}");

        // Cut off, the owner continues to write for as long as its own session lasts.
        a.relay.cut(true);
        let cut = Instant::now();
        let mut last_of_a = None;
        let mut first_of_b = None;
        while last_of_a.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(3)) {
            ensure!(cut.elapsed() < PATIENCE, "the owner writes for ever");
            if a.write().await?.status.is_success() {
                last_of_a = Some(Instant::now());
            }
            if b.write().await?.status.is_success() && first_of_b.is_none() {
                first_of_b = Some(Instant::now());
            }
        }
        ensure!(
            first_of_b.is_none(),
            "both zones wrote: {last_of_a:?} {first_of_b:?}"
        );

        // Once it is configured as agreed, it takes over.
        b.plane.configure(|config| {
            config.authority = Some(authority(ZONES[1].0, 10_000));
        })?;
        b.until_agrees(true).await?;
        let second = b.until_admits().await?;
        ensure!(second > first, "{second} after {first}");
        a.relay.cut(false);
        Ok(())
    }
    run(async {
        let mut site = Site::start("terms-differ", [10_000, 3_000]).await?;
        let outcome = scenario(&mut site).await;
        outcome.with_context(|| site.logs())
    });
}

#[test]
fn terms_are_changed_while_everything_runs() {
    async fn scenario(site: &mut Site) -> Result<()> {
        let [a, b] = &mut site.zones[..] else {
            unreachable!("two zones");
        };
        a.until_admits().await?;
        let terms = b.until_agrees(true).await?;
        let mut next = terms["current"].clone();
        next["session_ttl_ms"] = json!(6_000);
        next["write_drain_ms"] = json!(800);
        let change = Request::post("/v1/terms/change").json(&json!({ "next": next }));
        let begun = a.ask(&change).await?;
        ensure!(begun.status.is_success(), "{}", begun.text());
        for (at, zone) in [&mut *a, &mut *b].into_iter().enumerate() {
            zone.plane.configure(|config| {
                let mut changed = authority(ZONES[at].0, 6_000);
                changed["write_drain_ms"] = json!(800);
                config.authority = Some(changed);
            })?;
        }
        let begun = Instant::now();
        let (mut writes, mut refused) = (0, 0);
        loop {
            // With each step of the change the Envoy gets another policy and requests grants for
            // it: until the answer, writes are rejected. No other part rejects them.
            let wrote = a.write().await?;
            if !wrote.status.is_success() {
                ensure!(wrote.refusal()? == "fenced", "{}", wrote.text());
                refused += 1;
            }
            writes += 1;
            let terms = b.terms().await?;
            if terms["next"].is_null() && terms["current"]["session_ttl_ms"] == json!(6_000) {
                break;
            }
            ensure!(begun.elapsed() < PATIENCE, "{terms:#}");
        }
        ensure!(
            writes > 20 && refused * 2 < writes,
            "{refused} of {writes} writes were refused"
        );
        for zone in [&*a, &*b] {
            zone.until_agrees(true).await?;
        }
        a.until_admits().await?;
        // The header with its lifetime is only used between the filter and the route.
        let headers = a.write().await?.echo()?.headers.clone();
        let said = headers.get("x-tidegate-write-drain-ms");
        ensure!(said.is_none(), "{headers:?}");
        Ok(())
    }
    run(async {
        let mut site = Site::start("terms-change", [3_000, 3_000]).await?;
        let outcome = scenario(&mut site).await;
        outcome.with_context(|| site.logs())
    });
}
