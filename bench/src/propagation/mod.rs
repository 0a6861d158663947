//! From a put in etcd to the first request with the new behaviour.
//!
//! One thread sends requests to the gateway continuously over one connection, and upstreams answer
//! with their names. The time from just before the put to the first answer of the right upstream is
//! measured. Two observers show the parts of that time: a watch on etcd, and an xDS stream with the
//! same endpoints as Envoy.

mod bystanders;
mod hosts;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::envoy::Options;
use e2e::mesh::{Builder, Mesh, Store};
use e2e::registry::{Health, Instance, InstanceName};
use e2e::upstream::Server;
use e2e::workdir::Workdir;
use etcd_client::KvClient;
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::against::Against;
use crate::probe::Prober;
use bystanders::Bystanders;
use e2e::figures::{Figure, machine_load, quantile};

const SERVICE: &str = "orders";
const HERE: &str = "shanghai-a";
const NEAR: &str = "shanghai-b";

/// The pause between two changes, so that late answers to one do not slow the next.
const PAUSE: Duration = Duration::from_millis(20);

/// A kind of change to the only instance of the local zone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Its record gets another address: endpoints change.
    Move,
    /// It becomes unhealthy: endpoints, routes and policy change, and requests go to the other zone
    /// of the region.
    Fail,
    /// It becomes healthy again, and requests return.
    Recover,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Move, Kind::Fail, Kind::Recover];

    const fn as_str(self) -> &'static str {
        match self {
            Kind::Move => "the instance moves to another address",
            Kind::Fail => "it becomes unhealthy, the next zone takes over",
            Kind::Recover => "it becomes healthy again",
        }
    }
}

/// The times of one change, all from the instant before the put; in milliseconds.
struct Sample {
    kind: Kind,
    acked: f64,
    watched: f64,
    pushed: f64,
    seen: f64,
    /// Requests until then, and the number of failed ones.
    probes: u32,
    failed: u32,
}

/// The mesh of the benchmark: the local zone's instance has two possible addresses, another zone
/// has a permanent one.
struct Stage {
    mesh: Mesh,
    places: [Server; 2],
    _near: Server,
    etcd: KvClient,
}

impl Stage {
    async fn set() -> Result<Stage> {
        let service = json!({ "name": SERVICE, "routes": [{ "prefix": "/orders" }] });
        let region = e2e::config::region_of(HERE);
        let mesh = Builder::new(Workdir::temporary()?)
            .store(Store::Etcd(1))
            .service(service)
            .envoy(Options::gateway(region, HERE))
            .start()
            .await?;
        let etcd = mesh.etcd.as_ref().context("a mesh without etcd")?;
        let mut stage = Stage {
            etcd: etcd.client().await?.kv_client(),
            places: [server(HERE, "one").await?, server(HERE, "other").await?],
            _near: server(NEAR, "near").await?,
            mesh,
        };
        let near = Instance::at(stage._near.address());
        stage.put(NEAR, &near).await?;
        stage
            .put(HERE, &Instance::at(stage.places[0].address()))
            .await?;
        let mesh = &stage.mesh;
        mesh.eventually(HERE, "the first answer", Request::get("/orders"), |reply| {
            let answered = reply.echo()?.instance;
            ensure!(answered == "one", "{answered} answered");
            Ok(())
        })
        .await?;
        Ok(stage)
    }

    /// Writes like an instance that only knows the keys.
    async fn put(&mut self, zone: &str, instance: &Instance) -> Result<()> {
        let key = InstanceName::new(SERVICE, zone, "instance").key();
        self.etcd
            .put(key, serde_json::to_vec(instance)?, None)
            .await?;
        Ok(())
    }
}

async fn server(zone: &str, instance: &str) -> Result<Server> {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Server::start(InstanceName::new(SERVICE, zone, instance), any_port).await
}

/// The number of changes at other hosts: each takes longer.
const CHANGES_AT_HOSTS_MAX: u32 = 60;

pub(crate) async fn run(changes: u32, against: Against) -> Result<Vec<Figure>> {
    let mut figures = owned(changes).await?;
    let changes = changes.min(CHANGES_AT_HOSTS_MAX);
    figures.extend(hosts::guest(changes).await?);
    if against == Against::Istio {
        figures.extend(hosts::istio(changes).await?);
    }
    Ok(figures)
}

async fn owned(changes: u32) -> Result<Vec<Figure>> {
    println!("\npropagation: starting etcd, the control plane and an Envoy");
    let mut stage = Stage::set().await?;
    let etcd = stage.mesh.etcd.as_ref().context("a mesh without etcd")?;
    let key = InstanceName::new(SERVICE, HERE, "instance").key();
    let cluster = format!("{SERVICE}/{HERE}");
    let xds = stage.mesh.control_plane.xds();
    let mut bystanders = Bystanders::start(etcd.client().await?, &key, xds, &cluster).await?;
    let mut prober = Prober::connect(stage.mesh.address(HERE)?, "bench", "/orders")?;

    println!("propagation: {changes} changes");
    let (mut at, mut samples) = (0, Vec::new());
    for turn in 0..changes as usize {
        tokio::time::sleep(PAUSE).await;
        let kind = Kind::ALL[turn % Kind::ALL.len()];
        if kind == Kind::Move {
            at = 1 - at;
        }
        let mut instance = Instance::at(stage.places[at].address());
        let mut expected = ["one", "other"][at];
        if kind == Kind::Fail {
            instance.health = Health::Unhealthy;
            expected = "near";
        }
        bystanders.forget();
        // Started before the put, so that requests are already flowing when the change is made.
        let probing = spawn_blocking(move || (prober.until(expected), prober));
        let begin = Instant::now();
        stage.put(HERE, &instance).await?;
        let acked = begin.elapsed();
        let (seen, back) = probing.await?;
        prober = back;
        let seen = seen.with_context(|| stage.mesh.logs())?;
        let since = |at: Instant| at.saturating_duration_since(begin).as_secs_f64() * 1e3;
        samples.push(Sample {
            kind,
            acked: acked.as_secs_f64() * 1e3,
            watched: since(bystanders.watched().await?),
            pushed: since(bystanders.pushed().await?),
            seen: since(seen.at),
            probes: seen.probes,
            failed: seen.failed,
        });
    }
    print(&samples, prober.interval_ms())?;
    Ok(figures(&samples))
}

fn all(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> Vec<f64> {
    samples.iter().map(of).collect()
}

/// A part of a change's way.
struct Part {
    name: &'static str,
    title: &'static str,
    of: fn(&Sample) -> f64,
}

/// The parts of the total time. The put's answer and the event leave etcd at the same time, so they
/// do not add up; the others do.
const PARTS: [Part; 4] = [
    Part {
        name: "put",
        title: "put until etcd acknowledges it",
        of: |sample| sample.acked,
    },
    Part {
        name: "store",
        title: "put until a watcher has the event",
        of: |sample| sample.watched,
    },
    Part {
        name: "control_plane",
        title: "from there until the endpoints are pushed",
        of: |sample| sample.pushed - sample.watched,
    },
    Part {
        name: "envoy",
        title: "from there until a request shows the change",
        of: |sample| sample.seen - sample.pushed,
    },
];

fn print(samples: &[Sample], interval_ms: f64) -> Result<()> {
    println!(
        "\n{:52} {:>7} {:>8} {:>8} {:>8}",
        "from a put in etcd to the first request, in ms", "changes", "p50", "p99", "max"
    );
    line("all", &all(samples, |s| s.seen));
    for kind in Kind::ALL {
        let of_kind = samples.iter().filter(|s| s.kind == kind);
        let values: Vec<f64> = of_kind.map(|s| s.seen).collect();
        line(&format!("  {}", kind.as_str()), &values);
    }
    println!("where it goes");
    for part in PARTS {
        line(&format!("  {}", part.title), &all(samples, part.of));
    }
    let failed: u32 = samples.iter().map(|s| s.failed).sum();
    let probes: u32 = samples.iter().map(|s| s.probes).sum();
    println!(
        "One request every {interval_ms:.2} ms, which is how exact this is; {failed} of {probes} failed meanwhile. etcd has one \
         member and\ndoes not wait for its disk. Load average now: {}.",
        machine_load()?
    );
    Ok(())
}

fn line(title: &str, values: &[f64]) {
    println!(
        "{title:52} {:7} {:8.2} {:8.2} {:8.2}",
        values.len(),
        quantile(values, 0.5),
        quantile(values, 0.99),
        quantile(values, 1.0),
    );
}

fn figures(samples: &[Sample]) -> Vec<Figure> {
    let seen = all(samples, |s| s.seen);
    let mut figures = vec![
        Figure::quantile("propagation_ms_p50", "ms", &seen, 0.5),
        Figure::quantile("propagation_ms_p99", "ms", &seen, 0.99),
    ];
    figures.extend(PARTS.map(|part| {
        let name = format!("propagation_{}_ms_p50", part.name);
        Figure::quantile(name, "ms", &all(samples, part.of), 0.5)
    }));
    figures
}
