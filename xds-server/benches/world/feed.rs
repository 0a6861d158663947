//! The same changes, from the watch of a scripted store.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use registry::store::{
    ClusterId, Compare, Entry, Event, Head, LeaseId, Listing, Op, Revision, Store, StoreError,
    TxnOutcome, WatchBatch, WatchError,
};
use std::sync::Mutex;
use tokio::sync::{mpsc, watch};
use xds_server::{
    config::Mesh,
    feed::{self, Sources},
    last_good::Keeper,
    metrics::Metrics,
    store_health::StoreHealth,
};

use super::{Spread, changes, cpu_us, entry};

type Batch = Result<WatchBatch, WatchError>;

/// Lists its entries once, and passes on its events. It never writes.
struct Script {
    entries: Mutex<Vec<Entry>>,
    batches: Mutex<Option<mpsc::Receiver<Batch>>>,
}

pub(super) fn measure(services: usize, mesh: Arc<Mesh>, entries: Vec<Entry>) -> (Spread, Spread) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (events, batches) = mpsc::channel(1);
    let store = Arc::new(Script {
        entries: Mutex::new(entries),
        batches: Mutex::new(Some(batches)),
    });
    let file = tempfile::tempdir().expect("a directory");
    let metrics = Metrics::default();
    let (_meshes, mesh) = watch::channel(mesh);
    let mut feed = runtime.block_on(async {
        feed::start(Sources {
            store,
            meshes: mesh,
            facts: None,
            last_good: None,
            keeper: Keeper::start(file.path().join("state"), None, metrics.clone()),
            store_health: StoreHealth::new(metrics.clone()),
            metrics,
        })
    });
    runtime.block_on(async {
        let first = feed.snapshots.wait_for(Option::is_some).await;
        drop(first.expect("a first snapshot"));
    });
    let mut revision = 1;
    let spreads = changes(services, |at, value| {
        revision += 1;
        let begin = cpu_us();
        runtime.block_on(async {
            let batch = WatchBatch {
                revision: Revision(revision),
                events: vec![Event::Put(entry(at, value, revision))],
            };
            events.send(Ok(batch)).await.expect("a reader");
            feed.snapshots.changed().await.expect("a snapshot");
            drop(feed.snapshots.borrow_and_update());
        });
        cpu_us() - begin
    });
    runtime.shutdown_timeout(Duration::from_secs(10));
    spreads
}

fn unavailable<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable {
        detail: "it is a script".to_owned(),
    })
}

#[async_trait]
impl Store for Script {
    async fn list(&self, _: &str) -> Result<Listing, StoreError> {
        unavailable()
    }

    async fn get(&self, _: &str) -> Result<Option<Entry>, StoreError> {
        unavailable()
    }

    fn watch(&self, _: &str, _: Revision) -> BoxStream<'static, Batch> {
        let batches = self.batches.lock().expect("no panic").take();
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(
            batches.expect("it is watched once"),
        ))
    }

    async fn txn(
        &self,
        _: Vec<Compare>,
        _: Vec<Op>,
        _: Option<Vec<Op>>,
    ) -> Result<TxnOutcome, StoreError> {
        unavailable()
    }

    async fn lease_grant(&self, _: Duration) -> Result<LeaseId, StoreError> {
        unavailable()
    }

    async fn lease_keep_alive(&self, _: LeaseId) -> Result<Duration, StoreError> {
        unavailable()
    }

    async fn lease_revoke(&self, _: LeaseId) -> Result<(), StoreError> {
        unavailable()
    }

    async fn cluster_id(&self) -> Result<ClusterId, StoreError> {
        Ok(ClusterId(1))
    }

    async fn head(&self) -> Result<Head, StoreError> {
        Ok(Head {
            cluster: ClusterId(1),
            // Never below the revisions of its events.
            revision: Revision(i64::MAX),
        })
    }

    async fn survey(&self, _: &str) -> Result<(ClusterId, Listing), StoreError> {
        let entries = std::mem::take(&mut *self.entries.lock().expect("no panic"));
        let listing = Listing {
            revision: Revision(1),
            entries,
        };
        Ok((ClusterId(1), listing))
    }

    fn trust(&self, _: ClusterId) {}
}
