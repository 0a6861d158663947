//! The shares of zones.

use std::collections::BTreeSet;

use policy::{
    Class, Demand, Link, Plan, Plans, Tier, Topology, WEIGHT_TOTAL, Weighting, ZoneId, ZoneLoad,
    ZoneState, weighting::score,
};
use proptest::prelude::*;

use crate::{any, support};

const EIGHTY_TWENTY: Weighting = Weighting::Operator {
    zone: 80,
    region: 20,
};

/// Checks the plan for reads of `sh-a`, one of the four zones in [`support::topology`].
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
    // Shares that are all 0 do not reject requests: computed weights replace them.
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
        // A zone that is down is used only if none is up.
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
    // Different links do not count here.
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
    // sh-a: 1/(0+1) = 1; sh-b: 1/(1+1) = 1/2. The load counts from 0.8 on, and is worth all from
    // 1.8 on: 0.8, 0.8:  1 : 0.5             = 666.7 : 333.3 1.3, 0.0:  1 * 0.5 : 0.5       = 500 :
    // 500 0.0, 1.55: 1 : 0.5 * 0.25      = 888.9 : 111.1 9.0, 0.0:  1 * 0.01 : 0.5      = 19.6 :
    // 980.4   (a hundredth is kept) 9.0, 9.0:  0.01 : 0.005        = 666.7 : 333.3 A load that is
    // no number, and one below 0, count as none; an infinite one as the highest.
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

/// `UUUU` with these shares of a ramp.
fn ramped(states: &str, shares: [u16; 4]) -> Vec<ZoneLoad> {
    let mut loads = support::states(states);
    for (load, share) in loads.iter_mut().zip(shares) {
        load.share = share;
    }
    loads
}

#[test]
fn a_zone_that_comes_back_gets_its_step_and_others_the_rest() {
    use Class::{Read, Write};
    let full = 1_000;
    for (states, shares, class, expected) in [
        // 1 % of 80 %; the remainder goes to the sibling.
        (
            "UUUU",
            [10, full, full, full],
            Read,
            "zone: sh-a 8 sh-b 992",
        ),
        (
            "UUUU",
            [500, full, full, full],
            Write,
            "zone: sh-a 400 sh-b 600",
        ),
        (
            "UUUU",
            [full, 100, full, full],
            Read,
            "zone: sh-a 980 sh-b 20",
        ),
        // A ramp is no reason to leave the region if it has no other capacity. A zone further along
        // its ramp receives more.
        ("UEUU", [10, full, full, full], Read, "zone: sh-a 1000"),
        ("UDUU", [10, full, full, full], Read, "zone: sh-a 1000"),
        ("UEUU", [10, full, full, full], Write, "zone: sh-a 1000"),
        (
            "UUUU",
            [10, 10, full, full],
            Read,
            "zone: sh-a 800 sh-b 200",
        ),
        (
            "UUUU",
            [10, 100, full, full],
            Read,
            "zone: sh-a 286 sh-b 714",
        ),
        (
            "UUEE",
            [10, 100, full, full],
            Read,
            "zone: sh-a 286 sh-b 714",
        ),
        // Remote zones, too, get their step first.
        (
            "EEUU",
            [full, full, 10, full],
            Read,
            "remote: bj-c 7 bj-d 993",
        ),
        ("DEEE", [10, full, full, full], Read, "zone: sh-a 1000"),
    ] {
        check_class(class, EIGHTY_TWENTY, &ramped(states, shares), expected);
    }
    // Even with a share of 0, siblings take the requests that exceed a zone's ramp.
    let alone = Weighting::default();
    check(
        alone,
        &ramped("UUUU", [10, full, full, full]),
        "zone: sh-a 10 sh-b 990",
    );
}

#[test]
fn reads_leave_a_region_that_comes_back_where_an_operator_asks_for_it_or_its_capacity_does() {
    let full = 1_000;
    let mut loads = ramped("UUUU", [10, 10, full, full]);
    for load in &mut loads {
        load.leaves_region = true;
    }
    check(
        EIGHTY_TWENTY,
        &loads,
        "zone: sh-a 8 sh-b 2 bj-c 660 bj-d 330",
    );
    check_class(
        Class::Write,
        EIGHTY_TWENTY,
        &loads,
        "zone: sh-a 503 sh-b 497",
    );
    // Requests that exceed the region's capacity are handled as before.
    let topology = support::topology();
    let mut loads = ramped("UUUU", [10, 10, full, full]);
    loads[0].capacity = 40.0;
    loads[1].capacity = 10.0;
    let demands = [Demand {
        reads: 100.0,
        writes: 0.0,
    }];
    let plans = Plans::compute(&topology, EIGHTY_TWENTY, &loads, &demands);
    let plan = plans.get(support::zone(&topology, "sh-a"), Class::Read);
    let text = any::plan_text(&topology, plan);
    assert_eq!(text, "zone: sh-a 400 sh-b 100 bj-c 333 bj-d 167");
}

#[test]
fn a_plan_says_of_each_target_whether_it_leaves_the_region() {
    let topology = support::topology();
    let zone = |name| support::zone(&topology, name);
    let mut loads = support::states("UUUE");
    loads[0].capacity = 10.0;
    loads[1].capacity = 10.0;
    let demands = [Demand {
        reads: 100.0,
        writes: 0.0,
    }];
    let plans = Plans::compute(&topology, EIGHTY_TWENTY, &loads, &demands);
    let plan = plans.get(zone("sh-a"), Class::Read);
    let tier = |at| plan.tier_of(&topology, zone("sh-a"), zone(at));
    assert_eq!(tier("sh-a"), Some(Tier::Zone));
    assert_eq!(tier("sh-b"), Some(Tier::Zone), "a share of the plan");
    assert_eq!(tier("bj-c"), Some(Tier::Remote));
    assert_eq!(
        Plan::CLOSED.tier_of(&topology, zone("sh-a"), zone("sh-a")),
        None
    );
}

#[test]
fn a_closed_plan_says_whether_an_operator_closed_it() {
    use Class::{Read, Write};
    let topology = support::topology();
    for (states, drained, class, expected) in [
        ("EEEE", "", Read, false),
        ("EEEE", "sh-a", Read, true),
        ("EEEE", "sh-b", Write, true),
        ("EEUU", "sh-a", Write, true),
        // Writes do not go there anyway.
        ("EEEE", "bj-c", Write, false),
        ("EEEE", "bj-c", Read, true),
    ] {
        let mut loads = support::states(states);
        for (at, load) in topology.zones().zip(&mut loads) {
            load.drained = topology.zone_name(at) == drained;
        }
        let home = support::zone(&topology, "sh-a");
        let plan = Plan::compute(&topology, EIGHTY_TWENTY, home, class, &loads);
        assert_eq!(
            plan,
            Plan::Closed { drained: expected },
            "{states} {drained}"
        );
    }
}

/// The plans of `sh-a` under these capacities and demands `(reads, writes)`, reads first.
#[track_caller]
fn check_bounded(capacities: [f64; 4], demands: [(f64, f64); 4], reads: &str, writes: &str) {
    let topology = support::topology();
    let mut loads = support::states("UUUU");
    for (load, capacity) in loads.iter_mut().zip(capacities) {
        load.capacity = capacity;
    }
    let demands = demands.map(|(reads, writes)| Demand { reads, writes });
    let plans = Plans::compute(&topology, EIGHTY_TWENTY, &loads, &demands);
    let home = support::zone(&topology, "sh-a");
    for (class, expected) in [(Class::Read, reads), (Class::Write, writes)] {
        let plan = plans.get(home, class);
        assert_eq!(any::plan_text(&topology, plan), expected, "{class:?}");
    }
}

#[test]
fn overload_spills_to_the_next_tier_and_the_rest_is_shed() {
    let none = (0.0, 0.0);
    let reads = |rps| [(rps, 0.0), none, none, none];
    // Writes have no known demand, so they are given their shares of the capacity.
    let unbounded = "zone: sh-a 800 sh-b 200";
    for (capacities, expected) in [
        ([80.0, 20.0, 0.0, 0.0], unbounded),
        // sh-a can serve 40 of its 80, and sh-b the remainder.
        ([40.0, 60.0, 0.0, 0.0], "zone: sh-a 400 sh-b 600"),
        // The region can serve 70; the distances of the remote zones give 2 to 1.
        (
            [40.0, 30.0, 1e3, 1e3],
            "zone: sh-a 400 sh-b 300 bj-c 200 bj-d 100",
        ),
        (
            [40.0, 30.0, 5.0, 5.0],
            "zone: sh-a 500 sh-b 375 bj-c 63 bj-d 62, shed 200",
        ),
    ] {
        check_bounded(capacities, reads(100.0), expected, unbounded);
    }
    let no_room = [0.0; 4];
    check_bounded(no_room, reads(100.0), "closed", "closed");
    // Writes are allocated first, and never leave the region.
    let both = [(60.0, 100.0), none, none, none];
    let writes = "zone: sh-a 714 sh-b 286, shed 300";
    check_bounded([50.0, 20.0, 1e3, 0.0], both, "remote: bj-c 1000", writes);
    // Two homes offer each zone 100, and its capacity is 60: it accepts the same part of both
    // offers.
    let two = [(100.0, 0.0), (100.0, 0.0), none, none];
    let each = "zone: sh-a 800 sh-b 200, shed 400";
    check_bounded([60.0, 60.0, 0.0, 0.0], two, each, unbounded);
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

/// The zones that a plan may use: the zones of the home's region that are up; without any, for
/// reads, all others that are up; without any, the same among those that are down.
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
                let Plan::Open { tier, targets, .. } = &plan else {
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

    /// For any steps, capacities and demands.
    #[test]
    fn bounded_plans_are_whole_and_shed_only_what_has_no_place(
        topology in any::topology(),
        weighting in any::weighting(),
        loads in any::bounded_loads(),
        demands in any::demands(),
    ) {
        let plans = Plans::compute(&topology, weighting, &loads, &demands);
        let mut taken = vec![0.0; loads.len()];
        for home in topology.zones() {
            for class in Class::ALL {
                let demand = match class {
                    Class::Read => demands[home.index()].reads,
                    Class::Write => demands[home.index()].writes,
                };
                let plan = plans.get(home, class);
                let Plan::Open { targets, shed, .. } = plan else { continue };
                prop_assert_eq!(targets.iter().map(|t| t.weight).sum::<u32>(), WEIGHT_TOTAL);
                prop_assert!(*shed < WEIGHT_TOTAL);
                let state = loads[targets[0].zone.index()].state;
                prop_assert!(state != ZoneState::Empty);
                for target in targets {
                    let tier = topology.tier(home, target.zone);
                    prop_assert!(class == Class::Read || tier != Tier::Remote, "{plan:?}");
                    prop_assert!(loads[target.zone.index()].state == state, "{plan:?}");
                    let served = f64::from(WEIGHT_TOTAL - shed) / f64::from(WEIGHT_TOTAL);
                    taken[target.zone.index()] +=
                        demand * served * f64::from(target.weight) / f64::from(WEIGHT_TOTAL);
                }
                // A ramp alone sheds nothing.
                let may = |zone: &ZoneId| class == Class::Read || topology.tier(home, *zone) != Tier::Remote;
                let mut usable = topology.zones().filter(may).filter(|z| loads[z.index()].state == state);
                prop_assert!(*shed == 0 || usable.all(|z| loads[z.index()].capacity.is_finite()));
            }
        }
        for zone in topology.zones() {
            // Each of the ten plans that may use the zone is rounded by up to two in a thousand.
            let rounding: f64 = demands.iter().map(|d| (d.reads + d.writes) * 0.005).sum();
            let bound = loads[zone.index()].capacity + rounding + 1e-6;
            prop_assert!(taken[zone.index()] <= bound, "{zone:?}: {} over {bound}", taken[zone.index()]);
        }
    }

    /// While capacities suffice, every zone that is fully in gets its part, with or without ramps.
    #[test]
    fn a_healthy_zone_is_never_starved(
        topology in any::topology(),
        mut loads in any::bounded_loads(),
    ) {
        for load in &mut loads {
            load.capacity = f64::INFINITY;
        }
        let plans = Plans::compute(&topology, Weighting::Computed, &loads, &[]);
        for zone in topology.zones() {
            if loads[zone.index()].state == ZoneState::Up {
                for class in Class::ALL {
                    let weight = weight_of(plans.get(zone, class), zone);
                    prop_assert!(weight > 0, "{:?}", plans.get(zone, class));
                }
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

proptest! {
    /// Over all possible draws each target gets its weight, and the shed part is rejected. The
    /// rejected draws do not bias the targets of the others.
    #[test]
    fn draws_share_requests_out_as_the_plan_says(
        rules in any::rules(),
        high in 0..1_000_u64,
    ) {
        let topology = rules.topology();
        let plans = rules.services().iter().flat_map(|service| {
            let classes = |home| Class::ALL.map(|class| service.plans.get(home, class));
            topology.zones().flat_map(classes)
        });
        for plan in plans {
            let draws = || (0..u64::from(WEIGHT_TOTAL)).map(|low| high << 32 | low);
            let shares = topology.zones().map(|zone| {
                let share = draws().filter(|draw| plan.zone_of_draw(*draw) == Some(zone));
                (zone, share.count() as u32)
            });
            let shares: Vec<_> = shares.filter(|(_, share)| *share > 0).collect();
            let targets = plan.targets().iter().map(|target| (target.zone, target.weight));
            prop_assert_eq!(shares, targets.collect::<Vec<_>>());
            prop_assert!(draws().all(|draw| plan.sheds(draw) == (high < u64::from(plan.shed()))));
        }
    }
}
