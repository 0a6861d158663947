//! What users notice when something fails: failed reads, and the time until the traffic is where it belongs.

mod cases;
mod judge;
mod load;
mod stage;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use e2e::netns::Network;
use e2e::workdir::Workdir;
use tokio::runtime;
use tokio::sync::oneshot;

use crate::figures::{Figure, quantile};
use cases::Scene;
use judge::Verdict;

pub(crate) use cases::Case;

/// What is measured, and how often.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// `failover`: only this case
    #[arg(long, value_enum)]
    case: Option<Case>,
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

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Runs it. Everything lives in namespaces, so that it takes a thread of its own, which is in one of them.
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
        // Nobody is there any more when this was interrupted.
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
    let mut scene = Scene::set(workdir.path(), network, options.rps, outage).await?;
    println!(
        "failover: {} requests a second by three gateways, all with the home that fails; zones come back at once here, with no hold and no ramp",
        options.rps
    );
    println!(
        "{:18} {:>6} {:>8} {:>7} {:>7} {:>8} {:>8} {:>7} {:>10}",
        "case", "rounds", "reads", "failed", "writes", "p50 ms", "p99 ms", "stray", "slowest ms"
    );
    let mut figures = vec![];
    for case in Case::value_variants() {
        if options.case.is_some_and(|only| only != *case) {
            continue;
        }
        let rounds = if case.is_fast() { options.faults } else { 1 };
        let mut verdicts = vec![];
        for round in 0..rounds {
            let verdict = scene.round(*case).await;
            verdicts.push(verdict.with_context(|| format!("{}, round {round}", case.name()))?);
        }
        figures.extend(report(*case, &verdicts));
    }
    Ok(figures)
}

fn report(case: Case, verdicts: &[Verdict]) -> Vec<Figure> {
    // What never switched is worse than anything that was measured.
    let ms = |verdict: &Verdict| {
        verdict
            .switch
            .map_or(f64::INFINITY, |s| s.as_secs_f64() * 1e3)
    };
    let switches: Vec<f64> = verdicts.iter().map(ms).collect();
    let sum = |count: fn(&Verdict) -> usize| verdicts.iter().map(count).sum::<usize>();
    let slowest = verdicts.iter().map(|verdict| verdict.slowest_read).max();
    let name = case.name();
    println!(
        "{name:18} {:>6} {:>8} {:>7} {:>7} {:>8.1} {:>8.1} {:>7} {:>10}",
        verdicts.len(),
        sum(|v| v.reads),
        sum(|v| v.failed_reads),
        sum(|v| v.failed_writes),
        quantile(&switches, 0.5),
        quantile(&switches, 0.99),
        sum(|v| v.stray),
        slowest.unwrap_or_default().as_millis(),
    );
    let count = |what: &str, count: usize| {
        Figure::count(format!("failover_{name}_{what}"), count, verdicts.len())
    };
    let quantile = |what: &str, share| {
        Figure::quantile(format!("failover_{name}_ms_{what}"), "ms", &switches, share)
    };
    vec![
        count("failed_reads", sum(|v| v.failed_reads)),
        count("failed_writes", sum(|v| v.failed_writes)),
        count("stray", sum(|v| v.stray)),
        quantile("p50", 0.5),
        quantile("p99", 0.99),
    ]
}
