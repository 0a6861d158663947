//! The agent as a process: wires the parts, and ends in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::{Config, Listen, RegistryConfig};
use crate::instances::{Instances, Known, Table};
use crate::load::Reporter;
use crate::metrics::Metrics;
use crate::probe;
use crate::prober::Prober;
use crate::registrar::{EtcdTarget, HttpTarget, Registrar, Target};
use crate::server::Server;

/// How long draining may take to be written, and how long the lease may take to be revoked, while
/// the registry is away.
const REGISTRY_WITHIN: Duration = Duration::from_secs(3);
/// How long a drain takes at least: until the proxies have heard of it.
const DRAIN_MIN: Duration = Duration::from_secs(1);
/// How often load is reported while draining: an idle instance need not wait longer.
const DRAIN_REPORT_EVERY: Duration = Duration::from_millis(200);

/// How the agent is run.
#[derive(Clone, Copy, Debug)]
pub struct Options<'o> {
    /// The YAML file.
    pub config: &'o Path,
    /// Where the address listened on is written to, for a port chosen by the kernel.
    pub addresses_file: Option<&'o Path>,
    /// A signal ends the agent alone: its records stay until their lease ends, for the agent that
    /// follows it.
    pub keep: bool,
}

/// Makes a server of a port: the binary has the doors that all of Tidegate's ports have.
pub trait Serve: FnOnce(TcpListener, &Listen, Router) -> anyhow::Result<Serving> {}

impl<S: FnOnce(TcpListener, &Listen, Router) -> anyhow::Result<Serving>> Serve for S {}

/// A server. It ends when it is dropped.
pub type Serving = BoxFuture<'static, ()>;

/// Reads and checks a configuration file; the text is a summary.
pub fn check(path: &Path) -> anyhow::Result<String> {
    let config = read(path)?;
    if let RegistryConfig::Etcd(access) = &config.registry {
        access.try_files()?;
    }
    Ok(format!("good: {} instances", config.instances.len()))
}

fn read(path: &Path) -> anyhow::Result<Config> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
    Ok(Config::parse(&file, &text)?)
}

/// Runs until SIGTERM or SIGINT: then it has everything drain, waits, deregisters and returns, or
/// with [`Options::keep`] leaves everything to the agent that follows it. A second signal ends it
/// at once, with an error.
pub async fn run(options: Options<'_>, serve: impl Serve) -> anyhow::Result<()> {
    let Options {
        config: path,
        addresses_file,
        keep,
    } = options;
    let mut signals = Signals::new()?;
    let config = read(path)?;
    let target = open(&config.registry).await?;
    let listener = TcpListener::bind(config.listen.address)
        .await
        .with_context(|| format!("listen: cannot listen on {}", config.listen.address))?;
    let address = listener.local_addr()?;

    let metrics = Metrics::default();
    let count = i64::try_from(config.instances.len()).unwrap_or(i64::MAX);
    metrics.instances.set(count);
    let instances = Instances::new(table(&config));
    let ttl = config.lease_ttl;
    let mut registrar = Registrar::start(Arc::clone(&target), &instances, ttl, metrics.clone());
    let mut parts = JoinSet::new();
    for instance in &config.instances {
        let prober = Prober {
            key: instance.key.clone(),
            role: instance.role.clone(),
            probe: probe::build(&instance.probe),
            pace: instance.pace,
        };
        parts.spawn(prober.run(instances.clone(), metrics.clone()));
    }
    parts.spawn(reporter(&config, &instances, &metrics, config.report_every).run());
    let server = Server {
        zone: config.zone.as_str().into(),
        instances: instances.clone(),
        target,
        status: registrar.status(),
        metrics: Arc::new(metrics.registry()),
    };
    parts.spawn(serve(listener, &config.listen, server.router())?);

    info!(listen = %address, instances = count, "probing");
    if let Some(file) = addresses_file {
        write_address(file, address)?;
    }
    tokio::select! {
        () = signals.next() => {}
        // The records stay until the lease ends: another agent may take over until then.
        part = parts.join_next() => anyhow::bail!("a part of the agent ended: {part:?}"),
        ended = registrar.ended() => anyhow::bail!("the registrar ended: {ended:?}"),
    }
    if keep {
        info!(within = ?config.lease_ttl, "ended; the records stay for the next agent, as long as the lease lasts");
        if let Err(error) = registrar.hand_over(REGISTRY_WITHIN).await {
            warn!(%error, "the lease is not kept alive a last time: the next agent has less time");
        }
        return Ok(());
    }
    info!("draining; a second signal ends at once");
    parts.spawn(reporter(&config, &instances, &metrics, DRAIN_REPORT_EVERY).run());
    tokio::select! {
        ended = leave(&config, &instances, registrar) => ended,
        () = signals.next() => anyhow::bail!(
            "a second signal: ended without deregistering; the lease ends by itself within {:?}",
            config.lease_ttl
        ),
    }
}

async fn leave(config: &Config, instances: &Instances, registrar: Registrar) -> anyhow::Result<()> {
    instances.drain_all();
    if all_written(instances, &registrar).await {
        let drained = timeout(config.drain, async {
            sleep(DRAIN_MIN).await;
            idle(instances).await;
        });
        match drained.await {
            Ok(()) => info!("no request is in flight any more"),
            Err(_) => info!(after = ?config.drain, "the time to drain is over"),
        }
    } else {
        warn!(after = ?REGISTRY_WITHIN, "the registry has not accepted the draining records");
    }
    match registrar.deregister(REGISTRY_WITHIN).await {
        Ok(()) => info!("deregistered"),
        Err(error) => warn!(
            %error,
            "cannot deregister; the lease ends by itself within {:?}", config.lease_ttl
        ),
    }
    Ok(())
}

/// Waits until the registry matches the table; false if it takes too long.
async fn all_written(instances: &Instances, registrar: &Registrar) -> bool {
    let mut status = registrar.status();
    let written = status.wait_for(|status| status.matches(&instances.snapshot()));
    // Only whether it came: `wait_for` returns a lock that the registrar needs.
    matches!(timeout(REGISTRY_WITHIN, written).await, Ok(Ok(_)))
}

/// Waits until every instance reports that nothing is in flight; for ever where one reports
/// nothing.
async fn idle(instances: &Instances) {
    let mut table = instances.subscribe();
    let idle = table.wait_for(|table| {
        let mut loads = table.values().map(|known| known.load.in_flight);
        loads.all(|in_flight| in_flight == Some(0))
    });
    // An error: the table has no writer any more, so it is out of date.
    if idle.await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn table(config: &Config) -> Table {
    let instances = config.instances.iter();
    instances
        .map(|instance| (instance.key.clone(), Known::new(instance.record.clone())))
        .collect()
}

fn reporter(
    config: &Config,
    instances: &Instances,
    metrics: &Metrics,
    every: Duration,
) -> Reporter {
    let sources = config.instances.iter();
    Reporter {
        sources: sources
            .map(|instance| (instance.key.clone(), instance.load.clone()))
            .collect(),
        every,
        instances: instances.clone(),
        metrics: metrics.clone(),
    }
}

async fn open(config: &RegistryConfig) -> anyhow::Result<Arc<dyn Target>> {
    Ok(match config {
        RegistryConfig::Etcd(access) => {
            let target = EtcdTarget::new(access.follow(|_| {})?).await;
            Arc::new(target.context("store.etcd")?)
        }
        RegistryConfig::Http { bases, tls: None } => Arc::new(HttpTarget::new(bases.clone())),
        RegistryConfig::Http {
            bases,
            tls: Some(files),
        } => {
            let target = HttpTarget::with_tls(bases.clone(), files.clone());
            Arc::new(target.context("registry.tls")?)
        }
    })
}

/// Under another name first: a reader that waits for the file never reads half of it.
fn write_address(file: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let text = serde_json::json!({ "http": address }).to_string();
    let partial = file.with_extension("partial");
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
