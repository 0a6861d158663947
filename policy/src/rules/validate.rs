//! What rules can be: names, hosts, paths, keys.

use alloc::borrow::ToOwned;

use super::InvalidRules;
use crate::{
    headers,
    service::{ClassRule, KeySource, Route, RouteMatch, Service, Writes},
    topology::check_name,
};

pub(super) fn check_services(services: &[Service]) -> Result<(), InvalidRules> {
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

pub(super) fn check_header(name: &str) -> Result<(), InvalidRules> {
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
