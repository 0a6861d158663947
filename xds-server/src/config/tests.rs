//! What is taken, what is refused, and what the refusal says.

use policy::Weighting;

use super::*;

const GOOD: &str = "\
store: {embedded: {path: t.redb}}
filter: {path: f.wasm}
zones:
  - {name: shanghai-a, region: shanghai}
  - {name: shanghai-b, region: shanghai}
  - {name: beijing-c, region: beijing}
services:
  - name: orders
    routes:
      - {prefix: /orders}
      - {grpc: shop.v1.Orders, reads: [GetOrder]}
    weights: {zone: 80, region: 20}
  - name: web
    routes: [{prefix: /}]
    weights: computed
";

#[track_caller]
fn refused(from: &str, to: &str, expected: &str) {
    assert!(
        GOOD.contains(from),
        "{from:?} does not stand in the good configuration"
    );
    let error = Config::parse("mesh.yaml", &GOOD.replacen(from, to, 1)).expect_err(expected);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_good_configuration_is_taken() {
    let config = Config::parse("mesh.yaml", GOOD).expect("a good configuration");
    assert_eq!(config.listen.xds.port(), 18_000);
    assert_eq!(config.mesh.services.len(), 2);
    let [orders, web] = &config.mesh.services[..] else {
        panic!("two services");
    };
    assert_eq!(
        orders.weighting,
        Weighting::Operator {
            zone: 80,
            region: 20
        }
    );
    assert_eq!(web.weighting, Weighting::Computed);
}

#[test]
fn errors_name_file_line_field_and_what_to_do() {
    refused(
        "name: shanghai-b",
        "name: shanghai-a",
        "mesh.yaml:5: zones[1]: zone \"shanghai-a\" stands twice",
    );
    refused(
        "{prefix: /}",
        "{prefix: /orders}",
        "mesh.yaml:13: services[1]: services \"orders\" and \"web\" claim the same route: * /orders",
    );
    refused(
        "{prefix: /orders}",
        "{prefix: orders/}",
        "mesh.yaml:8: services[0]: service \"orders\": prefix \"orders/\": begin with '/', without '?', '#' or a '/' at the end",
    );
    refused(
        "{prefix: /orders}",
        "{host: shop}",
        "mesh.yaml:10: services[0].routes[0]: name a `prefix` or a `grpc` service",
    );
    refused(
        "{zone: 80, region: 20}",
        "{zone: 0, region: 0}",
        "mesh.yaml:12: services[0].weights: both shares are 0: no zone would get anything",
    );
    refused(
        "services:\n",
        "links:\n  - {between: [shanghai-a, beijing-c], rtt_ms: 1}\n  - {between: [beijing-c, shanghai-a], rtt_ms: 2}\nservices:\n",
        "mesh.yaml:9: links[1]: the link \"beijing-c\" - \"shanghai-a\" stands twice",
    );
    refused(
        "path: f.wasm",
        "path: ''",
        "mesh.yaml:2: filter.path: empty: name the file as the Envoys see it",
    );
    refused(
        "filter: {path: f.wasm}",
        "filter: {path: f.wasm}\nstate: {path: /}",
        "mesh.yaml:3: state.path: no file: name one in a directory that exists",
    );
    refused(
        "embedded: {path: t.redb}",
        "etcd: {endpoints: []}",
        "mesh.yaml:1: store.etcd.endpoints: empty: name at least one member, like http://127.0.0.1:2379",
    );
}

#[test]
fn wrong_types_and_unknown_fields_have_their_place_too() {
    for (from, to, line, field) in [
        ("{prefix: /}", "{prefx: /}", 14, "services[1].routes[0]"),
        ("zone: 80", "zone: many", 12, "services[0].weights"),
        (
            "weights: computed",
            "weights: guessed",
            15,
            "services[1].weights",
        ),
        ("filter: {path: f.wasm}", "filter: 7", 2, "filter"),
    ] {
        let error = Config::parse("mesh.yaml", &GOOD.replacen(from, to, 1))
            .expect_err("an invalid configuration");
        assert_eq!(error.line, line, "{error}");
        assert!(error.field.starts_with(field), "{error}");
        assert!(!error.message.is_empty());
    }
}
