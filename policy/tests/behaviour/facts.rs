//! The facts in a request's headers.

use policy::{
    Class, Explain, Facts, Home, KeySource, Place, Policy, Rules, Service, shard::key_digest,
};

use crate::support::{self, Request, always, grpc, prefix, request, service};

fn shop() -> Policy {
    support::policy(vec![service(
        "orders",
        vec![
            prefix("*", "/orders"),
            always(Class::Read, prefix("*", "/graphql")),
            always(Class::Write, prefix("*", "/export")),
            grpc("*", "shop.v1.Orders"),
        ],
    )])
}

fn facts(policy: &Policy, request: &Request<&str>) -> Facts {
    Facts::gather(policy, request)
}

#[test]
fn methods_and_routes_say_what_is_a_write() {
    const GRPC: [(&str, &str); 1] = [("content-type", "application/grpc")];
    use Class::{Read, Write};
    for (line, more, expected) in [
        ("GET /orders", &[][..], Read),
        ("HEAD /orders", &[], Read),
        ("OPTIONS /orders", &[], Read),
        ("TRACE /orders", &[], Read),
        ("POST /orders", &[], Write),
        ("PUT /orders", &[], Write),
        ("PATCH /orders", &[], Write),
        ("DELETE /orders", &[], Write),
        ("CONNECT /orders", &[], Write),
        // Unknown methods write, and methods are case-sensitive.
        ("PROPFIND /orders", &[], Write),
        ("get /orders", &[], Write),
        (" /orders", &[], Write),
        (
            "GET /orders",
            &[(":method", "GET"), (":method", "POST")],
            Write,
        ),
        // The route's class rule takes precedence.
        ("POST /graphql", &[], Read),
        ("GET /export", &[], Write),
        ("POST /shop.v1.Orders/Get", &GRPC, Read),
        ("POST /shop.v1.Orders/List?x", &GRPC, Read),
        ("POST /shop.v1.Orders/Put", &GRPC, Write),
        ("POST /shop.v1.Orders/get", &GRPC, Write),
        ("POST /shop.v1.Orders/Get/", &GRPC, Write),
        ("POST /shop.v1.Orders/", &GRPC, Write),
        // `ByMethod` looks at the method only: a route that switches the filter off checks nothing
        // else.
        ("GET /orders", &GRPC, Read),
        // Without a route there still is a class, for logs.
        ("GET /elsewhere", &[], Read),
    ] {
        let class = facts(&shop(), &request(line, more)).class;
        assert_eq!(class, expected, "{line} {more:?}");
    }
}

#[test]
fn without_rules_the_method_alone_counts() {
    for (line, expected) in [
        ("GET /graphql", Class::Read),
        ("POST /graphql", Class::Write),
    ] {
        let facts = facts(
            &Policy::Fallback,
            &request(line, &[("x-region-id", "sh-b")]),
        );
        assert_eq!((facts.class, facts.service), (expected, None), "{line}");
    }
}

#[test]
fn content_types_tell_grpc() {
    for (content_type, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc+json; charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/grpc-web+proto", false),
        ("application/json", false),
        ("", false),
    ] {
        let request = request("POST /orders", &[("content-type", content_type)]);
        assert_eq!(facts(&shop(), &request).grpc, expected, "{content_type:?}");
    }
    assert!(!facts(&shop(), &request("POST /orders", &[])).grpc);
}

#[test]
fn a_home_is_a_zone_or_a_region_said_once() {
    let topology = support::topology();
    let zone = Home::Zone(support::zone(&topology, "bj-c"));
    let Some(Place::Region(beijing)) = topology.place(b"beijing") else {
        panic!("beijing is a region");
    };
    for (values, expected) in [
        (&[][..], Home::Missing),
        (&[""], Home::Missing),
        (&["bj-c"], zone),
        (&["beijing"], Home::Region(beijing)),
        (&["mars"], Home::Unknown),
        (&["BJ-C"], Home::Unknown),
        (&[" bj-c"], Home::Unknown),
        (&["bj-c,bj-c"], Home::Unknown),
        (&["b\u{e9}ijing"], Home::Unknown),
        // Another reader may use either of two copies, even if they agree.
        (&["bj-c", "bj-c"], Home::Unknown),
    ] {
        let headers: Vec<_> = values.iter().map(|value| ("x-region-id", *value)).collect();
        let home = facts(&shop(), &request("GET /orders", &headers)).home;
        assert_eq!(home, expected, "{values:?}");
    }
}

#[test]
fn a_trace_id_counts_when_it_stands_once() {
    for (values, expected) in [
        (&[][..], false),
        (&[""], false),
        (&["t-1"], true),
        (&["t-1", "t-2"], false),
    ] {
        let headers: Vec<_> = values.iter().map(|value| ("x-trace-id", *value)).collect();
        let traced = facts(&shop(), &request("GET /orders", &headers)).traced;
        assert_eq!(traced, expected, "{values:?}");
    }
}

#[test]
fn affinity_keys_come_from_where_the_service_says() {
    let header = || KeySource::Header("x-user".into());
    let cookie = || KeySource::Cookie("user".into());
    for (source, path, more, expected) in [
        (None, "GET /orders/42", &[("x-user", "42")][..], None),
        (
            Some(header()),
            "GET /orders",
            &[("x-user", "42")],
            Some("42"),
        ),
        (Some(header()), "GET /orders", &[("x-user", "")], None),
        (
            Some(header()),
            "GET /orders",
            &[("x-user", "4"), ("x-user", "2")],
            None,
        ),
        (Some(header()), "GET /orders", &[], None),
        (
            Some(cookie()),
            "GET /orders",
            &[("cookie", "a=1; user=42")],
            Some("42"),
        ),
        (
            Some(cookie()),
            "GET /orders",
            &[("cookie", "user=a=b;c=d")],
            Some("a=b"),
        ),
        (
            Some(cookie()),
            "GET /orders",
            &[("cookie", "superuser=1; users=2")],
            None,
        ),
        (Some(cookie()), "GET /orders", &[("cookie", "user=")], None),
        (Some(cookie()), "GET /orders", &[("cookie", "user")], None),
        (
            Some(KeySource::PathSegment(1)),
            "GET /orders/42",
            &[],
            Some("42"),
        ),
        (
            Some(KeySource::PathSegment(1)),
            "GET /orders/42/items?n=1",
            &[],
            Some("42"),
        ),
        (
            Some(KeySource::PathSegment(0)),
            "GET /orders?n=1",
            &[],
            Some("orders"),
        ),
        (Some(KeySource::PathSegment(1)), "GET /orders", &[], None),
        (
            Some(KeySource::PathSegment(1)),
            "GET /orders//42",
            &[],
            None,
        ),
        (
            Some(KeySource::PathSegment(255)),
            "GET /orders/42",
            &[],
            None,
        ),
    ] {
        let orders = Service {
            zone_affinity: source.clone(),
            ..service("orders", vec![prefix("*", "/orders")])
        };
        let found = facts(&support::policy(vec![orders]), &request(path, more)).key_digest;
        let expected = expected.map(|key| key_digest(key.as_bytes()));
        assert_eq!(found, expected, "{source:?} of {path} {more:?}");
    }
}

#[test]
fn only_the_token_earns_an_explanation() {
    let explain = Explain {
        header: "x-ask".into(),
        token: "sesame".into(),
    };
    let topology = support::topology();
    let viewer = support::zone(&topology, "sh-a");
    let rules = Rules::new(topology, viewer, vec![], Some(explain)).expect("valid rules");
    let asking = Policy::Serving(Box::new(rules));
    for (policy, values, expected) in [
        (&asking, &["sesame"][..], true),
        (&asking, &["Sesame"], false),
        (&asking, &["sesam"], false),
        (&asking, &[""], false),
        (&asking, &["sesame", "sesame"], false),
        (&asking, &[], false),
        // Without a permitted header no caller may.
        (&shop(), &["sesame"], false),
        (&Policy::Fallback, &["sesame"], false),
    ] {
        let headers: Vec<_> = values.iter().map(|value| ("x-ask", *value)).collect();
        let explain = facts(policy, &request("GET /", &headers)).explain;
        assert_eq!(explain, expected, "{values:?}");
    }
}
