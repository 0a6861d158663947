//! The effect of faults on users: failed reads, and the time until the right zones serve the
//! traffic.

mod cases;
mod istio;
mod judge;
mod report;
mod round;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use e2e::netns::Network;
use e2e::workdir::Workdir;
use tokio::runtime;
use tokio::sync::oneshot;

use cases::Scene;
use e2e::figures::Figure;
use report::Report;

use crate::against::Against;

pub(crate) use cases::Case;

/// The cases, and the number of rounds.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "failover")]
pub(crate) struct Options {
    /// `failover`: only these cases
    #[arg(long = "case", value_enum, value_delimiter = ',')]
    cases: Vec<Case>,
    /// `failover`: how often each of the fast cases is repeated
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    faults: u32,
    /// `failover`: requests per second in all
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    rps: u32,
    /// `failover`: seconds for which all of etcd is stopped
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    etcd_outage_s: u64,
}

impl Options {
    /// Enough to see that it works: a fault of instances, and one of the control plane.
    pub(crate) fn smoke() -> Options {
        Options {
            cases: vec![Case::KillZone, Case::RestartControl],
            faults: 1,
            rps: 100,
            etcd_outage_s: 1,
        }
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Runs the benchmark. The whole run is in namespaces, so it has its own thread, which is in one of
/// them.
pub(crate) async fn run(options: &Options, against: Against) -> Result<Vec<Figure>> {
    let workdir = Workdir::kept("failover")?;
    let network = Network::new(workdir.path(), e2e::config::ZONES.len() as u8).await?;
    let network = Arc::new(network);
    let options = options.clone();
    let (done, outcome) = oneshot::channel();
    let inside = Arc::clone(&network);
    thread::spawn(move || {
        let measured = (|| {
            inside.hub().enter()?;
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(measure(&workdir, inside, &options, against))
        })();
        // The receiver is gone after an interruption.
        let _ = done.send(measured);
    });
    outcome
        .await
        .map_err(|_| anyhow!("the measuring thread has died"))?
}

async fn measure(
    workdir: &Workdir,
    network: Arc<Network>,
    options: &Options,
    against: Against,
) -> Result<Vec<Figure>> {
    let outage = Duration::from_secs(options.etcd_outage_s);
    let wanted = |case: &&Case| options.cases.is_empty() || options.cases.contains(case);
    let cases: Vec<Case> = Case::value_variants()
        .iter()
        .filter(wanted)
        .copied()
        .collect();
    println!("\nfailover: starting three zones in network namespaces");
    let ours = Scene::set(workdir.path(), network.clone(), options.rps, outage).await?;
    println!(
        "failover: {} requests a second by three gateways, all with the home that fails; zones come back at once here, with\n\
         no hold and no ramp, and proxies take instances back after a second",
        options.rps
    );
    let mut mesh = Mesh::Ours(Box::new(ours));
    let mut reports = mesh.measure(&cases, options).await?;
    let mut figures: Vec<Figure> = reports.iter().flat_map(Report::figures).collect();
    // Both at a time would be two loads on one machine.
    drop(mesh);
    if against == Against::Istio {
        println!("\nfailover: the same zones and load in an Istio mesh");
        let directory = workdir.path().join("istio");
        fs::create_dir_all(&directory)?;
        let istio = istio::Mesh::set(&directory, network, options.rps).await?;
        println!(
            "failover: each gateway is served by its own zone, so a third of the reads has the home that fails"
        );
        let cases: Vec<Case> = cases.into_iter().filter(|case| istio::has(*case)).collect();
        let mut mesh = Mesh::Istio(Box::new(istio));
        let of_istio = mesh.measure(&cases, options).await?;
        figures.extend(report::of_peer(&of_istio));
        reports.extend(of_istio);
    }
    println!("\n{}", Report::head());
    reports
        .iter()
        .for_each(|report| println!("{}", report.line()));
    println!("{}", Report::legend());
    Ok(figures)
}

/// A mesh under load.
enum Mesh {
    Ours(Box<Scene>),
    Istio(Box<istio::Mesh>),
}

impl Mesh {
    async fn measure(&mut self, cases: &[Case], options: &Options) -> Result<Vec<Report>> {
        let mut reports = vec![];
        for case in cases {
            let rounds = if case.is_fast() { options.faults } else { 1 };
            let mut verdicts = vec![];
            let mut failures = BTreeMap::<String, u64>::new();
            for round in 1..=rounds {
                let played = match self {
                    Mesh::Ours(scene) => scene.round(*case).await,
                    Mesh::Istio(mesh) => mesh.round(*case).await,
                };
                let (verdict, said) =
                    played.with_context(|| format!("{}, round {round}", case.name()))?;
                verdicts.push(verdict);
                for (words, count) in said {
                    *failures.entry(words).or_default() += count;
                }
            }
            let report = Report::new(self.prefix(), *case, &verdicts);
            // At once: all cases together take a while.
            println!("{}\n{}", Report::head(), report.line());
            for (words, count) in failures {
                println!("    {count} x {words}");
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// Of the names of its figures.
    fn prefix(&self) -> &'static str {
        match self {
            Mesh::Ours(_) => "failover",
            Mesh::Istio(_) => "peer_istio",
        }
    }
}
