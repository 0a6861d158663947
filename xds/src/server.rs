//! Discovery streams: the aggregated service, and the separate ones.

use std::sync::Arc;

use crate::{
    clients::Clients,
    delta::Delta,
    discovery::{Discovery, Events, Snapshots},
    emptied::HeldBack,
    large_requests::Turns,
    resource::Kind,
    session::Session,
    sotw::Sotw,
    stream::Variant,
    transport::{Incoming, Outgoing, StreamService},
};

/// The resources that a stream serves.
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
    /// The method at a path. See the table "RPC Services and Methods for Each Variant" in Envoy's
    /// description of xDS.
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

/// The discovery services: the aggregated one and the separate ones, delta and state of the world.
/// Cheap to clone.
pub struct Server<D: Discovery> {
    pub(super) discovery: D,
    pub(super) snapshots: Snapshots<D::Snapshot>,
    pub(super) clients: Clients<D::Key>,
    pub(super) events: Arc<dyn Events<D::Key>>,
    pub(super) turns: Turns,
    pub(super) held_back: HeldBack<D::Key>,
}

impl<D: Discovery> Server<D> {
    /// A server that takes clients' views from `discovery`, and reports to `events`.
    pub fn new(discovery: D, events: impl Events<D::Key>) -> Server<D> {
        let events: Arc<dyn Events<D::Key>> = Arc::new(events);
        Server {
            snapshots: discovery.snapshots(),
            clients: Clients::default(),
            turns: Turns::default(),
            held_back: HeldBack::new(Arc::clone(&events)),
            discovery,
            events,
        }
    }

    /// The same with `clients` as its list of clients: for callers that need the list before the
    /// server.
    pub fn listing_in(self, clients: Clients<D::Key>) -> Server<D> {
        Server { clients, ..self }
    }

    /// The connected clients, for operators and for [`csds`](crate::csds).
    pub fn clients(&self) -> &Clients<D::Key> {
        &self.clients
    }
}

impl<D: Discovery> Clone for Server<D> {
    fn clone(&self) -> Server<D> {
        Server {
            discovery: self.discovery.clone(),
            snapshots: self.snapshots.clone(),
            clients: self.clients.clone(),
            events: Arc::clone(&self.events),
            turns: self.turns.clone(),
            held_back: self.held_back.clone(),
        }
    }
}

impl<D: Discovery> StreamService for Server<D> {
    type Method = DiscoveryMethod;
    type Peer = D::Peer;

    fn method(&self, path: &str) -> Option<DiscoveryMethod> {
        DiscoveryMethod::at(path)
    }

    fn serve(
        &self,
        method: DiscoveryMethod,
        peer: D::Peer,
        requests: Incoming,
        responses: Outgoing,
    ) -> impl Future<Output = ()> + Send + 'static {
        let server = self.clone();
        async move {
            match method.variant {
                Variant::Delta => {
                    Session::<D, Delta>::run(server, method.scope, peer, requests, responses).await
                }
                Variant::StateOfTheWorld => {
                    Session::<D, Sotw>::run(server, method.scope, peer, requests, responses).await;
                }
            }
        }
    }
}
