//! What all proxies should have, at one moment.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use imbl::ordmap::DiffItem;
use policy::Policy;
use registry::record::{InstanceKey, InvalidRecord};

use crate::resource::{Kind, Names, Resources};

/// What a proxy is for. It says so in `node.metadata.tidegate.role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    #[default]
    Gateway,
    Sidecar,
    /// No proxy: a gRPC client that speaks xDS by itself.
    Grpc,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Gateway, Role::Sidecar, Role::Grpc];
    /// Those with a filter, which alone admit writes.
    pub const PROXIES: [Role; 2] = [Role::Gateway, Role::Sidecar];

    /// The role of this name.
    pub fn named(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.as_str() == name)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Sidecar => "sidecar",
            Role::Grpc => "grpc",
        }
    }
}

/// Who looks: the proxies of one zone and role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewKey {
    pub zone: Arc<str>,
    pub role: Role,
}

/// What the proxies of one zone and role should have.
#[derive(Clone, Debug)]
pub struct View {
    resources: [Resources; Kind::ALL.len()],
    follows: Option<Follows>,
    /// The clusters that routes and filter may send requests to. All of them are in the view.
    needed: Names,
    policy: Arc<Policy>,
    policy_version: u64,
}

/// How a view differs from the one before it: worked out once for all streams that go from one to the other.
#[derive(Clone, Debug)]
struct Follows {
    /// Keeps the place in memory, so that no other view can be taken for it.
    before: Weak<View>,
    changed: [Arc<[Arc<str>]>; Kind::ALL.len()],
}

impl View {
    /// A view of these resources, whose routes and filter use the clusters `needed`.
    ///
    /// Self-consistent: every needed cluster is there. What is not is a bug of the translation, caught in debug builds.
    pub fn new(
        resources: [Resources; Kind::ALL.len()],
        needed: Names,
        policy: Arc<Policy>,
        policy_version: u64,
    ) -> View {
        let view = View {
            resources,
            follows: None,
            needed,
            policy,
            policy_version,
        };
        debug_assert!(
            (view.needed.iter()).all(|name| view.of(Kind::Cluster).contains_key(name)),
            "a route names a cluster that is not there: {:?}",
            view.needed
        );
        view
    }

    /// The same, as what comes after `before`: whoever has that learns quickly what is new.
    pub fn after(self, before: &Arc<View>) -> View {
        let changed = Kind::ALL.map(|kind| changes(before.of(kind), self.of(kind)).collect());
        let before = Arc::downgrade(before);
        View {
            follows: Some(Follows { before, changed }),
            ..self
        }
    }

    /// The names of the resources of a kind that `before` has not, or has with another content, and of those that it alone has;
    /// in order.
    pub fn changes_since(&self, before: &Arc<View>, kind: Kind) -> Arc<[Arc<str>]> {
        match &self.follows {
            Some(follows) if std::ptr::eq(follows.before.as_ptr(), Arc::as_ptr(before)) => {
                Arc::clone(&follows.changed[kind.index()])
            }
            _ => changes(before.of(kind), self.of(kind)).collect(),
        }
    }

    /// The resources of one kind.
    pub fn of(&self, kind: Kind) -> &Resources {
        // `Kind::index` is a position in an array of that length.
        &self.resources[kind.index()]
    }

    /// Whether proxies ask for virtual hosts one by one.
    pub fn is_on_demand(&self) -> bool {
        !self.of(Kind::VirtualHosts).is_empty()
    }

    /// What the proxies' filters decide by.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The version that the filter reports once it has applied [`View::policy`].
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// The clusters that must be warm in a proxy before it gets these routes.
    pub fn needed(&self) -> &Names {
        &self.needed
    }
}

/// Subtrees that both maps share are passed over.
fn changes(before: &Resources, after: &Resources) -> impl Iterator<Item = Arc<str>> {
    before.diff(after).map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => Arc::clone(name),
        DiffItem::Update { new: (name, _), .. } => Arc::clone(name),
    })
}

/// All views at one moment. Immutable.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Rises with every snapshot of this process.
    pub sequence: u64,
    views: BTreeMap<ViewKey, Arc<View>>,
    /// Positions in the mesh by name.
    services: Arc<BTreeMap<String, usize>>,
    bare: bool,
}

impl Snapshot {
    /// `services` are their positions in the mesh, by name.
    pub fn new(
        sequence: u64,
        views: BTreeMap<ViewKey, Arc<View>>,
        services: Arc<BTreeMap<String, usize>>,
    ) -> Snapshot {
        Snapshot {
            sequence,
            views,
            services,
            bare: false,
        }
    }

    /// The same, of a store without instances that may have been emptied: nothing for a proxy that holds something.
    pub fn bare(mut self) -> Snapshot {
        self.bare = true;
        self
    }

    /// Whether it is [`bare`](Snapshot::bare).
    pub fn is_bare(&self) -> bool {
        self.bare
    }

    pub fn view(&self, key: &ViewKey) -> Option<&Arc<View>> {
        self.views.get(key)
    }

    /// The views, ordered by zone.
    pub fn views(&self) -> impl Iterator<Item = (&ViewKey, &Arc<View>)> {
        self.views.iter()
    }

    /// Whether the mesh has the zone and the service of an instance.
    pub fn knows(&self, at: &InstanceKey) -> Result<(), InvalidRecord> {
        let key = ViewKey {
            zone: Arc::from(at.zone.as_str()),
            role: Role::Gateway,
        };
        if self.view(&key).is_none() {
            return Err(InvalidRecord::UnknownZone(at.zone.clone()));
        }
        match self.services.contains_key(&at.service) {
            true => Ok(()),
            false => Err(InvalidRecord::UnknownService(at.service.clone())),
        }
    }

    /// The zones that have views, in order.
    pub fn zones(&self) -> impl Iterator<Item = &str> {
        self.views
            .keys()
            .filter(|key| key.role == Role::Gateway)
            .map(|key| key.zone.as_ref())
    }
}
