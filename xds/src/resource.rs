//! xDS resources: encoded once, immutable, with a version derived from the content.

use std::{fmt, num::NonZeroU32, sync::Arc};

use bytes::Bytes;
use envoy_types::pb::google::protobuf::{Any, Duration};
use prost::{
    Message, Name,
    encoding::{
        WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint,
    },
};

/// The kinds of resources, **in the order in which they are sent**.
///
/// A proxy must know a cluster and its endpoints before a route names them, or requests end in 503.
/// A listener that arrives before its routes only waits for them. See Envoy's xDS protocol,
/// "Eventual consistency considerations".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CDS.
    Cluster,
    /// SDS. Clusters and listeners wait for them.
    Secret,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Routes,
    /// VHDS: virtual hosts of a route table, one by one.
    VirtualHosts,
    /// ECDS: the configuration of a filter.
    FilterConfig,
}

impl Kind {
    /// All kinds, in order.
    pub const ALL: [Kind; 7] = [
        Kind::Cluster,
        Kind::Secret,
        Kind::Endpoints,
        Kind::Listener,
        Kind::Routes,
        Kind::VirtualHosts,
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
            Kind::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Kind::VirtualHosts => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
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
            Kind::Secret => "sds",
            Kind::Endpoints => "eds",
            Kind::Listener => "lds",
            Kind::Routes => "rds",
            Kind::VirtualHosts => "vhds",
            Kind::FilterConfig => "ecds",
        }
    }

    /// Whether the kind exists in the state of the world.
    pub const fn in_state_of_the_world(self) -> bool {
        !matches!(self, Kind::VirtualHosts)
    }

    /// Whether resources of the kind may have times to live in the state of the world. Envoy 1.40
    /// crashes there when those of endpoints or routes expire.
    pub const fn may_expire_in_state_of_the_world(self) -> bool {
        !matches!(self, Kind::Endpoints | Kind::Routes)
    }

    /// Whether a state-of-the-world response must carry every resource of the kind. A missing
    /// resource is then removed.
    pub const fn full_state(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener)
    }
}

/// A content hash (XXH3): equal content has equal versions on every replica and after every
/// restart. So a proxy that moves between replicas gets no update.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// The version of this content.
    pub fn of(bytes: &[u8]) -> Version {
        Version(xxhash_rust::xxh3::xxh3_64(bytes))
    }

    /// Reads a version that a client presents. Any other text becomes a version that no resource
    /// has.
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
/// In both variants of the protocol `resources` is field 2 of the response. In delta its entries
/// are `Resource` messages, with the `Any` in *their* field 2; in the state of the world they are
/// the `Any` itself. So an entry whose `Any` is last contains the other variant's entry as its
/// tail:
///
/// ```text
/// 12 len | 1a name | 0a version | 32 len ttl | 12 len | 0a type_url | 12 len | message
/// ^ delta entry                              ^ entry of the state of the world ^ message
///        ^ contents of the `Resource` message
/// ```
///
/// Fields that differ between clients, such as aliases, precede a tail that is still shared.
#[derive(Clone, Debug)]
pub struct Resource {
    /// The name by which clients request it.
    pub name: Arc<str>,
    /// The version of its content.
    pub version: Version,
    /// Requests sent to it fail: endpoints without a healthy one.
    pub no_healthy_endpoints: bool,
    /// How long a client may keep it without a renewal, in seconds; none: forever.
    pub ttl_s: Option<NonZeroU32>,
    digest: Digest,
    wire: Bytes,
    /// The pieces at its end, which other resources share.
    rest: Arc<[Bytes]>,
    /// Where the contents of the `Resource` message begin in `wire`.
    contents_at: usize,
    /// Where the entry of the state of the world begins.
    any_at: usize,
    /// Where the message itself begins.
    message_at: usize,
}

/// Versions are derived from the content, so this is equality of contents.
impl PartialEq for Resource {
    fn eq(&self, other: &Resource) -> bool {
        self.version == other.version
            && self.name == other.name
            && self.no_healthy_endpoints == other.no_healthy_endpoints
    }
}

impl Resource {
    /// Encodes `message`. Its encoding must be deterministic: no map fields with more than one
    /// entry.
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

    /// A resource whose message is the concatenation of `pieces`, which it shares. Its version is
    /// derived from theirs, so that each piece is hashed once.
    pub fn of_pieces<'p>(
        name: &str,
        type_url: &str,
        pieces: impl Iterator<Item = &'p Piece>,
    ) -> Resource {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        // There may be many, scattered in memory: each is read once.
        let shared = pieces.map(|piece| {
            hash.update(&piece.version.0.to_le_bytes());
            piece.bytes.clone()
        });
        let rest = shared.collect();
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
        let pieces_len = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let rest_len = total_len(&rest);
        let message_len = pieces_len + rest_len;
        let any_len = delimited_len(type_url.len()) + delimited_len(message_len);
        let mut any = Vec::with_capacity(delimited_len(any_len) - rest_len);
        begin(&mut any, field::RESOURCE_BODY, any_len);
        put(&mut any, field::ANY_TYPE_URL, type_url.as_bytes());
        begin(&mut any, field::ANY_VALUE, message_len);
        let message_at = any.len();
        for piece in pieces {
            any.extend_from_slice(piece);
        }
        Resource::of_any(Arc::from(name), version, None, &any, message_at, rest)
    }

    /// `any` and `rest` form an entry of the state of the world, whose message begins at
    /// `message_at`.
    fn of_any(
        name: Arc<str>,
        version: Version,
        ttl_s: Option<NonZeroU32>,
        any: &[u8],
        message_at: usize,
        rest: Arc<[Bytes]>,
    ) -> Resource {
        let mut head = Vec::new();
        put_head(&mut head, &name, version, ttl_s);
        let rest_len = total_len(&rest);
        let contents_len = head.len() + any.len() + rest_len;
        let mut wire = Vec::with_capacity(delimited_len(contents_len) - rest_len);
        begin(&mut wire, field::RESOURCES, contents_len);
        let contents_at = wire.len();
        wire.extend_from_slice(&head);
        let any_at = wire.len();
        wire.extend_from_slice(any);
        Resource {
            digest: Digest::of(&name, version),
            name,
            version,
            no_healthy_endpoints: false,
            ttl_s,
            wire: Bytes::from(wire),
            rest,
            contents_at,
            any_at,
            message_at: any_at + message_at,
        }
    }

    /// The same, for endpoints without a healthy one.
    pub fn without_healthy_endpoints(self) -> Resource {
        Resource {
            no_healthy_endpoints: true,
            ..self
        }
    }

    /// The same with a time to live. Its version differs, so that clients that have the resource
    /// without one get it again.
    pub fn lasting(&self, ttl_s: NonZeroU32) -> Resource {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&self.version.0.to_le_bytes());
        hash.update(&ttl_s.get().to_le_bytes());
        let version = Version(hash.digest());
        let (name, any) = (Arc::clone(&self.name), &self.wire[self.any_at..]);
        let message_at = self.message_at - self.any_at;
        let rest = Arc::clone(&self.rest);
        Resource {
            no_healthy_endpoints: self.no_healthy_endpoints,
            ..Resource::of_any(name, version, Some(ttl_s), any, message_at, rest)
        }
    }

    /// The encoded message. It is a copy if the resource shares pieces.
    pub fn message(&self) -> Bytes {
        let begin = self.wire.slice(self.message_at..);
        match self.rest.is_empty() {
            true => begin,
            false => Bytes::from([&[begin], &self.rest[..]].concat().concat()),
        }
    }

    /// Its part of a set's [`Digest`].
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The end of every entry: the shared pieces of the message.
    pub fn rest(&self) -> &[Bytes] {
        &self.rest
    }

    /// An entry of `DeltaDiscoveryResponse.resources`, with its tag and length, but without its
    /// [rest](Resource::rest).
    pub fn delta_entry(&self) -> Bytes {
        self.wire.clone()
    }

    /// The same for a client that uses aliases, or does not support times to live: the bytes before
    /// [`Resource::sotw_entry`].
    pub fn delta_head(&self, aliases: &[Arc<str>]) -> Bytes {
        let mut head = Vec::new();
        put_head(&mut head, &self.name, self.version, None);
        put_aliases(&mut head, aliases);
        entry(&head, self.len_from(self.any_at))
    }

    /// An entry that only renews the time to live of a resource that the client has.
    pub fn heartbeat(&self) -> Bytes {
        let mut contents = Vec::new();
        put_head(&mut contents, &self.name, self.version, self.ttl_s);
        entry(&contents, 0)
    }

    /// An entry of `DiscoveryResponse.resources`, with its tag and length, but without its
    /// [rest](Resource::rest).
    pub fn sotw_entry(&self) -> Bytes {
        self.wire.slice(self.any_at..)
    }

    /// The same with the time to live, wrapped in a `Resource` message: the bytes before
    /// [`Resource::contents`].
    pub fn wrapped_head(&self) -> Bytes {
        let contents_len = self.len_from(self.contents_at);
        let mut head = Vec::new();
        put(&mut head, field::ANY_TYPE_URL, WRAPPER_TYPE_URL.as_bytes());
        begin(&mut head, field::ANY_VALUE, contents_len);
        entry(&head, contents_len)
    }

    /// The `Resource` message, without its [rest](Resource::rest).
    pub fn contents(&self) -> Bytes {
        self.wire.slice(self.contents_at..)
    }

    /// The length from an offset in `wire`, including the rest.
    fn len_from(&self, at: usize) -> usize {
        self.wire.len() - at + total_len(&self.rest)
    }
}

/// An entry of `DeltaDiscoveryResponse.resources` for a name without a resource. For virtual hosts
/// Envoy expects it there, not in `removed_resources`; see "Virtual Host Discovery Service".
pub fn unresolved_entry(alias: &Arc<str>) -> Bytes {
    let mut contents = Vec::new();
    put(&mut contents, field::RESOURCE_NAME, alias.as_bytes());
    put_aliases(&mut contents, std::slice::from_ref(alias));
    entry(&contents, 0)
}

fn total_len(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}

/// The wrapper of a resource with a time to live, in the state of the world.
const WRAPPER_TYPE_URL: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// An entry of `resources`, without its last `rest_len` bytes.
fn entry(head: &[u8], rest_len: usize) -> Bytes {
    let mut entry = Vec::with_capacity(delimited_len(head.len()));
    begin(&mut entry, field::RESOURCES, head.len() + rest_len);
    entry.extend_from_slice(head);
    Bytes::from(entry)
}

fn put_head(into: &mut Vec<u8>, name: &str, version: Version, ttl_s: Option<NonZeroU32>) {
    put(into, field::RESOURCE_NAME, name.as_bytes());
    put(
        into,
        field::RESOURCE_VERSION,
        version.to_string().as_bytes(),
    );
    if let Some(ttl_s) = ttl_s {
        let ttl = Duration {
            seconds: i64::from(ttl_s.get()),
            nanos: 0,
        };
        put(into, field::RESOURCE_TTL, &ttl.encode_to_vec());
    }
}

fn put_aliases(into: &mut Vec<u8>, aliases: &[Arc<str>]) {
    for alias in aliases {
        put(into, field::RESOURCE_ALIASES, alias.as_bytes());
    }
}

/// A part of a message that several resources share, hashed once.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Whole fields of the message, encoded.
    pub bytes: Bytes,
    /// The version of the bytes.
    pub version: Version,
}

impl Piece {
    /// A piece of whole encoded fields.
    pub fn of(bytes: impl Into<Bytes>) -> Piece {
        let bytes = bytes.into();
        let version = Version::of(&bytes);
        Piece { bytes, version }
    }

    /// For a piece that is one field with a message: that message.
    pub fn message(&self) -> Piece {
        let mut bytes = self.bytes.clone();
        let begins = decode_key(&mut bytes).and_then(|_| decode_varint(&mut bytes));
        debug_assert!(begins.is_ok(), "it is a field");
        Piece {
            bytes,
            version: self.version,
        }
    }
}

/// The numbers of the fields in `envoy/service/discovery/v3/discovery.proto` and
/// `google/protobuf/any.proto`.
mod field {
    pub(super) const RESOURCES: u32 = 2;
    pub(super) const RESOURCE_NAME: u32 = 3;
    pub(super) const RESOURCE_VERSION: u32 = 1;
    pub(super) const RESOURCE_BODY: u32 = 2;
    pub(super) const RESOURCE_ALIASES: u32 = 4;
    pub(super) const RESOURCE_TTL: u32 = 6;
    pub(super) const ANY_TYPE_URL: u32 = 1;
    pub(super) const ANY_VALUE: u32 = 2;
}

/// Appends a string, bytes or a message: a length-delimited field of number `tag`.
pub(crate) fn put(into: &mut Vec<u8>, tag: u32, content: &[u8]) {
    begin(into, tag, content.len());
    into.extend_from_slice(content);
}

fn begin(into: &mut Vec<u8>, tag: u32, len: usize) {
    encode_key(tag, WireType::LengthDelimited, into);
    encode_varint(len as u64, into);
}

/// The length of a field with a number below 16 whose content has `len` bytes.
fn delimited_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// The digest of a set of resources: the sum of its members' digests. It is the same on every
/// replica, regardless of the order of changes, and an update costs as much as the change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// The digest of a set of one.
    pub fn of(name: &str, version: Version) -> Digest {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(name.as_bytes());
        // Separates name and version: names contain no zero byte.
        hash.update(&[0]);
        hash.update(&version.0.to_le_bytes());
        Digest(hash.digest())
    }

    /// The digest with one more member.
    pub fn plus(self, member: Digest) -> Digest {
        Digest(self.0.wrapping_add(member.0))
    }

    /// The digest without that member.
    pub fn minus(self, member: Digest) -> Digest {
        Digest(self.0.wrapping_sub(member.0))
    }

    /// The version of the set.
    pub fn version(self) -> Version {
        Version(self.0)
    }
}

/// Names of resources. Shares structure, as below.
pub type Names = imbl::OrdSet<Arc<str>>;

/// Resources of one kind by name. Shares structure: a new map that differs in one resource costs
/// one path.
pub type Resources = imbl::OrdMap<Arc<str>, Arc<Resource>>;

/// `message` as an `Any` with its type URL.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}
