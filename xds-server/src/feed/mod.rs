//! From store and configuration through the [`World`] to snapshots.
//!
//! The reader follows the store and never loses its position: it resumes from the last revision
//! after a disconnection, and lists anew if the history was compacted. The engine applies all
//! waiting changes before it builds a snapshot, so that a burst costs one snapshot. It does not
//! wait for further changes, so that a single change is published at once.

mod confirm;
mod engine;
mod reader;
mod standing_writer;

use std::{sync::Arc, time::Duration};

use registry::store::{Head, Revision, Store};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    conditions::{Code, Conditions},
    config::Mesh,
    discovery::Snapshots,
    last_good::{Keeper, LastGood},
    metrics::Metrics,
    store_event::StoreEvent,
    store_health::StoreHealth,
    world::Overview,
    world::{Proposals, World},
};
use engine::Engine;
use reader::Reader;

pub use confirm::{Confirm, Unconfirmed};

/// The most changes that may wait for the engine. If there are more, the reader waits.
const PENDING_MAX: usize = 1_024;

/// The sources of snapshots, and the receivers of changes.
pub struct Sources {
    pub store: Arc<dyn Store>,
    pub meshes: watch::Receiver<Arc<Mesh>>,
    /// Receives the store's events about authority, if there is a fence.
    pub facts: Option<mpsc::Sender<StoreEvent>>,
    /// The store's last state before this process started. It is served if the store does not
    /// answer.
    pub last_good: Option<LastGood>,
    pub keeper: Keeper,
    pub store_health: StoreHealth,
    pub metrics: Metrics,
}

/// The outputs of the feed.
#[derive(Clone)]
pub struct Feed {
    /// The snapshots for proxies. The first one appears once everything has been listed, by the
    /// store or from disk: an earlier, empty mesh would be wrong.
    pub snapshots: Snapshots,
    /// The states of services, for operators.
    pub overviews: watch::Receiver<Arc<Overview>>,
    /// An operator's confirmation of changes that a guard rejects.
    pub confirm: Confirm,
    /// The followed store, and the revision up to which everything was received; none while no
    /// store is followed.
    pub followed: watch::Receiver<Option<Head>>,
}

/// How long a start may take before a condition reports that there is nothing to serve.
const START_MAX: Duration = Duration::from_secs(5);

/// Begins to follow the store and the meshes. Ends when the receiver of every snapshot is dropped.
pub fn start(sources: Sources) -> Feed {
    let Sources {
        store,
        meshes,
        facts,
        last_good,
        keeper,
        store_health,
        metrics,
    } = sources;
    let conditions = metrics.conditions.clone();
    let confirm = Confirm::default();
    let (changes, pending) = mpsc::channel(PENDING_MAX);
    let (publisher, snapshots) = watch::channel(None);
    let (overview, overviews) = watch::channel(Arc::default());
    let (proposals, proposed) = watch::channel(Proposals::new());
    let (follows, followed) = watch::channel(None);
    let kept = last_good.is_some();
    let reader = Reader {
        store: Arc::clone(&store),
        changes,
        facts,
        silent: false,
        follows,
        metrics: metrics.clone(),
        store_health: store_health.clone(),
        keeper: keeper.clone(),
        confirm: confirm.clone(),
        unsent: kept,
        known: last_good,
        seen: Revision(0),
        doubt: None,
        vanish_percent: meshes.borrow().guard.vanish_percent,
    };
    tokio::spawn(reader.run());
    tokio::spawn(standing_writer::run(
        store,
        proposed,
        store_health.clone(),
        metrics.clone(),
    ));
    let mesh = Arc::clone(&meshes.borrow());
    let engine = Engine {
        world: match kept {
            true => World::new(mesh),
            false => World::new(mesh).unvouched(),
        },
        clock: Instant::now(),
        listed: false,
        pending,
        meshes,
        keeper,
        store_health,
        confirm: confirm.clone(),
        asked: None,
        asked_bare: None,
        publisher,
        overview,
        proposals,
        metrics,
    };
    tokio::spawn(engine.run());
    tokio::spawn(say_if_nothing(snapshots.clone(), conditions));
    Feed {
        snapshots,
        overviews,
        confirm,
        followed,
    }
}

/// Sets a condition until there is a snapshot, unless the first one appears soon.
async fn say_if_nothing<T>(mut snapshots: watch::Receiver<Option<T>>, conditions: Conditions) {
    let mut listed = async || drop(snapshots.wait_for(Option::is_some).await);
    if tokio::time::timeout(START_MAX, listed()).await.is_err() {
        conditions.raise(Code::NothingToServe, "", "");
        listed().await;
        conditions.clear(Code::NothingToServe, "");
    }
}

#[cfg(test)]
mod tests {
    use registry::{
        confirmation::Confirmation,
        store::{EmbeddedOptions, EmbeddedStore, LeaseId, Op},
    };

    use super::*;
    use crate::testing::mesh;

    #[tokio::test]
    async fn records_that_cannot_be_used_are_a_condition_until_they_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = EmbeddedStore::open(EmbeddedOptions::new(path)).await;
        let store: Arc<dyn Store> = Arc::new(store.unwrap());
        let mesh = mesh("a/r", "services: [{name: orders, routes: [{prefix: /}]}]");
        let (_meshes, following) = watch::channel(Arc::new(mesh));
        let metrics = Metrics::default();
        let _feed = start(Sources {
            store: Arc::clone(&store),
            meshes: following,
            facts: None,
            last_good: None,
            keeper: Keeper::none(),
            store_health: StoreHealth::new(metrics.clone()),
            metrics: metrics.clone(),
        });
        let key = "/tidegate/v1/instances/orders/a/one";
        store.put(key, "no record".into(), None).await.unwrap();
        metrics.conditions.until(Code::RecordsUnused, true).await;
        let told = &metrics.conditions.list()[0].detail;
        assert!(
            told.starts_with(&format!("1; the first is {key}: ")),
            "{told}"
        );
        store.delete(key).await.unwrap();
        metrics.conditions.until(Code::RecordsUnused, false).await;
    }

    /// A replica that follows this store, with its earlier state.
    fn replica(
        store: &Arc<dyn Store>,
        last_good: Option<LastGood>,
    ) -> (Feed, StoreHealth, Metrics) {
        let mesh = mesh("a/r", "services: [{name: orders, routes: [{prefix: /}]}]");
        let (meshes, following) = watch::channel(Arc::new(mesh));
        // For as long as the test lasts.
        std::mem::forget(meshes);
        let metrics = Metrics::default();
        let store_health = StoreHealth::new(metrics.clone());
        let feed = start(Sources {
            store: Arc::clone(store),
            meshes: following,
            facts: None,
            last_good,
            keeper: Keeper::none(),
            store_health: store_health.clone(),
            metrics: metrics.clone(),
        });
        (feed, store_health, metrics)
    }

    async fn until_serving(metrics: &Metrics, instances: i64) {
        until_counts(metrics, (instances, 0)).await;
    }

    /// Waits for these counts: served instances, and those of them whose records are gone.
    async fn until_counts(metrics: &Metrics, counts: (i64, i64)) {
        let now = || (metrics.instances.get(), metrics.instances_kept.get());
        let served = tokio::time::timeout(Duration::from_secs(30), async {
            while now() != counts {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        served.await.unwrap_or_else(|_| panic!("{:?}", now()));
    }

    #[tokio::test]
    async fn what_one_replica_is_told_all_believe_and_nobody_believes_what_comes_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = EmbeddedStore::open(EmbeddedOptions::new(path)).await;
        let store: Arc<dyn Store> = Arc::new(store.unwrap());
        let key = |at: &u16| format!("/tidegate/v1/instances/orders/a/{at}");
        let fill = async |instances: std::ops::Range<u16>| {
            for at in instances {
                let record = format!(r#"{{"address": "127.0.0.1", "port": {}}}"#, 1_000 + at);
                store.put(&key(&at), record.into(), None).await.unwrap();
            }
        };
        let empty = async |instances: std::ops::Range<u16>| {
            let ops = instances.map(|at| Op::delete(key(&at))).collect();
            store.txn(vec![], ops, None).await.unwrap();
        };
        fill(0..4).await;
        let (cluster, listing) = store.survey("/tidegate/v1/").await.unwrap();
        let before = LastGood::listed(cluster, listing);
        let (asked, store_health, its) = replica(&store, None);
        let (_other, _, others) = replica(&store, None);
        for metrics in [&its, &others] {
            until_serving(metrics, 4).await;
        }
        let in_advance = asked.confirm.everywhere(&*store, &store_health).await;
        assert!(matches!(in_advance, Err(Unconfirmed::NotAsked)));
        empty(0..4).await;
        for metrics in [&its, &others] {
            metrics.conditions.until(Code::ChangeHeld, true).await;
        }
        asked
            .confirm
            .everywhere(&*store, &store_health)
            .await
            .unwrap();
        for metrics in [&its, &others] {
            metrics.conditions.until(Code::ChangeHeld, false).await;
            until_serving(metrics, 0).await;
        }
        // The first replica restarts before it has kept the operator's confirmation.
        let (_again, _, started) = replica(&store, Some(before));
        until_serving(&started, 0).await;
        assert!(!started.conditions.holds(Code::ChangeHeld));
        // The confirmation does not cover instances that disappear later.
        fill(4..8).await;
        for metrics in [&its, &others, &started] {
            until_serving(metrics, 4).await;
        }
        empty(4..8).await;
        for metrics in [&its, &others, &started] {
            metrics.conditions.until(Code::ChangeHeld, true).await;
        }
    }

    /// A record takes time to be written, and lasts for a while: the operator has not seen the
    /// changes of that time.
    #[tokio::test]
    async fn nobody_believes_what_an_operator_has_not_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = EmbeddedStore::open(EmbeddedOptions::new(path)).await;
        let store: Arc<dyn Store> = Arc::new(store.unwrap());
        let key = |at: u16| format!("/tidegate/v1/instances/orders/a/{at}");
        let empty = async |instances: std::ops::Range<u16>| {
            let ops = instances.map(|at| Op::delete(key(at))).collect();
            store.txn(vec![], ops, None).await.unwrap();
        };
        for at in 0..10 {
            let record = format!(r#"{{"address": "127.0.0.1", "port": {}}}"#, 1_000 + at);
            store.put(&key(at), record.into(), None).await.unwrap();
        }
        let (cluster, listing) = store.survey("/tidegate/v1/").await.unwrap();
        let before = LastGood::listed(cluster, listing);
        let (_feed, _, metrics) = replica(&store, None);
        until_serving(&metrics, 10).await;
        empty(0..6).await;
        metrics.conditions.until(Code::ChangeHeld, true).await;
        // The operator reads this state.
        let seen = store.head().await.unwrap().revision;
        empty(6..9).await;
        let confirmation = Confirmation::of(cluster, seen, 4);
        let at = Confirmation::store_key(LeaseId(1));
        let value = confirmation.to_json();
        store.put(&at, value.into(), None).await.unwrap();
        until_counts(&metrics, (4, 3)).await;
        metrics.conditions.until(Code::ChangeHeld, true).await;
        // The same for a replica that starts while the record lasts, with or without its earlier
        // state.
        let (_again, _, started) = replica(&store, Some(before));
        started.conditions.until(Code::ChangeHeld, true).await;
        until_counts(&started, (10, 9)).await;
        empty(9..10).await;
        let (bare, _, _) = replica(&store, None);
        let mut snapshots = bare.snapshots;
        let first = snapshots.wait_for(Option::is_some).await.unwrap().clone();
        assert!(first.is_some_and(|snapshot| snapshot.is_bare()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_without_anything_to_serve_is_a_condition_until_there_is_something() {
        let (publisher, snapshots) = watch::channel(None);
        let conditions = Conditions::new();
        let said = tokio::spawn(say_if_nothing(snapshots, conditions.clone()));
        tokio::time::sleep(START_MAX / 2).await;
        assert!(!conditions.holds(Code::NothingToServe));
        tokio::time::sleep(START_MAX).await;
        assert!(conditions.holds(Code::NothingToServe));
        publisher.send_replace(Some("a snapshot"));
        said.await.unwrap();
        assert!(!conditions.holds(Code::NothingToServe));
    }
}
