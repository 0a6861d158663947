//! The faults, and what has to be done after each.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use e2e::netns::Network;
use e2e::process::Process;
use e2e::wait::eventually;
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::judge::{Belongs, Sample, Verdict, judge};
use super::load::Load;
use super::stage::{HOME, Stage, instances, zones};

/// How long a fault is watched.
const WATCH: Duration = Duration::from_millis(2_500);
/// How long everything may take to be as it was.
const RECOVERY: Duration = Duration::from_secs(60);
/// A zone whose processes go on while one of its neighbours' are touched.
const OTHER: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Case {
    /// kill -9 of all instances of a zone
    KillZone,
    /// All instances of a zone hang (SIGSTOP)
    HangZone,
    /// A zone's link goes down
    CutZone,
    /// An operator drains a zone
    DrainZone,
    /// Every instance of every zone is drained and started anew, one after another
    RollingRestart,
    /// kill -9 of every replica of the control plane
    RestartControl,
    /// All of etcd is stopped for a while
    StopEtcd,
    /// kill -9 of an etcd member
    KillEtcdMember,
    /// An etcd member hangs (SIGSTOP)
    HangEtcdMember,
}

impl Case {
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// Whether it is short enough to be repeated often.
    pub(crate) fn is_fast(self) -> bool {
        matches!(
            self,
            Case::KillZone | Case::HangZone | Case::CutZone | Case::DrainZone
        )
    }
}

/// Everything runs, under load.
pub(crate) struct Scene {
    // Dropped first: it uses the others.
    load: Load,
    stage: Stage,
    network: Arc<Network>,
    outage: Duration,
}

/// After the fault nobody may be answered by the zone that failed.
fn elsewhere(_: u8, zone: u8) -> bool {
    zone != HOME
}

/// A zone that is cut off serves its own, and nobody else.
fn apart(gateway: u8, zone: u8) -> bool {
    (gateway == HOME) == (zone == HOME)
}

fn anywhere(_: u8, _: u8) -> bool {
    true
}

impl Scene {
    /// `outage` is how long etcd is stopped.
    pub(crate) async fn set(
        directory: &Path,
        network: Arc<Network>,
        rps: u32,
        outage: Duration,
    ) -> Result<Scene> {
        let stage = Stage::set(directory, &network).await?;
        let load = Load::start(&network, rps);
        Ok(Scene {
            load,
            stage,
            network,
            outage,
        })
    }

    /// One round: a fault, what it does, and everything as it was.
    pub(crate) async fn round(&mut self, case: Case) -> Result<Verdict> {
        self.normal().await.context("before the fault")?;
        let fault = Instant::now();
        let verdict = match case {
            Case::KillZone => {
                self.stage.zone(HOME).kill_instances()?;
                let verdict = self.watch(fault, elsewhere).await;
                self.stage.zone_mut(HOME).restart_instances()?;
                verdict
            }
            Case::HangZone => {
                self.signal_instances(Signal::SIGSTOP)?;
                let verdict = self.watch(fault, elsewhere).await;
                self.signal_instances(Signal::SIGCONT)?;
                verdict
            }
            Case::CutZone => {
                self.network.link(HOME, false)?;
                let verdict = self.watch(fault, apart).await;
                self.network.link(HOME, true)?;
                verdict
            }
            Case::DrainZone => {
                self.stage.drain(HOME, true).await?;
                let verdict = self.watch(fault, elsewhere).await;
                self.stage.drain(HOME, false).await?;
                verdict
            }
            Case::RollingRestart => {
                for (zone, instance) in zones().flat_map(|z| instances().map(move |i| (z, i))) {
                    self.restart_gently(zone, instance).await?;
                }
                self.watch(fault, anywhere).await
            }
            Case::RestartControl => {
                for zone in zones() {
                    self.stage.zone(zone).control_plane.kill()?;
                }
                sleep(Duration::from_secs(1)).await;
                for zone in zones() {
                    self.stage.zone_mut(zone).restart_control_plane()?;
                }
                self.watch(fault, anywhere).await
            }
            Case::StopEtcd => {
                for zone in zones() {
                    self.stage.zone(zone).etcd.kill()?;
                }
                sleep(self.outage).await;
                for zone in zones() {
                    self.stage.zone_mut(zone).restart_etcd()?;
                }
                self.watch(fault, anywhere).await
            }
            Case::KillEtcdMember => {
                self.stage.zone(OTHER).etcd.kill()?;
                let verdict = self.acts_without_a_member().await?;
                self.stage.zone_mut(OTHER).restart_etcd()?;
                verdict
            }
            Case::HangEtcdMember => {
                self.stage.zone(OTHER).etcd.pause()?;
                let verdict = self.acts_without_a_member().await?;
                self.stage.zone(OTHER).etcd.resume()?;
                verdict
            }
        };
        self.normal().await.context("after the fault")?;
        Ok(verdict)
    }

    /// Everything that was sent since the fault, watched for a while.
    async fn watch(&self, fault: Instant, belongs: Belongs) -> Verdict {
        sleep(WATCH).await;
        judge(&self.load.take(), fault, belongs)
    }

    /// What an operator asks for while a member is away still acts, and costs nothing. The time is that of the drain.
    async fn acts_without_a_member(&self) -> Result<Verdict> {
        let fault = Instant::now();
        sleep(Duration::from_millis(500)).await;
        let calm = judge(&self.load.take(), fault, anywhere);
        let asked = Instant::now();
        self.stage.drain(HOME, true).await?;
        let drained = self.watch(asked, elsewhere).await;
        self.stage.drain(HOME, false).await?;
        Ok(Verdict {
            reads: calm.reads + drained.reads,
            failed_reads: calm.failed_reads + drained.failed_reads,
            failed_writes: calm.failed_writes + drained.failed_writes,
            slowest_read: calm.slowest_read.max(drained.slowest_read),
            ..drained
        })
    }

    fn signal_instances(&self, signal: Signal) -> Result<()> {
        let instances = &self.stage.zone(HOME).instances;
        instances
            .iter()
            .try_for_each(|instance: &Process| instance.signal(signal))
    }

    /// As a deployment does it: drained, ended, started, taken in again.
    async fn restart_gently(&mut self, zone: u8, instance: u8) -> Result<()> {
        self.stage.drain_instance(zone, instance, true).await?;
        self.stage.instance_is(zone, instance, "draining").await?;
        // Requests under way end.
        sleep(Duration::from_millis(300)).await;
        self.stage.zone_mut(zone).restart_instance(instance)?;
        sleep(Duration::from_millis(200)).await;
        self.stage.drain_instance(zone, instance, false).await?;
        self.stage.instance_is(zone, instance, "healthy").await
    }

    /// Waits until the zone that fails has its share again, everywhere, and nothing is slow.
    async fn normal(&self) -> Result<()> {
        let mut last = String::new();
        let recovered = eventually(RECOVERY, "everything as it was", async || {
            self.load.take();
            sleep(Duration::from_millis(500)).await;
            let samples = self.load.take();
            let recent: Vec<&Sample> = samples.iter().filter(|sample| sample.read).collect();
            let good = recent.iter().filter(|s| s.status == 200).count();
            last = format!("{good} of {} reads are answered", recent.len());
            ensure!(recent.len() > 20 && good == recent.len(), "{last}");
            for gateway in zones() {
                let of: Vec<_> = recent.iter().filter(|s| s.gateway == gateway).collect();
                let home = of.iter().filter(|s| s.zone == Some(HOME)).count();
                let share = home as f64 / of.len().max(1) as f64;
                ensure!(
                    (0.6..0.95).contains(&share),
                    "gateway {gateway}: {share:.2} at home"
                );
                let state = self.stage.state(gateway).await?;
                ensure!(
                    state == "healthy",
                    "the control plane of {gateway} says {state}"
                );
            }
            Ok(())
        });
        recovered.await.with_context(|| self.stage.logs())
    }
}
