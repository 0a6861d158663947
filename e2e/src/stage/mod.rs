//! Three zones, each in its own network namespace with a complete set of processes: an etcd member,
//! a replica of the control plane, a gateway, instances, and, if the plan has one, an agent that
//! keeps them registered.

mod guests;
pub mod load;
pub mod witness;
mod zone;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use serde_json::{Value, json};

use crate::cells::Cells;
use crate::client::{Client, Request, Version};
use crate::config::ZONES;
use crate::netns::Network;
use crate::process::Process;
use crate::registry::{Instance, InstanceName, Registry};
use crate::wait::{PATIENCE, eventually};

pub use zone::{WallClock, Zone, start_instance};

pub const SERVICE: &str = "orders";
/// The service whose instances are the zones' gateways: the target of forwarded writes.
const GATEWAYS: &str = "gateway";

pub const GATEWAY_PORT: u16 = 8080;
const ETCD_PORT: u16 = 2379;
const XDS_PORT: u16 = 18_000;
const ADMIN_PORT: u16 = 18_001;
const AGENT_PORT: u16 = 18_010;
const INSTANCE_PORT: u16 = 9_001;

/// The processes of every zone.
#[derive(Clone, Debug)]
pub struct Plan {
    /// [`SERVICE`], in the form of the configuration.
    pub service: Value,
    /// Write authority, in the form of the configuration; without it nothing is fenced.
    pub authority: Option<Value>,
    pub instances: u8,
    /// Worker threads of a gateway.
    pub workers: u32,
    pub registered: Registered,
    pub gateways: Gateways,
    /// Instances log every write, to [`Zone::write_log`].
    pub write_logs: bool,
    /// The wall clocks of a zone's gateway and control plane can be stepped.
    pub wall_clocks: bool,
}

/// Who configures the gateways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gateways {
    /// Tidegate.
    #[default]
    Owned,
    /// A file, with the filter as a guest. They need instances that are registered
    /// [for good](Registered::ForGood).
    Guests,
}

/// The registrar of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// By their zone's agent, which probes them; gateways also know the control plane of the next
    /// zone.
    ByAgents,
    /// Permanently, and so are the gateways.
    ForGood,
}

/// The whole stage.
pub struct Stage {
    plan: Plan,
    directory: PathBuf,
    zones: Vec<Zone>,
    client: Client,
    network: Arc<Network>,
    /// How often etcd was restored.
    restores: u32,
}

/// The zones' positions in [`ZONES`].
pub fn zones() -> impl Iterator<Item = u8> + Clone {
    0..ZONES.len() as u8
}

/// The name of a zone.
pub fn name(zone: u8) -> &'static str {
    ZONES[usize::from(zone)].0
}

fn address(zone: u8, port: u16) -> SocketAddr {
    SocketAddr::from((Network::address(zone), port))
}

/// The ingress address of a zone's gateway.
pub fn gateway(zone: u8) -> SocketAddr {
    address(zone, GATEWAY_PORT)
}

/// The admin address of a zone's control plane.
pub fn admin(zone: u8) -> SocketAddr {
    address(zone, ADMIN_PORT)
}

/// The address of an instance of a zone.
pub fn instance(zone: u8, at: u8) -> SocketAddr {
    address(zone, INSTANCE_PORT + u16::from(at))
}

/// The members' URLs, those of a zone first.
pub fn etcd_endpoints(first: u8) -> Vec<String> {
    let count = ZONES.len() as u8;
    zones()
        .map(|step| format!("http://{}", address((first + step) % count, ETCD_PORT)))
        .collect()
}

impl Stage {
    /// Starts everything and waits until the gateways serve. Called in the hub.
    pub async fn set(directory: &Path, network: &Arc<Network>, plan: Plan) -> Result<Stage> {
        if plan.gateways == Gateways::Guests {
            guests::issue(directory)?;
        }
        let mut members = vec![];
        for zone in zones() {
            let directory = directory.join(name(zone));
            fs::create_dir_all(&directory)?;
            members.push(zone::start_etcd(network, &directory, zone, 0)?);
        }
        let mut stage = Stage {
            plan,
            directory: directory.to_owned(),
            zones: vec![],
            client: Client::new(Version::Http1),
            network: network.clone(),
            restores: 0,
        };
        for (zone, etcd) in zones().zip(members) {
            let directory = directory.join(name(zone));
            let plan = &stage.plan;
            let zone = Zone::start(network, &directory, zone, plan, etcd).await?;
            stage.zones.push(zone);
        }
        if stage.plan.registered == Registered::ForGood {
            let registered = stage.register().await;
            registered.with_context(|| stage.logs())?;
        }
        for zone in zones() {
            let there = eventually(PATIENCE * 2, "a gateway to serve", async || {
                let request = Request::get("/orders").home(name(0));
                let reply = stage.client.send(gateway(zone), &request).await?;
                reply.echo().map(drop)
            });
            there.await.with_context(|| stage.logs())?;
        }
        Ok(stage)
    }

    async fn register(&self) -> Result<()> {
        let registry = Registry::new(address(0, ADMIN_PORT));
        let mut records = vec![];
        for zone in zones() {
            let at = Instance::at(gateway(zone));
            records.push((InstanceName::new(GATEWAYS, name(zone), "one"), at));
            for (at, instance) in
                (0..self.plan.instances).map(|i| (i, zone::instance_name(zone, i)))
            {
                let record = Instance::at(address(zone, INSTANCE_PORT + u16::from(at)));
                records.push((InstanceName::new(SERVICE, name(zone), &instance), record));
            }
        }
        for (name, record) in records {
            eventually(PATIENCE, "an instance to be registered", async || {
                let put = registry.put(&name, &record, None).await?;
                ensure!(put.status.is_success(), "{}", put.text());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    pub fn zone(&self, zone: u8) -> &Zone {
        &self.zones[usize::from(zone)]
    }

    pub fn zone_mut(&mut self, zone: u8) -> &mut Zone {
        &mut self.zones[usize::from(zone)]
    }

    /// How many instances a zone has.
    pub fn instances(&self) -> std::ops::Range<u8> {
        0..self.plan.instances
    }

    /// The cells, in the view of a zone's control plane.
    pub fn cells(&self, of: u8) -> Cells {
        Cells::new(address(of, ADMIN_PORT))
    }

    /// Checks that a zone's control plane reports no fault.
    pub async fn healthy(&self, of: u8) -> Result<()> {
        for zone in zones() {
            let status = self.status(of, zone).await?;
            let all = u64::from(self.plan.instances);
            let well = status["state"] == "healthy" && status["healthy"] == all;
            ensure!(well, "the control plane of {of} says {status}");
        }
        Ok(())
    }

    /// Waits until every control plane counts this many healthy instances in a zone.
    pub async fn counts(&self, zone: u8, healthy: u64) -> Result<()> {
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

    /// The status of a zone, in the view of a zone's control plane.
    async fn status(&self, of: u8, zone: u8) -> Result<Value> {
        let to = address(of, ADMIN_PORT);
        let reply = self.client.send(to, &Request::get("/v1/zones")).await?;
        let all: Value = reply.json()?;
        let all = all["zones"].as_array().context("zones")?;
        let mut of_service = all.iter().filter(|status| {
            // If services are listed separately, the gateways are another one.
            let service = status["service"].as_str();
            service.is_none_or(|service| service == SERVICE)
        });
        let found = of_service.find(|status| status["zone"] == name(zone));
        Ok(found.context("no such zone")?.clone())
    }

    /// The zone of the etcd member that leads.
    pub async fn etcd_leader(&self) -> Result<u8> {
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

    /// Writes etcd's content to a file, by the member of a zone.
    pub fn save_snapshot(&self, of: u8, file: &Path) -> Result<()> {
        let endpoint = format!("http://{}", address(of, ETCD_PORT));
        let file = file.display().to_string();
        let arguments = ["--endpoints", &endpoint, "snapshot", "save", &file];
        let etcdctl = crate::paths::etcd_tool("etcdctl")?;
        self.network.hub().run(&etcdctl, &arguments).map(drop)
    }

    /// Replaces etcd by the content of a file, like an operator after a disaster: every member
    /// killed, every member with new data, and another cluster id.
    pub fn restore_snapshot(&mut self, file: &Path) -> Result<()> {
        self.restores += 1;
        for zone in &self.zones {
            zone.etcd.kill()?;
        }
        for zone in &mut self.zones {
            zone.restore_etcd(file, self.restores)?;
        }
        Ok(())
    }

    /// Drains the zone, or ends the drain, by the control plane of another zone.
    pub async fn drain(&self, zone: u8, drained: bool) -> Result<()> {
        let method = if drained { Method::PUT } else { Method::DELETE };
        let path = format!("/v1/intents/{}", name(zone));
        // The zone may be its region's last.
        let drain = json!({ "intent": "drain", "reason": "a test", "accept": ["TG7001"] });
        let request = Request::new(method, &path).json(&drain);
        let by = address((zone + 1) % ZONES.len() as u8, ADMIN_PORT);
        crate::registry::success(&self.client.send(by, &request).await?)
    }

    /// Makes the zone's agent drain an instance, or readmit it.
    pub async fn drain_instance(&self, zone: u8, at: u8, drained: bool) -> Result<()> {
        let method = if drained {
            Method::POST
        } else {
            Method::DELETE
        };
        let path = format!("/v1/drain/{SERVICE}/{}", zone::instance_name(zone, at));
        let to = address(zone, AGENT_PORT);
        let request = Request::new(method, &path).json(&json!({}));
        crate::registry::success(&self.client.send(to, &request).await?)
    }

    /// Whether the agent has seen the instance healthy, or not.
    pub async fn instance_is(&self, zone: u8, at: u8, health: &str) -> Result<()> {
        let registry = Registry::new(address(zone, ADMIN_PORT));
        let key = format!("{}/{}", name(zone), zone::instance_name(zone, at));
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

    /// The ends of all logs except those of the instances.
    pub fn logs(&self) -> String {
        let tails = self.zones.iter().flat_map(Zone::processes);
        let tails: Vec<String> = tails.map(Process::tail).collect();
        format!(
            "{}\nall logs are in {}",
            tails.join("\n"),
            self.directory.display()
        )
    }
}
