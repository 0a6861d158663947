//! What the proxies of each zone and role should have.

use std::{collections::BTreeMap, sync::Arc};

use policy::{Plans, Policy};

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
        let listeners = Role::ALL.map(|role| (role, translate::listener(mesh, role)));
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
                    clusters.clone(),
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

fn one(resource: Arc<Resource>) -> Resources {
    Resources::unit(Arc::clone(&resource.name), resource)
}
