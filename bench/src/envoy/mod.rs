//! The cost of our configuration in an Envoy: the time and memory of its start, one change of an
//! instance, one change of a plan, and how long a change stops a worker. In the same run the floor
//! is measured: the same services as plain EDS clusters.
//!
//! Both come over ADS, from the same server's code. The floor's Envoy uses Envoy's defaults for
//! settings of our bootstrap (the initial stats and clusters); the floor's figures with our
//! bootstrap are shown as well. One additional service has real instances: a single connection
//! requests it continuously, to see changes and stops.

mod floor;
mod ours;
mod shape;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::config::region_of;
use e2e::envoy::Envoy;
use e2e::figures::{Figure, median, quantile};
use e2e::registry::InstanceName;
use e2e::upstream::Server;
use e2e::wait::eventually;
use e2e::workdir::Workdir;
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::probe::Prober;
use crate::usage::Usage;
use floor::{Floor, Per};
use ours::Ours;
use shape::{HERE, NEAR, PROBE, Places, Shape, host};

/// Only a lost change takes so long.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a worker is watched after each change, and without one.
const WATCH: Duration = Duration::from_millis(150);

#[derive(clap::Args)]
#[group(id = "envoy")]
pub(crate) struct Options {
    /// `envoy`: the number of services, each with 20 instances in each of three zones
    #[arg(long, value_delimiter = ',', default_values_t = [200, 2_000, 10_000],
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: Vec<u32>,
    /// `envoy`: the number of changes of each kind
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    envoy_changes: u32,
    /// `envoy`: worker threads
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
}

impl Options {
    /// Enough to see that it works.
    pub(crate) fn smoke() -> Options {
        Options {
            services: vec![10],
            envoy_changes: 2,
            workers: 1,
        }
    }
}

/// The compared contenders.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contender {
    Ours,
    Floor,
    FloorOfOurBootstrap,
    FloorPerService,
}

impl Contender {
    const ALL: [Contender; 4] = [
        Contender::Ours,
        Contender::Floor,
        Contender::FloorOfOurBootstrap,
        Contender::FloorPerService,
    ];

    const fn title(self) -> &'static str {
        match self {
            Contender::Ours => "ours",
            Contender::Floor => "floor: a cluster per service and zone",
            Contender::FloorOfOurBootstrap => "the same with our bootstrap",
            Contender::FloorPerService => "a cluster per service",
        }
    }

    /// Its part in the names of its figures.
    const fn name(self) -> &'static str {
        match self {
            Contender::Ours => "",
            Contender::Floor => "floor_",
            Contender::FloorOfOurBootstrap => "floor_our_bootstrap_",
            Contender::FloorPerService => "floor_per_service_",
        }
    }

    const fn id(self) -> &'static str {
        match self {
            Contender::Ours => "ours",
            Contender::Floor => "floor",
            Contender::FloorOfOurBootstrap => "floor-our-bootstrap",
            Contender::FloorPerService => "floor-per-service",
        }
    }
}

/// The control plane of the Envoy.
enum Teller {
    Ours(Box<Ours>),
    Floor(Box<Floor>),
}

impl Teller {
    fn xds(&self) -> SocketAddr {
        match self {
            Teller::Ours(ours) => ours.xds(),
            Teller::Floor(floor) => floor.xds(),
        }
    }

    /// The probe's instance of the local zone moves to another place.
    async fn place(&mut self, at: usize) -> Result<()> {
        match self {
            Teller::Ours(ours) => ours.place(at).await,
            Teller::Floor(floor) => floor.place(at),
        }
    }

    /// The probe's requests go to the other zone, or return.
    async fn plan(&mut self, away: bool) -> Result<()> {
        match self {
            Teller::Ours(ours) => ours.plan(away).await,
            Teller::Floor(floor) => floor.plan(away),
        }
    }
}

/// The observations of one contender.
#[derive(Default)]
struct Seen {
    clusters: u64,
    start_s: f64,
    start_cpu_s: f64,
    rss_mb: f64,
    moved_ms: Vec<f64>,
    planned_ms: Vec<f64>,
    /// The longest time between two answers: in each change of an instance, of a plan, and without
    /// any.
    moving_gap_ms: Vec<f64>,
    planning_gap_ms: Vec<f64>,
    calm_gap_ms: Vec<f64>,
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Figure>> {
    let mut figures = vec![];
    for services in &options.services {
        let case = case(*services, options).await;
        figures.extend(case.with_context(|| format!("with {services} services"))?);
    }
    Ok(figures)
}

async fn case(services: u32, options: &Options) -> Result<Vec<Figure>> {
    println!("\nenvoy: {services} services of 20 instances in each of three zones");
    let shape = Shape { services };
    let server = async |zone: &str, name: &str| {
        let name = InstanceName::new(PROBE, zone, name);
        Server::start(name, ([127, 0, 0, 1], 0).into()).await
    };
    let servers = [
        server(HERE, "one").await?,
        server(HERE, "other").await?,
        server(NEAR, "near").await?,
    ];
    let places = Places {
        here: [servers[0].address(), servers[1].address()],
        near: servers[2].address(),
    };
    let mut all = vec![];
    for contender in Contender::ALL {
        let workdir = Workdir::temporary()?;
        let seen = contend(contender, workdir.path(), shape, places, options).await;
        all.push((contender, seen.with_context(|| contender.title())?));
    }
    print(&all);
    Ok(figures(services, &all))
}

async fn contend(
    contender: Contender,
    directory: &Path,
    shape: Shape,
    places: Places,
    options: &Options,
) -> Result<Seen> {
    let mut teller = match contender {
        Contender::Ours => Teller::Ours(Box::new(Ours::start(directory, shape, places).await?)),
        Contender::Floor | Contender::FloorOfOurBootstrap => {
            Teller::Floor(Box::new(Floor::start(shape, places, Per::Zone).await?))
        }
        Contender::FloorPerService => {
            Teller::Floor(Box::new(Floor::start(shape, places, Per::Service).await?))
        }
    };
    let mut bootstrap = Bootstrap::read("gateway.yaml")?
        .node(contender.id(), region_of(HERE), HERE)?
        .cluster_at("tidegate", teller.xds())?;
    if matches!(contender, Contender::Floor | Contender::FloorPerService) {
        bootstrap = bootstrap.with("/deferred_stat_options", json!({}))?.with(
            "/cluster_manager/enable_deferred_cluster_creation",
            json!(false),
        )?;
    }
    let begin = Instant::now();
    let envoy = Envoy::start_with(directory, contender.id(), &bootstrap, options.workers).await?;
    let ingress = eventually(PATIENCE, "a listener", async || {
        let state = envoy.admin().state().await?;
        ensure!(state == "LIVE", "Envoy is {state}");
        envoy.admin().listener("ingress").await
    });
    let ingress = envoy.process().unless_it_ends(ingress).await?;
    let start_s = begin.elapsed().as_secs_f64();
    let usage = Usage::of(envoy.process().pid());
    let mut seen = Seen {
        clusters: envoy
            .admin()
            .stat("cluster_manager.active_clusters")
            .await?,
        start_s,
        start_cpu_s: usage.cpu()?.as_secs_f64(),
        rss_mb: usage.rss_mb()?,
        ..Seen::default()
    };
    let changed = change(&mut teller, ingress, options.envoy_changes, &mut seen).await;
    changed.with_context(|| envoy.process().tail())?;
    Ok(seen)
}

/// Moves the probe's instance, and its plan, and watches the effect at the client.
async fn change(
    teller: &mut Teller,
    ingress: SocketAddr,
    changes: u32,
    seen: &mut Seen,
) -> Result<()> {
    let mut prober = Prober::connect(ingress, &host(PROBE), "/")?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    // The first round is a warm-up.
    for round in 0..=changes {
        let warm = round > 0;
        let (calm, back) = watched(prober).await?;
        prober = back;
        if warm {
            seen.calm_gap_ms.push(ms(calm));
        }
        let at = (round as usize + 1) % 2;
        let steps = [
            (Step::Place(at), ["one", "other"][at]),
            (Step::Plan(true), "near"),
            (Step::Plan(false), ["one", "other"][at]),
        ];
        for (step, expected) in steps {
            let probing = spawn_blocking(move || (prober.until(expected), prober));
            let begin = Instant::now();
            match step {
                Step::Place(at) => teller.place(at).await?,
                Step::Plan(away) => teller.plan(away).await?,
            }
            let (found, back) = probing.await?;
            let found = found?;
            let (after, back) = watched(back).await?;
            prober = back;
            if !warm {
                continue;
            }
            let took = ms(found.at.saturating_duration_since(begin));
            let gap = ms(found.gap.max(after));
            let (times, gaps) = match step {
                Step::Place(_) => (&mut seen.moved_ms, &mut seen.moving_gap_ms),
                Step::Plan(_) => (&mut seen.planned_ms, &mut seen.planning_gap_ms),
            };
            times.push(took);
            gaps.push(gap);
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Step {
    Place(usize),
    Plan(bool),
}

async fn watched(mut prober: Prober) -> Result<(Duration, Prober)> {
    spawn_blocking(move || Ok((prober.for_a_while(WATCH)?, prober))).await?
}

fn print(all: &[(Contender, Seen)]) {
    println!(
        "\n{:40} {:>8} {:>8} {:>8} {:>8} {:>12} {:>12} {:>10} {:>10} {:>10}",
        "",
        "clusters",
        "start s",
        "cpu s",
        "RSS MB",
        "instance ms",
        "plan ms",
        "stop, inst.",
        "stop, plan",
        "calm"
    );
    for (contender, seen) in all {
        println!(
            "{:40} {:8} {:8.2} {:8.2} {:8.0} {:12.1} {:12.1} {:10.2} {:10.2} {:10.2}",
            contender.title(),
            seen.clusters,
            seen.start_s,
            seen.start_cpu_s,
            seen.rss_mb,
            median(&seen.moved_ms),
            median(&seen.planned_ms),
            median(&seen.moving_gap_ms),
            median(&seen.planning_gap_ms),
            median(&seen.calm_gap_ms),
        );
    }
    println!(
        "Ours gets a change from etcd, the floor directly. A stop is the longest time from one answer to the next, in ms; the \
         median of all changes."
    );
}

fn figures(services: u32, all: &[(Contender, Seen)]) -> Vec<Figure> {
    let mut figures = vec![];
    for (contender, seen) in all {
        let name = |what: &str| format!("envoy_{}{what}_{services}", contender.name());
        let changes = seen.planning_gap_ms.len();
        figures.extend([
            Figure::of(name("clusters"), "", seen.clusters as f64, 1),
            Figure::of(name("start_s"), "s", seen.start_s, 1),
            Figure::of(name("start_cpu_s"), "s", seen.start_cpu_s, 1),
            Figure::of(name("rss_mb"), "MB", seen.rss_mb, 1),
            Figure::quantile(name("instance_change_ms"), "ms", &seen.moved_ms, 0.5),
            Figure::quantile(name("plan_change_ms"), "ms", &seen.planned_ms, 0.5),
            Figure::of(
                name("worker_stall_ms"),
                "ms",
                median(&seen.planning_gap_ms),
                changes,
            ),
            Figure::of(
                name("worker_stall_ms_max"),
                "ms",
                quantile(&seen.planning_gap_ms, 1.0),
                changes,
            ),
        ]);
    }
    let of = |wanted: Contender| {
        let found = all.iter().find(|(contender, _)| *contender == wanted);
        found.map(|(_, seen)| seen)
    };
    let Some(ours) = of(Contender::Ours) else {
        return figures;
    };
    for (floor, suffix) in [
        (Contender::Floor, ""),
        (Contender::FloorOfOurBootstrap, "_our_bootstrap"),
    ] {
        let Some(floor) = of(floor) else { continue };
        let ratio = |what: &str, ours: f64, floor: f64| {
            let name = format!("envoy_{what}_ratio{suffix}_{services}");
            Figure::of(name, "ratio", ours / floor, 1)
        };
        figures.extend([
            ratio("start", ours.start_s, floor.start_s),
            ratio("start_cpu", ours.start_cpu_s, floor.start_cpu_s),
            ratio("rss", ours.rss_mb, floor.rss_mb),
        ]);
    }
    figures
}
