//! The way of a change: store and configuration -> [`World`] -> snapshots.
//!
//! The reader follows the store and never loses its place: it resumes from the last revision after a break, and lists anew
//! where history is gone. The engine takes in everything that is there before it builds a snapshot, so that a burst costs one;
//! it waits for nothing, so that a single change goes out at once.

mod confirm;
mod reader;

use std::sync::Arc;

use registry::record::INSTANCES_PREFIX;
use registry::store::{Revision, Store};
use tokio::sync::{mpsc, watch};
use tracing::{error, warn};

pub use self::confirm::Confirm;
use self::reader::Reader;

use crate::{
    ads::service::Snapshots,
    config::Mesh,
    last_good::{Keeper, LastGood},
    metrics::{Metrics, ReasonLabel, ZoneLabel},
    mode::Mode,
    snapshot::{Role, Snapshot},
    world::{Change, World},
};

/// Changes that may wait for the engine. The reader waits when there are more.
const PENDING_MAX: usize = 1_024;
/// What snapshots come of, and who is told.
pub struct Sources {
    pub store: Arc<dyn Store>,
    pub meshes: watch::Receiver<Arc<Mesh>>,
    /// What the store said last before this process began: it is served if the store does not answer.
    pub last_good: Option<LastGood>,
    pub keeper: Keeper,
    pub mode: Mode,
    pub confirm: Confirm,
    pub metrics: Metrics,
}

/// Starts to follow the store and the meshes, and returns where the snapshots appear. The first one appears when everything has
/// been listed once, by the store or from disk: before that, an empty mesh would be a lie. Ends when the receiver of every
/// snapshot is gone.
pub fn start(sources: Sources) -> Snapshots {
    let Sources {
        store,
        meshes,
        metrics,
        ..
    } = sources;
    let (changes, pending) = mpsc::channel(PENDING_MAX);
    let (publisher, snapshots) = watch::channel(None);
    let reader = Reader {
        store,
        changes,
        metrics: metrics.clone(),
        mode: sources.mode,
        keeper: sources.keeper,
        confirm: sources.confirm,
        unsent: sources.last_good.is_some(),
        known: sources.last_good,
        seen: Revision(0),
        doubt: None,
    };
    tokio::spawn(reader.run());
    let world = World::new(Arc::clone(&meshes.borrow()));
    let engine = Engine {
        world,
        listed: false,
        pending,
        meshes,
        publisher,
        metrics,
    };
    tokio::spawn(engine.run());
    snapshots
}

struct Engine {
    world: World,
    listed: bool,
    pending: mpsc::Receiver<Change>,
    meshes: watch::Receiver<Arc<Mesh>>,
    publisher: watch::Sender<Option<Arc<Snapshot>>>,
    metrics: Metrics,
}

impl Engine {
    async fn run(mut self) {
        loop {
            let first = tokio::select! {
                change = self.pending.recv() => change,
                changed = self.meshes.changed() => match changed {
                    Ok(()) => Some(Change::Mesh(Arc::clone(&self.meshes.borrow_and_update()))),
                    // The configuration will not change any more; the store still may.
                    Err(_) => self.pending.recv().await,
                },
                () = self.publisher.closed() => None,
            };
            let Some(first) = first else { return };
            self.apply(first);
            // What has arrived meanwhile goes into the same snapshot, one channel's worth at most.
            for _ in 0..PENDING_MAX {
                let Ok(change) = self.pending.try_recv() else {
                    break;
                };
                self.apply(change);
            }
            self.publish();
        }
    }

    fn apply(&mut self, change: Change) {
        let Some(change) = about_instances(change) else {
            return;
        };
        self.listed |= matches!(change, Change::Listed { .. });
        for rejection in self.world.apply(change) {
            let reason = rejection.error.code();
            warn!(key = rejection.key, error = %rejection.error, "record not used");
            self.metrics
                .records_rejected
                .get_or_create(&ReasonLabel { reason })
                .inc();
        }
    }

    fn publish(&mut self) {
        self.metrics
            .records_unused
            .set(self.world.rejected() as i64);
        self.metrics.instances.set(self.world.instances() as i64);
        if !self.listed {
            return;
        }
        let Some(snapshot) = self.world.snapshot() else {
            return;
        };
        // Zones may have gone.
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
            error!("nobody takes snapshots any more");
        }
    }
}

/// The change without the keys of other kinds; none where nothing is left.
fn about_instances(mut change: Change) -> Option<Change> {
    let about = |key: &str| key.starts_with(INSTANCES_PREFIX);
    let left = match &mut change {
        Change::Listed { entries, .. } | Change::Restored { entries, .. } => {
            entries.retain(|entry| about(&entry.key));
            true
        }
        Change::Put(entry) => about(&entry.key),
        Change::Deleted { key } => about(key),
        Change::Mesh(_) => true,
    };
    left.then_some(change)
}
