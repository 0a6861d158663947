//! Several records with one address: the ones that proxies get.

use registry::{
    record::{InvalidRecord, Warning},
    store::Revision,
};
use xds_server::world::{Change, DOUBT_MS, Implausible};

use super::{
    ORDERS, WEB, World, entry, key, listed, mesh, mesh_of, mesh_with, ports, put, record, serving,
    shares,
};

/// A record of `orders` at this port, created at this revision.
fn claim(at: &str, port: u16, created: i64) -> Change {
    Change::Put(entry(key(at), record(port, "healthy"), created))
}

fn deleted(at: &str) -> Change {
    Change::Deleted {
        key: key(at),
        revision: Revision(0),
    }
}

fn codes(world: &World) -> Vec<(String, &'static str)> {
    let rejected = world.world.rejected().iter();
    rejected
        .map(|(at, error)| (at.replace(&key("orders/"), ""), error.code()))
        .collect()
}

#[test]
fn a_zone_cannot_take_an_address_from_another_zone() {
    let (mut world, before) = serving();
    let told = world.apply(claim("orders/sh-b/evil", 1, 9));
    let [rejection] = &told[..] else {
        panic!("one is told of: {told:?}");
    };
    assert_eq!(rejection.key, key("orders/sh-b/evil"));
    assert!(rejection.error.to_string().contains("orders/sh-a/1"));
    assert_eq!(
        codes(&world),
        [("sh-b/evil".into(), "address_of_another_zone")]
    );
    // Both are reported.
    let contested = Warning::Contested(vec![key("orders/sh-b/evil")]);
    let warnings = world.world.warnings().get(&key("orders/sh-a/1"));
    assert_eq!(warnings, Some(&vec![contested]));
    assert!(world.pass(10 * DOUBT_MS).is_none(), "nothing changes");
    assert_eq!(shares(&before), [800, 200]);

    // Nor with another form of the address, nor by writing it again; it is reported only once.
    let mapped = r#"{"address":"::ffff:10.0.0.1","port":1}"#;
    let mapped = entry(key("orders/sh-b/evil"), mapped, 9);
    assert_eq!(world.apply(Change::Put(mapped)), []);
    assert_eq!(world.apply(claim("orders/sh-b/evil", 1, 9)), []);
    assert!(world.pass(10 * DOUBT_MS).is_none(), "nothing changes");

    // Another service may have the same address, and an unknown zone causes no conflict.
    assert_eq!(world.apply(put("web/sh-b/1", record(1, "healthy"))), []);
    world.apply(claim("orders/mars/9", 1, 0));
    let snapshot = world.snapshot().expect("an instance of web");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1]);

    // The rival is removed: no oddity is left.
    world.apply(deleted("orders/sh-b/evil"));
    assert_eq!(codes(&world), [("mars/9".into(), "unknown_zone")]);
    assert!(world.world.warnings().is_empty());
    assert!(world.pass(10 * DOUBT_MS).is_none(), "nothing changes");
}

#[test]
fn an_address_moves_to_another_zone_once_its_record_is_gone() {
    let (mut world, _) = serving();
    world.apply(claim("orders/sh-b/moved", 1, 9));
    world.apply(deleted("orders/sh-a/1"));
    assert!(world.snapshot().is_none(), "the disappearance is doubted");
    let snapshot = world.pass(DOUBT_MS).expect("other endpoints");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [] as [u32; 0]);
    assert_eq!(ports(&snapshot, "orders/sh-b"), [2, 1]);
    assert_eq!(codes(&world), []);
}

#[test]
fn an_instance_that_restarts_under_another_name_takes_over_within_its_zone() {
    let (mut world, _) = serving();
    let restarted = entry(key("orders/sh-a/new"), record(1, "unhealthy"), 5);
    let told = world.apply(Change::Put(restarted));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].error.code(), "duplicate_address");
    assert_eq!(told[0].key, key("orders/sh-a/1"));
    let snapshot = world.snapshot().expect("an unhealthy instance");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1]);
    assert_eq!(shares(&snapshot), [1000], "of the newer one's health");
    world.apply(claim("orders/sh-a/new", 1, 5));
    let snapshot = world.pass(60 * 60_000).expect("a healthy one");
    assert_eq!(shares(&snapshot), [800, 200]);
    // Another zone has no precedence: the zone's oldest record counts.
    world.apply(claim("orders/sh-b/evil", 1, 3));
    let expected = [
        ("sh-a/1".into(), "duplicate_address"),
        ("sh-b/evil".into(), "address_of_another_zone"),
    ];
    assert_eq!(codes(&world), expected);
    assert!(world.pass(10 * DOUBT_MS).is_none(), "nothing changes");
    // Proxies get the same instance, no matter which of the two in the zone is removed.
    world.apply(deleted("orders/sh-b/evil"));
    world.apply(deleted("orders/sh-a/1"));
    assert!(world.pass(10 * DOUBT_MS).is_none(), "nothing changes");
    assert_eq!((codes(&world), world.instances()), (vec![], 2));
}

#[test]
fn a_restart_of_all_instances_under_other_names_is_no_disappearance() {
    let mut world = World::new(mesh(&[ORDERS]));
    for port in 1..=4 {
        world.apply(claim(&format!("orders/sh-a/old-{port}"), port, 1));
    }
    world.snapshot().expect("a first snapshot");
    for port in 1..=4 {
        world.apply(deleted(&format!("orders/sh-a/old-{port}")));
        world.apply(claim(&format!("orders/sh-a/new-{port}"), port, 2));
    }
    assert!(world.snapshot().is_none(), "the addresses are the same");
    assert_eq!((world.instances(), world.world.kept()), (4, 0));
    assert_eq!(world.world.implausible(), None);
}

#[test]
fn every_replica_says_the_same_whatever_it_heard_first() {
    let records = [
        entry(key("orders/sh-a/1"), record(1, "healthy"), 2),
        entry(key("orders/sh-a/2"), record(1, "healthy"), 7),
        entry(key("orders/sh-b/3"), record(1, "healthy"), 4),
        entry(key("orders/sh-b/4"), record(1, "healthy"), 9),
    ];
    let orders: [[usize; 4]; 5] = [
        [0, 1, 2, 3],
        [3, 2, 1, 0],
        [2, 0, 3, 1],
        [1, 3, 0, 2],
        [2, 3, 1, 0],
    ];
    for order in orders {
        let mut world = World::new(mesh(&[ORDERS]));
        for index in order {
            world.apply(Change::Put(records[index].clone()));
        }
        world.snapshot();
        let snapshot = world.pass(10 * DOUBT_MS);
        drop(snapshot);
        // The listing after a restart.
        let mut restarted = World::new(mesh(&[ORDERS]));
        restarted.apply(listed(records.to_vec()));
        let snapshot = restarted.snapshot().expect("a first snapshot");
        assert_eq!(ports(&snapshot, "orders/sh-a"), [1]);
        assert_eq!(ports(&snapshot, "orders/sh-b"), [] as [u32; 0]);
        assert_eq!(codes(&world), codes(&restarted), "{order:?}");
        let expected = [
            ("sh-a/1".into(), "duplicate_address"),
            ("sh-b/3".into(), "address_of_another_zone"),
            ("sh-b/4".into(), "address_of_another_zone"),
        ];
        assert_eq!(codes(&world), expected, "{order:?}");
    }
}

/// A world with four instances in `sh-a` and one in `sh-b`. Older records of `sh-b` then claim the
/// addresses of `sh-a`.
fn beaten(count: u16) -> World {
    let guard = "guard: {vanish_percent: 30}";
    let mut world = World::new(mesh_with(guard, &["sh-a", "sh-b"], &[ORDERS]));
    for port in 1..=4 {
        world.apply(claim(&format!("orders/sh-a/{port}"), port, 10));
    }
    world.apply(claim("orders/sh-b/9", 9, 5));
    world.snapshot().expect("a first snapshot");
    for port in 1..=count {
        world.apply(claim(&format!("orders/sh-b/{port}"), port, 1));
    }
    world
}

#[test]
fn an_instance_that_loses_its_address_is_doubted_like_one_that_disappears() {
    let mut world = beaten(1);
    let snapshot = world.snapshot().expect("an instance more in sh-b");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1, 2, 3, 4]);
    assert_eq!(world.world.kept(), 1);
    // Its writes meanwhile do not change that.
    world.pass(DOUBT_MS / 2);
    world.apply(claim("orders/sh-a/1", 1, 10));
    let snapshot = world.pass(DOUBT_MS / 2).expect("an instance less");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [2, 3, 4]);
    assert_eq!(world.world.kept(), 0);
    // It comes back when the other record is removed.
    world.apply(deleted("orders/sh-b/1"));
    let snapshot = world.pass(DOUBT_MS).expect("it is back");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1, 2, 3, 4]);
    assert_eq!(codes(&world), []);
}

#[test]
fn many_that_lose_their_addresses_at_once_are_kept_until_an_operator_confirms() {
    let mut world = beaten(4);
    let snapshot = world.pass(100 * DOUBT_MS).expect("instances of sh-b");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1, 2, 3, 4]);
    let told = world.world.implausible();
    assert!(
        matches!(told, Some(Implausible::Vanished { gone: 4, .. })),
        "{told:?}"
    );
    // An instance whose record disappears, too, is kept as well; one that drains is removed.
    world.apply(deleted("orders/sh-a/1"));
    let leaving = entry(key("orders/sh-a/2"), record(2, "draining"), 10);
    world.apply(Change::Put(leaving));
    let snapshot = world.snapshot().expect("one less");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1, 3, 4]);
    let seen = world.world.seen();
    world.world.confirm(seen);
    let snapshot = world.snapshot().expect("it is believed");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [] as [u32; 0]);
    assert_eq!(ports(&snapshot, "orders/sh-b"), [1, 2, 3, 4, 9]);
    assert_eq!((world.instances(), world.world.kept()), (8, 0));
}

#[test]
fn instances_that_move_to_taken_addresses_are_doubted_too() {
    let mut world = beaten(0);
    for port in 1..=4 {
        world.apply(claim(&format!("orders/sh-a/{port}"), 9, 10));
    }
    assert!(
        world.pass(100 * DOUBT_MS).is_none(),
        "all are served as before"
    );
    let told = world.world.implausible();
    assert!(
        matches!(told, Some(Implausible::Vanished { gone: 4, .. })),
        "{told:?}"
    );
    for port in 1..=4 {
        world.apply(claim(&format!("orders/sh-a/{port}"), port, 10));
    }
    assert!(world.pass(DOUBT_MS).is_none(), "nothing has changed");
    assert_eq!((codes(&world), world.world.kept()), (vec![], 0));
    assert_eq!(world.world.implausible(), None);
}

#[test]
fn a_new_zone_with_older_records_takes_addresses_over_with_doubt() {
    let mut world = World::new(mesh_of(&["sh-a"], &[ORDERS]));
    world.apply(claim("orders/sh-a/1", 1, 10));
    world.apply(claim("orders/sh-a/2", 2, 10));
    world.apply(claim("orders/sh-a/3", 3, 10));
    world.apply(claim("orders/sh-b/1", 1, 1));
    world.snapshot().expect("a first snapshot");
    world.apply(Change::Mesh(mesh(&[ORDERS])));
    let snapshot = world.snapshot().expect("another mesh");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1, 2, 3]);
    let snapshot = world.pass(DOUBT_MS).expect("an instance less");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [2, 3]);
    assert_eq!(ports(&snapshot, "orders/sh-b"), [1]);
    // And the zone is removed again.
    world.apply(Change::Mesh(mesh_of(&["sh-a"], &[ORDERS])));
    let snapshot = world.snapshot().expect("another mesh");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1, 2, 3]);
}

#[test]
fn unknown_fields_are_warned_of_and_a_bad_record_keeps_its_own_fault() {
    let (mut world, _) = serving();
    let odd = r#"{"address":"10.0.0.1","port":1,"helth":"unhealthy"}"#;
    assert_eq!(world.apply(put("orders/sh-a/1", odd)), []);
    let warnings = world.world.warnings().get(&key("orders/sh-a/1"));
    let unknown = Warning::UnknownFields(vec!["helth".into()]);
    assert_eq!(warnings, Some(&vec![unknown]));
    world.apply(put("orders/sh-a/1", record(1, "healthy")));
    assert!(world.world.warnings().is_empty());
    // A record that became unreadable is still reported as that, even if others claim its address.
    world.apply(put("orders/sh-a/1", "{"));
    world.apply(claim("orders/sh-a/2", 1, 9));
    assert_eq!(codes(&world), [("sh-a/1".into(), "json")]);
    world.apply(put("orders/sh-a/1", record(1, "healthy")));
    assert_eq!(codes(&world), [("sh-a/1".into(), "duplicate_address")]);
}

#[test]
fn loopback_is_taken_where_all_proxies_run_on_this_machine_or_an_operator_permits_it() {
    let local = r#"{"address":"127.0.0.1","port":9901}"#;
    for (more, taken) in [
        ("", true),
        ("listen: {xds: \"127.0.0.9:1\"}", true),
        ("listen: {xds: \"0.0.0.0:1\", plaintext: [xds]}", false),
        (
            "listen: {xds: \"0.0.0.0:1\", plaintext: [xds]}\nguard: {vanish_percent: 9}",
            false,
        ),
        (
            "listen: {xds: \"0.0.0.0:1\", plaintext: [xds]}\nguard: {loopback_instances: true}",
            true,
        ),
        ("guard: {loopback_instances: false}", false),
    ] {
        let mut world = World::new(mesh_with(more, &["sh-a"], &[ORDERS, WEB]));
        let told = world.apply(put("orders/sh-a/1", local));
        assert_eq!(told.is_empty(), taken, "{more}: {told:?}");
        let refused =
            |told: &xds_server::world::Rejection| matches!(told.error, InvalidRecord::Loopback(_));
        assert!(told.iter().all(refused));
        // A new mesh checks all records again.
        world.snapshot().expect("a first snapshot");
        let open = mesh_with("", &["sh-a"], &[ORDERS, WEB]);
        world.apply(Change::Mesh(open));
        assert_eq!(world.rejected(), 0);
        let snapshot = world.snapshot().expect("another mesh");
        assert_eq!(ports(&snapshot, "orders/sh-a"), [9901]);
    }
}
