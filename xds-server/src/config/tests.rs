//! What is taken, what is refused, and what the refusal says.

use policy::{Enforcement, Failback, Forward, Phase, Weighting};

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
        "mesh.yaml:7: guard.vanish_percent: 0: 1 to 100 are possible; 100 believes everything",
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
    assert_eq!(seconds, [Some(3), None, None, None, None, Some(86_400)]);
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
fn resilience_is_read_and_its_contradictions_are_refused() {
    let read = |more: &str| {
        let text = GOOD.replacen("weights: computed", more, 1);
        let config = Config::parse("mesh.yaml", &text).expect("a good configuration");
        config.mesh.services[1].resilience.clone()
    };
    assert_eq!(read("strategy: weighted"), Resilience::default());
    let hash = "strategy: {region_first_hash: {path_segment: 1}}";
    let kept = read(&format!(
        "{hash}\n    sessions: {{cookie: tide, ttl_s: 60}}"
    ));
    let sessions = Some(Sessions {
        cookie: "tide".into(),
        ttl_s: 60,
    });
    let key = KeySource::PathSegment(1);
    assert_eq!(kept.strategy, Strategy::RegionFirstHash { key, sessions });
    let quick = read("outlier: {ejection_s: 1, window_s: 1}\n    hedge_after_ms: 0");
    assert_eq!(
        (quick.outlier.ejection_s, quick.outlier.consecutive_errors),
        (1, 5)
    );
    assert_eq!(quick.hedging.after_ms, 0);
    assert_eq!(read("circuit: {requests: 7}").circuit.requests, 7);

    for (more, expected) in [
        (
            "weights: computed\n    strategy: {region_first_hash: {header: x}}",
            "mesh.yaml:16: services[1].strategy: region_first_hash uses all instances of a region alike: leave out `weights` and `affinity`",
        ),
        (
            "sessions: {cookie: tide}",
            "mesh.yaml:15: services[1].sessions: only the strategy region_first_hash keeps sessions",
        ),
        (
            "sessions: {cookie: 'a b'}",
            "mesh.yaml:15: services[1].sessions: cookie: letters, digits, '-', '_' and '.'; ttl_s: at most 86400000",
        ),
        (
            "outlier: {ejection_s: 9, ejection_max_s: 8}",
            "mesh.yaml:15: services[1].outlier: numbers from 1; error_percent at most 100; ejection_s at most ejection_max_s",
        ),
        (
            "circuit: {pending: 0}",
            "mesh.yaml:15: services[1].circuit: numbers from 1: 0 would refuse everything",
        ),
    ] {
        refused("weights: computed", more, expected);
    }
}

/// The good configuration with this in its `authority`, from line 7 on.
fn with_authority(authority: &str) -> String {
    GOOD.replacen(
        "services:\n",
        &format!("authority:{authority}\nservices:\n"),
        1,
    )
}

#[test]
fn authority_has_defaults_that_fence_everything_in_one_cell() {
    let mesh = Config::parse("mesh.yaml", GOOD)
        .expect("a good configuration")
        .mesh;
    assert_eq!(mesh.authority, None);
    assert!(mesh.services.iter().all(|s| s.writes == Writes::Free));

    let mesh = Config::parse("mesh.yaml", &with_authority(" {}"))
        .expect("a good configuration")
        .mesh;
    let authority = mesh.authority.as_ref().expect("an authority");
    assert_eq!((authority.zones.len(), &authority.token), (0, &None));
    assert_eq!(authority.enforcement, Enforcement::Enforce);
    let terms = &authority.terms;
    assert_eq!(
        [
            terms.session_ttl,
            terms.grant_ttl,
            terms.write_drain,
            terms.margin
        ],
        [3_000_000, 1_500_000, 1_500_000, 50_000]
    );
    let [main] = &authority.cells[..] else {
        panic!("one cell");
    };
    assert_eq!((main.name.as_str(), main.shards.get()), ("main", 1_024));
    assert_eq!(main.owners, ["shanghai-a"]);
    assert_eq!(main.standby, ["shanghai-b", "beijing-c"]);
    assert_eq!((main.forward, main.automatic), (Forward::Region, true));
    assert_eq!(main.cool_down.as_secs(), 5);
    // All services are fenced, and the gateways stand last, which no policy has.
    let names: Vec<_> = mesh.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["orders", "web", "gateway"]);
    assert!(
        mesh.services[..2]
            .iter()
            .all(|s| s.writes == Writes::Fenced { key: None })
    );
    let viewer = mesh.topology.zone_named("shanghai-b").expect("a zone");
    let owners = |cell: &str| {
        assert_eq!(cell, "main");
        Some((vec!["mars".to_owned(), "beijing-c".to_owned()], 9))
    };
    let Policy::Serving(rules) = mesh.policy(viewer, |_| Default::default(), &owners) else {
        panic!("a serving policy");
    };
    assert_eq!(rules.services().len(), 2);
    let fencing = rules.fencing().expect("a fence");
    let cell = &fencing.cells()[0];
    let beijing = mesh.topology.zone_named("beijing-c").expect("a zone");
    assert_eq!((&cell.owners[..], cell.epoch), (&[beijing][..], 9));
    assert_eq!(fencing.control_plane, "tidegate");
}

#[test]
fn authority_is_read() {
    let text = with_authority(
        "
  zones: [shanghai-a, beijing-c]
  session_ttl_ms: 10000
  grant_ttl_ms: 5000
  write_drain_ms: 800
  drift_permille: 200
  enforcement: observe
  forward_token: 0123456789abcdef
  cells:
    - {name: east, shards: 10, owners: [shanghai-b, shanghai-a], forward: any, failover: manual, cool_down_s: 0.5}
    - {name: north, owners: [beijing-c], standby: [], forward: never}",
    );
    let text = text.replacen("weights: computed", "fenced: false", 1);
    let text = text.replacen(
        "weights: {zone: 80, region: 20}",
        "cell_key: {header: X-User}",
        1,
    );
    let mesh = Config::parse("mesh.yaml", &text)
        .expect("a good configuration")
        .mesh;
    let authority = mesh.authority.as_ref().expect("an authority");
    assert_eq!(authority.zones, ["shanghai-a", "beijing-c"]);
    assert_eq!(authority.terms.drift_permille, 200);
    assert_eq!(authority.enforcement, Enforcement::Observe);
    assert_eq!(authority.token.as_deref(), Some("0123456789abcdef"));
    let [east, north] = &authority.cells[..] else {
        panic!("two cells");
    };
    assert_eq!(east.owners, ["shanghai-b", "shanghai-a"]);
    assert_eq!(east.standby, ["beijing-c"]);
    assert_eq!((east.automatic, east.cool_down.as_millis()), (false, 500));
    assert_eq!((north.forward, north.standby.len()), (Forward::Never, 0));
    let fencing = authority
        .fencing(&mesh.topology, &|_| None)
        .expect("a fence");
    assert_eq!(fencing.shards().get(), 1_034);
    assert_eq!(fencing.cells()[1].first_shard, 10);
    let key = Some(KeySource::Header("x-user".into()));
    assert_eq!(mesh.services[0].writes, Writes::Fenced { key });
    assert_eq!(mesh.services[1].writes, Writes::Free);
    // Who stands by is ordered by distance from the first owner.
    let text = with_authority(
        " {cells: [{name: main, owners: [beijing-c]}]}\nlinks: [{between: [beijing-c, shanghai-b], rtt_ms: 3}]",
    );
    let mesh = Config::parse("mesh.yaml", &text)
        .expect("a good configuration")
        .mesh;
    let cells = mesh.authority.expect("an authority").cells;
    assert_eq!(cells[0].standby, ["shanghai-b", "shanghai-a"]);
}

#[test]
fn contradictions_about_authority_are_refused() {
    for (authority, expected) in [
        (
            " {zones: [mars]}",
            "7: authority.zones[0]: there is no zone \"mars\"",
        ),
        (
            "\n  zones:\n    - beijing-c\n    - beijing-c",
            "10: authority.zones[1]: the zone \"beijing-c\" stands twice",
        ),
        (
            "\n  session_ttl_ms: 1999",
            "8: authority.session_ttl_ms: 1999: 2000 to 60000 are possible",
        ),
        (
            "\n  session_ttl_ms: 2000\n  grant_ttl_ms: 2001",
            "9: authority.grant_ttl_ms: 2001: 200 to 2000 are possible",
        ),
        (
            "\n  write_drain_ms: 60001",
            "8: authority.write_drain_ms: 60001: 100 to 60000 are possible",
        ),
        (
            "\n  drift_permille: 201",
            "8: authority.drift_permille: 201: 0 to 200 are possible",
        ),
        (
            "\n  forward_token: short",
            "8: authority.forward_token: use 16 to 128 letters, digits, '-' and '_'",
        ),
        (
            "\n  forward_token: 0123456789 abcdef",
            "8: authority.forward_token: use 16 to 128 letters, digits, '-' and '_'",
        ),
        (
            "\n  cells: []",
            "8: authority.cells: empty: leave it out for one cell `main`",
        ),
        (
            "\n  cells:\n    - {name: a}\n    - {name: a}",
            "10: authority.cells[1].name: the cell \"a\" stands twice",
        ),
        (
            "\n  cells:\n    - {name: A}",
            "9: authority.cells[0].name: name \"A\": use 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit",
        ),
        (
            "\n  cells:\n    - {name: a, shards: 0}",
            "9: authority.cells[0].shards: 0: a cell has at least one, or is not there",
        ),
        (
            "\n  cells:\n    - {name: a, shards: 65000}\n    - {name: b}",
            "10: authority.cells[1].shards: the cells have more than 65536 shards together",
        ),
        (
            "\n  cells:\n    - name: a\n      owners: [mars]",
            "10: authority.cells[0].owners: there is no zone \"mars\"",
        ),
        (
            "\n  cells:\n    - name: a\n      owners: []",
            "10: authority.cells[0].owners: empty: name the zone that owns it at first",
        ),
        (
            "\n  cells:\n    - name: a\n      owners: [shanghai-a, shanghai-a]",
            "10: authority.cells[0].owners: the zone \"shanghai-a\" stands twice",
        ),
        (
            "\n  cells:\n    - name: a\n      owners: [shanghai-a, beijing-c]",
            "10: authority.cells[0].owners: [\"shanghai-a\", \"beijing-c\"] are not of one region",
        ),
        (
            "\n  cells:\n    - name: a\n      standby: [beijing-c, shanghai-a]",
            "10: authority.cells[0].standby: \"shanghai-a\" is an owner: it cannot stand by as well",
        ),
        (
            "\n  cells:\n    - name: a\n      cool_down_s: -1",
            "9: authority.cells[0].cool_down_s: -1: 0 to 31536000 seconds are possible",
        ),
    ] {
        let error = Config::parse("mesh.yaml", &with_authority(authority)).expect_err(expected);
        assert_eq!(error.to_string(), format!("mesh.yaml:{expected}"));
    }
    let many: String = (0..65)
        .map(|at| format!("\n    - {{name: c{at}, shards: 1}}"))
        .collect();
    let text = with_authority(&format!("\n  cells:{many}"));
    let error = Config::parse("mesh.yaml", &text).expect_err("too many cells");
    assert_eq!(
        error.to_string(),
        "mesh.yaml:9: authority.cells: 65: at most 64"
    );
    for (authority, line, field) in [
        (" {zone: a}", 7, "authority"),
        ("\n  enforcement: maybe", 8, "authority.enforcement"),
        (
            "\n  cells:\n    - {name: a, forward: far}",
            9,
            "authority.cells[0].forward",
        ),
        (
            "\n  cells:\n    - {name: a, moves: 1}",
            9,
            "authority.cells[0]",
        ),
    ] {
        let error = Config::parse("mesh.yaml", &with_authority(authority)).expect_err(field);
        assert_eq!(error.line, line, "{error}");
        assert!(error.field.starts_with(field), "{error}");
    }
}

#[test]
fn services_are_fenced_only_where_that_can_be() {
    let unfenced = "mesh.yaml:15: services[1].cell_key: only fenced writes belong to cells: add `authority`, and leave out `fenced: false`";
    refused("weights: computed", "cell_key: {cookie: c}", unfenced);
    refused(
        "weights: computed",
        "fenced: true",
        "mesh.yaml:15: services[1].fenced: nothing can be fenced without `authority`: add that section, or leave this out",
    );
    let text = GOOD.replacen("weights: computed", "fenced: false", 1);
    Config::parse("mesh.yaml", &text).expect("what is not fenced anyway");
    let hash = "strategy: {region_first_hash: {cookie: c}}";
    let hashed = "services[1].strategy: region_first_hash and sessions do not go with fenced writes: set `fenced: false`, or use the weighted strategy";
    for (from, to, expected) in [
        (
            "weights: computed",
            "fenced: false\n    cell_key: {cookie: c}",
            "17: services[1].cell_key: only fenced writes belong to cells: add `authority`, and leave out `fenced: false`",
        ),
        ("weights: computed", hash, &*format!("16: {hashed}")),
        (
            "weights: computed",
            &*format!("{hash}\n    sessions: {{cookie: c}}"),
            &*format!("16: {hashed}"),
        ),
        (
            "name: web",
            "name: gateway",
            "14: services[1].name: with `authority` this name is the gateways' own: choose another",
        ),
        (
            "weights: computed",
            "cell_key: {header: x-tidegate-home}",
            "9: services: header \"x-tidegate-home\": use lower case letters, digits and '-', and no name that Tidegate owns",
        ),
    ] {
        let text = with_authority(" {}").replacen(from, to, 1);
        let error = Config::parse("mesh.yaml", &text).expect_err(expected);
        assert_eq!(error.to_string(), format!("mesh.yaml:{expected}"));
    }
    let free = format!("{hash}\n    fenced: false");
    let text = with_authority(" {}").replacen("weights: computed", &free, 1);
    Config::parse("mesh.yaml", &text).expect("a hashed service that is not fenced");
    // Without authority the name is free.
    let text = GOOD.replacen("name: web", "name: gateway", 1);
    Config::parse("mesh.yaml", &text).expect("any name");
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

const TLS: &str = "tls: {cert: c.pem, key: k.pem, client_ca: ca.pem}";

#[test]
fn plain_text_is_for_loopback_unless_it_is_asked_for() {
    for (listen, expected) in [
        ("", (false, false)),
        ("xds: '127.9.9.9:1', admin: '[::1]:2'", (false, false)),
        ("admin: '[::ffff:127.0.0.1]:2'", (false, false)),
        (
            "xds: '0.0.0.0:1', admin: '0.0.0.0:2', plaintext: [xds, admin]",
            (false, false),
        ),
        (&format!("xds: '0.0.0.0:1', {TLS}"), (true, true)),
        (
            &format!("xds: '0.0.0.0:1', admin: '0.0.0.0:2', {TLS}, plaintext: [admin]"),
            (true, false),
        ),
    ] {
        let listen = with(&format!("listen: {{{listen}}}")).unwrap().listen;
        assert_eq!(
            (listen.xds.is_tls, listen.admin.is_tls),
            expected,
            "{listen:?}"
        );
    }
    for (listen, expected) in [
        (
            "xds: '0.0.0.0:1'",
            "listen.xds: 0.0.0.0:1 is not loopback, and would speak plain text with whoever reaches it: add `listen.tls`, or permit that with `listen.plaintext: [xds]`",
        ),
        (
            "xds: '[::]:1', admin: '10.0.0.1:2', plaintext: [xds]",
            "listen.admin: 10.0.0.1:2 is not loopback, and would speak plain text with whoever reaches it: add `listen.tls`, or permit that with `listen.plaintext: [admin]`",
        ),
        (
            &format!("{TLS}, plaintext: [xds, admin]"),
            "listen.tls: no port uses it: take one out of `listen.plaintext`, or leave `tls` out",
        ),
        (
            "tls: {cert: c.pem, key: k.pem}",
            "listen.tls: missing field `client_ca`",
        ),
        (
            "limits: {per_client: 0}",
            "listen.limits: numbers from 1: 0 would refuse everybody",
        ),
    ] {
        let error = with(&format!("listen: {{{listen}}}")).expect_err(expected);
        assert_eq!(error.to_string(), format!("mesh.yaml:1: {expected}"));
    }
}

#[test]
fn access_is_read_and_its_contradictions_are_refused() {
    let read = |access: &str| with(&format!("listen: {{{TLS}}}\naccess: {{{access}}}"));
    let access = read(
        "proxies: [{match: 'gw.{zone}', zones: [beijing-c], roles: [sidecar]}], operators: [{match: ops}]",
    );
    let access = access.unwrap().mesh.access;
    let proxies = access.proxies.as_ref().unwrap();
    assert_eq!(proxies[0].zones, Some(vec!["beijing-c".to_owned()]));
    assert_eq!(proxies[0].roles, Some(vec![crate::snapshot::Role::Sidecar]));
    assert_eq!(access.registrars, None);
    assert_eq!(access.operators.as_ref().map(Vec::len), Some(1));
    for (access, expected) in [
        (
            "proxies: [{match: a}, {match: 'a*'}]",
            "access.proxies[1].match: \"a*\": `*` stands for a whole path segment or label, not for a part of one",
        ),
        (
            "proxies: [{match: a, zones: [mars]}]",
            "access.proxies[0].zones: there is no zone \"mars\"",
        ),
        (
            "proxies: []",
            "access.proxies: empty, which permits nobody: add a rule, or leave it out to permit everybody who has a certificate",
        ),
        (
            "proxies: [{match: a, roles: []}]",
            "access.proxies[0].match: empty `zones` or `roles` permit nothing: leave them out for all",
        ),
        (
            "registrars: [{match: 'a.{role}'}]",
            "access.registrars[0].match: roles are for proxies: leave them out here",
        ),
        (
            "operators: [{match: 'a.{zone}'}]",
            "access.operators[0].match: operators belong to no zone: leave zones out here",
        ),
    ] {
        let error = read(access).expect_err(expected);
        assert_eq!(error.to_string(), format!("mesh.yaml:2: {expected}"));
    }
    let error = with("access: {proxies: [{match: a}]}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "mesh.yaml:1: access.proxies: listen.xds speaks plain text, where nobody shows a certificate: configure `listen.tls` for it, or leave this out"
    );
}
