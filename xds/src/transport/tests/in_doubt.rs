//! A snapshot that may be empty by mistake, and clients that reconnect.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use envoy_types::pb::envoy::{
    config::cluster::v3::Cluster, service::discovery::v3::DeltaDiscoveryRequest,
};
use h2::{RecvStream, SendStream};
use tonic::Status;

use super::*;
use crate::{Discovery, Events, Resource, Resources, resource::Digest, stream::Variant};

const DELTA: &str =
    "http://x/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const ENDPOINTS: &str =
    "http://x/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints";
/// A cluster, and its endpoints.
const ORDERS: &str = "orders/here";
const LISTENER: &str = "gateway";
/// Longer than a stream may take to list the resources that it holds.
const LONG: Duration = Duration::from_secs(60);

/// A resource with this name and content. The protocol does not depend on the type of message.
fn resource(name: &str, content: &str) -> Arc<Resource> {
    let message = Cluster {
        name: name.to_owned(),
        alt_stat_name: content.to_owned(),
        ..Cluster::default()
    };
    Arc::new(Resource::encode(name, &message))
}

/// A view, and whether it may be empty by mistake.
struct Snapshot {
    view: Arc<View>,
    is_in_doubt: bool,
}

impl Snapshot {
    fn of(instances: &str) -> Snapshot {
        let mut resources: [Resources; Kind::ALL.len()] = Default::default();
        for (kind, name, content) in [
            (Kind::Cluster, ORDERS, "as ever"),
            (Kind::Endpoints, ORDERS, instances),
            (Kind::Listener, LISTENER, "as ever"),
        ] {
            let resource = resource(name, content);
            resources[kind.index()].insert(Arc::clone(&resource.name), resource);
        }
        let needed = std::iter::once(Arc::from(ORDERS)).collect();
        Snapshot {
            view: Arc::new(View::new(resources, needed)),
            is_in_doubt: false,
        }
    }

    fn in_doubt(self) -> Snapshot {
        Snapshot {
            is_in_doubt: true,
            ..self
        }
    }
}

#[derive(Clone)]
struct Store(Snapshots<Snapshot>);

impl Discovery for Store {
    type Peer = ();
    type Key = ();
    type Snapshot = Snapshot;

    fn snapshots(&self) -> Snapshots<Snapshot> {
        self.0.clone()
    }

    fn admit(&self, _: &(), _: Option<&Node>, _: Variant, _: &Snapshot) -> Result<(), Status> {
        Ok(())
    }

    fn view(&self, snapshot: &Arc<Snapshot>, (): &()) -> Option<Arc<View>> {
        Some(Arc::clone(&snapshot.view))
    }

    fn is_in_doubt(&self, snapshot: &Snapshot) -> bool {
        snapshot.is_in_doubt
    }
}

/// How many streams are held back.
#[derive(Clone, Default)]
struct HeldBack(Arc<AtomicUsize>);

impl Events<()> for HeldBack {
    fn held_back_now(&self, streams: usize) {
        self.0.store(streams, Ordering::SeqCst);
    }
}

struct Emptied {
    services: Arc<Services<crate::Server<Store>>>,
    publisher: watch::Sender<Option<Arc<Snapshot>>>,
    held_back: HeldBack,
}

impl Emptied {
    fn new() -> Emptied {
        let emptied = Snapshot::of("none").in_doubt();
        let (publisher, snapshots) = watch::channel(Some(Arc::new(emptied)));
        let held_back = HeldBack::default();
        let discovery = crate::Server::new(Store(snapshots), held_back.clone());
        Emptied {
            services: Arc::new(Services::new(discovery, Routes::default())),
            publisher,
            held_back,
        }
    }

    fn held_back(&self) -> usize {
        self.held_back.0.load(Ordering::SeqCst)
    }

    async fn open<M: Message>(&self, url: &str, requests: &[M]) -> Client {
        let (mut client, serving) = client(&self.services).await;
        let (response, mut stream) = client.send_request(post(url), false).expect("a stream");
        for request in requests {
            stream.send_data(framed(request), false).expect("sent");
        }
        let body = response.await.expect("an answer").into_body();
        Client {
            stream,
            body,
            _client: client,
            serving,
        }
    }
}

struct Client {
    stream: SendStream<Bytes>,
    body: RecvStream,
    _client: SendRequest<Bytes>,
    serving: JoinHandle<()>,
}

impl Client {
    /// Whether it gets a response.
    async fn is_served(&mut self) -> bool {
        match timeout(LONG, self.body.data()).await {
            Ok(data) => !data.expect("no end").expect("no error").is_empty(),
            Err(_) => false,
        }
    }

    async fn leave(mut self) {
        self.stream.send_reset(h2::Reason::CANCEL);
        drop((self.stream, self.body, self._client));
        self.serving.await.expect("it ends");
    }
}

/// The first request of a reconnecting client, with the version that it holds.
fn delta(kind: Kind, name: &str, holds: Option<&str>) -> DeltaDiscoveryRequest {
    let versions =
        holds.map(|content| (name.to_owned(), resource(name, content).version.to_string()));
    DeltaDiscoveryRequest {
        node: hello("").node,
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: vec![name.to_owned()],
        initial_resource_versions: versions.into_iter().collect::<HashMap<_, _>>(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn sotw(kind: Kind, name: &str, holds: Option<&str>) -> DiscoveryRequest {
    let version = |content| {
        let digest = Digest::default().plus(resource(name, content).digest());
        digest.version().to_string()
    };
    DiscoveryRequest {
        resource_names: vec![name.to_owned()],
        version_info: holds.map(version).unwrap_or_default(),
        ..hello(kind.type_url())
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_of_a_mesh_that_never_had_an_instance_is_served() {
    let emptied = Emptied::new();
    let (same, none) = (Some("as ever"), Some("none"));
    let requests = [
        delta(Kind::Cluster, ORDERS, same),
        delta(Kind::Endpoints, ORDERS, none),
        delta(Kind::Listener, LISTENER, Some("of another configuration")),
    ];
    assert!(emptied.open(DELTA, &requests).await.is_served().await);
    let requests = [
        sotw(Kind::Cluster, ORDERS, same),
        sotw(Kind::Endpoints, ORDERS, none),
        sotw(Kind::Listener, LISTENER, Some("of another configuration")),
    ];
    assert!(emptied.open(ADS, &requests).await.is_served().await);
    // A new client, and a client without any resource that depends on instances.
    let requests = [delta(Kind::Listener, LISTENER, None)];
    assert!(emptied.open(DELTA, &requests).await.is_served().await);
    let requests = [delta(Kind::Listener, LISTENER, Some("another"))];
    assert!(emptied.open(DELTA, &requests).await.is_served().await);
    assert_eq!(emptied.held_back(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_holds_instances_is_sent_nothing_until_there_are_some() {
    let emptied = Emptied::new();
    let (same, other) = (Some("as ever"), Some("three instances"));
    let with_listener = Some("of another configuration");
    let delta = [
        delta(Kind::Cluster, ORDERS, same),
        delta(Kind::Endpoints, ORDERS, other),
        delta(Kind::Listener, LISTENER, with_listener),
    ];
    let sotw = [
        sotw(Kind::Cluster, ORDERS, same),
        sotw(Kind::Endpoints, ORDERS, other),
        sotw(Kind::Listener, LISTENER, with_listener),
    ];
    let mut one = emptied.open(DELTA, &delta).await;
    let mut two = emptied.open(ADS, &sotw).await;
    let alone = emptied.open(ENDPOINTS, &delta[1..2]).await;
    assert!(!one.is_served().await && !two.is_served().await);
    assert_eq!(emptied.held_back(), 3);
    alone.leave().await;
    assert_eq!(emptied.held_back(), 2, "the others wait");
    let come_back = Arc::new(Snapshot::of("three instances"));
    emptied.publisher.send(Some(come_back)).expect("read");
    assert!(one.is_served().await && two.is_served().await);
    assert_eq!(emptied.held_back(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_keeps_its_endpoints_to_itself_is_sent_nothing() {
    let emptied = Emptied::new();
    let requests = [
        delta(Kind::Cluster, ORDERS, Some("as ever")),
        delta(Kind::Listener, LISTENER, Some("another")),
    ];
    let mut client = emptied.open(DELTA, &requests).await;
    assert!(!client.is_served().await);
    assert_eq!(emptied.held_back(), 1);
    // The client requests it late.
    let endpoints = framed(&delta(Kind::Endpoints, ORDERS, Some("none")));
    client.stream.send_data(endpoints, false).expect("sent");
    assert!(client.is_served().await);
    assert_eq!(emptied.held_back(), 0);
}
