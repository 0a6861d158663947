//! xDS resources: encoded once, immutable, with a version that follows from the content.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any;
use prost::{
    Message, Name,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};

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

/// One resource, ready to be sent: encoded once, and shared by every stream that sends it.
///
/// In both variants of the protocol `resources` is field 2 of the response. In delta its entries are `Resource` messages,
/// with the `Any` in *their* field 2; in the state of the world they are the `Any` itself. So an entry whose `Any` stands
/// last holds the other variant's entry as its tail:
///
/// ```text
/// 12 len | 1a name | 0a version | 12 len | 0a type_url | 12 len | message
/// ^ delta entry                 ^ entry of the state of the world ^ message
/// ```
#[derive(Clone, Debug)]
pub struct Resource {
    pub name: Arc<str>,
    pub version: Version,
    /// Requests that are sent here fail: endpoints of which none is healthy.
    pub dead_end: bool,
    digest: Digest,
    wire: Bytes,
    /// What follows: the pieces of a message that other resources share.
    rest: Arc<[Bytes]>,
    /// Where the entry of the state of the world begins in `wire`.
    any_at: usize,
    /// Where the message itself begins.
    message_at: usize,
}

/// Versions follow from the content, so this is equality of contents.
impl PartialEq for Resource {
    fn eq(&self, other: &Resource) -> bool {
        self.version == other.version && self.name == other.name && self.dead_end == other.dead_end
    }
}

impl Resource {
    /// Encodes `message`. Its encoding must be the same every time: no map fields with more than one entry.
    pub fn encode<M: Message + Name>(name: &str, message: &M) -> Resource {
        Resource::of_bytes(name, &M::type_url(), &[&message.encode_to_vec()])
    }

    /// A resource whose message is the concatenation of `pieces`.
    pub fn of_bytes(name: &str, type_url: &str, pieces: &[&[u8]]) -> Resource {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for piece in pieces {
            hash.update(piece);
        }
        let version = Version(hash.digest());
        Resource::of_parts(name, type_url, version, pieces, Arc::default())
    }

    /// A resource whose message is the concatenation of `pieces`, which it shares. Its version follows from theirs, so that
    /// each is hashed once.
    pub fn of_pieces<'p>(
        name: &str,
        type_url: &str,
        pieces: impl Iterator<Item = &'p Piece> + Clone,
    ) -> Resource {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for piece in pieces.clone() {
            hash.update(&piece.version.0.to_le_bytes());
        }
        let rest = pieces.map(|piece| piece.bytes.clone()).collect();
        Resource::of_parts(name, type_url, Version(hash.digest()), &[], rest)
    }

    /// A resource whose message is `pieces`, which are copied, and `rest`.
    fn of_parts(
        name: &str,
        type_url: &str,
        version: Version,
        pieces: &[&[u8]],
        rest: Arc<[Bytes]>,
    ) -> Resource {
        let rest_len: usize = rest.iter().map(Bytes::len).sum();
        let message_len = rest_len + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let version_text = version.to_string();
        let any_len = delimited_len(type_url.len()) + delimited_len(message_len);
        let entry_len =
            delimited_len(name.len()) + delimited_len(version_text.len()) + delimited_len(any_len);
        let mut wire = Vec::with_capacity(delimited_len(entry_len) - rest_len);
        begin(&mut wire, field::RESOURCES, entry_len);
        put(&mut wire, field::RESOURCE_NAME, name.as_bytes());
        put(&mut wire, field::RESOURCE_VERSION, version_text.as_bytes());
        let any_at = wire.len();
        begin(&mut wire, field::RESOURCE_BODY, any_len);
        put(&mut wire, field::ANY_TYPE_URL, type_url.as_bytes());
        begin(&mut wire, field::ANY_VALUE, message_len);
        let message_at = wire.len();
        for piece in pieces {
            wire.extend_from_slice(piece);
        }
        Resource {
            digest: Digest::of(name, version),
            name: Arc::from(name),
            version,
            dead_end: false,
            wire: Bytes::from(wire),
            rest,
            any_at,
            message_at,
        }
    }

    /// The same, for endpoints of which none is healthy.
    pub fn into_dead_end(self) -> Resource {
        Resource {
            dead_end: true,
            ..self
        }
    }

    /// The message, encoded. It is a copy where the resource shares pieces.
    pub fn message(&self) -> Bytes {
        let begin = self.wire.slice(self.message_at..);
        match self.rest.is_empty() {
            true => begin,
            false => Bytes::from([&[begin], &self.rest[..]].concat().concat()),
        }
    }

    /// What stands for it in a set's [`Digest`].
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What belongs behind every entry: the shared pieces of the message.
    pub fn rest(&self) -> &[Bytes] {
        &self.rest
    }

    /// An entry of `DeltaDiscoveryResponse.resources`, with its tag and length, but for its [rest](Resource::rest).
    pub fn delta_entry(&self) -> Bytes {
        self.wire.clone()
    }

    /// An entry of `DiscoveryResponse.resources`, with its tag and length, but for its [rest](Resource::rest).
    pub fn sotw_entry(&self) -> Bytes {
        self.wire.slice(self.any_at..)
    }
}

/// A part of a message that several resources share, hashed once.
#[derive(Clone, Debug)]
pub struct Piece {
    pub bytes: Bytes,
    pub version: Version,
}

impl Piece {
    pub fn of(bytes: impl Into<Bytes>) -> Piece {
        let bytes = bytes.into();
        let version = Version::of(&bytes);
        Piece { bytes, version }
    }
}

/// The numbers of the fields in `envoy/service/discovery/v3/discovery.proto` and `google/protobuf/any.proto`.
mod field {
    pub(super) const RESOURCES: u32 = 2;
    pub(super) const RESOURCE_NAME: u32 = 3;
    pub(super) const RESOURCE_VERSION: u32 = 1;
    pub(super) const RESOURCE_BODY: u32 = 2;
    pub(super) const ANY_TYPE_URL: u32 = 1;
    pub(super) const ANY_VALUE: u32 = 2;
}

/// Puts a string, bytes or a message: a length-delimited field of number `tag`.
pub(crate) fn put(into: &mut Vec<u8>, tag: u32, content: &[u8]) {
    begin(into, tag, content.len());
    into.extend_from_slice(content);
}

fn begin(into: &mut Vec<u8>, tag: u32, len: usize) {
    encode_key(tag, WireType::LengthDelimited, into);
    encode_varint(len as u64, into);
}

/// How long a field of a number below 16 is whose content has `len` bytes.
fn delimited_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// What a set of resources has in common on every replica, whatever the order in which it came about: the sum of what
/// stands for its members, so that it follows a change at the cost of that change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Of a set of one.
    pub fn of(name: &str, version: Version) -> Digest {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(name.as_bytes());
        // Keeps name and version apart: names contain no zero byte.
        hash.update(&[0]);
        hash.update(&version.0.to_le_bytes());
        Digest(hash.digest())
    }

    /// With one more member.
    pub fn plus(self, member: Digest) -> Digest {
        Digest(self.0.wrapping_add(member.0))
    }

    /// Without that member.
    pub fn minus(self, member: Digest) -> Digest {
        Digest(self.0.wrapping_sub(member.0))
    }

    /// As the version of the set.
    pub fn version(self) -> Version {
        Version(self.0)
    }
}

/// Names of resources. Shared structure, as below.
pub type Names = imbl::OrdSet<Arc<str>>;

/// Resources of one kind by name. Shared structure: a new map that differs in one resource costs one path.
pub type Resources = imbl::OrdMap<Arc<str>, Arc<Resource>>;

/// `message` as an `Any` with its type URL.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}
