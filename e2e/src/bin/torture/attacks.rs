//! The requests of an attacker while zones fail: headers that only proxies may set, hops signed
//! with a stolen secret, and records of a registrar that claims the instances of other zones.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::client::{Client, Reply, Request, Version};
use e2e::config::ZONES;
use e2e::dice::Dice;
use e2e::registry::{Instance, InstanceName, Registry};
use e2e::stage::witness::{self, CELLS, FORWARD_TOKEN};
use e2e::stage::{SERVICE, admin, gateway, instance, name};
use policy::fence::EPOCH_MAX;
use policy::headers::{EPOCH, FORWARDED, HOME, INTERNAL_PREFIX, PRESENTED_EPOCH, TO};
use policy::hop::{BUCKET_US, Claim, Keys};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// The pace: each attack in turn, by every gateway in turn.
const EVERY: Duration = Duration::from_millis(25);
const DEADLINE: Duration = Duration::from_secs(5);
/// How many names a registrar uses, so that the store does not fill with them.
const NAMES: u64 = 8;
/// The most examples of successful attacks that are kept.
const EXAMPLES_MAX: usize = 5;

/// A name for writes that no gateway of [`ZONES`] uses.
const ATTACKER: u8 = ZONES.len() as u8;

/// Attacks that run until this is dropped.
pub(crate) struct Attacks {
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    spoofed: AtomicUsize,
    stolen: AtomicUsize,
    replayed: AtomicUsize,
    admitted: AtomicUsize,
    claims: AtomicUsize,
    refused_claims: AtomicUsize,
    /// Attacks that reached an instance but should not have.
    believed: AtomicUsize,
    examples: Mutex<Vec<String>>,
}

/// The state for choosing an attacker's next step.
struct Attacker {
    client: Client,
    stolen: Keys,
    dice: Dice,
    count: u64,
    /// The last write with a valid signature.
    recorded: Option<Request>,
    seen: Arc<Seen>,
}

impl Attacks {
    /// Begins the attacks, in the hub.
    pub(crate) fn begin(seed: u64) -> anyhow::Result<Attacks> {
        let seen = Arc::new(Seen::default());
        let mut attacker = Attacker {
            client: Client::new(Version::Http1),
            stolen: Keys::new(vec![FORWARD_TOKEN.to_owned()])?,
            dice: Dice::new(seed),
            count: 0,
            recorded: None,
            seen: Arc::clone(&seen),
        };
        let task = tokio::spawn(async move {
            let mut pace = interval(EVERY);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // Until the task is aborted.
            loop {
                pace.tick().await;
                attacker.attack();
            }
        });
        Ok(Attacks { seen, task })
    }

    /// The number of times that an instance saw an attacker's invention.
    pub(crate) fn believed(&self) -> usize {
        self.seen.believed.load(Relaxed)
    }

    /// The number of requests and records sent.
    pub(crate) fn sent(&self) -> usize {
        let Seen {
            spoofed,
            stolen,
            replayed,
            claims,
            ..
        } = &*self.seen;
        let all = [spoofed, stolen, replayed, claims];
        all.iter().map(|count| count.load(Relaxed)).sum()
    }
}

impl Drop for Attacks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Display for Attacks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = &*self.seen;
        let count = |count: &AtomicUsize| count.load(Relaxed);
        write!(
            out,
            "attacks: {} requests with spoofed headers, {} writes signed with a stolen secret and {} replays, of which {} were admitted as ordinary writes; {} claims of other zones' instances, {} rejected; {} successful",
            count(&seen.spoofed),
            count(&seen.stolen),
            count(&seen.replayed),
            count(&seen.admitted),
            count(&seen.claims),
            count(&seen.refused_claims),
            count(&seen.believed),
        )?;
        let examples = seen.examples.lock().unwrap_or_else(PoisonError::into_inner);
        examples
            .iter()
            .try_for_each(|example| write!(out, "\n    {example}"))
    }
}

impl Attacker {
    /// Sends the next attack; its response is checked when it arrives.
    fn attack(&mut self) {
        self.count += 1;
        let zones = ZONES.len() as u64;
        let zone = self.dice.between(0, zones) as u8;
        match self.count % 5 {
            0 => self.claim(zone),
            1 => {
                let read = Request::get("/orders");
                self.send(zone, spoof(read), |seen| &seen.spoofed);
            }
            2 => {
                let write = self.write();
                self.send(zone, spoof(write), |seen| &seen.spoofed);
            }
            3 => {
                let write = self.signed(zone);
                self.recorded = Some(write.clone());
                self.send(zone, write, |seen| &seen.stolen);
            }
            _ => {
                // Replays another gateway's write, while its signature is valid, with its own id so
                // that the judge can distinguish it.
                let Some(recorded) = &self.recorded else {
                    return;
                };
                let mut replay = recorded.clone();
                for (header, value) in &self.write().headers {
                    replay.headers.insert(header, value.clone());
                }
                self.send(zone, replay, |seen| &seen.replayed);
            }
        }
    }

    fn write(&mut self) -> Request {
        let cell = self.dice.between(0, CELLS.len() as u64) as usize;
        witness::write(ATTACKER, self.count, cell, 0)
    }

    /// A write that claims to come from another zone's gateway, with an epoch that the receiver
    /// cannot know.
    fn signed(&mut self, zone: u8) -> Request {
        let cell = self.dice.between(0, CELLS.len() as u64) as usize;
        let write = witness::write(ATTACKER, self.count, cell, 0);
        let epoch = *self
            .dice
            .pick(&[0, 1, 2, 1_000, EPOCH_MAX - 1, EPOCH_MAX, u64::MAX]);
        let authority = gateway(zone).to_string();
        let claim = Claim {
            method: b"POST",
            authority: authority.as_bytes(),
            path: write.path.as_bytes(),
            cell: CELLS[cell].0,
            epoch,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_us = now.unwrap_or_default().as_micros();
        // Overflows after half a million years.
        let signature = self.stolen.sign(&claim, (now_us as u64) / BUCKET_US);
        let write = write.header(FORWARDED, signature);
        write.header(PRESENTED_EPOCH, epoch.to_string())
    }

    fn send(&self, zone: u8, request: Request, kind: fn(&Seen) -> &AtomicUsize) {
        kind(&self.seen).fetch_add(1, Relaxed);
        let (client, seen) = (self.client.clone(), Arc::clone(&self.seen));
        tokio::spawn(async move {
            // A gateway that is down or hangs does not respond to an attacker either.
            if let Ok(Ok(reply)) = timeout(DEADLINE, client.send(gateway(zone), &request)).await {
                seen.look(&request, &reply);
            }
        });
    }

    /// Registers an instance of this zone as one of the next zone.
    fn claim(&mut self, zone: u8) {
        self.seen.claims.fetch_add(1, Relaxed);
        let thief = (zone + 1) % ZONES.len() as u8;
        let claimed = Instance::at(instance(zone, 0));
        let key = InstanceName::new(
            SERVICE,
            name(thief),
            &format!("thief-{}", self.count % NAMES),
        );
        let registry = Registry::new(admin(thief));
        let seen = Arc::clone(&self.seen);
        tokio::spawn(async move {
            let put = timeout(DEADLINE, registry.put(&key, &claimed, None)).await;
            if let Ok(Ok(reply)) = put
                && reply.status.is_client_error()
            {
                seen.refused_claims.fetch_add(1, Relaxed);
            }
        });
    }
}

impl Seen {
    /// Checks the headers that the instance received.
    fn look(&self, request: &Request, reply: &Reply) {
        let Ok(echo) = reply.echo() else {
            return;
        };
        if !request.method.is_safe() {
            self.admitted.fetch_add(1, Relaxed);
        }
        let spoofed = |name: &str, value: &str| {
            name.replace('_', "-").starts_with(INTERNAL_PREFIX)
                && (name.contains('_') || value.contains(SPOOFED))
        };
        for (name, value) in &echo.headers {
            let between_zones = [FORWARDED, PRESENTED_EPOCH].contains(&name.as_str());
            let epoch: Option<u64> = (name == EPOCH).then(|| value.parse().ok()).flatten();
            // A restored store continues from the wall clock, in milliseconds: far below.
            let far = epoch.is_some_and(|epoch| epoch > EPOCH_MAX / 2);
            if spoofed(name, value) || between_zones || far {
                self.believed.fetch_add(1, Relaxed);
                let mut examples = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
                if examples.len() < EXAMPLES_MAX {
                    examples.push(format!("an instance got {name}: {value}"));
                }
            }
        }
    }
}

/// The value of every forged header.
const SPOOFED: &str = "18446744073709551615";

fn spoof(request: Request) -> Request {
    let request = request
        .header(EPOCH, SPOOFED)
        .header(PRESENTED_EPOCH, SPOOFED)
        .header("x_tidegate-epoch", SPOOFED)
        .header("X-Tidegate_Cell", SPOOFED)
        .header(HOME, SPOOFED)
        .header(TO, format!("{SERVICE}/{SPOOFED}"));
    request.header(FORWARDED, format!("v1;t=1;k=00000000;m={}", "0".repeat(64)))
}
