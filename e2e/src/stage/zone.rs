//! The processes of one zone.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{
    ADMIN_PORT, AGENT_PORT, ETCD_PORT, GATEWAY_PORT, Gateways, INSTANCE_PORT, Plan, Registered,
    SERVICE, XDS_PORT, address, etcd_endpoints, guests, name, zones,
};
use crate::bootstrap::Bootstrap;
use crate::config::ZONES;
use crate::netns::Network;
use crate::paths;
use crate::process::Process;
use crate::wait::{PATIENCE, eventually};

/// One zone's processes.
pub struct Zone {
    at: u8,
    directory: PathBuf,
    network: Arc<Network>,
    plan: Plan,
    wall_clock: Option<WallClock>,
    /// How often etcd's data was replaced.
    restores: u32,
    pub etcd: Process,
    pub control_plane: Process,
    pub instances: Vec<Process>,
    pub gateway: Process,
    agent: Option<Process>,
}

/// The wall clock of a zone's gateway and control plane.
pub struct WallClock {
    library: PathBuf,
    offset: PathBuf,
}

impl WallClock {
    fn new(directory: &Path) -> Result<WallClock> {
        let clock = WallClock {
            library: paths::wall_clock()?,
            offset: directory.join("wall-clock"),
        };
        fs::write(&clock.offset, 0_i64.to_ne_bytes())?;
        Ok(clock)
    }

    /// Sets its offset to the machine's clock, in seconds, which may be negative.
    pub fn step_to(&self, seconds: i64) -> Result<()> {
        let file = File::options().write(true).open(&self.offset)?;
        let offset = seconds * 1_000_000_000;
        // In place, and in one write: the file is mapped.
        file.write_all_at(&offset.to_ne_bytes(), 0)?;
        Ok(())
    }

    /// The program and arguments that run a program with this clock.
    fn wrap(&self, program: &Path, arguments: Vec<String>) -> (PathBuf, Vec<String>) {
        let variables = [
            format!("LD_PRELOAD={}", self.library.display()),
            format!("WALL_CLOCK_FILE={}", self.offset.display()),
            program.display().to_string(),
        ];
        let all = variables.into_iter().chain(arguments);
        (PathBuf::from("env"), all.collect())
    }
}

impl Zone {
    pub(super) async fn start(
        network: &Arc<Network>,
        directory: &Path,
        at: u8,
        plan: &Plan,
        etcd: Process,
    ) -> Result<Zone> {
        let wall_clock = plan.wall_clocks.then(|| WallClock::new(directory));
        let wall_clock = wall_clock.transpose()?;
        let instances = (0..plan.instances)
            .map(|instance| start_instance(network, directory, at, instance, plan.write_logs))
            .collect::<Result<_>>()?;
        let clock = wall_clock.as_ref();
        let control_plane = start_control_plane(network, directory, at, plan, clock)?;
        let agent = match plan.registered {
            Registered::ByAgents => Some(start_agent(network, directory, at, plan)?),
            Registered::ForGood => None,
        };
        let gateway = start_gateway(network, directory, at, plan, clock)?;
        Ok(Zone {
            at,
            directory: directory.to_owned(),
            network: network.clone(),
            plan: plan.clone(),
            wall_clock,
            restores: 0,
            etcd,
            control_plane,
            instances,
            gateway,
            agent,
        })
    }

    /// The clock to step, if the plan has one.
    pub fn wall_clock(&self) -> Result<&WallClock> {
        self.wall_clock.as_ref().context("no wall clock of its own")
    }

    /// The file of an instance's writes.
    pub fn write_log(&self, instance: u8) -> PathBuf {
        write_log(&self.directory, self.at, instance)
    }

    pub(super) fn processes(&self) -> impl Iterator<Item = &Process> {
        let all = [&self.etcd, &self.control_plane, &self.gateway];
        all.into_iter().chain(self.agent.as_ref())
    }

    /// Kills all instances, as fast as possible.
    pub fn kill_instances(&self) -> Result<()> {
        self.instances.iter().try_for_each(Process::kill)
    }

    /// Restarts an instance at its address.
    pub fn restart_instance(&mut self, instance: u8) -> Result<()> {
        let slot = &mut self.instances[usize::from(instance)];
        let _ = slot.kill();
        let logs = self.plan.write_logs;
        *slot = start_instance(&self.network, &self.directory, self.at, instance, logs)?;
        Ok(())
    }

    /// Asks an instance to shut down, which it does after its last request, and restarts it.
    pub async fn replace_instance(&mut self, instance: u8) -> Result<()> {
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

    pub fn restart_instances(&mut self) -> Result<()> {
        (0..self.plan.instances).try_for_each(|instance| self.restart_instance(instance))
    }

    /// Restarts it after a kill.
    pub fn restart_control_plane(&mut self) -> Result<()> {
        let clock = self.wall_clock.as_ref();
        self.control_plane =
            start_control_plane(&self.network, &self.directory, self.at, &self.plan, clock)?;
        Ok(())
    }

    /// Restarts it with another authority in its configuration, after it ended. The others keep
    /// theirs.
    pub fn restart_control_plane_with(&mut self, authority: Value) -> Result<()> {
        let plan = Plan {
            authority: Some(authority),
            ..self.plan.clone()
        };
        let clock = self.wall_clock.as_ref();
        self.control_plane =
            start_control_plane(&self.network, &self.directory, self.at, &plan, clock)?;
        Ok(())
    }

    /// Restarts it after a kill.
    pub fn restart_gateway(&mut self) -> Result<()> {
        let clock = self.wall_clock.as_ref();
        self.gateway = start_gateway(&self.network, &self.directory, self.at, &self.plan, clock)?;
        Ok(())
    }

    /// Restarts it with its data after a kill.
    pub fn restart_etcd(&mut self) -> Result<()> {
        self.etcd = start_etcd(&self.network, &self.directory, self.at, self.restores)?;
        Ok(())
    }

    /// Restarts it with the content of a snapshot after a kill. The earlier data stays in its
    /// directory.
    pub(super) fn restore_etcd(&mut self, snapshot: &Path, restores: u32) -> Result<()> {
        self.restores = restores;
        let data = etcd_data(&self.directory, restores);
        let [name, cluster, token, peer] = etcd_identity(self.at, restores);
        let etcdutl = paths::etcd_tool("etcdutl")?;
        let (snapshot, data) = (snapshot.display().to_string(), data.display().to_string());
        let mut arguments = vec!["snapshot", "restore", &snapshot, "--data-dir", &data];
        for (option, value) in [&name, &cluster, &token, &peer] {
            arguments.extend([*option, value.as_str()]);
        }
        self.network.zone(self.at)?.run(&etcdutl, &arguments)?;
        self.restart_etcd()
    }
}

pub(super) fn instance_name(zone: u8, at: u8) -> String {
    format!("{SERVICE}-{}-{}", name(zone), at + 1)
}

fn write_log(directory: &Path, zone: u8, at: u8) -> PathBuf {
    directory.join(format!("{}.writes", instance_name(zone, at)))
}

fn etcd_data(directory: &Path, restores: u32) -> PathBuf {
    directory.join(format!("etcd-{restores}"))
}

/// The identity of a member: the options of its start and its restore.
fn etcd_identity(at: u8, restores: u32) -> [(&'static str, String); 4] {
    let member = |zone: u8| format!("m{zone}=http://{}:2380", Network::address(zone));
    [
        ("--name", format!("m{at}")),
        (
            "--initial-cluster",
            zones().map(member).collect::<Vec<_>>().join(","),
        ),
        // Another token makes another cluster.
        ("--initial-cluster-token", format!("tidegate-{restores}")),
        (
            "--initial-advertise-peer-urls",
            format!("http://{}:2380", Network::address(at)),
        ),
    ]
}

pub(super) fn start_etcd(
    network: &Network,
    directory: &Path,
    at: u8,
    restores: u32,
) -> Result<Process> {
    let client = format!("http://{}", address(at, ETCD_PORT));
    let data = etcd_data(directory, restores).display().to_string();
    let peer = format!("http://{}:2380", Network::address(at));
    let arguments: Vec<String> = [
        ("--data-dir", data),
        ("--listen-client-urls", client.clone()),
        ("--advertise-client-urls", client),
        ("--listen-peer-urls", peer),
        ("--log-level", "warn".to_owned()),
    ]
    .into_iter()
    .chain(etcd_identity(at, restores))
    .flat_map(|(name, value)| [name.to_owned(), value])
    // The machine does not lose power meanwhile, and its disk may be slow.
    .chain(["--unsafe-no-fsync".to_owned()])
    .collect();
    network
        .zone(at)?
        .start(directory, "etcd", &paths::etcd()?, &arguments)
}

fn start_control_plane(
    network: &Network,
    directory: &Path,
    at: u8,
    plan: &Plan,
    clock: Option<&WallClock>,
) -> Result<Process> {
    let named = ZONES.map(|(name, region)| json!({ "name": name, "region": region }));
    let listener = json!({ "address": "0.0.0.0", "port": GATEWAY_PORT, "access_log": "" });
    let mut config = json!({
        "listen": {
            "xds": address(at, XDS_PORT),
            "admin": address(at, ADMIN_PORT),
            "plaintext": ["xds", "admin"],
        },
        "store": { "etcd": { "endpoints": etcd_endpoints(at) } },
        "state": { "path": directory.join("state") },
        "filter": { "path": paths::filter()? },
        "listeners": { "gateway": listener },
        "zones": named,
        "services": [plan.service],
    });
    let file = directory.join("tidegate.yaml");
    let mut arguments = vec![
        "serve".to_owned(),
        "--config".to_owned(),
        file.display().to_string(),
    ];
    if plan.gateways == Gateways::Guests {
        guests::configure(&mut config, directory);
    }
    if let Some(authority) = &plan.authority {
        config["authority"] = authority.clone();
        arguments.extend(["--zone".to_owned(), name(at).to_owned()]);
    }
    fs::write(&file, config.to_string())?;
    let program = paths::tidegate()?;
    let (program, arguments) = by(clock, program, arguments);
    network
        .zone(at)?
        .start(directory, "tidegate", &program, &arguments)
}

fn start_agent(network: &Network, directory: &Path, at: u8, plan: &Plan) -> Result<Process> {
    let instances: Vec<Value> = (0..plan.instances)
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
        "zone": name(at),
        "store": { "etcd": { "endpoints": etcd_endpoints(at) } },
        "listen": { "address": address(at, AGENT_PORT), "plaintext": true },
        "instances": instances,
    });
    let file = directory.join("agent.yaml");
    fs::write(&file, config.to_string())?;
    let arguments = ["agent", "--config", &file.display().to_string()].map(str::to_owned);
    network
        .zone(at)?
        .start(directory, "agent", &paths::tidegate()?, &arguments)
}

fn start_gateway(
    network: &Network,
    directory: &Path,
    at: u8,
    plan: &Plan,
    clock: Option<&WallClock>,
) -> Result<Process> {
    let bootstrap = match plan.gateways {
        Gateways::Owned => owned_gateway(at, plan)?,
        Gateways::Guests => guests::bootstrap(directory, at, plan)?,
    };
    let file = directory.join("gateway.json");
    bootstrap.write(&file)?;
    let workers = plan.workers.to_string();
    let arguments = [
        "-c",
        &file.display().to_string(),
        "--concurrency",
        &workers,
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]
    .map(str::to_owned);
    let (program, arguments) = by(clock, paths::envoy()?, arguments.into());
    network
        .zone(at)?
        .start(directory, "gateway", &program, &arguments)
}

fn owned_gateway(at: u8, plan: &Plan) -> Result<Bootstrap> {
    let (zone, region) = ZONES[usize::from(at)];
    let bootstrap = Bootstrap::read("gateway.yaml")?
        .node(&format!("gateway-{zone}"), region, zone)?
        .cluster_at("tidegate", address(at, XDS_PORT))?;
    match plan.registered {
        Registered::ByAgents => {
            let next = (at + 1) % ZONES.len() as u8;
            bootstrap.cluster_also_at("tidegate", address(next, XDS_PORT))
        }
        Registered::ForGood => Ok(bootstrap),
    }
}

/// A program with the zone's wall clock, or with the machine's.
fn by(
    clock: Option<&WallClock>,
    program: PathBuf,
    arguments: Vec<String>,
) -> (PathBuf, Vec<String>) {
    match clock {
        Some(clock) => clock.wrap(&program, arguments),
        None => (program, arguments),
    }
}

/// Starts an instance of [`SERVICE`] at [`instance`](super::instance), with its files in a
/// directory.
pub fn start_instance(
    network: &Network,
    directory: &Path,
    zone: u8,
    at: u8,
    log_writes: bool,
) -> Result<Process> {
    let name = instance_name(zone, at);
    let listen = address(zone, INSTANCE_PORT + u16::from(at)).to_string();
    let log = write_log(directory, zone, at).display().to_string();
    let mut options = vec![
        ["--service", SERVICE],
        ["--zone", super::name(zone)],
        ["--instance", &name],
        ["--listen", &listen],
    ];
    if log_writes {
        options.push(["--write-log", &log]);
    }
    let arguments = options.into_iter().flatten().map(str::to_owned);
    let arguments: Vec<String> = arguments.collect();
    network
        .zone(zone)?
        .start(directory, &name, &paths::upstream()?, &arguments)
}
