//! The cost of Tidegate, and its speed, with a real Envoy and a real etcd. Prints figures, and
//! asserts none.

#![allow(
    clippy::disallowed_methods,
    reason = "a program of the harness: it uses the clock"
)]

mod against;
mod attacks;
mod envoy;
mod failover;
mod fence;
mod filter;
mod idle;

mod probe;
mod propagation;
mod proxy;
mod usage;
mod xds;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use e2e::figures::{self, Figure};
use tokio::signal::unix::{SignalKind, signal};

use against::Against;

/// Measures on this machine; other programs that run on it affect the figures.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// The benchmark to run; by default all of them
    #[arg(value_enum)]
    name: Option<Name>,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many changes `propagation` makes
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// How often `filter` and `fence` measure every variant
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// What `xds` compares with; with `istio`, `failover` and `propagation` also measure an Istio
    /// mesh
    #[arg(long, value_enum, default_value_t)]
    peer: Against,
    /// A short run of seconds, to see that it works: its figures are meaningless
    #[arg(long)]
    smoke: bool,
    /// List the benchmarks with their requirements, and exit
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    attacks: attacks::Options,
    #[command(flatten)]
    envoy: envoy::Options,
    #[command(flatten)]
    failover: failover::Options,
    #[command(flatten)]
    fence: fence::Options,
    #[command(flatten)]
    idle: idle::Options,
    #[command(flatten)]
    xds: xds::Options,
}

/// All benchmarks. `cargo xtask test smoke` runs each of them.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// From a put in etcd to the first request with the new behaviour
    Propagation,
    /// The cost of the filter for a request
    Filter,
    /// The effect on users when instances, zones, the control plane or etcd fail. Needs root and
    /// `ip`
    Failover,
    /// The time without a writer when a cell moves, and the cost of the fence for a write. Needs
    /// root and `ip`
    Fence,
    /// The writes of six idle replicas to etcd
    Idle,
    /// Thousands of simulated proxies on our control plane and on go-control-plane, and the cost of
    /// a change in a large world
    Xds,
    /// The cost of our configuration in an Envoy, compared with the same services as plain clusters
    Envoy,
    /// How long an honest proxy waits while others attack the port for proxies
    Attacks,
}

impl Name {
    /// Whether it needs root and `ip`, for network namespaces.
    fn needs_namespaces(self) -> bool {
        match self {
            Name::Failover | Name::Fence => true,
            Name::Propagation | Name::Filter | Name::Idle => false,
            Name::Xds | Name::Envoy | Name::Attacks => false,
        }
    }

    fn line(self) -> String {
        let value = self.to_possible_value().unwrap_or_default();
        let needs = match self.needs_namespaces() {
            true => "namespaces",
            false => "-",
        };
        let about = value.get_help().map(ToString::to_string);
        format!(
            "{:12} {needs:12} {}",
            value.get_name(),
            about.unwrap_or_default()
        )
    }
}

impl Arguments {
    /// The same benchmarks in a short form.
    fn smoked(self) -> Arguments {
        Arguments {
            changes: 6,
            attacks: attacks::Options::smoke(),
            envoy: envoy::Options::smoke(),
            failover: failover::Options::smoke(),
            fence: fence::Options::SMOKE,
            idle: idle::Options::SMOKE,
            xds: xds::Options::smoke(),
            ..self
        }
    }

    fn amount(&self) -> filter::Amount {
        match self.smoke {
            true => filter::Amount::SMOKE,
            false => filter::Amount::rounds(self.rounds),
        }
    }
}

/// The exit code of a program that Ctrl-C ended, as a shell reports it.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if arguments.list {
        let all = Name::value_variants().iter();
        all.for_each(|name| println!("{}", name.line()));
        return ExitCode::SUCCESS;
    }
    if let Some(instances) = arguments.xds.world_of {
        return match xds::measure_world(instances) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        };
    }
    if arguments.smoke {
        arguments = arguments.smoked();
    }
    // Dropping the unfinished run drops every child and file.
    let ended = tokio::select! {
        done = run(&arguments) => done.map(|()| ExitCode::SUCCESS),
        interrupted = interrupted() => interrupted.map(|()| ExitCode::from(INTERRUPTED)),
    };
    ended.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

async fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |name| arguments.name.is_none_or(|only| only == name);
    println!(
        "{} cores, load {}: figures of another machine differ, and a busy one blurs them",
        available_parallelism()?,
        figures::machine_load()?
    );
    let mut all: Vec<Figure> = Vec::new();
    if wanted(Name::Propagation) {
        all.extend(propagation::run(arguments.changes, arguments.peer).await?);
    }
    if wanted(Name::Filter) {
        all.extend(filter::run(arguments.amount()).await?);
    }
    if wanted(Name::Failover) {
        all.extend(failover::run(&arguments.failover, arguments.peer).await?);
    }
    if wanted(Name::Fence) {
        all.extend(fence::run(&arguments.fence, arguments.amount()).await?);
    }
    if wanted(Name::Idle) {
        all.extend(idle::run(&arguments.idle).await?);
    }
    if wanted(Name::Xds) {
        all.extend(xds::run(&arguments.xds, arguments.peer).await?);
    }
    if wanted(Name::Envoy) {
        all.extend(envoy::run(&arguments.envoy).await?);
    }
    if wanted(Name::Attacks) {
        all.extend(attacks::run(&arguments.attacks).await?);
    }
    match &arguments.json {
        Some(file) => figures::write(file, &all),
        None => Ok(()),
    }
}

/// Ready on Ctrl-C and on SIGTERM.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
