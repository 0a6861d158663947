//! Everything that the proxies of one local zone decide by.

use alloc::{
    borrow::{Cow, ToOwned},
    boxed::Box,
    collections::BTreeMap,
    format,
    string::String,
    sync::Arc,
    vec::Vec,
};
use core::cmp::Reverse;

use crate::{
    cells::Fencing,
    class::Class,
    headers,
    path::without_query,
    plan::{Plan, Plans},
    service::{
        ClassRule, KeySource, RegionRule, Route, RouteMatch, Service, ServiceId, TraceRule, Writes,
    },
    shared::Shared,
    tier::Tier,
    topology::{InvalidName, Topology, ZoneId, check_name},
};

/// The policy of a filter.
#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    /// The safe default until rules arrive: reads stay in the local zone, writes are fenced.
    Fallback,
    Serving(Box<Rules>),
}

/// Permits a caller to see decisions: the request header that identifies the caller, and its
/// required value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explain {
    /// Lower case; not an internal name.
    pub header: String,
    pub token: String,
}

/// The rules of one local zone: valid by construction. Copies share their common parts, so that the
/// rules of another zone or with other plans cost only the difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    viewer: ZoneId,
    topology: Arc<Topology>,
    services: Shared<Service>,
    explain: Option<Explain>,
    fencing: Option<Arc<Fencing>>,
    gateways: Arc<[String]>,
    /// `[(service * zones + zone) * 2 + class]`
    clusters: Arc<[String]>,
    hosts: Arc<Hosts>,
}

/// Why rules were rejected. Every variant names the required change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRules {
    #[error("service {service:?}: {error}")]
    Name { service: String, error: InvalidName },
    #[error("service {0:?} stands twice")]
    DuplicateService(String),
    #[error("service {service:?}: it has no routes, so no request can reach it")]
    NoRoutes { service: String },
    #[error("services {first:?} and {second:?} claim the same route: {route}")]
    DuplicateRoute {
        first: String,
        second: String,
        route: String,
    },
    #[error(
        "service {service:?}: host {host:?}: use \"*\", a name, or \"*.\" and a domain; lower case, no port"
    )]
    Host { service: String, host: String },
    #[error(
        "service {service:?}: prefix {prefix:?}: begin with '/', without '?', '#' or a '/' at the end"
    )]
    Prefix { service: String, prefix: String },
    #[error("service {service:?}: gRPC service {name:?}: use the full name, like package.Service")]
    GrpcName { service: String, name: String },
    #[error("service {service:?}: read methods belong to a gRPC route, not to a path prefix")]
    ReadsWithoutGrpc { service: String },
    #[error(
        "header {0:?}: use lower case letters, digits and '-', and no name that Tidegate or HTTP \
        itself owns"
    )]
    Header(String),
    #[error("cookie {0:?}: no name that a cookie can have")]
    Cookie(String),
    #[error("the explain token is empty: every caller could see decisions")]
    EmptyToken,
}

impl Rules {
    /// Checks and indexes the rules of `viewer`, a zone of `topology`.
    ///
    /// # Errors
    ///
    /// [`InvalidRules`] names the first service, route, key or token that is not valid.
    pub fn new(
        topology: Topology,
        viewer: ZoneId,
        services: Vec<Service>,
        explain: Option<Explain>,
    ) -> Result<Rules, InvalidRules> {
        check_services(&services)?;
        if let Some(explain) = &explain {
            check_header(&explain.header)?;
            if explain.token.is_empty() {
                return Err(InvalidRules::EmptyToken);
            }
        }
        let hosts = Hosts::index(&services)?;
        let ways = topology.zones().flat_map(|zone| {
            Class::ALL.map(|class| (zone, class, is_alone(&topology, zone, class)))
        });
        let ways: Vec<_> = ways.collect();
        let clusters = services
            .iter()
            .flat_map(|service| {
                ways.iter().map(|(zone, class, alone)| {
                    let zone = topology.zone_name(*zone);
                    match alone {
                        true => cluster_name(&service.name, zone),
                        false => route_cluster_name(&service.name, zone, *class),
                    }
                })
            })
            .collect();
        Ok(Rules {
            viewer,
            topology: Arc::new(topology),
            services: services.into_iter().collect(),
            explain,
            fencing: None,
            gateways: Arc::default(),
            clusters,
            hosts: Arc::new(hosts),
        })
    }

    /// The same rules for the proxies of another zone of the topology.
    pub fn seen_from(&self, viewer: ZoneId) -> Rules {
        Rules {
            viewer,
            ..self.clone()
        }
    }

    /// Replaces the plans of a service; other rules do not depend on them. Does nothing for a
    /// service of other rules.
    pub fn replan(&mut self, id: ServiceId, plans: Plans) {
        if let Some(service) = self.service(id) {
            let service = Service {
                plans,
                ..service.clone()
            };
            self.services.set(id.index(), service);
        }
    }

    /// The same rules with a write fence for the services that configure one.
    pub fn fenced(mut self, fencing: Fencing) -> Rules {
        let zones = self.topology.zones();
        let gateways =
            zones.map(|zone| cluster_name(GATEWAY_SERVICE, self.topology.zone_name(zone)));
        self.gateways = gateways.collect();
        self.fencing = Some(Arc::new(fencing));
        self
    }

    /// The same rules, which explain no decision. The token of [`Rules::explain`] is a secret.
    pub fn unexplained(self) -> Rules {
        Rules {
            explain: None,
            ..self
        }
    }

    /// The same rules in a host that has other names. `clusters` are those of every service, zone
    /// and class, in this order, as [`Rules::cluster`] gives them; `gateways` those of every zone,
    /// or none where nothing can be forwarded; `control_plane` leads to the control plane.
    pub fn in_host(
        mut self,
        clusters: Arc<[String]>,
        gateways: Arc<[String]>,
        control_plane: &str,
    ) -> Rules {
        self.clusters = clusters;
        self.gateways = gateways;
        self.fencing = self.fencing.map(|fencing| {
            let mut fencing = Arc::unwrap_or_clone(fencing);
            fencing.control_plane = control_plane.to_owned();
            Arc::new(fencing)
        });
        self
    }

    /// The names of all clusters: see [`Rules::in_host`]. As long as services and zones stay the
    /// same, copies share them.
    pub fn clusters(&self) -> &Arc<[String]> {
        &self.clusters
    }

    /// None if no writes are fenced.
    pub fn fencing(&self) -> Option<&Fencing> {
        self.fencing.as_deref()
    }

    /// The name of the cluster of a zone's gateways; none if no writes are fenced.
    pub fn gateway(&self, zone: ZoneId) -> Option<&str> {
        self.gateways.get(zone.index()).map(String::as_str)
    }

    /// The zone whose proxies decide by these rules.
    pub fn viewer(&self) -> ZoneId {
        self.viewer
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// In the order of the configuration.
    pub fn services(&self) -> &Shared<Service> {
        &self.services
    }

    pub fn explain(&self) -> Option<&Explain> {
        self.explain.as_ref()
    }

    /// None for a service of other rules.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(id.index())
    }

    /// The name of the cluster for a service's requests of `class` that should go to `zone`.
    pub fn cluster(&self, service: ServiceId, zone: ZoneId, class: Class) -> Option<&str> {
        let zones = self.topology.zones().len();
        let at = service.index() * zones + zone.index();
        self.clusters
            .get(at * Class::ALL.len() + class.index())
            .map(String::as_str)
    }

    /// The service and route of a request, by the order of Envoy's virtual hosts and routes: the
    /// most specific host decides alone, then the longest path.
    pub fn route(
        &self,
        authority: &[u8],
        path: &[u8],
        grpc: bool,
    ) -> Option<(ServiceId, &Service, &Route)> {
        let path = without_query(path);
        self.hosts
            .routes_for(authority)
            .iter()
            .filter_map(|at| self.route_at(*at))
            .find(|(_, _, route)| route.takes(path, grpc))
    }

    /// Every host pattern with its routes in the order in which they are tried.
    pub fn hosts(
        &self,
    ) -> impl Iterator<Item = (&str, impl Iterator<Item = (ServiceId, &Service, &Route)>)> {
        self.hosts
            .all()
            .map(|(host, routes)| (host, routes.iter().filter_map(|at| self.route_at(*at))))
    }

    /// The routes of one service, each with its position among those that [`Rules::hosts`] gives
    /// for its host.
    pub fn placed_routes(&self, id: ServiceId) -> impl Iterator<Item = (usize, &Service, &Route)> {
        let routes = self.service(id).into_iter();
        let routes = routes.flat_map(|service| service.routes.iter().map(move |r| (service, r)));
        routes.filter_map(|(service, route)| {
            // No two routes of a host have the same position.
            let order = |at: &RouteAt| self.route_at(*at).map(|(.., route)| route.order());
            let routes = self.hosts.pattern(&route.host);
            let place = routes.binary_search_by(|at| order(at).cmp(&Some(route.order())));
            Some((place.ok()?, service, route))
        })
    }

    fn route_at(&self, at: RouteAt) -> Option<(ServiceId, &Service, &Route)> {
        let service = self.service(at.service)?;
        Some((at.service, service, service.routes.get(at.route)?))
    }

    /// The requests of this route that need no decision, if there are any: the proxy may serve them
    /// without running the filter.
    pub fn plain_reads(&self, service: &Service, route: &Route) -> Option<PlainReads> {
        let class_is_plain = matches!(
            (&route.matches, &route.class),
            (
                RouteMatch::Prefix(_),
                ClassRule::ByMethod | ClassRule::Always(Class::Read)
            )
        );
        let open = matches!(
            service.plans.get(self.viewer, Class::Read),
            Plan::Open { .. }
        );
        let plain = class_is_plain
            && open
            && service.zone_affinity.is_none()
            && service.trace_missing == TraceRule::Generate;
        let reads = PlainReads {
            without_region: service.region_missing == RegionRule::Local,
            with_local_region: service.region_unknown == RegionRule::Local,
        };
        (plain && (reads.without_region || reads.with_local_region)).then_some(reads)
    }
}

/// Reads that are decided before they arrive: GET requests that come from no proxy of this mesh, do
/// not request an explanation, and whose `X-Region-ID` is absent, if `without_region`, or has the
/// local zone among its values, if `with_local_region`. Their home is the local zone.
///
/// Envoy compares an exact matcher with each copy of a header, so it cannot distinguish one copy
/// from several. Several copies count as an unknown region. So a local region is plain only if an
/// unknown one is local too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainReads {
    pub without_region: bool,
    pub with_local_region: bool,
}

/// The name of the service whose instances are the gateways themselves: the target of forwarded
/// writes.
pub const GATEWAY_SERVICE: &str = "gateway";

/// The name of the cluster of a service's endpoints in a zone, by contract.
pub fn cluster_name(service: &str, zone: &str) -> String {
    format!("{service}/{zone}")
}

/// Whether requests of `class` for `zone` have no other zone to fall back to. Then routes name the
/// cluster with its endpoints directly.
pub fn is_alone(topology: &Topology, zone: ZoneId, class: Class) -> bool {
    let mut others = topology.zones().filter(|other| *other != zone);
    !others.any(|other| class == Class::Read || topology.tier(zone, other) != Tier::Remote)
}

/// The name of the cluster that routes use for `place`, a zone or region: its endpoints, followed
/// by those that requests of `class` fall back to if none of them responds.
pub fn route_cluster_name(service: &str, place: &str, class: Class) -> String {
    match class {
        Class::Read => format!("{service}/{place}/reads"),
        Class::Write => format!("{service}/{place}/writes"),
    }
}

impl Route {
    /// Whether this route matches `path`, which has no query.
    fn takes(&self, path: &[u8], grpc: bool) -> bool {
        match &self.matches {
            RouteMatch::Grpc(name) => {
                grpc && path
                    .strip_prefix(b"/")
                    .and_then(|path| path.strip_prefix(name.as_bytes()))
                    .is_some_and(|rest| rest.first() == Some(&b'/'))
            }
            RouteMatch::Prefix(prefix) if prefix == "/" => path.first() == Some(&b'/'),
            RouteMatch::Prefix(prefix) => path
                .strip_prefix(prefix.as_bytes())
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'/'))),
        }
    }

    /// Longer paths first; a gRPC service before a path prefix of the same length.
    fn order(&self) -> (Reverse<usize>, &RouteMatch) {
        let length = match &self.matches {
            RouteMatch::Grpc(name) => name.len() + 1,
            RouteMatch::Prefix(prefix) => prefix.len(),
        };
        (Reverse(length), &self.matches)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RouteAt {
    service: ServiceId,
    route: usize,
}

/// Host patterns, each with its routes in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Default)]
struct Hosts {
    exact: BTreeMap<String, Vec<RouteAt>>,
    /// Patterns `*.domain`, in their [order](wildcard_order): the longest first.
    wildcards: Vec<(String, Vec<RouteAt>)>,
    any: Vec<RouteAt>,
}

impl Hosts {
    fn index(services: &[Service]) -> Result<Hosts, InvalidRules> {
        let mut patterns: BTreeMap<&str, Vec<(RouteAt, &Service, &Route)>> = BTreeMap::new();
        for (index, service) in services.iter().enumerate() {
            for (route_index, route) in service.routes.iter().enumerate() {
                let at = RouteAt {
                    service: ServiceId(index as u32),
                    route: route_index,
                };
                patterns
                    .entry(&route.host)
                    .or_default()
                    .push((at, service, route));
            }
        }
        let mut hosts = Hosts::default();
        for (host, mut routes) in patterns {
            routes.sort_by(|(.., a), (.., b)| a.order().cmp(&b.order()));
            let twins = routes.iter().zip(routes.iter().skip(1));
            if let Some(((_, first, route), (_, second, _))) = twins
                .into_iter()
                .find(|((.., a), (.., b))| a.matches == b.matches)
            {
                return Err(InvalidRules::DuplicateRoute {
                    first: first.name.clone(),
                    second: second.name.clone(),
                    route: format!("{host} {}", route.matches),
                });
            }
            let routes = routes.into_iter().map(|(at, ..)| at).collect();
            if host == "*" {
                hosts.any = routes;
            } else if host.starts_with('*') {
                hosts.wildcards.push((host.to_owned(), routes));
            } else {
                hosts.exact.insert(host.to_owned(), routes);
            }
        }
        let order = wildcard_order;
        hosts
            .wildcards
            .sort_by(|(a, _), (b, _)| order(a).cmp(&order(b)));
        Ok(hosts)
    }

    /// The routes of exactly this pattern.
    fn pattern(&self, host: &str) -> &[RouteAt] {
        if host == "*" {
            return &self.any;
        }
        let wildcard = || {
            let order = wildcard_order(host);
            let wildcards = &self.wildcards;
            let at = wildcards.binary_search_by(|(at, _)| wildcard_order(at).cmp(&order));
            wildcards.get(at.ok()?).map(|(_, routes)| routes)
        };
        let exact = self.exact.get(host);
        exact.or_else(wildcard).map_or(&[], Vec::as_slice)
    }

    fn routes_for(&self, authority: &[u8]) -> &[RouteAt] {
        let host = without_port(authority);
        let host = if host.iter().any(u8::is_ascii_uppercase) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        let exact = core::str::from_utf8(&host)
            .ok()
            .and_then(|host| self.exact.get(host));
        exact
            .or_else(|| {
                self.wildcards
                    .iter()
                    .find(|(pattern, _)| {
                        let suffix = pattern.trim_start_matches('*').as_bytes();
                        host.len() > suffix.len() && host.ends_with(suffix)
                    })
                    .map(|(_, routes)| routes)
            })
            .unwrap_or(&self.any)
    }

    fn all(&self) -> impl Iterator<Item = (&str, &[RouteAt])> {
        let exact = self.exact.iter().map(|(host, r)| (host.as_str(), &r[..]));
        let wildcards = self.wildcards.iter();
        let wildcards = wildcards.map(|(pattern, r)| (pattern.as_str(), &r[..]));
        let any = (!self.any.is_empty()).then_some(("*", &self.any[..]));
        exact.chain(wildcards).chain(any)
    }
}

fn wildcard_order(pattern: &str) -> (Reverse<usize>, &str) {
    (Reverse(pattern.len()), pattern)
}

/// The host of an authority without its port; an IPv6 address keeps its brackets.
///
/// Exactly as Envoy cuts it (`HeaderUtility::getPortStart`): at the last colon, with or without a
/// number behind it. If the two cut differently, a caller could have a request classed by one
/// service's route and sent by another's.
fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|b| matches!(b, b':' | b']')) {
        Some(at) if authority.get(at) == Some(&b':') => authority.split_at(at).0,
        _ => authority,
    }
}

impl core::fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            RouteMatch::Grpc(name) => write!(f, "gRPC {name}"),
            RouteMatch::Prefix(prefix) => f.write_str(prefix),
        }
    }
}

fn check_services(services: &[Service]) -> Result<(), InvalidRules> {
    let mut names = alloc::collections::BTreeSet::new();
    for service in services {
        let name = || service.name.clone();
        check_name(&service.name).map_err(|error| InvalidRules::Name {
            service: name(),
            error,
        })?;
        if !names.insert(service.name.as_str()) {
            return Err(InvalidRules::DuplicateService(name()));
        }
        if service.routes.is_empty() {
            return Err(InvalidRules::NoRoutes { service: name() });
        }
        for route in &service.routes {
            check_route(&service.name, route)?;
        }
        if let Some(key) = &service.zone_affinity {
            check_key(key)?;
        }
        if let Writes::Fenced { key: Some(key) } = &service.writes {
            check_key(key)?;
        }
    }
    Ok(())
}

fn check_route(service: &str, route: &Route) -> Result<(), InvalidRules> {
    let service = || service.to_owned();
    let domain = route.host.strip_prefix("*.").unwrap_or(&route.host);
    if route.host != "*" && !is_domain(domain) {
        return Err(InvalidRules::Host {
            service: service(),
            host: route.host.clone(),
        });
    }
    match &route.matches {
        RouteMatch::Prefix(prefix) => {
            let shaped = prefix == "/" || (prefix.starts_with('/') && !prefix.ends_with('/'));
            if !shaped || prefix.contains(['?', '#']) {
                return Err(InvalidRules::Prefix {
                    service: service(),
                    prefix: prefix.clone(),
                });
            }
            if matches!(route.class, ClassRule::GrpcReads(_)) {
                return Err(InvalidRules::ReadsWithoutGrpc { service: service() });
            }
        }
        RouteMatch::Grpc(name) => {
            let valid = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'));
            if !valid {
                return Err(InvalidRules::GrpcName {
                    service: service(),
                    name: name.clone(),
                });
            }
        }
    }
    Ok(())
}

fn is_domain(name: &str) -> bool {
    let edges_ok = !name.starts_with('.') && !name.ends_with('.') && !name.is_empty();
    edges_ok
        && name.len() <= 253
        && name.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
        })
}

fn check_header(name: &str) -> Result<(), InvalidRules> {
    let valid = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    // HTTP/2 has no `host`, and Envoy does not permit to remove it.
    if valid && name != "host" && !headers::is_internal(name.as_bytes()) {
        Ok(())
    } else {
        Err(InvalidRules::Header(name.to_owned()))
    }
}

/// Checks the name of a key source: whether requests can carry a key there.
///
/// # Errors
///
/// [`InvalidRules::Header`] or [`InvalidRules::Cookie`] with the name that cannot be used.
pub fn check_key(source: &KeySource) -> Result<(), InvalidRules> {
    // A token of RFC 9110, 5.6.2.
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    match source {
        KeySource::Header(name) => check_header(name),
        KeySource::Cookie(name) if name.is_empty() || !name.bytes().all(letter) => {
            Err(InvalidRules::Cookie(name.clone()))
        }
        KeySource::Cookie(_) | KeySource::PathSegment(_) => Ok(()),
    }
}
