//! The writes of a mesh to etcd while it is idle.

use std::time::Duration;

use anyhow::Result;
use e2e::figures::Figure;
use e2e::idle::Idle;
use e2e::workdir::Workdir;

/// The duration of the measurement.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "idle")]
pub(crate) struct Options {
    /// `idle`: the duration of the measurement, in seconds
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle_s: u64,
}

impl Options {
    /// Enough to see that it works.
    pub(crate) const SMOKE: Options = Options { idle_s: 2 };
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Figure>> {
    let workdir = Workdir::kept("idle")?;
    let idle = Idle::start(workdir.path()).await?;
    let written = idle.measure(Duration::from_secs(options.idle_s)).await?;
    written.print();
    Ok(written.figures())
}
