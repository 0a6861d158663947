//! RDS: the route table of one local zone.
//!
//! For each host, and in it for each of the services' routes, longest path first, the table has
//! these routes in this order:
//!
//! 0. upgrades to protocols that other services accept, but not this one: rejected;
//! 1. *plain reads*, which need no decision: the filter is switched off for them, and they are
//!    routed as planned;
//! 2. requests without a stamp: rejected, since they are undecided;
//! 3. reads of the local zone: to the cluster that the filter names in `x-tidegate-to`;
//! 4. writes: the same; without a cluster they are rejected;
//! 5. reads of another zone: the same;
//! 6. reads without a cluster: to the local zone, since their filter has no policy, or is older
//!    than this table.
//!
//! The filter knows the plans, so a plan changes only the routes of plain reads. Policy and table
//! of different ages work together.
//!
//! The writes of a fenced service have other routes in place of 4. *Admitted* writes, which carry
//! `x-tidegate-epoch`, go to the local zone's instances without a fallback. *Forwarded* writes go
//! to the gateways that `x-tidegate-to` names. Every other write is rejected.
//!
//! If a key chooses the instance, clusters are those of regions, which the filter does not know:
//! these services have routes for each home and class, as planned.
//!
//! The first pass of Envoy's routing, before the filter has run, ends at 1 or 2; the filter's stamp
//! makes Envoy route again. Every route that is checked in vain costs each request, so the most
//! common ones come first. The number and size of routes costs memory in a proxy, too: their common
//! parts are at the virtual host or at the table. Stamps from outside never get here, since the
//! listener removes them first.

pub(super) mod fenced;
pub(super) mod matching;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use envoy_types::pb::envoy::{
    config::{
        core::v3::{DataSource, HeaderValueOption, RuntimeFractionalPercent, data_source},
        route::v3::{
            DirectResponseAction, FilterConfig, HeaderMatcher, Route, RouteConfiguration,
            RouteMatch, Vhds, VirtualHost, WeightedCluster,
            route::Action,
            route_action::ClusterSpecifier,
            route_match::{GrpcRouteMatchOptions, PathSpecifier},
            weighted_cluster::ClusterWeight,
        },
    },
    r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
};
use envoy_types::pb::google::protobuf::UInt64Value;
use policy::{
    Class, Explain, Fencing, Plan, Reason, Refusal, Rules, Service, ServiceId, Target, Tier,
    WEIGHT_TOTAL, ZoneId, headers, refusal::PROBLEM_JSON, rules::cluster_name,
};
use prost::{Message, Name};

use super::{
    FILTER, ROUTES, forward, from_ads,
    hosts::{self, Host, Translation, VirtualHosts},
    place::{Place, keeps_sessions},
    uint32,
};
use crate::config::{Resilience, Strategy};
use matching::{absent, add_if_absent, is, is_any_case, present, replace, set};
use xds::resource::{Names, Piece, Resource, any};

/// How much of a request's body may be buffered for a retry, if nothing of it was sent: Envoy's own
/// default.
const RETRY_BUFFER_BYTES: u64 = 1 << 20;

/// In the access log, for requests that are not forwarded.
const NO_TIER: &str = "none";

/// The configuration of a service without influence on decisions, by its position in the rules.
pub type Resiliences<'r> = &'r dyn Fn(usize) -> Resilience;

/// The route table of `rules`' local zone.
pub fn routes(rules: &Rules, resiliences: Resiliences<'_>) -> Arc<Resource> {
    route_table(&virtual_hosts(rules, resiliences))
}

/// The table of these virtual hosts, whose bytes it shares.
pub fn route_table(hosts: &VirtualHosts) -> Arc<Resource> {
    table(hosts, RouteConfiguration::default())
}

/// The same table for proxies that request its virtual hosts one by one.
pub fn route_table_on_demand() -> Arc<Resource> {
    let on_demand = RouteConfiguration {
        vhds: Some(Vhds {
            config_source: Some(from_ads()),
        }),
        ..RouteConfiguration::default()
    };
    table(&VirtualHosts::new(), on_demand)
}

/// One virtual host of [`route_table_on_demand`], which shares its bytes with [`route_table`].
pub fn virtual_host_on_demand(name: &str, host: &Host) -> Arc<Resource> {
    let name = format!("{ROUTES}/{name}");
    let more = VirtualHost {
        // Envoy uses this name to find the virtual host to remove. If a field is repeated, the last
        // one counts.
        name: name.clone(),
        routes: vec![no_route()],
        ..VirtualHost::default()
    };
    let more = Piece::of(more.encode_to_vec());
    let (first, behind) = host.message();
    let pieces = [&first].into_iter().chain(behind).chain([&more]);
    let type_url = VirtualHost::type_url();
    Arc::new(Resource::of_pieces(&name, &type_url, pieces))
}

/// For requests that no service claims: Envoy requests a virtual host not only without one, but
/// whenever there is no route.
fn no_route() -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::DirectResponse(DirectResponseAction {
            status: 404,
            ..DirectResponseAction::default()
        })),
        ..Route::default()
    }
}

fn table(hosts: &VirtualHosts, options: RouteConfiguration) -> Arc<Resource> {
    let name = RouteConfiguration {
        name: ROUTES.to_owned(),
        ..RouteConfiguration::default()
    };
    let options = RouteConfiguration {
        // Like the policy, or the two would disagree about `shop.example:8080`.
        ignore_port_in_host_matching: true,
        // At each route they would be repeated. Envoy applies the routes' own headers first.
        request_headers_to_add: vec![
            // The filter increments it.
            add_if_absent(headers::VIA, "1"),
            // If a service requires one, the filter has rejected requests without it.
            add_if_absent(headers::TRACE_ID, "%REQ(x-request-id)%"),
            // Usually a request is served by its home zone.
            add_if_absent(headers::TIER, Tier::Zone.as_str()),
            add_if_absent(headers::DECISION, Reason::HomeZone.as_str()),
        ],
        // It is only used between the filter and the route.
        request_headers_to_remove: vec![headers::TO.to_owned()],
        ..options
    };
    // A message equals the concatenation of its fields, and a repeated field that of its entries.
    let [name, options] = [name, options].map(|fields| Piece::of(fields.encode_to_vec()));
    let hosts = hosts.values().flat_map(Host::entry);
    let pieces = [&name].into_iter().chain(hosts).chain([&options]);
    let type_url = RouteConfiguration::type_url();
    Arc::new(Resource::of_pieces(ROUTES, &type_url, pieces))
}

/// All virtual hosts of `rules`' local zone.
pub fn virtual_hosts(rules: &Rules, resiliences: Resiliences<'_>) -> VirtualHosts {
    hosts::of_rules(rules, &ForProxies { rules, resiliences })
}

/// The virtual hosts after new plans of the services in `replanned`; returns the changed hosts.
pub fn replan_virtual_hosts<'h>(
    hosts: &'h mut VirtualHosts,
    rules: &Rules,
    replanned: &[ServiceId],
    resiliences: Resiliences<'_>,
) -> Vec<(&'h str, &'h Host)> {
    let translation = ForProxies { rules, resiliences };
    hosts::replan(hosts, rules, replanned, &translation)
}

struct ForProxies<'r> {
    rules: &'r Rules,
    resiliences: Resiliences<'r>,
}

impl Translation for ForProxies<'_> {
    fn before(&self, host: &str) -> VirtualHost {
        VirtualHost {
            name: host.to_owned(),
            domains: vec![host.to_owned()],
            ..VirtualHost::default()
        }
    }

    fn behind(&self) -> VirtualHost {
        let explain = self.rules.explain();
        VirtualHost {
            // The limit for a body that is buffered for a retry. The listener's limit would suffice
            // for few.
            request_body_buffer_limit: Some(UInt64Value {
                value: RETRY_BUFFER_BYTES,
            }),
            retry_policy: Some(forward::usual_retries()),
            // The token is only for us.
            request_headers_to_remove: explain.map(|e| e.header.clone()).into_iter().collect(),
            response_headers_to_add: explain.map(show_decision).into_iter().collect(),
            ..VirtualHost::default()
        }
    }

    fn routes(&self, id: ServiceId, service: &Service, route: &policy::Route) -> Vec<Route> {
        let builder = Builder {
            rules: self.rules,
            service,
            route,
            resilience: (self.resiliences)(id.index()),
        };
        builder.routes()
    }
}

/// The clusters that the table, and a filter with `rules`, may name, and their fallbacks.
pub fn needed_clusters(rules: &Rules, resiliences: Resiliences<'_>) -> Names {
    let services = (0..rules.services().len()).map(ServiceId::new);
    let needed = services.flat_map(|id| clusters_needed_by(rules, id, resiliences));
    needed.map(Arc::from).collect()
}

/// The clusters that one service needs.
pub fn clusters_needed_by(
    rules: &Rules,
    id: ServiceId,
    resiliences: Resiliences<'_>,
) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let Some(service) = rules.service(id) else {
        return needed;
    };
    let topology = rules.topology();
    let strategy = resiliences(id.index()).strategy;
    let fencing = fenced::fencing(rules, service);
    if let Some(fencing) = fencing {
        let own = topology.zone_name(rules.viewer());
        needed.insert(cluster_name(&service.name, own));
        let gateways = fenced::forwarded_to(rules, fencing).into_iter();
        needed.extend(gateways.filter_map(|zone| rules.gateway(zone).map(str::to_owned)));
    }
    for class in planned_classes(fencing.is_some()) {
        let plans = topology.zones().map(|home| service.plans.get(home, class));
        let zones: BTreeSet<ZoneId> = plans
            .flat_map(|plan| plan.targets().iter().map(|target| target.zone))
            // The filter's alternative to a foreign home.
            .chain([rules.viewer()])
            .collect();
        for zone in zones {
            let place = Place::of(topology, &strategy, zone);
            needed.insert(cluster_of(rules, &service.name, &strategy, zone, class));
            let behind = match keeps_sessions(&strategy) {
                true => vec![place],
                false => place.fallback_order(topology, &strategy, class),
            };
            let behind = behind
                .iter()
                .map(|place| place.cluster(topology, &service.name));
            needed.extend(behind);
        }
    }
    needed
}

/// The destination of fenced writes is not planned.
pub(super) fn planned_classes(fenced: bool) -> impl Iterator<Item = Class> + Clone {
    let planned = move |class: &Class| !fenced || *class == Class::Read;
    Class::ALL.into_iter().filter(planned)
}

/// The cluster for a service's requests of `class` that should go to `zone`. With weights it is
/// [`Rules::cluster`], which the filter names, too.
fn cluster_of(
    rules: &Rules,
    service: &str,
    strategy: &Strategy,
    zone: ZoneId,
    class: Class,
) -> String {
    let topology = rules.topology();
    let place = Place::of(topology, strategy, zone);
    match keeps_sessions(strategy) {
        true => place.cluster(topology, service),
        false => place.route_cluster(topology, service, class),
    }
}

/// The filter stamps the reason on the request of a caller that may see it; the response carries it
/// back.
fn show_decision(_: &Explain) -> HeaderValueOption {
    set(headers::DECISION, &format!("%REQ({})%", headers::EXPLAIN))
}

/// The home that a route is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    Viewer,
    Foreign,
}

fn no_stamp() -> [HeaderMatcher; 2] {
    [absent(headers::CLASS), absent(headers::HOME)]
}

struct Builder<'r> {
    rules: &'r Rules,
    service: &'r Service,
    route: &'r policy::Route,
    resilience: Resilience,
}

impl Builder<'_> {
    fn routes(&self) -> Vec<Route> {
        let fencing = fenced::fencing(self.rules, self.service);
        let mut routes: Vec<_> = self.refused_upgrades().collect();
        routes.extend(self.plain_reads());
        let undecided = fencing.map(|_| fenced::undecided());
        let undecided = undecided.into_iter().flatten();
        let no_stamp = no_stamp().into_iter().chain(undecided);
        routes.push(self.refused(no_stamp.collect(), Refusal::FENCED));
        match self.resilience.strategy {
            Strategy::Weighted => routes.extend(self.named(fencing)),
            Strategy::RegionFirstHash { .. } => routes.extend(self.hashed(fencing)),
        }
        routes
    }

    /// Requests for which the filter has chosen the cluster, so that no plan changes these routes.
    fn named(&self, fencing: Option<&Fencing>) -> Vec<Route> {
        let topology = self.rules.topology();
        let here = || is(headers::HOME, topology.zone_name(self.rules.viewer()));
        let is_write = || is(headers::CLASS, Class::Write.as_str());
        let to = || present(headers::TO);
        let read_here = vec![to(), here(), absent(headers::CLASS)];
        let mut routes = vec![self.as_named(read_here, Class::Read, Home::Viewer)];
        match fencing {
            Some(fencing) => {
                routes.extend(self.fenced_writes(fencing));
                // Requests that do not fit the fence any more, and only have its own stamp.
                routes.push(self.refused(no_stamp().into(), Refusal::FENCED));
            }
            None => {
                let write_here = vec![to(), is_write(), absent(headers::HOME)];
                routes.push(self.as_named(write_here, Class::Write, Home::Viewer));
                // If the policy has a fence and these routes have none, its hops are excluded.
                let write = vec![to(), is_write(), absent(headers::PRESENTED_EPOCH)];
                routes.push(self.as_named(write, Class::Write, Home::Foreign));
            }
        }
        routes.push(self.refused(vec![is_write()], Refusal::FENCED));
        routes.push(self.as_named(vec![to()], Class::Read, Home::Foreign));
        routes.push(self.without_name());
        routes
    }

    /// The filter knows zones, but these clusters are those of regions. So each home has its
    /// routes, as planned.
    fn hashed(&self, fencing: Option<&Fencing>) -> Vec<Route> {
        let viewer = self.rules.viewer();
        let zones = self.rules.topology().zones();
        let is_home = |zone| is(headers::HOME, self.rules.topology().zone_name(zone));
        let is_class = |class: Class| is(headers::CLASS, class.as_str());
        let no_class = || absent(headers::CLASS);

        let mut routes = Vec::new();
        match fencing {
            Some(fencing) => routes.extend(self.fenced_writes(fencing)),
            None => {
                let local_write = vec![is_class(Class::Write), absent(headers::HOME)];
                routes.push(self.planned(local_write, viewer, Class::Write));
            }
        }
        for home in zones.clone() {
            routes.push(self.planned(vec![is_home(home), no_class()], home, Class::Read));
        }
        for home in zones.filter(|_| fencing.is_none()) {
            let stamps = vec![is_home(home), is_class(Class::Write)];
            routes.push(self.planned(stamps, home, Class::Write));
        }
        routes.push(self.refused(vec![is_class(Class::Write)], Refusal::FENCED));
        routes.push(self.unknown_home());
        routes.push(self.planned(vec![is_class(Class::Read)], viewer, Class::Read));
        routes.push(self.refused(Vec::new(), Refusal::FENCED));
        routes
    }

    /// Upgrades that other services accept, so that the listener permits them.
    fn refused_upgrades(&self) -> impl Iterator<Item = Route> {
        let refused = self.resilience.upgrades.refused.iter();
        refused.map(|protocol| Route {
            r#match: Some(self.matching(vec![is_any_case("upgrade", protocol)])),
            // The listener adds the reason.
            action: Some(Action::DirectResponse(DirectResponseAction {
                status: 403,
                ..DirectResponseAction::default()
            })),
            ..Route::default()
        })
    }

    fn plain_reads(&self) -> Vec<Route> {
        let Some(plain) = self.rules.plain_reads(self.service, self.route) else {
            return Vec::new();
        };
        // Sessions are enabled where the filter would be switched off, and a map of two entries has
        // no unique encoding.
        if keeps_sessions(&self.resilience.strategy) {
            return Vec::new();
        }
        let viewer = self.rules.viewer();
        let local = is(headers::REGION_ID, self.rules.topology().zone_name(viewer));
        let regions = [
            plain.without_region.then(|| absent(headers::REGION_ID)),
            plain.with_local_region.then_some(local),
        ];
        regions
            .into_iter()
            .flatten()
            .flat_map(|region| {
                let asks_nothing = self.rules.explain().map(|e| absent(&e.header));
                // The filter counts the requests that one of our proxies has sent.
                let matchers: Vec<_> = [is(":method", "GET"), region, absent(headers::VIA)]
                    .into_iter()
                    .chain(asks_nothing)
                    .collect();
                let switched_off = FilterConfig {
                    disabled: true,
                    ..FilterConfig::default()
                };
                let shed = self.shed(&matchers);
                let planned = self.planned(matchers, viewer, Class::Read);
                let mut routes: Vec<_> = shed.into_iter().chain([planned]).collect();
                for route in &mut routes {
                    route.typed_per_filter_config =
                        HashMap::from([(FILTER.to_owned(), any(&switched_off))]);
                    // The filter would remove them.
                    route.request_headers_to_remove =
                        [headers::FORWARDED, headers::PRESENTED_EPOCH]
                            .map(str::to_owned)
                            .into();
                }
                routes
            })
            .collect()
    }

    /// To the cluster that the filter names. The filter also stamps the tier, unless the home zone
    /// serves the request.
    fn as_named(&self, matchers: Vec<HeaderMatcher>, class: Class, home: Home) -> Route {
        let to = ClusterSpecifier::ClusterHeader(headers::TO.to_owned());
        let mut route = self.forwarded(matchers, to, class);
        let viewer = self.rules.viewer();
        let missing = [
            // A home identifies a read; a write of the local zone has none.
            (class == Class::Read).then(|| set(headers::CLASS, class.as_str())),
            (class == Class::Write && home == Home::Viewer)
                .then(|| set(headers::HOME, self.rules.topology().zone_name(viewer))),
            (home == Home::Foreign).then(|| set(headers::ALT_ROUTE, &self.cluster(viewer, class))),
        ];
        route
            .request_headers_to_add
            .extend(missing.into_iter().flatten());
        route
    }

    /// Reads of a filter that names no cluster: it has no policy, or is older than this table.
    fn without_name(&self) -> Route {
        let viewer = self.rules.viewer();
        let to = ClusterSpecifier::Cluster(self.cluster(viewer, Class::Read));
        let mut route = self.forwarded(Vec::new(), to, Class::Read);
        route.request_headers_to_add.extend([
            set(headers::CLASS, Class::Read.as_str()),
            add_if_absent(headers::HOME, self.rules.topology().zone_name(viewer)),
            set(headers::DECISION, Reason::Fallback.as_str()),
        ]);
        route
    }

    /// Rejects the plain reads that exceed the capacity. The filter rejects all others.
    fn shed(&self, matchers: &[HeaderMatcher]) -> Option<Route> {
        let viewer = self.rules.viewer();
        let shed = self.service.plans.get(viewer, Class::Read).shed();
        if shed == 0 {
            return None;
        }
        let mut route = self.refused(matchers.to_vec(), Refusal::NO_CAPACITY);
        if let Some(matching) = &mut route.r#match {
            // Envoy draws one number for this and for the choice among weighted clusters. A
            // multiple of the sum of their weights keeps that choice even.
            matching.runtime_fraction = Some(RuntimeFractionalPercent {
                default_value: Some(FractionalPercent {
                    numerator: shed * (1_000_000 / WEIGHT_TOTAL),
                    denominator: DenominatorType::Million.into(),
                }),
                ..RuntimeFractionalPercent::default()
            });
        }
        Some(route)
    }

    /// Requests of `home` and `class`, as planned.
    fn planned(&self, matchers: Vec<HeaderMatcher>, home: ZoneId, class: Class) -> Route {
        let plan = self.service.plans.get(home, class);
        let (tier, targets) = match plan {
            Plan::Open { tier, targets, .. } => (tier, targets),
            Plan::Closed { drained } => {
                return self.refused(matchers, Refusal::closed(*drained));
            }
        };
        let topology = self.rules.topology();
        let tier_of = |target: &Target| plan.tier_of(topology, home, target.zone).unwrap_or(*tier);
        // If some requests leave the region, each target stamps its tier.
        let is_mixed = self.resilience.strategy == Strategy::Weighted
            && targets.iter().any(|target| tier_of(target) != *tier);
        let is_hashed = self.resilience.strategy != Strategy::Weighted;
        // No other part has stamped a plain read.
        let says_tier = is_hashed || !is_mixed && *tier != Tier::Zone;
        let to = match self.resilience.strategy {
            Strategy::Weighted => {
                let shares = targets.iter();
                let shares = shares.map(|t| (self.cluster(t.zone, class), t.weight));
                let mut to = specifier(shares.collect());
                if is_mixed {
                    label(&mut to, targets.iter().map(tier_of));
                }
                to
            }
            // All zones of a region form one ring.
            Strategy::RegionFirstHash { .. } => {
                let tier = |zone: &ZoneId| self.rules.topology().tier(home, *zone);
                let nearest = targets.iter().map(|target| target.zone).min_by_key(tier);
                ClusterSpecifier::Cluster(self.cluster(nearest.unwrap_or(home), class))
            }
        };
        let stamped = |name| {
            let mut matchers = matchers.iter();
            matchers.any(|matcher| matcher.name == name && !matcher.invert_match)
        };
        let home_name = self.rules.topology().zone_name(home);
        let local = || self.cluster(self.rules.viewer(), class);
        let missing = [
            (!stamped(headers::CLASS)).then(|| set(headers::CLASS, class.as_str())),
            (!stamped(headers::HOME)).then(|| set(headers::HOME, home_name)),
            (home != self.rules.viewer()).then(|| set(headers::ALT_ROUTE, &local())),
            says_tier.then(|| set(headers::TIER, tier.as_str())),
            says_tier.then(|| set(headers::DECISION, Reason::of_tier(*tier).as_str())),
            // The filter's draw selects among zones.
            (is_hashed).then(|| replace(headers::EXPLAIN, Reason::of_tier(*tier).as_str())),
        ];
        let mut route = self.forwarded(matchers, to, class);
        route
            .request_headers_to_add
            .extend(missing.into_iter().flatten());
        route
    }

    fn unknown_home(&self) -> Route {
        let local = self.cluster(self.rules.viewer(), Class::Read);
        let matchers = vec![present(headers::HOME)];
        let mut route = self.forwarded(
            matchers,
            ClusterSpecifier::Cluster(local.clone()),
            Class::Read,
        );
        route.request_headers_to_add.extend([
            set(headers::CLASS, Class::Read.as_str()),
            set(headers::ALT_ROUTE, &local),
            set(headers::DECISION, Reason::Fallback.as_str()),
        ]);
        route
    }

    fn cluster(&self, zone: ZoneId, class: Class) -> String {
        let strategy = &self.resilience.strategy;
        cluster_of(self.rules, &self.service.name, strategy, zone, class)
    }

    fn forwarded(&self, matchers: Vec<HeaderMatcher>, to: ClusterSpecifier, class: Class) -> Route {
        Route {
            r#match: Some(self.matching(matchers)),
            action: Some(Action::Route(forward::action(
                &self.resilience,
                self.resilience.routes.of(self.route),
                to,
                class,
                self.is_grpc(),
            ))),
            typed_per_filter_config: forward::sessions(&self.resilience.strategy),
            ..Route::default()
        }
    }

    fn refused(&self, matchers: Vec<HeaderMatcher>, refusal: Refusal) -> Route {
        let inline = |text: String| DataSource {
            specifier: Some(data_source::Specifier::InlineString(text)),
            ..DataSource::default()
        };
        let retry_after = refusal
            .retry_after_s
            .map(|s| set("retry-after", &s.to_string()));
        // Envoy turns the reply to a gRPC request into a gRPC status; our content type would break
        // it.
        let content_type = (!self.is_grpc()).then(|| set("content-type", PROBLEM_JSON));
        Route {
            r#match: Some(self.matching(matchers)),
            action: Some(Action::DirectResponse(DirectResponseAction {
                status: u32::from(refusal.status),
                body: Some(inline(refusal.problem())),
                ..DirectResponseAction::default()
            })),
            request_headers_to_add: vec![
                set(headers::DECISION, refusal.reason.as_str()),
                set(headers::TIER, NO_TIER),
            ],
            response_headers_to_add: content_type.into_iter().chain(retry_after).collect(),
            ..Route::default()
        }
    }

    fn is_grpc(&self) -> bool {
        matches!(self.route.matches, policy::RouteMatch::Grpc(_))
    }

    fn matching(&self, headers: Vec<HeaderMatcher>) -> RouteMatch {
        let (path, grpc) = match &self.route.matches {
            policy::RouteMatch::Grpc(name) => (
                PathSpecifier::Prefix(format!("/{name}/")),
                Some(GrpcRouteMatchOptions::default()),
            ),
            policy::RouteMatch::Prefix(prefix) if prefix == "/" => {
                (PathSpecifier::Prefix(prefix.clone()), None)
            }
            policy::RouteMatch::Prefix(prefix) => {
                (PathSpecifier::PathSeparatedPrefix(prefix.clone()), None)
            }
        };
        RouteMatch {
            path_specifier: Some(path),
            grpc,
            headers,
            ..RouteMatch::default()
        }
    }
}

/// Makes each of the weighted clusters stamp its tier, also for a caller that may see the reason:
/// the filter knew only the nearest.
fn label(to: &mut ClusterSpecifier, tiers: impl Iterator<Item = Tier>) {
    let ClusterSpecifier::WeightedClusters(weighted) = to else {
        return;
    };
    for (cluster, tier) in weighted.clusters.iter_mut().zip(tiers) {
        let reason = Reason::of_tier(tier).as_str();
        cluster.request_headers_to_add = vec![
            set(headers::TIER, tier.as_str()),
            set(headers::DECISION, reason),
            replace(headers::EXPLAIN, reason),
        ];
    }
}

pub(super) fn specifier(mut shares: Vec<(String, u32)>) -> ClusterSpecifier {
    if shares.len() == 1
        && let Some((name, _)) = shares.pop()
    {
        return ClusterSpecifier::Cluster(name);
    }
    let clusters = shares.into_iter().map(|(name, weight)| ClusterWeight {
        name,
        weight: uint32(weight),
        ..ClusterWeight::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: clusters.collect(),
        ..WeightedCluster::default()
    })
}
