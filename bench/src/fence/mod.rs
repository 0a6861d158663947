//! The cost of the fence: the time without a writer when a cell moves, and the processor time of a
//! write.

mod cost;
mod gaps;

use std::sync::Arc;
use std::thread;

use anyhow::{Result, anyhow};
use e2e::figures::Figure;
use e2e::netns::Network;
use e2e::workdir::Workdir;
use tokio::runtime;
use tokio::sync::oneshot;

use crate::filter::Amount;

/// How often each measurement is repeated.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "fence")]
pub(crate) struct Options {
    /// `fence`: planned moves
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    moves: u32,
    /// `fence`: how often the owner is cut off
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    cuts: u32,
    /// `fence`: how often the owner's control plane is killed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    kills: u32,
    /// `fence`: requests per second in all; gaps shorter than the time between two writes are
    /// invisible
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u32).range(30..=5_000))]
    fence_rps: u32,
}

impl Options {
    /// Enough to see that it works.
    pub(crate) const SMOKE: Options = Options {
        moves: 2,
        cuts: 1,
        kills: 1,
        fence_rps: 120,
    };
}

/// Runs the benchmark. The zones are in namespaces, so they have their own thread, which is in one
/// of them.
pub(crate) async fn run(options: &Options, amount: Amount) -> Result<Vec<Figure>> {
    let mut figures = zones(options).await?;
    figures.extend(cost::measure(amount).await?);
    Ok(figures)
}

async fn zones(options: &Options) -> Result<Vec<Figure>> {
    let workdir = Workdir::kept("fence")?;
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
            runtime.block_on(gaps::measure(workdir.path(), inside, &options))
        })();
        // The receiver is gone after an interruption.
        let _ = done.send(measured);
    });
    outcome
        .await
        .map_err(|_| anyhow!("the measuring thread has died"))?
}
