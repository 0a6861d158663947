//! From a request's headers to the facts of a decision.

use alloc::{borrow::Cow, vec::Vec};

use data_encoding::HEXUPPER_PERMISSIVE;
use subtle::ConstantTimeEq;

use crate::{
    cells::CellId,
    class::Class,
    fence::EPOCH_MAX,
    headers,
    hop::{Claim, Signer, number},
    path::without_query,
    rules::{Explain, Policy, Rules},
    service::{ClassRule, KeySource, RouteMatch, ServiceId, Writes},
    shard,
    topology::{Place, RegionId, ZoneId},
};

/// A header as a request presents it. Values are bytes: they need not be text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented<'r> {
    Absent,
    Once(&'r [u8]),
    /// Several copies. Two readers could use different copies, so no copy counts.
    Repeated,
}

impl<'r> Presented<'r> {
    /// The value, if there is exactly one and it is not empty.
    fn value(self) -> Option<&'r [u8]> {
        match self {
            Presented::Once(value) if !value.is_empty() => Some(value),
            _ => None,
        }
    }
}

/// The headers of one request, `:method`, `:path` and `:authority` included. Names are lower case.
pub trait Headers {
    fn get(&self, name: &str) -> Presented<'_>;
}

/// The most proxies of this mesh that a request may pass. From a sidecar through two gateways it is
/// three; an instance that is a proxy itself may start the count again.
pub const VIA_MAX: u32 = 8;

/// The home that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    Zone(ZoneId),
    Region(RegionId),
    /// No `X-Region-ID`, or an empty one.
    Missing,
    /// No zone or region of that name, or several values.
    Unknown,
}

/// Everything that [`decide`](crate::decide()) may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The service of the request; none if no route matches, or if the policy has no services.
    pub service: Option<ServiceId>,
    pub class: Class,
    pub home: Home,
    /// Exactly one `X-Trace-ID` with a value.
    pub traced: bool,
    /// The digest of the affinity key, where the service has one and the request carries it.
    pub key_digest: Option<u64>,
    /// The key that places this request is repeated, or cannot be decoded.
    pub key_invalid: bool,
    /// The cell of a write to a fenced service.
    pub cell: Option<CellId>,
    /// The request claims to be forwarded, proved or not: it is not forwarded again.
    pub hop: bool,
    /// The epoch that a forwarded request claims. It counts only if the request is
    /// [`forwarded`](Facts::forwarded).
    pub presented: Option<u64>,
    /// Another zone's gateway forwards this write, proved by its signature. The holder of the hop
    /// keys fills it in.
    pub forwarded: bool,
    /// Whether this proxy can sign hops. The holder of the hop keys fills it in.
    pub signer: Signer,
    /// The epoch for which this proxy may admit writes of the cell now. It does not come from a
    /// header: the holder of the grant fills it in.
    pub granted: Option<u64>,
    /// A random number drawn for this request, which selects its target in a plan. The caller fills
    /// it in; without it the decision covers all of the plan's targets.
    pub draw: Option<u64>,
    /// The number of proxies of this mesh that have forwarded the request; none if it comes from a
    /// client.
    pub via: Option<u32>,
    /// The response must carry a gRPC status.
    pub grpc: bool,
    /// The caller may see the decision.
    pub explain: bool,
}

impl Facts {
    /// Reads the facts of a request. Never fails: an unreadable part is [`Home::Unknown`], a write,
    /// or absent.
    pub fn gather(policy: &Policy, request: &impl Headers) -> Facts {
        let method = request.get(":method").value().unwrap_or_default();
        let grpc = is_grpc(request.get("content-type"));
        let unrouted = Facts {
            service: None,
            class: Class::of_method(method),
            home: Home::Missing,
            traced: request.get(headers::TRACE_ID).value().is_some(),
            key_digest: None,
            key_invalid: false,
            cell: None,
            hop: false,
            presented: None,
            forwarded: false,
            signer: Signer::Untold,
            granted: None,
            draw: None,
            via: via(request.get(headers::VIA)),
            grpc,
            explain: false,
        };
        let Policy::Serving(rules) = policy else {
            return unrouted;
        };
        let path = request.get(":path").value().unwrap_or_default();
        let authority = request.get(":authority").value().unwrap_or_default();
        let explain = rules.explain().is_some_and(|e| may_explain(e, request));
        let home = home(rules, request.get(headers::REGION_ID));
        let Some((service_id, service, route)) = rules.route(authority, path, grpc) else {
            return Facts {
                home,
                explain,
                ..unrouted
            };
        };
        let class = match &route.class {
            ClassRule::ByMethod => unrouted.class,
            ClassRule::Always(class) => *class,
            ClassRule::GrpcReads(reads) => class_of_grpc(&route.matches, reads, path),
        };
        let facts = Facts {
            service: Some(service_id),
            class,
            home,
            explain,
            ..unrouted
        };
        match (class, &service.writes, rules.fencing()) {
            (Class::Write, Writes::Fenced { key }, Some(fencing)) => {
                let several = fencing.cells().len() > 1;
                let key = key.as_ref().filter(|_| several);
                let key = key.map_or(Key::Absent, |source| key_of(source, request, path));
                let presented = request.get(headers::PRESENTED_EPOCH).value();
                Facts {
                    key_invalid: key == Key::Invalid,
                    cell: Some(fencing.cell_of(key.digest())),
                    hop: request.get(headers::FORWARDED) != Presented::Absent,
                    presented: presented.and_then(epoch),
                    ..facts
                }
            }
            _ => {
                let source = service.zone_affinity.as_ref();
                let key = source.map_or(Key::Absent, |source| key_of(source, request, path));
                Facts {
                    key_invalid: key == Key::Invalid,
                    key_digest: key.digest(),
                    ..facts
                }
            }
        }
    }

    /// The claim that the hop of this fenced write has to prove; none without a hop or an epoch.
    pub fn claim<'r>(
        &self,
        request: &'r impl Headers,
        cell: &'r str,
    ) -> Option<(Claim<'r>, &'r [u8])> {
        let header = request.get(headers::FORWARDED).value()?;
        Some((claim(request, cell, self.presented?), header))
    }
}

/// The claim that the hop's signature proves for this request.
pub fn claim<'r>(request: &'r impl Headers, cell: &'r str, epoch: u64) -> Claim<'r> {
    let text = |name: &str| request.get(name).value().unwrap_or_default();
    Claim {
        method: text(":method"),
        authority: text(":authority"),
        path: text(":path"),
        cell,
        epoch,
    }
}

fn home(rules: &Rules, region_id: Presented<'_>) -> Home {
    match region_id {
        Presented::Absent | Presented::Once(b"") => Home::Missing,
        Presented::Repeated => Home::Unknown,
        Presented::Once(name) => match rules.topology().place(name) {
            Some(Place::Zone(zone)) => Home::Zone(zone),
            Some(Place::Region(region)) => Home::Region(region),
            None => Home::Unknown,
        },
    }
}

/// Whether this is a gRPC request: `application/grpc`, alone or with a `+` suffix, by Envoy's
/// definition.
fn is_grpc(content_type: Presented<'_>) -> bool {
    content_type
        .value()
        .and_then(|value| value.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

fn class_of_grpc(matches: &RouteMatch, reads: &[impl AsRef<str>], path: &[u8]) -> Class {
    let RouteMatch::Grpc(name) = matches else {
        return Class::Write;
    };
    let method = without_query(path)
        .strip_prefix(b"/")
        .and_then(|path| path.strip_prefix(name.as_bytes()))
        .and_then(|path| path.strip_prefix(b"/"));
    let reads = method.is_some_and(|method| reads.iter().any(|r| r.as_ref().as_bytes() == method));
    if reads { Class::Read } else { Class::Write }
}

/// A key as a request carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key<'r> {
    /// Missing, or empty.
    Absent,
    /// The value, percent-decoded: `a%40b` and `a@b` are the same key.
    Is(Cow<'r, [u8]>),
    /// Repeated, so that two readers could use different values; or it cannot be decoded.
    Invalid,
}

impl<'r> Key<'r> {
    fn of(raw: &'r [u8]) -> Key<'r> {
        match percent_decoded(raw) {
            Some(key) if key.is_empty() => Key::Absent,
            Some(key) => Key::Is(key),
            None => Key::Invalid,
        }
    }

    fn digest(&self) -> Option<u64> {
        match self {
            Key::Is(key) => Some(shard::key_digest(key)),
            Key::Absent | Key::Invalid => None,
        }
    }
}

/// The key that a request carries at `source`.
fn key_of<'r>(source: &KeySource, request: &'r impl Headers, path: &'r [u8]) -> Key<'r> {
    match source {
        KeySource::Header(name) => match request.get(name) {
            Presented::Absent => Key::Absent,
            Presented::Once(value) => Key::of(value),
            Presented::Repeated => Key::Invalid,
        },
        KeySource::Cookie(name) => match request.get("cookie") {
            Presented::Absent => Key::Absent,
            Presented::Once(header) => cookie(header, name.as_bytes()),
            // Proxies join cookie headers that HTTP/2 has split, so these are separate headers.
            Presented::Repeated => Key::Invalid,
        },
        KeySource::PathSegment(index) => without_query(path)
            .split(|b| *b == b'/')
            .skip(1)
            .nth(usize::from(*index))
            .map_or(Key::Absent, Key::of),
    }
}

/// Decodes each `%` with two hexadecimal digits to a byte (RFC 3986, 2.1); none if the digits are
/// missing.
fn percent_decoded(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !raw.contains(&b'%') {
        return Some(Cow::Borrowed(raw));
    }
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        decoded.push(HEXUPPER_PERMISSIVE.decode(digits).ok()?.pop()?);
        rest = behind;
    }
    Some(Cow::Owned(decoded))
}

/// The count in `tidegate-via`. Our proxies send one number: any other text, or a repeated header,
/// comes from elsewhere.
fn via(via: Presented<'_>) -> Option<u32> {
    match via {
        Presented::Absent => None,
        Presented::Once(count) => {
            let count = number(count).unwrap_or(1);
            Some(u32::try_from(count).unwrap_or(VIA_MAX))
        }
        Presented::Repeated => Some(VIA_MAX),
    }
}

fn epoch(text: &[u8]) -> Option<u64> {
    number(text).filter(|epoch| *epoch <= EPOCH_MAX)
}

/// The key in a `Cookie` header (RFC 6265, 4.2.1).
fn cookie<'r>(header: &'r [u8], name: &[u8]) -> Key<'r> {
    let mut values = header.split(|b| *b == b';').filter_map(|pair| {
        pair.trim_ascii()
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(b"="))
    });
    match (values.next(), values.next()) {
        (None, _) => Key::Absent,
        (Some(value), None) => Key::of(value),
        (Some(_), Some(_)) => Key::Invalid,
    }
}

/// Compares in constant time: the duration tells nothing about the token.
fn may_explain(explain: &Explain, request: &impl Headers) -> bool {
    request
        .get(&explain.header)
        .value()
        .is_some_and(|value| value.ct_eq(explain.token.as_bytes()).into())
}
