//! Configurations that are accepted, those that are rejected, and the errors.

mod authority;
mod istio;
mod listen;
mod listeners;
mod proxy_tls;
mod routing;

use std::collections::BTreeSet;

use policy::{Failback, Phase, Weighting};

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
    assert_eq!(config.listen.xds.address.port(), 18_000);
    assert_eq!(config.xds.load_report_interval, Duration::from_secs(10));
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
        "filter: {path: f.wasm}",
        "filter: {path: f.wasm}\nxds: {load_report_interval_s: 0}",
        "mesh.yaml:3: xds.load_report_interval_s: 0: 1 to 3600 are possible",
    );
    refused(
        "embedded: {path: t.redb}",
        "etcd: {endpoints: []}",
        "mesh.yaml:1: store.etcd.endpoints: empty: name at least one member, like http://127.0.0.1:2379",
    );
    refused(
        "embedded: {path: t.redb}",
        "etcd: {endpoints: ['http://e:1'], compaction: {keep_s: 9}}",
        "mesh.yaml:1: store.etcd.compaction.keep_s: 9: 10 to 2592000 are possible",
    );
    refused(
        "embedded: {path: t.redb}",
        "etcd: {endpoints: ['http://e:1', 'https://e:2']}",
        "mesh.yaml:1: store.etcd.endpoints: \"https://e:2\": TLS needs `store.etcd.tls: {ca: FILE}`, with `cert` and `key` where etcd asks for a certificate",
    );
}

#[test]
fn an_endpoint_of_etcd_is_one_that_its_client_takes() {
    for endpoint in ["http://e:1", "127.0.0.1:2379", "http://[::1]:2379"] {
        let text = GOOD.replacen(
            "embedded: {path: t.redb}",
            &format!("etcd: {{endpoints: ['{endpoint}']}}"),
            1,
        );
        Config::parse("mesh.yaml", &text).expect(endpoint);
    }
}

#[test]
fn a_key_that_stands_twice_is_named_with_its_line() {
    for (from, to, expected) in [
        (
            "filter: {path: f.wasm}",
            "filter: {path: f.wasm}\nfilter: {path: g.wasm}",
            "mesh.yaml:3: the key \"filter\" stands twice",
        ),
        (
            "{zone: 80, region: 20}",
            "{zone: 80, region: 20, zone: 1}",
            "mesh.yaml:12: services[0].weights: the key \"zone\" stands twice",
        ),
        (
            "weights: computed",
            "weights: computed\n    weights: computed",
            "mesh.yaml:16: services[1]: the key \"weights\" stands twice",
        ),
    ] {
        refused(from, to, expected);
    }
}

#[test]
fn etcds_history_is_compacted_only_where_that_is_asked_for() {
    let keep_history = |more: &str| {
        let store = format!("etcd: {{endpoints: ['http://e:1']{more}}}");
        let text = GOOD.replacen("embedded: {path: t.redb}", &store, 1);
        match Config::parse("mesh.yaml", &text)
            .expect("a good configuration")
            .store
        {
            StoreConfig::Etcd { keep_history, .. } => keep_history,
            StoreConfig::Embedded { .. } => panic!("an etcd"),
        }
    };
    assert_eq!(keep_history(""), None);
    let asked_for = keep_history(", compaction: {keep_s: 3600}");
    assert_eq!(asked_for, Some(Duration::from_secs(3_600)));
}

#[test]
fn failover_is_read_and_its_contradictions_are_refused() {
    let with = |more: &str| GOOD.replacen("weights: computed", more, 1);
    let read = |more: &str| {
        let config = Config::parse("mesh.yaml", &with(more)).expect("a good configuration");
        config.mesh.services[1].clone()
    };
    assert_eq!(read("protocol: auto").failover, Failover::default());
    let manual = read("failover: {failback: manual, hold_s: 0.5, hold_max_s: 0.5}").failover;
    assert_eq!((manual.hold_ms, manual.failback), (500, Failback::Manual));
    let ramp = read("failover: {ramp: {percent: [0.5, 25, 100], over_s: 4}}").failover;
    let steps = vec![5, 250];
    let step_ms = 2_000;
    assert_eq!(ramp.failback, Failback::Ramp { steps, step_ms });
    let at_once = read("failover: {ramp: {percent: [], over_s: 4}}").failover;
    assert_eq!(at_once.first_step(), Phase::In);
    let demand = read("demand: {beijing-c: {reads: 7}}").demands;
    assert_eq!(demand.len(), 3);
    assert_eq!((demand[2].reads, demand[2].writes), (7.0, 0.0));

    for (more, expected) in [
        (
            "failover: {hold_s: -1}",
            "failover.hold_s: -1: 0 to 31536000 seconds are possible",
        ),
        (
            "failover: {hold_s: .nan}",
            "failover.hold_s: NaN: 0 to 31536000 seconds are possible",
        ),
        (
            "failover: {hold_s: 900}",
            "failover.hold_max_s: 600 is less than hold_s 900",
        ),
        (
            "failover: {ramp: {percent: [10, 5]}}",
            "failover.ramp.percent: [10.0, 5.0]: at most 32 rising numbers from 0.1 to 100, like [1, 10, 50, 100]",
        ),
        (
            "demand: {mars: {reads: 1}}",
            "demand: there is no zone \"mars\"",
        ),
        (
            "demand: {beijing-c: {reads: -1}}",
            "demand: beijing-c: -1: a number of at least 0",
        ),
    ] {
        let expected = format!("mesh.yaml:15: services[1].{expected}");
        refused("weights: computed", more, &expected);
    }
    refused(
        "services:\n",
        "guard: {vanish_percent: 0}\nservices:\n",
        "mesh.yaml:7: guard.vanish_percent: 0: 1 to 100 are possible; 100 accepts every change",
    );
}

#[test]
fn what_proxies_ask_for_and_for_how_long_they_keep_it_is_read() {
    let read = |more: &str| {
        let text = GOOD.replace("services:\n", &format!("{more}\nservices:\n"));
        Config::parse("mesh.yaml", &text).map(|config| config.mesh)
    };
    let mesh = read("").expect("nothing is required");
    assert_eq!(mesh.ttls, Ttls::default());
    assert!(!mesh.listeners.gateway.on_demand);
    let mesh = read(
        "xds: {ttl_s: {cds: 3, ecds: 86400}}\nlisteners: {gateway: {address: 0.0.0.0, port: 1, on_demand: true}}",
    );
    let mesh = mesh.expect("both are possible");
    let seconds = Kind::ALL.map(|kind| mesh.ttls.of(kind).map(NonZeroU32::get));
    assert_eq!(
        seconds,
        [Some(3), None, None, None, None, None, Some(86_400)]
    );
    assert!(mesh.listeners.gateway.on_demand && !mesh.listeners.sidecar.on_demand);
    for (bad, expected) in [
        (
            "xds: {ttl_s: {eds: 2}}",
            "mesh.yaml:7: xds.ttl_s.eds: 2: 3 to 86400 are possible",
        ),
        (
            "xds: {ttl_s: {rds: 86401}}",
            "mesh.yaml:7: xds.ttl_s.rds: 86401: 3 to 86400 are possible",
        ),
    ] {
        refused("services:\n", &format!("{bad}\nservices:\n"), expected);
    }
    // There are no heartbeats for virtual hosts.
    assert!(read("xds: {ttl_s: {vhds: 60}}").is_err());
}

#[test]
fn former_names_still_work_and_warn() {
    let read = |more: &str| {
        let text = GOOD.replacen("weights: computed", more, 1);
        Config::parse("mesh.yaml", &text).expect("a good configuration")
    };
    for (former, now, says) in [
        (
            "circuit: {requests: 7}",
            "circuit_breakers: {max_requests: 7}",
            "circuit_breakers",
        ),
        (
            "affinity: {header: x-user}",
            "zone_affinity: {header: x-user}",
            "zone_affinity",
        ),
        (
            "hedge_after_ms: 70",
            "hedging: {delay_ms: 70}",
            "hedging.delay_ms",
        ),
        (
            "outlier: {ejection_s: 1}",
            "outlier_detection: {base_ejection_time_ms: 1000}",
            "outlier_detection",
        ),
        (
            "strategy: {region_first_hash: {header: x}}\n    sessions: {cookie: c}",
            "strategy: {region_first_hash: {header: x}}\n    stateful_session: {cookie: c}",
            "stateful_session",
        ),
    ] {
        let (former, now) = (read(former), read(now));
        assert_eq!(former.mesh.services[1], now.mesh.services[1], "{says}");
        assert_eq!(now.warnings, [], "{says}");
        let [warning] = &former.warnings[..] else {
            panic!("{says}: {:?}", former.warnings);
        };
        let named = format!("is called `{says}` now");
        assert!(warning.message.starts_with(&named), "{warning}");
        assert!(warning.line >= 15, "{warning}");
    }
}

#[test]
fn resilience_is_read_and_its_contradictions_are_refused() {
    let read = |more: &str| {
        let text = GOOD.replacen("weights: computed", more, 1);
        let config = Config::parse("mesh.yaml", &text).expect("a good configuration");
        config.mesh.services[1].resilience.clone()
    };
    assert_eq!(read("strategy: weighted"), Resilience::default());
    let hash = "strategy: {region_first_hash: {path_segment: 1}}";
    let kept = read(&format!(
        "{hash}\n    stateful_session: {{cookie: tide, ttl_s: 60}}"
    ));
    let sessions = Some(Sessions {
        cookie: "tide".into(),
        ttl_s: 60,
    });
    let key = KeySource::PathSegment(1);
    assert_eq!(kept.strategy, Strategy::RegionFirstHash { key, sessions });
    for ejection in [
        "outlier_detection: {base_ejection_time_ms: 1000, interval_ms: 1000, consecutive_gateway_failure: 2}",
        // The former names.
        "outlier: {ejection_s: 1, window_s: 1, consecutive_errors: 2}",
    ] {
        let expected = OutlierDetection {
            base_ejection_time_ms: 1_000,
            interval_ms: 1_000,
            consecutive_gateway_failure: 2,
            ..OutlierDetection::default()
        };
        assert_eq!(read(ejection).outlier_detection, expected, "{ejection}");
    }
    for limit in [
        "circuit: {requests: 7}",
        "circuit_breakers: {max_requests: 7}",
    ] {
        assert_eq!(read(limit).circuit_breakers.max_requests, 7, "{limit}");
    }

    for (more, expected) in [
        (
            "weights: computed\n    strategy: {region_first_hash: {header: x}}",
            "mesh.yaml:16: services[1].strategy: region_first_hash uses all instances of a region alike: leave out `weights` and `zone_affinity`",
        ),
        (
            "stateful_session: {cookie: tide}",
            "mesh.yaml:15: services[1].stateful_session: only the strategy region_first_hash keeps sessions",
        ),
        (
            "stateful_session: {cookie: 'a b'}",
            "mesh.yaml:15: services[1].stateful_session: cookie: letters, digits, '-', '_' and '.'; ttl_s: at most 86400000",
        ),
        (
            "outlier: {ejection_s: 9, ejection_max_s: 8}",
            "mesh.yaml:15: services[1].outlier: numbers from 1; shares at most 100 percent; times at most 86400000 ms; the first ejection at most as long as the longest",
        ),
        (
            "outlier: {ejection_s: 9}\n    outlier_detection: {interval_ms: 1}",
            "mesh.yaml:15: services[1].outlier: `outlier_detection` says the same: leave this out",
        ),
        (
            "strategy: {region_first_hash: {header: host}}",
            "mesh.yaml:15: services[1].strategy: header \"host\": use lower case letters, digits and '-', and no name that Tidegate or HTTP itself owns",
        ),
        (
            "strategy: {region_first_hash: {path_segment: 17}}",
            "mesh.yaml:15: services[1].strategy: path_segment: 0 to 16 are possible",
        ),
        (
            "strategy: {region_first_hash: {cookie: ''}}",
            "mesh.yaml:15: services[1].strategy: cookie \"\": no name that a cookie can have",
        ),
        (
            "circuit: {pending: 0}",
            "mesh.yaml:15: services[1].circuit_breakers: numbers from 1: 0 would refuse everything",
        ),
    ] {
        refused("weights: computed", more, expected);
    }
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

/// The good configuration with these lines before it.
fn with(before: &str) -> Result<Config, ConfigError> {
    Config::parse("mesh.yaml", &format!("{before}\n{GOOD}"))
}

#[test]
fn routes_of_a_service_are_bounded() {
    let parse = |count: usize| {
        let routes: Vec<String> = (0..count).map(|n| format!("{{prefix: /r{n}}}")).collect();
        let text = format!(
            "store: {{embedded: {{path: t}}}}\nfilter: {{path: f}}\nzones: [{{name: a, region: r}}]\nservices: [{{name: s, routes: [{}]}}]\n",
            routes.join(", ")
        );
        Config::parse("mesh.yaml", &text).map(drop)
    };
    assert_eq!(parse(10_000), Ok(()));
    let error = parse(10_001).expect_err("too many").to_string();
    let expected = "mesh.yaml:4: services[0].routes: 10001 routes: at most 10000 are possible";
    assert!(error.starts_with(expected), "{error}");
}
