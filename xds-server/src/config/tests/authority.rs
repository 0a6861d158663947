//! Write authority.

use policy::{Enforcement, Forward, Policy};

use super::*;
use crate::world;

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
    assert_eq!((authority.zones.len(), &authority.hop_keys), (0, &None));
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
    // chrony slews by up to 83 per mille.
    assert_eq!(terms.drift_permille, 100);
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
    let Policy::Serving(rules) = world::policy(&mesh, viewer, |_| Default::default(), &owners)
    else {
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
    let keys = authority.hop_keys.as_ref().expect("keys");
    assert!(keys.secrets().eq(["0123456789abcdef"]));
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
    // The standbys are ordered by distance from the first owner.
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
            "\n  forward_token: [0123456789abcdef, 0123456789abcdef]",
            "8: authority.forward_token: the two secrets are the same",
        ),
        (
            "\n  forward_token: [0123456789abcde1, 0123456789abcde2, 0123456789abcde3]",
            "8: authority.forward_token: 3 secrets: use one, or two while one replaces the other",
        ),
        (
            "\n  forward_token: []",
            "8: authority.forward_token: 0 secrets: use one, or two while one replaces the other",
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
            &*format!("{hash}\n    stateful_session: {{cookie: c}}"),
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
            "9: services: header \"x-tidegate-home\": use lower case letters, digits and '-', and no name that Tidegate or HTTP itself owns",
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
