//! Zones that go out and come back, loads, and the directives of operators.

use registry::{store::Revision, zone_records::StandingRecord};
use xds_server::world::Change;

use super::{ORDERS, World, entry, mesh, put, record, serving, shares};

/// `orders` with ten instances in `sh-a`, this many of them healthy, and one in `sh-b`.
fn of_ten(world: &mut World, healthy: u16) {
    world.apply(put("orders/sh-b/1", record(99, "healthy")));
    for port in 1..=10 {
        let health = match port <= healthy {
            true => "healthy",
            false => "unhealthy",
        };
        world.apply(put(&format!("orders/sh-a/{port}"), record(port, health)));
    }
}

#[test]
fn a_zone_that_goes_down_moves_its_share_at_once_and_comes_back_with_care() {
    let ramp = "failover: {hold_s: 30, ramp: {percent: [10, 50], over_s: 20}}";
    let orders = format!(
        "{{name: orders, routes: [{{prefix: /orders}}], weights: {{zone: 80, region: 20}}, {ramp}}}"
    );
    let mut world = World::new(mesh(&[&orders]));
    let mut seen = |healthy, ms| {
        of_ten(&mut world, healthy);
        let before = world.snapshot();
        let after = world.pass(ms).or(before);
        after.as_deref().map(shares).unwrap_or_default()
    };
    assert_eq!(seen(10, 0), [800, 200]);
    assert_eq!(seen(3, 0), [800, 200]);
    assert_eq!(seen(2, 0), [1000]);
    // 50 % would have been enough to stay up.
    assert_eq!(seen(5, 60_000), [1000]);
    assert_eq!(seen(6, 29_999), [1000]);
    assert_eq!(seen(6, 1), [80, 920]);
    assert_eq!(seen(6, 10_000), [400, 600]);
    assert_eq!(seen(6, 10_000), [800, 200]);
    assert_eq!(seen(5, 0), [800, 200]);
}

#[test]
fn noise_in_the_load_pushes_nothing_and_a_load_that_lasts_moves_weights_once() {
    let computed = "{name: orders, routes: [{prefix: /orders}], weights: computed}";
    let mut world = World::new(mesh(&[computed]));
    let mut load = |load: f64, ms: u64| {
        let loaded = format!(r#"{{"address":"10.0.0.1","port":1,"load1_per_core":{load}}}"#);
        world.apply(put("orders/sh-a/1", loaded));
        world.apply(put("orders/sh-b/2", record(2, "healthy")));
        world.pass(ms).map(|snapshot| shares(&snapshot))
    };
    assert_eq!(load(0.2, 0), Some(vec![750, 250]));
    for noise in [0.1, 0.87, 0.7, 0.84, 0.2] {
        assert_eq!(load(noise, 60_000), None, "{noise}");
    }
    // An overload of a half; then values around it.
    assert_eq!(load(1.3, 9_999), None);
    assert_eq!(load(1.3, 1), Some(vec![600, 400]));
    for noise in [1.25, 1.36, 1.24] {
        assert_eq!(load(noise, 60_000), None, "{noise}");
    }
}

#[test]
fn what_an_operator_wants_counts_at_once() {
    let (mut world, _) = serving();
    let intent = |at: &str, name: &str| {
        let key = format!("/tidegate/v1/config/intents/{at}");
        Change::Put(entry(key, format!(r#"{{"intent": "{name}"}}"#), 1))
    };
    let gone = |at: &str| Change::Deleted {
        key: format!("/tidegate/v1/config/intents/{at}"),
        revision: Revision(0),
    };
    world.apply(intent("sh-a/orders", "drain"));
    assert_eq!(shares(&world.snapshot().expect("a drain")), [1000]);
    // Unreadable records change nothing.
    assert_eq!(world.apply(intent("sh-a/orders", "explode")).len(), 1);
    assert_eq!(world.apply(intent("sh-a/orders/x", "pin")).len(), 1);
    assert!(world.snapshot().is_none());
    // A directive for the service takes precedence over one for the zone.
    world.apply(intent("sh-a", "drain"));
    world.apply(intent("sh-a/orders", "pin"));
    assert_eq!(shares(&world.snapshot().expect("a pin")), [800, 200]);
    world.apply(gone("sh-a/orders"));
    assert_eq!(shares(&world.snapshot().expect("a drain")), [1000]);
    world.apply(gone("sh-a"));
    assert_eq!(shares(&world.snapshot().expect("a ramp")), [8, 992]);
}

#[test]
fn a_replica_that_starts_goes_on_where_the_others_are() {
    let mut world = World::new(mesh(&[ORDERS]));
    of_ten(&mut world, 10);
    world.snapshot();
    of_ten(&mut world, 2);
    world.snapshot();
    let written: Vec<_> = world.world.proposals().clone().into_iter().collect();
    let [(at, proposal)] = &written[..] else {
        panic!("one zone has gone out: {written:?}");
    };
    assert_eq!(at, "/tidegate/v1/standings/orders/sh-a");
    assert_eq!(proposal.replaces, Revision(0));

    let mut fresh = World::new(mesh(&[ORDERS]));
    of_ten(&mut fresh, 10);
    let standing = StandingRecord::to_json(proposal.standing);
    fresh.apply(Change::Put(entry(at.clone(), standing, 7)));
    assert_eq!(shares(&fresh.snapshot().expect("a first snapshot")), [1000]);
    assert!(fresh.world.proposals().is_empty());
    // The record is deleted: the directive has ended.
    fresh.apply(Change::Deleted {
        key: at.clone(),
        revision: Revision(0),
    });
    assert_eq!(shares(&fresh.snapshot().expect("it is back")), [800, 200]);
}
