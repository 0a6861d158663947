//! The views of all proxies, at one moment.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Deref,
    sync::Arc,
};

use envoy_types::pb::{
    envoy::config::core::v3::{Locality, Node},
    google::protobuf::{Struct, Value, value},
};
use policy::Policy;
use registry::record::{InstanceKey, InvalidRecord};
use serde::Deserialize;
use xds::resource::{Kind, Names, Resources};

/// The role of a proxy, from `node.metadata.tidegate.role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    Gateway,
    Sidecar,
    /// A gRPC client with its own xDS, without a proxy.
    Grpc,
    /// A filter in an Envoy with a foreign configuration. Its policy and grants come over streams
    /// of its own; it has no view.
    Guest,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Gateway, Role::Sidecar, Role::Grpc, Role::Guest];
    /// The roles of proxies that Tidegate configures. Only these and guests admit writes.
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
            Role::Guest => "guest",
        }
    }
}

/// The key of a view: the proxies of one zone and role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewKey {
    pub zone: Arc<str>,
    pub role: Role,
}

/// Client status reports the zone and the role as in the proxy's bootstrap.
impl xds::Key for ViewKey {
    fn node(&self) -> Node {
        let value = |kind| Value { kind: Some(kind) };
        let object = |name: &str, value: Value| Struct {
            fields: HashMap::from([(name.to_owned(), value)]),
        };
        let role = value(value::Kind::StringValue(self.role.as_str().to_owned()));
        let role = value(value::Kind::StructValue(object("role", role)));
        Node {
            locality: Some(Locality {
                zone: self.zone.to_string(),
                ..Locality::default()
            }),
            metadata: Some(object("tidegate", role)),
            ..Node::default()
        }
    }
}

/// The resources for the proxies of one zone and role, and the policy of their filters.
#[derive(Clone, Debug)]
pub struct View {
    resources: Arc<xds::View>,
    policy: Arc<Policy>,
    policy_version: u64,
}

impl View {
    /// A view of these resources, whose routes and filter use the clusters `needed`: see
    /// [`xds::View::new`].
    pub fn new(
        resources: [Resources; Kind::ALL.len()],
        needed: Names,
        policy: Arc<Policy>,
        policy_version: u64,
    ) -> View {
        View {
            resources: Arc::new(xds::View::new(resources, needed)),
            policy,
            policy_version,
        }
    }

    /// The same, as the successor of `before`: updating clients with `before` is cheap.
    pub fn after(self, before: &View) -> View {
        // It is not shared yet, so nothing is copied.
        let resources = Arc::unwrap_or_clone(self.resources);
        View {
            resources: Arc::new(resources.after(&before.resources)),
            ..self
        }
    }

    /// The resources that discovery sends.
    pub fn resources(&self) -> &Arc<xds::View> {
        &self.resources
    }

    /// The policy of the proxies' filters.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The version that the filter reports once it has applied [`View::policy`].
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }
}

impl Deref for View {
    type Target = xds::View;

    fn deref(&self) -> &xds::View {
        &self.resources
    }
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

    /// The same, for a store without instances that may have been emptied: a proxy that holds
    /// resources gets no response.
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
