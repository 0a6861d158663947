//! Three zones under load, and their faults.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::clock::monotonic_us;
use e2e::history::Report;
use e2e::netns::Network;
use e2e::process::Process;
use e2e::stage::load::{Load, Sample};
use e2e::stage::witness::{self, CELLS, Spans, Witness};
use e2e::stage::{Gateways, Plan, Registered, SERVICE, Stage, name, zones};
use e2e::wait::eventually;
use futures::future::join_all;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::attacks::Attacks;
use super::faults::{Fault, Kind};

/// Short, so that rounds are short.
pub(crate) const SPANS: Spans = Spans {
    session_ttl_ms: 2_000,
    grant_ttl_ms: 1_000,
    write_drain_ms: 500,
};
/// Other spans, which contradict the agreed terms: a replica with grants of these would write
/// beyond the others' wait, or take over before the others have stopped.
const SHORTER: Spans = Spans {
    session_ttl_ms: 2_000,
    grant_ttl_ms: 400,
    write_drain_ms: 200,
};
const LONGER: Spans = Spans {
    session_ttl_ms: 10_000,
    grant_ttl_ms: 5_000,
    write_drain_ms: 5_000,
};
/// Longer than a session lives and settles: afterwards the cell has moved.
pub(crate) const LONG_MS: u64 = 3_500;

/// One of this many requests is a read, and one of this many writes is slow.
const READ_EVERY: u64 = 3;
const SLOW_EVERY: u64 = 4;
/// One of this many slow writes has a client that disconnects.
const GIVES_UP_EVERY: u64 = 2;
/// How long it may take until all cells are writable again after the fault. A restored etcd has to
/// be detected first.
const WRITABLE_WITHIN: Duration = Duration::from_secs(45);
/// Every gateway must have this many writes in a row admitted.
const ADMITTED_IN_A_ROW: usize = 5;
/// How long an operator waits for a move that may be impossible.
const MOVE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a control plane may take to shut down.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How long an operator retries a command that must be possible.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(45);

/// The outcome of one round.
pub(crate) struct Outcome {
    /// From the end of the fault until every gateway had writes admitted continuously.
    pub(crate) writable: Duration,
    pub(crate) admitted: usize,
    pub(crate) refused: usize,
    pub(crate) reads: usize,
    /// Failed reads at a gateway that was alive.
    pub(crate) failed_reads: usize,
    /// The texts of failures, and the number of each.
    pub(crate) said: BTreeMap<String, u64>,
    /// The owners of the cells now.
    pub(crate) owners: String,
    /// Cells that moved without a fault or an operator's command.
    pub(crate) strayed: usize,
    /// The report on everything so far.
    pub(crate) report: Report,
}

/// A gateway is not available from the first time until it serves again after the second.
struct Blind {
    gateway: u8,
    from: Instant,
    back: Instant,
}

pub(crate) struct Scene {
    // Dropped first: it uses the others.
    load: Load,
    witness: Witness,
    stage: Stage,
    network: Arc<Network>,
    snapshot: PathBuf,
    begun_us: u64,
    enforcement: String,
    attacks: Option<Attacks>,
}

/// A third of the requests are reads; some of the writes take up to half of the time that a write
/// may live.
fn next(gateway: u8, count: u64) -> Request {
    if count.is_multiple_of(READ_EVERY) {
        return Request::get("/orders");
    }
    let turn = count / READ_EVERY;
    let slow = turn.is_multiple_of(SLOW_EVERY);
    let ms = 20 + count * 37 % (SPANS.write_drain_ms / 2 - 20);
    let cell = turn as usize % CELLS.len();
    let write = witness::write(gateway, count, cell, if slow { ms } else { 0 });
    // The instance continues with it.
    let gives_up = slow && (turn / SLOW_EVERY).is_multiple_of(GIVES_UP_EVERY);
    match gives_up {
        true => write.patience(Duration::from_millis(ms / 3)),
        false => write,
    }
}

impl Scene {
    pub(crate) async fn set(
        directory: &Path,
        network: Arc<Network>,
        rps: u32,
        enforcement: &str,
        gateways: Gateways,
    ) -> Result<Scene> {
        let plan = Plan {
            service: json!({
                "name": SERVICE,
                "routes": [{ "prefix": "/orders" }],
                "fenced": true,
                "cell_key": witness::cell_key(),
                "failover": { "hold_s": 0, "hold_max_s": 0, "ramp": { "percent": [], "over_s": 0 } },
            }),
            authority: Some(witness::authority(SPANS, enforcement)),
            instances: 2,
            workers: 2,
            registered: Registered::ForGood,
            gateways,
            write_logs: true,
            wall_clocks: true,
        };
        let begun_us = monotonic_us();
        let stage = Stage::set(directory, &network, plan).await?;
        let mut scene = Scene {
            load: Load::start(&network, rps, Arc::new(next)),
            witness: Witness::of(&stage),
            stage,
            network,
            snapshot: directory.join("snapshot"),
            begun_us,
            enforcement: enforcement.to_owned(),
            attacks: None,
        };
        let ready = scene.writable(Instant::now()).await;
        ready
            .context("at the start")
            .with_context(|| scene.logs())?;
        scene.witness.look().await?;
        Ok(scene)
    }

    /// Runs an attacker during everything that follows.
    pub(crate) fn attack(&mut self, seed: u64) -> Result<()> {
        self.attacks = Some(Attacks::begin(seed)?);
        Ok(())
    }

    /// The attacks, if there is an attacker.
    pub(crate) fn attacks(&self) -> Option<&Attacks> {
        self.attacks.as_ref()
    }

    /// A fault, its end, and the verdict on everything so far.
    pub(crate) async fn round(&mut self, fault: Fault) -> Result<Outcome> {
        let played = self.play(fault).await;
        played.with_context(|| self.logs())
    }

    async fn play(&mut self, fault: Fault) -> Result<Outcome> {
        self.load.forget();
        let before = self.witness.writes().len();
        let owners = self.witness.owners();
        let blind = self.strike(fault).await.context("the fault")?;
        let healed = Instant::now();
        let writable = self.writable(healed).await?;
        self.load.settled(Instant::now()).await?;
        if self.attacks.is_some() {
            self.nothing_stolen().await?;
        }
        let (samples, said) = self.load.all();
        self.witness.look().await?;
        let reads = samples.iter().filter(|sample| sample.read);
        let failed = reads
            .clone()
            .filter(|read| read.failed() && !blind.iter().any(|b| b.excuses(read, &samples)));
        let refused = samples.iter().filter(|s| !s.read && s.failed());
        Ok(Outcome {
            writable,
            admitted: self.witness.writes().len() - before,
            refused: refused.count(),
            reads: reads.clone().count(),
            failed_reads: failed.count(),
            said,
            owners: self.witness.newest(),
            strayed: strayed(fault, &owners, &self.witness.owners()),
            report: self.witness.judge(),
        })
    }

    /// Causes the fault and ends it. Returns the gateway that was unavailable meanwhile, if any.
    async fn strike(&mut self, fault: Fault) -> Result<Option<Blind>> {
        let zone = fault.zone;
        let from = Instant::now();
        match fault.kind {
            Kind::CutZone => {
                self.network.link(zone, false)?;
                self.last(fault).await;
                self.network.link(zone, true)?;
            }
            Kind::MuteZone => self.lose(fault, others(zone).map(|to| (zone, to))).await?,
            Kind::DeafenZone => self.lose(fault, others(zone).map(|by| (by, zone))).await?,
            Kind::LosePair => self.lose(fault, [(zone, fault.other)].into_iter()).await?,
            Kind::KillGateway => {
                self.stage.zone(zone).gateway.kill()?;
                self.last(fault).await;
                self.stage.zone_mut(zone).restart_gateway()?;
                return self.serves_again(zone, from).await.map(Some);
            }
            Kind::StopGateway => {
                self.stage.zone(zone).gateway.pause()?;
                let begin_us = monotonic_us();
                self.last(fault).await;
                self.witness.paused(zone, begin_us);
                self.stage.zone(zone).gateway.resume()?;
                return self.serves_again(zone, from).await.map(Some);
            }
            Kind::KillControl => {
                self.stage.zone(zone).control_plane.kill()?;
                self.last(fault).await;
                self.stage.zone_mut(zone).restart_control_plane()?;
            }
            Kind::StopControl => {
                self.stop(fault, |stage| &stage.zone(zone).control_plane)
                    .await?;
            }
            Kind::KillMember => {
                self.stage.zone(zone).etcd.kill()?;
                self.last(fault).await;
                self.stage.zone_mut(zone).restart_etcd()?;
            }
            Kind::StopMember => self.stop(fault, |stage| &stage.zone(zone).etcd).await?,
            Kind::StepClock => {
                self.stage.zone(zone).wall_clock()?.step_to(fault.step_s)?;
                self.last(fault).await;
                self.stage.zone(zone).wall_clock()?.step_to(0)?;
            }
            Kind::Restore => self.restore(fault.cell(), zone).await?,
            Kind::RestartControl => {
                let control_plane = &self.stage.zone(zone).control_plane;
                control_plane.terminate(STOP_PATIENCE).await?;
                self.last(fault).await;
                self.stage.zone_mut(zone).restart_control_plane()?;
            }
            Kind::OtherTerms => {
                let spans = if fault.step_s < 0 { SHORTER } else { LONGER };
                let control_plane = &self.stage.zone(zone).control_plane;
                control_plane.terminate(STOP_PATIENCE).await?;
                let authority = witness::authority(spans, &self.enforcement);
                let zone = self.stage.zone_mut(zone);
                zone.restart_control_plane_with(authority)?;
                self.last(fault).await;
                let zone = self.stage.zone_mut(fault.zone);
                zone.control_plane.terminate(STOP_PATIENCE).await?;
                zone.restart_control_plane()?;
            }
            Kind::Move => self.move_for_sure(fault.cell(), zone).await?,
            Kind::Override => self.override_for_sure(&[fault.cell()], zone).await?,
            Kind::OverrideAll => {
                let all = CELLS.map(|(cell, ..)| cell);
                self.override_for_sure(&all, zone).await?;
            }
        }
        Ok(None)
    }

    /// Waits for the duration of the fault, while the operator acts.
    async fn last(&self, fault: Fault) {
        let end = tokio::time::Instant::now() + Duration::from_millis(fault.ms);
        if let Some(to) = fault.moved_to {
            sleep(Duration::from_millis(fault.ms / 3)).await;
            // By any replica; the move may be impossible now, which is intended.
            let cells = self.stage.cells(fault.other);
            let moved = cells.move_to(fault.cell(), name(to), "torture");
            let _ = timeout(MOVE_PATIENCE, moved).await;
        }
        tokio::time::sleep_until(end).await;
    }

    async fn lose(&self, fault: Fault, ways: impl Iterator<Item = (u8, u8)> + Clone) -> Result<()> {
        for (from, to) in ways.clone() {
            self.network.lose(from, to, true)?;
        }
        self.last(fault).await;
        for (from, to) in ways {
            self.network.lose(from, to, false)?;
        }
        Ok(())
    }

    async fn stop(&self, fault: Fault, which: impl Fn(&Stage) -> &Process) -> Result<()> {
        which(&self.stage).pause()?;
        self.last(fault).await;
        which(&self.stage).resume()
    }

    /// Waits until a gateway serves reads again; from then on it must not fail.
    async fn serves_again(&self, gateway: u8, from: Instant) -> Result<Blind> {
        let back = Instant::now();
        eventually(WRITABLE_WITHIN, "a gateway to serve again", async || {
            let samples = self.load.since(back);
            let serves = |s: &Sample| s.gateway == gateway && s.read && !s.failed();
            ensure!(samples.iter().any(serves), "no read of {}", samples.len());
            Ok(())
        })
        .await?;
        Ok(Blind {
            gateway,
            from,
            back,
        })
    }

    async fn move_for_sure(&self, moved: &str, zone: u8) -> Result<()> {
        let mut by = zones().cycle();
        eventually(OPERATOR_PATIENCE, "a planned move", async || {
            let cells = self.stage.cells(by.next().unwrap_or(zone));
            if cells.get(moved).await?.owners != [name(zone)] {
                cells.move_to(moved, name(zone), "torture").await?;
            }
            let cell = cells.get(moved).await?;
            ensure!(cell.is_active_in(name(zone)), "{cell:?}");
            Ok(())
        })
        .await
    }

    /// Overrides all cells at once, by different replicas.
    async fn override_for_sure(&self, moved: &[&str], zone: u8) -> Result<()> {
        let mut open: Vec<&str> = moved.to_vec();
        let mut by = zones().cycle();
        eventually(OPERATOR_PATIENCE, "overrides", async || {
            let overrides = open.iter().map(|cell| {
                let cells = self.stage.cells(by.next().unwrap_or(zone));
                async move { cells.override_to(cell, name(zone), "torture").await }
            });
            let outcomes = join_all(overrides).await;
            let mut failed = outcomes.iter();
            open.retain(|_| failed.next().is_some_and(Result::is_err));
            outcomes.into_iter().collect()
        })
        .await
    }

    /// The events after the snapshot are lost, including a move of the cell.
    async fn restore(&mut self, moved: &str, zone: u8) -> Result<()> {
        let _ = std::fs::remove_file(&self.snapshot);
        self.stage.save_snapshot(zone, &self.snapshot)?;
        for to in others(zone) {
            self.move_for_sure(moved, to).await?;
        }
        // Reads the content of the store until now, which would otherwise be lost.
        self.witness.look().await?;
        self.stage.restore_snapshot(&self.snapshot)?;
        let mut confirmed = BTreeSet::new();
        eventually(
            OPERATOR_PATIENCE,
            "the restored etcd to be confirmed",
            async || {
                for by in zones() {
                    if !confirmed.contains(&by) {
                        self.stage.cells(by).confirm().await?;
                        confirmed.insert(by);
                    }
                }
                Ok(())
            },
        )
        .await?;
        self.override_for_sure(&CELLS.map(|(cell, ..)| cell), zone)
            .await
    }

    /// Waits until every gateway has its writes to every cell admitted, by any zone, continuously.
    /// Returns the longest time of a gateway from `healed` to its first one.
    async fn writable(&self, healed: Instant) -> Result<Duration> {
        eventually(WRITABLE_WITHIN, "the cells to be writable", async || {
            let samples = self.load.since(healed);
            let mut slowest = Duration::ZERO;
            let cells = 0..CELLS.len();
            for (gateway, cell) in zones().flat_map(|zone| cells.clone().map(move |c| (zone, c))) {
                let of_cell = |s: &Sample| s.cell.is_some_and(|of| usize::from(of) == cell);
                let of = |s: &&Sample| s.gateway == gateway && of_cell(s);
                let writes: Vec<&Sample> = samples.iter().filter(of).collect();
                let last = writes.iter().rev().take(ADMITTED_IN_A_ROW);
                let admitted = last.filter(|sample| !sample.failed()).count();
                ensure!(
                    admitted == ADMITTED_IN_A_ROW,
                    "of the last {ADMITTED_IN_A_ROW} writes by {} to {} {admitted} are admitted: {:?}",
                    name(gateway),
                    CELLS[cell].0,
                    self.load.all().1
                );
                let first = writes.iter().find(|sample| !sample.failed());
                let first = first.map_or(healed, |sample| sample.end());
                slowest = slowest.max(first.saturating_duration_since(healed));
            }
            Ok(slowest)
        })
        .await
    }

    /// Waits until every zone counts its own instances, and none that others registered.
    async fn nothing_stolen(&self) -> Result<()> {
        for zone in zones() {
            let own = u64::from(self.stage.instances().end);
            self.stage.counts(zone, own).await?;
        }
        Ok(())
    }

    fn logs(&self) -> String {
        format!(
            "after {} s\n{}",
            (monotonic_us() - self.begun_us) / 1_000_000,
            self.stage.logs()
        )
    }
}

impl Blind {
    /// Whether a read met the gateway while it was unavailable.
    fn excuses(&self, read: &Sample, samples: &[Sample]) -> bool {
        let serves = |s: &&Sample| {
            s.gateway == self.gateway && s.read && !s.failed() && s.start >= self.back
        };
        let first = samples.iter().filter(serves).map(Sample::end).min();
        read.gateway == self.gateway
            && read.end() >= self.from
            && first.is_none_or(|first| read.start <= first)
    }
}

/// The number of cells with other owners than before, without a fault or an operator's move.
fn strayed(
    fault: Fault,
    before: &BTreeMap<&str, Vec<String>>,
    after: &BTreeMap<&str, Vec<String>>,
) -> usize {
    let wanted = |cell: &str| match fault.kind {
        Kind::Move | Kind::Override => cell == fault.cell(),
        _ => true,
    };
    let moved = before
        .iter()
        .filter(|(cell, owners)| after.get(*cell) != Some(owners));
    moved.filter(|(cell, _)| !wanted(cell)).count()
}

fn others(zone: u8) -> impl Iterator<Item = u8> + Clone {
    zones().filter(move |other| *other != zone)
}
