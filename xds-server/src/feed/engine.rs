//! Changes and time in, snapshots out: the one task that owns the [`World`].

use std::{sync::Arc, time::Duration};

use imbl::ordmap::DiffItem;
use policy::ZoneState;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{Confirm, PENDING_MAX};
use crate::{
    conditions::Code,
    config::Mesh,
    last_good::Keeper,
    metrics::{Metrics, ReasonLabel, ServiceZoneLabel, ZoneLabel},
    snapshot::{Role, Snapshot},
    store_health::StoreHealth,
    world::{Change, Implausible, Overview, Proposals, Seen, World, ZoneStatus},
};

pub(super) struct Engine {
    pub(super) world: World,
    pub(super) clock: Instant,
    pub(super) listed: bool,
    pub(super) pending: mpsc::Receiver<Change>,
    pub(super) meshes: watch::Receiver<Arc<Mesh>>,
    pub(super) keeper: Keeper,
    pub(super) store_health: StoreHealth,
    pub(super) confirm: Confirm,
    /// The answer to the question whether instances are really gone, while it is open.
    pub(super) asked: Option<oneshot::Receiver<Seen>>,
    /// The answer to the question whether there really is no instance.
    pub(super) asked_bare: Option<oneshot::Receiver<Seen>>,
    pub(super) publisher: watch::Sender<Option<Arc<Snapshot>>>,
    pub(super) overview: watch::Sender<Arc<Overview>>,
    pub(super) proposals: watch::Sender<Proposals>,
    pub(super) metrics: Metrics,
}

impl Engine {
    pub(super) async fn run(mut self) {
        loop {
            let due = self.world.due_ms().map(Duration::from_millis);
            let due = due.map(|due| self.clock + due);
            let change = tokio::select! {
                change = self.pending.recv() => match change {
                    Some(change) => Some(change),
                    None => return,
                },
                Ok(()) = self.meshes.changed() => {
                    Some(Change::Mesh(Arc::clone(&self.meshes.borrow_and_update())))
                }
                seen = answered(&mut self.asked) => {
                    self.world.confirm(seen);
                    None
                }
                _ = answered(&mut self.asked_bare) => {
                    self.world.vouch();
                    None
                }
                () = sleep_until(due) => None,
                () = self.publisher.closed() => return,
            };
            change.into_iter().for_each(|change| self.apply(change));
            // Changes that have arrived meanwhile go into the same snapshot, at most one channel's
            // capacity.
            for _ in 0..PENDING_MAX {
                let Ok(change) = self.pending.try_recv() else {
                    break;
                };
                self.apply(change);
            }
            self.publish();
        }
    }

    fn now_ms(&self) -> u64 {
        // Overflows after half a billion years.
        self.clock.elapsed().as_millis() as u64
    }

    fn apply(&mut self, change: Change) {
        self.listed |= matches!(change, Change::Listed { .. });
        for rejection in self.world.apply(change, self.now_ms()) {
            let reason = rejection.error.code();
            warn!(key = rejection.key, error = %rejection.error, "record not used");
            self.metrics
                .records_rejected
                .get_or_create(&ReasonLabel { reason })
                .inc();
        }
    }

    fn publish(&mut self) {
        if !self.listed {
            return;
        }
        self.world.freeze(self.store_health.frozen());
        let snapshot = self.world.snapshot(self.now_ms());
        self.metrics
            .records_unused
            .set(self.world.rejected().len() as i64);
        self.metrics
            .conditions
            .set(Code::RecordsUnused, "", self.unused());
        self.metrics.instances.set(self.world.instances() as i64);
        self.metrics.instances_kept.set(self.world.kept() as i64);
        self.oversee();
        self.proposals.send_if_modified(|proposals| {
            let changed = !proposals.ptr_eq(self.world.proposals());
            if changed {
                proposals.clone_from(self.world.proposals());
            }
            changed
        });
        // Once there are instances no confirmation is needed: the others have some time to appear.
        let bare = self.world.is_bare() && self.world.instances() == 0;
        if self.asked_bare.is_some() != bare {
            self.asked_bare = bare.then(|| self.confirm.ask());
        }
        let Some(snapshot) = snapshot else {
            return;
        };
        // Zones may have been removed.
        self.metrics.policy_version.clear();
        for (key, view) in snapshot.views() {
            if key.role == Role::Gateway {
                let zone = key.zone.to_string();
                // 48 bits, so the cast is exact.
                self.metrics
                    .policy_version
                    .get_or_create(&ZoneLabel { zone })
                    .set(view.policy_version() as i64);
            }
        }
        self.metrics.snapshots.inc();
        if self.publisher.send(Some(snapshot)).is_err() {
            error!("all receivers of snapshots have ended");
        }
    }

    /// The number of rejected records, and the first of them.
    fn unused(&self) -> Option<String> {
        let rejected = self.world.rejected();
        let first = rejected.iter().next()?;
        let (count, (key, why)) = (rejected.len(), first);
        Some(format!("{count}; the first is {key}: {why}"))
    }

    /// Reports the states of zones, and the changes that the guard rejects.
    fn oversee(&mut self) {
        let before = Arc::clone(&self.overview.borrow());
        self.confirm.follows(self.world.seen());
        let now = Overview {
            statuses: self.world.statuses().clone(),
            implausible: self.world.implausible().cloned(),
            kept: self.world.kept(),
            rejected: self.world.rejected().clone(),
            warnings: self.world.warnings().clone(),
            now_ms: self.now_ms(),
        };
        for change in before.statuses.diff(&now.statuses) {
            let ((service, zone), old, new) = match change {
                DiffItem::Add(at, new) => (at, None, Some(new)),
                DiffItem::Update { old, new } => (new.0, Some(old.1), Some(new.1)),
                DiffItem::Remove(at, old) => (at, Some(old), None),
            };
            self.note(service, zone, old.map(|s| &**s), new.map(|s| &**s));
        }
        // Changes that a confirmation did not cover need another question.
        let vanished = matches!(now.implausible, Some(Implausible::Vanished { .. }));
        if before.implausible != now.implausible || vanished && self.asked.is_none() {
            self.doubt(now.implausible.as_ref());
        }
        for reason in ["vanished", "restored"] {
            let is = now.implausible.as_ref().map(Implausible::code) == Some(reason);
            let gauge = self
                .metrics
                .implausible
                .get_or_create(&ReasonLabel { reason });
            gauge.set(i64::from(is));
        }
        self.overview.send_replace(Arc::new(now));
    }

    /// Asks the operator whether instances are really gone. For a restored store the reader asks.
    fn doubt(&mut self, implausible: Option<&Implausible>) {
        let vanished = implausible.filter(|i| matches!(i, Implausible::Vanished { .. }));
        self.asked = vanished.map(|_| self.confirm.ask());
        match (vanished, implausible) {
            (Some(vanished), _) => {
                error!("{vanished}; if they are really gone, confirm it: `tidegate confirm`")
            }
            (None, None) => info!("the control plane trusts the store again"),
            (None, Some(_)) => {}
        }
        self.store_health.held(vanished.map(ToString::to_string));
        self.keeper.hold(vanished.is_some());
    }

    fn note(&self, service: &str, zone: &str, old: Option<&ZoneStatus>, new: Option<&ZoneStatus>) {
        let label = ServiceZoneLabel {
            service: service.to_owned(),
            zone: zone.to_owned(),
        };
        let Some(new) = new else {
            self.metrics.zone_share.remove(&label);
            return;
        };
        let share = match new.verdict.state {
            ZoneState::Up => new.verdict.share,
            ZoneState::Down | ZoneState::Empty => 0,
        };
        let gauge = self.metrics.zone_share.get_or_create(&label);
        gauge.set(f64::from(share) / f64::from(policy::standing::SHARE_FULL));
        let why = |status: &ZoneStatus| status.verdict.why.as_str();
        if old.map(why) != Some(why(new)) {
            info!(
                service,
                zone,
                was = old.map(why),
                now = why(new),
                share,
                healthy = new.counts.healthy,
                unhealthy = new.counts.unhealthy,
                draining = new.draining,
                "zone"
            );
        }
    }
}

/// Pending forever without a question.
async fn answered(asked: &mut Option<oneshot::Receiver<Seen>>) -> Seen {
    let answer = match asked {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    };
    *asked = None;
    // An error is impossible: the question lives as long as its answer is awaited.
    answer.unwrap_or_default()
}

/// Pending forever if nothing is due.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
