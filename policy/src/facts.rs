//! From a request's headers to what a decision needs to know.

use crate::{
    cells::CellId,
    headers,
    rules::{Explain, Policy, Rules},
    service::{Class, ClassRule, KeySource, RouteMatch, Service, ServiceId, Writes},
    shard,
    topology::{Place, RegionId, ZoneId},
};

/// A header as a request presents it. Values are bytes: nothing says that they are text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented<'r> {
    Absent,
    Once(&'r [u8]),
    /// More than once. Two readers could take different copies, so no copy counts.
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

/// What a request calls its home.
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
    /// The service that takes the request; none where no route matches, or where the policy knows no services.
    pub service: Option<ServiceId>,
    pub class: Class,
    pub home: Home,
    /// Exactly one `X-Trace-ID` with a value.
    pub traced: bool,
    /// The digest of the affinity key, where the service has one and the request carries it.
    pub key_digest: Option<u64>,
    /// The cell of a write to a fenced service.
    pub cell: Option<CellId>,
    /// Another zone's proxy forwards this write, as its token proves.
    pub forwarded: bool,
    /// It says that it is forwarded, whether or not that is proved: it is not forwarded again.
    pub hop: bool,
    /// The epoch by which it is forwarded.
    pub presented: Option<u64>,
    /// The epoch for which this proxy may admit writes of the cell now. No header says it: whoever holds the grant fills it in.
    pub granted: Option<u64>,
    /// The answer must be a gRPC status.
    pub grpc: bool,
    /// The caller may see the decision.
    pub explain: bool,
}

impl Facts {
    /// Reads the facts of a request. Never fails: what cannot be understood is [`Home::Unknown`], a write, or absent.
    pub fn gather(policy: &Policy, request: &impl Headers) -> Facts {
        let method = request.get(":method").value().unwrap_or_default();
        let grpc = is_grpc(request.get("content-type"));
        let unrouted = Facts {
            service: None,
            class: Class::of_method(method),
            home: Home::Missing,
            traced: request.get(headers::TRACE_ID).value().is_some(),
            key_digest: None,
            cell: None,
            forwarded: false,
            hop: false,
            presented: None,
            granted: None,
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
                let key = key.and_then(|source| key_of(source, request, path));
                let token = fencing.token.as_ref().map(|token| token.as_bytes());
                let hop = request.get(headers::FORWARDED);
                let forwarded = hop.value().is_some() && hop.value() == token;
                let presented = request.get(headers::PRESENTED_EPOCH).value();
                Facts {
                    cell: Some(fencing.cell_of(key.map(shard::key_digest))),
                    forwarded,
                    hop: hop != Presented::Absent,
                    presented: presented.filter(|_| forwarded).and_then(number),
                    ..facts
                }
            }
            _ => Facts {
                key_digest: affinity_key(service, request, path).map(shard::key_digest),
                ..facts
            },
        }
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

/// Whether this is a gRPC request: `application/grpc`, alone or with a `+` suffix, which is how Envoy tells.
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

fn affinity_key<'r>(
    service: &Service,
    request: &'r impl Headers,
    path: &'r [u8],
) -> Option<&'r [u8]> {
    key_of(service.zone_affinity.as_ref()?, request, path)
}

/// The key that a request carries where `source` says; none where it is missing, empty or repeated.
fn key_of<'r>(source: &KeySource, request: &'r impl Headers, path: &'r [u8]) -> Option<&'r [u8]> {
    match source {
        KeySource::Header(name) => request.get(name).value(),
        KeySource::Cookie(name) => cookie(request.get("cookie").value()?, name.as_bytes()),
        KeySource::PathSegment(index) => without_query(path)
            .split(|b| *b == b'/')
            .skip(1)
            .nth(usize::from(*index))
            .filter(|segment| !segment.is_empty()),
    }
}

fn number(text: &[u8]) -> Option<u64> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// The value of a cookie in a `Cookie` header (RFC 6265, 4.2.1); none where it is empty.
fn cookie<'r>(header: &'r [u8], name: &[u8]) -> Option<&'r [u8]> {
    header
        .split(|b| *b == b';')
        .find_map(|pair| {
            pair.trim_ascii()
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix(b"="))
        })
        .filter(|value| !value.is_empty())
}

fn may_explain(explain: &Explain, request: &impl Headers) -> bool {
    request
        .get(&explain.header)
        .value()
        .is_some_and(|value| value == explain.token.as_bytes())
}

/// The path without query and fragment.
pub(crate) fn without_query(path: &[u8]) -> &[u8] {
    path.split(|b| matches!(b, b'?' | b'#'))
        .next()
        .unwrap_or_default()
}
