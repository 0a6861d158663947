//! A key stays on its zone.

use policy::{Plan, Target, Topology, WEIGHT_TOTAL, ZoneId, shard::key_digest};

use crate::any;

const KEYS: u32 = 4_000;

fn topology() -> Topology {
    let zones = ["a", "b", "c", "d", "e"].map(|zone| (zone, "city"));
    Topology::new(zones, []).expect("a valid topology")
}

/// A plan with these weights, in the order of the zones; without the zones of weight 0.
fn plan(topology: &Topology, weights: &[u32]) -> Plan {
    let targets = topology.zones().zip(weights);
    let targets = targets.filter(|(_, weight)| **weight > 0);
    let targets = targets
        .map(|(zone, weight)| Target {
            zone,
            weight: *weight,
        })
        .collect();
    Plan::of_targets(topology, any::zone(topology, 0), targets, 0)
}

#[test]
fn keys_spread_as_the_weights_say() {
    let topology = topology();
    for weights in [&[800, 200][..], &[500, 300, 150, 49, 1], &[1000]] {
        let plan = plan(&topology, weights);
        for (zone, weight) in topology.zones().zip(weights) {
            let share = owners(&topology, &plan)
                .filter(|owner| *owner == zone)
                .count();
            // Four standard deviations of a binomial share at most: 4 * sqrt(0.25 / KEYS) = 3.2 %.
            let exact = f64::from(*weight) / f64::from(WEIGHT_TOTAL);
            let off = share as f64 / f64::from(KEYS) - exact;
            assert!(off.abs() < 0.032, "{zone:?} is off its {weight} by {off}");
        }
    }
}

/// The owner of each of [`KEYS`] keys.
fn owners(topology: &Topology, plan: &Plan) -> impl Iterator<Item = ZoneId> {
    (0..KEYS).map(|key| {
        let digest = key_digest(format!("user-{key}").as_bytes());
        plan.zone_of_key(topology, digest).expect("an open plan")
    })
}

#[test]
fn when_a_zone_leaves_only_its_keys_move() {
    let topology = topology();
    for (before, after) in [
        ([800, 200, 0, 0, 0], [0, 1000, 0, 0, 0]),
        ([0, 500, 250, 250, 0], [0, 0, 500, 500, 0]),
        ([500, 125, 125, 125, 125], [0, 250, 250, 250, 250]),
        ([200, 200, 200, 200, 200], [250, 0, 250, 250, 250]),
    ] {
        let (before, after) = (plan(&topology, &before), plan(&topology, &after));
        let stays = |zone| after.targets().iter().any(|target| target.zone == zone);
        let moved = owners(&topology, &before)
            .zip(owners(&topology, &after))
            .filter(|(old, new)| old != new && stays(*old));
        assert_eq!(moved.count(), 0, "{before:?} -> {after:?}");
    }
}
