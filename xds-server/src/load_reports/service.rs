//! The tonic service for load reports.

use std::{pin::Pin, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::endpoint::v3::ClusterStats,
        service::load_stats::v3::{
            LoadStatsRequest, LoadStatsResponse,
            load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
        },
    },
    google::protobuf,
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{Loads, Report, Reporter};
use crate::{
    access_rules::AccessRules,
    authority::Homes,
    discovery::{Snapshots, node::Proxy},
    net::access::Caller,
    net::tls::Peer,
    snapshot::{Snapshot, View, ViewKey},
};
use xds::resource::{Kind, Resources};

/// The most clusters that a proxy is asked to report: its report lists all of them each time.
const CLUSTERS_MAX: usize = 10_000;
/// The longest report, in bytes: enough for so many clusters.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How long a new stream may take to send its first message.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// A client with this feature reports every cluster that it has, without a list.
const SEND_ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

/// The load reporting service.
#[derive(Clone)]
pub struct LoadReports {
    snapshots: Snapshots,
    loads: Loads,
    interval: Duration,
    rules: AccessRules,
    homes: Homes,
}

impl LoadReports {
    /// Requests a report from proxies every `interval`.
    pub fn new(snapshots: Snapshots, loads: Loads, interval: Duration) -> LoadReports {
        LoadReports {
            snapshots,
            loads,
            interval,
            rules: AccessRules::default(),
            homes: Homes::unknown(),
        }
    }

    /// Adds the knowledge of which zones have a control plane of their own. Without it every client
    /// stays.
    pub fn among(self, homes: Homes) -> LoadReports {
        LoadReports { homes, ..self }
    }

    /// Adds access rules for zones' reports. Without them any client may send any report.
    pub fn behind(self, rules: AccessRules) -> LoadReports {
        LoadReports { rules, ..self }
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
        let caller = Peer::of(request.extensions());
        tokio::spawn(async move {
            if let Err(status) = service.run(caller, request.into_inner(), &out).await {
                // Fails only if the client is gone already.
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

type Responses = mpsc::Sender<Result<LoadStatsResponse, Status>>;

impl LoadReports {
    /// Runs until the client is gone; the error is the status for it.
    async fn run(
        mut self,
        caller: Caller,
        mut requests: Streaming<LoadStatsRequest>,
        out: &Responses,
    ) -> Result<(), Status> {
        let Some(mut client) = self.introduce(&caller, &mut requests).await? else {
            return Ok(());
        };
        let mut sent_home = self.homes.sent_home(&client.view.zone, &client.node);
        loop {
            // Holds neither a snapshot nor a report while it waits for the client.
            let response = {
                let snapshot = self.snapshots.borrow().clone();
                snapshot.and_then(|snapshot| client.ask(&snapshot, self.interval))
            };
            if let Some(response) = response
                && out.send(Ok(response)).await.is_err()
            {
                return Ok(());
            }
            let request = tokio::select! {
                status = &mut sent_home => return Err(status),
                request = requests.next() => request,
            };
            let report = match request {
                Some(Ok(report)) => report,
                // The client learns that its report is too long.
                Some(Err(status)) if status.code() == tonic::Code::OutOfRange => {
                    return Err(status);
                }
                Some(Err(_)) | None => return Ok(()),
            };
            let snapshot = self.snapshots.borrow().clone();
            if let Some(snapshot) = snapshot {
                client.take(&report.cluster_stats, &snapshot);
            }
        }
    }

    /// Reads the first message; none if the client has disconnected.
    async fn introduce(
        &mut self,
        caller: &Caller,
        requests: &mut Streaming<LoadStatsRequest>,
    ) -> Result<Option<Client>, Status> {
        let first = tokio::time::timeout(INTRODUCTION_TIMEOUT, requests.next()).await;
        let Ok(Some(Ok(first))) = first else {
            return Ok(None);
        };
        // A proxy that connects before the first snapshot waits for it.
        let snapshot = match self.snapshots.wait_for(Option::is_some).await {
            Ok(snapshot) => snapshot.clone().unwrap_or_default(),
            Err(_) => return Ok(None),
        };
        let node = first.node.as_ref();
        let rules = self.rules.rules();
        let permits = |zone: &str, role| rules.view(caller, zone, role);
        let proxy = Proxy::introduce(node, &snapshot, permits).map_err(|error| {
            warn!(%error, "stream of load reports rejected");
            Status::from(error)
        })?;
        info!(node = proxy.id, zone = %proxy.view.zone, "proxy reports its load");
        let features = node.map_or(&[][..], |node| &node.client_features);
        Ok(Some(Client {
            reporter: self.loads.enter(&proxy.view.zone),
            node: proxy.id,
            view: proxy.view,
            all_known: features.iter().any(|feature| feature == SEND_ALL_CLUSTERS),
            asked: None,
        }))
    }
}

/// A client after its first message.
struct Client {
    node: String,
    view: ViewKey,
    reporter: Reporter,
    /// It can report all its clusters without a list.
    all_known: bool,
    asked: Option<Asked>,
}

/// The clusters that a client was asked to report.
enum Asked {
    Everything,
    /// A selection of these clusters.
    Of(Resources),
}

impl Client {
    /// The request for its reports, if it has not been sent or has changed.
    ///
    /// In a very large mesh each proxy reports a part: the clusters of its own zone, which receive
    /// most of its requests, then others.
    fn ask(&mut self, snapshot: &Snapshot, interval: Duration) -> Option<LoadStatsResponse> {
        let view = snapshot.view(&self.view)?;
        let all = view.of(Kind::Cluster);
        let everything = self.all_known && all.len() <= CLUSTERS_MAX;
        match &self.asked {
            Some(Asked::Everything) if everything => return None,
            Some(Asked::Of(clusters)) if !everything && clusters.ptr_eq(all) => return None,
            _ => {}
        }
        let clusters = match everything {
            true => vec![],
            false => self.choice(view),
        };
        self.asked = Some(match everything {
            true => Asked::Everything,
            false => Asked::Of(all.clone()),
        });
        Some(LoadStatsResponse {
            clusters,
            send_all_clusters: everything,
            load_reporting_interval: Some(protobuf::Duration {
                // The configuration allows at most an hour.
                seconds: interval.as_secs() as i64,
                nanos: 0,
            }),
            // Sums are by zone, not by endpoint.
            report_endpoint_granularity: false,
        })
    }

    /// Selects from the clusters that have endpoints; the others only forward to these.
    fn choice(&self, view: &View) -> Vec<String> {
        let own = format!("/{}", self.view.zone);
        let names = || view.of(Kind::Endpoints).keys();
        let near = names().filter(|name| name.ends_with(&own));
        let far = names().filter(|name| !name.ends_with(&own));
        let chosen = near.chain(far).take(CLUSTERS_MAX);
        chosen.map(ToString::to_string).collect()
    }

    /// Adds a report. A zone that was removed from the configuration has no view; its proxies'
    /// reports are not about the mesh any more.
    fn take(&self, stats: &[ClusterStats], snapshot: &Snapshot) {
        if let Some(view) = snapshot.view(&self.view) {
            let report = Report::read(stats, view, snapshot);
            self.reporter.take(report, snapshot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use policy::Policy;

    use super::*;
    use xds::Resource;

    use crate::{load_reports::tests::snapshot, snapshot::Role};

    fn client(all_known: bool) -> Client {
        Client {
            node: "gateway-1".to_owned(),
            view: ViewKey {
                zone: Arc::from("sh-b"),
                role: Role::Gateway,
            },
            reporter: Loads::default().enter("sh-b"),
            all_known,
            asked: None,
        }
    }

    const INTERVAL: Duration = Duration::from_secs(7);

    #[test]
    fn a_client_that_can_is_asked_about_everything_and_once() {
        let mut client = client(true);
        let first = client.ask(&snapshot(&["orders"]), INTERVAL).expect("asked");
        assert!(first.send_all_clusters && first.clusters.is_empty());
        assert_eq!(first.load_reporting_interval.expect("it").seconds, 7);
        assert_eq!(client.ask(&snapshot(&["orders", "web"]), INTERVAL), None);
    }

    #[test]
    fn another_is_told_the_clusters_and_when_they_change() {
        let (mut client, before) = (client(false), snapshot(&["orders"]));
        let first = client.ask(&before, INTERVAL).expect("asked");
        assert!(!first.send_all_clusters);
        assert_eq!(first.clusters, ["orders/sh-b", "orders/sh-a"]);
        assert_eq!(client.ask(&before, INTERVAL), None);
        let next = client.ask(&snapshot(&["orders", "web"]), INTERVAL);
        let expected = ["orders/sh-b", "web/sh-b", "orders/sh-a", "web/sh-a"];
        assert_eq!(next.expect("asked again").clusters, expected);
    }

    #[test]
    fn in_a_very_large_mesh_a_client_is_asked_about_a_part() {
        let mut client = client(true);
        let services = CLUSTERS_MAX / 2 + 1;
        let mut resources: [Resources; Kind::ALL.len()] = Default::default();
        for i in 0..services {
            for zone in ["sh-a", "sh-b"] {
                let cluster = Cluster::default();
                let resource = Arc::new(Resource::encode(&format!("s{i}/{zone}"), &cluster));
                for kind in [Kind::Cluster, Kind::Endpoints] {
                    let name = Arc::clone(&resource.name);
                    resources[kind.index()].insert(name, Arc::clone(&resource));
                }
            }
        }
        let view = View::new(resources, Default::default(), Arc::new(Policy::Fallback), 0);
        let views = BTreeMap::from([(client.view.clone(), Arc::new(view))]);
        let snapshot = Snapshot::new(1, views, Arc::default());
        let asked = client.ask(&snapshot, INTERVAL).expect("asked");
        assert!(!asked.send_all_clusters);
        assert_eq!(asked.clusters.len(), CLUSTERS_MAX);
        let near = asked.clusters.iter().filter(|name| name.ends_with("/sh-b"));
        assert_eq!(near.count(), services);
    }
}
