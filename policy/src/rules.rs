//! Everything that the proxies of one local zone decide by.

mod hosts;
mod validate;

use alloc::{borrow::ToOwned, boxed::Box, format, string::String, sync::Arc, vec::Vec};

use crate::{
    cells::Fencing,
    class::Class,
    path::without_query,
    plan::{Plan, Plans},
    service::{ClassRule, RegionRule, Route, RouteMatch, Service, ServiceId, TraceRule},
    shared::Shared,
    tier::Tier,
    topology::{InvalidName, Topology, ZoneId},
};

use hosts::{Hosts, RouteAt};
pub use validate::check_key;
use validate::{check_header, check_services};

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

impl core::fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            RouteMatch::Grpc(name) => write!(f, "gRPC {name}"),
            RouteMatch::Prefix(prefix) => f.write_str(prefix),
        }
    }
}
