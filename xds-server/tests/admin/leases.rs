//! Leases belong to the client that they were granted to.

use std::time::Duration;

use registry::lease::{LEASES_PREFIX, LeaseOwner};
use xds_server::{admin::LeaseOwners, net::access::Caller};

use super::{Fixture, RECORD, certified};

const ACCESS: &str = "\
listen: {tls: {cert: c, key: k, client_ca: a}}
access:
  registrars: [{match: 'spiffe://mesh/zone/{zone}'}, {match: 'spiffe://mesh/both', zones: [sh-a]}]
  operators: [{match: 'spiffe://mesh/operator'}]
";

async fn granted(fixture: &Fixture, caller: Caller) -> String {
    let body = r#"{"ttl_s": 60}"#;
    let answer = fixture.ask_as(caller, "POST", "/v1/leases", body).await;
    answer.is(200).body["lease"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_foreign_lease_can_neither_be_kept_alive_nor_revoked_nor_used() {
    let mut fixture = Fixture::start(ACCESS).await;
    let (a, b) = (
        certified("spiffe://mesh/zone/sh-a"),
        certified("spiffe://mesh/zone/sh-b"),
    );
    let lease = granted(&fixture, a.clone()).await;
    let keep_alive = format!("/v1/leases/{lease}/keepalive");
    let revoke = format!("/v1/leases/{lease}");
    let put = |zone: &str| format!("/v1/instances/orders/{zone}/1?lease={lease}");
    // Also by another replica, which has not granted it.
    for _ in 0..2 {
        for (method, path) in [
            ("POST", &keep_alive),
            ("DELETE", &revoke),
            ("PUT", &put("sh-b")),
        ] {
            let answer = fixture.ask_as(b.clone(), method, path, RECORD).await;
            let answer = answer.is(404);
            let (reason, detail) = answer.problem();
            assert_eq!(reason, "lease_not_found");
            assert!(detail.contains("spiffe://mesh/zone/sh-b"), "{detail}");
        }
        fixture.admin.owners = LeaseOwners::default();
    }
    fixture
        .ask_as(a.clone(), "POST", &keep_alive, "")
        .await
        .is(204);
    fixture
        .ask_as(a.clone(), "PUT", &put("sh-a"), RECORD)
        .await
        .is(204);
    // A listed operator may.
    let operator = certified("spiffe://mesh/operator");
    fixture
        .ask_as(operator.clone(), "POST", &keep_alive, "")
        .await
        .is(204);
    fixture
        .ask_as(a.clone(), "DELETE", &revoke, "")
        .await
        .is(204);
    for caller in [a, operator] {
        fixture
            .ask_as(caller, "POST", &keep_alive, "")
            .await
            .is(404);
    }
    let left = fixture.store.list("/tidegate/v1/instances/").await.unwrap();
    assert_eq!(left.entries, [], "the record goes with its lease");
    let left = fixture.store.list(LEASES_PREFIX).await.unwrap();
    assert_eq!(left.entries, [], "the owner goes with its lease");
}

#[tokio::test]
async fn a_lease_of_somebody_who_writes_to_the_store_directly_is_foreign() {
    let fixture = Fixture::start("").await;
    let lease = fixture
        .store
        .lease_grant(Duration::from_secs(60))
        .await
        .unwrap();
    let path = format!("/v1/leases/{:x}", lease.0);
    fixture.ask("DELETE", &path, "").await.is(404);
    // Nor does a record help that is not attached to its own lease.
    let key = LeaseOwner::store_key(lease);
    let owner = LeaseOwner::Plaintext.to_json();
    fixture.store.put(&key, owner.into(), None).await.unwrap();
    fixture.ask("DELETE", &path, "").await.is(404);
    for bad in ["0", "-1", "x", "1ffffffffffffffff"] {
        fixture
            .ask("DELETE", &format!("/v1/leases/{bad}"), "")
            .await
            .is(400);
    }
}

#[tokio::test]
async fn leases_cannot_be_guessed() {
    let fixture = Fixture::start("").await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        let lease = granted(&fixture, Caller::Plain).await;
        ids.push(i64::from_str_radix(&lease, 16).unwrap());
    }
    ids.sort_unstable();
    let near = |pair: &[i64]| pair[1] - pair[0] < 1 << 32;
    assert!(!ids.windows(2).any(near), "{ids:x?}");
    assert!(ids.iter().all(|id| *id > 1 << 32), "{ids:x?}");
}
