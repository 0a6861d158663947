//! One server with its simulated proxies, and their figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::task::{JoinHandle, spawn_blocking};

use super::fleet::{Fleet, Goal};
use super::flood::Flood;
use super::servers::{Change, Server, Shape, ZONE};
use crate::usage::Usage;

/// Every stream is served within this, or there is a fault: a burst of large resources to all takes
/// seconds, on a busy machine minutes.
const TIME_MAX: Duration = Duration::from_secs(300);
/// A server counts as quiet if it used less than this share of one core for this long.
const QUIET: Duration = Duration::from_millis(10);
const QUIET_SHARE: f64 = 0.05;
/// The most checks; the rest of a server that is never quiet counts with the next change.
const LOOKS_MAX: usize = 300;
/// The pause between two watched changes during a flood.
const FLOOD_PAUSE: Duration = Duration::from_millis(50);

/// The next step after the last proxy has received a change.
#[derive(Clone, Copy)]
enum Then {
    /// Wait until the server is quiet.
    Settle,
    /// Other changes keep it busy.
    GoOn,
}

pub(super) struct Contender {
    pub(super) server: Server,
    shape: Shape,
    /// None while it works, or rests, on another thread.
    fleet: Option<Fleet>,
    resting: Option<Resting>,
    pub(super) seen: Seen,
    turn: usize,
}

/// Times in ms, memory in MB.
#[derive(Default)]
pub(super) struct Seen {
    /// The time until all streams had connected and received everything.
    pub(super) subscribed_s: f64,
    pub(super) resource_bytes: f64,
    pub(super) rss_subscribed: f64,
    /// After each turn: a garbage collector changes it.
    pub(super) rss: Vec<f64>,
    pub(super) rss_max: f64,
    /// From each change to its receipt by the last stream.
    pub(super) ticks: Vec<f64>,
    pub(super) bursts: Vec<f64>,
    /// CPU time per change, of each round: the server's and the simulation's.
    pub(super) cpu: Vec<f64>,
    pub(super) client_cpu: Vec<f64>,
    pub(super) burst_cpu: Vec<f64>,
    /// During a thousand changes a second: from a change of one more cluster to its receipt by the
    /// last stream.
    pub(super) flooded: Vec<f64>,
    /// Changes per second, and the server's CPU seconds per second; memory afterwards.
    pub(super) flood_rate: f64,
    pub(super) flood_cpu: f64,
    pub(super) flood_rss: f64,
}

/// The figures of a reconnection after a restart.
pub(super) struct Reconnected {
    /// The time until the last proxy was answered, from the start of the new process, and from
    /// when it listened.
    pub(super) served_s: f64,
    pub(super) herd_s: f64,
    pub(super) resources: usize,
    pub(super) errors: usize,
    pub(super) rss_max: f64,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Contender {
    /// Connects the proxies and waits until all have received everything.
    pub(super) async fn subscribe(
        server: Server,
        shape: Shape,
        streams: usize,
    ) -> Result<Contender> {
        let interest = server.interest(shape);
        let mut contender = Contender {
            fleet: Some(Fleet::new(interest, server.security()?)?),
            resting: None,
            server,
            shape,
            seen: Seen::default(),
            turn: 0,
        };
        let (xds, usage) = (contender.server.xds(), contender.server.usage());
        let (subscribed, bytes) = contender
            .with_fleet(move |fleet| {
                let begin = Instant::now();
                fleet.dial(xds, streams)?;
                let subscribed = fleet.receive(TIME_MAX)? - begin;
                settle(fleet, usage)?;
                let tally = fleet.tally();
                Ok((subscribed, tally.bytes as f64 / tally.resources as f64))
            })
            .await?;
        contender.seen.subscribed_s = subscribed.as_secs_f64();
        contender.seen.resource_bytes = bytes;
        contender.seen.rss_subscribed = usage.rss_mb()?;
        contender.rest()?;
        Ok(contender)
    }

    /// Moves one endpoint this many times, and waits each time until all proxies have received it.
    pub(super) async fn ticks(&mut self, count: usize) -> Result<()> {
        self.wake().await?;
        let usage = self.server.usage();
        let before = (usage.cpu()?, self.client_cpu()?);
        for _ in 0..count {
            let time = self.change(Change::One(self.turn % self.shape.clusters), Then::Settle);
            let time = time.await?;
            self.turn += 1;
            self.seen.ticks.push(time);
        }
        let each = |now: Duration, before| ms(now - before) / count as f64;
        self.seen.cpu.push(each(usage.cpu()?, before.0));
        let client_cpu = each(self.client_cpu()?, before.1);
        self.seen.client_cpu.push(client_cpu);
        self.seen.rss.push(usage.rss_mb()?);
        self.rest()
    }

    /// Moves an endpoint of every cluster at once.
    pub(super) async fn burst(&mut self) -> Result<()> {
        self.wake().await?;
        let usage = self.server.usage();
        let before = usage.cpu()?;
        let time = self.change(Change::All, Then::Settle).await?;
        self.seen.bursts.push(time);
        self.seen.burst_cpu.push(ms(usage.cpu()? - before));
        self.rest()
    }

    /// Changes the last cluster this many times while the others change a thousand times a second.
    pub(super) async fn flood(&mut self, count: usize) -> Result<()> {
        self.wake().await?;
        let last = self.shape.names().pop();
        self.with_fleet(move |fleet| {
            fleet.watch(last);
            Ok(())
        })
        .await?;
        let usage = self.server.usage();
        let (begun, before) = (Instant::now(), usage.cpu()?);
        let flood = Flood::begin(self.server.way()?, self.shape);
        for _ in 0..count {
            self.with_fleet(|fleet| fleet.idle(FLOOD_PAUSE)).await?;
            let time = self
                .change(Change::One(self.shape.clusters - 1), Then::GoOn)
                .await?;
            self.seen.flooded.push(time);
        }
        let cpu = usage.cpu()? - before;
        self.seen.flood_cpu = cpu.as_secs_f64() / begun.elapsed().as_secs_f64();
        self.seen.flood_rate = flood.end().await?;
        self.with_fleet(move |fleet| {
            settle(fleet, usage)?;
            fleet.watch(None);
            Ok(())
        })
        .await?;
        self.seen.flood_rss = usage.rss_mb()?;
        self.rest()
    }

    /// Resets the figures of the warm-up.
    pub(super) fn forget(&mut self) {
        self.seen.ticks.clear();
        self.seen.cpu.clear();
        self.seen.client_cpu.clear();
        self.seen.rss.clear();
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        self.seen.rss_max = self.server.usage().rss_max_mb()?;
        Ok(())
    }

    /// The time, in ms, from just before the change is made until the last proxy has received it;
    /// with [`Then::Settle`] it returns when the server has handled the acknowledgements, too.
    async fn change(&mut self, change: Change, then: Then) -> Result<f64> {
        let mut fleet = self.fleet.take().context("the proxies are lost")?;
        fleet.expect(Goal {
            resources: match change {
                Change::One(_) => 1,
                Change::All => self.shape.clusters as u32,
            },
            removed: 0,
        });
        let usage = self.server.usage();
        let receiving = spawn_blocking(move || {
            let received = fleet.receive(TIME_MAX);
            let settled = match then {
                Then::Settle => settle(&mut fleet, usage),
                Then::GoOn => Ok(()),
            };
            (received.and_then(|at| settled.map(|()| at)), fleet)
        });
        let begin = Instant::now();
        self.server.change(change).await?;
        let (received, fleet) = receiving.await?;
        self.fleet = Some(fleet);
        let received = received.map_err(|error| self.with_tail(&error))?;
        Ok(ms(received.saturating_duration_since(begin)))
    }

    /// Kills our server, restarts it, and makes all proxies reconnect at once with their versions.
    /// Then moves one endpoint, which all must receive.
    pub(super) async fn reconnect(&mut self) -> Result<Reconnected> {
        self.wake().await?;
        let Server::Ours(ours) = &mut self.server else {
            return Err(anyhow!("only ours is restarted"));
        };
        ours.kill()?;
        let begin = Instant::now();
        ours.begin().await?;
        let listens = Instant::now();
        let (xds, usage) = (self.server.xds(), self.server.usage());
        let (served, resources, errors) = self
            .with_fleet(move |fleet| {
                let before = fleet.tally();
                fleet.redial(xds, &format!("nobody/{ZONE}"))?;
                let served = fleet.receive(TIME_MAX)?;
                settle(fleet, usage)?;
                fleet.must_hold();
                let after = fleet.tally();
                let resources = after.resources - before.resources;
                Ok((served, resources, after.errors - before.errors))
            })
            .await?;
        self.change(Change::One(0), Then::Settle).await?;
        Ok(Reconnected {
            served_s: (served - begin).as_secs_f64(),
            herd_s: (served - listens).as_secs_f64(),
            resources,
            errors,
            rss_max: usage.rss_max_mb()?,
        })
    }

    /// Makes the proxies answer the server until they are needed: otherwise it would disconnect
    /// them while the other one is measured.
    fn rest(&mut self) -> Result<()> {
        let fleet = self.fleet.take().context("the proxies are lost")?;
        self.resting = Some(Resting::begin(fleet));
        Ok(())
    }

    async fn wake(&mut self) -> Result<()> {
        let resting = self.resting.take().context("the proxies are lost")?;
        let fleet = resting.end().await;
        self.fleet = Some(fleet.map_err(|error| self.with_tail(&error))?);
        Ok(())
    }

    fn client_cpu(&self) -> Result<Duration> {
        let fleet = self.fleet.as_ref().context("the proxies are lost")?;
        Ok(fleet.tally().cpu)
    }

    /// Runs on a thread that may block. If the caller is dropped, so is the server, which ends the
    /// work.
    async fn with_fleet<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Fleet) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut fleet = self.fleet.take().context("the proxies are lost")?;
        let done = spawn_blocking(move || (work(&mut fleet), fleet));
        let (done, fleet) = done.await?;
        self.fleet = Some(fleet);
        done.map_err(|error| self.with_tail(&error))
    }

    fn with_tail(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow!("{error:#}\n{}", self.server.tail())
    }
}

/// Proxies that are not measured at present.
struct Resting {
    enough: Arc<AtomicBool>,
    /// None after it was returned.
    fleet: Option<JoinHandle<Result<Fleet>>>,
}

impl Resting {
    fn begin(mut fleet: Fleet) -> Resting {
        let enough = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&enough);
        let rests = spawn_blocking(move || {
            while !heard.load(Ordering::Relaxed) {
                fleet.idle(QUIET)?;
            }
            Ok(fleet)
        });
        Resting {
            enough,
            fleet: Some(rests),
        }
    }

    async fn end(mut self) -> Result<Fleet> {
        self.enough.store(true, Ordering::Relaxed);
        let fleet = self.fleet.take().context("the proxies are lost")?;
        fleet.await?.context("while the other server was measured")
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}

/// Answers the server until it has no work left: a change ends with its acknowledgements.
/// Unexpected resources are an error here.
fn settle(fleet: &mut Fleet, usage: Usage) -> Result<()> {
    for _ in 0..LOOKS_MAX {
        let (begin, before) = (Instant::now(), usage.cpu()?);
        fleet.idle(QUIET)?;
        let used = usage.cpu()?.saturating_sub(before);
        if used.as_secs_f64() < QUIET_SHARE * begin.elapsed().as_secs_f64() {
            break;
        }
    }
    Ok(())
}

/// Fails if the resources of the two differ in size.
pub(super) fn ensure_alike(ours: &Seen, peer: &Seen) -> Result<()> {
    let (ours, peer) = (ours.resource_bytes, peer.resource_bytes);
    ensure!(
        (ours / peer - 1.0).abs() < 0.02,
        "resources of {ours:.0} and {peer:.0} bytes are not alike"
    );
    Ok(())
}
