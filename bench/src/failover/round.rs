//! The steps of a round that are the same in every mesh.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::stage::load::{Load, Sample};
use tokio::time::sleep;

use super::judge::{Belongs, Times, Verdict, judge};

/// How long everything must be normal to count as recovered.
const CALM: Duration = Duration::from_millis(700);

/// Watches for this time, and until all requests that were started meanwhile have ended: requests
/// that only the repair would rescue have failed. Returns the end of the time.
pub(super) async fn watch(load: &Load, time: Duration) -> Result<Instant> {
    sleep(time).await;
    let end = Instant::now();
    load.settled(end).await?;
    Ok(end)
}

/// The reads that begin from now on and end within [`CALM`].
pub(super) async fn reads(load: &Load) -> Vec<Sample> {
    let since = Instant::now();
    sleep(CALM).await;
    let samples = load.since(since).into_iter();
    samples.filter(|sample| sample.read).collect()
}

/// Judges a round in which everything is normal again, once all its requests have ended. Also
/// returns the texts of failures, with their number.
pub(super) async fn verdict(
    load: &Load,
    fault: Instant,
    mended: Instant,
    belongs: Belongs,
) -> Result<(Verdict, BTreeMap<String, u64>)> {
    let over = Instant::now();
    load.settled(over).await?;
    let times = Times {
        fault,
        mended,
        over,
    };
    let (samples, failures) = load.all();
    Ok((judge(&samples, times, belongs), failures))
}
