//! What the control plane knows, and what follows from it. Pure: changes in, snapshots out.
//!
//! A change costs what it touches: an instance rebuilds the endpoints of its zone and the plans of its service; route
//! tables and policies are rebuilt only when a plan or the mesh changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use policy::{InstanceCounts, Plans, Policy, ZoneLoad, ZoneState, rules::cluster_name};
use registry::record::{Health, Instance, InstanceKey, InvalidRecord};
use registry::store::{ClusterId, Entry, Revision};

use crate::{
    config::{Mesh, ServiceConfig},
    resource::{Kind, Resource, Resources},
    snapshot::{Role, Snapshot, View, ViewKey},
    translate,
};

/// Something that happened outside.
#[derive(Clone, Debug)]
pub enum Change {
    /// Everything that is registered: after a start, or when events may have been lost.
    Listed {
        entries: Vec<Entry>,
        revision: Revision,
        origin: Origin,
    },
    Put(Entry),
    Deleted {
        key: String,
    },
    /// A new topology or new services.
    Mesh(Arc<Mesh>),
    /// The store was restored or replaced. This is what it says; nothing of it holds before an operator confirms it, and a
    /// `Listed` follows then.
    Restored {
        entries: Vec<Entry>,
        revision: Revision,
        /// The revision that was known; of the cluster that was, if that has changed.
        was: Revision,
        /// The cluster that was, and the one that answers now, where they differ.
        cluster: Option<(ClusterId, ClusterId)>,
    },
}

/// Who says what is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Store,
    /// The last good state, because the store does not answer.
    Disk,
}

/// A record that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub key: String,
    pub error: InvalidRecord,
}

type Zones = BTreeMap<String, BTreeMap<String, Instance>>;

/// The registry and the mesh, and what was derived from them so far.
pub struct World {
    mesh: Arc<Mesh>,
    /// Positions of the mesh's services, by name.
    positions: BTreeMap<String, usize>,
    /// Every readable record, by service, zone and instance; also those that the mesh does not know (yet).
    registry: BTreeMap<String, Zones>,
    /// Store keys whose latest record is not used.
    rejected: BTreeMap<String, InvalidRecord>,
    /// By service and zone, so that they survive a new mesh.
    states: BTreeMap<(String, String), ZoneState>,
    derived: Derived,
    /// Services, by name, whose instances changed since the last snapshot.
    dirty: BTreeSet<String>,
    mesh_dirty: bool,
    sequence: u64,
}

#[derive(Default)]
struct Derived {
    clusters: Resources,
    endpoints: Resources,
    /// By the service's position in the mesh.
    plans: Vec<Plans>,
    views: BTreeMap<ViewKey, Arc<View>>,
}

impl World {
    /// An empty registry under `mesh`.
    pub fn new(mesh: Arc<Mesh>) -> World {
        World {
            positions: positions(&mesh),
            mesh,
            registry: BTreeMap::new(),
            rejected: BTreeMap::new(),
            states: BTreeMap::new(),
            derived: Derived::default(),
            dirty: BTreeSet::new(),
            mesh_dirty: true,
            sequence: 0,
        }
    }

    /// Takes a change in. Returns the records that are newly found to be unusable; everything else goes on without them.
    /// An instance whose record becomes unreadable stays as it was.
    pub fn apply(&mut self, change: Change) -> Vec<Rejection> {
        match change {
            Change::Listed { entries, .. } => self.relist(entries),
            Change::Put(entry) => self.put(entry).into_iter().collect(),
            // Everything stays as it was.
            Change::Restored { .. } => Vec::new(),
            Change::Deleted { key } => {
                self.delete(&key);
                Vec::new()
            }
            Change::Mesh(mesh) => {
                self.positions = positions(&mesh);
                self.mesh = mesh;
                self.mesh_dirty = true;
                self.review_unknown()
            }
        }
    }

    /// How many records are not used at the moment.
    pub fn rejected(&self) -> usize {
        self.rejected.len()
    }

    /// How many readable instances are registered.
    pub fn instances(&self) -> usize {
        let zones = self.registry.values().flat_map(BTreeMap::values);
        zones.map(BTreeMap::len).sum()
    }

    fn relist(&mut self, entries: Vec<Entry>) -> Vec<Rejection> {
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let gone: Vec<String> = self
            .keys()
            .map(|key| key.store_key())
            .chain(self.rejected.keys().cloned())
            .filter(|key| !listed.contains(key.as_str()))
            .collect();
        for key in gone {
            self.delete(&key);
        }
        entries
            .into_iter()
            .filter_map(|entry| self.put(entry))
            .collect()
    }

    fn keys(&self) -> impl Iterator<Item = InstanceKey> {
        self.registry.iter().flat_map(|(service, zones)| {
            zones.iter().flat_map(move |(zone, instances)| {
                instances.keys().map(move |instance| InstanceKey {
                    service: service.clone(),
                    zone: zone.clone(),
                    instance: instance.clone(),
                })
            })
        })
    }

    fn put(&mut self, entry: Entry) -> Option<Rejection> {
        let key = entry.key;
        let value = &entry.value;
        let parsed = InstanceKey::parse(&key).and_then(|at| Ok((at, Instance::parse(value)?)));
        let verdict = match parsed {
            Ok((at, instance)) => {
                let known = self.known(&at);
                self.dirty.insert(at.service.clone());
                self.registry
                    .entry(at.service)
                    .or_default()
                    .entry(at.zone)
                    .or_default()
                    .insert(at.instance, instance);
                known
            }
            Err(error) => Err(error),
        };
        self.judge(key, verdict)
    }

    /// Notes whether the record at `key` is used; a verdict that is not new is not reported again.
    fn judge(&mut self, key: String, verdict: Result<(), InvalidRecord>) -> Option<Rejection> {
        match verdict {
            Ok(()) => {
                self.rejected.remove(&key);
                None
            }
            Err(error) => {
                let before = self.rejected.insert(key.clone(), error.clone());
                (before.as_ref() != Some(&error)).then_some(Rejection { key, error })
            }
        }
    }

    fn known(&self, at: &InstanceKey) -> Result<(), InvalidRecord> {
        if self.mesh.topology.zone_named(&at.zone).is_none() {
            return Err(InvalidRecord::UnknownZone(at.zone.clone()));
        }
        if !self.positions.contains_key(&at.service) {
            return Err(InvalidRecord::UnknownService(at.service.clone()));
        }
        Ok(())
    }

    fn review_unknown(&mut self) -> Vec<Rejection> {
        let keys: Vec<InstanceKey> = self.keys().collect();
        keys.into_iter()
            .filter_map(|at| {
                let key = at.store_key();
                let unreadable = self.rejected.get(&key).is_some_and(|error| {
                    !matches!(
                        error,
                        InvalidRecord::UnknownZone(_) | InvalidRecord::UnknownService(_)
                    )
                });
                if unreadable {
                    return None;
                }
                let verdict = self.known(&at);
                self.judge(key, verdict)
            })
            .collect()
    }

    fn delete(&mut self, key: &str) {
        self.rejected.remove(key);
        let Ok(at) = InstanceKey::parse(key) else {
            return;
        };
        let Some(zones) = self.registry.get_mut(&at.service) else {
            return;
        };
        if let Some(instances) = zones.get_mut(&at.zone) {
            instances.remove(&at.instance);
            if instances.is_empty() {
                zones.remove(&at.zone);
            }
        }
        if zones.is_empty() {
            self.registry.remove(&at.service);
        }
        self.dirty.insert(at.service);
    }

    /// The state of everything as proxies should have it; none if nothing changed since the last one.
    pub fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        let mesh = Arc::clone(&self.mesh);
        let whole = std::mem::take(&mut self.mesh_dirty);
        let dirty = std::mem::take(&mut self.dirty);
        if whole {
            self.derived = Derived {
                plans: vec![Plans::default(); mesh.services.len()],
                ..Derived::default()
            };
        }
        let touched: Vec<usize> = if whole {
            (0..mesh.services.len()).collect()
        } else {
            let known = dirty.iter().filter_map(|name| self.positions.get(name));
            known.copied().collect()
        };
        let mut endpoints_changed = whole;
        let mut plans_changed = whole;
        for index in touched {
            let Some(service) = mesh.services.get(index) else {
                continue;
            };
            let changed = self.derive_service(&mesh, index, service);
            endpoints_changed |= changed.endpoints;
            plans_changed |= changed.plans;
        }
        if !endpoints_changed && !plans_changed {
            return None;
        }
        if plans_changed {
            self.derive_views(&mesh);
        } else {
            self.refresh_views();
        }
        self.sequence += 1;
        Some(Arc::new(Snapshot::new(
            self.sequence,
            self.derived.views.clone(),
        )))
    }

    fn derive_service(
        &mut self,
        mesh: &Mesh,
        index: usize,
        service: &ServiceConfig,
    ) -> ServiceChanged {
        let mut changed = ServiceChanged::default();
        let mut loads = Vec::with_capacity(mesh.topology.zones().len());
        for zone in mesh.topology.zones() {
            let zone_name = mesh.topology.zone_name(zone);
            let region = mesh.topology.region_name(mesh.topology.region_of(zone));
            let instances = self
                .registry
                .get(&service.name)
                .and_then(|zones| zones.get(zone_name));
            let name = cluster_name(&service.name, zone_name);
            // A cluster follows from the mesh alone, and a new mesh has emptied the map.
            if !self.derived.clusters.contains_key(name.as_str()) {
                let cluster = translate::cluster(&name, service.protocol);
                replace(&mut self.derived.clusters, cluster);
            }
            let endpoints = translate::endpoints(
                &name,
                region,
                zone_name,
                instances.into_iter().flat_map(BTreeMap::values),
            );
            changed.endpoints |= replace(&mut self.derived.endpoints, endpoints);
            let state = self
                .states
                .entry((service.name.clone(), zone_name.to_owned()))
                .or_default();
            let (counts, load1_per_core) = tally(instances);
            *state = state.next(counts, service.thresholds);
            loads.push(ZoneLoad {
                state: *state,
                load1_per_core,
            });
        }
        let plans = Plans::compute(&mesh.topology, service.weighting, &loads);
        if let Some(slot) = self.derived.plans.get_mut(index)
            && *slot != plans
        {
            *slot = plans;
            changed.plans = true;
        }
        changed
    }

    /// Builds every zone's routes and policy anew.
    fn derive_views(&mut self, mesh: &Mesh) {
        let listeners = Role::ALL.map(|role| (role, translate::listener(mesh, role)));
        self.derived.views.clear();
        for viewer in mesh.topology.zones() {
            let plans = |index: usize| self.derived.plans.get(index).cloned().unwrap_or_default();
            let policy = Arc::new(mesh.policy(viewer, plans));
            let (filter, policy_version) = translate::filter_config(&mesh.filter, &policy);
            let (routes, needed) = match &*policy {
                Policy::Serving(rules) => (
                    one(translate::routes(rules)),
                    translate::needed_clusters(rules),
                ),
                Policy::Fallback => (Resources::new(), Arc::default()),
            };
            for (role, listener) in &listeners {
                let key = ViewKey {
                    zone: Arc::from(mesh.topology.zone_name(viewer)),
                    role: *role,
                };
                let resources = [
                    self.derived.clusters.clone(),
                    self.derived.endpoints.clone(),
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
                self.derived.views.insert(key, Arc::new(view));
            }
        }
    }

    /// Gives every view the present clusters and endpoints.
    fn refresh_views(&mut self) {
        for view in self.derived.views.values_mut() {
            *view = Arc::new(View::new(
                [
                    self.derived.clusters.clone(),
                    self.derived.endpoints.clone(),
                    view.of(Kind::Listener).clone(),
                    view.of(Kind::Routes).clone(),
                    view.of(Kind::FilterConfig).clone(),
                ],
                Arc::clone(view.needed()),
                Arc::clone(view.policy()),
                view.policy_version(),
            ));
        }
    }
}

fn positions(mesh: &Mesh) -> BTreeMap<String, usize> {
    let names = mesh.services.iter().map(|service| service.name.clone());
    names.enumerate().map(|(at, name)| (name, at)).collect()
}

#[derive(Default)]
struct ServiceChanged {
    endpoints: bool,
    plans: bool,
}

fn one(resource: Arc<Resource>) -> Resources {
    Resources::unit(Arc::clone(&resource.name), resource)
}

/// Puts `resource` into the map; false if it is there already.
fn replace(resources: &mut Resources, resource: Arc<Resource>) -> bool {
    let same = resources
        .get(&resource.name)
        .is_some_and(|old| old.version == resource.version);
    if !same {
        resources.insert(Arc::clone(&resource.name), resource);
    }
    !same
}

/// Counts by health, and the mean load of the instances that are not draining.
fn tally(instances: Option<&BTreeMap<String, Instance>>) -> (InstanceCounts, f64) {
    let mut counts = InstanceCounts::default();
    let mut load = 0.0;
    for instance in instances.into_iter().flat_map(BTreeMap::values) {
        match instance.health {
            Health::Healthy => counts.healthy += 1,
            Health::Unhealthy => counts.unhealthy += 1,
            Health::Draining => continue,
        }
        load += instance.load1_per_core;
    }
    let serving = counts.healthy + counts.unhealthy;
    (counts, load / f64::from(serving.max(1)))
}
