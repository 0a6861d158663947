//! The route tables of gRPC clients.
//!
//! There is no filter, so the table itself decides as far as it can, for each route of the
//! configuration by the home that `x-region-id` names. It rejects requests that it cannot decide
//! like the policy: the writes of fenced services, since no client holds a grant, and services
//! whose requests are kept in place by a key that gRPC cannot read. Every route ends with a row for
//! its whole path, so that no request falls through to a shorter path.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::route::v3::{
        HeaderMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch,
        VirtualHost, header_matcher::HeaderMatchSpecifier, route::Action,
        route_action::ClusterSpecifier, route_match::PathSpecifier,
    },
    r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};
use policy::{
    Class, ClassRule, KeySource, Plan, RegionRule, Rules, Service, ServiceId, TraceRule,
    WEIGHT_TOTAL, ZoneId, headers,
};
use prost::{Message, Name};

use super::{
    super::{
        forward::{grpc_duration, hash_policy},
        hosts::{self, Host, Translation, VirtualHosts},
        place::Place,
        routes::{Resiliences, fenced::fencing, matching::is, weighted_clusters::specifier},
        uint32,
    },
    REFUSED, by_name, table_name,
};
use crate::config::{Resilience, Strategy};
use xds::resource::{Piece, Resource, Resources};

/// The route tables of `rules`' local zone, one for each host pattern.
pub fn routes(rules: &Rules, resiliences: Resiliences<'_>) -> Resources {
    tables(&virtual_hosts(rules, resiliences))
}

/// The virtual hosts of the tables.
pub fn virtual_hosts(rules: &Rules, resiliences: Resiliences<'_>) -> VirtualHosts {
    hosts::of_rules(rules, &ForClients { rules, resiliences })
}

/// The virtual hosts after new plans of the services in `replanned`; returns the changed hosts.
pub fn replan_virtual_hosts<'h>(
    hosts: &'h mut VirtualHosts,
    rules: &Rules,
    replanned: &[ServiceId],
    resiliences: Resiliences<'_>,
) -> Vec<(&'h str, &'h Host)> {
    let translation = ForClients { rules, resiliences };
    hosts::replan(hosts, rules, replanned, &translation)
}

/// The route tables of these virtual hosts, one for each.
pub fn tables(hosts: &VirtualHosts) -> Resources {
    by_name(hosts.iter().map(|(name, host)| table(name, host)))
}

/// The route table of one virtual host, whose bytes it shares.
pub fn table(name: &str, host: &Host) -> Arc<Resource> {
    let name = table_name(name);
    let table = RouteConfiguration {
        name: name.clone(),
        ..RouteConfiguration::default()
    };
    let table = Piece::of(table.encode_to_vec());
    let pieces = [&table].into_iter().chain(host.entry());
    let type_url = RouteConfiguration::type_url();
    Arc::new(Resource::of_pieces(&name, &type_url, pieces))
}

struct ForClients<'r> {
    rules: &'r Rules,
    resiliences: Resiliences<'r>,
}

impl Translation for ForClients<'_> {
    fn before(&self, host: &str) -> VirtualHost {
        VirtualHost {
            name: host.to_owned(),
            // The client chose by the name of the listener.
            domains: vec!["*".to_owned()],
            ..VirtualHost::default()
        }
    }

    fn behind(&self) -> VirtualHost {
        VirtualHost::default()
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

struct Builder<'r> {
    rules: &'r Rules,
    service: &'r Service,
    route: &'r policy::Route,
    resilience: Resilience,
}

impl Builder<'_> {
    fn routes(&self) -> Vec<Route> {
        let paths = self.paths().into_iter();
        paths
            .flat_map(|(path, class)| match self.is_served(class) {
                true => self.by_home(&path, class),
                false => vec![refused(&path)],
            })
            .collect()
    }

    /// The paths that the route matches, by class: methods that read first.
    fn paths(&self) -> Vec<(PathSpecifier, Class)> {
        // For HTTP every call is a POST.
        let class = match &self.route.class {
            ClassRule::Always(class) => *class,
            ClassRule::ByMethod | ClassRule::GrpcReads(_) => Class::Write,
        };
        match &self.route.matches {
            policy::RouteMatch::Grpc(name) => {
                let methods: &[String] = match &self.route.class {
                    ClassRule::GrpcReads(methods) => methods,
                    _ => &[],
                };
                let read = |method| {
                    (
                        PathSpecifier::Path(format!("/{name}/{method}")),
                        Class::Read,
                    )
                };
                let all = (PathSpecifier::Prefix(format!("/{name}/")), class);
                methods.iter().map(read).chain([all]).collect()
            }
            policy::RouteMatch::Prefix(prefix) if prefix == "/" => {
                vec![(PathSpecifier::Prefix(prefix.clone()), class)]
            }
            // gRPC has no prefix that ends at a segment, and skips routes with a prefix that no
            // method's path could have.
            policy::RouteMatch::Prefix(prefix) => {
                let regex = format!("{}(?:[/?#].*)?", literally(prefix));
                vec![(PathSpecifier::SafeRegex(matching(regex)), class)]
            }
        }
    }

    /// Whether a client can follow the policy without a filter.
    fn is_served(&self, class: Class) -> bool {
        let fenced = class == Class::Write && fencing(self.rules, self.service).is_some();
        let keyed = match &self.resilience.strategy {
            Strategy::Weighted => self.service.zone_affinity.is_some(),
            // gRPC hashes a header, and does not support sessions.
            Strategy::RegionFirstHash { key, sessions } => {
                sessions.is_some() || !matches!(key, KeySource::Header(_))
            }
        };
        !fenced && !keyed
    }

    fn by_home(&self, path: &PathSpecifier, class: Class) -> Vec<Route> {
        let (topology, viewer) = (self.rules.topology(), self.rules.viewer());
        let names = |name| vec![is(headers::REGION_ID, name)];
        let local = |rule| match rule {
            RegionRule::Local => Some(viewer),
            RegionRule::Reject => None,
        };
        let (missing, unknown) = (
            local(self.service.region_missing),
            local(self.service.region_unknown),
        );
        let zones = topology
            .zones()
            .map(|zone| (names(topology.zone_name(zone)), Some(zone)));
        let regions = topology.regions().map(|region| {
            let home = topology.home_in(region, viewer).or(unknown);
            (names(topology.region_name(region)), home)
        });
        let others = (missing != unknown).then(|| (vec![some(headers::REGION_ID)], unknown));
        let rows = zones.chain(regions).chain(others);
        let demands_trace = self.service.trace_missing == TraceRule::Reject;
        let trace = demands_trace.then(|| some(headers::TRACE_ID));
        let planned = rows.chain([(Vec::new(), missing)]).map(|(home_is, home)| {
            let matchers = home_is.into_iter().chain(trace.clone()).collect();
            match home {
                Some(home) => self.planned(path, matchers, home, class),
                None => refused_if(path, matchers),
            }
        });
        planned
            .chain(demands_trace.then(|| refused(path)))
            .collect()
    }

    fn planned(
        &self,
        path: &PathSpecifier,
        matchers: Vec<HeaderMatcher>,
        home: ZoneId,
        class: Class,
    ) -> Route {
        let Plan::Open { targets, shed, .. } = self.service.plans.get(home, class) else {
            return refused_if(path, matchers);
        };
        let topology = self.rules.topology();
        let cluster = |zone| {
            Place::of(topology, &self.resilience.strategy, zone)
                .cluster(topology, &self.service.name)
        };
        let shares: Vec<(String, u32)> = match self.resilience.strategy {
            Strategy::Weighted => (targets.iter())
                .map(|target| (cluster(target.zone), target.weight))
                .collect(),
            // All zones of a region form one ring.
            Strategy::RegionFirstHash { .. } => {
                let nearest = targets.iter().map(|target| target.zone);
                let nearest = nearest.min_by_key(|zone| topology.tier(home, *zone));
                vec![(cluster(nearest.unwrap_or(home)), WEIGHT_TOTAL)]
            }
        };
        let to = specifier(match *shed {
            0 => shares,
            shed => (shares.into_iter())
                .map(|(name, weight)| (name, weight * (WEIGHT_TOTAL - shed)))
                .chain([(REFUSED.to_owned(), shed * WEIGHT_TOTAL)])
                .collect(),
        });
        let options = self.resilience.routes.of(self.route);
        let action = RouteAction {
            cluster_specifier: Some(to),
            // Clients end calls at their own deadlines; this bounds them.
            max_stream_duration: options.shortest_ms().map(|_| grpc_duration(options)),
            hash_policy: hash_policy(&self.resilience.strategy).into_iter().collect(),
            // A write that was sent is never retried.
            retry_policy: (class == Class::Read).then(|| RetryPolicy {
                retry_on: "unavailable".to_owned(),
                num_retries: uint32(2),
                ..RetryPolicy::default()
            }),
            ..RouteAction::default()
        };
        route(path, matchers, action)
    }
}

fn refused(path: &PathSpecifier) -> Route {
    refused_if(path, Vec::new())
}

fn refused_if(path: &PathSpecifier, matchers: Vec<HeaderMatcher>) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(REFUSED.to_owned())),
        ..RouteAction::default()
    };
    route(path, matchers, action)
}

fn route(path: &PathSpecifier, headers: Vec<HeaderMatcher>, action: RouteAction) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(path.clone()),
            headers,
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        ..Route::default()
    }
}

/// The header exists and is not empty.
fn some(name: &str) -> HeaderMatcher {
    let pattern = MatchPattern::SafeRegex(matching(".+".to_owned()));
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(pattern),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    }
}

fn matching(regex: String) -> RegexMatcher {
    RegexMatcher {
        regex,
        ..RegexMatcher::default()
    }
}

/// A regular expression (RE2) for this text.
fn literally(text: &str) -> String {
    let escaped = |c: char| {
        let plain = c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-') || !c.is_ascii();
        (!plain).then_some('\\').into_iter().chain([c])
    };
    text.chars().flat_map(escaped).collect()
}
