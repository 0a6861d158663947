//! Requests at a fixed rate, whatever becomes of the ones before, by the gateways of all zones.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::ZONES;
use e2e::netns::Network;
use tokio::runtime;

use super::judge::Sample;
use super::stage::{GATEWAY_PORT, HOME};

/// Every tenth request is a write.
const WRITE_EVERY: u64 = 10;
/// The longest that requests are sent; each is bounded by its client.
const TIME_MAX: Duration = Duration::from_secs(3_600);

/// The senders, a thread in the namespace of each zone.
pub(crate) struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Sends `rps` requests a second in all, each with the home that will fail.
    pub(crate) fn start(network: &Arc<Network>, rps: u32) -> Load {
        let samples = Arc::new(Mutex::new(vec![]));
        let stop = Arc::new(AtomicBool::new(false));
        let zones = ZONES.len() as u8;
        let pace = Duration::from_secs(1) * u32::from(zones) / rps;
        let threads = (0..zones)
            .map(|gateway| {
                let (network, samples, stop) = (network.clone(), samples.clone(), stop.clone());
                thread::spawn(move || {
                    if let Err(error) = send(&network, gateway, pace, &samples, &stop) {
                        eprintln!("the load of gateway {gateway} ended: {error:#}");
                    }
                })
            })
            .collect();
        Load {
            samples,
            stop,
            threads,
        }
    }

    /// What has been answered, or has failed, since the last call.
    pub(crate) fn take(&self) -> Vec<Sample> {
        std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner))
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

fn send(
    network: &Network,
    gateway: u8,
    pace: Duration,
    samples: &Arc<Mutex<Vec<Sample>>>,
    stop: &AtomicBool,
) -> Result<()> {
    network.zone(gateway)?.enter()?;
    let to = SocketAddr::from((Network::address(gateway), GATEWAY_PORT));
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (home, _) = ZONES[usize::from(HOME)];
    runtime.block_on(async {
        let client = Client::new(Version::Http1);
        let begun = Instant::now();
        let mut count = 0_u64;
        while !stop.load(Ordering::Relaxed) && begun.elapsed() < TIME_MAX {
            count += 1;
            let read = !count.is_multiple_of(WRITE_EVERY);
            let request = match read {
                true => Request::get("/orders"),
                false => Request::post("/orders"),
            };
            let (client, samples) = (client.clone(), samples.clone());
            tokio::spawn(async move {
                let start = Instant::now();
                let reply = client.send(to, &request.home(home)).await;
                let sample = Sample {
                    gateway,
                    read,
                    start,
                    latency: start.elapsed(),
                    status: reply.as_ref().map_or(0, |reply| reply.status.as_u16()),
                    zone: reply.ok().as_ref().and_then(zone),
                };
                samples
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(sample);
            });
            // By the clock, not by the last request: a machine that stumbles catches up.
            let next = begun + pace * u32::try_from(count).unwrap_or(u32::MAX);
            tokio::time::sleep_until(next.into()).await;
        }
    });
    Ok(())
}

/// The zone that answered.
fn zone(reply: &Reply) -> Option<u8> {
    let echo = reply.echo().ok()?;
    let at = ZONES.iter().position(|(zone, _)| *zone == echo.zone)?;
    u8::try_from(at).ok()
}
