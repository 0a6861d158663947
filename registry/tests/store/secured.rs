//! An etcd with TLS and users.

use std::sync::Arc;

use etcd_client::{Client, ConnectOptions, Permission, PermissionType, TlsOptions};
use registry::store::{
    EtcdCredentials, EtcdOptions, EtcdStore, EtcdTls, EtcdUser, RefusedCause, Revision, Store,
    StoreError, WatchError,
};
use tokio::sync::watch;

use super::support::certificates::Ca;
use super::support::etcd::Cluster;
use super::support::eventually;
use super::{bytes, next};

/// The users that tests make. The role `tidegate` has rights to Tidegate's keys alone.
async fn make_users(cluster: &Cluster) -> Client {
    let mut operator = connect(cluster, "operator").await;
    operator.user_add("root", "secret", None).await.unwrap();
    operator.role_add("root").await.unwrap();
    operator.user_grant_role("root", "root").await.unwrap();
    operator.role_add("tidegate").await.unwrap();
    let ours = Permission::new(PermissionType::Readwrite, "/tidegate/").with_prefix();
    operator
        .role_grant_permission("tidegate", ours)
        .await
        .unwrap();
    operator.user_add("tidegate", "first", None).await.unwrap();
    operator
        .user_grant_role("tidegate", "tidegate")
        .await
        .unwrap();
    operator
}

async fn connect(cluster: &Cluster, name: &str) -> Client {
    let tls = cluster.ca.as_ref().map(|ca| ca.client(name));
    let options = ConnectOptions::new();
    let options = match &tls {
        Some(EtcdTls { ca, own, .. }) => {
            let (certificate, key) = own.as_ref().unwrap();
            let tls = TlsOptions::new()
                .ca_certificate(etcd_client::Certificate::from_pem(ca))
                .identity(etcd_client::Identity::from_pem(certificate, key));
            options.with_tls(tls)
        }
        None => options,
    };
    Client::connect(cluster.endpoints(), Some(options))
        .await
        .unwrap()
}

fn user(name: &str, password: &str) -> Option<EtcdUser> {
    Some(EtcdUser {
        name: name.to_owned(),
        password: password.to_owned(),
    })
}

/// A store with credentials that a test renews.
async fn store_of(
    cluster: &Cluster,
    credentials: EtcdCredentials,
) -> (EtcdStore, watch::Sender<Arc<EtcdCredentials>>) {
    let (renew, credentials) = watch::channel(Arc::new(credentials));
    let options = EtcdOptions {
        credentials,
        ..EtcdOptions::new(cluster.endpoints())
    };
    (EtcdStore::new(options).await.unwrap(), renew)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_everything_works_and_foreign_certificates_do_not() {
    let cluster = Cluster::start_with_tls(3).await;
    let store = cluster.store().await;
    let put = store.put("/tidegate/k", bytes("1"), None).await.unwrap();
    let mut watch = store.watch("/tidegate/", Revision(put.0 - 1));
    assert_eq!(next(&mut watch).await.unwrap().revision, put);

    // Of another CA: the member is not trusted, and would not trust the client.
    let (foreign, _) = store_of(
        &cluster,
        EtcdCredentials {
            tls: Some(Ca::new().client("tidegate")),
            user: None,
        },
    )
    .await;
    let error = foreign.list("/tidegate/").await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("invalid peer certificate"), "{told}");
    let watched = next(&mut foreign.watch("/tidegate/", Revision(0))).await;
    assert!(
        matches!(watched, Err(WatchError::Disconnected(_))),
        "{watched:?}"
    );

    // Another name than the members' certificates have.
    let misnamed = EtcdTls {
        server_name: Some("etcd.example".to_owned()),
        ..cluster.ca.as_ref().unwrap().client("tidegate")
    };
    let (misnamed, renew) = store_of(
        &cluster,
        EtcdCredentials {
            tls: Some(misnamed),
            user: None,
        },
    )
    .await;
    let error = misnamed.list("/tidegate/").await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");

    // Renewed credentials are used from the next request on.
    renew.send_replace(cluster.options().credentials.borrow().clone());
    assert_eq!(misnamed.list("/tidegate/").await.unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificates_common_name_is_a_user() {
    let cluster = Cluster::start_with_tls(1).await;
    make_users(&cluster).await.auth_enable().await.unwrap();
    let store = cluster.store().await;
    store.put("/tidegate/k", bytes("1"), None).await.unwrap();
    let foreign = store.put("/k", bytes("1"), None).await.unwrap_err();
    let forbidden = |error: &StoreError| {
        let cause = RefusedCause::Forbidden;
        matches!(error, StoreError::Refused { cause: is, .. } if *is == cause)
    };
    assert!(forbidden(&foreign), "{foreign}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_of_our_keys_alone_may_do_everything_that_a_store_does() {
    let cluster = Cluster::start(1).await;
    make_users(&cluster).await.auth_enable().await.unwrap();
    let (store, _renew) = store_of(
        &cluster,
        EtcdCredentials {
            tls: None,
            user: user("tidegate", "first"),
        },
    )
    .await;
    let ttl = std::time::Duration::from_secs(30);
    let lease = store.lease_grant(ttl).await.unwrap();
    let put = store.put("/tidegate/k", bytes("1"), Some(lease)).await;
    let mut watch = store.watch("/tidegate/", Revision(put.unwrap().0 - 1));
    assert_eq!(next(&mut watch).await.unwrap().events.len(), 1);
    store.lease_keep_alive(lease).await.unwrap();
    store.head().await.unwrap();
    store.cluster_id().await.unwrap();
    assert_eq!(store.alarms().await.unwrap(), []);
    assert_eq!(store.list("/tidegate/").await.unwrap().entries.len(), 1);
    // A transaction that changes nothing.
    store.txn(vec![], vec![], None).await.unwrap();
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().events.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_renewed_wherever_a_member_does_not_take_it() {
    let mut cluster = Cluster::start(1).await;
    let mut operator = make_users(&cluster).await;
    let credentials = |password| EtcdCredentials {
        tls: None,
        user: user("tidegate", password),
    };
    let (store, renew) = store_of(&cluster, credentials("first")).await;
    // Before authentication is switched on nobody needs a token.
    store.put("/tidegate/k", bytes("1"), None).await.unwrap();
    operator.auth_enable().await.unwrap();
    store.put("/tidegate/k", bytes("2"), None).await.unwrap();
    // Another user: the revision of etcd's users is not the token's any more.
    let mut root = {
        let options = ConnectOptions::new().with_user("root", "secret");
        Client::connect(cluster.endpoints(), Some(options))
            .await
            .unwrap()
    };
    root.user_add("someone", "else", None).await.unwrap();
    store.put("/tidegate/k", bytes("3"), None).await.unwrap();
    // A member forgets all tokens when it starts anew.
    cluster.kill(0);
    cluster.revive(0);
    eventually("the member is back", || async { store.head().await.ok() }).await;
    store.put("/tidegate/k", bytes("4"), None).await.unwrap();
    let mut watch = store.watch("/tidegate/", Revision(0));
    next(&mut watch).await.unwrap();

    let changed = {
        let options = ConnectOptions::new().with_user("root", "secret");
        let root = Client::connect(cluster.endpoints(), Some(options)).await;
        root.unwrap()
            .user_change_password("tidegate", "second")
            .await
    };
    changed.unwrap();
    let refused = store
        .put("/tidegate/k", bytes("5"), None)
        .await
        .unwrap_err();
    let is_forbidden = |error: &StoreError| {
        matches!(
            error,
            StoreError::Refused {
                cause: RefusedCause::Forbidden,
                ..
            }
        )
    };
    assert!(is_forbidden(&refused), "{refused}");
    renew.send_replace(Arc::new(credentials("second")));
    store.put("/tidegate/k", bytes("5"), None).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().events.len(), 1);
}
