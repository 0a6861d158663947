//! Attacks on the port for proxies of a real `tidegate serve`, while an honest proxy is connected.
//!
//! The honest proxy has a permanent stream. A record in etcd changes, and the time from just before
//! the put to the receipt of the endpoints is measured. In between a new proxy connects, and waits
//! for its first response. The floor is the same without an attack, at the beginning and at the
//! end.
//!
//! Attackers, server, etcd and honest proxies share one machine: a wait includes the attackers' own
//! computing time.

mod attacker;
mod catalogue;
mod frames;
mod report;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::config::{Config, StoreConfig};
use e2e::control_plane::ControlPlane;
use e2e::etcd::Etcd;
use e2e::figures::{Figure, machine_load};
use e2e::registry::{Instance, InstanceName};
use e2e::workdir::Workdir;
use etcd_client::KvClient;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::proxy;
use crate::usage::Usage;
use attacker::{Outcome, attack};
use catalogue::{ATTACKS, Attack, IDLE};

const SERVICE: &str = "orders";
/// The zone of the honest proxies and the attackers.
const ZONE: &str = "shanghai-a";
/// The pause between two updates, for other work of the machine.
const PAUSE: Duration = Duration::from_millis(20);
/// The time after which a wait is aborted.
const WAIT_MAX: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
#[group(id = "attacks")]
pub(crate) struct Options {
    /// `attacks`: the duration of each attack, in milliseconds
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(50..=600_000))]
    attack_ms: u64,
    /// `attacks`: only these; by default all of them
    #[arg(long, value_delimiter = ',')]
    attack: Vec<String>,
}

impl Options {
    /// Enough to see that it works.
    pub(crate) fn smoke() -> Options {
        Options {
            attack_ms: 100,
            attack: vec![],
        }
    }

    fn chosen(&self) -> Result<Vec<&'static Attack>> {
        let known = |name: &&String| ATTACKS.iter().any(|attack| attack.name == **name);
        if let Some(unknown) = self.attack.iter().find(|name| !known(name)) {
            let names = ATTACKS.each_ref().map(|attack| attack.name);
            anyhow::bail!("no attack `{unknown}`: there are {}", names.join(", "));
        }
        let is_chosen =
            |name: &str| self.attack.is_empty() || self.attack.iter().any(|it| it == name);
        let chosen = ATTACKS.iter().filter(|attack| is_chosen(attack.name));
        Ok(chosen.collect())
    }
}

/// Times in ms, memory in MB.
struct Seen {
    name: String,
    load: String,
    outcome: Outcome,
    updates: Vec<f64>,
    joins: Vec<f64>,
    /// Aborted waits, or streams that the server ended.
    failures: usize,
    rss_before: f64,
    rss_max: f64,
    cpu: Duration,
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Figure>> {
    let chosen = options.chosen()?;
    println!("\nattacks: starting etcd and the control plane");
    let mut stage = Stage::set().await?;
    let time = Duration::from_millis(options.attack_ms);
    println!("attacks: {} of them, {time:?} each", chosen.len());
    report::head();
    let mut all = Vec::new();
    let begin = [("idle", &IDLE)].into_iter();
    let attacks = chosen.into_iter().map(|attack| (attack.name, attack));
    for (name, attack) in begin.chain(attacks).chain([("idle_after", &IDLE)]) {
        let seen = stage.measure(name, attack, time).await;
        let seen = seen.with_context(|| format!("{name}\n{}", stage.tail()))?;
        report::line(&seen);
        all.push(seen);
    }
    report::foot(&all);
    Ok(all.iter().flat_map(report::figures).collect())
}

/// A mesh with one instance, whose port changes.
struct Stage {
    control_plane: ControlPlane,
    kv: KvClient,
    port: u16,
    _etcd: Etcd,
    _workdir: Workdir,
}

impl Stage {
    async fn set() -> Result<Stage> {
        let workdir = Workdir::temporary()?;
        let etcd = Etcd::start(workdir.path(), 1).await?;
        let service = json!({ "name": SERVICE, "routes": [{ "prefix": "/orders" }] });
        let store = StoreConfig::Etcd {
            endpoints: etcd.endpoints(),
        };
        let mut config = Config::new(store, vec![service]);
        config.bare = true;
        let mut stage = Stage {
            control_plane: ControlPlane::start(workdir.path(), config).await?,
            kv: etcd.client().await?.kv_client(),
            port: 8_080,
            _etcd: etcd,
            _workdir: workdir,
        };
        stage.change().await?;
        // The first one waits until the control plane knows the instance.
        Honest::join(stage.control_plane.xds()).await?;
        Ok(stage)
    }

    /// Moves the instance to another port.
    async fn change(&mut self) -> Result<()> {
        self.port = self.port.checked_add(1).unwrap_or(8_080);
        let at = SocketAddr::from(([10, 0, 0, 1], self.port));
        let key = InstanceName::new(SERVICE, ZONE, "instance").key();
        let record = serde_json::to_vec(&Instance::at(at))?;
        self.kv.put(key, record, None).await?;
        Ok(())
    }

    async fn measure(&mut self, name: &str, how: &'static Attack, time: Duration) -> Result<Seen> {
        let (xds, process) = (self.control_plane.xds(), self.control_plane.process());
        let usage = Usage::of(process.pid());
        let mut honest = Honest::join(xds).await?;
        let (rss_before, cpu_before) = (usage.rss_mb()?, usage.cpu()?);
        usage.forget_rss_max()?;
        let (mut updates, mut joins, mut failures) = (Vec::new(), Vec::new(), 0);
        let attacking = tokio::spawn(attack(how, xds, time));
        let end = Instant::now() + time;
        // At least one of each, however short the time is.
        while updates.is_empty() || Instant::now() < end {
            honest.forget();
            let begin = Instant::now();
            self.change().await?;
            match honest.next().await {
                Ok(at) => updates.push(ms(at.saturating_duration_since(begin))),
                Err(_) => {
                    failures += 1;
                    updates.push(ms(begin.elapsed()));
                    honest = Honest::join(xds).await?;
                }
            }
            let begin = Instant::now();
            let joined = Honest::join(xds).await;
            failures += usize::from(joined.is_err());
            joins.push(ms(begin.elapsed()));
            drop(joined);
            sleep(PAUSE).await;
        }
        let outcome = attacking.await??;
        let process = self.control_plane.process();
        ensure!(process.exit_status()?.is_none(), "the server has ended");
        Ok(Seen {
            name: name.to_owned(),
            load: machine_load()?,
            outcome,
            updates,
            joins,
            failures,
            rss_before,
            rss_max: usage.rss_max_mb()?,
            cpu: usage.cpu()?.saturating_sub(cpu_before),
        })
    }

    fn tail(&self) -> String {
        self.control_plane.process().tail()
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// An honest proxy. Dropping it ends its stream.
struct Honest {
    told: UnboundedReceiver<Instant>,
    _stream: JoinSet<Result<()>>,
}

impl Honest {
    /// Connects, and waits for the first response.
    async fn join(xds: SocketAddr) -> Result<Honest> {
        let (tell, told) = unbounded_channel();
        let mut stream = JoinSet::new();
        let cluster = format!("{SERVICE}/{ZONE}");
        stream.spawn(proxy::subscribe(xds, ZONE, cluster, tell));
        let mut honest = Honest {
            told,
            _stream: stream,
        };
        honest.next().await?;
        Ok(honest)
    }

    fn forget(&mut self) {
        while self.told.try_recv().is_ok() {}
    }

    /// The time of the next response.
    async fn next(&mut self) -> Result<Instant> {
        let told = timeout(WAIT_MAX, self.told.recv()).await;
        told.context("no response in time")?
            .context("the server has ended the stream")
    }
}
