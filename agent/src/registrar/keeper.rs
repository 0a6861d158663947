//! The registrar's loop: one task that owns the state; every request is a task of its own that
//! reports back to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use registry::record::InstanceKey;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::outage::Outage;
use super::records::{Records, Write};
use super::target::{Lease, Stored, Target, TargetError, Version};
use super::{Mode, Status, Stop};
use crate::instances::Table;
use crate::metrics::{KindLabel, Metrics, ModeLabel, ReasonLabel};

/// So many time-outs of writes, with no success between them, end the writing.
const TIMEOUTS_MAX: u32 = 3;
/// Between two attempts to revoke the lease.
const REVOKE_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Keeper {
    target: Arc<dyn Target>,
    table: watch::Receiver<Table>,
    ttl: Duration,
    status: watch::Sender<Status>,
    metrics: Metrics,
    lease: Option<Held>,
    records: Records,
    /// Of writes: puts and grants.
    outage: Option<Outage>,
    error: Option<String>,
    probe_only: bool,
    granting: bool,
    looking: bool,
    work: JoinSet<Done>,
}

/// The lease in use.
struct Held {
    lease: Lease,
    /// When the request was sent that the registry confirmed last: from then on it counts the time
    /// to live.
    confirmed: Instant,
    /// When to keep it alive next; none while that is under way.
    due: Option<Instant>,
    /// Of keepalives.
    outage: Option<Outage>,
}

/// The result of a request. `started` is when it began.
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
            records: Records::default(),
            outage: None,
            error: None,
            probe_only: false,
            granting: false,
            looking: false,
            work: JoinSet::new(),
        }
    }

    /// Runs until it is told to stop, and how.
    pub(super) async fn run(
        mut self,
        mut stop: oneshot::Receiver<Stop>,
    ) -> Result<(), TargetError> {
        let stop = loop {
            self.start_what_is_due(Instant::now());
            self.publish();
            let wake = self.next_deadline(Instant::now());
            tokio::select! {
                biased;
                notified = &mut stop => match notified {
                    Ok(stop) => break stop,
                    // The registrar is gone, so there is no one to deregister for.
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
        match stop {
            Stop::Deregister { within } => self.deregister(within).await,
            Stop::HandOver { within } => self.hand_over(within).await,
        }
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
        if self
            .outage
            .as_ref()
            .is_some_and(|outage| now < outage.retry_at)
        {
            return;
        }
        let target = Arc::clone(&self.target);
        if self.probe_only {
            self.start_look(now);
        } else if let Some(held) = &self.lease {
            let lease = held.lease.clone();
            self.start_puts(&lease, now);
            if self.outage.is_some() && !self.records.in_flight() {
                // No write is left that could show that the outage is over.
                self.start_look(now);
            }
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

    fn start_look(&mut self, now: Instant) {
        if self.looking {
            return;
        }
        self.looking = true;
        let target = Arc::clone(&self.target);
        self.work.spawn(async move {
            let result = target.look().await;
            Done::Looked {
                started: now,
                result,
            }
        });
    }

    fn start_puts(&mut self, lease: &Lease, now: Instant) {
        let due = self.records.due(&self.table.borrow_and_update());
        for write in due {
            let begun = self.records.begin(&write.key);
            let (target, lease) = (Arc::clone(&self.target), lease.clone());
            let sent = write.clone();
            let task = self.work.spawn(async move {
                let Write { key, record, .. } = sent;
                let result = target.put(&lease, &key, &record, begun.known).await;
                Done::Put {
                    key,
                    number: begun.number,
                    started: now,
                    result,
                }
            });
            self.records.begun(write, begun.number, task);
        }
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
        let records = self.records.certain();
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
            Ok(differing) => differing.into_iter().collect::<BTreeSet<_>>(),
            // The next keepalive asks again.
            Err(error) => {
                count(&self.metrics, &error);
                return;
            }
        };
        for audited in records {
            // Else it has been written since.
            if differing.contains(&audited.key) && self.records.differs(audited) {
                let record = audited.key.store_key();
                warn!(
                    %record,
                    "another client changed or deleted the record; writing it again. Is a second agent configured for it?"
                );
                self.metrics.records_replaced.inc();
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
        let version = result.as_ref().ok().copied();
        if !self.records.answered(key, number, version) {
            return;
        }
        match result {
            Ok(_) => {
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
            "unconfirmed" => "the registry has not confirmed it for its time to live",
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
        self.records.clear();
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
                "{TIMEOUTS_MAX} writes timed out and none succeeded: writes stop until the registry answers a read"
            );
            self.probe_only = true;
            self.records.give_up();
        }
    }

    fn next_deadline(&self, now: Instant) -> Instant {
        let lease = self.lease.as_ref().map(|held| {
            let lost = held.confirmed + self.ttl;
            held.due.map_or(lost, |due| due.min(lost))
        });
        let retry = self.outage.as_ref().map(|outage| outage.retry_at);
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
        let fresh = Status {
            mode,
            has_lease: self.lease.is_some(),
            registered: self.records.acknowledged(),
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

    /// The records go on for the whole time to live from now on.
    async fn hand_over(mut self, within: Duration) -> Result<(), TargetError> {
        self.work.shutdown().await;
        let Some(held) = self.lease.take() else {
            return Ok(());
        };
        let kept = timeout(within, self.target.keep_alive(&held.lease));
        kept.await.unwrap_or(Err(TargetError::Timeout(within)))
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
