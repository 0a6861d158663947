//! The service of a request, and the rules that are rejected.

use std::collections::BTreeMap;

use policy::{
    Class, ClassRule, Explain, InvalidRules, KeySource, Plans, Policy, Route, Rules, Service,
    ServiceId,
};
use proptest::prelude::*;

use crate::{
    any,
    support::{self, grpc, prefix, service},
};

const GRPC: bool = true;

#[track_caller]
fn check(services: &[(&str, Route)], requests: &[(&str, &str, bool, &str)]) {
    let services = services
        .iter()
        .map(|(name, route)| service(name, vec![route.clone()]))
        .collect();
    let Policy::Serving(rules) = support::policy(services) else {
        unreachable!("a serving policy");
    };
    for (authority, path, grpc, expected) in requests {
        let taken = rules.route(authority.as_bytes(), path.as_bytes(), *grpc);
        let taken = taken.map_or("none", |(_, service, _)| service.name.as_str());
        assert_eq!(taken, *expected, "{authority} {path}");
    }
}

#[test]
fn the_most_specific_host_decides_alone() {
    check(
        &[
            ("any", prefix("*", "/")),
            ("wide", prefix("*.example", "/")),
            ("narrow", prefix("*.shop.example", "/")),
            ("exact", prefix("a.shop.example", "/orders")),
        ],
        &[
            ("a.shop.example", "/orders", false, "exact"),
            // As in Envoy: no fallback to a wider host if the narrow one has no route.
            ("a.shop.example", "/users", false, "none"),
            ("b.shop.example", "/", false, "narrow"),
            ("x.b.shop.example", "/", false, "narrow"),
            ("shop.example", "/", false, "wide"),
            // A wildcard matches at least one character.
            (".example", "/", false, "any"),
            ("example", "/", false, "any"),
            ("", "/", false, "any"),
            ("\u{fc}.org", "/", false, "any"),
            ("B.Shop.EXAMPLE", "/", false, "narrow"),
        ],
    );
}

#[test]
fn ports_are_no_part_of_a_host() {
    check(
        &[
            ("shop", prefix("shop.example", "/")),
            ("wide", prefix("*.example", "/")),
            ("any", prefix("*", "/")),
        ],
        &[
            ("shop.example:8080", "/", false, "shop"),
            ("shop.example:", "/", false, "shop"),
            // Envoy cuts at the last colon, even without a number behind it. If this were another
            // service here, the caller could choose the route that the filter assumes.
            ("shop.example:https", "/", false, "shop"),
            ("shop.example:1:2", "/", false, "any"),
            // Behind the last colon a bracket closes an IPv6 address.
            ("[a:b].example", "/", false, "wide"),
            ("[::1]", "/", false, "any"),
            ("[::1]:8080", "/", false, "any"),
        ],
    );
}

#[test]
fn the_longest_path_wins_and_ends_at_a_segment() {
    check(
        &[
            ("root", prefix("*", "/")),
            ("orders", prefix("*", "/orders")),
            ("export", prefix("*", "/orders/export")),
        ],
        &[
            ("h", "/orders", false, "orders"),
            ("h", "/orders/7", false, "orders"),
            ("h", "/orders?from=/orders/export", false, "orders"),
            ("h", "/orders#/export", false, "orders"),
            ("h", "/orders/export?x", false, "export"),
            ("h", "/orders/exports", false, "orders"),
            ("h", "/orders7", false, "root"),
            ("h", "/Orders", false, "root"),
            ("h", "/", false, "root"),
            ("h", "", false, "none"),
            ("h", "*", false, "none"),
        ],
    );
}

#[test]
fn grpc_routes_take_grpc_requests_before_a_prefix_of_the_same_length() {
    check(
        &[
            ("path", prefix("*", "/shop.v1.Orders")),
            ("method", prefix("*", "/shop.v1.Orders/Export")),
            ("grpc", grpc("*", "shop.v1.Orders")),
        ],
        &[
            ("h", "/shop.v1.Orders/Get", GRPC, "grpc"),
            ("h", "/shop.v1.Orders/Get", false, "path"),
            ("h", "/shop.v1.Orders/Export", GRPC, "method"),
            ("h", "/shop.v1.Orders", GRPC, "path"),
            ("h", "/shop.v1.OrdersX/Get", GRPC, "none"),
        ],
    );
}

#[track_caller]
fn refused(services: Vec<Service>, explain: Option<(&str, &str)>, expected: &str) {
    let topology = support::topology();
    let viewer = support::zone(&topology, "sh-a");
    let explain = explain.map(|(header, token)| Explain {
        header: header.into(),
        token: token.into(),
    });
    let error: InvalidRules = Rules::new(topology, viewer, services, explain).expect_err(expected);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn bad_rules_are_refused_with_what_to_change() {
    let one = |route| vec![service("s", vec![route])];
    let bad_prefix = |at: &str| {
        let message = format!(
            "service \"s\": prefix {at:?}: begin with '/', without '?', '#' or a '/' at the end"
        );
        refused(one(prefix("*", at)), None, &message);
    };
    ["", "orders", "/orders/", "/orders?x", "/a#b", "//"]
        .into_iter()
        .for_each(bad_prefix);
    let bad_host = |host: &str| {
        let message = format!(
            "service \"s\": host {host:?}: use \"*\", a name, or \"*.\" and a domain; lower case, no port"
        );
        refused(one(prefix(host, "/")), None, &message);
    };
    [
        "", "*.", "*shop", "shop.*", "Shop", "shop:80", ".shop", "shop.", "*.*", "[::1]",
    ]
    .into_iter()
    .for_each(bad_host);
    let bad_grpc = |name: &str| {
        let message = format!(
            "service \"s\": gRPC service {name:?}: use the full name, like package.Service"
        );
        refused(one(grpc("*", name)), None, &message);
    };
    ["", "/a.B", "a.B/Get"].into_iter().for_each(bad_grpc);
    let bad_header = |header: &str| {
        let message = format!(
            "header {header:?}: use lower case letters, digits and '-', and no name that Tidegate \
            or HTTP itself owns"
        );
        refused(vec![], Some((header, "t")), &message);
        let keyed = Service {
            zone_affinity: Some(KeySource::Header(header.into())),
            ..service("s", vec![prefix("*", "/")])
        };
        refused(vec![keyed], None, &message);
    };
    [
        "",
        "X-User",
        ":path",
        "x-tidegate-home",
        "x-envoy-upstream-alt-route",
    ]
    .into_iter()
    .for_each(bad_header);

    refused(
        vec![],
        Some(("x-ask", "")),
        "the explain token is empty: every caller could see decisions",
    );
    refused(
        vec![service("S", vec![prefix("*", "/")])],
        None,
        "service \"S\": name \"S\": use 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit",
    );
    refused(
        vec![
            service("s", vec![prefix("*", "/a")]),
            service("s", vec![prefix("*", "/b")]),
        ],
        None,
        "service \"s\" stands twice",
    );
    refused(
        vec![service("s", vec![])],
        None,
        "service \"s\": it has no routes, so no request can reach it",
    );
    refused(
        vec![
            service("s", vec![prefix("h", "/a")]),
            service("t", vec![prefix("h", "/a")]),
        ],
        None,
        "services \"s\" and \"t\" claim the same route: h /a",
    );
    refused(
        one(Route {
            class: ClassRule::GrpcReads(vec![]),
            ..prefix("*", "/")
        }),
        None,
        "service \"s\": read methods belong to a gRPC route, not to a path prefix",
    );
}

#[test]
fn ids_of_other_rules_find_nothing() {
    let Policy::Serving(rules) = support::policy(vec![service("s", vec![prefix("*", "/")])]) else {
        unreachable!("a serving policy");
    };
    let stranger = policy::ServiceId::new(7);
    assert_eq!(rules.service(stranger), None);
    assert_eq!(
        rules.cluster(stranger, rules.viewer(), policy::Class::Read),
        None
    );
    assert_eq!(
        Plans::default().get(rules.viewer(), Class::Read).targets(),
        []
    );
}

proptest! {
    #[test]
    fn a_service_finds_its_routes_among_those_of_their_hosts(rules in any::rules()) {
        let hosts: BTreeMap<&str, Vec<_>> = rules
            .hosts()
            .map(|(host, routes)| (host, routes.map(|(id, _, route)| (id, route)).collect()))
            .collect();
        let mut found = 0;
        for id in (0..rules.services().len()).map(ServiceId::new) {
            for (place, service, route) in rules.placed_routes(id) {
                prop_assert_eq!(rules.service(id), Some(service));
                prop_assert_eq!(hosts[&*route.host][place], (id, route));
                found += 1;
            }
        }
        prop_assert_eq!(found, hosts.values().map(Vec::len).sum::<usize>());
        prop_assert_eq!(rules.placed_routes(ServiceId::new(rules.services().len())).count(), 0);
    }
}
