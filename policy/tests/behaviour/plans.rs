//! Who gets which share.

use std::collections::BTreeSet;

use policy::{
    Class, Link, Plan, Tier, Topology, WEIGHT_TOTAL, Weighting, ZoneId, ZoneLoad, ZoneState,
    plan::score,
};
use proptest::prelude::*;

use crate::{any, support};

const EIGHTY_TWENTY: Weighting = Weighting::Operator {
    zone: 80,
    region: 20,
};

/// The plan for reads of `sh-a`, of the four zones in [`support::topology`].
#[track_caller]
fn check(weighting: Weighting, loads: &[ZoneLoad], expected: &str) {
    check_class(Class::Read, weighting, loads, expected);
}

#[track_caller]
fn check_class(class: Class, weighting: Weighting, loads: &[ZoneLoad], expected: &str) {
    let topology = support::topology();
    let home = support::zone(&topology, "sh-a");
    let plan = Plan::compute(&topology, weighting, home, class, loads);
    assert_eq!(any::plan_text(&topology, &plan), expected);
}

#[test]
fn the_operators_shares_are_kept_exactly() {
    let up = support::states("UUUU");
    check(EIGHTY_TWENTY, &up, "zone: sh-a 800 sh-b 200");
    check(Weighting::default(), &up, "zone: sh-a 1000");
    // A share of nothing at all is no reason to refuse: computed weights stand in.
    let nothing = Weighting::Operator { zone: 0, region: 0 };
    check(nothing, &up, "zone: sh-a 500 sh-b 500");
}

#[test]
fn nearer_tiers_are_tried_first_and_writes_stay_in_the_region() {
    use Class::{Read, Write};
    for (states, class, expected) in [
        ("UUUU", Read, "zone: sh-a 800 sh-b 200"),
        ("UUUU", Write, "zone: sh-a 800 sh-b 200"),
        ("EUUU", Read, "region: sh-b 1000"),
        ("EUUU", Write, "region: sh-b 1000"),
        ("UEUU", Write, "zone: sh-a 1000"),
        // 1/30 to 1/60.
        ("EEUU", Read, "remote: bj-c 667 bj-d 333"),
        ("EEUU", Write, "closed"),
        ("EEEE", Read, "closed"),
        // A zone that is down helps out only where none is up.
        ("DUUU", Read, "region: sh-b 1000"),
        ("DDUU", Read, "remote: bj-c 667 bj-d 333"),
        ("DDUU", Write, "zone: sh-a 800 sh-b 200"),
        ("EDDE", Read, "region: sh-b 1000"),
        ("EEDE", Read, "remote: bj-c 1000"),
    ] {
        check_class(class, EIGHTY_TWENTY, &support::states(states), expected);
    }
    // No loads are known yet.
    check(EIGHTY_TWENTY, &[], "closed");
}

#[test]
fn siblings_share_equally_what_their_home_leaves() {
    let zones = ["a", "b", "c", "d"].map(|zone| (zone, "city"));
    // Even where the links differ: nobody asked for them to count.
    let slow = Link {
        rtt_ms: 50.0,
        cost: 3.0,
    };
    let topology = Topology::new(zones, [("a", "c", slow)]).expect("a valid topology");
    let home = support::zone(&topology, "a");
    for (states, expected) in [
        ("UUUU", "zone: a 800 b 67 c 67 d 66"),
        ("UUUE", "zone: a 800 b 100 c 100"),
        ("EUUU", "region: b 334 c 333 d 333"),
        ("EUUE", "region: b 500 c 500"),
    ] {
        let loads = support::states(states);
        let plan = Plan::compute(&topology, EIGHTY_TWENTY, home, Class::Write, &loads);
        assert_eq!(any::plan_text(&topology, &plan), expected, "{states}");
    }
}

#[test]
fn computed_weights_follow_distance_load_and_cost() {
    // sh-a: 1/(0+1) = 1; sh-b: 1/(1+1) = 1/2. The load counts from 0.8 on, and is worth all from 1.8 on:
    //   0.8, 0.8:  1 : 0.5             = 666.7 : 333.3
    //   1.3, 0.0:  1 * 0.5 : 0.5       = 500 : 500
    //   0.0, 1.55: 1 : 0.5 * 0.25      = 888.9 : 111.1
    //   9.0, 0.0:  1 * 0.01 : 0.5      = 19.6 : 980.4   (a hundredth is kept)
    //   9.0, 9.0:  0.01 : 0.005        = 666.7 : 333.3
    // A load that is no number, and one below 0, count as none; an infinite one as the highest.
    for (a, b, expected) in [
        (0.8, 0.8, "zone: sh-a 667 sh-b 333"),
        (1.3, 0.0, "zone: sh-a 500 sh-b 500"),
        (0.0, 1.55, "zone: sh-a 889 sh-b 111"),
        (9.0, 0.0, "zone: sh-a 20 sh-b 980"),
        (9.0, 9.0, "zone: sh-a 667 sh-b 333"),
        (f64::NAN, -1.0, "zone: sh-a 667 sh-b 333"),
        (f64::INFINITY, 0.0, "zone: sh-a 20 sh-b 980"),
    ] {
        let mut loads = support::states("UUUU");
        (loads[0].load1_per_core, loads[1].load1_per_core) = (a, b);
        check(Weighting::Computed, &loads, expected);
    }
    // rtt 4 ms at twice the cost, half overloaded: 1/5 * 0.5 / 2.
    let link = Link {
        rtt_ms: 4.0,
        cost: 2.0,
    };
    assert!((score(link, 1.3) - 0.05).abs() < 1e-12);
}

#[test]
fn the_longest_and_dearest_links_starve_nobody() {
    let zones = ["a", "b", "c", "d", "e", "f"].map(|zone| (zone, zone.to_ascii_uppercase()));
    let zones: Vec<(&str, String)> = zones
        .iter()
        .map(|(zone, region)| (*zone, format!("region-{}", region.to_ascii_lowercase())))
        .collect();
    let everywhere = |rtt_ms, cost| {
        let link = Link { rtt_ms, cost };
        let links = ["b", "c", "d", "e", "f"].map(|zone| ("a", zone, link));
        Topology::new(zones.iter().map(|(z, r)| (*z, r.as_str())), links)
    };
    for (rtt_ms, cost) in [
        (Link::RTT_MS_MAX, Link::COST_MAX),
        (0.0, Link::COST_MIN),
        (Link::RTT_MS_MAX, Link::COST_MIN),
    ] {
        let topology = everywhere(rtt_ms, cost).expect("links within the limits");
        let home = support::zone(&topology, "a");
        let mut loads = support::states("EUUUUU");
        loads[1].load1_per_core = f64::INFINITY;
        let plan = Plan::compute(&topology, Weighting::Computed, home, Class::Read, &loads);
        assert_eq!(plan.targets().len(), 5, "{rtt_ms} ms at {cost}");
    }
    assert!(everywhere(f64::MAX, 1.0).is_err());
    assert!(everywhere(1.0, f64::MAX).is_err());
    assert!(everywhere(1.0, f64::MIN_POSITIVE).is_err());
}

/// The zones among which a plan chooses: those of the home's region that are up; else, for reads, all others that are up;
/// else the same among those that are down.
fn group(topology: &Topology, home: ZoneId, class: Class, loads: &[ZoneLoad]) -> Vec<ZoneId> {
    let pick = |state, remote| -> Vec<ZoneId> {
        topology
            .zones()
            .filter(|zone| loads[zone.index()].state == state)
            .filter(|zone| (topology.tier(home, *zone) == Tier::Remote) == remote)
            .collect()
    };
    [ZoneState::Up, ZoneState::Down]
        .into_iter()
        .flat_map(|state| [(state, false), (state, true)])
        .filter(|(_, remote)| class == Class::Read || !remote)
        .map(|(state, remote)| pick(state, remote))
        .find(|zones| !zones.is_empty())
        .unwrap_or_default()
}

fn weight_of(plan: &Plan, zone: ZoneId) -> u32 {
    let mut targets = plan.targets().iter();
    targets.find(|t| t.zone == zone).map_or(0, |t| t.weight)
}

proptest! {
    #[test]
    fn a_plan_is_closed_or_whole(
        topology in any::topology(),
        weighting in any::weighting(),
        loads in any::loads(),
    ) {
        for home in topology.zones() {
            for class in Class::ALL {
                let plan = Plan::compute(&topology, weighting, home, class, &loads);
                let group = group(&topology, home, class, &loads);
                let Plan::Open { tier, targets } = &plan else {
                    prop_assert!(group.is_empty(), "closed, though {group:?} could serve");
                    continue;
                };
                prop_assert_eq!(targets.iter().map(|t| t.weight).sum::<u32>(), WEIGHT_TOTAL);
                prop_assert!(targets.iter().all(|t| t.weight > 0 && group.contains(&t.zone)));
                prop_assert!(targets.is_sorted_by(|a, b| a.zone < b.zone));
                prop_assert_eq!(Some(*tier), targets.iter().map(|t| topology.tier(home, t.zone)).min());

                let shared = group.iter().filter(|zone| match (weighting, topology.tier(home, **zone)) {
                    (Weighting::Operator { zone, .. }, Tier::Zone) => zone > 0,
                    (Weighting::Operator { region, .. }, Tier::Region) => region > 0,
                    (Weighting::Operator { .. }, Tier::Remote) | (Weighting::Computed, _) => true,
                });
                let served: BTreeSet<_> = targets.iter().map(|t| t.zone).collect();
                for zone in shared {
                    prop_assert!(served.contains(zone), "zone {zone:?} is starved: {plan:?}");
                }
                let again = Plan::compute(&topology, weighting, home, class, &loads);
                prop_assert_eq!(plan, again);
            }
        }
    }

    #[test]
    fn more_load_never_gives_more_weight(
        topology in any::topology(),
        mut loads in any::loads(),
        at in 0..5_usize,
        load in 0.0..3.0_f64,
        more in 0.0..2.0_f64,
    ) {
        let busier = any::zone(&topology, at);
        for home in topology.zones() {
            let mut weight = |load1_per_core| {
                loads[busier.index()].load1_per_core = load1_per_core;
                let plan = Plan::compute(&topology, Weighting::Computed, home, Class::Read, &loads);
                weight_of(&plan, busier)
            };
            prop_assert!(weight(load + more) <= weight(load));
        }
    }
}
