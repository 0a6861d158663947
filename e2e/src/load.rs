//! Load that is bounded in count, concurrency and time, and records every failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, Reply, Request, Version};
use crate::wait::{PATIENCE, eventually};

/// How many different failures are described.
const FAILURES_MAX: usize = 10;

/// Requests that are sent in turn, repeatedly.
#[derive(Clone)]
pub struct Load {
    /// The targets and their requests.
    pub requests: Vec<(SocketAddr, Request)>,
    /// How many are under way at once.
    pub concurrency: usize,
    /// It ends after this many requests.
    pub count_max: u64,
    /// It ends after this time.
    pub time_max: Duration,
    /// The least time between two requests of one of the concurrent senders.
    pub pace: Duration,
    pub version: Version,
}

impl Load {
    /// One request over HTTP/1.1, `count` times, eight at a time, as fast as possible.
    pub fn of(to: SocketAddr, request: Request, count: u64) -> Load {
        Load {
            requests: vec![(to, request)],
            concurrency: 8,
            count_max: count,
            time_max: Duration::from_secs(60),
            pace: Duration::ZERO,
            version: Version::Http1,
        }
    }

    /// Load that runs until it is stopped, at a pace that leaves a small machine time for other
    /// work.
    pub fn steady(requests: Vec<(SocketAddr, Request)>) -> Load {
        Load {
            requests,
            concurrency: 4,
            count_max: 1_000_000,
            time_max: Duration::from_secs(120),
            pace: Duration::from_millis(4),
            version: Version::Http1,
        }
    }

    /// Begins to send.
    pub fn start(self) -> RunningLoad {
        let shared = Arc::new(Shared {
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            tallies: Mutex::new(vec![Tally::default(); self.requests.len()]),
        });
        let client = Client::new(self.version);
        let load = Arc::new(self);
        let mut senders = JoinSet::new();
        for _ in 0..load.concurrency {
            senders.spawn(send(load.clone(), client.clone(), shared.clone()));
        }
        RunningLoad {
            shared,
            senders,
            past: Tally::default(),
        }
    }

    /// Sends everything.
    pub async fn run(self) -> Tally {
        let running = self.start();
        running.wait().await
    }
}

/// Load under way. Dropping it stops it.
pub struct RunningLoad {
    shared: Arc<Shared>,
    senders: JoinSet<()>,
    /// The counts that `take` has returned.
    past: Tally,
}

struct Shared {
    next: AtomicU64,
    stop: AtomicBool,
    /// One for each of [`Load::requests`].
    tallies: Mutex<Vec<Tally>>,
}

impl RunningLoad {
    /// The outcomes of each request since the last call.
    pub fn take(&mut self) -> Vec<Tally> {
        let taken: Vec<Tally> = self
            .shared
            .tallies()
            .iter_mut()
            .map(std::mem::take)
            .collect();
        taken.iter().for_each(|tally| self.past.add(tally));
        taken
    }

    /// Sends `count` more requests and returns the sum of their outcomes. Since the last call no
    /// request may have failed or been rejected.
    pub async fn next(&mut self, count: u64) -> Result<Tally> {
        // Those under way were sent before this call, and say nothing about the present.
        self.wait_for(2 * self.senders.len() as u64).await?;
        self.wait_for(count).await
    }

    async fn wait_for(&mut self, count: u64) -> Result<Tally> {
        let mut sum = Tally::default();
        let sent = eventually(PATIENCE, "more requests of the load", async || {
            self.take().iter().for_each(|tally| sum.add(tally));
            ensure!(sum.sent >= count, "{} of {count}", sum.sent);
            Ok(())
        });
        sent.await?;
        sum.check_no_failure()?;
        Ok(sum)
    }

    /// Ends it, waits for requests under way, and returns the outcomes of all.
    pub async fn stop(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wait().await
    }

    async fn wait(mut self) -> Tally {
        while self.senders.join_next().await.is_some() {}
        self.take();
        self.past
    }
}

impl Shared {
    fn tallies(&self) -> MutexGuard<'_, Vec<Tally>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(load: Arc<Load>, client: Client, shared: Arc<Shared>) {
    let end = Instant::now() + load.time_max;
    loop {
        let begin = Instant::now();
        let turn = shared.next.fetch_add(1, Ordering::Relaxed);
        if turn >= load.count_max || begin >= end || shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let which = (turn % load.requests.len() as u64) as usize;
        let (to, request) = &load.requests[which];
        let reply = client.send(*to, request).await;
        shared.tallies()[which].record(reply, begin.elapsed());
        sleep_until(begin + load.pace).await;
    }
}

/// The outcomes of requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub sent: u64,
    /// Successes, by the zone that answered.
    pub zones: BTreeMap<String, u64>,
    /// Successes, by the instance that answered.
    pub instances: BTreeMap<String, u64>,
    /// All answers, by the reason code of the decision, if they contain one.
    pub reasons: BTreeMap<String, u64>,
    /// Successes, by the tier that the upstream received.
    pub tiers: BTreeMap<String, u64>,
    /// Rejections by the filter, by their reason.
    pub refused: BTreeMap<String, u64>,
    /// All other failures.
    pub failed: u64,
    /// The texts of rejections and failures, and the number of each.
    pub failures: BTreeMap<String, u64>,
    /// Latencies of the successes, in microseconds.
    latencies_us: Vec<u32>,
}

impl Tally {
    fn record(&mut self, reply: Result<Reply>, took: Duration) {
        self.sent += 1;
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return self.fail(format!("{error:#}")),
        };
        if let Some(reason) = reply.header("x-tidegate-decision") {
            count(&mut self.reasons, reason);
        }
        if !reply.status.is_success() {
            let text = format!("{}: {}", reply.status, reply.text());
            return match reply.refusal() {
                Ok(reason) => {
                    count(&mut self.refused, reason.as_str());
                    self.note(text);
                }
                Err(_) => self.fail(text),
            };
        }
        // Only counted fields are parsed: the load generator shares the machine with its target.
        #[derive(Deserialize)]
        struct Seen<'a> {
            zone: &'a str,
            instance: &'a str,
            headers: Headers<'a>,
        }
        #[derive(Deserialize)]
        struct Headers<'a> {
            #[serde(rename = "x-tidegate-tier", default)]
            tier: &'a str,
        }
        match serde_json::from_slice::<Seen<'_>>(&reply.body) {
            Ok(seen) => {
                count(&mut self.zones, seen.zone);
                count(&mut self.instances, seen.instance);
                count(&mut self.tiers, seen.headers.tier);
                self.latencies_us
                    .push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            }
            Err(error) => self.fail(format!("not the upstream's answer: {error}")),
        }
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.note(what);
    }

    fn note(&mut self, what: String) {
        if self.failures.len() < FAILURES_MAX || self.failures.contains_key(&what) {
            count(&mut self.failures, what.as_str());
        }
    }

    /// Adds the outcomes of other requests.
    pub fn add(&mut self, other: &Tally) {
        self.sent += other.sent;
        self.failed += other.failed;
        merge(&mut self.zones, &other.zones);
        merge(&mut self.instances, &other.instances);
        merge(&mut self.reasons, &other.reasons);
        merge(&mut self.tiers, &other.tiers);
        merge(&mut self.refused, &other.refused);
        merge(&mut self.failures, &other.failures);
        self.latencies_us.extend_from_slice(&other.latencies_us);
    }

    /// The number of rejections by the filter.
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// The number of answers of a zone.
    pub fn zone(&self, zone: &str) -> u64 {
        self.zones.get(zone).copied().unwrap_or(0)
    }

    /// The share of the successes that a zone answered.
    pub fn share(&self, zone: &str) -> f64 {
        let successes: u64 = self.zones.values().sum();
        self.zone(zone) as f64 / successes.max(1) as f64
    }

    /// The median latency of the successes.
    pub fn median(&self) -> Option<Duration> {
        let mut sorted = self.latencies_us.clone();
        let middle = sorted.len() / 2;
        (!sorted.is_empty()).then(|| {
            let (_, median, _) = sorted.select_nth_unstable(middle);
            Duration::from_micros((*median).into())
        })
    }

    /// An error that lists the failed requests, if there are any.
    pub fn check_no_failure(&self) -> Result<()> {
        ensure!(
            self.failed + self.refusals() == 0,
            "of {} requests {} failed, {} were rejected: {:#?}",
            self.sent,
            self.failed,
            self.refusals(),
            self.failures
        );
        Ok(())
    }
}

/// How many standard deviations `seen` of `count` is from a share of `expected` (the normal
/// approximation of the binomial distribution).
pub fn deviations(seen: u64, count: u64, expected: f64) -> f64 {
    let deviation = (count as f64 * expected * (1.0 - expected)).sqrt();
    (seen as f64 - count as f64 * expected).abs() / deviation
}

fn count<K: Ord + ToOwned<Owned = O> + ?Sized, O: Ord + std::borrow::Borrow<K>>(
    counts: &mut BTreeMap<O, u64>,
    key: &K,
) {
    match counts.get_mut(key) {
        Some(count) => *count += 1,
        None => {
            counts.insert(key.to_owned(), 1);
        }
    }
}

fn merge<K: Ord + Clone>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *into.entry(key.clone()).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_those_of_the_binomial_distribution() {
        // 10,000 at 0.8: a standard deviation is 40.
        assert_eq!(deviations(8_000, 10_000, 0.8), 0.0);
        assert!((deviations(8_040, 10_000, 0.8) - 1.0).abs() < 1e-9);
        assert!((deviations(7_800, 10_000, 0.8) - 5.0).abs() < 1e-9);
    }
}
