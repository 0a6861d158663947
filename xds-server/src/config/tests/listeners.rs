//! The listeners of proxies: every address that proxies would refuse is refused here.

use super::*;

fn listening(listeners: &str) -> Result<Listeners, ConfigError> {
    let config = with(&format!("listeners: {listeners}"));
    config.map(|config| config.mesh.listeners)
}

#[track_caller]
fn refused(listeners: &str, expected: &str) {
    let error = listening(listeners).expect_err(expected);
    assert_eq!(error.to_string(), format!("mesh.yaml:1: {expected}"));
}

#[test]
fn listeners_have_defaults_for_each_role() {
    let listeners = listening("{}").expect("nothing is required");
    assert_eq!(listeners.gateway.address.to_string(), "0.0.0.0:8080");
    assert_eq!(listeners.sidecar.address.to_string(), "127.0.0.1:15001");
    let listeners = listening("{gateway: {port: 7}, sidecar: {address: '::1'}}");
    let listeners = listeners.expect("either part alone");
    assert_eq!(listeners.gateway.address.to_string(), "0.0.0.0:7");
    assert_eq!(listeners.sidecar.address.to_string(), "[::1]:15001");
}

#[test]
fn addresses_that_envoy_cannot_listen_on_are_refused() {
    let names = "is no IP address, and names are not looked up: give one, like 0.0.0.0 or ::";
    for (address, why) in [
        ("localhost", format!("\"localhost\" {names}")),
        ("*", format!("\"*\" {names}")),
        ("1.2.3", format!("\"1.2.3\" {names}")),
        ("fe80::1%eth0", format!("\"fe80::1%eth0\" {names}")),
        (" 0.0.0.0", format!("\" 0.0.0.0\" {names}")),
        ("", "empty: give an IP address, like 0.0.0.0 or ::".to_owned()),
        ("[::]", "\"[::]\": leave out the brackets".to_owned()),
        (
            "127.0.0.1:8080",
            "\"127.0.0.1:8080\" has a port: that stands in `port`".to_owned(),
        ),
        (
            "[::1]:8080",
            "\"[::1]:8080\" has a port: that stands in `port`".to_owned(),
        ),
        (
            "::ffff:127.0.0.1",
            "\"::ffff:127.0.0.1\" is an IPv4 address: write it as one".to_owned(),
        ),
        (
            "224.0.0.1",
            "\"224.0.0.1\": no listener can accept connections there".to_owned(),
        ),
        (
            "ff02::1",
            "\"ff02::1\": no listener can accept connections there".to_owned(),
        ),
        (
            "255.255.255.255",
            "\"255.255.255.255\": no listener can accept connections there".to_owned(),
        ),
        (
            "fe80::1",
            "\"fe80::1\" belongs to a single link, and Envoy's configuration cannot name a link: use `::` or another address".to_owned(),
        ),
    ] {
        for role in ["gateway", "sidecar"] {
            refused(
                &format!("{{{role}: {{address: '{address}', port: 1}}}}"),
                &format!("listeners.{role}.address: {why}"),
            );
            refused(
                &format!("{{{role}: {{additional_addresses: [{{address: '{address}'}}]}}}}"),
                &format!("listeners.{role}.additional_addresses[0].address: {why}"),
            );
        }
    }
}

#[test]
fn several_addresses_and_both_families_are_possible() {
    let listeners = listening(
        "{gateway: {address: '::', port: 7, additional_addresses: [{address: 10.0.0.1}, {address: 10.0.0.1, port: 8}]}}",
    );
    let gateway = listeners.expect("three addresses").gateway;
    let addresses = gateway.addresses().map(|address| address.to_string());
    assert_eq!(
        addresses.collect::<Vec<_>>(),
        ["[::]:7", "10.0.0.1:7", "10.0.0.1:8"]
    );
    assert!(gateway.ipv4_compat);
    let gateway = listening("{gateway: {address: '::', ipv4_compat: false}}");
    assert!(!gateway.expect("one family").gateway.ipv4_compat);
    refused(
        "{gateway: {ipv4_compat: true}}",
        "listeners.gateway.ipv4_compat: only the address `::` can take IPv4 as well",
    );
    refused(
        "{gateway: {additional_addresses: [{address: 0.0.0.0}]}}",
        "listeners.gateway.additional_addresses[0].address: the listener has 0.0.0.0:8080 already",
    );
}

#[test]
fn limits_are_read_by_envoys_names() {
    let gateway = listening(
        "{gateway: {max_request_headers_kb: 8, common_http_protocol_options: {idle_timeout_ms: 0}, http2_protocol_options: {max_concurrent_streams: 7}}}",
    );
    let limits = gateway.expect("limits").gateway.limits;
    let expected = ListenerLimits {
        max_request_headers_kb: 8,
        idle_timeout_ms: 0,
        max_concurrent_streams: 7,
        ..ListenerLimits::default()
    };
    assert_eq!(limits, expected);
    for (limit, why) in [
        (
            "max_request_headers_kb: 0",
            "max_request_headers_kb: 0: 1 to 8192 are possible",
        ),
        (
            "http2_protocol_options: {initial_stream_window_size: 1}",
            "http2_protocol_options.initial_stream_window_size: 1: 65535 to 2147483647 are possible",
        ),
        (
            "common_http_protocol_options: {max_headers_count: 0}",
            "common_http_protocol_options.max_headers_count: 0: 1 to 10000 are possible",
        ),
        (
            "access_log: /var/log/",
            "access_log: \"/var/log/\" is no file: name one, or \"\" for none",
        ),
        (
            "http_protocol_options: {default_host_for_http_10: 'a b'}",
            "http_protocol_options.default_host_for_http_10: \"a b\": a host name without a port",
        ),
    ] {
        refused(
            &format!("{{gateway: {{{limit}}}}}"),
            &format!("listeners.gateway.{why}"),
        );
    }
}
