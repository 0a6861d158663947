//! Instances in etcd are added, removed, become unhealthy and drain, seen in traffic.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::{Reply, Request};
use e2e::load::{Load, RunningLoad};
use e2e::mesh::Mesh;
use e2e::registry::{Health, Instance, InstanceName};
use e2e::wait::{PATIENCE, eventually};

use crate::shared::mesh;
use crate::support::{Registered, explained, on, reason, run};

/// Enough requests to see an instance with a fifth of the traffic: it is missed once in fifty
/// million times.
const LOOK: u64 = 80;
/// One in the instances' zone, one remote.
const GATEWAYS: [&str; 2] = ["shanghai-a", "beijing-c"];

/// Reads and writes of shanghai-a, by two gateways, as soon as both know an instance.
async fn load(mesh: &Mesh, path: &str) -> Result<RunningLoad> {
    let mut requests = vec![];
    for gateway in GATEWAYS {
        for request in [Request::get(path), Request::post(path)] {
            let request = request.home("shanghai-a");
            mesh.eventually(gateway, "an instance", request, |reply| {
                reply.echo().map(drop)
            })
            .await?;
        }
        let address = mesh.address(gateway)?;
        requests.push((address, Request::get(path).home("shanghai-a")));
        requests.push((address, Request::post(path).home("shanghai-a")));
    }
    Ok(Load::steady(requests).start())
}

/// Waits until exactly these instances answer.
async fn until(load: &mut RunningLoad, instances: &[&str]) -> Result<()> {
    let what = format!("answers by exactly {instances:?}");
    eventually(PATIENCE, &what, async || {
        let tally = load.next(LOOK).await?;
        let seen: Vec<&str> = tally.instances.keys().map(String::as_str).collect();
        ensure!(seen == instances, "{seen:?}");
        Ok(())
    })
    .await
}

#[test]
fn instances_come_and_go_without_a_failed_request() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let start = |instance| Registered::start(etcd, "fleet", "shanghai-a", instance);
        let mut one = start("fleet-1").await?;
        let mut load = load(mesh, "/fleet").await?;
        until(&mut load, &["fleet-1"]).await.context("begin")?;

        let mut two = start("fleet-2").await?;
        until(&mut load, &["fleet-1", "fleet-2"])
            .await
            .context("added")?;

        one.set(Health::Unhealthy).await?;
        until(&mut load, &["fleet-2"]).await.context("unhealthy")?;
        one.set(Health::Healthy).await?;
        until(&mut load, &["fleet-1", "fleet-2"])
            .await
            .context("healthy again")?;

        two.set(Health::Draining).await?;
        until(&mut load, &["fleet-1"]).await.context("draining")?;
        two.set(Health::Healthy).await?;
        until(&mut load, &["fleet-1", "fleet-2"])
            .await
            .context("stays after all")?;

        one.remove().await?;
        until(&mut load, &["fleet-2"]).await.context("removed")?;
        load.stop().await.check_no_failure()
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_whole_zone_drains_and_comes_back_without_a_failed_request() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let start = |zone, instance| Registered::start(etcd, "tides", zone, instance);
        let mut one = start("shanghai-a", "tides-1").await?;
        let mut two = start("shanghai-a", "tides-2").await?;
        let _other = start("shanghai-b", "tides-3").await?;
        let mut load = load(mesh, "/tides").await?;
        until(&mut load, &["tides-1", "tides-2", "tides-3"]).await?;
        // The moment between the two is short; ten attempts are enough to hit it.
        for _ in 0..10 {
            for health in [Health::Draining, Health::Healthy] {
                tokio::try_join!(one.set(health), two.set(health))?;
                let answering: &[&str] = match health {
                    Health::Healthy => &["tides-1", "tides-2", "tides-3"],
                    _ => &["tides-3"],
                };
                until(&mut load, answering).await?;
            }
        }
        load.stop().await.check_no_failure()
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_crashed_instance_costs_no_read() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let one = Registered::start(etcd, "crashes", "shanghai-a", "crashes-1").await?;
        let _two = Registered::start(etcd, "crashes", "shanghai-a", "crashes-2").await?;
        let gateway = mesh.address("shanghai-a")?;
        let read = Request::get("/crashes");
        mesh.eventually("shanghai-a", "an instance", read.clone(), |reply| {
            reply.echo().map(drop)
        })
        .await?;
        let mut load = Load::steady(vec![(gateway, read)]).start();
        until(&mut load, &["crashes-1", "crashes-2"]).await?;
        // Its connections are cut in the middle of any request. The record stays, since the process
        // could not remove it.
        drop(one);
        until(&mut load, &["crashes-2"]).await?;
        load.next(500).await?;
        load.stop().await.check_no_failure()
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_bad_record_is_skipped_and_counted_and_others_go_on() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let mut client = etcd.client().await?;
        let good = Registered::start(etcd, "damaged", "shanghai-a", "damaged-1").await?;
        let mut load = load(mesh, "/damaged").await?;
        until(&mut load, &["damaged-1"]).await?;

        let rejected = async |reason: &str| {
            let name = format!("tidegate_records_rejected_total{{reason=\"{reason}\"}}");
            mesh.registry().metric(&name).await
        };
        let at = serde_json::to_string(&Instance::at(good.server.address()))?;
        let port_0 = r#"{"address":"127.0.0.1","port":0}"#;
        for (zone, value, why) in [
            ("shanghai-a", "{\"address\": \"127.0.", "json"),
            ("shanghai-a", "\u{0}\u{1}", "json"),
            ("atlantis", &at, "unknown_zone"),
            ("shanghai-a", port_0, "port"),
        ] {
            let before = rejected(why).await?;
            let key = InstanceName::new("damaged", zone, "damaged-2").key();
            client.put(key, value, None).await?;
            eventually(PATIENCE, "the record to be counted", async || {
                let now = rejected(why).await?;
                ensure!(now > before, "{why}: {before}, now {now}");
                Ok(())
            })
            .await?;
            until(&mut load, &["damaged-1"]).await?;
        }
        // Others continue, and a repaired record is accepted again.
        let _three = Registered::start(etcd, "damaged", "shanghai-a", "damaged-3").await?;
        until(&mut load, &["damaged-1", "damaged-3"]).await?;
        let _two = Registered::start(etcd, "damaged", "shanghai-a", "damaged-2").await?;
        until(&mut load, &["damaged-1", "damaged-2", "damaged-3"]).await?;
        load.stop().await.check_no_failure()
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn an_instance_that_gives_no_sign_of_life_is_forgotten() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let mut server = Registered::start(etcd, "leased", "shanghai-a", "leased-1").await?;
        let lease = mesh.registry().grant_lease(Duration::from_secs(2)).await?;
        let record = Instance::at(server.server.address());
        let request = explained(Request::get("/leased"));
        let there = |reply: &Reply| reply.echo().map(drop);
        let gone = |reply: &Reply| {
            ensure!(reason(reply)? == "no_capacity", "{}", reply.text());
            Ok(())
        };
        // Each step is awaited by its effect: the next state must differ from the previous one.
        mesh.eventually("shanghai-a", "the first record", request.clone(), there)
            .await?;
        server.remove().await?;
        mesh.eventually(
            "shanghai-a",
            "the first record to go",
            request.clone(),
            gone,
        )
        .await?;
        // The same record, but on a lease without keepalives.
        let put = mesh
            .registry()
            .put(&server.name, &record, Some(&lease))
            .await?;
        assert!(put.status.is_success(), "{}", put.text());
        mesh.eventually("shanghai-a", "the instance", request.clone(), there)
            .await?;
        mesh.eventually("shanghai-a", "the lease to end", request, gone)
            .await?;
        ensure!(!mesh.registry().keep_alive(&lease).await?, "it is alive");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}
