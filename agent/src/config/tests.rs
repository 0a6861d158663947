//! Accepted and rejected configurations, and the texts of rejections.

use super::*;

const GOOD: &str = "\
zone: shanghai-a
store: {etcd: {endpoints: ['http://127.0.0.1:2379']}}
lease_ttl_s: 10
instances:
  - service: orders
    instance: orders-1
    address: 10.0.0.7
    port: 8080
    capacity_rps: 500
    role: primary
    probe:
      http: {path: /healthz, expect: '200-299, 304'}
      interval_ms: 500
      timeout_ms: 100
    load: {url: 'http://127.0.0.1:8080/load'}
  - service: orders
    instance: orders-2
    address: 10.0.0.8
    port: 8080
    probe: {grpc: {service: shop.v1.Orders}, failures: 5}
  - {service: cache, instance: c-1, address: '::1', port: 6379, probe: {tcp: {}}}
";

#[track_caller]
fn refused(from: &str, to: &str, expected: &str) {
    assert!(
        GOOD.contains(from),
        "{from:?} does not stand in the good configuration"
    );
    let error = Config::parse("agent.yaml", &GOOD.replacen(from, to, 1)).expect_err(expected);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_good_configuration_is_taken() {
    let config = Config::parse("agent.yaml", GOOD).expect("a good configuration");
    assert_eq!(config.listen.address.to_string(), "127.0.0.1:18010");
    assert_eq!(config.listen.tls, None);
    assert_eq!(config.lease_ttl, Duration::from_secs(10));
    assert_eq!(config.drain, Duration::from_secs(5));
    let [first, second, third] = &config.instances[..] else {
        panic!("three instances");
    };
    let ProbeKind::Http(http) = &first.probe else {
        panic!("{:?}", first.probe);
    };
    assert_eq!(http.address.to_string(), "10.0.0.7:8080");
    assert_eq!(http.host, "10.0.0.7:8080");
    assert_eq!(http.expect, [200..=299, 304..=304]);
    assert_eq!(first.pace.interval, Duration::from_millis(500));
    assert_eq!(first.pace.retry, Duration::from_millis(50));
    assert_eq!(first.pace.thresholds.failures, 3);
    assert_eq!(first.role, "primary");
    assert!(matches!(&second.probe, ProbeKind::Grpc(grpc) if grpc.service == "shop.v1.Orders"));
    assert_eq!(second.pace.thresholds.failures, 5);
    assert_eq!(second.pace.timeout, PROBE_TIMEOUT_MAX);
    assert!(matches!(third.probe, ProbeKind::Tcp(_)));
    assert_eq!(third.role, "instance");

    let http = "registry: {http: ['http://127.0.0.1:18001/']}";
    let text = GOOD.replacen(
        "store: {etcd: {endpoints: ['http://127.0.0.1:2379']}}",
        http,
        1,
    );
    let config = Config::parse("agent.yaml", &text).expect("a good configuration");
    let bases = vec!["http://127.0.0.1:18001".to_owned()];
    let http = RegistryConfig::Http { bases, tls: None };
    assert_eq!(config.registry, http);
    let https =
        "registry: {http: ['https://tidegate:18001'], tls: {ca: ca.pem, cert: c.pem, key: k.pem}}";
    let text = GOOD.replacen(
        "store: {etcd: {endpoints: ['http://127.0.0.1:2379']}}",
        https,
        1,
    );
    let config = Config::parse("agent.yaml", &text).expect("a good configuration");
    let https = RegistryConfig::Http {
        bases: vec!["https://tidegate:18001".to_owned()],
        tls: Some(Files {
            ca: "ca.pem".into(),
            own: Some(("c.pem".into(), "k.pem".into())),
        }),
    };
    assert_eq!(config.registry, https);
    let text = GOOD.replacen("'200-299, 304'", "204", 1);
    Config::parse("agent.yaml", &text).expect("a status alone");
}

#[test]
fn errors_name_file_line_field_and_what_to_do() {
    refused(
        "timeout_ms: 100",
        "timeout_ms: 201",
        "agent.yaml:14: instances[0].probe.timeout_ms: 201: 1 to 200 are possible",
    );
    refused(
        "failures: 5",
        "failures: 0",
        "agent.yaml:20: instances[1].probe.failures: 0: 1 to 1000 are possible",
    );
    refused(
        "failures: 5",
        "successes: 0",
        "agent.yaml:20: instances[1].probe.successes: 0: 1 to 1000 are possible",
    );
    refused(
        "interval_ms: 500",
        "interval_ms: 0",
        "agent.yaml:13: instances[0].probe.interval_ms: 0: 10 to 3600000 are possible",
    );
    refused(
        "lease_ttl_s: 10",
        "lease_ttl_s: 1",
        "agent.yaml:3: lease_ttl_s: 1: 2 to 3600 are possible",
    );
    refused(
        "instance: orders-2",
        "instance: orders-1",
        "agent.yaml:16: instances[1]: orders/orders-1 stands in line 5 already",
    );
    refused(
        "address: 10.0.0.8",
        "address: 10.0.0.7",
        "agent.yaml:16: instances[1]: 10.0.0.7:8080 is the address of the instance in line 5 already",
    );
    refused(
        "path: /healthz",
        "path: healthz",
        "agent.yaml:12: instances[0].probe.http.path: \"healthz\": a path is like /healthz",
    );
    refused(
        "200-299, 304",
        "2xx",
        "agent.yaml:12: instances[0].probe.http.expect: \"2xx\": a status from 100 to 599 like 200, or ranges like 200-399, 404",
    );
    refused(
        "{tcp: {}}",
        "{tcp: {}, http: {}}",
        "agent.yaml:21: instances[2].probe: name one of `http`, `grpc` and `tcp`",
    );
    refused(
        "{tcp: {}}",
        "{interval_ms: 100}",
        "agent.yaml:21: instances[2].probe: name one of `http`, `grpc` and `tcp`",
    );
    refused(
        "port: 6379",
        "port: 0",
        "agent.yaml:21: instances[2]: port 0: register the port that the instance listens on",
    );
    refused(
        "port: 6379",
        "port: 6379, weight: 129",
        "agent.yaml:21: instances[2]: weight 129: 1 to 128 are possible",
    );
    refused(
        "capacity_rps: 500",
        "capacity_rps: .nan",
        "agent.yaml:5: instances[0]: capacity_rps: a number of at least 0",
    );
    refused(
        "http://127.0.0.1:8080/load",
        "https://127.0.0.1:8080/load",
        "agent.yaml:15: instances[0].load.url: \"https://127.0.0.1:8080/load\": a URL is like http://127.0.0.1:8080/load",
    );
    refused(
        "['http://127.0.0.1:2379']",
        "[]",
        "agent.yaml:2: store.etcd.endpoints: empty: name at least one member, like http://127.0.0.1:2379",
    );
    refused(
        "'http://127.0.0.1:2379'",
        "127.0.0.1",
        "agent.yaml:2: store.etcd.endpoints: \"127.0.0.1\": not of the form http://host:port",
    );
    refused(
        "lease_ttl_s: 10",
        "registry: {http: ['http://127.0.0.1:18001']}",
        "agent.yaml: name one of the two: `store: {etcd: {endpoints: [...]}}` to register in etcd, or `registry: {http: [...]}` to register with control planes",
    );
    refused(
        "zone: shanghai-a",
        "zone: Shanghai",
        "agent.yaml:1: zone: name \"Shanghai\": use 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit",
    );
}

#[test]
fn wrong_types_and_unknown_fields_have_their_place_too() {
    for (from, to, line, field) in [
        ("role: primary", "rule: primary", 10, "instances[0]"),
        ("failures: 5", "failures: many", 20, "instances[1].probe"),
        ("failures: 5", "failure: 5", 20, "instances[1].probe"),
        (
            "address: 10.0.0.8",
            "address: orders",
            18,
            "instances[1].address",
        ),
        ("lease_ttl_s: 10", "lease_ttl: 10", 3, ""),
    ] {
        let error = Config::parse("agent.yaml", &GOOD.replacen(from, to, 1))
            .expect_err("an invalid configuration");
        assert_eq!(error.line, line, "{error}");
        assert!(error.field.starts_with(field), "{error}");
        assert!(!error.message.is_empty());
    }
    let error = Config::parse("agent.yaml", " \n").expect_err("an empty file");
    assert_eq!(error.to_string(), "agent.yaml: the file is empty");
}

#[test]
fn the_port_speaks_tls_or_is_loopback_or_an_operator_permits_plain_text() {
    let listen = |text: &str| {
        let from = "lease_ttl_s: 10";
        let text = GOOD.replacen(from, &format!("listen: {text}\n{from}"), 1);
        Config::parse("agent.yaml", &text).map(|config| config.listen)
    };
    let files = "{cert: c.pem, key: k.pem, client_ca: ca.pem}";
    for (text, address, is_tls) in [
        ("'127.0.0.1:1'", "127.0.0.1:1", false),
        ("'[::1]:1'", "[::1]:1", false),
        (
            "{address: '0.0.0.0:1', plaintext: true}",
            "0.0.0.0:1",
            false,
        ),
        (
            &format!("{{address: '0.0.0.0:1', tls: {files}}}"),
            "0.0.0.0:1",
            true,
        ),
        (&format!("{{tls: {files}}}"), "127.0.0.1:18010", true),
    ] {
        let listen = listen(text).expect(text);
        assert_eq!(listen.address.to_string(), address);
        assert_eq!(listen.tls.is_some(), is_tls, "{text}");
    }
    for (text, expected) in [
        (
            "'0.0.0.0:1'",
            "agent.yaml:3: listen: 0.0.0.0:1 is not loopback",
        ),
        (
            "{address: '[::]:1'}",
            "agent.yaml:3: listen: [::]:1 is not loopback",
        ),
        (
            "{plaintext: true, tls: {cert: c, key: k, client_ca: a}}",
            "agent.yaml:3: listen: `tls`",
        ),
        (
            "localhost",
            "agent.yaml:3: listen: \"localhost\": invalid socket address",
        ),
        ("{plain: true}", "agent.yaml:3: listen.plain: unknown field"),
    ] {
        let error = listen(text).expect_err(text).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn addresses_that_are_no_destination_are_refused_and_others_have_one_form() {
    for address in [
        "0.0.0.0",
        "224.0.0.1",
        "'::'",
        "'fe80::1'",
        "'::ffff:0.0.0.0'",
    ] {
        let text = GOOD.replacen("10.0.0.7", address, 1);
        let error = Config::parse("agent.yaml", &text).expect_err(address);
        assert_eq!(error.field, "instances[0]");
        assert!(error.message.contains("register the address"), "{error}");
    }
    let text = GOOD.replacen("10.0.0.7", "'::ffff:10.0.0.7'", 1);
    let config = Config::parse("agent.yaml", &text).expect("a mapped address");
    assert_eq!(config.instances[0].record.address.to_string(), "10.0.0.7");
}
