//! The resources of proxyless gRPC clients.

use policy::{Policy, Rules, ServiceId};
use std::sync::Arc;

use crate::{
    config::Mesh,
    snapshot::View,
    translate::{Resiliences, VirtualHosts, grpc},
};
use xds::resource::{Kind, Names, Resources};

/// The resources of one zone's clients, except endpoints, which are those of proxies.
#[derive(Clone)]
pub(super) struct Clients {
    clusters: Resources,
    listeners: Resources,
    hosts: VirtualHosts,
    tables: Resources,
}

impl Clients {
    /// The common resources of all zones' clients; none if clients are not served.
    pub(super) fn of_mesh(mesh: &Mesh, policy: &Policy) -> Option<Clients> {
        match policy {
            Policy::Serving(rules) if mesh.listeners.grpc => Some(Clients {
                clusters: grpc::clusters(mesh),
                listeners: grpc::listeners(rules),
                hosts: VirtualHosts::new(),
                tables: Resources::new(),
            }),
            _ => None,
        }
    }

    /// The same, with the tables of `rules`' local zone.
    pub(super) fn seen_by(&self, rules: &Rules, resiliences: Resiliences<'_>) -> Clients {
        let hosts = grpc::virtual_hosts(rules, resiliences);
        Clients {
            tables: grpc::tables(&hosts),
            hosts,
            ..self.clone()
        }
    }

    /// Applies new plans of the services in `replanned`.
    pub(super) fn replan(
        &mut self,
        rules: &Rules,
        replanned: &[ServiceId],
        resiliences: Resiliences<'_>,
    ) {
        let touched = grpc::replan_virtual_hosts(&mut self.hosts, rules, replanned, resiliences);
        for (name, host) in touched {
            let table = grpc::table(name, host);
            self.tables.insert(Arc::clone(&table.name), table);
        }
    }

    /// No clusters are needed before the routes: a client requests the clusters of its routes.
    pub(super) fn view(&self, endpoints: &Resources, policy: Arc<Policy>, version: u64) -> View {
        let mut resources: [Resources; Kind::ALL.len()] = Default::default();
        resources[Kind::Cluster.index()] = self.clusters.clone();
        resources[Kind::Endpoints.index()] = endpoints.clone();
        resources[Kind::Listener.index()] = self.listeners.clone();
        resources[Kind::Routes.index()] = self.tables.clone();
        View::new(resources, Names::new(), policy, version)
    }
}
