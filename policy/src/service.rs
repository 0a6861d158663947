//! The configuration of a service: how its requests are matched, classed and homed.

use alloc::{string::String, vec::Vec};

use crate::{class::Class, plan::Plans};

/// A service of one [`Rules`](crate::Rules); meaningless in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub(crate) u32);

impl ServiceId {
    /// The service at `index` of [`Rules::services`](crate::Rules::services).
    pub fn new(index: usize) -> ServiceId {
        ServiceId(index as u32)
    }

    /// The position in [`Rules::services`](crate::Rules::services), from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How the requests of a route are classed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassRule {
    /// [`Class::of_method`].
    ByMethod,
    /// All alike, for example GraphQL queries that are sent by POST.
    Always(Class),
    /// gRPC, which always uses POST: these methods read, all others write.
    GrpcReads(Vec<String>),
}

/// The requests of a host that a route matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteMatch {
    /// A gRPC service by its full name, `package.Service`.
    Grpc(String),
    /// A path prefix that ends at a segment: `/orders` matches `/orders`, `/orders/7` and
    /// `/orders?q`, not `/orders7`. Begins with `/`; ends with one only if it is the root.
    Prefix(String),
}

/// One route to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `*`, a name, or `*.` and a domain. As in Envoy the most specific host decides alone, then
    /// the longest path.
    pub host: String,
    pub matches: RouteMatch,
    pub class: ClassRule,
}

/// The treatment of a request without a valid `X-Region-ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum RegionRule {
    /// The local zone of the Envoy is the home.
    #[default]
    Local,
    /// Rejected with 400.
    Reject,
}

/// The treatment of a request without `X-Trace-ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum TraceRule {
    /// The proxy adds one: Envoy's request id.
    #[default]
    Generate,
    /// Rejected with 400.
    Reject,
}

/// The source of the key that keeps a request on one zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A header's value; lower case.
    Header(String),
    /// A cookie's value.
    Cookie(String),
    /// A segment of the path, from 0: segment 1 of `/users/42` is `42`.
    PathSegment(u8),
}

/// The zones that admit a service's writes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Writes {
    /// Any zone of their home's region.
    #[default]
    Free,
    /// The zone that owns their cell. With several cells the key selects one; all requests without
    /// a key belong to the same cell.
    Fenced { key: Option<KeySource> },
}

/// The policy's view of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: String,
    pub routes: Vec<Route>,
    pub region_missing: RegionRule,
    pub region_unknown: RegionRule,
    pub trace_missing: TraceRule,
    /// With a key, requests with the same key go to one zone of their plan: see
    /// [`Plan::zone_of_key`](crate::Plan::zone_of_key).
    pub zone_affinity: Option<KeySource>,
    pub writes: Writes,
    pub plans: Plans,
}
