//! The promises of both stores about leases.

use std::collections::HashSet;
use std::time::Duration;

use registry::store::{Event, Op, Revision, StoreError};

use super::support::eventually;
use super::{Fixture, bytes, keys, next};

/// The shortest lease that an etcd with default time-outs grants.
const SHORT_LEASE: Duration = Duration::from_secs(2);

pub(super) async fn a_lease_that_expires_deletes_its_keys_as_events(fixture: Fixture) {
    let store = fixture.store;
    let lease = store.lease_grant(SHORT_LEASE).await.unwrap();
    for key in ["/l/1", "/l/2", "/l/3"] {
        store.put(key, bytes("v"), Some(lease)).await.unwrap();
    }
    // This key leaves its lease before the end.
    let put = store.put("/l/3", bytes("v"), None).await.unwrap();
    let mut watch = store.watch("/l/", put);
    let batch = next(&mut watch).await.unwrap();
    let mut deleted: Vec<Event> = batch.events;
    deleted.sort_by(|a, b| a.key().cmp(b.key()));
    let expected = ["/l/1", "/l/2"].map(|key| Event::Delete {
        key: key.to_owned(),
        revision: batch.revision,
    });
    assert_eq!(deleted, expected);
    assert_eq!(keys(&store.list("/l/").await.unwrap()), ["/l/3"]);
}

pub(super) async fn a_lease_kept_alive_stays(fixture: Fixture) {
    let store = fixture.store;
    let kept = store.lease_grant(SHORT_LEASE).await.unwrap();
    store.put("/kept", bytes("v"), Some(kept)).await.unwrap();
    // The renewed lease outlives two leases without renewal, one after the other.
    for _ in 0..2 {
        let left = store.lease_grant(SHORT_LEASE).await.unwrap();
        store.put("/left", bytes("v"), Some(left)).await.unwrap();
        eventually("the lease that is left alone ends", || async {
            let ttl = store.lease_keep_alive(kept).await.unwrap();
            assert!(ttl >= SHORT_LEASE, "{ttl:?}");
            store.get("/left").await.unwrap().is_none().then_some(())
        })
        .await;
    }
    let entry = store.get("/kept").await.unwrap().unwrap();
    assert_eq!(entry.lease, Some(kept));
}

pub(super) async fn a_revoked_lease_deletes_its_keys(fixture: Fixture) {
    let store = fixture.store;
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let other = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    assert_ne!(lease, other);
    let ops = vec![
        Op::put_leased("/l/1", "v", lease),
        Op::put_leased("/l/2", "v", lease),
        Op::put_leased("/l/3", "v", other),
    ];
    let put = store.txn(vec![], ops, None).await.unwrap().revision;
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(keys(&store.list("/l/").await.unwrap()), ["/l/3"]);
    let batch = next(&mut store.watch("/l/", put)).await.unwrap();
    assert_eq!(batch.revision, Revision(put.0 + 1));
    let deleted: HashSet<&str> = batch.events.iter().map(Event::key).collect();
    assert_eq!(deleted, HashSet::from(["/l/1", "/l/2"]));
}

pub(super) async fn a_lease_that_ended_cannot_be_used(fixture: Fixture) {
    let store = fixture.store;
    let revoked = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    store.lease_revoke(revoked).await.unwrap();
    let expired = store.lease_grant(SHORT_LEASE).await.unwrap();
    store.put("/l", bytes("v"), Some(expired)).await.unwrap();
    eventually("the lease expires", || async {
        store.get("/l").await.unwrap().is_none().then_some(())
    })
    .await;
    let before = store.list("").await.unwrap().revision;
    for lease in [revoked, expired] {
        let kept = store.lease_keep_alive(lease).await;
        assert_eq!(kept, Err(StoreError::LeaseNotFound));
        let ended = store.lease_revoke(lease).await;
        assert_eq!(ended, Err(StoreError::LeaseNotFound));
        let ops = vec![Op::put("/a", "v"), Op::put_leased("/b", "v", lease)];
        let put = store.txn(vec![], ops, None).await;
        assert_eq!(put, Err(StoreError::LeaseNotFound));
    }
    assert_eq!(store.list("").await.unwrap().revision, before);
}
