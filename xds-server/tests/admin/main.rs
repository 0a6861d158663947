//! The admin interface, without sockets: the rights of each client, and the responses.

mod drains;
mod leases;
mod module;
mod pages;
mod registrations;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
};
use http::{Method, StatusCode};
use registry::store::{EmbeddedOptions, EmbeddedStore, Store};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};
use tower_service::Service;
use xds_server::{
    access_rules::AccessRules,
    admin::{Admin, LeaseOwners},
    applied::Applied,
    authority::{Agreements, Authorities},
    discovery::proxies::Proxies,
    feed::{self, Feed, Sources},
    guests::{GuestLists, Guests},
    istio::Objects,
    last_good::Keeper,
    metrics::Metrics,
    net::access::{Caller, Identity},
    net::tls::Peer,
    store_health::StoreHealth,
    testing,
    world::Overview,
};

/// Longer than any operation takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const RECORD: &str = r#"{"address": "10.0.0.1", "port": 80}"#;

/// A control plane with an embedded store, zones `sh-a` and `sh-b` of shanghai, and `bj-c` of
/// beijing.
struct Fixture {
    admin: Admin,
    feed: Feed,
    store: Arc<dyn Store>,
    _directory: TempDir,
}

/// A response.
struct Answer {
    status: StatusCode,
    body: Value,
}

impl Answer {
    /// The reason and the text of a problem.
    fn problem(&self) -> (&str, &str) {
        let text = |field: &str| self.body[field].as_str().unwrap_or_default();
        (text("reason"), text("detail"))
    }

    #[track_caller]
    fn is(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self
    }
}

impl Fixture {
    /// `more` is a part of the configuration.
    async fn start(more: &str) -> Fixture {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let store = EmbeddedStore::open(EmbeddedOptions::new(path)).await;
        let store: Arc<dyn Store> = Arc::new(store.expect("a store"));
        let services =
            "{name: orders, routes: [{prefix: /orders}]}, {name: web, routes: [{prefix: /}]}";
        let rest = format!("services: [{services}]\n{more}");
        let mesh = testing::mesh("sh-a/shanghai sh-b/shanghai bj-c/beijing", &rest);
        let (_, meshes) = watch::channel(Arc::new(mesh));
        let metrics = Metrics::default();
        let store_health = StoreHealth::new(metrics.clone());
        let feed = feed::start(Sources {
            store: Arc::clone(&store),
            meshes: meshes.clone(),
            facts: None,
            last_good: None,
            keeper: Keeper::none(),
            store_health: store_health.clone(),
            metrics: metrics.clone(),
        });
        let admin = Admin {
            store: Arc::clone(&store),
            store_health,
            authorities: Authorities::none(),
            agreements: Agreements::default(),
            feed: feed.clone(),
            proxies: Proxies::default(),
            applied: Applied::default(),
            counts: metrics.clone(),
            metrics: Arc::new(metrics.registry()),
            rules: AccessRules::new(meshes.clone()),
            guests: Guests::new(
                feed.snapshots.clone(),
                Authorities::none().homes().clone(),
                AccessRules::new(meshes),
                GuestLists::default(),
                metrics.clone(),
            ),
            istio: Objects::none(),
            filter: None,
            owners: LeaseOwners::default(),
        };
        let fixture = Fixture {
            admin,
            feed,
            store,
            _directory: directory,
        };
        let mut snapshots = fixture.feed.snapshots.clone();
        let listed = timeout(PATIENCE, snapshots.wait_for(Option::is_some));
        drop(listed.await.expect("in time").expect("a snapshot"));
        fixture
    }

    /// Sends a request of a client of a plaintext port, with JSON.
    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask_as(Caller::Plain, method, path, body).await
    }

    async fn ask_as(&self, caller: Caller, method: &str, path: &str, body: &str) -> Answer {
        let json = [("content-type", "application/json")];
        self.send(caller, method, path, &json, body).await
    }

    async fn send(
        &self,
        caller: Caller,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut router: Router = self.admin.clone().router();
        let method: Method = method.parse().expect("a method");
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request
            .body(Body::from(body.to_owned()))
            .expect("a request");
        request.extensions_mut().insert(Peer {
            address: SocketAddr::from(([127, 0, 0, 1], 9)),
            caller,
        });
        let answer = router.call(request).await.expect("an answer");
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
        Answer {
            status,
            body: serde_json::from_slice(&body)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned())),
        }
    }

    /// Registers instances that must be accepted, and waits until the world has them.
    async fn registered(&self, instances: &[(&str, &str)]) {
        for (at, record) in instances {
            let path = format!("/v1/instances/{at}");
            self.ask("PUT", &path, record).await.is(204);
        }
        self.overview(|overview| {
            instances.iter().all(|(at, _)| {
                let mut names = at.split('/');
                let service = names.next().unwrap_or_default();
                let zone = names.next().unwrap_or_default();
                let status = overview.statuses.get(&(service.into(), zone.into()));
                status.is_some_and(|status| status.counts.healthy > 0)
            })
        })
        .await;
    }

    async fn overview(&self, is: impl FnMut(&Arc<Overview>) -> bool) {
        let mut overviews = self.feed.overviews.clone();
        let reached = timeout(PATIENCE, overviews.wait_for(is)).await;
        drop(reached.expect("in time").expect("an overview"));
    }

    /// The listing's entry of an instance.
    async fn listed(&self, at: &str) -> Value {
        let all = self.ask("GET", "/v1/instances", "").await.is(200).body;
        let key = format!("/tidegate/v1/instances/{at}");
        let all = all.as_array().expect("a list").iter();
        all.clone()
            .find(|one| one["key"] == key.as_str())
            .cloned()
            .unwrap_or_default()
    }
}

/// A client with a certificate for this URI.
fn certified(uri: &str) -> Caller {
    Caller::Named(Arc::new(Identity {
        uris: vec![uri.to_owned()],
        dns: vec![],
    }))
}
