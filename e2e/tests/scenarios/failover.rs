//! Instances and zones fail while the control plane is stopped: the reactions of the proxies alone.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use e2e::client::{Reply, Request};
use e2e::load::{Load, RunningLoad};
use e2e::mesh::{Builder, Mesh};
use e2e::registry::{Health, Instance, InstanceName};
use e2e::upstream::{Conduct, Server};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

use crate::support::run;

/// A mesh of one service, with its servers by name. They have no lease.
struct Stage {
    mesh: Mesh,
    servers: BTreeMap<&'static str, Server>,
}

const INSTANCES: [(&str, &str); 5] = [
    ("shanghai-a", "a-1"),
    ("shanghai-a", "a-2"),
    ("shanghai-b", "b-1"),
    ("shanghai-b", "b-2"),
    ("beijing-c", "c-1"),
];

/// The gateway in the zone of the failing instances, and a remote one.
const GATEWAYS: [&str; 2] = ["shanghai-a", "beijing-c"];

impl Stage {
    /// All processes run, and every gateway knows every instance.
    async fn set(name: &str, options: Value) -> Result<Stage> {
        let mut service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
        if let (Some(service), Some(options)) = (service.as_object_mut(), options.as_object()) {
            service.extend(options.clone());
        }
        let mesh = Builder::new(Workdir::kept(name)?)
            .service(service)
            .gateways()
            .start()
            .await?;
        let mut stage = Stage {
            mesh,
            servers: BTreeMap::new(),
        };
        for (zone, instance) in INSTANCES {
            let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let at = InstanceName::new("orders", zone, instance);
            let server = Server::start(at, any_port).await?;
            stage.servers.insert(instance, server);
            stage.register(zone, instance, Health::Healthy).await?;
        }
        for gateway in GATEWAYS {
            for zone in ["shanghai-a", "shanghai-b", "beijing-c"] {
                let read = Request::get("/orders").home(zone);
                let there = |reply: &Reply| reply.echo().map(drop);
                stage.mesh.eventually(gateway, zone, read, there).await?;
            }
        }
        Ok(stage)
    }

    async fn register(&self, zone: &str, instance: &str, health: Health) -> Result<()> {
        let name = InstanceName::new("orders", zone, instance);
        let server = self.servers.get(instance).context("no such server")?;
        let mut record = Instance::at(server.address());
        record.health = health;
        let put = self.mesh.registry().put(&name, &record, None).await?;
        ensure!(put.status.is_success(), "{}", put.text());
        Ok(())
    }

    /// Reads of shanghai-a, by both gateways.
    fn reads(&self) -> Result<RunningLoad> {
        self.load(Request::get("/orders"))
    }

    /// Writes of shanghai-a, by both gateways.
    fn writes(&self) -> Result<RunningLoad> {
        self.load(Request::post("/orders"))
    }

    fn load(&self, request: Request) -> Result<RunningLoad> {
        let request = request.home("shanghai-a");
        let requests = GATEWAYS.map(|gateway| Ok((self.mesh.address(gateway)?, request.clone())));
        let requests: Result<Vec<_>> = requests.into_iter().collect();
        Ok(Load::steady(requests?).start())
    }

    /// From now on only the proxies can react.
    fn freeze(&self) -> Result<()> {
        self.mesh.control_plane.process().pause()
    }

    /// Like the death of their processes.
    fn kill(&mut self, instances: &[&str]) {
        self.servers.retain(|name, _| !instances.contains(name));
    }

    fn conduct(&self, instances: &[&str], conduct: Conduct) {
        let servers = self.servers.iter();
        let those = servers.filter(|(name, _)| instances.contains(name));
        those.for_each(|(_, server)| server.conduct(conduct));
    }
}

/// Waits until exactly these instances answer.
async fn until(load: &mut RunningLoad, instances: &[&str]) -> Result<()> {
    let what = format!("answers by exactly {instances:?}");
    eventually(PATIENCE, &what, async || {
        let tally = load.next(60).await?;
        let seen: Vec<&str> = tally.instances.keys().map(String::as_str).collect();
        ensure!(seen == instances, "{seen:?}");
        Ok(())
    })
    .await
}

/// Runs a scenario on a stage, and prints the logs after a failure.
fn on(name: &str, options: Value, scenario: impl AsyncFnOnce(&mut Stage) -> Result<()>) {
    run(async {
        let mut stage = Stage::set(name, options).await?;
        let outcome = scenario(&mut stage).await;
        outcome.with_context(|| stage.mesh.logs())
    });
}

#[test]
fn a_zone_that_dies_costs_no_read() {
    on("dies", json!({}), async |stage| {
        let mut reads = stage.reads()?;
        until(&mut reads, &["a-1", "a-2"]).await?;
        stage.freeze()?;
        stage.kill(&["a-1", "a-2"]);
        until(&mut reads, &["b-1", "b-2"]).await?;
        reads.next(600).await?;
        reads.stop().await.check_no_failure()?;
        // Requests that were not sent yet go to the same region, and only there.
        let mut writes = stage.writes()?;
        until(&mut writes, &["b-1", "b-2"]).await?;
        writes.next(300).await?;
        writes.stop().await.check_no_failure()?;

        // The whole region is down: reads continue, writes are rejected or fail, and none leaves
        // the region.
        stage.kill(&["b-1", "b-2"]);
        let mut reads = stage.reads()?;
        until(&mut reads, &["c-1"]).await?;
        reads.stop().await.check_no_failure()?;
        for gateway in GATEWAYS {
            for _ in 0..20 {
                let write = Request::post("/orders").home("shanghai-a");
                let reply = stage.mesh.send(gateway, write).await?;
                ensure!(reply.status == 503, "{} {}", reply.status, reply.text());
            }
        }
        Ok(())
    });
}

#[test]
fn a_zone_that_hangs_costs_no_read() {
    let options = json!({ "hedging": { "delay_ms": 200 } });
    on("hangs", options, async |stage| {
        let mut reads = stage.reads()?;
        until(&mut reads, &["a-1", "a-2"]).await?;
        stage.freeze()?;
        stage.conduct(&["a-1", "a-2"], Conduct::Hangs);
        until(&mut reads, &["b-1", "b-2"]).await?;
        let tally = reads.next(600).await?;
        // Ejected, so that not every request waits.
        let median = tally.median().context("no median")?;
        ensure!(median.as_millis() < 200, "{median:?}");
        reads.stop().await.check_no_failure()
    });
}

#[test]
fn a_slow_read_is_not_cut_off_by_its_hedge() {
    let options = json!({ "hedging": { "delay_ms": 100 } });
    on("slow", options, async |stage| {
        for _ in 0..3 {
            let read = Request::get("/orders/slow?ms=400").home("shanghai-a");
            let reply = stage.mesh.send("shanghai-a", read).await?;
            ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        }
        Ok(())
    });
}

#[test]
fn an_instance_that_only_errs_is_taken_out_and_all_of_them_are_not() {
    let options = json!({ "outlier_detection": { "consecutive_5xx": 5 } });
    on("errs", options, async |stage| {
        stage.freeze()?;
        stage.conduct(&["a-1"], Conduct::Fails);
        let ask = async || {
            let read = Request::get("/orders").home("shanghai-a");
            stage.mesh.send("shanghai-a", read).await
        };
        let mut in_a_row = 0;
        eventually(PATIENCE, "fifty good answers in a row", async || {
            let reply = ask().await?;
            in_a_row = if reply.status == 200 { in_a_row + 1 } else { 0 };
            ensure!(in_a_row >= 50, "{} {in_a_row}", reply.status);
            Ok(())
        })
        .await?;
        // If all seem to be bad, all are tried, and the first healthy one is found.
        stage.conduct(&["a-1", "a-2", "b-1", "b-2", "c-1"], Conduct::Fails);
        for _ in 0..200 {
            ask().await?;
        }
        stage.conduct(&["a-1", "a-2", "b-1", "b-2", "c-1"], Conduct::Answers);
        let reply = ask().await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        Ok(())
    });
}

#[test]
fn a_write_that_was_sent_is_not_sent_again_whatever_its_caller_says() {
    on("once", json!({}), async |stage| {
        stage.conduct(&["a-1", "a-2", "b-1", "b-2"], Conduct::Fails);
        let served = |stage: &Stage| stage.servers.values().map(Server::served).sum::<u64>();
        let before = served(stage);
        let write = Request::post("/orders")
            .home("shanghai-a")
            .header("x-envoy-retry-on", "5xx,reset")
            .header("x-envoy-max-retries", "3")
            .header("x-envoy-hedge-on-per-try-timeout", "true")
            .header("x-envoy-upstream-rq-per-try-timeout-ms", "1");
        let reply = stage.mesh.send("shanghai-a", write).await?;
        ensure!(reply.status == 500, "{}", reply.status);
        ensure!(
            served(stage) == before + 1,
            "{} times",
            served(stage) - before
        );
        Ok(())
    });
}

#[test]
fn what_proxies_do_about_failures_can_be_changed_under_load() {
    on("changed", json!({}), async |stage| {
        let mut reads = stage.reads()?;
        let mut writes = stage.writes()?;
        for limit in 1_000..1_003 {
            stage.mesh.control_plane.configure(|config| {
                config.services[0]["circuit_breakers"] = json!({ "max_requests": limit });
                config.services[0]["outlier_detection"] =
                    json!({ "consecutive_gateway_failure": limit });
            })?;
            // A changed cluster is warmed anew: the old one serves until the endpoints of the new
            // one have arrived.
            let seen = format!("orders/shanghai-b::default_priority::max_requests::{limit}");
            eventually(PATIENCE, "the limit in the gateway", async || {
                let clusters = stage
                    .mesh
                    .gateway("shanghai-a")?
                    .admin()
                    .get("/clusters")
                    .await?;
                ensure!(clusters.contains(&seen), "not yet");
                Ok(())
            })
            .await?;
            reads.next(50).await?;
            writes.next(50).await?;
        }
        reads.stop().await.check_no_failure()?;
        writes.stop().await.check_no_failure()
    });
}

/// The instance that answers each of these keys.
async fn placed(stage: &Stage, keys: usize) -> Result<Vec<String>> {
    let mut instances = vec![];
    for key in 0..keys {
        let read = Request::get("/orders").header("x-user-id", format!("user-{key}"));
        let reply = stage.mesh.send("shanghai-a", read).await?;
        instances.push(reply.echo().with_context(|| reply.text())?.instance);
    }
    Ok(instances)
}

#[test]
fn a_key_stays_on_its_instance_and_moves_only_with_it() {
    let options = json!({ "strategy": { "region_first_hash": { "header": "x-user-id" } } });
    on("keyed", options, async |stage| {
        let before = placed(stage, 200).await?;
        ensure!(before == placed(stage, 200).await?);
        let count = |instance: &str| before.iter().filter(|i| *i == instance).count();
        for instance in ["a-1", "a-2", "b-1", "b-2"] {
            // A quarter each.
            ensure!(
                (20..=80).contains(&count(instance)),
                "{instance}: {}",
                count(instance)
            );
        }
        ensure!(count("c-1") == 0, "the region comes first");

        // An unhealthy instance's keys move, and no other's; then they come back.
        let moved = async |stage: &Stage| {
            let read = Request::get("/orders");
            let mut after = vec![];
            eventually(PATIENCE, "nobody on a-1", async || {
                after = placed(stage, 200).await?;
                ensure!(after.iter().all(|i| i != "a-1"));
                Ok(())
            })
            .await
            .with_context(|| format!("{read:?}"))?;
            // Maglev moves less than one in a hundred of the others' keys.
            let others = before.iter().zip(&after).filter(|(old, _)| *old != "a-1");
            let moved = others.filter(|(old, new)| old != new).count();
            ensure!(moved <= 4, "{moved} keys of others have moved");
            Ok(())
        };
        stage
            .register("shanghai-a", "a-1", Health::Unhealthy)
            .await?;
        moved(stage).await?;
        stage.register("shanghai-a", "a-1", Health::Healthy).await?;
        eventually(PATIENCE, "everything where it was", async || {
            ensure!(placed(stage, 200).await? == before);
            Ok(())
        })
        .await?;
        // The same without updates from a control plane.
        stage.freeze()?;
        stage.kill(&["a-1"]);
        moved(stage).await.context("without a-1")?;
        // Reads leave a region that is down.
        stage.kill(&["a-2", "b-1", "b-2"]);
        let after = placed(stage, 20).await.context("without the region")?;
        ensure!(after.iter().all(|i| i == "c-1"), "{after:?}");
        let write = Request::post("/orders").home("shanghai-a");
        let reply = stage.mesh.send("shanghai-a", write).await?;
        ensure!(reply.status == 503, "{}", reply.status);
        Ok(())
    });
}

#[test]
fn a_drain_loses_no_session() {
    let options = json!({
        "strategy": { "region_first_hash": { "header": "x-user-id" } },
        "stateful_session": { "cookie": "tide" },
    });
    on("sessions", options, async |stage| {
        let user = Request::get("/orders").header("x-user-id", "user-7");
        let first = stage.mesh.send("shanghai-a", user.clone()).await?;
        let home = first.echo()?.instance;
        let cookie = first.header("set-cookie").context("no session")?;
        let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
        let session = user.clone().header("cookie", &cookie);

        let (zone, _) = INSTANCES
            .into_iter()
            .find(|(_, i)| *i == home)
            .context("no zone")?;
        stage.register(zone, &home, Health::Draining).await?;
        stage
            .mesh
            .eventually("shanghai-a", "new sessions elsewhere", user, |reply| {
                let now = reply.echo()?.instance;
                ensure!(now != home, "{now}");
                Ok(())
            })
            .await?;
        for _ in 0..50 {
            let reply = stage.mesh.send("shanghai-a", session.clone()).await?;
            ensure!(reply.echo()?.instance == home, "{}", reply.text());
        }
        // When it is gone the session continues elsewhere.
        let instances: Vec<&str> = INSTANCES
            .iter()
            .map(|(_, i)| *i)
            .filter(|i| *i == home)
            .collect();
        stage.kill(&instances);
        let reply = stage.mesh.send("shanghai-a", session).await?;
        ensure!(reply.echo()?.instance != home, "{}", reply.text());
        Ok(())
    });
}
