//! xDS resources: encoded once, immutable, with a version that follows from the content.

use std::{fmt, sync::Arc};

use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

/// The kinds of resources, **in the order in which they are sent**.
///
/// A proxy must know a cluster and its endpoints before a route names them, or requests end in 503; a listener that
/// arrives before its routes only waits for them. See Envoy's xDS protocol, "Eventual consistency considerations".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Routes,
    FilterConfig,
}

impl Kind {
    pub const ALL: [Kind; 5] = [
        Kind::Cluster,
        Kind::Endpoints,
        Kind::Listener,
        Kind::Routes,
        Kind::FilterConfig,
    ];

    /// The position in [`Kind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The `type_url` of requests and responses.
    pub const fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Kind::FilterConfig => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        }
    }

    /// The kind with this `type_url`.
    pub fn of_type_url(url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// The short name in logs, metrics and the admin interface.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Cluster => "cds",
            Kind::Endpoints => "eds",
            Kind::Listener => "lds",
            Kind::Routes => "rds",
            Kind::FilterConfig => "ecds",
        }
    }

    /// Whether a state-of-the-world response must carry every resource of the kind: what is missing is gone.
    pub const fn full_state(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener)
    }
}

/// A content hash (XXH3): equal content has equal versions on every replica and after every restart, so a proxy that
/// moves between replicas is sent nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    pub fn of(bytes: &[u8]) -> Version {
        Version(xxhash_rust::xxh3::xxh3_64(bytes))
    }

    /// Reads a version that a client presents. Text that is not one of ours becomes a version that no resource has.
    pub fn parse(text: &str) -> Version {
        u64::from_str_radix(text, 16).map_or_else(|_| Version::of(text.as_bytes()), Version)
    }

    /// The version of a set of resources, in order.
    pub fn of_set<'r>(resources: impl Iterator<Item = &'r Resource>) -> Version {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for resource in resources {
            hash.update(resource.name.as_bytes());
            // Keeps names and versions apart: names contain no zero byte.
            hash.update(&[0]);
            hash.update(&resource.version.0.to_le_bytes());
        }
        Version(hash.digest())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One resource, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub name: Arc<str>,
    pub version: Version,
    pub body: Any,
    /// Requests that are sent here fail: endpoints of which none is healthy.
    pub dead_end: bool,
}

impl Resource {
    /// Encodes `message`. Its encoding must be the same every time: no map fields with more than one entry.
    pub fn encode<M: Message + Name>(name: &str, message: &M) -> Resource {
        let body = any(message);
        Resource {
            name: Arc::from(name),
            version: Version::of(&body.value),
            body,
            dead_end: false,
        }
    }

    /// The same, for endpoints of which none is healthy.
    pub fn into_dead_end(self) -> Resource {
        Resource {
            dead_end: true,
            ..self
        }
    }
}

/// Resources of one kind by name. Shared structure: a new map that differs in one resource costs one path.
pub type Resources = imbl::OrdMap<Arc<str>, Arc<Resource>>;

/// `message` as an `Any` with its type URL.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}
