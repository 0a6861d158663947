//! A proxy without an Envoy: an ordinary gRPC client that subscribes to the endpoints of one
//! cluster.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;
use e2e::config::region_of;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;

const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Reports and acknowledges every response, until the stream or the listener ends.
pub(crate) async fn subscribe(
    xds: SocketAddr,
    zone: &str,
    cluster: String,
    tell: UnboundedSender<Instant>,
) -> Result<()> {
    let channel = Endpoint::new(format!("http://{xds}"))?.connect().await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let (requests, outgoing) = unbounded_channel();
    requests.send(DeltaRequest {
        node: Some(Node {
            id: "bench".to_owned(),
            locality: Some(Locality {
                region: region_of(zone).to_owned(),
                zone: zone.to_owned(),
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

/// The fields of `envoy.service.discovery.v3.DeltaDiscoveryRequest` that it needs.
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

/// The used fields of `envoy.config.core.v3.Node`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Node {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) locality: Option<Locality>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Locality {
    #[prost(string, tag = "1")]
    pub(crate) region: String,
    #[prost(string, tag = "2")]
    pub(crate) zone: String,
}

/// The used fields of `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct DeltaResponse {
    #[prost(string, tag = "5")]
    nonce: String,
}
