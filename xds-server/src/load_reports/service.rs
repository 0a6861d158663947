//! Load reports on tonic.

use std::{pin::Pin, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::service::load_stats::v3::{
        LoadStatsRequest, LoadStatsResponse,
        load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
    },
    google::protobuf,
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{Loads, Report};
use crate::{
    ads::{node::Proxy, service::Snapshots},
    resource::{Kind, Resources},
    snapshot::View,
};

/// A proxy is asked about this many clusters at most: its report names all of them each time.
const CLUSTERS_MAX: usize = 10_000;
/// The longest report, in bytes: more than there is to say about so many.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How long a new stream may take to introduce itself.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// A client with this feature reports about every cluster that it has, and need not be told which.
const SEND_ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

/// The load reporting service.
#[derive(Clone)]
pub struct LoadReports {
    snapshots: Snapshots,
    loads: Loads,
    interval: Duration,
}

impl LoadReports {
    /// Asks proxies for a report every `interval`.
    pub fn new(snapshots: Snapshots, loads: Loads, interval: Duration) -> LoadReports {
        LoadReports {
            snapshots,
            loads,
            interval,
        }
    }

    /// The service for a tonic server.
    pub fn into_service(self) -> LoadReportingServiceServer<LoadReports> {
        LoadReportingServiceServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl LoadReportingService for LoadReports {
    type StreamLoadStatsStream =
        Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let (out, outgoing) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(status) = service.run(request.into_inner(), &out).await {
                // It fails only if the client is gone already.
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

type Responses = mpsc::Sender<Result<LoadStatsResponse, Status>>;

impl LoadReports {
    /// Until the client is gone; the error is what it is told.
    async fn run(
        mut self,
        mut requests: Streaming<LoadStatsRequest>,
        out: &Responses,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(INTRODUCTION_TIMEOUT, requests.next()).await;
        let Ok(Some(Ok(first))) = first else {
            return Ok(());
        };
        // A proxy that comes before the first snapshot waits for it.
        let snapshot = match self.snapshots.wait_for(Option::is_some).await {
            Ok(snapshot) => snapshot.clone(),
            Err(_) => return Ok(()),
        };
        let Some(snapshot) = snapshot else {
            return Ok(());
        };
        let node = first.node.as_ref();
        let proxy = Proxy::introduce(node, &snapshot).map_err(|error| {
            warn!(%error, "stream of load reports refused");
            Status::invalid_argument(error.to_string())
        })?;
        let features = node.map_or(&[][..], |node| &node.client_features);
        let all_known = features.iter().any(|feature| feature == SEND_ALL_CLUSTERS);
        info!(node = proxy.id, zone = %proxy.view.zone, "proxy reports its load");
        let reporter = self.loads.enter(&proxy.view.zone);
        let mut asked: Option<Asked> = None;
        let mut latest = Some(snapshot);
        let mut report = None;
        loop {
            // A zone that was taken out of the configuration has no view; its proxies' reports say nothing of the mesh.
            if let Some(snapshot) = &latest
                && let Some(view) = snapshot.view(&proxy.view)
            {
                if let Some(LoadStatsRequest { cluster_stats, .. }) = report.take() {
                    reporter.take(Report::read(&cluster_stats, view, snapshot), snapshot);
                }
                let clusters = view.of(Kind::Cluster);
                if !(asked.as_ref()).is_some_and(|asked| asked.of.ptr_eq(clusters)) {
                    let ask = Asked::of(view, &proxy.view.zone, all_known);
                    let is_news = asked.as_ref().is_none_or(|asked| asked.what != ask.what);
                    if is_news && out.send(Ok(self.response(&ask.what))).await.is_err() {
                        return Ok(());
                    }
                    asked = Some(ask);
                }
            }
            report = match requests.next().await {
                Some(Ok(report)) => Some(report),
                // It is told that its report is too long.
                Some(Err(status)) if status.code() == tonic::Code::OutOfRange => {
                    return Err(status);
                }
                Some(Err(_)) | None => return Ok(()),
            };
            latest = self.snapshots.borrow().clone();
        }
    }

    fn response(&self, what: &What) -> LoadStatsResponse {
        let (clusters, send_all_clusters) = match what {
            What::Everything => (vec![], true),
            What::Clusters(clusters) => (clusters.clone(), false),
        };
        LoadStatsResponse {
            clusters,
            send_all_clusters,
            load_reporting_interval: Some(protobuf::Duration {
                // The configuration allows an hour at most.
                seconds: self.interval.as_secs() as i64,
                nanos: 0,
            }),
            // The zones are what is added up.
            report_endpoint_granularity: false,
        }
    }
}

/// What a client was asked to report, and for which clusters that was right.
struct Asked {
    of: Resources,
    what: What,
}

#[derive(PartialEq)]
enum What {
    Everything,
    Clusters(Vec<String>),
}

impl Asked {
    /// In a very large mesh each proxy is asked about a part: those of its own zone, which most of its requests go to, then
    /// others. A proxy's report names every cluster that it was asked about, with traffic or without.
    fn of(view: &View, zone: &str, all_known: bool) -> Asked {
        let of = view.of(Kind::Cluster).clone();
        if all_known && of.len() <= CLUSTERS_MAX {
            let what = What::Everything;
            return Asked { of, what };
        }
        // The clusters that have endpoints; the others pass on to these.
        let names = || view.of(Kind::Endpoints).keys();
        let is_near = |name: &&Arc<str>| name.ends_with(&format!("/{zone}"));
        let near = names().filter(is_near);
        let far = names().filter(|name| !is_near(name));
        let clusters = near.chain(far).take(CLUSTERS_MAX);
        let what = What::Clusters(clusters.map(ToString::to_string).collect());
        Asked { of, what }
    }
}
