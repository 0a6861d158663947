//! The effect of faults on users: failed reads, and the time until the right zones serve the
//! traffic.

mod cases;
mod judge;
mod report;

use std::collections::BTreeMap;
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
pub(crate) async fn run(options: &Options) -> Result<Vec<Figure>> {
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
            runtime.block_on(measure(&workdir, inside, &options))
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
) -> Result<Vec<Figure>> {
    let outage = Duration::from_secs(options.etcd_outage_s);
    println!("\nfailover: starting three zones in network namespaces");
    let mut scene = Scene::set(workdir.path(), network, options.rps, outage).await?;
    println!(
        "failover: {} requests a second by three gateways, all with the home that fails; zones come back at once here, with\n\
         no hold and no ramp, and proxies take instances back after a second",
        options.rps
    );
    let wanted = |case: &&Case| options.cases.is_empty() || options.cases.contains(case);
    let mut reports = vec![];
    for case in Case::value_variants().iter().filter(wanted) {
        let rounds = if case.is_fast() { options.faults } else { 1 };
        let mut verdicts = vec![];
        let mut failures = BTreeMap::<String, u64>::new();
        for round in 1..=rounds {
            let played = scene.round(*case).await;
            let (verdict, said) =
                played.with_context(|| format!("{}, round {round}", case.name()))?;
            verdicts.push(verdict);
            for (words, count) in said {
                *failures.entry(words).or_default() += count;
            }
        }
        let report = Report::new(*case, &verdicts);
        // At once: all cases together take a while.
        println!("{}\n{}", Report::head(), report.line());
        for (words, count) in failures {
            println!("    {count} x {words}");
        }
        reports.push(report);
    }
    println!("\n{}", Report::head());
    reports
        .iter()
        .for_each(|report| println!("{}", report.line()));
    println!("{}", Report::legend());
    Ok(reports.iter().flat_map(Report::figures).collect())
}
