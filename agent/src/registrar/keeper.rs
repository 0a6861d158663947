//! The registrar's loop: one task that owns the state; every request is a task of its own that reports back to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use registry::record::{Instance, InstanceKey};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::outage::Outage;
use super::target::{Lease, Stored, Target, TargetError, Version};
use super::{Mode, Status};
use crate::instances::Table;
use crate::metrics::{KindLabel, Metrics, ModeLabel, ReasonLabel};

/// So many time-outs of writes in a row end the writing.
const TIMEOUTS_MAX: u32 = 3;
/// Records being written at once; the others wait their turn.
const PUTS_MAX: usize = 64;
/// The same for writes that change nothing but load.
const LOAD_PUTS_MAX: usize = 8;
/// Between two attempts to revoke the lease.
const REVOKE_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Keeper {
    target: Arc<dyn Target>,
    table: watch::Receiver<Table>,
    ttl: Duration,
    status: watch::Sender<Status>,
    metrics: Metrics,
    lease: Option<Held>,
    slots: BTreeMap<InstanceKey, Slot>,
    /// Of writes: puts and grants.
    outage: Option<Outage>,
    error: Option<String>,
    probe_only: bool,
    granting: bool,
    looking: bool,
    /// Puts are numbered, so that the result of one that was given up is recognised.
    last_put: u64,
    work: JoinSet<Done>,
}

/// The lease in use.
struct Held {
    lease: Lease,
    /// When the request was sent that the registry confirmed last: from then on it counts the time to live.
    confirmed: Instant,
    /// When to keep it alive next; none while that is under way.
    due: Option<Instant>,
    /// Of keepalives.
    outage: Option<Outage>,
}

/// A record in the registry.
#[derive(Default)]
struct Slot {
    /// What was acknowledged last.
    stored: Option<Instance>,
    /// None: unknown, so the record is written whatever `stored` says.
    version: Option<Version>,
    flight: Option<Flight>,
}

/// A put under way.
struct Flight {
    number: u64,
    record: Instance,
    /// It changes nothing but load.
    load_only: bool,
    task: AbortHandle,
}

/// What a slot needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// Only the load is another.
    Load,
    Now,
}

impl Slot {
    fn need(&self, wanted: &Instance) -> Need {
        if let Some(flight) = &self.flight {
            // Load waits for its turn.
            return match flight.record.health == wanted.health {
                true => Need::Nothing,
                false => Need::Now,
            };
        }
        match (&self.stored, self.version) {
            (Some(stored), Some(_)) if stored == wanted => Need::Nothing,
            (Some(stored), Some(_)) if stored.health == wanted.health => Need::Load,
            _ => Need::Now,
        }
    }
}

/// What a request came to. `started` is when it began.
enum Done {
    Granted {
        started: Instant,
        result: Result<Lease, TargetError>,
    },
    KeptAlive {
        lease: Lease,
        started: Instant,
        result: Result<(), TargetError>,
    },
    Audited {
        records: Vec<Stored>,
        result: Result<Vec<InstanceKey>, TargetError>,
    },
    Put {
        key: InstanceKey,
        number: u64,
        started: Instant,
        result: Result<Version, TargetError>,
    },
    Looked {
        started: Instant,
        result: Result<(), TargetError>,
    },
}

impl Keeper {
    pub(super) fn new(
        target: Arc<dyn Target>,
        table: watch::Receiver<Table>,
        ttl: Duration,
        status: watch::Sender<Status>,
        metrics: Metrics,
    ) -> Keeper {
        Keeper {
            target,
            table,
            ttl,
            status,
            metrics,
            lease: None,
            slots: BTreeMap::new(),
            outage: None,
            error: None,
            probe_only: false,
            granting: false,
            looking: false,
            last_put: 0,
            work: JoinSet::new(),
        }
    }

    /// Runs until it is told to stop and for how long it may try to deregister.
    pub(super) async fn run(
        mut self,
        mut stop: oneshot::Receiver<Duration>,
    ) -> Result<(), TargetError> {
        let within = loop {
            self.start_what_is_due(Instant::now());
            self.publish();
            let wake = self.next_deadline(Instant::now());
            tokio::select! {
                biased;
                told = &mut stop => match told {
                    Ok(within) => break within,
                    // Nobody is left to deregister for.
                    Err(_) => return Ok(()),
                },
                Some(done) = self.work.join_next() => {
                    // An error: it was given up.
                    if let Ok(done) = done {
                        self.finish(done, Instant::now());
                    }
                }
                changed = self.table.changed() => if changed.is_err() {
                    return Ok(());
                },
                () = sleep_until(wake) => {}
            }
        };
        self.deregister(within).await
    }

    fn start_what_is_due(&mut self, now: Instant) {
        if let Some(held) = &mut self.lease {
            if now >= held.confirmed + self.ttl {
                self.lose_lease("unconfirmed");
            } else if held.due.is_some_and(|due| now >= due) {
                held.due = None;
                let (target, lease) = (Arc::clone(&self.target), held.lease.clone());
                self.work.spawn(async move {
                    let result = target.keep_alive(&lease).await;
                    Done::KeptAlive {
                        lease,
                        started: now,
                        result,
                    }
                });
            }
        }
        if self.outage.is_some_and(|outage| now < outage.retry_at) {
            return;
        }
        let target = Arc::clone(&self.target);
        if self.probe_only {
            if !self.looking {
                self.looking = true;
                self.work.spawn(async move {
                    let result = target.look().await;
                    Done::Looked {
                        started: now,
                        result,
                    }
                });
            }
        } else if let Some(held) = &self.lease {
            let lease = held.lease.clone();
            self.start_puts(&lease, now);
        } else if !self.granting {
            self.granting = true;
            let ttl = self.ttl;
            self.work.spawn(async move {
                let result = target.grant(ttl).await;
                Done::Granted {
                    started: now,
                    result,
                }
            });
        }
    }

    fn start_puts(&mut self, lease: &Lease, now: Instant) {
        let table = self.table.borrow_and_update().clone();
        let mut wanted: Vec<(Need, InstanceKey, Instance)> = Vec::new();
        let (mut urgent, mut load_only) = (0, 0);
        for (key, known) in table {
            let Some(record) = known.record() else {
                continue;
            };
            let slot = self.slots.entry(key.clone()).or_default();
            match &slot.flight {
                Some(flight) if flight.load_only => load_only += 1,
                Some(_) => urgent += 1,
                None => {}
            }
            match slot.need(&record) {
                Need::Nothing => {}
                need => wanted.push((need, key, record)),
            }
        }
        for (need, key, record) in &wanted {
            if *need == Need::Now && urgent < PUTS_MAX {
                self.start_put(lease, key, record, *need, now);
                urgent += 1;
            }
        }
        // Load only when nothing that matters more is under way.
        if urgent > 0 {
            return;
        }
        let load = wanted.iter().filter(|(need, ..)| *need == Need::Load);
        for (need, key, record) in load.take(LOAD_PUTS_MAX.saturating_sub(load_only)) {
            self.start_put(lease, key, record, *need, now);
        }
    }

    /// Begins to write a record, in place of an older write of it that is under way.
    fn start_put(
        &mut self,
        lease: &Lease,
        key: &InstanceKey,
        record: &Instance,
        need: Need,
        now: Instant,
    ) {
        let slot = self.slots.entry(key.clone()).or_default();
        if let Some(older) = slot.flight.take() {
            older.task.abort();
            slot.version = None;
        }
        self.last_put += 1;
        let number = self.last_put;
        // Until it is answered nobody knows what the registry holds.
        let known = slot.version.take();
        let (target, lease) = (Arc::clone(&self.target), lease.clone());
        let (key, sent) = (key.clone(), record.clone());
        let task = self.work.spawn(async move {
            let result = target.put(&lease, &key, &sent, known).await;
            Done::Put {
                key,
                number,
                started: now,
                result,
            }
        });
        slot.flight = Some(Flight {
            number,
            record: record.clone(),
            load_only: need == Need::Load,
            task,
        });
    }

    fn finish(&mut self, done: Done, now: Instant) {
        match done {
            Done::Granted { started, result } => {
                self.granting = false;
                match result {
                    Ok(lease) => {
                        info!(%lease, "registering on a new lease");
                        self.metrics.leases_granted.inc();
                        self.lease = Some(Held {
                            lease,
                            confirmed: started,
                            due: Some(started + self.ttl / 3),
                            outage: None,
                        });
                        self.worked(now);
                    }
                    Err(error) => self.failed(started, now, &error),
                }
            }
            Done::KeptAlive {
                lease,
                started,
                result,
            } => self.kept_alive(&lease, started, now, result),
            Done::Audited { records, result } => self.audited(&records, result),
            Done::Put {
                key,
                number,
                started,
                result,
            } => self.put(&key, number, started, now, result),
            Done::Looked { started, result } => {
                self.looking = false;
                match result {
                    Ok(()) => self.worked(now),
                    Err(error) => self.failed(started, now, &error),
                }
            }
        }
    }

    fn kept_alive(
        &mut self,
        lease: &Lease,
        started: Instant,
        now: Instant,
        result: Result<(), TargetError>,
    ) {
        let Some(held) = self.lease.as_mut().filter(|held| held.lease == *lease) else {
            return;
        };
        match result {
            Ok(()) => {
                held.confirmed = started;
                held.due = Some(started + self.ttl / 3);
                if let Some(outage) = held.outage.take() {
                    info!(after = ?(now - outage.since), "the lease is kept alive again");
                }
                self.start_audit();
            }
            Err(error) => {
                count(&self.metrics, &error);
                if error == TargetError::LeaseNotFound {
                    self.lose_lease("ended");
                    return;
                }
                let outage = match &mut held.outage {
                    Some(outage) => {
                        outage.again(now, &error);
                        outage
                    }
                    none => {
                        warn!(%error, "cannot keep the lease alive; trying again");
                        none.insert(Outage::begin(now, &error))
                    }
                };
                held.due = Some(outage.retry_at);
            }
        }
    }

    fn start_audit(&mut self) {
        let records: Vec<Stored> = self
            .slots
            .iter()
            .filter_map(|(key, slot)| {
                Some(Stored {
                    key: key.clone(),
                    record: slot.stored.clone()?,
                    version: slot.version?,
                })
            })
            .collect();
        if records.is_empty() {
            return;
        }
        let target = Arc::clone(&self.target);
        self.work.spawn(async move {
            let result = target.audit(&records).await;
            Done::Audited { records, result }
        });
    }

    fn audited(&mut self, records: &[Stored], result: Result<Vec<InstanceKey>, TargetError>) {
        let differing = match result {
            Ok(differing) => differing,
            // The next keepalive asks again.
            Err(error) => {
                count(&self.metrics, &error);
                return;
            }
        };
        for key in differing {
            let audited = records.iter().find(|stored| stored.key == key);
            let Some((slot, audited)) = self.slots.get_mut(&key).zip(audited) else {
                continue;
            };
            // Else it has been written since.
            if slot.flight.is_none() && slot.version == Some(audited.version) {
                let record = key.store_key();
                warn!(
                    %record,
                    "changed or deleted by somebody else; writing it again. Is a second agent configured for it?"
                );
                self.metrics.records_replaced.inc();
                slot.stored = None;
                slot.version = None;
            }
        }
    }

    fn put(
        &mut self,
        key: &InstanceKey,
        number: u64,
        started: Instant,
        now: Instant,
        result: Result<Version, TargetError>,
    ) {
        let slot = self.slots.get_mut(key);
        let Some((slot, flight)) = slot.and_then(|slot| {
            let flight = slot.flight.take_if(|flight| flight.number == number)?;
            Some((slot, flight))
        }) else {
            return;
        };
        match result {
            Ok(version) => {
                slot.stored = Some(flight.record);
                slot.version = Some(version);
                let took = (now - started).as_secs_f64();
                self.metrics.store_write_duration.observe(took);
                self.worked(now);
            }
            Err(error @ TargetError::LeaseNotFound) => {
                count(&self.metrics, &error);
                self.lose_lease("ended");
            }
            Err(error) => self.failed(started, now, &error),
        }
    }

    /// Forgets the lease and everything that was registered on it.
    fn lose_lease(&mut self, reason: &'static str) {
        let why = match reason {
            "unconfirmed" => "nobody has confirmed it for its time to live",
            _ => "it has ended",
        };
        warn!(
            ttl = ?self.ttl,
            "the lease is lost, {why}; registering anew. Was this process stopped, or the registry away?"
        );
        self.metrics
            .leases_lost
            .get_or_create(&ReasonLabel { reason })
            .inc();
        self.lease = None;
        self.give_up_puts();
        self.slots.clear();
    }

    fn give_up_puts(&mut self) {
        for slot in self.slots.values_mut() {
            if let Some(flight) = slot.flight.take() {
                flight.task.abort();
                slot.version = None;
            }
        }
    }

    fn worked(&mut self, now: Instant) {
        self.error = None;
        self.probe_only = false;
        if let Some(outage) = self.outage.take() {
            info!(after = ?(now - outage.since), "the registry answers again");
        }
    }

    /// Takes in a write, or a look in its place, that failed.
    fn failed(&mut self, started: Instant, now: Instant, error: &TargetError) {
        count(&self.metrics, error);
        self.error = Some(error.to_string());
        let outage = match &mut self.outage {
            Some(outage) => {
                // Of several that failed together, one counts.
                if started >= outage.retry_at {
                    outage.again(now, error);
                }
                outage
            }
            none => {
                warn!(%error, "cannot write to the registry; trying again, and probing on");
                none.insert(Outage::begin(now, error))
            }
        };
        if outage.timeouts >= TIMEOUTS_MAX && !self.probe_only {
            warn!(
                "{TIMEOUTS_MAX} writes in a row timed out: writing nothing until the registry answers a read"
            );
            self.probe_only = true;
            self.give_up_puts();
        }
    }

    fn next_deadline(&self, now: Instant) -> Instant {
        let lease = self.lease.as_ref().map(|held| {
            let lost = held.confirmed + self.ttl;
            held.due.map_or(lost, |due| due.min(lost))
        });
        let retry = self.outage.map(|outage| outage.retry_at);
        let retry = retry.filter(|retry_at| *retry_at > now);
        // Without either something is under way, or nothing is to be done.
        lease
            .into_iter()
            .chain(retry)
            .min()
            .unwrap_or(now + self.ttl)
    }

    fn publish(&mut self) {
        let mode = if self.probe_only {
            Mode::ProbeOnly
        } else if self.outage.is_some() {
            Mode::Retrying
        } else {
            Mode::Registering
        };
        let stored = self.slots.iter().filter_map(|(key, slot)| {
            let stored = slot.stored.clone()?;
            Some((key.clone(), stored))
        });
        let fresh = Status {
            mode,
            has_lease: self.lease.is_some(),
            registered: stored.collect(),
            error: self.error.clone(),
        };
        for each in Mode::ALL {
            let label = ModeLabel {
                mode: each.as_str(),
            };
            let on = i64::from(each == mode);
            self.metrics.mode.get_or_create(&label).set(on);
        }
        let registered = i64::try_from(fresh.registered.len()).unwrap_or(i64::MAX);
        self.metrics.registered.set(registered);
        self.status.send_if_modified(|status| {
            let differs = *status != fresh;
            if differs {
                *status = fresh;
            }
            differs
        });
    }

    async fn deregister(mut self, within: Duration) -> Result<(), TargetError> {
        self.work.shutdown().await;
        let Some(held) = self.lease.take() else {
            return Ok(());
        };
        let revoked = timeout(within, async {
            loop {
                match self.target.revoke(&held.lease).await {
                    Ok(()) | Err(TargetError::LeaseNotFound) => return,
                    Err(error) => count(&self.metrics, &error),
                }
                sleep(REVOKE_PAUSE).await;
            }
        });
        revoked.await.map_err(|_| TargetError::Timeout(within))
    }
}

fn count(metrics: &Metrics, error: &TargetError) {
    let label = KindLabel { kind: error.code() };
    metrics.store_errors.get_or_create(&label).inc();
}
