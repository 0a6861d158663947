//! Requests at a fixed rate, independent of earlier ones, by the gateways of all zones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::runtime;

use super::{gateway as gateway_of, name, witness, zones};
use crate::client::{Client, Reply, Request, Version};
use crate::config::ZONES;
use crate::netns::Network;
use crate::wait::eventually;

/// The longest time for which requests are sent.
const TIME_MAX: Duration = Duration::from_secs(7_200);
/// A request without an answer by then has failed.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How many different failures are described, and the length of each.
const FAILURES_MAX: usize = 20;
const WORDS_MAX: usize = 160;

/// One request that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The zone of the gateway.
    pub gateway: u8,
    pub read: bool,
    /// The cell of a write, by its position in [`CELLS`](super::witness::CELLS).
    pub cell: Option<u8>,
    /// Its due time: a delay of its sender counts as latency.
    pub start: Instant,
    pub latency: Duration,
    /// 0: no answer.
    pub status: u16,
    /// The zone that answered.
    pub zone: Option<u8>,
}

impl Sample {
    pub fn end(&self) -> Instant {
        self.start + self.latency
    }

    pub fn failed(&self) -> bool {
        self.status != 200
    }
}

/// Builds the request of a gateway with this number; a safe method is a read.
pub type Next = dyn Fn(u8, u64) -> Request + Send + Sync;

/// The senders, a thread in the namespace of each zone.
pub struct Load {
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// The record of the requests.
#[derive(Default)]
struct Book {
    /// Requests that have ended, in that order.
    ended: Vec<Sample>,
    /// Requests under way: their due times and gateways.
    open: BTreeSet<(Instant, u8)>,
    /// The texts of failures, and the number of each.
    failures: BTreeMap<String, u64>,
}

impl Load {
    /// Sends `rps` requests a second in all.
    pub fn start(network: &Arc<Network>, rps: u32, next: Arc<Next>) -> Load {
        let book = Arc::new(Mutex::new(Book::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let pace = Duration::from_secs(1) * ZONES.len() as u32 / rps;
        let threads = zones()
            .map(|gateway| {
                let (network, book, stop) = (network.clone(), book.clone(), stop.clone());
                let next = next.clone();
                thread::spawn(move || {
                    if let Err(error) = send(&network, gateway, pace, &next, &book, &stop) {
                        eprintln!("the load of gateway {gateway} ended: {error:#}");
                    }
                })
            })
            .collect();
        Load {
            book,
            stop,
            threads,
        }
    }

    /// Forgets everything that has ended.
    pub fn forget(&self) {
        let mut book = locked(&self.book);
        book.ended.clear();
        book.failures.clear();
    }

    /// The requests that have ended since the last [`forget`](Load::forget) and were started at
    /// `since` or later.
    pub fn since(&self, since: Instant) -> Vec<Sample> {
        let book = locked(&self.book);
        let ended = book.ended.iter();
        ended
            .filter(|sample| sample.start >= since)
            .copied()
            .collect()
    }

    /// The requests that have ended since the last [`forget`](Load::forget), and the texts of
    /// failures, with their number.
    pub fn all(&self) -> (Vec<Sample>, BTreeMap<String, u64>) {
        let book = locked(&self.book);
        (book.ended.clone(), book.failures.clone())
    }

    /// Waits until all requests that were started before have ended.
    pub async fn settled(&self, before: Instant) -> Result<()> {
        eventually(DEADLINE * 2, "the requests under way to end", async || {
            let book = locked(&self.book);
            let open = book.open.range(..(before, 0)).count();
            ensure!(open == 0, "{open} have not");
            Ok(())
        })
        .await
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn locked(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(
    network: &Network,
    gateway: u8,
    pace: Duration,
    next: &Arc<Next>,
    book: &Arc<Mutex<Book>>,
    stop: &AtomicBool,
) -> Result<()> {
    network.zone(gateway)?.enter()?;
    let to = gateway_of(gateway);
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::new(Version::Http1);
        let begun = Instant::now();
        let mut count = 0_u32;
        while !stop.load(Ordering::Relaxed) && begun.elapsed() < TIME_MAX {
            // By the clock, not by the last request: a delayed machine catches up.
            let due = begun + pace * count;
            tokio::time::sleep_until(due.into()).await;
            count = count.saturating_add(1);
            let request = next(gateway, u64::from(count));
            let read = request.method.is_safe();
            let cell = witness::cell_of(&request).filter(|_| !read);
            let (client, book) = (client.clone(), book.clone());
            locked(&book).open.insert((due, gateway));
            tokio::spawn(async move {
                let sent = client.send(to, &request);
                let sent = async {
                    match request.patience {
                        Some(patience) => tokio::time::timeout(patience, sent).await.ok(),
                        None => Some(sent.await),
                    }
                };
                let reply = tokio::time::timeout_at((due + DEADLINE).into(), sent).await;
                let in_time =
                    reply.unwrap_or_else(|_| Some(Err(anyhow::anyhow!("no answer in time"))));
                let Some(reply) = in_time else {
                    // Its client has disconnected, and reports nothing.
                    locked(&book).open.remove(&(due, gateway));
                    return;
                };
                let sample = Sample {
                    gateway,
                    read,
                    cell,
                    start: due,
                    latency: due.elapsed(),
                    status: reply.as_ref().map_or(0, |reply| reply.status.as_u16()),
                    zone: reply.as_ref().ok().and_then(zone),
                };
                let words = (sample.status != 200).then(|| words(&sample, &reply));
                locked(&book).end(sample, words);
            });
        }
    });
    Ok(())
}

impl Book {
    fn end(&mut self, sample: Sample, words: Option<String>) {
        self.open.remove(&(sample.start, sample.gateway));
        self.ended.push(sample);
        if let Some(words) = words
            && (self.failures.len() < FAILURES_MAX || self.failures.contains_key(&words))
        {
            *self.failures.entry(words).or_default() += 1;
        }
    }
}

/// A failure as the client saw it.
fn words(sample: &Sample, reply: &Result<Reply>) -> String {
    let gateway = name(sample.gateway);
    let kind = if sample.read { "read" } else { "write" };
    let said = match reply {
        Ok(reply) => format!("{}: {}", reply.status.as_u16(), reply.text()),
        Err(error) => format!("{error:#}"),
    };
    let said: String = said.chars().take(WORDS_MAX).collect();
    let cell = sample
        .cell
        .and_then(|cell| witness::CELLS.get(usize::from(cell)));
    let cell = cell.map_or(String::new(), |(cell, ..)| format!(" to {cell}"));
    format!("{kind} by {gateway}{cell}: {said}")
}

/// The zone that answered.
fn zone(reply: &Reply) -> Option<u8> {
    let echo = reply.echo().ok()?;
    let at = ZONES.iter().position(|(zone, _)| *zone == echo.zone)?;
    u8::try_from(at).ok()
}
