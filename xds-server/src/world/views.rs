//! What the proxies of each zone and role should have.

use std::{collections::BTreeMap, sync::Arc};

use policy::{Plans, Policy, Rules};

use crate::{
    config::Mesh,
    resource::{Kind, Resource, Resources},
    snapshot::{Role, View, ViewKey},
    translate,
};

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
        clusters: &Resources,
        endpoints: &Resources,
    ) {
        let lasting = |kind, resource| mesh.ttls.applied(kind, resource);
        let listeners = Role::ALL.map(|role| {
            let listener = translate::listener(mesh, role);
            (role, lasting(Kind::Listener, listener))
        });
        let resiliences = |index: usize| {
            let service = mesh.services.get(index);
            service.map(|s| s.resilience.clone()).unwrap_or_default()
        };
        let before = std::mem::take(&mut self.0);
        for viewer in mesh.topology.zones() {
            let plans = |index: usize| plans.get(index).cloned().unwrap_or_default();
            let policy = Arc::new(mesh.policy(viewer, plans, authorities));
            let (filter, policy_version) = translate::filter_config(&mesh.filter, &policy);
            let filter = lasting(Kind::FilterConfig, filter);
            let (tables, needed) = match &*policy {
                Policy::Serving(rules) => (
                    Tables::of(mesh, rules, &resiliences),
                    translate::needed_clusters(rules, &resiliences),
                ),
                Policy::Fallback => (Tables::default(), Arc::default()),
            };
            for (role, listener) in &listeners {
                let key = ViewKey {
                    zone: Arc::from(mesh.topology.zone_name(viewer)),
                    role: *role,
                };
                let (routes, hosts) = match mesh.listeners.of(*role).on_demand {
                    false => (&tables.whole, &Resources::new()),
                    true => (&tables.on_demand, &tables.hosts),
                };
                let resources = [
                    clusters.clone(),
                    endpoints.clone(),
                    one(Arc::clone(listener)),
                    routes.clone(),
                    hosts.clone(),
                    one(Arc::clone(&filter)),
                ];
                let view = View::new(
                    resources,
                    Arc::clone(&needed),
                    Arc::clone(&policy),
                    policy_version,
                );
                let view = match before.get(&key) {
                    Some(before) => view.after(before),
                    None => view,
                };
                self.0.insert(key, Arc::new(view));
            }
        }
    }

    /// Gives every view the present clusters and endpoints.
    pub(super) fn refresh(&mut self, clusters: &Resources, endpoints: &Resources) {
        for view in self.0.values_mut() {
            let next = View::new(
                [
                    clusters.clone(),
                    endpoints.clone(),
                    view.of(Kind::Listener).clone(),
                    view.of(Kind::Routes).clone(),
                    view.of(Kind::VirtualHosts).clone(),
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

/// A zone's routes.
#[derive(Default)]
struct Tables {
    /// With all virtual hosts.
    whole: Resources,
    /// Without, for proxies that ask for them.
    on_demand: Resources,
    hosts: Resources,
}

impl Tables {
    /// Those that any role's proxies want.
    fn of(mesh: &Mesh, rules: &Rules, resiliences: translate::Resiliences<'_>) -> Tables {
        let wants = |on_demand| {
            let mut roles = Role::ALL.into_iter();
            roles.any(|role| mesh.listeners.of(role).on_demand == on_demand)
        };
        let lasting = |table| one(mesh.ttls.applied(Kind::Routes, table));
        let mut tables = Tables::default();
        if wants(false) {
            tables.whole = lasting(translate::routes(rules, resiliences));
        }
        if wants(true) {
            let (table, hosts) = translate::routes_on_demand(rules, resiliences);
            tables.on_demand = lasting(table);
            let hosts = hosts.into_iter();
            tables.hosts = hosts.map(|host| (Arc::clone(&host.name), host)).collect();
        }
        tables
    }
}

fn one(resource: Arc<Resource>) -> Resources {
    Resources::unit(Arc::clone(&resource.name), resource)
}
