//! What the proxies of each zone and role should have.

use std::{collections::BTreeMap, sync::Arc};

use policy::{Plans, Policy};

use crate::{
    config::Mesh,
    resource::{Kind, Resource, Resources},
    snapshot::{Role, View, ViewKey},
    translate::{self, grpc},
};

/// The clusters of each role. They follow from the mesh alone.
#[derive(Default)]
pub(super) struct Clusters {
    proxies: Resources,
    /// Empty unless gRPC clients are served.
    grpc: Resources,
}

impl Clusters {
    pub(super) fn of_mesh(mesh: &Mesh) -> Clusters {
        let services = mesh.services.iter();
        let clusters = services.flat_map(|service| translate::clusters(&mesh.topology, service));
        Clusters {
            proxies: clusters
                .map(|cluster| (Arc::clone(&cluster.name), cluster))
                .collect(),
            grpc: match mesh.listeners.grpc {
                true => grpc::clusters(mesh),
                false => Resources::new(),
            },
        }
    }

    fn of(&self, role: Role) -> &Resources {
        match role {
            Role::Gateway | Role::Sidecar => &self.proxies,
            Role::Grpc => &self.grpc,
        }
    }
}

#[derive(Default)]
pub(super) struct Views(BTreeMap<ViewKey, Arc<View>>);

impl Views {
    pub(super) fn all(&self) -> &BTreeMap<ViewKey, Arc<View>> {
        &self.0
    }

    /// Builds every zone's routes and policy anew. `plans` are by the service's position in the mesh; `authorities` gives a
    /// cell's owners and epoch.
    pub(super) fn derive(
        &mut self,
        mesh: &Mesh,
        plans: &[Plans],
        authorities: &impl Fn(&str) -> Option<(Vec<String>, u64)>,
        clusters: &Clusters,
        endpoints: &Resources,
    ) {
        let listeners = Role::ALL.map(|role| Some((role, translate::listener(mesh, role)?)));
        let listeners: Vec<_> = listeners.into_iter().flatten().collect();
        let resiliences = |index: usize| {
            let service = mesh.services.get(index);
            service.map(|s| s.resilience.clone()).unwrap_or_default()
        };
        let before = std::mem::take(&mut self.0);
        for viewer in mesh.topology.zones() {
            let plans = |index: usize| plans.get(index).cloned().unwrap_or_default();
            let policy = Arc::new(mesh.policy(viewer, plans, authorities));
            let (filter, policy_version) = translate::filter_config(&mesh.filter, &policy);
            let (routes, needed) = match &*policy {
                Policy::Serving(rules) => (
                    one(translate::routes(rules, &resiliences)),
                    translate::needed_clusters(rules, &resiliences),
                ),
                Policy::Fallback => (Resources::new(), Arc::default()),
            };
            for (role, listener) in &listeners {
                let key = ViewKey {
                    zone: Arc::from(mesh.topology.zone_name(viewer)),
                    role: *role,
                };
                let resources = [
                    clusters.of(*role).clone(),
                    endpoints.clone(),
                    one(Arc::clone(listener)),
                    routes.clone(),
                    one(Arc::clone(&filter)),
                ];
                let view = View::new(
                    resources,
                    Arc::clone(&needed),
                    Arc::clone(&policy),
                    policy_version,
                );
                self.insert(key, view, &before);
            }
            if mesh.listeners.grpc {
                let key = ViewKey {
                    zone: Arc::from(mesh.topology.zone_name(viewer)),
                    role: Role::Grpc,
                };
                let view = grpc_view(policy, policy_version, &resiliences, clusters, endpoints);
                self.insert(key, view, &before);
            }
        }
    }

    fn insert(&mut self, key: ViewKey, view: View, before: &BTreeMap<ViewKey, Arc<View>>) {
        let view = match before.get(&key) {
            Some(before) => view.after(before),
            None => view,
        };
        self.0.insert(key, Arc::new(view));
    }

    /// Gives every view the present clusters and endpoints.
    pub(super) fn refresh(&mut self, clusters: &Clusters, endpoints: &Resources) {
        for (key, view) in &mut self.0 {
            let next = View::new(
                [
                    clusters.of(key.role).clone(),
                    endpoints.clone(),
                    view.of(Kind::Listener).clone(),
                    view.of(Kind::Routes).clone(),
                    view.of(Kind::FilterConfig).clone(),
                ],
                Arc::clone(view.needed()),
                Arc::clone(view.policy()),
                view.policy_version(),
            );
            *view = Arc::new(next.after(view));
        }
    }
}

/// No clusters are needed before the routes: a gRPC client asks for those that its routes name.
fn grpc_view(
    policy: Arc<Policy>,
    policy_version: u64,
    resiliences: translate::Resiliences<'_>,
    clusters: &Clusters,
    endpoints: &Resources,
) -> View {
    let (listeners, routes) = match &*policy {
        Policy::Serving(rules) => (grpc::listeners(rules), grpc::routes(rules, resiliences)),
        Policy::Fallback => Default::default(),
    };
    let clusters = clusters.of(Role::Grpc).clone();
    let resources = [
        clusters,
        endpoints.clone(),
        listeners,
        routes,
        Resources::new(),
    ];
    View::new(resources, Arc::default(), policy, policy_version)
}

fn one(resource: Arc<Resource>) -> Resources {
    Resources::unit(Arc::clone(&resource.name), resource)
}
