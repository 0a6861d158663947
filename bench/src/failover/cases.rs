//! The faults, and the steps after each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use e2e::client::Request;
use e2e::netns::Network;
use e2e::process::Process;
use e2e::stage::load::Load;
use e2e::stage::{Gateways, Plan, Registered, SERVICE, Stage, name, zones};
use e2e::wait::eventually;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::sleep;

use super::judge::{Belongs, Verdict};
use super::round;

/// The zone that fails, by its position.
pub(super) const HOME: u8 = 0;
/// The zone of the other region.
const REMOTE: u8 = 2;
/// Every tenth request is a write.
const WRITE_EVERY: u64 = 10;
/// The minimum time for which a fault is watched.
pub(super) const WATCH: Duration = Duration::from_millis(2_500);
/// Longer than the lease of an agent: a lease without keepalives shows.
const WATCH_LEASES: Duration = Duration::from_secs(8);
/// How long the control plane is down.
const CONTROL_OUTAGE: Duration = Duration::from_secs(1);
/// How long a complete recovery may take.
pub(super) const RECOVERY: Duration = Duration::from_secs(60);
/// How long a drained instance must be without requests.
const QUIET: Duration = Duration::from_millis(300);

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
    /// Every instance of every zone is drained and restarted, one after another
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

/// A whole mesh, under load.
pub(crate) struct Scene {
    // Dropped first: it uses the others.
    load: Load,
    stage: Stage,
    network: Arc<Network>,
    outage: Duration,
}

/// The request with this number.
pub(super) fn request(number: u64) -> Request {
    let request = match number.is_multiple_of(WRITE_EVERY) {
        true => Request::post("/orders"),
        false => Request::get("/orders"),
    };
    request.home(name(HOME))
}

/// After the fault the failed zone must not answer any request.
pub(super) fn elsewhere(_: u8, zone: u8) -> bool {
    zone != HOME
}

/// Faults that users should not notice move nothing out of the region.
fn in_region(_: u8, zone: u8) -> bool {
    zone != REMOTE
}

/// A zone that is cut off serves only its own gateway.
pub(super) fn apart(gateway: u8, zone: u8) -> bool {
    (gateway == HOME) == (zone == HOME)
}

fn plan() -> Plan {
    Plan {
        service: json!({
            "name": SERVICE,
            "routes": [{ "prefix": "/orders" }],
            "weights": { "zone": 80, "region": 20 },
            // Back at once, so that a round is short; the way out is measured.
            "failover": { "hold_s": 0, "hold_max_s": 0, "ramp": { "percent": [], "over_s": 0 } },
            "outlier": { "window_s": 1, "ejection_s": 3, "ejection_max_s": 3 },
            // The sample service answers in a millisecond.
            "hedging": { "delay_ms": 100 },
        }),
        authority: None,
        instances: 3,
        workers: 1,
        registered: Registered::ByAgents,
        gateways: Gateways::Owned,
        write_logs: false,
        wall_clocks: false,
    }
}

impl Scene {
    /// `outage` is how long etcd is stopped.
    pub(crate) async fn set(
        directory: &Path,
        network: Arc<Network>,
        rps: u32,
        outage: Duration,
    ) -> Result<Scene> {
        let stage = Stage::set(directory, &network, plan()).await?;
        let load = Load::start(&network, rps, Arc::new(|_, count| request(count)));
        Ok(Scene {
            load,
            stage,
            network,
            outage,
        })
    }

    /// One round: a fault, its effect, and the recovery. Also returns the texts of failures, with
    /// their number.
    pub(crate) async fn round(&mut self, case: Case) -> Result<(Verdict, BTreeMap<String, u64>)> {
        let done = self.play(case).await;
        done.with_context(|| self.stage.logs())
    }

    async fn play(&mut self, case: Case) -> Result<(Verdict, BTreeMap<String, u64>)> {
        self.normal().await.context("before the fault")?;
        self.load.forget();
        let fault = Instant::now();
        let mut change = None;
        let (mended, belongs): (Instant, Belongs) = match case {
            Case::KillZone => {
                self.stage.zone(HOME).kill_instances()?;
                let mended = round::watch(&self.load, WATCH).await?;
                self.stage.zone_mut(HOME).restart_instances()?;
                (mended, elsewhere)
            }
            Case::HangZone => {
                self.signal_instances(Signal::SIGSTOP)?;
                let mended = round::watch(&self.load, WATCH).await?;
                self.signal_instances(Signal::SIGCONT)?;
                (mended, elsewhere)
            }
            Case::CutZone => {
                self.network.link(HOME, false)?;
                let mended = round::watch(&self.load, WATCH).await?;
                self.network.link(HOME, true)?;
                (mended, apart)
            }
            Case::DrainZone => {
                self.stage.drain(HOME, true).await?;
                let mended = round::watch(&self.load, WATCH).await?;
                self.stage.drain(HOME, false).await?;
                (mended, elsewhere)
            }
            Case::RollingRestart => {
                let instances = self.stage.instances();
                for (zone, instance) in zones().flat_map(|z| instances.clone().map(move |i| (z, i)))
                {
                    self.restart_gently(zone, instance).await?;
                }
                (round::watch(&self.load, WATCH).await?, in_region)
            }
            Case::RestartControl => {
                for zone in zones() {
                    self.stage.zone(zone).control_plane.kill()?;
                }
                sleep(CONTROL_OUTAGE).await;
                for zone in zones() {
                    self.stage.zone_mut(zone).restart_control_plane()?;
                }
                (round::watch(&self.load, WATCH_LEASES).await?, in_region)
            }
            Case::StopEtcd => {
                for zone in zones() {
                    self.stage.zone(zone).etcd.kill()?;
                }
                sleep(self.outage).await;
                for zone in zones() {
                    self.stage.zone_mut(zone).restart_etcd()?;
                }
                (round::watch(&self.load, WATCH_LEASES).await?, in_region)
            }
            Case::KillEtcdMember => {
                let leader = self.stage.etcd_leader().await?;
                self.stage.zone(leader).etcd.kill()?;
                change = Some(self.changes_with(leader).await?);
                let mended = round::watch(&self.load, WATCH_LEASES).await?;
                self.stage.zone_mut(leader).restart_etcd()?;
                (mended, in_region)
            }
            Case::HangEtcdMember => {
                let leader = self.stage.etcd_leader().await?;
                self.stage.zone(leader).etcd.pause()?;
                change = Some(self.changes_with(leader).await?);
                let mended = round::watch(&self.load, WATCH_LEASES).await?;
                self.stage.zone(leader).etcd.resume()?;
                (mended, in_region)
            }
        };
        self.normal().await.context("after the fault")?;
        let (verdict, failures) = round::verdict(&self.load, fault, mended, belongs).await?;
        Ok((Verdict { change, ..verdict }, failures))
    }

    /// With an etcd member just gone, the time from the death of an instance until no control plane
    /// counts it any more. The instance is in the zone of the member, whose agent and control plane
    /// prefer that member.
    async fn changes_with(&mut self, zone: u8) -> Result<Duration> {
        let died = Instant::now();
        self.stage.zone(zone).instances[0].kill()?;
        let healthy = u64::from(self.stage.instances().end) - 1;
        self.stage.counts(zone, healthy).await?;
        let acted = died.elapsed();
        self.stage.zone_mut(zone).restart_instance(0)?;
        Ok(acted)
    }

    fn signal_instances(&self, signal: Signal) -> Result<()> {
        let instances = &self.stage.zone(HOME).instances;
        instances
            .iter()
            .try_for_each(|instance: &Process| instance.signal(signal))
    }

    /// Like a deployment: drained, stopped, started, readmitted.
    async fn restart_gently(&mut self, zone: u8, instance: u8) -> Result<()> {
        self.stage.drain_instance(zone, instance, true).await?;
        self.stage.instance_is(zone, instance, "draining").await?;
        // Requests in flight end.
        sleep(QUIET).await;
        self.stage
            .zone_mut(zone)
            .replace_instance(instance)
            .await
            .context("a graceful restart")?;
        self.stage.drain_instance(zone, instance, false).await?;
        self.stage.instance_is(zone, instance, "healthy").await
    }

    /// Waits until the failing zone has its share again, at every gateway, without failures or
    /// delays.
    async fn normal(&self) -> Result<()> {
        eventually(RECOVERY, "everything as it was", async || {
            let reads = round::reads(&self.load).await;
            let answered = reads.iter().filter(|read| read.status == 200).count();
            ensure!(
                reads.len() > 20 && answered == reads.len(),
                "{answered} of {} reads are answered",
                reads.len()
            );
            for gateway in zones() {
                let of: Vec<_> = reads.iter().filter(|s| s.gateway == gateway).collect();
                let home = of.iter().filter(|s| s.zone == Some(HOME)).count();
                let share = home as f64 / of.len().max(1) as f64;
                ensure!(
                    (0.6..0.95).contains(&share),
                    "gateway {gateway}: {share:.2} at home"
                );
                self.stage.healthy(gateway).await?;
            }
            Ok(())
        })
        .await
    }
}
