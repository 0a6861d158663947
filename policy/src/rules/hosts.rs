//! Host patterns and their routes, indexed in the order in which they are tried.

use alloc::{
    borrow::{Cow, ToOwned},
    collections::BTreeMap,
    format,
    string::String,
    vec::Vec,
};
use core::cmp::Reverse;

use super::InvalidRules;
use crate::service::{Route, RouteMatch, Service, ServiceId};

impl Route {
    /// Whether this route matches `path`, which has no query.
    pub(super) fn takes(&self, path: &[u8], grpc: bool) -> bool {
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
    pub(super) fn order(&self) -> (Reverse<usize>, &RouteMatch) {
        let length = match &self.matches {
            RouteMatch::Grpc(name) => name.len() + 1,
            RouteMatch::Prefix(prefix) => prefix.len(),
        };
        (Reverse(length), &self.matches)
    }
}

/// A route by its position in a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RouteAt {
    pub(super) service: ServiceId,
    pub(super) route: usize,
}

/// Host patterns, each with its routes in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Default)]
pub(super) struct Hosts {
    exact: BTreeMap<String, Vec<RouteAt>>,
    /// Patterns `*.domain`, in their [order](wildcard_order): the longest first.
    wildcards: Vec<(String, Vec<RouteAt>)>,
    any: Vec<RouteAt>,
}

impl Hosts {
    pub(super) fn index(services: &[Service]) -> Result<Hosts, InvalidRules> {
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
    pub(super) fn pattern(&self, host: &str) -> &[RouteAt] {
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

    pub(super) fn routes_for(&self, authority: &[u8]) -> &[RouteAt] {
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

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &[RouteAt])> {
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
