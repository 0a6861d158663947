//! Endpoints and plans, service by service, derived from the records.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use policy::{Plans, Weighting, Why, Writes, ZoneAssessment, ZoneId, ZoneLoad};
use registry::zone_records::StandingKey;

use super::{World, views::Views};
use crate::{
    config::{Mesh, ServiceConfig},
    translate::{self, ZoneInstances},
};
use xds::resource::{Kind, Resource, Resources};

#[derive(Default)]
pub(super) struct Derived {
    pub(super) clusters: Resources,
    pub(super) endpoints: Resources,
    /// The assessments, besides the instances, that the endpoints were built from: by the service's
    /// position in the mesh, and zone.
    pub(super) judged: HashMap<(usize, ZoneId), ZoneAssessment>,
    /// By the service's position in the mesh.
    pub(super) plans: Vec<Plans>,
    /// When a service has to be derived again, by its position; and the same ordered by time.
    pub(super) due_ms: Vec<Option<u64>>,
    pub(super) due: BTreeSet<(u64, usize)>,
    pub(super) views: Views,
}

impl World {
    /// Derives one service of the mesh; `instances_changed` says whether the instances of a zone
    /// have changed.
    pub(super) fn derive_service(
        &mut self,
        mesh: &Mesh,
        index: usize,
        service: &ServiceConfig,
        instances_changed: impl Fn(&str) -> bool,
        now_ms: u64,
    ) -> ServiceChanged {
        let mut changed = ServiceChanged::default();
        let mut loads: Vec<ZoneLoad> = Vec::with_capacity(mesh.topology.zones().len());
        let mut zones: Vec<ZoneInstances<'_>> = Vec::with_capacity(loads.capacity());
        let mut due_ms = None;
        let follow_load = service.weighting == Weighting::Computed && !self.frozen;
        for zone in mesh.topology.zones() {
            let at = StandingKey {
                service: service.name.clone(),
                zone: mesh.topology.zone_name(zone).to_owned(),
            };
            let instances: Vec<_> = self.instances.of(&at.service, &at.zone).collect();
            let observed = instances.iter().map(|(_, instance)| *instance);
            let rules = &service.failover;
            let (load, verdict) = (self.zones).observe(&at, observed, rules, follow_load, now_ms);
            loads.push(load);
            due_ms = due_ms.into_iter().chain(verdict.again_at_ms).min();
            let before = self.derived.judged.insert((index, zone), verdict);
            let judged_alike =
                |before: ZoneAssessment| (before.state, before.why) == (verdict.state, verdict.why);
            zones.push(ZoneInstances {
                zone,
                state: verdict.state,
                drained: verdict.why == Why::Drained,
                full_from_percent: match verdict.why {
                    Why::Pinned => 1,
                    _ => rules.thresholds.down_below_percent(),
                },
                instances,
                changed: instances_changed(&at.zone) || !before.is_some_and(judged_alike),
            });
        }
        for endpoints in translate::endpoints(&mesh.topology, service, &zones) {
            let endpoints = mesh.ttls.applied(Kind::Endpoints, endpoints);
            changed.endpoints |= replace(&mut self.derived.endpoints, endpoints);
        }
        self.derived.set_due(index, due_ms);
        // No request is planned to go to the gateways.
        if !service.is_routed() {
            return changed;
        }
        let plans = Plans::compute(&mesh.topology, service.weighting, &loads, &service.demands);
        let plans = match service.writes {
            Writes::Free => plans,
            Writes::Fenced { .. } => plans.fenced(&mesh.topology, &loads),
        };
        if let Some(slot) = self.derived.plans.get_mut(index)
            && *slot != plans
        {
            *slot = plans;
            changed.plans = true;
        }
        changed
    }
}

impl Derived {
    pub(super) fn set_due(&mut self, index: usize, due_ms: Option<u64>) {
        let Some(slot) = self.due_ms.get_mut(index) else {
            return;
        };
        if let Some(old) = std::mem::replace(slot, due_ms) {
            self.due.remove(&(old, index));
        }
        self.due.extend(due_ms.map(|due_ms| (due_ms, index)));
    }
}

/// Clusters depend on the mesh only.
pub(super) fn clusters(mesh: &Mesh) -> Resources {
    let services = mesh.services.iter();
    let clusters = services.flat_map(|service| translate::clusters(&mesh.topology, service));
    clusters
        .map(|cluster| mesh.ttls.applied(Kind::Cluster, cluster))
        .map(|cluster| (Arc::clone(&cluster.name), cluster))
        .collect()
}

/// Empty endpoints for every service.
pub(super) fn unserved(mesh: &Mesh) -> Resources {
    let grpc = mesh.listeners.grpc.then(translate::grpc::no_endpoints);
    let named = grpc.map(|endpoints| (Arc::clone(&endpoints.name), endpoints));
    named.into_iter().collect()
}

#[derive(Default)]
pub(super) struct ServiceChanged {
    pub(super) endpoints: bool,
    pub(super) plans: bool,
}

/// Puts `resource` into the map; false if an equal one is there already.
fn replace(resources: &mut Resources, resource: Arc<Resource>) -> bool {
    let same = resources
        .get(&resource.name)
        .is_some_and(|old| old.version == resource.version);
    if !same {
        resources.insert(Arc::clone(&resource.name), resource);
    }
    !same
}
