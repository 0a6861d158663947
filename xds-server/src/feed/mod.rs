//! The way of a change: store and configuration -> [`World`] -> snapshots.
//!
//! The reader follows the store and never loses its place: it resumes from the last revision after a break, and lists anew
//! where history is gone. The engine takes in everything that is there before it builds a snapshot, so that a burst costs one;
//! it waits for nothing, so that a single change goes out at once.

mod engine;
mod steward;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use registry::desired::TIDEGATE_PREFIX;
use registry::store::{Event, Revision, Store, StoreError, WatchError};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{error, info, warn};

use crate::{
    ads::service::Snapshots,
    config::Mesh,
    metrics::Metrics,
    world::{Change, Origin, World},
};
use engine::Engine;

pub use engine::Overview;

/// Changes that may wait for the engine. The reader waits when there are more.
const PENDING_MAX: usize = 1_024;
/// How long the reader waits after a failure, at first and at most; doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What follows from the store and the configuration.
#[derive(Clone)]
pub struct Feed {
    /// What proxies should have. The first one appears when everything has been listed once: before that, an empty mesh
    /// would be a lie.
    pub snapshots: Snapshots,
    /// How services are doing, for people.
    pub overviews: watch::Receiver<Arc<Overview>>,
    /// Raised when an operator confirms what was not believed.
    pub confirmations: watch::Sender<u64>,
}

/// Starts to follow `store` and `meshes`. Ends when the receiver of every snapshot is gone.
pub fn start(store: Arc<dyn Store>, meshes: watch::Receiver<Arc<Mesh>>, metrics: Metrics) -> Feed {
    let (changes, pending) = mpsc::channel(PENDING_MAX);
    let (publisher, snapshots) = watch::channel(None);
    let (overview, overviews) = watch::channel(Arc::default());
    let (proposals, proposed) = watch::channel(BTreeMap::new());
    let (confirmations, confirmed) = watch::channel(0);
    let reader = Reader {
        store: Arc::clone(&store),
        changes,
        metrics: metrics.clone(),
    };
    tokio::spawn(reader.run());
    tokio::spawn(steward::run(store, proposed, metrics.clone()));
    let world = World::new(Arc::clone(&meshes.borrow()));
    let engine = Engine {
        world,
        clock: Instant::now(),
        listed: false,
        pending,
        meshes,
        confirmed,
        publisher,
        overview,
        proposals,
        metrics,
    };
    tokio::spawn(engine.run());
    Feed {
        snapshots,
        overviews,
        confirmations,
    }
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
        let listing = match self.store.list(TIDEGATE_PREFIX).await {
            Ok(listing) => listing,
            Err(error) => return Interrupted::Resume(Revision(0), error),
        };
        self.metrics.store_lists.inc();
        info!(
            revision = listing.revision.0,
            records = listing.entries.len(),
            "store listed"
        );
        let listed = Change::Listed {
            entries: listing.entries,
            revision: listing.revision,
            origin: Origin::Store,
        };
        if self.changes.send(listed).await.is_err() {
            return Interrupted::Done;
        }
        self.follow(listing.revision, backoff).await
    }

    async fn follow(&self, from: Revision, backoff: &mut Duration) -> Interrupted {
        let mut last = from;
        let mut batches = self.store.watch(TIDEGATE_PREFIX, from);
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
                    Event::Put(entry) => Change::Put(entry),
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
