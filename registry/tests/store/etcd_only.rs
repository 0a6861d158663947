//! etcd alone: members that fail.

use std::time::Duration;

use futures::stream::StreamExt;
use registry::store::{
    Compare, EtcdOptions, EtcdStore, Revision, Store, StoreError, WatchBatch, WatchError,
};

use super::support::etcd::Cluster;
use super::support::{eventually, within};
use super::{bytes, next};

/// A hung member must be detected within this: keepalive interval and time-out, or one request
/// time-out, and a second for a busy machine.
const NOTICED: Duration = Duration::from_secs(3);

/// Watches like a user of the store: resumes from the last revision when the watch is disconnected.
async fn next_resumed(store: &EtcdStore, after: Revision) -> WatchBatch {
    eventually("a batch, from this member or another", || async {
        match next(&mut store.watch("/", after)).await {
            Ok(batch) => Some(batch),
            Err(WatchError::Disconnected(_)) => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_member_is_killed_calls_and_watches_go_on() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.store().await;
    let put = store.put("/k", bytes("1"), None).await.unwrap();
    let lease = store.lease_grant(Duration::from_secs(30)).await.unwrap();
    let mut watch = store.watch("/", put);
    let put = store.put("/k", bytes("2"), None).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, put);

    cluster.kill(0);
    let broken = within(NOTICED, "the watch notices", watch.next()).await;
    let broken = broken.unwrap().unwrap_err();
    assert!(matches!(broken, WatchError::Disconnected(_)), "{broken}");
    // The dead member may have been the leader; the others elect one first.
    eventually("a member leads", || async { store.list("").await.ok() }).await;
    within(NOTICED, "a lease is kept", store.lease_keep_alive(lease))
        .await
        .unwrap();
    let put = within(NOTICED, "a put", store.put("/k", bytes("3"), None))
        .await
        .unwrap();
    let resumed = next_resumed(&store, Revision(put.0 - 1)).await;
    assert_eq!(resumed.revision, put);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_made_though_the_first_member_is_down() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.store().await;
    cluster.kill(0);
    let other = EtcdStore::new(EtcdOptions::new(cluster.endpoints()[1..].to_vec()))
        .await
        .unwrap();
    eventually("a member leads", || async { other.list("").await.ok() }).await;
    // Refused connections do not fail a change: nothing was sent.
    let before = other.list("").await.unwrap().revision;
    let put = store.put("/k", bytes("1"), None).await.unwrap();
    assert_eq!(put, Revision(before.0 + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_member_hangs_calls_and_watches_go_on() {
    let cluster = Cluster::start(3).await;
    let store = cluster.store().await;
    let put = store.put("/k", bytes("1"), None).await.unwrap();
    let lease = store.lease_grant(Duration::from_secs(30)).await.unwrap();
    let mut watch = store.watch("/", Revision(put.0 - 1));
    assert_eq!(next(&mut watch).await.unwrap().revision, put);

    // A store without the first endpoint: it shows when the others have a leader again.
    let others = EtcdStore::new(EtcdOptions::new(cluster.endpoints()[1..].to_vec()))
        .await
        .unwrap();
    cluster.pause(0);
    let broken = within(NOTICED, "the watch notices", watch.next()).await;
    let broken = broken.unwrap().unwrap_err();
    assert!(
        matches!(broken, WatchError::Disconnected(StoreError::Timeout { .. })),
        "{broken}"
    );
    eventually("the other members lead", || async {
        others.list("").await.ok()
    })
    .await;
    within(NOTICED, "a lease is kept", store.lease_keep_alive(lease))
        .await
        .unwrap();
    let put = within(NOTICED, "a put", store.put("/k", bytes("2"), None))
        .await
        .unwrap();
    let resumed = next_resumed(&store, Revision(put.0 - 1)).await;
    assert_eq!(resumed.revision, put);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_member_hangs_a_read_is_answered_by_another_and_a_change_fails_in_time() {
    let cluster = Cluster::start(3).await;
    let reader = cluster.store().await;
    let writer = cluster.store().await;
    let keeper = cluster.store().await;
    let lease = keeper.lease_grant(Duration::from_secs(30)).await.unwrap();
    reader.put("/k", bytes("1"), None).await.unwrap();
    writer.get("/k").await.unwrap();
    let others = EtcdStore::new(EtcdOptions::new(cluster.endpoints()[1..].to_vec()))
        .await
        .unwrap();

    cluster.pause(0);
    eventually("the other members lead", || async {
        others.list("").await.ok()
    })
    .await;
    let (read, kept, written) = tokio::join!(
        within(NOTICED, "a read", reader.get("/k")),
        within(NOTICED, "a lease is kept", keeper.lease_keep_alive(lease)),
        within(NOTICED, "a change", writer.put("/k", bytes("2"), None)),
    );
    assert_eq!(read.unwrap().unwrap().value, bytes("1"));
    kept.unwrap();
    // Its outcome is unknown, so it is not retried automatically.
    let error = written.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Timeout { .. } | StoreError::Unavailable { .. }
        ),
        "{error}"
    );
    within(
        NOTICED,
        "the next change",
        writer.put("/k", bytes("3"), None),
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_answered_from_old_state() {
    let cluster = Cluster::start(3).await;
    let store = cluster.store().await;
    store.put("/session", bytes("1"), None).await.unwrap();
    let session = store.get("/session").await.unwrap().unwrap();
    cluster.pause(1);
    cluster.pause(2);
    // At once, while the remaining member does not know it yet.
    let compare = vec![Compare::unchanged(&session)];
    let (confirmed, read, listed) = tokio::join!(
        store.txn(compare, vec![], None),
        store.get("/session"),
        store.list("/"),
    );
    confirmed.unwrap_err();
    read.unwrap_err();
    listed.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_watch_stays_open() {
    let cluster = Cluster::start(1).await;
    let store = cluster.store().await;
    let put = store.put("/k", bytes("1"), None).await.unwrap();
    let mut watch = store.watch("/", put);
    // Long enough for etcd to close a connection with too many pings.
    let quiet = tokio::time::timeout(Duration::from_secs(8), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let put = store.put("/k", bytes("2"), None).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, put);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answers_of_another_cluster_are_not_believed() {
    let mut cluster = Cluster::start(1).await;
    let other = Cluster::start(1).await;
    let endpoints = [cluster.endpoints(), other.endpoints()].concat();
    let store = EtcdStore::new(EtcdOptions::new(endpoints)).await.unwrap();
    let was = store.cluster_id().await.unwrap();
    let is = other.store().await.cluster_id().await.unwrap();
    cluster.kill(0);
    let changed = StoreError::ClusterChanged { was, is };
    // The first connection may still be closing.
    let read = eventually("the other cluster answers", || async {
        let error = store.list("").await.unwrap_err();
        (!matches!(error, StoreError::Unavailable { .. })).then_some(error)
    });
    assert_eq!(read.await, changed);
    assert_eq!(store.cluster_id().await, Err(changed.clone()));
    let watched = next(&mut store.watch("", Revision(0))).await;
    assert_eq!(watched, Err(WatchError::Disconnected(changed)));

    // Reading its head does not trust it.
    assert_eq!(store.head().await.unwrap().cluster, is);
    assert_eq!(store.survey("").await.unwrap().0, is);
    assert!(store.list("").await.is_err());
    store.trust(is);
    assert_eq!(store.cluster_id().await, Ok(is));
    let put = store.put("/k", bytes("1"), None).await.unwrap();
    let batch = next(&mut store.watch("", Revision(put.0 - 1))).await;
    assert_eq!(batch.unwrap().revision, put);
}

#[tokio::test]
async fn with_no_member_up_a_call_says_so_in_time() {
    let mut cluster = Cluster::start(1).await;
    let store = cluster.store().await;
    cluster.kill(0);
    let error = within(NOTICED, "a call", store.list("")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    let error = next(&mut store.watch("", Revision(0))).await.unwrap_err();
    assert!(matches!(error, WatchError::Disconnected(_)), "{error}");
}

#[tokio::test]
async fn permission_denied_is_refused() {
    let cluster = Cluster::start(1).await;
    let store = cluster.store().await;
    let connected = etcd_client::Client::connect(cluster.endpoints(), None).await;
    let mut operator = connected.unwrap();
    operator.user_add("root", "secret", None).await.unwrap();
    operator.role_add("root").await.unwrap();
    operator.user_grant_role("root", "root").await.unwrap();
    operator.auth_enable().await.unwrap();

    let read = store.list("/").await.unwrap_err();
    assert!(matches!(read, StoreError::Refused { .. }), "{read}");
    // etcd accepts this watch and cancels it in the same answer.
    let watched = next(&mut store.watch("/", Revision(0))).await.unwrap_err();
    assert!(
        matches!(
            watched,
            WatchError::Disconnected(StoreError::Refused { .. })
        ),
        "{watched}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_compacted_and_present_keys_stay() {
    let cluster = Cluster::start(1).await;
    let store = cluster.store().await;
    let first = store.put("/k", bytes("1"), None).await.unwrap();
    let second = store.put("/k", bytes("2"), None).await.unwrap();
    let third = store.put("/k", bytes("3"), None).await.unwrap();
    let before = next(&mut store.watch("/", first)).await.unwrap();
    assert_eq!(before.revision, second, "there is history");
    store.compact(second).await.unwrap();
    // Another replica may have been faster.
    store.compact(first).await.unwrap();
    store.compact(second).await.unwrap();
    let lost = next(&mut store.watch("/", Revision(first.0 - 1))).await;
    let compacted = second;
    assert_eq!(lost, Err(WatchError::Compacted { compacted }));
    // A watch that had received all earlier events resumes.
    let resumed = next(&mut store.watch("/", second)).await.unwrap();
    assert_eq!(resumed.revision, third);
    assert_eq!(store.get("/k").await.unwrap().unwrap().value, bytes("3"));
    let future = store.compact(Revision(third.0 + 100)).await;
    assert!(future.is_err(), "{future:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_others_are_found_on_both_sides_of_a_prefix() {
    let cluster = Cluster::start(1).await;
    let store = cluster.store().await;
    let outside = async || store.key_outside("/tidegate/").await.unwrap();
    assert_eq!(outside().await, None, "nothing is there");
    for ours in ["/tidegate/", "/tidegate/v1/x", "/tidegate/v2/x"] {
        store.put(ours, bytes("1"), None).await.unwrap();
    }
    assert_eq!(outside().await, None);
    for foreign in ["/tidegate", "/a", "0", "/tidegate0", "/z"] {
        store.put(foreign, bytes("1"), None).await.unwrap();
        assert_eq!(outside().await.as_deref(), Some(foreign));
        store.delete(foreign).await.unwrap();
    }
    let endpoints = cluster.endpoints();
    let mut client = etcd_client::Client::connect(endpoints, None).await.unwrap();
    // Bytes that are not UTF-8.
    client.put([0xff, 0xfe], "1", None).await.unwrap();
    assert!(outside().await.is_some());
}
