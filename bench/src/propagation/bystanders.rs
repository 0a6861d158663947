//! Two who see a change pass by: a watcher of etcd, and an xDS client.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::config::region_of;
use etcd_client::WatchStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;

use super::HERE;

const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// A change that a request has shown must have passed here too.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Each tells when something passed. They end with this.
pub(super) struct Bystanders {
    watched: UnboundedReceiver<Instant>,
    pushed: UnboundedReceiver<Instant>,
    _tasks: JoinSet<Result<()>>,
}

impl Bystanders {
    pub(super) async fn start(
        mut etcd: etcd_client::Client,
        key: &str,
        xds: SocketAddr,
        cluster: &str,
    ) -> Result<Bystanders> {
        let mut tasks = JoinSet::new();
        let (tell, watched) = unbounded_channel();
        let events = etcd.watch(key, None).await?;
        tasks.spawn(watch(events, tell));
        let (tell, mut pushed) = unbounded_channel();
        tasks.spawn(subscribe(xds, cluster.to_owned(), tell));
        // What is there already is pushed at once.
        next(&mut pushed).await?;
        Ok(Bystanders {
            watched,
            pushed,
            _tasks: tasks,
        })
    }

    /// Forgets what passed before.
    pub(super) fn forget(&mut self) {
        while self.watched.try_recv().is_ok() {}
        while self.pushed.try_recv().is_ok() {}
    }

    /// When etcd told the next change.
    pub(super) async fn watched(&mut self) -> Result<Instant> {
        next(&mut self.watched).await.context("no event from etcd")
    }

    /// When the control plane pushed the next endpoints.
    pub(super) async fn pushed(&mut self) -> Result<Instant> {
        next(&mut self.pushed).await.context("nothing over xDS")
    }
}

async fn next(from: &mut UnboundedReceiver<Instant>) -> Result<Instant> {
    let next = tokio::time::timeout(TIME_MAX, from.recv()).await;
    next?.context("the bystander is gone")
}

async fn watch(mut events: WatchStream, tell: UnboundedSender<Instant>) -> Result<()> {
    while events.message().await?.is_some() {
        tell.send(Instant::now())?;
    }
    Ok(())
}

async fn subscribe(xds: SocketAddr, cluster: String, tell: UnboundedSender<Instant>) -> Result<()> {
    let channel = Endpoint::new(format!("http://{xds}"))?.connect().await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let (requests, outgoing) = unbounded_channel();
    requests.send(DeltaRequest {
        node: Some(Node {
            id: "bystander".to_owned(),
            locality: Some(Locality {
                region: region_of(HERE).to_owned(),
                zone: HERE.to_owned(),
            }),
        }),
        type_url: ENDPOINTS.to_owned(),
        subscribe: vec![cluster],
        ..DeltaRequest::default()
    })?;
    let codec = tonic_prost::ProstCodec::<DeltaRequest, DeltaResponse>::default();
    let outgoing = tonic::Request::new(UnboundedReceiverStream::new(outgoing));
    let path = PathAndQuery::from_static(METHOD);
    let mut answers = client.streaming(outgoing, path, codec).await?.into_inner();
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        tell.send(Instant::now())?;
        requests.send(DeltaRequest {
            type_url: ENDPOINTS.to_owned(),
            response_nonce: answer.nonce,
            ..DeltaRequest::default()
        })?;
    }
    Ok(())
}

/// The fields of `envoy.service.discovery.v3.DeltaDiscoveryRequest` that a bystander needs.
#[derive(Clone, PartialEq, prost::Message)]
struct DeltaRequest {
    #[prost(message, optional, tag = "1")]
    node: Option<Node>,
    #[prost(string, tag = "2")]
    type_url: String,
    #[prost(string, repeated, tag = "3")]
    subscribe: Vec<String>,
    #[prost(string, tag = "6")]
    response_nonce: String,
}

/// Of `envoy.config.core.v3.Node`.
#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "4")]
    locality: Option<Locality>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Locality {
    #[prost(string, tag = "1")]
    region: String,
    #[prost(string, tag = "2")]
    zone: String,
}

/// Of `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct DeltaResponse {
    #[prost(string, tag = "5")]
    nonce: String,
}
