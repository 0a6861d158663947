//! Access to the port, by certificates.

use std::{collections::BTreeMap, net::SocketAddr};

use envoy_types::pb::envoy::{
    config::core::v3::{Locality, Node},
    service::discovery::v3::DiscoveryRequest,
};
use futures::{StreamExt, stream};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use policy::{Policy, fence::HolderId};
use prost::Message;
use protos::{fence::HolderSays, wire};
use tokio::{io::duplex, sync::watch};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    service::Routes,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn;
use xds::Kind;

use super::*;
use crate::{
    access_rules::AccessRules,
    authority::{self, Authorities, HopKeys},
    config::Config,
    discovery::{ZoneViews, proxies::Proxies},
    metrics::Metrics,
    net::access::{Caller, Identity},
    snapshot::{Role, Snapshot, View, ViewKey},
};

const ADS: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const CDS: &str = "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters";
const FENCE: &str = "/tidegate.v1.Fence/Hold";

/// A port where clients may only request zones that their certificates name.
struct Strict {
    services: Arc<Services<xds::Server<ZoneViews>>>,
    proxies: Proxies,
    _publisher: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Strict {
    fn new() -> Strict {
        let text = "listen: {tls: {cert: x, key: x, client_ca: x}}\naccess: {proxies: [{match: '{zone}.example'}]}\nstore: {embedded: {path: x}}\nfilter: {path: x}\nzones: [{name: here, region: r}]\nservices: []\n";
        let mesh = Config::parse("test.yaml", text).expect("good").mesh;
        let meshes = watch::channel(Arc::new(mesh)).1;
        let rules = AccessRules::new(meshes.clone());
        let hop_keys = HopKeys::new(meshes, rules.clone());
        let view = View::new(
            Default::default(),
            Default::default(),
            Arc::new(Policy::Fallback),
            0,
        );
        let key = ViewKey {
            zone: Arc::from("here"),
            role: Role::Gateway,
        };
        let views = BTreeMap::from([(key, Arc::new(view))]);
        let snapshot = Snapshot::new(1, views, Arc::default());
        let (publisher, snapshots) = watch::channel(Some(Arc::new(snapshot)));
        let (proxies, metrics) = (Proxies::default(), Metrics::default());
        let fence = authority::service(
            Authorities::none(),
            rules.clone(),
            hop_keys,
            metrics.clone(),
        );
        let views = ZoneViews::new(snapshots, proxies.clone(), metrics).behind(rules);
        let services = Services::new(views.into_server(), Routes::new(fence));
        Strict {
            services: Arc::new(services),
            proxies,
            _publisher: publisher,
        }
    }

    async fn channel(&self, caller: Caller) -> Channel {
        let services = Arc::clone(&self.services);
        let connect = move |_| {
            let peer = Peer {
                address: SocketAddr::from(([127, 0, 0, 1], 1)),
                caller: caller.clone(),
            };
            let (client, server) = duplex(64 * 1024);
            tokio::spawn(transport::serve(server, peer, Arc::clone(&services)));
            async { Ok::<_, std::io::Error>(TokioIo::new(client)) }
        };
        let endpoint = Endpoint::from_static("http://x");
        let connected = endpoint.connect_with_connector(service_fn(connect));
        connected.await.expect("a connection")
    }

    /// The first response to a message.
    async fn ask<M>(&self, caller: Caller, path: &'static str, message: M) -> Result<(), Status>
    where
        M: Message + Default + Clone + 'static,
    {
        let mut grpc = Grpc::new(self.channel(caller).await);
        grpc.ready().await.expect("a connection");
        // The server treats a client that has finished sending as gone.
        let messages = stream::once(async { message }).chain(stream::pending());
        let messages = Request::new(messages);
        // The response's fields are not decoded.
        let codec = ProstCodec::<M, ()>::default();
        let path = PathAndQuery::from_static(path);
        let mut answers = grpc.streaming(messages, path, codec).await?.into_inner();
        match answers.message().await? {
            Some(()) => Ok(()),
            None => Err(Status::ok("no answer")),
        }
    }
}

#[tokio::test]
async fn a_certificate_of_another_zone_gets_neither_view_nor_grants() {
    let port = Strict::new();
    let of = |name: &str| {
        Caller::Named(Arc::new(Identity {
            dns: vec![name.to_owned()],
            ..Identity::default()
        }))
    };
    let ask = DiscoveryRequest {
        node: Some(Node {
            id: "one".to_owned(),
            locality: Some(Locality {
                zone: "here".to_owned(),
                ..Locality::default()
            }),
            ..Node::default()
        }),
        type_url: Kind::Cluster.type_url().to_owned(),
        ..DiscoveryRequest::default()
    };
    let says = HolderSays::Hello {
        holder: HolderId(7),
        zone: "here".into(),
        node: "one".to_owned(),
        role: "gateway".to_owned(),
    };
    let fence = wire::HolderMessage::from(&says);
    let denied = |answer: Result<(), Status>| {
        assert_eq!(answer.expect_err("denied").code(), Code::PermissionDenied);
    };
    for caller in [of("there.example"), Caller::Anonymous, Caller::Plain] {
        denied(port.ask(caller.clone(), ADS, ask.clone()).await);
        denied(port.ask(caller.clone(), CDS, ask.clone()).await);
        denied(port.ask(caller, FENCE, fence.clone()).await);
    }
    assert_eq!(port.proxies.clients().count(), 0);
    // The request is permitted, and has an empty response.
    let answer = port.ask(of("here.example"), FENCE, fence).await;
    assert_eq!(answer.expect_err("nothing").code(), Code::Unavailable);
    port.ask(of("here.example"), ADS, ask.clone())
        .await
        .expect("a response");
    let nobody = DiscoveryRequest { node: None, ..ask };
    let answer = port.ask(of("here.example"), ADS, nobody).await;
    assert_eq!(answer.expect_err("no node").code(), Code::InvalidArgument);
}
