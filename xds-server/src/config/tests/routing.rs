//! Time-outs, upgrades and hosts of routes.

use super::*;

fn service(more: &str) -> Result<ServiceConfig, ConfigError> {
    let text = GOOD.replacen("    routes: [{prefix: /}]\n    weights: computed", more, 1);
    Config::parse("mesh.yaml", &text).map(|config| config.mesh.services[1].clone())
}

fn options(more: &str) -> Vec<RouteOptions> {
    let service = service(more).expect("a good service");
    let routes = service.routes.iter();
    routes
        .map(|route| service.resilience.routes.of(route))
        .collect()
}

#[test]
fn routes_say_more_than_their_service_and_inherit_the_rest() {
    let none = RouteOptions::default();
    assert_eq!((none.timeout_ms, none.idle_timeout_ms), (0, 0));
    assert_eq!(options("    routes: [{prefix: /}]"), [none]);
    let read = options(
        "    timeout_ms: 5000\n    idle_timeout_ms: 60000\n    routes:\n    - {prefix: /}\n    - {prefix: /poll, timeout_ms: 0, hedge_after_ms: 0}\n    - {prefix: /up, timeout_ms: 0, max_stream_duration_ms: 9}\n    - {host: a.example, prefix: /poll}",
    );
    let service = RouteOptions {
        timeout_ms: 5_000,
        idle_timeout_ms: 60_000,
        ..none
    };
    let poll = RouteOptions {
        timeout_ms: 0,
        hedge_after_ms: 0,
        ..service
    };
    let up = RouteOptions {
        timeout_ms: 0,
        max_stream_duration_ms: 9,
        ..service
    };
    assert_eq!(read, [service, poll, up, service]);
}

#[test]
fn bounds_that_envoy_would_ignore_or_refuse_are_refused() {
    for (more, expected) in [
        (
            "    routes: [{prefix: /}]\n    timeout_ms: 86400001",
            "15: services[1].timeout_ms: 86400001: 0 to 86400000 are possible; 0: no bound",
        ),
        (
            "    routes: [{prefix: /, idle_timeout_ms: 86400001}]",
            "14: services[1].routes[0].idle_timeout_ms: 86400001: 0 to 86400000 are possible; 0: no bound",
        ),
        (
            "    timeout_ms: 1\n    routes: [{prefix: /, max_stream_duration_ms: 1}]",
            "15: services[1].routes[0].timeout_ms: Envoy ignores it beside `max_stream_duration_ms`: set one of the two to 0, or leave it out",
        ),
        (
            "    routes: [{prefix: /}]\n    common_http_protocol_options: {idle_timeout_ms: 86400001}",
            "15: services[1].common_http_protocol_options.idle_timeout_ms: 86400001: 0 to 86400000 are possible; 0: no bound",
        ),
        (
            "    routes: [{prefix: /}]\n    upgrades: ['web socket']",
            "15: services[1].upgrades[0]: \"web socket\": the name of a protocol, like websocket",
        ),
        (
            "    routes: [{prefix: /}]\n    upgrades: [CONNECT]",
            "15: services[1].upgrades[0]: connect is no upgrade that a service could take",
        ),
    ] {
        let error = service(more).expect_err(expected);
        assert_eq!(error.to_string(), format!("mesh.yaml:{expected}"));
    }
}

#[test]
fn services_refuse_the_upgrades_that_only_others_take() {
    let text = GOOD.replacen("weights: computed", "upgrades: [WebSocket]", 1);
    let config = Config::parse("mesh.yaml", &text).expect("a good configuration");
    let [orders, web] = &config.mesh.services[..] else {
        panic!("two services");
    };
    let websocket = BTreeSet::from(["websocket".to_owned()]);
    assert_eq!(web.resilience.upgrades.taken, websocket);
    assert!(web.resilience.upgrades.refused.is_empty());
    assert_eq!(orders.resilience.upgrades.refused, websocket);
}

#[test]
fn a_trailing_dot_of_a_host_does_not_count() {
    let routes = service("    routes: [{host: Shop.Example., prefix: /}]").expect("a good service");
    assert_eq!(routes.routes[0].host, "shop.example");
    let error =
        service("    routes: [{host: a.example., prefix: /}, {host: a.example, prefix: /}]")
            .expect_err("one route twice");
    assert!(error.message.contains("claim the same route"), "{error}");
    assert!(service("    routes: [{host: a.example.., prefix: /}]").is_err());
}
