//! The routes for one route of a service.

use std::collections::HashMap;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{DataSource, RuntimeFractionalPercent, data_source},
        route::v3::{
            DirectResponseAction, FilterConfig, HeaderMatcher, Route, RouteMatch,
            route::Action,
            route_action::ClusterSpecifier,
            route_match::{GrpcRouteMatchOptions, PathSpecifier},
        },
    },
    r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
};
use policy::{
    Class, Fencing, Plan, Reason, Refusal, Rules, Service, Target, Tier, WEIGHT_TOTAL, ZoneId,
    headers, refusal::PROBLEM_JSON,
};

use super::{
    super::{FILTER, forward, place::keeps_sessions},
    clusters::cluster_of,
    fenced,
    matching::{absent, add_if_absent, is, is_any_case, present, replace, set},
    weighted_clusters::{label, specifier},
};
use crate::config::{Resilience, Strategy};
use xds::resource::any;

/// In the access log, for requests that are not forwarded.
const NO_TIER: &str = "none";

/// The home that a route is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    Viewer,
    Foreign,
}

fn no_stamp() -> [HeaderMatcher; 2] {
    [absent(headers::CLASS), absent(headers::HOME)]
}

pub(super) struct Builder<'r> {
    pub(super) rules: &'r Rules,
    pub(super) service: &'r Service,
    pub(super) route: &'r policy::Route,
    pub(super) resilience: Resilience,
}

impl Builder<'_> {
    pub(super) fn routes(&self) -> Vec<Route> {
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

    pub(super) fn is_grpc(&self) -> bool {
        matches!(self.route.matches, policy::RouteMatch::Grpc(_))
    }

    pub(super) fn matching(&self, headers: Vec<HeaderMatcher>) -> RouteMatch {
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
