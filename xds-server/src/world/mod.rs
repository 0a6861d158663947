//! The state of the control plane, and the resources derived from it. Pure: changes and time in,
//! snapshots out.
//!
//! A change only costs the affected parts: an instance rebuilds the endpoints of its zone and the
//! plans of its service. Route tables and policies are rebuilt only if a plan, the owners of a
//! cell, or the mesh changed.
//!
//! Time is in milliseconds of any monotonic clock.

mod authorities;
mod claims;
mod clients;
mod derived;
mod guard;
mod instances;
mod overview;
mod policies;
mod records;
mod views;
mod zones;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use policy::{Plans, fence::Agreement};
use registry::{
    record::{Instance, InstanceKey, InvalidRecord},
    store::{ClusterId, Entry, Revision},
};

use crate::{config::Mesh, snapshot::Snapshot};
use authorities::Authorities;
use derived::{Derived, clusters, unserved};
use guard::Guard;
use instances::{Fate, Instances};
use zones::Zones;

pub(crate) use guard::lost_too_many;
pub use guard::{DOUBT_MS, Implausible, Seen};
pub use instances::{Rejected, Warnings};
pub use overview::Overview;
pub use policies::policy;
pub use zones::{Proposal, Proposals, Statuses, ZoneStatus};

/// An external change.
#[derive(Clone, Debug)]
pub enum Change {
    /// All keys under `/tidegate/v1/`: after a start, or when events may have been lost.
    Listed {
        entries: Vec<Entry>,
        revision: Revision,
        origin: Origin,
    },
    Put(Entry),
    Deleted {
        key: String,
        revision: Revision,
    },
    /// An operator confirms the store up to this state.
    Confirmed(Seen),
    /// The store answers with a state that is older than the known one, or is another store: it is
    /// rejected.
    Restored {
        revision: Revision,
        was: Revision,
        /// The previous and the present store; none if the store claims to be the same.
        cluster: Option<(ClusterId, ClusterId)>,
    },
    /// A new topology or new services.
    Mesh(Arc<Mesh>),
}

/// The origin of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Store,
    /// The last good state on disk.
    Disk,
    /// The store, and an operator trusts it in any state.
    Confirmed,
}

/// A rejected record, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub key: String,
    pub error: InvalidRecord,
}

/// How long after the first instance the others have to appear, if the store had none at the start.
const PEOPLED_MS: u64 = 2_000;

/// The registry and the mesh, and all that was derived from them so far.
pub struct World {
    /// As configured.
    configured: Arc<Mesh>,
    agreement: Option<Agreement>,
    /// Whether something besides the store confirms that there are no instances.
    vouched: bool,
    vouch_dirty: bool,
    /// When the first instance appeared.
    peopled_ms: Option<u64>,
    /// With the agreed terms applied.
    mesh: Arc<Mesh>,
    /// Positions of the mesh's services, by name.
    positions: Arc<BTreeMap<String, usize>>,
    instances: Instances,
    /// The revision up to which the store was applied.
    revision: Revision,
    guard: Guard,
    zones: Zones,
    authorities: Authorities,
    /// Weights do not follow the load.
    frozen: bool,
    derived: Derived,
    /// Services, by name, that changed since the last snapshot, with the zones whose instances did.
    dirty: BTreeMap<String, BTreeSet<String>>,
    mesh_dirty: bool,
    authority_dirty: bool,
    sequence: u64,
}

impl World {
    /// An empty registry under `mesh`.
    pub fn new(mesh: Arc<Mesh>) -> World {
        let mut world = World {
            positions: positions(&mesh),
            configured: Arc::clone(&mesh),
            agreement: None,
            vouched: true,
            vouch_dirty: false,
            peopled_ms: None,
            mesh,
            instances: Instances::default(),
            revision: Revision(0),
            guard: Guard::default(),
            zones: Zones::default(),
            authorities: Authorities::default(),
            frozen: false,
            derived: Derived::default(),
            dirty: BTreeMap::new(),
            mesh_dirty: true,
            authority_dirty: false,
            sequence: 0,
        };
        world.take_mesh();
        world
    }

    /// The same without a last good state to show missing instances: a store without any may have
    /// been emptied.
    pub fn unvouched(mut self) -> World {
        self.vouched = false;
        self
    }

    /// An operator confirms that there really are no instances.
    pub fn vouch(&mut self) {
        self.vouch_dirty |= !self.vouched;
        self.vouched = true;
    }

    /// Whether the store has had no instance since the start, and nothing else confirms that there
    /// are none: it may have been emptied.
    pub fn is_bare(&self) -> bool {
        !self.vouched
    }

    /// Instances that appear show that the store is in use again; all of them get some time to
    /// appear.
    fn people(&mut self, now_ms: u64) {
        if self.vouched || self.instances.count() == 0 {
            return;
        }
        let since_ms = *self.peopled_ms.get_or_insert(now_ms);
        if now_ms >= since_ms + PEOPLED_MS {
            self.vouch();
        }
    }

    /// Applies a change. Returns the newly rejected records; all others are applied without them.
    /// An instance whose record becomes unreadable is not changed.
    pub fn apply(&mut self, change: Change, now_ms: u64) -> Vec<Rejection> {
        let mut rejections = self.take_in(change, now_ms);
        self.follow_fates(now_ms);
        rejections.extend(self.instances.take_rejections());
        rejections
    }

    fn take_in(&mut self, change: Change, now_ms: u64) -> Vec<Rejection> {
        match change {
            Change::Listed {
                entries,
                origin,
                revision,
            } => {
                // Lower than before if another store is trusted.
                self.revision = revision;
                self.relist(entries, origin, now_ms)
            }
            Change::Put(entry) => {
                self.revision = self.revision.max(entry.mod_revision);
                self.put(&entry, now_ms)
            }
            Change::Deleted { key, revision } => {
                self.revision = self.revision.max(revision);
                self.delete(&key, now_ms);
                Vec::new()
            }
            Change::Confirmed(seen) => {
                self.confirm(seen);
                Vec::new()
            }
            Change::Restored {
                revision,
                was,
                cluster,
            } => {
                let how = match cluster {
                    Some((was, is)) => {
                        format!(
                            "another store answers: cluster {:x} was known, and now it is {:x}",
                            was.0, is.0
                        )
                    }
                    None => format!(
                        "the store's revision fell from {} to {}: it may be restored from an older backup",
                        was.0, revision.0
                    ),
                };
                self.guard.trip(Implausible::Restored(how));
                Vec::new()
            }
            Change::Mesh(mesh) => {
                self.configured = mesh;
                self.take_mesh();
                Vec::new()
            }
        }
    }

    /// Applies a change of the mesh, or of its terms.
    fn take_mesh(&mut self) {
        // Before there is a record, proxies get the terms of the first one. A policy without terms
        // would look like that of an older filter, even once terms are agreed on.
        let first = || self.configured.agreed().map(Agreement::first);
        let agreement = self.agreement.clone().or_else(first);
        self.mesh = match agreement.and_then(|agreement| self.configured.under(&agreement)) {
            Some(mesh) => Arc::new(mesh),
            None => Arc::clone(&self.configured),
        };
        self.positions = positions(&self.mesh);
        self.mesh_dirty = true;
        let (mesh, positions) = (&self.mesh, &self.positions);
        (self.instances).review(|at, instance| known(mesh, positions, at, instance));
    }

    /// Instances whose address another zone takes over are doubted like those that disappear from
    /// the store.
    fn follow_fates(&mut self, now_ms: u64) {
        // Removing one may resettle others.
        loop {
            let resettled = self.instances.take_resettled();
            if resettled.is_empty() {
                return;
            }
            for at in resettled {
                self.follow_fate(&at, now_ms);
                self.touch_instances(at);
            }
        }
    }

    fn follow_fate(&mut self, at: &InstanceKey, now_ms: u64) {
        let key = at.store_key();
        match self.instances.fate(at) {
            Some(Fate::Doubted) => self.guard.vanish(&key, self.revision, now_ms),
            Some(Fate::Kept | Fate::Unused) => self.guard.back(&key),
            Some(Fate::Replaced) => self.remove(&key),
            None => {}
        }
    }

    /// The rejected records of instances at present, with the reason.
    pub fn rejected(&self) -> &Rejected {
        self.instances.rejected()
    }

    /// Oddities of the accepted records of instances.
    pub fn warnings(&self) -> &Warnings {
        self.instances.warnings()
    }

    /// The number of readable registered instances, including kept ones that disappeared.
    pub fn instances(&self) -> usize {
        self.instances.count()
    }

    /// The number of instances that are served although their records are gone.
    pub fn kept(&self) -> usize {
        self.guard.kept()
    }

    /// The implausible change that is rejected at present.
    pub fn implausible(&self) -> Option<&Implausible> {
        self.guard.tripped()
    }

    /// The state of the store as an operator sees it here.
    pub fn seen(&self) -> Seen {
        Seen {
            revision: self.revision,
            instances: self.instances.count().saturating_sub(self.guard.kept()),
        }
    }

    /// An operator confirms that the missing instances are gone. A restored store is trusted with
    /// its next listing. In both cases the operator has checked the store, so Tidegate does not ask
    /// again whether it was emptied, unless it was emptied since.
    pub fn confirm(&mut self, seen: Seen) {
        let vanish_percent = self.mesh.guard.vanish_percent;
        if seen.covers(self.seen().instances, vanish_percent) {
            self.vouch();
        }
        if !matches!(self.guard.tripped(), Some(Implausible::Restored(_))) {
            self.believe(seen.revision);
        }
    }

    fn believe(&mut self, up_to: Revision) {
        for key in self.guard.confirm(up_to) {
            self.release(&key);
        }
    }

    /// Whether weights are frozen under any load.
    pub fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// Standings to write to the store, by key. They remain until the store reports that they, or
    /// others, were written.
    pub fn proposals(&self) -> &Proposals {
        self.zones.proposals()
    }

    /// The state of every service in every zone.
    pub fn statuses(&self) -> &Statuses {
        self.zones.statuses()
    }

    /// When to request a snapshot even without a change.
    pub fn due_ms(&self) -> Option<u64> {
        let service = self.derived.due.first().map(|(due_ms, _)| *due_ms);
        let peopled = self.peopled_ms.filter(|_| !self.vouched);
        let peopled = peopled.map(|since_ms| since_ms + PEOPLED_MS);
        let due = service.into_iter().chain(self.guard.due_ms());
        due.chain(peopled).min()
    }

    /// The complete state for proxies; none if nothing changed since the last one.
    pub fn snapshot(&mut self, now_ms: u64) -> Option<Arc<Snapshot>> {
        let percent = self.mesh.guard.vanish_percent;
        for key in self.guard.release(self.instances.served(), percent, now_ms) {
            self.release(&key);
        }
        self.follow_fates(now_ms);
        self.people(now_ms);
        let mesh = Arc::clone(&self.mesh);
        let whole = std::mem::take(&mut self.mesh_dirty);
        let dirty = std::mem::take(&mut self.dirty);
        if whole {
            self.derived = Derived {
                clusters: clusters(&mesh),
                endpoints: unserved(&mesh),
                plans: vec![Plans::default(); mesh.services.len()],
                due_ms: vec![None; mesh.services.len()],
                views: std::mem::take(&mut self.derived.views),
                ..Derived::default()
            };
            let positions = &self.positions;
            self.zones.retain(|service, zone| {
                positions.contains_key(service) && mesh.topology.zone_named(zone).is_some()
            });
        }
        let touched: BTreeSet<usize> = if whole {
            (0..mesh.services.len()).collect()
        } else {
            let known = dirty.keys().filter_map(|name| self.positions.get(name));
            let due = self.derived.due.iter();
            let due = due.take_while(|(due_ms, _)| *due_ms <= now_ms);
            known.copied().chain(due.map(|(_, index)| *index)).collect()
        };
        let reowned = std::mem::take(&mut self.authority_dirty);
        let mut changed = whole || reowned || std::mem::take(&mut self.vouch_dirty);
        let mut replanned = Vec::new();
        for index in touched {
            if let Some(service) = mesh.services.get(index) {
                let instances = |zone: &str| {
                    let zones = dirty.get(&service.name);
                    zones.is_some_and(|zones| zones.contains(zone))
                };
                let service = self.derive_service(&mesh, index, service, instances, now_ms);
                changed |= service.endpoints || service.plans;
                replanned.extend(service.plans.then_some(index));
            }
        }
        if !changed {
            return None;
        }
        let Derived {
            clusters,
            endpoints,
            plans,
            views,
            ..
        } = &mut self.derived;
        let authorities = |cell: &str| self.authorities.of(cell);
        if whole {
            views.derive(&mesh, plans, &authorities);
        } else {
            if !replanned.is_empty() {
                views.replan(&mesh, plans, &replanned);
            }
            if reowned {
                views.reown(&mesh, &authorities);
            }
        }
        views.show(clusters, endpoints);
        self.sequence += 1;
        let snapshot = Snapshot::new(
            self.sequence,
            views.all().clone(),
            Arc::clone(&self.positions),
        );
        Some(Arc::new(match self.vouched {
            true => snapshot,
            false => snapshot.bare(),
        }))
    }
}

fn positions(mesh: &Mesh) -> Arc<BTreeMap<String, usize>> {
    let names = mesh.services.iter().map(|service| service.name.clone());
    Arc::new(names.enumerate().map(|(at, name)| (name, at)).collect())
}

fn known(
    mesh: &Mesh,
    positions: &BTreeMap<String, usize>,
    at: &InstanceKey,
    instance: &Instance,
) -> Result<(), InvalidRecord> {
    mesh.guard.check(instance)?;
    if mesh.topology.zone_named(&at.zone).is_none() {
        return Err(InvalidRecord::UnknownZone(at.zone.clone()));
    }
    if !positions.contains_key(&at.service) {
        return Err(InvalidRecord::UnknownService(at.service.clone()));
    }
    Ok(())
}
