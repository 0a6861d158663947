//! Zones go out, are drained, pinned and come back: operators' directives by the command line, seen
//! in traffic.

use anyhow::{Context, Result, ensure};
use e2e::client::{Reply, Request};
use e2e::load::{Load, RunningLoad};
use e2e::mesh::{Builder, Mesh, Store};
use e2e::registry::Health;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::json;

use crate::shared::{mesh, plain};
use crate::support::{Registered, on, operate, run};

/// The line of `tidegate get zones` about a service in a zone, once it contains `state`.
async fn until_state(mesh: &Mesh, service: &str, zone: &str, state: &str) -> Result<String> {
    eventually(PATIENCE, state, async || {
        let table = operate(mesh, &["zones"])?;
        let mut lines = table.lines();
        let line = lines.find(|l| l.starts_with(&format!("{service} ")) && l.contains(zone));
        let line = line.with_context(|| format!("no line in {table}"))?;
        ensure!(line.contains(state), "{line}");
        Ok(line.to_owned())
    })
    .await
}

/// Reads and writes of shanghai-a by its gateway, as soon as there is an instance.
async fn load(mesh: &Mesh, path: &str) -> Result<RunningLoad> {
    let requests = [Request::get(path), Request::post(path)].map(|r| r.home("shanghai-a"));
    for request in &requests {
        let there = |reply: &Reply| reply.echo().map(drop);
        mesh.eventually("shanghai-a", "an instance", request.clone(), there)
            .await?;
    }
    let gateway = mesh.address("shanghai-a")?;
    let requests = requests.map(|request| (gateway, request));
    Ok(Load::steady(requests.into()).start())
}

/// Waits until exactly these instances answer.
async fn until(load: &mut RunningLoad, instances: &[&str]) -> Result<()> {
    let what = format!("answers by exactly {instances:?}");
    eventually(PATIENCE, &what, async || {
        let tally = load.next(80).await?;
        let seen: Vec<&str> = tally.instances.keys().map(String::as_str).collect();
        ensure!(seen == instances, "{seen:?}");
        Ok(())
    })
    .await
}

#[test]
fn a_drained_zone_gets_nothing_until_it_is_released() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let _a = Registered::start(etcd, "drains", "shanghai-a", "drains-a").await?;
        let _b = Registered::start(etcd, "drains", "shanghai-b", "drains-b").await?;
        let mut load = load(mesh, "/drains").await?;
        until(&mut load, &["drains-a"]).await?;
        let service = ["--service", "drains"];
        let drain = ["drain", "shanghai-a", "--reason", "new switch"];
        operate(mesh, &[&drain[..], &service].concat())?;
        until(&mut load, &["drains-b"]).await?;
        let line = until_state(mesh, "drains", "shanghai-a", "drained").await?;
        ensure!(line.contains("drain: new switch"), "{line}");
        // It gets no more requests.
        ensure!(!load.next(400).await?.instances.contains_key("drains-a"));
        operate(mesh, &[&["release", "shanghai-a"][..], &service].concat())?;
        until(&mut load, &["drains-a"]).await?;
        load.stop().await.check_no_failure()?;

        let misspelt = operate(mesh, &["drain", "shanghai-z"]).expect_err("no such zone");
        ensure!(
            misspelt
                .to_string()
                .contains("zone \"shanghai-z\" is not configured"),
            "{misspelt}"
        );
        let nothing = operate(mesh, &["release", "shanghai-a"]).expect_err("no such intent");
        ensure!(
            nothing.to_string().contains("nothing is drained or pinned"),
            "{nothing}"
        );
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn with_manual_failback_a_zone_waits_for_its_operator() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let mut a = Registered::start(etcd, "manual", "shanghai-a", "manual-a").await?;
        let _b = Registered::start(etcd, "manual", "shanghai-b", "manual-b").await?;
        let mut load = load(mesh, "/manual").await?;
        until(&mut load, &["manual-a"]).await?;
        a.set(Health::Unhealthy).await?;
        until(&mut load, &["manual-b"]).await?;
        a.set(Health::Healthy).await?;
        until_state(mesh, "manual", "shanghai-a", "awaiting_operator").await?;
        until(&mut load, &["manual-b"]).await?;
        let back = ["failback", "shanghai-a", "--service", "manual"];
        ensure!(operate(mesh, &back)?.contains("coming back: manual"));
        until(&mut load, &["manual-a"]).await?;
        ensure!(operate(mesh, &back)?.contains("no service is out"));

        // A pinned zone stays in with any number of healthy instances.
        let _second = Registered::start(etcd, "manual", "shanghai-a", "manual-a2").await?;
        until(&mut load, &["manual-a", "manual-a2"]).await?;
        operate(mesh, &["pin", "shanghai-a", "--service", "manual"])?;
        until_state(mesh, "manual", "shanghai-a", "pinned").await?;
        a.set(Health::Unhealthy).await?;
        until(&mut load, &["manual-a2"]).await?;
        operate(mesh, &["release", "shanghai-a", "--service", "manual"])?;
        until(&mut load, &["manual-b"]).await?;
        load.stop().await.check_no_failure()
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_restarted_control_plane_goes_on_where_zones_stood() {
    async fn scenario(mesh: &mut Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let mut a = Registered::start(etcd, "held", "shanghai-a", "held-a").await?;
        let _b = Registered::start(etcd, "held", "shanghai-b", "held-b").await?;
        let mut load = load(mesh, "/held").await?;
        until(&mut load, &["held-a"]).await?;
        a.set(Health::Unhealthy).await?;
        until(&mut load, &["held-b"]).await?;
        a.set(Health::Healthy).await?;
        until_state(mesh, "held", "shanghai-a", "holding").await?;
        mesh.control_plane.stop().await?;
        mesh.control_plane.restart().await?;
        until_state(mesh, "held", "shanghai-a", "holding").await?;
        until(&mut load, &["held-b"]).await?;
        load.stop().await.check_no_failure()
    }
    run(async {
        let mut held = plain("held");
        held["failover"] = json!({ "hold_s": 600 });
        let mut mesh = Builder::new(Workdir::kept("held")?)
            .store(Store::Etcd(1))
            .service(held)
            .gateways()
            .start()
            .await?;
        let outcome = scenario(&mut mesh).await;
        on(&mesh, async |_| outcome).await
    });
}

#[test]
fn an_emptied_registry_is_not_believed_until_an_operator_confirms() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let mut servers = vec![];
        for (zone, instance) in [
            ("shanghai-a", "wiped-1"),
            ("shanghai-a", "wiped-2"),
            ("shanghai-b", "wiped-3"),
        ] {
            servers.push(Registered::start(etcd, "wiped", zone, instance).await?);
        }
        let mut load = load(mesh, "/wiped").await?;
        until(&mut load, &["wiped-1", "wiped-2"]).await?;
        let mut client = etcd.client().await?;
        let all = etcd_client::DeleteOptions::new().with_prefix();
        client.delete("/tidegate/v1/instances/", Some(all)).await?;
        let told = eventually(PATIENCE, "the guard", async || {
            let table = operate(mesh, &["zones"])?;
            ensure!(table.contains("IMPLAUSIBLE"), "{table}");
            Ok(table)
        });
        ensure!(told.await?.contains("3 of 3 instances disappeared"));
        let kept = mesh.registry().metric("tidegate_instances_kept").await?;
        ensure!(kept == 3.0, "{kept}");
        until(&mut load, &["wiped-1", "wiped-2"]).await?;
        load.stop().await.check_no_failure()?;
        operate(mesh, &["confirm"])?;
        let read = Request::get("/wiped");
        let refused = |reply: &Reply| {
            ensure!(reply.status == 503, "{}", reply.text());
            Ok(())
        };
        mesh.eventually("shanghai-a", "nobody", read, refused)
            .await?;
        let nothing = operate(mesh, &["confirm"]).expect_err("nothing to confirm");
        ensure!(
            nothing.to_string().contains("waits for no confirmation"),
            "{nothing}"
        );
        Ok(())
    }
    run(async {
        let mesh = Builder::new(Workdir::kept("wiped")?)
            .store(Store::Etcd(1))
            .service(plain("wiped"))
            .guard(json!({ "vanish_percent": 50 }))
            .gateways()
            .start()
            .await?;
        on(&mesh, scenario).await
    });
}
