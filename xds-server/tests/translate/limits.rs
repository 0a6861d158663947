//! Time-outs, limits and protocols: the settings that override Envoy's defaults.

use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::access_log,
            cluster::v3::Cluster,
            core::v3::address,
            listener::v3::{Listener, filter::ConfigType},
            route::v3::{RouteAction, route::Action},
        },
        extensions::{
            filters::network::http_connection_manager::v3::HttpConnectionManager,
            upstreams::http::v3::{
                HttpProtocolOptions, http_protocol_options::UpstreamProtocolOptions,
            },
        },
    },
    google::protobuf::{Duration, UInt32Value},
};
use proptest::prelude::*;
use prost::Message;
use xds_server::{
    config::{Config, Mesh, Resilience},
    snapshot::Role,
    testing,
    translate::{clusters, listener, routes},
};

use crate::{any, rules_of, table, weighted};

fn mesh(more: &str, service: &str) -> Mesh {
    let rest = format!("{more}\nservices: [{{name: s, {service}}}]");
    testing::mesh("sh-a/sh sh-b/sh", &rest)
}

fn ms(duration: &Option<Duration>) -> Option<i64> {
    let millis = |d: &Duration| d.seconds * 1_000 + i64::from(d.nanos) / 1_000_000;
    duration.as_ref().map(millis)
}

fn number(value: Option<UInt32Value>) -> Option<u32> {
    value.map(|value| value.value)
}

/// The actions for all forwarded requests.
fn actions(mesh: &Mesh) -> Vec<RouteAction> {
    let resilience = |at: usize| -> Resilience { mesh.services[at].resilience.clone() };
    let table = table::read(&routes(&rules_of(mesh, "UU"), &resilience));
    let routes = table.virtual_hosts.into_iter().flat_map(|host| host.routes);
    routes
        .filter_map(|route| match route.action {
            Some(Action::Route(action)) => Some(action),
            _ => None,
        })
        .collect()
}

proptest! {
    /// Envoy's defaults are 15 s and five minutes.
    #[test]
    fn no_route_leaves_its_timeouts_to_envoy(rules in any::rules()) {
        let table = table::read(&routes(&rules, &weighted));
        for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
            if let Some(Action::Route(action)) = &route.action {
                prop_assert!(action.timeout.is_some(), "{route:?}");
                prop_assert_eq!(ms(&action.idle_timeout), Some(0));
            }
        }
    }
}

#[test]
fn bounds_of_a_route_are_carried_and_a_timeout_never_stands_beside_a_duration() {
    let bounded = |bounds: &str| actions(&mesh("", &format!("routes: [{{prefix: /, {bounds}}}]")));
    for action in bounded("timeout_ms: 1500, idle_timeout_ms: 2500") {
        assert_eq!(ms(&action.timeout), Some(1_500));
        assert_eq!(ms(&action.idle_timeout), Some(2_500));
        assert_eq!(action.max_stream_duration, None);
    }
    for action in bounded("max_stream_duration_ms: 1500") {
        let spans = action.max_stream_duration.expect("a duration");
        assert_eq!(ms(&spans.max_stream_duration), Some(1_500));
    }
    // A gRPC call is bounded by both, and by the client's own deadline.
    for (bounds, expected) in [
        ("timeout_ms: 1500", Some(1_500)),
        ("max_stream_duration_ms: 1500", Some(1_500)),
        ("timeout_ms: 0", None),
    ] {
        let mesh = mesh("", &format!("routes: [{{grpc: a.B, {bounds}}}]"));
        for action in actions(&mesh) {
            let spans = action.max_stream_duration.expect("a duration");
            assert_eq!(ms(&spans.max_stream_duration), expected);
            let said = ms(&spans.grpc_timeout_header_max);
            assert_eq!(said, Some(expected.unwrap_or(0)));
        }
    }
}

#[test]
fn a_fenced_write_keeps_its_drain_whatever_its_route_says() {
    let drains = |bounds: &str| {
        let mesh = mesh(
            "authority: {write_drain_ms: 1000}",
            &format!("routes: [{{prefix: /, class: write, {bounds}}}]"),
        );
        let mut actions = actions(&mesh).into_iter();
        let stays = |action: &RouteAction| {
            let retries = action.retry_policy.as_ref();
            retries.is_some_and(|retries| retries.retry_priority.is_none())
        };
        let write = actions.find(stays);
        let spans = write.and_then(|action| action.max_stream_duration);
        ms(&spans.expect("a bound").max_stream_duration)
    };
    assert_eq!(drains("timeout_ms: 0"), Some(1_000));
    assert_eq!(drains("timeout_ms: 9000"), Some(1_000));
    assert_eq!(drains("timeout_ms: 300"), Some(300));
    assert_eq!(drains("max_stream_duration_ms: 300"), Some(300));
}

fn cluster(service: &str) -> (Cluster, HttpProtocolOptions) {
    let mesh = mesh("", service);
    let all = clusters(&mesh.topology, &mesh.services[0]);
    let cluster = Cluster::decode(all[0].message()).expect("a cluster");
    let mut options = cluster.typed_extension_protocol_options.values();
    let options = options.next().expect("protocol options");
    let options = HttpProtocolOptions::decode(&options.value[..]).expect("protocol options");
    (cluster, options)
}

#[test]
fn auto_is_http_2_where_a_route_needs_it_and_idle_connections_end_before_the_servers_do() {
    let of = |service: &str| {
        let (_, options) = cluster(service);
        let idle = options.common_http_protocol_options.expect("options");
        let protocol = match options.upstream_protocol_options.expect("a protocol") {
            UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => {
                let protocol = format!("{:?}", explicit.protocol_config);
                if protocol.contains("Http2") { "2" } else { "1" }
            }
            _ => "downstream",
        };
        (protocol, ms(&idle.idle_timeout).expect("a time-out"))
    };
    let (http, grpc) = (
        "routes: [{prefix: /}]",
        "routes: [{prefix: /}, {grpc: a.B}]",
    );
    assert_eq!(of(http), ("1", 4_000));
    assert_eq!(of(grpc), ("2", 3_600_000));
    assert_eq!(of(&format!("{grpc}, protocol: http1")), ("1", 4_000));
    let downstream = format!("{http}, protocol: downstream");
    assert_eq!(of(&downstream), ("downstream", 4_000));
    let said = "common_http_protocol_options: {idle_timeout_ms: 7}";
    assert_eq!(of(&format!("{http}, {said}")), ("1", 7));
}

#[test]
fn only_gateway_errors_eject_unless_more_is_asked_for() {
    let enforced = |more: &str| {
        let (cluster, _) = cluster(&format!("routes: [{{prefix: /}}]{more}"));
        let ejection = cluster.outlier_detection.expect("outlier detection");
        [
            number(ejection.enforcing_consecutive_gateway_failure),
            number(ejection.enforcing_consecutive_5xx),
            number(ejection.enforcing_failure_percentage),
            number(ejection.enforcing_success_rate),
        ]
        .map(|share| share.expect("a share"))
    };
    assert_eq!(enforced(""), [100, 0, 0, 0]);
    let more = ", outlier_detection: {consecutive_5xx: 3}";
    assert_eq!(enforced(more), [100, 100, 0, 0]);
    let more = ", outlier_detection: {failure_percentage_threshold: 60}";
    assert_eq!(enforced(more), [100, 0, 100, 0]);
}

#[test]
fn upgrades_that_only_another_service_takes_are_refused_before_all_else() {
    let text = "\
store: {embedded: {path: t.redb}}
filter: {path: f.wasm}
zones: [{name: sh-a, region: sh}]
services:
  - {name: web, routes: [{prefix: /web}]}
  - {name: ws, routes: [{prefix: /ws}], upgrades: [websocket]}
";
    let mesh = Config::parse("mesh.yaml", text).expect("a good configuration");
    let mesh = mesh.mesh;
    let resilience = |at: usize| -> Resilience { mesh.services[at].resilience.clone() };
    let table = table::read(&routes(&rules_of(&mesh, "U"), &resilience));
    let refusing = table.virtual_hosts[0].routes.iter().filter(|route| {
        let status = match &route.action {
            Some(Action::DirectResponse(answer)) => answer.status,
            _ => 0,
        };
        status == 403
    });
    let refusing: Vec<_> = refusing.map(table::path).collect();
    assert_eq!(refusing, ["/web"]);
    let first = &table.virtual_hosts[0].routes;
    let first = first.iter().find(|route| table::path(route) == "/web");
    let first = first.expect("a route of /web");
    assert_eq!(table::conditions(first), ["upgrade=websocket"]);
}

fn gateway(listener_config: &str, service: &str) -> (Listener, HttpConnectionManager) {
    let more = format!("listeners: {{gateway: {{{listener_config}}}}}");
    let mesh = mesh(&more, service);
    let listener = listener(&mesh, Role::Gateway).expect("a listener");
    let listener = Listener::decode(listener.message()).expect("a listener");
    let filter = listener.filter_chains[0].filters[0].config_type.as_ref();
    let Some(ConfigType::TypedConfig(manager)) = filter else {
        panic!("a connection manager");
    };
    let manager = HttpConnectionManager::decode(&manager.value[..]).expect("a manager");
    (listener, manager)
}

#[test]
fn standard_streams_are_logged_to_by_envoys_own_loggers() {
    for (path, logger) in [
        ("/dev/stdout", "stream.v3.StdoutAccessLog"),
        ("/proc/self/fd/1", "stream.v3.StdoutAccessLog"),
        ("/dev/stderr", "stream.v3.StderrAccessLog"),
        ("/var/log/access.log", "file.v3.FileAccessLog"),
    ] {
        let access_log = format!("access_log: {path}");
        let (_, manager) = gateway(&access_log, "routes: [{prefix: /}]");
        let Some(access_log::ConfigType::TypedConfig(config)) = &manager.access_log[0].config_type
        else {
            panic!("a logger");
        };
        assert!(config.type_url.ends_with(logger), "{}", config.type_url);
    }
}

#[test]
fn any_ipv6_address_takes_ipv4_as_well_unless_told_otherwise() {
    let takes_both = |listener_config: &str| {
        let (listener, _) = gateway(listener_config, "routes: [{prefix: /}]");
        match listener.address.and_then(|address| address.address) {
            Some(address::Address::SocketAddress(socket)) => socket.ipv4_compat,
            _ => panic!("a socket's address"),
        }
    };
    assert!(takes_both("address: '::'"));
    assert!(!takes_both("address: '::', ipv4_compat: false"));
    // Both addresses would use the same port.
    let both = "address: '::', additional_addresses: [{address: 0.0.0.0}]";
    assert!(!takes_both(both));
    assert!(!takes_both("address: '::1'"));
}

#[test]
fn http_1_0_is_taken_where_a_default_host_is_configured() {
    let taken = |listener_config: &str| {
        let (_, manager) = gateway(listener_config, "routes: [{prefix: /}]");
        let options = manager.http_protocol_options.unwrap_or_default();
        (options.accept_http_10, options.default_host_for_http_10)
    };
    assert_eq!(taken(""), (false, String::new()));
    let host = "http_protocol_options: {default_host_for_http_10: shop.example}";
    assert_eq!(taken(host), (true, "shop.example".to_owned()));
}

#[test]
fn the_upgrades_that_a_service_takes_pass_the_listener() {
    let passing = |service: &str| {
        let (_, manager) = gateway("", service);
        let upgrades = manager.upgrade_configs.into_iter();
        upgrades.map(|u| u.upgrade_type).collect::<Vec<_>>()
    };
    assert_eq!(passing("routes: [{prefix: /}]"), [""; 0]);
    let taken = "routes: [{prefix: /}], upgrades: [websocket]";
    assert_eq!(passing(taken), ["websocket"]);
}

#[test]
fn listeners_have_envoys_limits_for_the_edge() {
    let mesh = mesh("", "routes: [{prefix: /}]");
    for role in [Role::Gateway, Role::Sidecar] {
        let listener = listener(&mesh, role).expect("a listener");
        let listener = Listener::decode(listener.message()).expect("a listener");
        assert_eq!(
            number(listener.per_connection_buffer_limit_bytes),
            Some(32_768)
        );
        let filter = listener.filter_chains[0].filters[0].config_type.as_ref();
        let Some(ConfigType::TypedConfig(manager)) = filter else {
            panic!("a connection manager");
        };
        let manager = HttpConnectionManager::decode(&manager.value[..]).expect("a manager");
        assert!(manager.strip_trailing_host_dot);
        assert_eq!(ms(&manager.request_headers_timeout), Some(10_000));
        assert_eq!(ms(&manager.stream_idle_timeout), Some(300_000));
        let common = manager.common_http_protocol_options.expect("options");
        assert_eq!(ms(&common.idle_timeout), Some(3_600_000));
        let http2 = manager.http2_protocol_options.expect("options");
        assert_eq!(number(http2.max_concurrent_streams), Some(100));
        assert_eq!(number(http2.initial_stream_window_size), Some(65_536));
        assert_eq!(
            number(http2.initial_connection_window_size),
            Some(1_048_576)
        );
        let mappers = manager.local_reply_config.expect("mappers").mappers;
        assert!(!mappers.is_empty());
    }
}
