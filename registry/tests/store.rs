//! The promises of both stores, checked against both: one function per promise, run with a real
//! etcd and with the embedded store. Tests for one of them alone are in `store/`.

#[path = "store/embedded_only.rs"]
mod embedded_only;
#[path = "store/etcd_only.rs"]
mod etcd_only;
#[path = "store/leases.rs"]
mod leases;
#[path = "store/secured.rs"]
mod secured;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use leases::{
    a_lease_kept_alive_stays, a_lease_that_ended_cannot_be_used,
    a_lease_that_expires_deletes_its_keys_as_events, a_revoked_lease_deletes_its_keys,
};
use registry::store::{
    Compare, EmbeddedOptions, EmbeddedStore, Entry, Event, Listing, Op, Revision, Store,
    StoreError, TXN_BYTES_MAX, TXN_OPERATIONS_MAX, WatchBatch, WatchError,
};
use support::etcd::Cluster;
use support::{DEADLINE, within};
use tempfile::TempDir;

/// An empty store, and its resources.
struct Fixture {
    store: Arc<dyn Store>,
    kind: Kind,
}

enum Kind {
    Etcd(Box<Cluster>),
    Embedded { _directory: TempDir },
}

impl Fixture {
    async fn etcd() -> Self {
        let cluster = Cluster::start(1).await;
        Fixture {
            store: Arc::new(cluster.store().await),
            kind: Kind::Etcd(Box::new(cluster)),
        }
    }

    async fn embedded() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions::new(directory.path().join("store"));
        Fixture {
            store: Arc::new(EmbeddedStore::open(options).await.unwrap()),
            kind: Kind::Embedded {
                _directory: directory,
            },
        }
    }

    /// Compacts the store's history so far.
    async fn compact(&self) {
        match &self.kind {
            Kind::Etcd(cluster) => {
                let revision = self.store.list("").await.unwrap().revision;
                let connected = etcd_client::Client::connect(cluster.endpoints(), None).await;
                connected.unwrap().compact(revision.0, None).await.unwrap();
            }
            Kind::Embedded { .. } => {
                let history = EmbeddedOptions::new("").history_revisions;
                let puts = (0..=history).map(|_| self.store.put("/elsewhere", "x".into(), None));
                let puts: Vec<_> = futures::stream::iter(puts)
                    .buffer_unordered(200)
                    .collect()
                    .await;
                assert!(puts.iter().all(Result::is_ok));
            }
        }
    }
}

/// Runs every promise with both stores.
macro_rules! promises {
    ($($promise:ident)*) => {
        mod with_etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::Fixture::etcd().await).await;
            })*
        }
        mod with_embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::Fixture::embedded().await).await;
            })*
        }
    };
}

promises! {
    a_listing_shows_what_was_put_under_its_prefix
    an_entry_tells_when_it_was_created_and_changed
    a_watch_delivers_whole_revisions_in_order
    a_watch_resumes_without_loss_or_repeat_among_writers
    a_listing_and_a_watch_from_it_make_the_present_state
    compacted_history_is_reported_and_listing_again_works
    of_concurrent_compare_and_swaps_one_wins
    a_compare_sees_keys_created_under_a_prefix
    compares_see_absence_values_and_recreation
    a_transaction_that_changes_nothing_has_no_revision
    transactions_are_bounded
    a_lease_that_expires_deletes_its_keys_as_events
    a_lease_kept_alive_stays
    a_revoked_lease_deletes_its_keys
    a_lease_that_ended_cannot_be_used
    ten_thousand_keys_are_listed_at_one_revision
    large_values_are_listed_and_watched_whole
    a_store_keeps_its_identity
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn keys(listing: &Listing) -> Vec<&str> {
    listing.entries.iter().map(|e| e.key.as_str()).collect()
}

async fn next(
    watch: &mut BoxStream<'static, Result<WatchBatch, WatchError>>,
) -> Result<WatchBatch, WatchError> {
    let next = within(DEADLINE, "the next batch of a watch", watch.next()).await;
    next.expect("a watch that has not ended")
}

async fn a_listing_shows_what_was_put_under_its_prefix(fixture: Fixture) {
    let store = fixture.store;
    for key in ["/a/2", "/a/1", "/b/1", "/a"] {
        store.put(key, bytes(key), None).await.unwrap();
    }
    let last = store.delete("/a/2").await.unwrap();
    let under_a = store.list("/a/").await.unwrap();
    assert_eq!(keys(&under_a), ["/a/1"]);
    assert_eq!(under_a.entries[0].value, bytes("/a/1"));
    assert_eq!(under_a.revision, last);
    assert_eq!(keys(&store.list("").await.unwrap()), ["/a", "/a/1", "/b/1"]);
    assert!(store.list("/none").await.unwrap().entries.is_empty());
}

async fn an_entry_tells_when_it_was_created_and_changed(fixture: Fixture) {
    let store = fixture.store;
    let created = store.put("/k", bytes("1"), None).await.unwrap();
    let changed = store.put("/k", bytes("2"), None).await.unwrap();
    assert_eq!(changed, Revision(created.0 + 1));
    let entry = store.get("/k").await.unwrap().unwrap();
    let expected = Entry {
        key: "/k".to_owned(),
        value: bytes("2"),
        create_revision: created,
        mod_revision: changed,
        lease: None,
    };
    assert_eq!(entry, expected);
    assert_eq!(store.get("/").await.unwrap(), None);
    store.delete("/k").await.unwrap();
    let recreated = store.put("/k", bytes("3"), None).await.unwrap();
    let entry = store.get("/k").await.unwrap().unwrap();
    assert_eq!(entry.create_revision, recreated);
}

async fn a_watch_delivers_whole_revisions_in_order(fixture: Fixture) {
    let store = fixture.store;
    let before = store.list("").await.unwrap().revision;
    let mut watch = store.watch("/w/", before);
    let ops = vec![
        Op::put("/w/1", "a"),
        Op::put("/other", "b"),
        Op::put("/w/2", "c"),
    ];
    let first = store.txn(vec![], ops, None).await.unwrap().revision;
    store.put("/other", bytes("d"), None).await.unwrap();
    let ops = vec![Op::delete("/w/1"), Op::put("/w/2", "e")];
    let second = store.txn(vec![], ops, None).await.unwrap().revision;

    let batch = next(&mut watch).await.unwrap();
    assert_eq!(batch.revision, first);
    let changed: Vec<&str> = batch.events.iter().map(Event::key).collect();
    assert_eq!(changed, ["/w/1", "/w/2"]);
    assert!(batch.events.iter().all(|event| event.revision() == first));

    let batch = next(&mut watch).await.unwrap();
    assert_eq!(batch.revision, second);
    let deleted = Event::Delete {
        key: "/w/1".to_owned(),
        revision: second,
    };
    assert_eq!(batch.events[0], deleted);
    assert!(matches!(&batch.events[1], Event::Put(entry)
        if entry.value == "e" && entry.create_revision == first && entry.mod_revision == second));

    // The same for a watch that begins late.
    let mut late = store.watch("/w/", first);
    assert_eq!(next(&mut late).await.unwrap(), batch);
}

async fn a_watch_resumes_without_loss_or_repeat_among_writers(fixture: Fixture) {
    const WRITERS: usize = 4;
    const PUTS: usize = 50;
    let store = fixture.store;
    let before = store.list("").await.unwrap().revision;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..PUTS {
                    let key = format!("/w/{writer}/{}", i % 7);
                    store.put(&key, bytes(&i.to_string()), None).await.unwrap();
                }
            })
        })
        .collect();
    // Every put has its own revision, so the watch must deliver all revisions without a gap.
    let mut seen = before;
    let last = Revision(before.0 + (WRITERS * PUTS) as i64);
    for stop_after in (1..=5).cycle() {
        let mut watch = store.watch("/w/", seen);
        for _ in 0..stop_after {
            if seen == last {
                break;
            }
            let batch = next(&mut watch).await.unwrap();
            assert_eq!(batch.revision, Revision(seen.0 + 1));
            assert_eq!(batch.events.len(), 1);
            seen = batch.revision;
        }
        if seen == last {
            break;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn a_listing_and_a_watch_from_it_make_the_present_state(fixture: Fixture) {
    let store = fixture.store;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0..150 {
                let key = format!("/s/{}", i * 7 % 20);
                if i % 3 == 0 {
                    store.delete(&key).await.unwrap();
                } else {
                    store.put(&key, bytes(&i.to_string()), None).await.unwrap();
                }
            }
            store.put("/s/end", bytes("end"), None).await.unwrap()
        })
    };
    let listing = store.list("/s/").await.unwrap();
    let mut watch = store.watch("/s/", listing.revision);
    let mut state: BTreeMap<String, Entry> = BTreeMap::new();
    for entry in listing.entries {
        state.insert(entry.key.clone(), entry);
    }
    while !state.contains_key("/s/end") {
        for event in next(&mut watch).await.unwrap().events {
            match event {
                Event::Put(entry) => state.insert(entry.key.clone(), entry),
                Event::Delete { key, .. } => state.remove(&key),
            };
        }
    }
    writer.await.unwrap();
    let now = store.list("/s/").await.unwrap();
    assert_eq!(state.into_values().collect::<Vec<_>>(), now.entries);
}

async fn compacted_history_is_reported_and_listing_again_works(fixture: Fixture) {
    let store = fixture.store.clone();
    let old = store.put("/c", bytes("1"), None).await.unwrap();
    for i in 2..10 {
        store.put("/c", bytes(&i.to_string()), None).await.unwrap();
    }
    fixture.compact().await;
    let mut watch = store.watch("/c", old);
    let error = next(&mut watch).await.unwrap_err();
    assert!(
        matches!(error, WatchError::Compacted { compacted } if compacted > old),
        "{error}"
    );
    let end = within(DEADLINE, "the end after the error", watch.next()).await;
    assert_eq!(end, None);

    let listing = store.list("/c").await.unwrap();
    assert_eq!(listing.entries[0].value, bytes("9"));
    let mut watch = store.watch("/c", listing.revision);
    let put = store.put("/c", bytes("10"), None).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, put);
}

async fn of_concurrent_compare_and_swaps_one_wins(fixture: Fixture) {
    let store = fixture.store;
    store.put("/counter", bytes("0"), None).await.unwrap();
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let store = store.clone();
            tokio::spawn(async move {
                let create = vec![Op::put("/winner", worker.to_string())];
                let compare = vec![Compare::absent("/winner")];
                let won = store.txn(compare, create, None).await.unwrap().succeeded;
                let mut added = 0;
                while added < 10 {
                    let entry = store.get("/counter").await.unwrap().unwrap();
                    let value: u32 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                    let add = vec![Op::put("/counter", (value + 1).to_string())];
                    let compare = vec![Compare::unchanged(&entry)];
                    added += u32::from(store.txn(compare, add, None).await.unwrap().succeeded);
                }
                won
            })
        })
        .collect();
    let won = futures::future::join_all(workers).await;
    let winners = won.into_iter().filter(|won| *won.as_ref().unwrap());
    assert_eq!(winners.count(), 1);
    let counter = store.get("/counter").await.unwrap().unwrap();
    assert_eq!(counter.value, bytes("40"));
}

async fn a_compare_sees_keys_created_under_a_prefix(fixture: Fixture) {
    let store = fixture.store;
    let none_after = |after: Revision| Compare::NoneCreatedAfter {
        prefix: "/p/".to_owned(),
        after,
    };
    let holds = async |compare| {
        let outcome = store.txn(vec![compare], vec![], None).await;
        outcome.unwrap().succeeded
    };
    assert!(holds(none_after(Revision(0))).await, "there is no key");
    let first = store.put("/p/a", bytes("v"), None).await.unwrap();
    assert!(holds(none_after(first)).await);
    assert!(!holds(none_after(Revision(first.0 - 1))).await);
    store.put("/p/a", bytes("w"), None).await.unwrap();
    store.put("/p", bytes("beside it"), None).await.unwrap();
    store.put("/p0", bytes("beside it"), None).await.unwrap();
    assert!(holds(none_after(first)).await, "nothing was created");
    let second = store.put("/p/b", bytes("v"), None).await.unwrap();
    assert!(!holds(none_after(first)).await);
    assert!(holds(none_after(second)).await);
    store.delete("/p/b").await.unwrap();
    assert!(holds(none_after(first)).await, "it is gone");
    let unchanged = store.head().await.unwrap().revision;
    assert!(holds(none_after(second)).await);
    assert_eq!(store.head().await.unwrap().revision, unchanged);
}

async fn compares_see_absence_values_and_recreation(fixture: Fixture) {
    let store = fixture.store;
    let first = store.put("/k", bytes("v"), None).await.unwrap();
    store.delete("/k").await.unwrap();
    let created = store.put("/k", bytes("v"), None).await.unwrap();
    let changed = store.put("/k", bytes("w"), None).await.unwrap();
    let k = || "/k".to_owned();
    let none = || "/none".to_owned();
    let cases = [
        (Compare::absent("/none"), true),
        (Compare::absent("/k"), false),
        (
            Compare::ModRevision {
                key: k(),
                is: changed,
            },
            true,
        ),
        (
            Compare::ModRevision {
                key: k(),
                is: created,
            },
            false,
        ),
        (
            Compare::ModRevision {
                key: none(),
                is: Revision(0),
            },
            true,
        ),
        (
            Compare::CreateRevision {
                key: k(),
                is: created,
            },
            true,
        ),
        (
            Compare::CreateRevision {
                key: k(),
                is: first,
            },
            false,
        ),
        (
            Compare::Value {
                key: k(),
                is: bytes("w"),
            },
            true,
        ),
        (
            Compare::Value {
                key: k(),
                is: bytes("v"),
            },
            false,
        ),
        (
            Compare::Value {
                key: none(),
                is: bytes(""),
            },
            false,
        ),
    ];
    for (compare, holds) in cases {
        // Alone, and together with a compare that holds.
        for compares in [vec![compare.clone()], vec![Compare::absent("/x"), compare]] {
            let outcome = store.txn(compares.clone(), vec![], None).await.unwrap();
            assert_eq!(outcome.succeeded, holds, "{compares:?}");
        }
    }
}

async fn a_transaction_that_changes_nothing_has_no_revision(fixture: Fixture) {
    let store = fixture.store;
    let put = store.put("/k", bytes("v"), None).await.unwrap();
    assert_eq!(store.delete("/none").await.unwrap(), put);
    let compare = vec![Compare::absent("/k")];
    let then = vec![Op::delete("/k")];
    let outcome = store
        .txn(compare.clone(), then.clone(), None)
        .await
        .unwrap();
    assert_eq!((outcome.succeeded, outcome.revision), (false, put));
    let otherwise = Some(vec![Op::put("/else", "v")]);
    let outcome = store.txn(compare, then, otherwise).await.unwrap();
    assert!(!outcome.succeeded);
    assert_eq!(outcome.revision, Revision(put.0 + 1));
    assert_eq!(keys(&store.list("").await.unwrap()), ["/else", "/k"]);
}

async fn transactions_are_bounded(fixture: Fixture) {
    let store = fixture.store;
    let puts = |count: usize, value: &str| -> Vec<Op> {
        let value = bytes(value);
        (0..count)
            .map(|i| Op::put(format!("/t/{i}"), value.clone()))
            .collect()
    };
    let before = store.list("").await.unwrap().revision;
    let max = TXN_OPERATIONS_MAX;
    let refused = [
        (
            puts(max + 1, "v"),
            StoreError::TooManyOperations {
                count: max + 1,
                max,
            },
        ),
        (
            vec![Op::put("k", vec![0; TXN_BYTES_MAX])],
            StoreError::TooLarge {
                bytes: TXN_BYTES_MAX + 1,
                max: TXN_BYTES_MAX,
            },
        ),
    ];
    for (ops, error) in refused {
        assert_eq!(store.txn(vec![], ops, None).await.unwrap_err(), error);
    }
    for ops in [
        vec![Op::put("", "v")],
        [puts(1, "v"), puts(1, "w")].concat(),
    ] {
        let error = store.txn(vec![], ops, None).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid { .. }), "{error}");
    }
    assert_eq!(store.list("").await.unwrap().revision, before);

    let compare = (0..max)
        .map(|i| Compare::absent(format!("/t/{i}")))
        .collect();
    let full = "v".repeat(TXN_BYTES_MAX / max - 32);
    let outcome = store.txn(compare, puts(max, &full), None).await.unwrap();
    assert!(outcome.succeeded);
    assert_eq!(store.list("/t/").await.unwrap().entries.len(), max);
}

async fn ten_thousand_keys_are_listed_at_one_revision(fixture: Fixture) {
    let store = fixture.store;
    let value = Bytes::from(vec![b'v'; 400]);
    for hundred in 0..100 {
        let ops = (0..100).map(|i| Op::put(format!("/many/{hundred:02}{i:02}"), value.clone()));
        store.txn(vec![], ops.collect(), None).await.unwrap();
    }
    // Each change of this writer touches the first and the last key: a listing contains both or
    // neither.
    let listed = Arc::new(tokio::sync::Notify::new());
    let writer = {
        let (store, listed) = (store.clone(), listed.clone());
        tokio::spawn(async move {
            let all_listed = listed.notified();
            tokio::pin!(all_listed);
            for i in 0.. {
                let ops = ["/many/0000", "/many/9999"].map(|key| Op::put(key, i.to_string()));
                let put = store.txn(vec![], ops.to_vec(), None);
                tokio::select! {
                    put = put => { put.unwrap(); }
                    () = &mut all_listed => return,
                }
            }
        })
    };
    for _ in 0..5 {
        let listing = store.list("/many/").await.unwrap();
        assert_eq!(listing.entries.len(), 10_000);
        assert!(listing.entries.is_sorted_by_key(|entry| &entry.key));
        assert_eq!(listing.entries[0].value, listing.entries[9_999].value);
        assert!(
            listing
                .entries
                .iter()
                .all(|e| e.mod_revision <= listing.revision)
        );
    }
    listed.notify_one();
    writer.await.unwrap();
}

async fn large_values_are_listed_and_watched_whole(fixture: Fixture) {
    const REVISIONS: usize = 8;
    const EVENTS: usize = 5;
    let store = fixture.store;
    let before = store.list("").await.unwrap().revision;
    let value = Bytes::from(vec![b'v'; 200_000]);
    for revision in 0..REVISIONS {
        let ops = (0..EVENTS).map(|i| Op::put(format!("/big/{revision}/{i}"), value.clone()));
        store.txn(vec![], ops.collect(), None).await.unwrap();
    }
    // 8 MB: more than etcd puts into one answer, so its listing is paged and its watch split into
    // fragments.
    let listing = store.list("/big/").await.unwrap();
    assert_eq!(listing.entries.len(), REVISIONS * EVENTS);
    let mut watch = store.watch("/big/", before);
    for revision in 0..REVISIONS {
        let batch = next(&mut watch).await.unwrap();
        assert_eq!(batch.revision, Revision(before.0 + 1 + revision as i64));
        assert_eq!(batch.events.len(), EVENTS);
    }
}

async fn a_store_keeps_its_identity(fixture: Fixture) {
    let id = fixture.store.cluster_id().await.unwrap();
    let listing = fixture.store.list("").await.unwrap();
    let head = fixture.store.head().await.unwrap();
    assert_eq!((head.cluster, head.revision), (id, listing.revision));
    assert_eq!(fixture.store.survey("").await.unwrap(), (id, listing));
    fixture.store.trust(id);
    fixture.store.put("/k", bytes("v"), None).await.unwrap();
    assert_eq!(fixture.store.cluster_id().await.unwrap(), id);
    let other = match fixture.kind {
        Kind::Etcd(_) => Fixture::etcd().await,
        Kind::Embedded { .. } => Fixture::embedded().await,
    };
    assert_ne!(other.store.cluster_id().await.unwrap(), id);
}
