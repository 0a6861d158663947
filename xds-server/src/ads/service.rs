//! Discovery streams: the aggregated service, and the separate ones.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use super::{
    delta::Delta, emptied::HeldBack, large_requests::Turns, proxies::Proxies, session::Session,
    sotw::Sotw, stream::Variant,
};
use crate::{
    access::{AccessRules, Caller},
    authority::Homes,
    metrics::{KindLabel, Metrics},
    resource::Kind,
    snapshot::Snapshot,
    transport::{Incoming, Outgoing, StreamService},
};

/// Where streams find the present snapshot; none before the first.
pub type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;

/// What a stream is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The aggregated service.
    Everything,
    /// A separate service.
    Only(Kind),
}

/// A method of a discovery service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscoveryMethod {
    variant: Variant,
    scope: Scope,
}

impl DiscoveryMethod {
    /// The method at a path. See the table "RPC Services and Methods for Each Variant" in Envoy's description of xDS.
    fn at(path: &str) -> Option<DiscoveryMethod> {
        use Variant::{Delta, StateOfTheWorld};
        let (service, method) = path.strip_prefix("/envoy.service.")?.split_once('/')?;
        let (scope, variant) = match (service, method) {
            ("discovery.v3.AggregatedDiscoveryService", "StreamAggregatedResources") => {
                (Scope::Everything, StateOfTheWorld)
            }
            ("discovery.v3.AggregatedDiscoveryService", "DeltaAggregatedResources") => {
                (Scope::Everything, Delta)
            }
            ("cluster.v3.ClusterDiscoveryService", "StreamClusters") => {
                (Scope::Only(Kind::Cluster), StateOfTheWorld)
            }
            ("cluster.v3.ClusterDiscoveryService", "DeltaClusters") => {
                (Scope::Only(Kind::Cluster), Delta)
            }
            ("endpoint.v3.EndpointDiscoveryService", "StreamEndpoints") => {
                (Scope::Only(Kind::Endpoints), StateOfTheWorld)
            }
            ("endpoint.v3.EndpointDiscoveryService", "DeltaEndpoints") => {
                (Scope::Only(Kind::Endpoints), Delta)
            }
            ("secret.v3.SecretDiscoveryService", "StreamSecrets") => {
                (Scope::Only(Kind::Secret), StateOfTheWorld)
            }
            ("secret.v3.SecretDiscoveryService", "DeltaSecrets") => {
                (Scope::Only(Kind::Secret), Delta)
            }
            ("listener.v3.ListenerDiscoveryService", "StreamListeners") => {
                (Scope::Only(Kind::Listener), StateOfTheWorld)
            }
            ("listener.v3.ListenerDiscoveryService", "DeltaListeners") => {
                (Scope::Only(Kind::Listener), Delta)
            }
            ("route.v3.RouteDiscoveryService", "StreamRoutes") => {
                (Scope::Only(Kind::Routes), StateOfTheWorld)
            }
            ("route.v3.RouteDiscoveryService", "DeltaRoutes") => (Scope::Only(Kind::Routes), Delta),
            ("route.v3.VirtualHostDiscoveryService", "DeltaVirtualHosts") => {
                (Scope::Only(Kind::VirtualHosts), Delta)
            }
            ("extension.v3.ExtensionConfigDiscoveryService", "StreamExtensionConfigs") => {
                (Scope::Only(Kind::FilterConfig), StateOfTheWorld)
            }
            ("extension.v3.ExtensionConfigDiscoveryService", "DeltaExtensionConfigs") => {
                (Scope::Only(Kind::FilterConfig), Delta)
            }
            _ => return None,
        };
        Some(DiscoveryMethod { variant, scope })
    }
}

/// The discovery services. Cheap to clone.
#[derive(Clone)]
pub struct Ads {
    pub(super) snapshots: Snapshots,
    pub(super) proxies: Proxies,
    pub(super) metrics: Arc<Metrics>,
    pub(super) sent: Arc<Sent>,
    pub(super) gate: AccessRules,
    pub(super) turns: Turns,
    pub(super) homes: Homes,
    pub(super) held_back: HeldBack,
}

/// What is counted with each response, by kind: at hand, since looking it up by label would cost as much as the rest.
pub(super) struct Sent([SentOfKind; Kind::ALL.len()]);

pub(super) struct SentOfKind {
    pub(super) responses: Counter,
    pub(super) resources: Counter,
    pub(super) renewals: Counter,
}

impl Sent {
    fn new(metrics: &Metrics) -> Sent {
        Sent(Kind::ALL.map(|kind| {
            let label = KindLabel {
                kind: kind.as_str(),
            };
            SentOfKind {
                responses: metrics.xds_responses.get_or_create_owned(&label),
                resources: metrics.xds_resources.get_or_create_owned(&label),
                renewals: metrics.xds_renewals.get_or_create_owned(&label),
            }
        }))
    }

    pub(super) fn of(&self, kind: Kind) -> &SentOfKind {
        &self.0[kind.index()]
    }
}

impl Ads {
    pub fn new(snapshots: Snapshots, proxies: Proxies, metrics: Metrics) -> Ads {
        Ads {
            snapshots,
            proxies,
            sent: Arc::new(Sent::new(&metrics)),
            held_back: HeldBack::new(metrics.conditions.clone()),
            metrics: Arc::new(metrics),
            gate: AccessRules::default(),
            turns: Turns::default(),
            homes: Homes::unknown(),
        }
    }

    /// With rules for who may ask for what; without them everybody may.
    pub fn behind(self, gate: AccessRules) -> Ads {
        Ads { gate, ..self }
    }

    /// With knowledge of which zones have a control plane of their own; without it whoever comes stays.
    pub fn among(self, homes: Homes) -> Ads {
        Ads { homes, ..self }
    }
}

impl StreamService for Ads {
    type Method = DiscoveryMethod;

    fn method(&self, path: &str) -> Option<DiscoveryMethod> {
        DiscoveryMethod::at(path)
    }

    fn serve(
        &self,
        method: DiscoveryMethod,
        caller: Caller,
        requests: Incoming,
        responses: Outgoing,
    ) -> impl Future<Output = ()> + Send + 'static {
        let ads = self.clone();
        async move {
            match method.variant {
                Variant::Delta => {
                    Session::<Delta>::run(ads, method.scope, caller, requests, responses).await
                }
                Variant::StateOfTheWorld => {
                    Session::<Sotw>::run(ads, method.scope, caller, requests, responses).await;
                }
            }
        }
    }
}
