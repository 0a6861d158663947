//! The way of a change: store and configuration -> [`World`] -> snapshots.
//!
//! The reader follows the store and never loses its place: it resumes from the last revision after a break, and lists anew
//! where history is gone. The engine takes in everything that is there before it builds a snapshot, so that a burst costs one;
//! it waits for nothing, so that a single change goes out at once.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use registry::record::INSTANCES_PREFIX;
use registry::store::{Event, Revision, Store, StoreError, WatchError};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::{
    ads::service::Snapshots,
    config::Mesh,
    metrics::{Metrics, ReasonLabel, ZoneLabel},
    snapshot::{Role, Snapshot},
    world::{Change, World},
};

/// Changes that may wait for the engine. The reader waits when there are more.
const PENDING_MAX: usize = 1_024;
/// How long the reader waits after a failure, at first and at most; doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Starts to follow `store` and `meshes`, and returns where the snapshots appear. The first one appears when everything has
/// been listed once: before that, an empty mesh would be a lie. Ends when the receiver of every snapshot is gone.
pub fn start(
    store: Arc<dyn Store>,
    meshes: watch::Receiver<Arc<Mesh>>,
    metrics: Metrics,
) -> Snapshots {
    let (changes, pending) = mpsc::channel(PENDING_MAX);
    let (publisher, snapshots) = watch::channel(None);
    let reader = Reader {
        store,
        changes,
        metrics: metrics.clone(),
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

struct Reader {
    store: Arc<dyn Store>,
    changes: mpsc::Sender<Change>,
    metrics: Metrics,
}

/// Why the reader has to begin again.
enum Interrupted {
    /// What happened since `Revision` can still be had.
    Resume(Revision, StoreError),
    /// It cannot: list anew.
    Relist,
    /// Nobody listens any more.
    Done,
}

impl Reader {
    async fn run(self) {
        let mut place = None;
        let mut backoff = BACKOFF.0;
        loop {
            let interrupted = match place {
                None => self.list_and_follow(&mut backoff).await,
                Some(revision) => self.follow(revision, &mut backoff).await,
            };
            self.metrics.store_connected.set(0);
            match interrupted {
                Interrupted::Done => return,
                Interrupted::Relist => {
                    info!("history is compacted, listing anew");
                    place = None;
                    continue;
                }
                Interrupted::Resume(revision, error) => {
                    if matches!(error, StoreError::ClusterChanged { .. }) {
                        error!(%error, "the last state stays in force: put the old store back, or restart to trust the new one");
                    } else {
                        warn!(%error, ?backoff, "the store is out of reach; the last state stays in force");
                    }
                    // Before the first listing there is no place to resume from.
                    place = Some(revision).filter(|revision| revision.0 > 0);
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn list_and_follow(&self, backoff: &mut Duration) -> Interrupted {
        let listing = match self.store.list(INSTANCES_PREFIX).await {
            Ok(listing) => listing,
            Err(error) => return Interrupted::Resume(Revision(0), error),
        };
        self.metrics.store_lists.inc();
        info!(
            revision = listing.revision.0,
            records = listing.entries.len(),
            "store listed"
        );
        let entries = listing.entries.into_iter();
        let all = entries.map(|e| (e.key, e.value.to_vec())).collect();
        if self.changes.send(Change::Listed(all)).await.is_err() {
            return Interrupted::Done;
        }
        self.follow(listing.revision, backoff).await
    }

    async fn follow(&self, from: Revision, backoff: &mut Duration) -> Interrupted {
        let mut last = from;
        let mut batches = self.store.watch(INSTANCES_PREFIX, from);
        self.metrics.store_connected.set(1);
        self.metrics.store_revision.set(last.0);
        while let Some(batch) = batches.next().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(WatchError::Compacted { .. }) => return Interrupted::Relist,
                Err(WatchError::Disconnected(error)) => return Interrupted::Resume(last, error),
            };
            *backoff = BACKOFF.0;
            for event in batch.events {
                let change = match event {
                    Event::Put(entry) => Change::Put {
                        key: entry.key,
                        value: entry.value.to_vec(),
                    },
                    Event::Delete { key, .. } => Change::Deleted { key },
                };
                if self.changes.send(change).await.is_err() {
                    return Interrupted::Done;
                }
            }
            last = batch.revision;
            self.metrics.store_revision.set(last.0);
        }
        let detail = "the watch ended without a reason".to_owned();
        Interrupted::Resume(last, StoreError::Unavailable { detail })
    }
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
        self.listed |= matches!(change, Change::Listed(_));
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
