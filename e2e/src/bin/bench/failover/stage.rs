//! Three zones, each in a namespace of its own with everything that a zone has: an etcd member, a replica of the control plane,
//! a gateway, an agent and three instances.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::client::{Client, Request, Version};
use e2e::config::ZONES;
use e2e::netns::Network;
use e2e::paths;
use e2e::process::Process;
use e2e::registry::Registry;
use e2e::wait::{PATIENCE, eventually};
use hyper::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// The zone that fails, by its position in [`ZONES`].
pub(crate) const HOME: u8 = 0;
/// The zone of the other region.
pub(crate) const REMOTE: u8 = 2;
pub(crate) const GATEWAY_PORT: u16 = 8080;

const SERVICE: &str = "orders";
const INSTANCES: u8 = 3;
const ETCD_PORT: u16 = 2379;
const XDS_PORT: u16 = 18_000;
const ADMIN_PORT: u16 = 18_001;
const AGENT_PORT: u16 = 18_010;
const INSTANCE_PORT: u16 = 9_001;

/// One zone's processes.
pub(crate) struct Zone {
    at: u8,
    directory: PathBuf,
    network: Arc<Network>,
    pub(crate) etcd: Process,
    pub(crate) control_plane: Process,
    pub(crate) instances: Vec<Process>,
    agent: Process,
    gateway: Process,
}

/// Everything.
pub(crate) struct Stage {
    pub(crate) zones: Vec<Zone>,
    client: Client,
}

/// The zones' positions.
pub(crate) fn zones() -> impl Iterator<Item = u8> {
    0..ZONES.len() as u8
}

fn address(zone: u8, port: u16) -> SocketAddr {
    SocketAddr::from((Network::address(zone), port))
}

impl Stage {
    /// Starts everything and waits until the gateways serve.
    pub(crate) async fn set(directory: &Path, network: &Arc<Network>) -> Result<Stage> {
        let mut members = vec![];
        for zone in zones() {
            let directory = directory.join(ZONES[usize::from(zone)].0);
            fs::create_dir_all(&directory)?;
            members.push(start_etcd(network, &directory, zone)?);
        }
        let mut stage = Stage {
            zones: vec![],
            client: Client::new(Version::Http1),
        };
        for (zone, etcd) in zones().zip(members) {
            let directory = directory.join(ZONES[usize::from(zone)].0);
            stage
                .zones
                .push(Zone::start(network, &directory, zone, etcd).await?);
        }
        for zone in zones() {
            let there = eventually(PATIENCE, "a gateway to serve", async || {
                let to = address(zone, GATEWAY_PORT);
                let request = Request::get("/orders").home(ZONES[usize::from(HOME)].0);
                stage.client.send(to, &request).await?.echo().map(drop)
            });
            there.await.with_context(|| stage.logs())?;
        }
        Ok(stage)
    }

    pub(crate) fn zone(&self, zone: u8) -> &Zone {
        &self.zones[usize::from(zone)]
    }

    pub(crate) fn zone_mut(&mut self, zone: u8) -> &mut Zone {
        &mut self.zones[usize::from(zone)]
    }

    /// Whether everything is well for the control plane of a zone.
    pub(crate) async fn healthy(&self, of: u8) -> Result<()> {
        for zone in zones() {
            let status = self.status(of, zone).await?;
            let well = status["state"] == "healthy" && status["healthy"] == u64::from(INSTANCES);
            ensure!(well, "the control plane of {of} says {status}");
        }
        Ok(())
    }

    /// Waits until every control plane counts so many healthy instances in a zone.
    pub(crate) async fn counts(&self, zone: u8, healthy: u64) -> Result<()> {
        eventually(PATIENCE, "every control plane to know", async || {
            for of in zones() {
                let status = self.status(of, zone).await?;
                ensure!(
                    status["healthy"] == healthy,
                    "the control plane of {of} says {status}"
                );
            }
            Ok(())
        })
        .await
    }

    /// What the control plane of a zone says of a zone.
    async fn status(&self, of: u8, zone: u8) -> Result<Value> {
        let to = address(of, ADMIN_PORT);
        let reply = self.client.send(to, &Request::get("/v1/zones")).await?;
        let all: Value = reply.json()?;
        let zones = all["zones"].as_array().context("zones")?;
        let name = ZONES[usize::from(zone)].0;
        let found = zones.iter().find(|status| status["zone"] == name);
        Ok(found.context("no such zone")?.clone())
    }

    /// The zone of the etcd member that leads.
    pub(crate) async fn etcd_leader(&self) -> Result<u8> {
        for zone in zones() {
            let member = format!("http://{}", address(zone, ETCD_PORT));
            let mut client = etcd_client::Client::connect([member], None).await?;
            let status = client.status().await?;
            let id = status.header().context("no header")?.member_id();
            if status.leader() == id {
                return Ok(zone);
            }
        }
        bail!("no etcd member leads")
    }

    /// Drains the zone, or ends that, by the control plane of another.
    pub(crate) async fn drain(&self, zone: u8, drained: bool) -> Result<()> {
        let method = if drained { Method::PUT } else { Method::DELETE };
        let path = format!("/v1/intents/{}", ZONES[usize::from(zone)].0);
        let request = Request::new(method, &path).json(&json!({ "intent": "drain" }));
        let by = address((zone + 1) % ZONES.len() as u8, ADMIN_PORT);
        let reply = self.client.send(by, &request).await?;
        ensure!(
            reply.status.is_success(),
            "{}: {}",
            reply.status,
            reply.text()
        );
        Ok(())
    }

    /// Has the zone's agent take an instance out, or in again.
    pub(crate) async fn drain_instance(&self, zone: u8, at: u8, drained: bool) -> Result<()> {
        let method = if drained {
            Method::POST
        } else {
            Method::DELETE
        };
        let path = format!("/v1/drain/{SERVICE}/{}", instance_name(zone, at));
        let to = address(zone, AGENT_PORT);
        let reply = self.client.send(to, &Request::new(method, &path)).await?;
        ensure!(
            reply.status.is_success(),
            "{}: {}",
            reply.status,
            reply.text()
        );
        Ok(())
    }

    /// Whether the agent has seen the instance healthy, or not.
    pub(crate) async fn instance_is(&self, zone: u8, at: u8, health: &str) -> Result<()> {
        let registry = Registry::new(address(zone, ADMIN_PORT));
        let key = format!("{}/{}", ZONES[usize::from(zone)].0, instance_name(zone, at));
        eventually(PATIENCE, "an instance's health", async || {
            let all = registry.instances().await?;
            let of = |v: &&Value| v["key"].as_str().is_some_and(|k| k.ends_with(&key));
            let record = all.as_array().into_iter().flatten().find(of);
            let record = record.context("not registered")?;
            ensure!(record["record"]["health"] == health, "{record}");
            Ok(())
        })
        .await
    }

    /// The ends of all logs but the instances'.
    pub(crate) fn logs(&self) -> String {
        let tails = self.zones.iter().flat_map(|zone| {
            let Zone {
                etcd,
                control_plane,
                agent,
                gateway,
                ..
            } = zone;
            [etcd, control_plane, agent, gateway].map(Process::tail)
        });
        tails.collect::<Vec<_>>().join("\n")
    }
}

impl Zone {
    async fn start(
        network: &Arc<Network>,
        directory: &Path,
        at: u8,
        etcd: Process,
    ) -> Result<Zone> {
        let instances = (0..INSTANCES)
            .map(|instance| start_instance(network, directory, at, instance))
            .collect::<Result<_>>()?;
        let control_plane = start_control_plane(network, directory, at)?;
        let agent = start_agent(network, directory, at)?;
        let gateway = start_gateway(network, directory, at)?;
        Ok(Zone {
            at,
            directory: directory.to_owned(),
            network: network.clone(),
            etcd,
            control_plane,
            instances,
            agent,
            gateway,
        })
    }

    /// Kills all instances, as fast as that goes.
    pub(crate) fn kill_instances(&self) -> Result<()> {
        self.instances.iter().try_for_each(Process::kill)
    }

    /// Starts an instance again where it was.
    pub(crate) fn restart_instance(&mut self, instance: u8) -> Result<()> {
        let slot = &mut self.instances[usize::from(instance)];
        let _ = slot.kill();
        *slot = start_instance(&self.network, &self.directory, self.at, instance)?;
        Ok(())
    }

    /// Asks an instance to end, which it does after its last request, and starts it again.
    pub(crate) async fn replace_instance(&mut self, instance: u8) -> Result<()> {
        self.instances[usize::from(instance)]
            .terminate(PATIENCE)
            .await?;
        self.restart_instance(instance)?;
        let port = INSTANCE_PORT + u16::from(instance);
        eventually(PATIENCE, "an instance to listen", async || {
            TcpStream::connect(address(self.at, port)).await?;
            Ok(())
        })
        .await
    }

    pub(crate) fn restart_instances(&mut self) -> Result<()> {
        (0..INSTANCES).try_for_each(|instance| self.restart_instance(instance))
    }

    pub(crate) fn restart_control_plane(&mut self) -> Result<()> {
        self.control_plane = start_control_plane(&self.network, &self.directory, self.at)?;
        Ok(())
    }

    pub(crate) fn restart_etcd(&mut self) -> Result<()> {
        self.etcd = start_etcd(&self.network, &self.directory, self.at)?;
        Ok(())
    }
}

/// How many instances a zone has.
pub(crate) fn instances() -> std::ops::Range<u8> {
    0..INSTANCES
}

fn instance_name(zone: u8, at: u8) -> String {
    format!("{SERVICE}-{}-{}", ZONES[usize::from(zone)].0, at + 1)
}

fn start_etcd(network: &Network, directory: &Path, at: u8) -> Result<Process> {
    let member = |zone: u8| format!("m{zone}=http://{}:2380", Network::address(zone));
    let cluster = zones().map(member).collect::<Vec<_>>().join(",");
    let client = format!("http://{}", address(at, ETCD_PORT));
    let peer = format!("http://{}:2380", Network::address(at));
    let arguments: Vec<String> = [
        ("--name", format!("m{at}")),
        ("--data-dir", directory.join("etcd").display().to_string()),
        ("--listen-client-urls", client.clone()),
        ("--advertise-client-urls", client),
        ("--listen-peer-urls", peer.clone()),
        ("--initial-advertise-peer-urls", peer),
        ("--initial-cluster", cluster),
        ("--log-level", "warn".to_owned()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    // The machine does not lose its power meanwhile, and its disk may be slow.
    .chain(["--unsafe-no-fsync".to_owned()])
    .collect();
    network
        .zone(at)?
        .start(directory, "etcd", &paths::etcd()?, &arguments)
}

/// The members' URLs, the own zone's first.
fn endpoints(at: u8) -> Vec<String> {
    let count = ZONES.len() as u8;
    zones()
        .map(|step| format!("http://{}", address((at + step) % count, ETCD_PORT)))
        .collect()
}

fn start_control_plane(network: &Network, directory: &Path, at: u8) -> Result<Process> {
    let named = ZONES.map(|(name, region)| json!({ "name": name, "region": region }));
    let listener = json!({ "address": "0.0.0.0", "port": GATEWAY_PORT, "access_log": "" });
    let config = json!({
        "listen": { "xds": address(at, XDS_PORT), "admin": address(at, ADMIN_PORT) },
        "store": { "etcd": { "endpoints": endpoints(at) } },
        "state": { "path": directory.join("state") },
        "filter": { "path": paths::filter()? },
        "listeners": { "gateway": listener },
        "zones": named,
        "services": [{
            "name": SERVICE,
            "routes": [{ "prefix": "/orders" }],
            "weights": { "zone": 80, "region": 20 },
            // Back at once, so that a round is short; what is measured is the way out.
            "failover": { "hold_s": 0, "hold_max_s": 0, "ramp": { "percent": [], "over_s": 0 } },
            "outlier": { "window_s": 1, "ejection_s": 3, "ejection_max_s": 3 },
            // The sample service answers in a millisecond.
            "hedge_after_ms": 100,
        }],
    });
    let file = directory.join("tidegate.yaml");
    fs::write(&file, config.to_string())?;
    let arguments = ["serve", "--config", &file.display().to_string()].map(str::to_owned);
    network
        .zone(at)?
        .start(directory, "tidegate", &paths::tidegate()?, &arguments)
}

fn start_agent(network: &Network, directory: &Path, at: u8) -> Result<Process> {
    let instances: Vec<Value> = instances()
        .map(|instance| {
            json!({
                "service": SERVICE,
                "instance": instance_name(at, instance),
                "address": IpAddr::from(Network::address(at)),
                "port": INSTANCE_PORT + u16::from(instance),
                "probe": { "http": { "path": "/health" }, "interval_ms": 200 },
            })
        })
        .collect();
    let config = json!({
        "zone": ZONES[usize::from(at)].0,
        "store": { "etcd": { "endpoints": endpoints(at) } },
        "listen": address(at, AGENT_PORT),
        "instances": instances,
    });
    let file = directory.join("agent.yaml");
    fs::write(&file, config.to_string())?;
    let arguments = ["agent", "--config", &file.display().to_string()].map(str::to_owned);
    network
        .zone(at)?
        .start(directory, "agent", &paths::tidegate()?, &arguments)
}

fn start_gateway(network: &Network, directory: &Path, at: u8) -> Result<Process> {
    let (zone, region) = ZONES[usize::from(at)];
    let bootstrap = Bootstrap::read("gateway.yaml")?
        .node(&format!("gateway-{zone}"), region, zone)?
        .cluster_at("tidegate", address(at, XDS_PORT))?
        .cluster_also_at("tidegate", address((at + 1) % ZONES.len() as u8, XDS_PORT))?;
    let file = directory.join("gateway.json");
    bootstrap.write(&file)?;
    let arguments = [
        "-c",
        &file.display().to_string(),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]
    .map(str::to_owned);
    network
        .zone(at)?
        .start(directory, "gateway", &paths::envoy()?, &arguments)
}

fn start_instance(network: &Network, directory: &Path, zone: u8, at: u8) -> Result<Process> {
    let name = instance_name(zone, at);
    let listen = address(zone, INSTANCE_PORT + u16::from(at)).to_string();
    let zone_name = ZONES[usize::from(zone)].0;
    let arguments: Vec<String> = [
        ["--service", SERVICE],
        ["--zone", zone_name],
        ["--instance", &name],
        ["--listen", &listen],
    ]
    .concat()
    .into_iter()
    .map(str::to_owned)
    .collect();
    network
        .zone(zone)?
        .start(directory, &name, &paths::upstream()?, &arguments)
}
