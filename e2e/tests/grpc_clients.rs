//! Real gRPC clients that connect to the control plane themselves, `xds:///NAME`, without any
//! Envoy.

#![allow(
    clippy::disallowed_methods,
    reason = "the scenarios are an edge, as the harness is"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use e2e::grpc_client::{GrpcClient, Library, Order, Outcome};
use e2e::mesh::{Builder, Mesh};
use e2e::registry::Health;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

const GET: &str = "/shop.v1.Orders/GetOrder";
const PUT: &str = "/shop.v1.Orders/PutOrder";

/// How far the share of 2,000 calls may differ from the planned one. If each call were an
/// independent draw, this would be almost seven standard deviations at 80 %.
const OFF_MAX: f64 = 0.06;

mod real_clients {
    /// Each scenario is one test for each library.
    macro_rules! with_each_library {
        ($($scenario:ident),* $(,)?) => {
            mod grpcio {
                use e2e::grpc_client::Library;
                $(#[tokio::test]
                async fn $scenario() -> anyhow::Result<()> {
                    crate::$scenario(Library::Grpcio).await
                })*
            }
            mod grpc_js {
                use e2e::grpc_client::Library;
                $(#[tokio::test]
                async fn $scenario() -> anyhow::Result<()> {
                    crate::$scenario(Library::GrpcJs).await
                })*
            }
        };
    }
    with_each_library!(
        calls_are_shared_out_as_planned_and_replanned,
        the_home_that_a_call_names_decides,
        an_instance_that_is_out_gets_nothing_more,
        what_fits_nowhere_fails,
        a_key_in_a_header_keeps_calls_on_an_instance,
        a_fenced_write_reaches_nobody,
        a_host_that_is_not_there_is_an_error,
        a_restarted_control_plane_is_not_noticed,
        who_is_not_served_is_told_why,
    );
}

/// A mesh without any proxy, and a client in shanghai-a.
struct Scene {
    mesh: Mesh,
    client: GrpcClient,
}

impl Scene {
    async fn start(library: Library, name: &str, builder: Build) -> Result<Scene> {
        let workdir = Workdir::kept(&format!("{library:?}-{name}").to_lowercase())?;
        let mesh = builder(Builder::new(workdir)).start().await?;
        let xds = mesh.control_plane.xds();
        let client = GrpcClient::start(mesh.workdir().path(), library, "shanghai-a", xds).await?;
        Ok(Scene { mesh, client })
    }

    async fn call(&mut self, calls: Calls) -> Result<Outcome> {
        self.client.carry_out(&calls.0).await
    }

    /// The answers to calls, none of which may fail.
    async fn answers(&mut self, calls: Calls) -> Result<BTreeMap<String, u32>> {
        let outcome = self.call(calls).await?;
        ensure!(outcome.statuses.is_empty(), "{outcome:?}");
        Ok(outcome.instances)
    }

    /// Calls that must all fail like calls without an instance.
    async fn refused(&mut self, calls: Calls) -> Result<()> {
        let number = calls.0.calls;
        let outcome = self.call(calls).await?;
        let all_fail = BTreeMap::from([("UNAVAILABLE".to_owned(), number)]);
        ensure!(outcome.statuses == all_fail, "{outcome:?}");
        ensure!(outcome.instances.is_empty(), "{outcome:?}");
        Ok(())
    }

    /// Calls to an unknown name. A missing name in a response tells the client nothing yet: grpcio
    /// waits for 15 s, and grpc-js for as long as the call may take.
    async fn unresolved(&mut self, library: Library, calls: Calls) -> Result<Outcome> {
        let (status, timeout_s) = match library {
            Library::Grpcio => ("UNAVAILABLE", 40),
            Library::GrpcJs => ("DEADLINE_EXCEEDED", 3),
        };
        let outcome = self.call(calls.timeout_s(timeout_s)).await?;
        ensure!(outcome.statuses.contains_key(status), "{outcome:?}");
        ensure!(outcome.instances.is_empty(), "{outcome:?}");
        Ok(outcome)
    }

    /// Calls until the answers are as expected, without a failed call meanwhile.
    async fn until(
        &mut self,
        method: &str,
        what: &str,
        check: impl Fn(&BTreeMap<String, u32>) -> bool,
    ) -> Result<()> {
        let mut failed = Vec::new();
        eventually(PATIENCE, what, async || {
            let outcome = self.call(Calls::of(method, 100)).await?;
            if !outcome.statuses.is_empty() {
                failed.push(outcome.clone());
            }
            ensure!(check(&outcome.instances), "{outcome:?}");
            Ok(())
        })
        .await?;
        ensure!(failed.is_empty(), "{failed:?}");
        Ok(())
    }

    async fn set(&self, instance: &str, health: Health) -> Result<()> {
        let upstream = self.mesh.upstream(instance)?;
        upstream.registration().set_health(health).await
    }

    fn served(&self, instance: &str) -> Result<u64> {
        Ok(self.mesh.upstream(instance)?.server().served())
    }
}

type Build = fn(Builder) -> Builder;

/// Calls to `shop.example` by default.
#[derive(Clone)]
struct Calls(Order);

impl Calls {
    fn of(method: &str, calls: u32) -> Calls {
        Calls(Order {
            target: "xds:///shop.example".to_owned(),
            method: method.to_owned(),
            metadata: BTreeMap::new(),
            calls,
            // Calls without an instance fail at once; only an undecided call waits this long.
            timeout_s: 10,
        })
    }

    fn with(mut self, name: &str, value: &str) -> Calls {
        self.0.metadata.insert(name.to_owned(), value.to_owned());
        self
    }

    fn home(self, name: &str) -> Calls {
        self.with("x-region-id", name)
    }

    fn timeout_s(mut self, timeout_s: u32) -> Calls {
        self.0.timeout_s = timeout_s;
        self
    }

    fn to(mut self, target: &str) -> Calls {
        self.0.target = format!("xds:///{target}");
        self
    }
}

/// The service `orders` on `shop.example`, with more of its configuration.
fn orders(more: Value) -> Value {
    let mut service = json!({
        "name": "orders",
        "routes": [{ "host": "shop.example", "grpc": "shop.v1.Orders", "reads": ["GetOrder"] }],
    });
    if let (Some(service), Value::Object(more)) = (service.as_object_mut(), more) {
        service.extend(more);
    }
    service
}

fn share(answers: &BTreeMap<String, u32>, instance: &str) -> f64 {
    let all: u32 = answers.values().sum();
    f64::from(answers.get(instance).copied().unwrap_or_default()) / f64::from(all)
}

#[track_caller]
fn assert_share(answers: &BTreeMap<String, u32>, instance: &str, planned: f64) {
    let off = (share(answers, instance) - planned).abs();
    assert!(off <= OFF_MAX, "{instance}, not {planned}: {answers:?}");
}

async fn calls_are_shared_out_as_planned_and_replanned(library: Library) -> Result<()> {
    let weighted =
        |zone: u32, region: u32| orders(json!({ "weights": { "zone": zone, "region": region } }));
    let mut scene = Scene::start(library, "shares", |mesh| {
        mesh.service(orders(json!({ "weights": { "zone": 80, "region": 20 } })))
            .upstreams("orders", 1)
            .grpc_clients()
    })
    .await?;
    for method in [GET, PUT] {
        let answers = scene.answers(Calls::of(method, 2_000)).await?;
        assert_share(&answers, "orders-shanghai-a-1", 0.8);
        assert_share(&answers, "orders-shanghai-b-1", 0.2);
        assert_eq!(answers.len(), 2, "{answers:?}");
    }
    let control_plane = &mut scene.mesh.control_plane;
    control_plane.configure(|config| config.services = vec![weighted(30, 70)])?;
    let moved = |answers: &_| share(answers, "orders-shanghai-b-1") > 0.5;
    scene.until(GET, "the new weights", moved).await?;
    let answers = scene.answers(Calls::of(GET, 2_000)).await?;
    assert_share(&answers, "orders-shanghai-b-1", 0.7);
    Ok(())
}

async fn the_home_that_a_call_names_decides(library: Library) -> Result<()> {
    let mut scene = Scene::start(library, "homes", |mesh| {
        let strict = json!({ "missing": "reject", "unknown": "reject" });
        mesh.service(orders(json!({})))
            // On host `*`: clients request it by its name. A path prefix matches gRPC calls, too.
            .service(json!({
                "name": "strict",
                "routes": [{ "prefix": "/shop.v1.Orders", "class": "read" }],
                "region": strict,
            }))
            .upstreams("orders", 1)
            .upstreams("strict", 1)
            .grpc_clients()
    })
    .await?;
    let homes = [
        (None, "shanghai-a"),
        (Some("shanghai-a"), "shanghai-a"),
        (Some("shanghai-b"), "shanghai-b"),
        (Some("beijing-c"), "beijing-c"),
        // A region is represented by the client's own zone, or its nearest.
        (Some("shanghai"), "shanghai-a"),
        (Some("beijing"), "beijing-c"),
        (Some("atlantis"), "shanghai-a"),
    ];
    for (home, zone) in homes {
        for method in [GET, PUT] {
            let calls = Calls::of(method, 20);
            let calls = home.map_or(calls.clone(), |home| calls.home(home));
            let answers = scene.answers(calls).await?;
            assert_share(&answers, &format!("orders-{zone}-1"), 1.0);
        }
    }
    let answers = scene
        .answers(Calls::of(GET, 20).to("strict").home("beijing-c"))
        .await?;
    assert_share(&answers, "strict-beijing-c-1", 1.0);
    scene.refused(Calls::of(GET, 20).to("strict")).await?;
    scene
        .refused(Calls::of(GET, 20).to("strict").home("atlantis"))
        .await?;
    scene
        .refused(
            Calls::of("/shop.v1.OrdersOld/GetOrder", 20)
                .to("strict")
                .home("beijing-c"),
        )
        .await
}

async fn an_instance_that_is_out_gets_nothing_more(library: Library) -> Result<()> {
    let mut scene = Scene::start(library, "health", |mesh| {
        mesh.service(orders(json!({})))
            .upstreams("orders", 2)
            .grpc_clients()
    })
    .await?;
    let (stays, leaves) = ("orders-shanghai-a-1", "orders-shanghai-a-2");
    for health in [Health::Unhealthy, Health::Draining] {
        scene
            .until(GET, "both to be called", |answers| answers.len() == 2)
            .await?;
        scene.set(leaves, health).await?;
        scene
            .until(GET, "the news", |answers| !answers.contains_key(leaves))
            .await?;
        let served = scene.served(leaves)?;
        let answers = scene.answers(Calls::of(GET, 500)).await?;
        assert_share(&answers, stays, 1.0);
        assert_eq!(scene.served(leaves)?, served);
        scene.set(leaves, Health::Healthy).await?;
    }
    // With its last instance the zone goes down, and its region takes over without a failed call.
    scene
        .until(PUT, "both to be called", |answers| answers.len() == 2)
        .await?;
    let Scene { mesh, client } = &mut scene;
    let going = async {
        for instance in [stays, leaves] {
            let registration = mesh.upstream(instance)?.registration();
            registration.set_health(Health::Unhealthy).await?;
        }
        Ok(())
    };
    let calls = Calls::of(PUT, 1_000).0;
    let (gone, meanwhile): (Result<()>, _) = tokio::join!(going, client.carry_out(&calls));
    gone?;
    let meanwhile = meanwhile?;
    ensure!(meanwhile.statuses.is_empty(), "{meanwhile:?}");
    let elsewhere = |name: &String| name.starts_with("orders-shanghai-b-");
    scene
        .until(PUT, "the other zone", |answers| {
            answers.keys().all(elsewhere)
        })
        .await
}

async fn what_fits_nowhere_fails(library: Library) -> Result<()> {
    let mut scene = Scene::start(library, "shed", |mesh| {
        mesh.service(orders(json!({})))
            .service(json!({
                "name": "far",
                "routes": [{ "host": "far.example", "grpc": "shop.v1.Orders", "reads": ["GetOrder"] }],
            }))
            .grpc_clients()
    })
    .await?;
    scene.mesh.add_upstream("far", "beijing-c", "far-1").await?;
    eventually(PATIENCE, "a read of another region", async || {
        scene.answers(Calls::of(GET, 1).to("far.example")).await
    })
    .await?;
    let answers = scene.answers(Calls::of(GET, 20).to("far.example")).await?;
    assert_share(&answers, "far-1", 1.0);
    // Writes never leave their region, and a service without instances serves none.
    let served = scene.served("far-1")?;
    scene.refused(Calls::of(PUT, 20).to("far.example")).await?;
    scene.refused(Calls::of(GET, 20)).await?;
    assert_eq!(scene.served("far-1")?, served);
    Ok(())
}

async fn a_key_in_a_header_keeps_calls_on_an_instance(library: Library) -> Result<()> {
    let mut scene = Scene::start(library, "keys", |mesh| {
        let keyed = |name: &str, key: Value| {
            json!({
                "name": name,
                "routes": [{ "host": format!("{name}.example"), "grpc": "shop.v1.Orders" }],
                "strategy": { "region_first_hash": key },
            })
        };
        mesh.service(keyed("users", json!({ "header": "x-user-id" })))
            .service(keyed("visits", json!({ "cookie": "visit" })))
            .upstreams("users", 2)
            .upstreams("visits", 1)
            .grpc_clients()
    })
    .await?;
    let calls = |number| Calls::of(GET, number).to("users.example");
    let mut all = BTreeMap::new();
    for user in 0..40 {
        let user = format!("user-{user}");
        let answers = scene.answers(calls(10).with("x-user-id", &user)).await?;
        ensure!(
            answers.len() == 1,
            "{user} is served by several: {answers:?}"
        );
        all.extend(answers);
    }
    ensure!(
        all.keys().all(|name| name.starts_with("users-shanghai-")),
        "{all:?}"
    );
    ensure!(all.len() == 4, "no ring of the whole region: {all:?}");
    // gRPC cannot hash a cookie, so calls fail instead of reaching an arbitrary instance.
    scene.refused(Calls::of(GET, 20).to("visits.example")).await
}

async fn a_fenced_write_reaches_nobody(library: Library) -> Result<()> {
    let mut scene = Scene::start(library, "fenced", |mesh| {
        mesh.service(orders(json!({ "fenced": true })))
            // A shorter path of the same host, which would match the write if it fell through.
            .service(json!({
                "name": "web",
                "routes": [{ "host": "shop.example", "prefix": "/" }],
                "fenced": false,
            }))
            .authority(json!({ "cells": [{ "name": "main", "owners": ["shanghai-a"] }] }))
            .upstreams("orders", 1)
            .upstreams("web", 1)
            .grpc_clients()
    })
    .await?;
    let other = scene.answers(Calls::of("/shop.v1.Other/Get", 1)).await;
    ensure!(other.is_err(), "no such method, but it arrives: {other:?}");
    let web = scene.served("web-shanghai-a-1")?;
    ensure!(web == 1, "{web} at the shorter path: {other:?}");
    let served = scene.served("orders-shanghai-a-1")?;
    let lies = [
        Calls::of(PUT, 100),
        Calls::of(PUT, 20).home("shanghai-b"),
        Calls::of(PUT, 20).with("x-tidegate-epoch", "1"),
        Calls::of(PUT, 20).with("x-tidegate-class", "read"),
        Calls::of("/shop.v1.Orders/GetOrderAndDelete", 20),
        Calls::of("/shop.v1.Orders/getorder", 20),
    ];
    for calls in lies {
        scene.refused(calls).await?;
    }
    assert_eq!(scene.served("orders-shanghai-a-1")?, served);
    assert_eq!(scene.served("web-shanghai-a-1")?, web);
    let answers = scene.answers(Calls::of(GET, 20)).await?;
    assert_share(&answers, "orders-shanghai-a-1", 1.0);
    Ok(())
}

async fn a_host_that_is_not_there_is_an_error(library: Library) -> Result<()> {
    let mut scene = Scene::start(library, "unknown", |mesh| {
        mesh.service(orders(json!({})))
            .upstreams("orders", 1)
            .grpc_clients()
    })
    .await?;
    let nowhere = Calls::of(GET, 1).to("nowhere.example");
    scene.unresolved(library, nowhere.clone()).await?;
    let answers = scene.answers(Calls::of(GET, 20)).await?;
    assert_share(&answers, "orders-shanghai-a-1", 1.0);
    // It is created, and clients that requested it before find it; the old one is removed.
    scene.mesh.control_plane.configure(|config| {
        let routes = json!([{ "host": "nowhere.example", "grpc": "shop.v1.Orders" }]);
        config.services = vec![orders(json!({ "routes": routes }))];
    })?;
    eventually(PATIENCE, "the new host", async || {
        scene.answers(nowhere.clone()).await
    })
    .await?;
    eventually(PATIENCE, "the old one to go", async || {
        let outcome = scene.call(Calls::of(GET, 1).timeout_s(2)).await?;
        ensure!(outcome.instances.is_empty(), "{outcome:?}");
        Ok(())
    })
    .await
}

async fn a_restarted_control_plane_is_not_noticed(library: Library) -> Result<()> {
    let mut scene = Scene::start(library, "restart", |mesh| {
        mesh.service(orders(json!({})))
            .upstreams("orders", 2)
            .grpc_clients()
    })
    .await?;
    scene.answers(Calls::of(GET, 20)).await?;
    let Scene { mesh, client } = &mut scene;
    let over = AtomicBool::new(false);
    // Continuously: before, during and after its downtime.
    let calling = async {
        while !over.load(Ordering::Relaxed) {
            let outcome = client.carry_out(&Calls::of(GET, 20).0).await?;
            ensure!(outcome.statuses.is_empty(), "{outcome:?}");
        }
        Ok(())
    };
    let restarting = async {
        let restarted = async {
            mesh.control_plane.stop().await?;
            mesh.control_plane.restart().await?;
            let registry = mesh.registry();
            eventually(PATIENCE, "the client to come back", async || {
                let proxies = registry.proxies().await?;
                let listed = proxies.to_string();
                ensure!(listed.contains("grpc"), "{listed}");
                Ok(())
            })
            .await
        };
        let restarted = restarted.await;
        over.store(true, Ordering::Relaxed);
        restarted
    };
    let (called, restarted): (Result<()>, _) = tokio::join!(calling, restarting);
    restarted.and(called)?;
    // And it receives changes.
    let leaves = "orders-shanghai-a-2";
    let registration = scene.mesh.upstream(leaves)?.registration();
    eventually(PATIENCE, "the record to be taken", async || {
        registration.set_health(Health::Unhealthy).await
    })
    .await?;
    scene
        .until(GET, "the news", |answers| !answers.contains_key(leaves))
        .await
}

async fn who_is_not_served_is_told_why(library: Library) -> Result<()> {
    let mut scene = Scene::start(library, "off", |mesh| {
        mesh.service(orders(json!({}))).upstreams("orders", 1)
    })
    .await?;
    let outcome = scene.unresolved(library, Calls::of(GET, 1)).await?;
    let why = "set listeners.grpc to true";
    // A separate thread writes the lines, a moment later.
    eventually(PATIENCE, "the log to say why", async || {
        let log = std::fs::read_to_string(scene.mesh.control_plane.process().log())?;
        ensure!(log.contains(why), "{log}");
        Ok(())
    })
    .await?;
    if library == Library::Grpcio {
        ensure!(outcome.message.contains(why), "{outcome:?}");
    }
    // Only the switch is missing.
    scene
        .mesh
        .control_plane
        .configure(|config| config.grpc = true)?;
    eventually(PATIENCE, "an answer", async || {
        scene.answers(Calls::of(GET, 1)).await
    })
    .await
    .context("switched on")?;
    Ok(())
}
