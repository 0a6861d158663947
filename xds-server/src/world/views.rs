//! The resources of the proxies of each zone and role.
//!
//! Resources that depend on plans are kept in the pieces in which they change: a service's plans
//! change its routes in the virtual hosts that have any, and its part of the policy. Composed
//! resources share the pieces' bytes.

use std::{collections::BTreeMap, sync::Arc};

use policy::{Plans, Policy, Rules, ServiceId, ZoneId};
use protos::Encoder;

use super::{clients::Clients, policies};
use crate::{
    config::{Mesh, Resilience},
    snapshot::{Role, View, ViewKey},
    translate::{self, Host, VirtualHosts},
};
use xds::resource::{Kind, Names, Resource, Resources};

#[derive(Default)]
pub(super) struct Views {
    all: BTreeMap<ViewKey, Arc<View>>,
    roles: Vec<Played>,
    /// The certificates that proxies read, for all roles.
    secrets: Resources,
    /// Ordered as in the topology.
    zones: Vec<Seen>,
    encoder: Encoder,
}

/// Resources that depend on the mesh only, for one role.
struct Played {
    role: Role,
    listener: Arc<Resource>,
    on_demand: bool,
}

/// Resources that depend on plans, in the view of one zone.
struct Seen {
    from: Arc<str>,
    policy: Arc<Policy>,
    policy_version: u64,
    filter: Arc<Resource>,
    hosts: VirtualHosts,
    routes: Resources,
    /// For roles with virtual hosts on demand; none if no role has them.
    on_demand: Option<OnDemand>,
    needed: Names,
    /// For gRPC clients, if they are served.
    clients: Option<Clients>,
}

/// A route table without virtual hosts, and the virtual hosts.
struct OnDemand {
    routes: Resources,
    hosts: Resources,
}

impl Views {
    pub(super) fn all(&self) -> &BTreeMap<ViewKey, Arc<View>> {
        &self.all
    }

    /// Rebuilds everything except the views. `plans` are by the service's position in the mesh;
    /// `authorities` returns a cell's owners and epoch.
    pub(super) fn derive(
        &mut self,
        mesh: &Mesh,
        plans: &[Plans],
        authorities: &impl Fn(&str) -> Option<(Vec<String>, u64)>,
    ) {
        let plans = |index: usize| plans.get(index).cloned().unwrap_or_default();
        let mut viewers = mesh.topology.zones();
        let policy = viewers
            .next()
            .map(|zone| policies::policy(mesh, zone, plans, authorities));
        let policy = policy.unwrap_or(Policy::Fallback);
        self.roles = Role::PROXIES
            .into_iter()
            .filter_map(|role| {
                let listener = translate::listener(mesh, role)?;
                Some(Played {
                    role,
                    listener: mesh.ttls.applied(Kind::Listener, listener),
                    on_demand: mesh.listeners.of(role)?.on_demand,
                })
            })
            .collect();
        self.secrets = translate::secrets(mesh).into_iter().collect();
        let on_demand = self.roles.iter().any(|played| played.on_demand);
        let clients = Clients::of_mesh(mesh, &policy);
        let resiliences = |index: usize| resilience(mesh, index);
        let seen = mesh.topology.zones().map(|zone| {
            let policy = seen_from(&policy, zone);
            let (filter, policy_version) =
                translate::filter_config(&mesh.filter, &policy, &mut self.encoder);
            let (hosts, needed) = match &policy {
                Policy::Serving(rules) => (
                    translate::virtual_hosts(rules, &resiliences),
                    translate::needed_clusters(rules, &resiliences),
                ),
                Policy::Fallback => Default::default(),
            };
            let clients = match (&policy, &clients) {
                (Policy::Serving(rules), Some(clients)) => {
                    Some(clients.seen_by(rules, &resiliences))
                }
                _ => None,
            };
            Seen {
                from: Arc::from(mesh.topology.zone_name(zone)),
                routes: match &policy {
                    Policy::Serving(_) => routes(mesh, &hosts),
                    Policy::Fallback => Resources::new(),
                },
                on_demand: match &policy {
                    Policy::Serving(_) if on_demand => Some(OnDemand::of(mesh, &hosts)),
                    Policy::Serving(_) | Policy::Fallback => None,
                },
                policy: Arc::new(policy),
                policy_version,
                filter: mesh.ttls.applied(Kind::FilterConfig, filter),
                hosts,
                needed,
                clients,
            }
        });
        self.zones = seen.collect();
    }

    /// Applies new plans of the services in `replanned`, by their position in the mesh.
    pub(super) fn replan(&mut self, mesh: &Mesh, plans: &[Plans], replanned: &[usize]) {
        let Some(mut rules) = self.rules().cloned() else {
            return;
        };
        let replanned: Vec<ServiceId> = replanned.iter().copied().map(ServiceId::new).collect();
        for id in &replanned {
            rules.replan(*id, plans.get(id.index()).cloned().unwrap_or_default());
        }
        let resiliences = |index: usize| resilience(mesh, index);
        let policy = Policy::Serving(Box::new(rules));
        for (zone, seen) in mesh.topology.zones().zip(&mut self.zones) {
            let before = Arc::clone(&seen.policy);
            seen.decide_by(mesh, seen_from(&policy, zone), &mut self.encoder);
            let (Policy::Serving(old), Policy::Serving(new)) = (&*before, &*seen.policy) else {
                continue;
            };
            let hosts = &mut seen.hosts;
            let touched = translate::replan_virtual_hosts(hosts, new, &replanned, &resiliences);
            if let Some(on_demand) = &mut seen.on_demand {
                for (name, host) in touched {
                    on_demand.put(name, host);
                }
            }
            if let Some(clients) = &mut seen.clients {
                clients.replan(new, &replanned, &resiliences);
            }
            seen.routes = routes(mesh, &seen.hosts);
            for id in &replanned {
                let old = translate::clusters_needed_by(old, *id, &resiliences);
                let new = translate::clusters_needed_by(new, *id, &resiliences);
                for name in old.difference(&new) {
                    seen.needed.remove(name.as_str());
                }
                seen.needed
                    .extend(new.difference(&old).map(|name| Arc::from(name.as_str())));
            }
        }
    }

    /// Applies new owners of cells, which change no route.
    pub(super) fn reown(
        &mut self,
        mesh: &Mesh,
        authorities: &impl Fn(&str) -> Option<(Vec<String>, u64)>,
    ) {
        let Some(rules) = self.rules().cloned() else {
            return;
        };
        let policy = policies::fence(mesh, rules, authorities);
        for (zone, seen) in mesh.topology.zones().zip(&mut self.zones) {
            seen.decide_by(mesh, seen_from(&policy, zone), &mut self.encoder);
        }
    }

    /// The rules of any zone, for parts that are the same in all zones.
    fn rules(&self) -> Option<&Rules> {
        match &*self.zones.first()?.policy {
            Policy::Serving(rules) => Some(rules),
            Policy::Fallback => None,
        }
    }

    /// Updates every view to the present resources.
    pub(super) fn show(&mut self, clusters: &Resources, endpoints: &Resources) {
        let before = std::mem::take(&mut self.all);
        let after = |key: &ViewKey, view: View| match before.get(key) {
            Some(before) => Arc::new(view.after(before)),
            None => Arc::new(view),
        };
        for seen in &self.zones {
            for played in &self.roles {
                let key = ViewKey {
                    zone: Arc::clone(&seen.from),
                    role: played.role,
                };
                let mut resources: [Resources; Kind::ALL.len()] = Default::default();
                resources[Kind::Cluster.index()] = clusters.clone();
                resources[Kind::Secret.index()] = self.secrets.clone();
                resources[Kind::Endpoints.index()] = endpoints.clone();
                resources[Kind::Listener.index()] = one(Arc::clone(&played.listener));
                let on_demand = seen.on_demand.as_ref().filter(|_| played.on_demand);
                resources[Kind::Routes.index()] = match on_demand {
                    Some(on_demand) => on_demand.routes.clone(),
                    None => seen.routes.clone(),
                };
                resources[Kind::VirtualHosts.index()] =
                    on_demand.map_or_else(Resources::new, |on_demand| on_demand.hosts.clone());
                resources[Kind::FilterConfig.index()] = one(Arc::clone(&seen.filter));
                let view = View::new(
                    resources,
                    seen.needed.clone(),
                    Arc::clone(&seen.policy),
                    seen.policy_version,
                );
                let view = after(&key, view);
                self.all.insert(key, view);
            }
            if let Some(clients) = &seen.clients {
                let key = ViewKey {
                    zone: Arc::clone(&seen.from),
                    role: Role::Grpc,
                };
                let policy = Arc::clone(&seen.policy);
                let view = clients.view(endpoints, policy, seen.policy_version);
                let view = after(&key, view);
                self.all.insert(key, view);
            }
        }
    }
}

impl Seen {
    fn decide_by(&mut self, mesh: &Mesh, policy: Policy, encoder: &mut Encoder) {
        let (filter, version) = translate::filter_config(&mesh.filter, &policy, encoder);
        self.filter = mesh.ttls.applied(Kind::FilterConfig, filter);
        self.policy_version = version;
        self.policy = Arc::new(policy);
    }
}

impl OnDemand {
    fn of(mesh: &Mesh, hosts: &VirtualHosts) -> OnDemand {
        let table = translate::route_table_on_demand();
        let mut on_demand = OnDemand {
            routes: one(mesh.ttls.applied(Kind::Routes, table)),
            hosts: Resources::new(),
        };
        for (name, host) in hosts {
            on_demand.put(name, host);
        }
        on_demand
    }

    fn put(&mut self, name: &str, host: &Host) {
        let host = translate::virtual_host_on_demand(name, host);
        self.hosts.insert(Arc::clone(&host.name), host);
    }
}

fn routes(mesh: &Mesh, hosts: &VirtualHosts) -> Resources {
    one(mesh
        .ttls
        .applied(Kind::Routes, translate::route_table(hosts)))
}

fn seen_from(policy: &Policy, zone: ZoneId) -> Policy {
    match policy {
        Policy::Serving(rules) => Policy::Serving(Box::new(rules.seen_from(zone))),
        Policy::Fallback => Policy::Fallback,
    }
}

fn resilience(mesh: &Mesh, index: usize) -> Resilience {
    let service = mesh.services.get(index);
    service.map(|s| s.resilience.clone()).unwrap_or_default()
}

fn one(resource: Arc<Resource>) -> Resources {
    Resources::unit(Arc::clone(&resource.name), resource)
}
