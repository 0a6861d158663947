//! Streams on tonic.

use std::{pin::Pin, sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use futures::Stream as FutureStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    delta::Delta,
    node::{InvalidNode, Proxy},
    proxies::{Entry, Proxies},
    sotw::Sotw,
    stream::{Answer, StaleNonce, Stream},
    wire::Wire,
};
use crate::{
    metrics::{KindLabel, Metrics, ReasonLabel},
    resource::Kind,
    snapshot::Snapshot,
};

/// Responses that may wait for a slow connection. Each kind has at most one unanswered, so more could never be.
const OUTGOING_MAX: usize = Kind::ALL.len();

/// Names that one stream may subscribe to and hold: more than any mesh has, and a bound on its memory.
const NAMES_MAX: usize = 500_000;

/// How long a new stream may take to introduce itself.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Where streams find the present snapshot; none before the first.
pub type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;

/// The aggregated discovery service.
#[derive(Clone)]
pub struct Ads {
    snapshots: Snapshots,
    proxies: Proxies,
    metrics: Metrics,
}

impl Ads {
    pub fn new(snapshots: Snapshots, proxies: Proxies, metrics: Metrics) -> Ads {
        Ads {
            snapshots,
            proxies,
            metrics,
        }
    }

    /// The service for a tonic server.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Ads> {
        AggregatedDiscoveryServiceServer::new(self)
    }

    fn open<W: Wire>(
        &self,
        requests: Streaming<W::Request>,
    ) -> Response<ResponseStream<W::Response>> {
        let (responses, receiver) = mpsc::channel(OUTGOING_MAX);
        let session = Session::<W> {
            snapshots: self.snapshots.clone(),
            proxies: self.proxies.clone(),
            metrics: self.metrics.clone(),
            requests,
            responses,
        };
        tokio::spawn(session.run());
        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }
}

type ResponseStream<R> = Pin<Box<dyn FutureStream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = ResponseStream<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = ResponseStream<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(self.open::<Sotw>(request.into_inner()))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(self.open::<Delta>(request.into_inner()))
    }
}

struct Session<W: Wire> {
    snapshots: Snapshots,
    proxies: Proxies,
    metrics: Metrics,
    requests: Streaming<W::Request>,
    responses: mpsc::Sender<Result<W::Response, Status>>,
}

/// The client is gone; nothing is wrong with that.
struct Gone;

impl<W: Wire> Session<W> {
    async fn run(mut self) {
        let first = tokio::time::timeout(INTRODUCTION_TIMEOUT, self.next_request());
        let Ok(Some(first)) = first.await else {
            return;
        };
        let Some(snapshot) = self.first_snapshot().await else {
            return;
        };
        let proxy = match Proxy::introduce(W::node(&first), &snapshot) {
            Ok(proxy) => proxy,
            Err(error) => return self.refuse(&error).await,
        };
        let Some(view) = snapshot.view(&proxy.view) else {
            return;
        };
        info!(node = proxy.id, zone = %proxy.view.zone, variant = ?W::VARIANT, "proxy connected");
        let entry = self.proxies.enter(&proxy, W::VARIANT);
        self.metrics.xds_streams.inc();
        let mut stream = Stream::new(W::VARIANT, Arc::clone(view));
        self.take(&mut stream, &entry, &proxy, &first);
        while self.send_due(&mut stream).await.is_ok() {
            if stream.names() > NAMES_MAX {
                warn!(node = proxy.id, "more than {NAMES_MAX} names, stream ended");
                let status = Status::resource_exhausted("too many resource names on one stream");
                // It fails only if the client is gone already.
                let _ = self.responses.send(Err(status)).await;
                break;
            }
            if self.wait(&mut stream, &entry, &proxy).await.is_err() {
                break;
            }
        }
        self.metrics.xds_streams.dec();
        info!(node = proxy.id, "proxy disconnected");
    }

    /// Takes in whatever comes next, a request or a snapshot.
    async fn wait(
        &mut self,
        stream: &mut Stream,
        entry: &Entry,
        proxy: &Proxy,
    ) -> Result<(), Gone> {
        tokio::select! {
            request = self.requests.next() => match request {
                Some(Ok(request)) => {
                    self.take(stream, entry, proxy, &request);
                    Ok(())
                }
                Some(Err(_)) | None => Err(Gone),
            },
            changed = self.snapshots.changed() => {
                changed.map_err(|_| Gone)?;
                let snapshot = self.snapshots.borrow_and_update().clone();
                let view = snapshot.as_ref().and_then(|s| s.view(&proxy.view));
                let turned = entry.set_orphaned(view.is_none());
                match view {
                    Some(view) => {
                        stream.set_view(Arc::clone(view));
                        entry.forget_nacks(|kind| stream.is_refused(kind));
                    }
                    None if turned => warn!(
                        node = proxy.id,
                        zone = %proxy.view.zone,
                        "the zone was taken out of the configuration: this proxy keeps its last state and learns nothing more"
                    ),
                    None => {}
                }
                Ok(())
            }
        }
    }

    fn take(&self, stream: &mut Stream, entry: &Entry, proxy: &Proxy, request: &W::Request) {
        let Some(kind) = Kind::of_type_url(W::type_url(request)) else {
            debug!(
                node = proxy.id,
                type_url = W::type_url(request),
                "not served"
            );
            return;
        };
        match W::take(stream, kind, request) {
            Ok(answer) => {
                if let Answer::Refused(refused) = &answer {
                    let label = KindLabel {
                        kind: kind.as_str(),
                    };
                    self.metrics.xds_nacks.get_or_create(&label).inc();
                    warn!(
                        node = proxy.id,
                        kind = kind.as_str(),
                        resources = ?refused.resources,
                        message = refused.message,
                        "refused; not sent again until it changes, the proxy keeps what it had"
                    );
                }
                entry.answered(kind, stream, &answer);
            }
            Err(StaleNonce) => debug!(node = proxy.id, kind = kind.as_str(), "stale nonce"),
        }
    }

    async fn send_due(&self, stream: &mut Stream) -> Result<(), Gone> {
        while let Some(outgoing) = stream.next_due() {
            let label = KindLabel {
                kind: outgoing.kind.as_str(),
            };
            self.metrics.xds_responses.get_or_create(&label).inc();
            self.metrics
                .xds_resources
                .get_or_create(&label)
                .inc_by(outgoing.resources.len() as u64);
            let response = Ok(W::response(outgoing));
            self.responses.send(response).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    async fn next_request(&mut self) -> Option<W::Request> {
        self.requests.next().await?.ok()
    }

    /// A proxy that comes before the first snapshot waits for it.
    async fn first_snapshot(&mut self) -> Option<Arc<Snapshot>> {
        let snapshot = self.snapshots.wait_for(Option::is_some).await.ok()?;
        snapshot.clone()
    }

    async fn refuse(self, error: &InvalidNode) {
        warn!(%error, "stream refused");
        let reason = match error {
            InvalidNode::Missing => "no_node",
            InvalidNode::UnknownZone { .. } => "unknown_zone",
            InvalidNode::UnknownRole { .. } => "unknown_role",
        };
        self.metrics
            .streams_refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
        let status = Status::invalid_argument(error.to_string());
        // It fails only if the client is gone already.
        let _ = self.responses.send(Err(status)).await;
    }
}
