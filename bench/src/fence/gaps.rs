//! The time without a writer: when an operator moves a cell, and when its owner is cut off. And how
//! long an owner without its control plane continues to write.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::clock::monotonic_us;
use e2e::figures::{Figure, spread};
use e2e::history::Write;
use e2e::netns::Network;
use e2e::stage::load::{Load, Sample};
use e2e::stage::witness::{self, CELL, CELLS, Spans, Witness};
use e2e::stage::{Gateways, Plan, Registered, SERVICE, Stage, name, zones};
use e2e::wait::eventually;
use serde_json::json;

use super::Options;

const SPANS: Spans = Spans {
    session_ttl_ms: 3_000,
    grant_ttl_ms: 1_500,
    write_drain_ms: 1_000,
};
/// One of this many requests is a read.
const READ_EVERY: u64 = 10;
/// One of this many requests is for another cell than the measured one.
const OTHER_EVERY: u64 = 7;
/// How long any expected event may take.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long everything must be normal before the next measurement: sessions are renewed, gateways
/// hold grants again.
const CALM: Duration = Duration::from_millis(1_500);

struct Scene {
    // Dropped first: it uses the others.
    load: Load,
    witness: Witness,
    stage: Stage,
    network: Arc<Network>,
}

/// The writes of one epoch.
#[derive(Clone, Copy, Debug)]
struct Reign {
    zone: u8,
    first_us: u64,
    last_us: u64,
}

pub(super) async fn measure(
    directory: &Path,
    network: Arc<Network>,
    options: &Options,
) -> Result<Vec<Figure>> {
    println!("\nfence: starting three zones in network namespaces");
    let mut scene = Scene::set(directory, network, options.fence_rps).await?;
    let measured = scene.all(options).await;
    measured.with_context(|| scene.stage.logs())
}

fn next(gateway: u8, count: u64) -> Request {
    match count.is_multiple_of(READ_EVERY) {
        true => Request::get("/orders"),
        false => {
            let other = count.is_multiple_of(OTHER_EVERY);
            let others = CELLS.len() as u64 - 1;
            let cell = 1 + (count / OTHER_EVERY % others) as usize;
            witness::write(gateway, count, if other { cell } else { 0 }, 0)
        }
    }
}

impl Scene {
    async fn set(directory: &Path, network: Arc<Network>, rps: u32) -> Result<Scene> {
        let plan = Plan {
            service: json!({
                "name": SERVICE,
                "routes": [{ "prefix": "/orders" }],
                "fenced": true,
                "cell_key": witness::cell_key(),
            }),
            authority: Some(witness::authority(SPANS, "enforce")),
            instances: 1,
            workers: 1,
            registered: Registered::ForGood,
            gateways: Gateways::Owned,
            write_logs: true,
            wall_clocks: false,
        };
        let stage = Stage::set(directory, &network, plan).await?;
        Ok(Scene {
            load: Load::start(&network, rps, Arc::new(next)),
            witness: Witness::of(&stage),
            stage,
            network,
        })
    }

    async fn all(&mut self, options: &Options) -> Result<Vec<Figure>> {
        self.calm().await?;
        println!(
            "fence: {} requests a second by three gateways, nine of ten are writes; session {} ms, grant {} ms, drain {} ms",
            options.fence_rps, SPANS.session_ttl_ms, SPANS.grant_ttl_ms, SPANS.write_drain_ms
        );
        let mut moves = vec![];
        for round in 0..options.moves {
            let gap = self.planned((round % 2 + 1) as u8 % 2).await;
            moves.push(gap.with_context(|| format!("planned move {}", round + 1))?);
        }
        println!(
            "fence: no zone wrote for {} ms in a planned move",
            spread(&moves, 1)
        );
        let mut cuts = vec![];
        for round in 0..options.cuts {
            let gap = self.unplanned().await;
            cuts.push(gap.with_context(|| format!("cut {}", round + 1))?);
        }
        println!(
            "fence: {} ms from the cut to the first write elsewhere",
            spread(&cuts, 0)
        );
        let mut outlived = vec![];
        for round in 0..options.kills {
            let time = self.without_control_plane().await;
            outlived.push(time.with_context(|| format!("kill {}", round + 1))?);
        }
        println!(
            "fence: writes continued for {} ms without a control plane (a grant lasts {} ms)",
            spread(&outlived, 0),
            SPANS.grant_ttl_ms
        );
        let report = self.witness.judge();
        ensure!(report.violations() == 0, "the fence did not hold: {report}");
        println!("fence: {report}");
        let time = |name: &str, of: &[f64], share| Figure::quantile(name, "ms", of, share);
        Ok(vec![
            time("planned_move_gap_ms_p50", &moves, 0.5),
            time("planned_move_gap_ms_p99", &moves, 0.99),
            time("unplanned_move_ms_p50", &cuts, 0.5),
            time("unplanned_move_ms_p99", &cuts, 0.99),
            // The longest: there is a bound.
            time("grants_outlive_control_plane_ms", &outlived, 1.0),
        ])
    }

    /// Moves the cell; returns the time between the last write before and the first after, at the
    /// instances.
    async fn planned(&mut self, to: u8) -> Result<f64> {
        let (before, _) = self.now().await?;
        let by = self.stage.cells(2);
        by.move_to(CELL, name(to), "measured").await?;
        self.calm().await?;
        let (after, reign) = self.now().await?;
        ensure!(reign.zone == to, "it is written to in {}", name(reign.zone));
        let reigns = self.reigns();
        let last_us = reigns.get(&before).context("no writes before")?.last_us;
        let first_us = reigns.get(&after).context("no writes after")?.first_us;
        ensure!(first_us > last_us, "no owner was removed");
        Ok((first_us - last_us) as f64 / 1e3)
    }

    /// Cuts the owner off; returns the time until the first write elsewhere.
    async fn unplanned(&mut self) -> Result<f64> {
        let (before, owner) = self.now().await?;
        let cut_us = monotonic_us();
        self.network.link(owner.zone, false)?;
        let moved = self.until_another(before).await;
        self.network.link(owner.zone, true)?;
        let first = moved?;
        ensure!(first.zone != owner.zone, "written to where it was cut off");
        self.calm().await?;
        Ok((first.first_us - cut_us) as f64 / 1e3)
    }

    /// Kills the owner's control plane permanently; returns how long its zone continued to write.
    async fn without_control_plane(&mut self) -> Result<f64> {
        let (before, owner) = self.now().await?;
        let killed_us = monotonic_us();
        self.stage.zone(owner.zone).control_plane.kill()?;
        let moved = self.until_another(before).await;
        self.stage.zone_mut(owner.zone).restart_control_plane()?;
        moved?;
        self.calm().await?;
        let last_us = self.reigns().get(&before).map_or(0, |reign| reign.last_us);
        Ok(last_us.saturating_sub(killed_us) as f64 / 1e3)
    }

    /// Waits for a write of a later epoch.
    async fn until_another(&mut self, before: u64) -> Result<Reign> {
        let witness = &mut self.witness;
        eventually(PATIENCE, "writes elsewhere", async || {
            witness.look().await?;
            let reigns = reigns(witness);
            let later = reigns.range(before + 1..).next();
            let (_, reign) = later.context("no write of a later epoch")?;
            Ok(*reign)
        })
        .await
    }

    /// Waits until every gateway has its writes admitted for a while. No read may have failed since
    /// the last call.
    async fn calm(&mut self) -> Result<()> {
        eventually(PATIENCE, "calm", async || {
            let since = Instant::now();
            tokio::time::sleep(CALM).await;
            let samples = self.load.since(since);
            for gateway in zones() {
                let of = |s: &&Sample| s.gateway == gateway && !s.read;
                let writes: Vec<&Sample> = samples.iter().filter(of).collect();
                let failed = writes.iter().filter(|sample| sample.failed()).count();
                ensure!(
                    failed == 0 && !writes.is_empty(),
                    "{failed} of {} writes by {}: {:?}",
                    writes.len(),
                    name(gateway),
                    self.load.all().1
                );
            }
            Ok(())
        })
        .await?;
        let (samples, said) = self.load.all();
        let reads = samples.iter().filter(|s| s.read && s.failed()).count();
        ensure!(reads == 0, "{reads} reads failed: {said:?}");
        self.load.forget();
        Ok(())
    }

    /// The newest epoch, and its writes.
    async fn now(&mut self) -> Result<(u64, Reign)> {
        self.witness.look().await?;
        let reigns = self.reigns();
        let newest = reigns.last_key_value().context("no writes")?;
        Ok((*newest.0, *newest.1))
    }

    fn reigns(&self) -> BTreeMap<u64, Reign> {
        reigns(&self.witness)
    }
}

/// The writes to [`CELL`] by epoch.
fn reigns(witness: &Witness) -> BTreeMap<u64, Reign> {
    let mut reigns: BTreeMap<u64, Reign> = BTreeMap::new();
    let of_cell = |write: &&Write| write.cell.as_deref() == Some(CELL);
    for write in witness.writes().iter().filter(of_cell) {
        let zone = zones().find(|zone| name(*zone) == &*write.zone);
        let (Some(epoch), Some(zone)) = (write.epoch, zone) else {
            continue;
        };
        let begin_us = write.begin_us;
        let reign = reigns.entry(epoch).or_insert(Reign {
            zone,
            first_us: begin_us,
            last_us: begin_us,
        });
        reign.first_us = reign.first_us.min(begin_us);
        reign.last_us = reign.last_us.max(begin_us);
    }
    reigns
}
