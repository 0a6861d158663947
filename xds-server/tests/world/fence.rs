//! The owners of cells, and the gateways to which writes are forwarded.

use std::{collections::BTreeSet, sync::Arc};

use policy::{Policy, fence::Agreement};
use registry::{
    store::Revision,
    terms::{TERMS_KEY, TermsRecord},
};
use xds::resource::Kind;
use xds_server::{
    config::Mesh,
    snapshot::Snapshot,
    world::{Change, DOUBT_MS, Origin},
};

use super::{
    AUTHORITY, ORDERS, World, entry, key, mesh, mesh_with, ports, put, record, versions, view,
};

/// `ORDERS` in two zones, with fenced writes.
fn fenced_mesh() -> Arc<Mesh> {
    mesh_with(AUTHORITY, &["sh-a", "sh-b"], &[ORDERS])
}

/// The owners of the cell `main` and its epoch, as `sh-a`'s proxies receive them.
fn owners(snapshot: &Snapshot) -> (Vec<String>, u64) {
    let Policy::Serving(rules) = &**view(snapshot, "sh-a").policy() else {
        panic!("a serving policy");
    };
    let cell = &rules.fencing().expect("a fence").cells()[0];
    let names = cell
        .owners
        .iter()
        .map(|zone| rules.topology().zone_name(*zone));
    (names.map(str::to_owned).collect(), cell.epoch)
}

/// A proxy that requests grants with such a policy does not count as an older filter.
#[test]
fn policies_from_before_the_first_terms_have_the_id_of_those() {
    let mesh = fenced_mesh();
    let first = Agreement::first(mesh.agreed().expect("an authority"));
    let mut world = World::new(Arc::clone(&mesh));
    let before = world.snapshot().expect("a first snapshot");
    let Policy::Serving(rules) = &**view(&before, "sh-a").policy() else {
        panic!("a serving policy");
    };
    assert_eq!(rules.fencing().expect("a fence").terms.id, first.id());

    let record = TermsRecord::from(&first).to_json();
    world.apply(Change::Put(entry(TERMS_KEY.to_owned(), record, 1)));
    let after = world.snapshot().unwrap_or_else(|| Arc::clone(&before));
    assert_eq!(versions(&before), versions(&after));
}

#[test]
fn new_owners_reach_every_policy_and_change_nothing_else() {
    let authority = |cell: &str, value: &str| {
        let key = format!("/tidegate/v1/authority/{cell}");
        Change::Put(entry(key, value, 1))
    };
    let mut world = World::new(fenced_mesh());
    world.apply(put("orders/sh-a/1", record(1, "healthy")));
    let before = world.snapshot().expect("a first snapshot");
    assert_eq!(owners(&before), (vec![], 0));

    let first = r#"{"store": "1", "epoch": 3, "owners": ["sh-a", "mars"], "state": "settling"}"#;
    assert_eq!(world.apply(authority("main", first)), []);
    let after = world.snapshot().expect("an owner");
    assert_eq!(owners(&after), (vec!["sh-a".to_owned()], 3));
    let changed = versions(&after);
    let changed = versions(&before)
        .into_iter()
        .filter(|(at, version)| changed[at] != *version);
    let kinds: BTreeSet<Kind> = changed.map(|((_, kind, _), _)| kind).collect();
    assert_eq!(kinds, BTreeSet::from([Kind::FilterConfig]));

    // Proxies ignore the state of a cell between two moves, unreadable records, and cells outside
    // of this mesh.
    let active = r#"{"store": "1", "epoch": 3, "owners": ["sh-a", "mars"], "state": "active"}"#;
    assert_eq!(world.apply(authority("main", active)), []);
    assert_eq!(world.apply(authority("other", active)), []);
    for (cell, value, code) in [
        ("main", "garbage", "json"),
        ("main", r#"{"epoch": -1, "owners": []}"#, "json"),
        ("main", r#"{"epoch": 9}"#, "json"),
        ("main/x", active, "key"),
    ] {
        let told = world.apply(authority(cell, value));
        assert_eq!(
            told.iter().map(|r| r.error.code()).collect::<Vec<_>>(),
            [code]
        );
    }
    assert!(world.snapshot().is_none());

    let moved = r#"{"store": "1", "epoch": 4, "owners": ["sh-b"], "state": "active"}"#;
    world.apply(authority("main", moved));
    let snapshot = world.snapshot().expect("another owner");
    assert_eq!(owners(&snapshot), (vec!["sh-b".to_owned()], 4));
    // It is deleted, or missing in a listing.
    let key = || "/tidegate/v1/authority/main".to_owned();
    world.apply(Change::Deleted {
        key: key(),
        revision: Revision(0),
    });
    let snapshot = world.snapshot().expect("no owner");
    assert_eq!(owners(&snapshot), (vec![], 0));
    for origin in [Origin::Store, Origin::Confirmed] {
        let instance = entry(self::key("orders/sh-a/1"), record(1, "healthy"), 1);
        let listed = |entries| Change::Listed {
            entries,
            revision: Revision(1),
            origin,
        };
        world.apply(listed(vec![instance.clone(), entry(key(), moved, 2)]));
        let snapshot = world.snapshot().expect("an owner");
        assert_eq!(owners(&snapshot), (vec!["sh-b".to_owned()], 4));
        world.apply(listed(vec![instance]));
        let snapshot = world.snapshot().expect("no owner");
        assert_eq!(owners(&snapshot), (vec![], 0));
    }
    // A new mesh keeps the known owners.
    world.apply(authority("main", moved));
    world.apply(Change::Mesh(mesh(&[ORDERS])));
    world.snapshot().expect("no fence");
    world.apply(Change::Mesh(fenced_mesh()));
    let snapshot = world.snapshot().expect("a fence");
    assert_eq!(owners(&snapshot), (vec!["sh-b".to_owned()], 4));
}

#[test]
fn gateways_are_endpoints_to_which_no_route_leads() {
    let mut world = World::new(fenced_mesh());
    world.apply(put("orders/sh-a/1", record(1, "healthy")));
    let before = world.snapshot().expect("a first snapshot");
    assert_eq!(world.apply(put("gateway/sh-b/g", record(9, "healthy"))), []);
    let after = world.snapshot().expect("a gateway");
    assert_eq!(ports(&after, "gateway/sh-b"), [9]);
    let needed = |zone| {
        let needed = view(&after, zone).needed().iter();
        let gateways = needed.filter(|name| name.starts_with("gateway/"));
        gateways.map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (needed("sh-a"), needed("sh-b")),
        (
            vec!["gateway/sh-b".to_owned()],
            vec!["gateway/sh-a".to_owned()]
        )
    );
    for ((_, old), (_, new)) in before.views().zip(after.views()) {
        assert!(Arc::ptr_eq(old.policy(), new.policy()), "no plan changes");
    }
    let statuses = world.world.statuses();
    assert!(statuses.contains_key(&("gateway".into(), "sh-b".into())));
    // It is removed like any other.
    world.apply(Change::Deleted {
        key: key("gateway/sh-b/g"),
        revision: Revision(0),
    });
    let gone = world.pass(DOUBT_MS).expect("no gateway");
    assert_eq!(ports(&gone, "gateway/sh-b"), [] as [u32; 0]);
    // Without a fence no proxy needs them.
    world.apply(put("gateway/sh-b/g", record(9, "healthy")));
    let told = world.apply(Change::Mesh(mesh(&[ORDERS])));
    assert_eq!(
        told.iter().map(|r| r.error.code()).collect::<Vec<_>>(),
        ["unknown_service"]
    );
}
