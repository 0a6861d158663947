//! A route table with Envoy's matching, as far as needed to find the destination of a request.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::{
    config::{
        core::v3::HeaderValueOption,
        route::v3::{
            FilterConfig, HeaderMatcher, Route, RouteConfiguration,
            header_matcher::HeaderMatchSpecifier, route::Action, route_action::ClusterSpecifier,
            route_match::PathSpecifier,
        },
    },
    r#type::{matcher::v3::string_matcher::MatchPattern, v3::fractional_percent::DenominatorType},
};
use policy::{Headers, Presented, Rules, Service, ServiceId};
use prost::Message;
use xds::resource::Resource;

/// The headers of a request; copies of one header are joined by commas, as in Envoy's matchers.
#[derive(Clone, Debug)]
pub(crate) struct Request(BTreeMap<String, Vec<String>>);

impl Request {
    pub(crate) fn new(headers: Vec<(&str, String)>) -> Request {
        let mut request = Request(BTreeMap::new());
        for (name, value) in headers {
            request.0.entry(name.to_owned()).or_default().push(value);
        }
        request
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), vec![value.to_owned()]);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(crate) fn value(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|values| values.join(","))
    }

    fn text(&self, name: &str) -> String {
        self.value(name).unwrap_or_default()
    }

    fn is_grpc(&self) -> bool {
        let rest = self.text("content-type");
        let rest = rest.strip_prefix("application/grpc");
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
    }
}

impl Headers for Request {
    fn get(&self, name: &str) -> Presented<'_> {
        match self.0.get(name).map(Vec::as_slice) {
            None | Some([]) => Presented::Absent,
            Some([value]) => Presented::Once(value.as_bytes()),
            Some(_) => Presented::Repeated,
        }
    }
}

pub(crate) fn read(resource: &Resource) -> RouteConfiguration {
    RouteConfiguration::decode(resource.message()).expect("a route table")
}

/// The hosts of [`Rules::hosts`], in the order of a table.
pub(crate) fn hosts(
    rules: &Rules,
) -> impl Iterator<
    Item = (
        &str,
        impl Iterator<Item = (ServiceId, &Service, &policy::Route)>,
    ),
> {
    let mut hosts: Vec<_> = rules.hosts().collect();
    hosts.sort_by_key(|(host, _)| *host);
    hosts.into_iter()
}

/// The first route that matches the request, in the most specific virtual host.
pub(crate) fn find<'t>(table: &'t RouteConfiguration, request: &Request) -> Option<&'t Route> {
    assert!(table.ignore_port_in_host_matching);
    let authority = request.text(":authority").to_ascii_lowercase();
    let host = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => &authority,
    };
    let rank = |domain: &str| match domain.strip_prefix('*') {
        None => (domain == host).then_some(usize::MAX),
        Some("") => Some(0),
        Some(suffix) => {
            (host.len() > suffix.len() && host.ends_with(suffix)).then_some(suffix.len())
        }
    };
    let hosts = table.virtual_hosts.iter();
    let (_, host) = hosts
        .filter_map(|host| Some((rank(&host.domains[0])?, host)))
        .max_by_key(|(rank, _)| *rank)?;
    host.routes.iter().find(|route| takes(route, request))
}

fn takes(route: &Route, request: &Request) -> bool {
    let matches = route.r#match.as_ref().expect("a match");
    let path = request.text(":path");
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path_ok = match matches.path_specifier.as_ref().expect("a path") {
        PathSpecifier::Prefix(prefix) => path.starts_with(prefix),
        PathSpecifier::PathSeparatedPrefix(prefix) => path
            .strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        other => panic!("not used: {other:?}"),
    };
    path_ok
        && (matches.grpc.is_none() || request.is_grpc())
        && matches
            .headers
            .iter()
            .all(|matcher| agrees(matcher, request))
}

fn agrees(matcher: &HeaderMatcher, request: &Request) -> bool {
    // Envoy compares each copy of a header separately (measured on 1.40).
    let mut copies = request.0.get(&matcher.name).into_iter().flatten();
    if let Some(least) = least(matcher) {
        let in_range = |value: &String| value.parse().is_ok_and(|value: i64| value >= least);
        return copies.any(in_range);
    }
    let agrees = match exact(matcher) {
        Some(expected) => copies.any(|value| value == expected),
        None => copies.next().is_some(),
    };
    agrees != matcher.invert_match
}

/// The least number that a matcher requires.
fn least(matcher: &HeaderMatcher) -> Option<i64> {
    match matcher.header_match_specifier.as_ref()? {
        HeaderMatchSpecifier::RangeMatch(range) => {
            assert_eq!((range.end, matcher.invert_match), (i64::MAX, false));
            Some(range.start)
        }
        _ => None,
    }
}

/// The value that a matcher requires; none if presence suffices.
fn exact(matcher: &HeaderMatcher) -> Option<&str> {
    match matcher.header_match_specifier.as_ref().expect("a matcher") {
        HeaderMatchSpecifier::PresentMatch(true) => None,
        HeaderMatchSpecifier::StringMatch(text) => match text.match_pattern.as_ref() {
            Some(MatchPattern::Exact(value)) => Some(value),
            other => panic!("not used: {other:?}"),
        },
        other => panic!("not used: {other:?}"),
    }
}

/// The destinations of a route, with shares of a thousand; empty for a direct response.
pub(crate) fn targets(route: &Route, request: &Request) -> Vec<(String, u32)> {
    let Some(Action::Route(action)) = &route.action else {
        return Vec::new();
    };
    match action.cluster_specifier.as_ref().expect("a cluster") {
        ClusterSpecifier::Cluster(name) => vec![(name.clone(), 1000)],
        ClusterSpecifier::ClusterHeader(header) => vec![(request.text(header), 1000)],
        ClusterSpecifier::WeightedClusters(weighted) => {
            let shares = weighted.clusters.iter();
            shares
                .map(|share| (share.name.clone(), share.weight.map_or(0, |w| w.value)))
                .collect()
        }
        other => panic!("not used: {other:?}"),
    }
}

/// The request as an upstream of this route of the table sees it.
pub(crate) fn forwarded(table: &RouteConfiguration, route: &Route, request: &Request) -> Request {
    let mut request = request.clone();
    for name in &route.request_headers_to_remove {
        request.0.remove(name);
    }
    // Envoy begins with the most specific level.
    assert!(!table.most_specific_header_mutations_wins);
    add(&mut request, &route.request_headers_to_add);
    add(&mut request, &table.request_headers_to_add);
    request
}

/// The same for each of the route's weighted clusters, by its name.
pub(crate) fn forwarded_to(
    table: &RouteConfiguration,
    route: &Route,
    request: &Request,
) -> Vec<(String, Request)> {
    let Some(Action::Route(action)) = &route.action else {
        return Vec::new();
    };
    let Some(ClusterSpecifier::WeightedClusters(weighted)) = &action.cluster_specifier else {
        return Vec::new();
    };
    let clusters = weighted.clusters.iter().map(|cluster| {
        let mut request = request.clone();
        add(&mut request, &cluster.request_headers_to_add);
        (cluster.name.clone(), forwarded(table, route, &request))
    });
    clusters.collect()
}

fn add(request: &mut Request, headers: &[HeaderValueOption]) {
    for HeaderValueOption {
        header,
        append_action,
        ..
    } in headers
    {
        let header = header.as_ref().expect("a header");
        let is_there = request.value(&header.key).is_some();
        let sets = match *append_action {
            1 => !is_there, // ADD_IF_ABSENT
            2 => true,      // OVERWRITE_IF_EXISTS_OR_ADD
            3 => is_there,  // OVERWRITE_IF_EXISTS
            other => panic!("not used: {other}"),
        };
        if sets {
            request.set(&header.key, &header.value);
        }
    }
}

pub(crate) fn filter_is_off(route: &Route) -> bool {
    route.typed_per_filter_config.values().any(|any| {
        let config = FilterConfig::decode(&any.value[..]).expect("a FilterConfig");
        config.disabled
    })
}

/// A route's conditions on a request besides its host.
pub(crate) fn conditions(route: &Route) -> Vec<String> {
    let matches = route.r#match.as_ref().expect("a match");
    matches
        .headers
        .iter()
        .map(|matcher| {
            if let Some(least) = least(matcher) {
                return format!("{}>={least}", matcher.name);
            }
            match (exact(matcher), matcher.invert_match) {
                (Some(value), false) => format!("{}={value}", matcher.name),
                (None, false) => matcher.name.clone(),
                (None, true) => format!("!{}", matcher.name),
                (Some(value), true) => format!("{}!={value}", matcher.name),
            }
        })
        .chain(percent(route).map(|percent| format!("{percent} %")))
        .collect()
}

/// The share of the matching requests that a route handles, if not all.
fn percent(route: &Route) -> Option<f64> {
    let fraction = route.r#match.as_ref()?.runtime_fraction.as_ref()?;
    let share = fraction.default_value.as_ref()?;
    assert_eq!(share.denominator, i32::from(DenominatorType::Million));
    Some(f64::from(share.numerator) / 10_000.0)
}

/// The path of a route, prefixed with `grpc` if it matches only gRPC.
pub(crate) fn path(route: &Route) -> String {
    let matches = route.r#match.as_ref().expect("a match");
    let grpc = if matches.grpc.is_some() { "grpc " } else { "" };
    match matches.path_specifier.as_ref().expect("a path") {
        PathSpecifier::Prefix(path) | PathSpecifier::PathSeparatedPrefix(path) => {
            format!("{grpc}{path}")
        }
        other => panic!("not used: {other:?}"),
    }
}
