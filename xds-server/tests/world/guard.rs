//! Changes that the guard rejects.

use registry::store::Revision;
use xds_server::world::{Change, DOUBT_MS, Implausible, Origin, Seen};

use super::{ORDERS, World, entry, key, listed, mesh, ports, put, record, shares};

/// A world with ten instances of `orders` in each zone, and its first snapshot.
fn twenty() -> World {
    let mut world = World::new(mesh(&[ORDERS]));
    for port in 1..=20 {
        let zone = if port <= 10 { "sh-a" } else { "sh-b" };
        world.apply(put(
            &format!("orders/{zone}/{port}"),
            record(port, "healthy"),
        ));
    }
    world.snapshot().expect("a first snapshot");
    world
}

fn vanish(world: &mut World, ports: std::ops::RangeInclusive<u16>) {
    for port in ports {
        let zone = if port <= 10 { "sh-a" } else { "sh-b" };
        let key = key(&format!("orders/{zone}/{port}"));
        world.apply(Change::Deleted {
            key,
            revision: Revision(0),
        });
        world.snapshot();
    }
}

#[test]
fn half_of_all_instances_may_vanish_in_a_second() {
    let mut world = twenty();
    vanish(&mut world, 1..=10);
    assert_eq!(world.instances(), 20, "they are kept for a moment");
    let snapshot = world.pass(DOUBT_MS).expect("half of them");
    assert_eq!(shares(&snapshot), [1000]);
    assert_eq!((world.instances(), world.world.implausible()), (10, None));
}

#[test]
fn more_than_half_of_all_instances_cannot_vanish_in_a_second_unless_somebody_says_so() {
    let mut world = twenty();
    vanish(&mut world, 1..=5);
    world.pass(DOUBT_MS / 2);
    vanish(&mut world, 6..=11);
    let gone = Implausible::Vanished { gone: 11, of: 20 };
    assert_eq!(world.world.implausible(), Some(&gone));
    assert!(world.pass(100 * DOUBT_MS).is_none(), "nothing changes");
    assert_eq!((world.instances(), world.world.kept()), (20, 11));
    // Meanwhile a new instance is accepted, and one that drains is removed.
    world.apply(put("orders/sh-a/99", record(99, "healthy")));
    world.apply(put("orders/sh-b/20", record(20, "draining")));
    vanish(&mut world, 20..=20);
    assert_eq!((world.instances(), world.world.kept()), (20, 11));

    let seen = world.world.seen();
    world.world.confirm(seen);
    let snapshot = world.snapshot().expect("it is believed");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [99]);
    assert_eq!((world.instances(), world.world.implausible()), (9, None));
}

#[test]
fn an_operator_confirms_an_emptied_store_once() {
    let mut world = World::unvouched(mesh(&[ORDERS]));
    for port in 1..=3 {
        world.apply(put(&format!("orders/sh-a/{port}"), record(port, "healthy")));
    }
    assert!(world.snapshot().expect("a first snapshot").is_bare());
    // Before the instances have existed long enough to show that the store is in use.
    world.apply(listed(vec![]));
    world.pass(DOUBT_MS);
    let all = Implausible::Vanished { gone: 3, of: 3 };
    assert_eq!(world.world.implausible(), Some(&all));
    let seen = world.world.seen();
    world.world.confirm(seen);
    assert!(!world.snapshot().expect("it is believed").is_bare());
    assert!(!world.world.is_bare(), "no question is repeated");
}

#[test]
fn an_empty_registry_is_not_believed_and_forgotten_when_instances_come_back() {
    let mut world = twenty();
    world.apply(listed(vec![]));
    assert!(world.pass(10 * DOUBT_MS).is_none());
    let all = Implausible::Vanished { gone: 20, of: 20 };
    assert_eq!(world.world.implausible(), Some(&all));
    for port in 1..=9 {
        world.apply(put(&format!("orders/sh-a/{port}"), record(port, "healthy")));
        assert!(world.pass(DOUBT_MS).is_none());
    }
    // Half of them are back: the others are really gone.
    world.apply(put("orders/sh-a/10", record(10, "healthy")));
    assert_eq!(shares(&world.pass(DOUBT_MS).expect("fewer")), [1000]);
    assert_eq!((world.instances(), world.world.implausible()), (10, None));
}

#[test]
fn a_store_that_went_back_is_not_believed_until_somebody_says_so() {
    let mut world = twenty();
    world.apply(Change::Restored {
        revision: Revision(3),
        was: Revision(300),
        cluster: None,
    });
    assert!(world.pass(10 * DOUBT_MS).is_none());
    let told = world.world.implausible().expect("told").to_string();
    assert!(told.contains("300") && told.contains("backup"), "{told}");
    let confirmed = Change::Listed {
        entries: vec![entry(key("orders/sh-a/1"), record(1, "healthy"), 1)],
        revision: Revision(3),
        origin: Origin::Confirmed,
    };
    assert_eq!(world.apply(confirmed), []);
    world.snapshot().expect("the store's content");
    assert_eq!((world.instances(), world.world.implausible()), (1, None));
}

#[test]
fn what_vanishes_after_an_operator_has_looked_is_not_confirmed() {
    let mut world = twenty();
    let vanish = |world: &mut World, ports: std::ops::RangeInclusive<u16>, revision| {
        for port in ports {
            let zone = if port <= 10 { "sh-a" } else { "sh-b" };
            world.apply(Change::Deleted {
                key: key(&format!("orders/{zone}/{port}")),
                revision: Revision(revision),
            });
        }
    };
    vanish(&mut world, 1..=11, 200);
    world.snapshot();
    let seen = world.world.seen();
    assert_eq!((seen.revision, seen.instances), (Revision(200), 9));
    // While the confirmation is being written.
    vanish(&mut world, 12..=17, 201);
    world.world.confirm(seen);
    world.pass(10 * DOUBT_MS);
    let rest = Implausible::Vanished { gone: 6, of: 9 };
    assert_eq!(world.world.implausible(), Some(&rest));
    assert_eq!((world.instances(), world.world.kept()), (9, 6));
}

#[test]
fn a_store_that_was_emptied_after_it_was_confirmed_is_not_vouched_for() {
    let mut world = World::unvouched(mesh(&[ORDERS]));
    world.apply(listed(vec![]));
    let seen = |instances| Seen {
        revision: Revision(1),
        instances,
    };
    world.apply(Change::Confirmed(seen(6)));
    assert!(world.snapshot().expect("a first snapshot").is_bare());
    world.apply(Change::Confirmed(seen(0)));
    assert!(!world.snapshot().expect("it is believed").is_bare());
}
