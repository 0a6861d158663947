//! Out at once, back with care: zones over simulated time.

use policy::{
    Failback, Failover, InstanceCounts, Observed, Phase, Thresholds, Why, ZoneAssessment,
    ZoneDirective, ZoneMachine, ZoneStanding, ZoneState,
};
use proptest::prelude::*;

const SECOND: u64 = 1_000;

/// Hold 30 s, at most 100 s; forgiven after 600 s; 1 %, 10 %, 50 % for 20 s each; load damped for
/// 10 s.
fn rules() -> Failover {
    Failover {
        hold_max_ms: 100 * SECOND,
        ..Failover::default()
    }
}

/// A zone of ten instances under a clock.
struct Zone {
    machine: ZoneMachine,
    rules: Failover,
    healthy: u32,
    directive: Option<ZoneDirective>,
    load: Option<f64>,
    now_ms: u64,
}

impl Zone {
    /// A zone that serves with all its instances.
    fn serving(rules: Failover) -> Zone {
        let mut zone = Zone {
            machine: ZoneMachine::default(),
            rules,
            healthy: 10,
            directive: None,
            load: None,
            now_ms: 7,
        };
        zone.check("healthy", 1_000);
        zone
    }

    fn observe(&mut self) -> ZoneAssessment {
        let counts = InstanceCounts {
            healthy: self.healthy,
            unhealthy: 10 - self.healthy,
        };
        let observed = Observed {
            counts,
            load: self.load,
            directive: self.directive,
        };
        self.machine.observe(observed, &self.rules, self.now_ms)
    }

    /// Lets time pass, with observations when the machine requests them.
    fn pass(&mut self, seconds: u64) {
        let end_ms = self.now_ms + seconds * SECOND;
        for _ in 0..1_000 {
            match self.observe().again_at_ms {
                Some(at_ms) if at_ms <= end_ms => self.now_ms = at_ms,
                _ => break,
            }
        }
        self.now_ms = end_ms;
    }

    #[track_caller]
    fn set(&mut self, healthy: u32, why: &str) {
        self.healthy = healthy;
        let verdict = self.observe();
        assert_eq!(verdict.why.as_str(), why, "{verdict:?}");
    }

    #[track_caller]
    fn check(&mut self, why: &str, share: u16) {
        let verdict = self.observe();
        assert_eq!(
            (verdict.why.as_str(), verdict.share),
            (why, share),
            "{verdict:?}"
        );
    }
}

#[test]
fn a_zone_goes_out_at_once_and_comes_back_after_a_hold_and_a_ramp() {
    let mut zone = Zone::serving(rules());
    zone.set(3, "healthy");
    zone.set(2, "unhealthy");
    assert_eq!(zone.observe().state, ZoneState::Down);
    // More than the lower limit is not enough to come back.
    zone.set(5, "unhealthy");
    zone.pass(100);
    zone.check("unhealthy", 1_000);
    zone.set(6, "holding");
    zone.pass(29);
    zone.check("holding", 1_000);
    zone.pass(1);
    zone.check("returning", 10);
    zone.pass(20);
    zone.check("returning", 100);
    zone.pass(20);
    zone.check("returning", 500);
    zone.pass(19);
    zone.check("returning", 500);
    zone.pass(1);
    zone.check("healthy", 1_000);
}

#[test]
fn a_dip_while_it_is_held_begins_the_hold_anew() {
    let mut zone = Zone::serving(rules());
    zone.set(0, "no_healthy_instance");
    zone.set(10, "holding");
    zone.pass(29);
    zone.set(5, "unhealthy");
    zone.set(10, "holding");
    zone.pass(29);
    zone.check("holding", 1_000);
    zone.pass(1);
    zone.check("returning", 10);
    assert_eq!(zone.machine.standing().flaps, 1, "it went out once");
}

#[test]
fn a_zone_that_flaps_is_held_longer_each_time_up_to_a_bound_and_is_forgiven() {
    let mut zone = Zone::serving(rules());
    for hold_s in [30, 60, 100, 100] {
        zone.set(0, "no_healthy_instance");
        zone.set(10, "holding");
        zone.pass(hold_s - 1);
        zone.check("holding", 1_000);
        zone.pass(1);
        zone.check("returning", 10);
    }
    zone.pass(60);
    zone.check("healthy", 1_000);
    zone.pass(599);
    assert_eq!(zone.machine.standing().flaps, 4);
    zone.pass(1);
    zone.observe();
    assert_eq!(zone.machine.standing(), ZoneStanding::default());
}

#[test]
fn with_manual_failback_it_waits_for_an_operator() {
    let mut zone = Zone::serving(Failover {
        failback: Failback::Manual,
        ..rules()
    });
    zone.set(1, "unhealthy");
    zone.set(10, "holding");
    zone.pass(100_000);
    zone.check("awaiting_operator", 1_000);
    assert_eq!(zone.observe().state, ZoneState::Down);
    // The operator readmits the zone by writing a standing.
    let back = ZoneStanding {
        phase: Phase::In,
        ..zone.machine.standing()
    };
    zone.machine.adopt(back, zone.now_ms);
    zone.check("healthy", 1_000);
    // The end of a drain also counts as readmission by an operator.
    zone.directive = Some(ZoneDirective::Drain);
    zone.check("drained", 1_000);
    zone.directive = None;
    zone.check("healthy", 1_000);
}

#[test]
fn a_drained_zone_gets_nothing_and_comes_back_by_its_ramp() {
    let mut zone = Zone::serving(rules());
    zone.directive = Some(ZoneDirective::Drain);
    zone.check("drained", 1_000);
    assert_eq!(zone.observe().state, ZoneState::Empty);
    zone.pass(10_000);
    zone.set(0, "drained");
    zone.set(10, "drained");
    zone.directive = None;
    zone.check("returning", 10);
    zone.pass(60);
    zone.check("healthy", 1_000);
    assert_eq!(zone.machine.standing().flaps, 0, "a drain is no flap");
    // The zone waits for instances that are restarted during the drain; then the ramp begins.
    zone.directive = Some(ZoneDirective::Drain);
    zone.set(0, "drained");
    zone.directive = None;
    zone.set(0, "no_healthy_instance");
    zone.pass(10_000);
    zone.set(10, "returning");
    zone.check("returning", 10);
}

#[test]
fn a_pinned_zone_stays_in_while_it_has_an_instance() {
    let mut zone = Zone::serving(rules());
    zone.directive = Some(ZoneDirective::Pin);
    zone.set(1, "pinned");
    zone.set(0, "no_healthy_instance");
    zone.set(1, "pinned");
    zone.directive = None;
    zone.check("unhealthy", 1_000);
    // A pin ends a hold.
    zone.set(10, "holding");
    zone.directive = Some(ZoneDirective::Pin);
    zone.check("pinned", 1_000);
    zone.directive = None;
    zone.check("healthy", 1_000);
}

#[test]
fn a_zone_that_never_served_is_not_held() {
    let mut zone = Zone {
        machine: ZoneMachine::default(),
        rules: rules(),
        healthy: 0,
        directive: None,
        load: None,
        now_ms: 0,
    };
    zone.check("no_healthy_instance", 1_000);
    zone.set(2, "unhealthy");
    zone.set(3, "healthy");
    assert_eq!(zone.machine.standing(), ZoneStanding::default());
}

#[test]
fn a_replica_that_starts_follows_what_was_written() {
    let written = ZoneStanding {
        phase: Phase::Returning { step: 1 },
        flaps: 2,
        load_step: 0,
    };
    let mut zone = Zone::serving(rules());
    zone.machine = ZoneMachine::default();
    zone.machine.adopt(written, zone.now_ms);
    zone.check("returning", 100);
    zone.pass(20);
    zone.check("returning", 500);
    // Another replica was faster.
    let full = ZoneStanding {
        phase: Phase::In,
        ..written
    };
    zone.machine.adopt(full, zone.now_ms);
    zone.check("healthy", 1_000);
    // A ramp that was made shorter meanwhile ends.
    zone.machine.adopt(written, zone.now_ms);
    zone.rules.failback = Failback::Ramp {
        steps: vec![],
        step_ms: 0,
    };
    zone.check("healthy", 1_000);
}

#[test]
fn the_load_counts_when_it_has_been_off_for_a_while() {
    let mut zone = Zone::serving(rules());
    let step = |zone: &Zone| zone.machine.standing().load_step;
    // 1.2 is an overload of 0.4.
    zone.load = Some(1.2);
    zone.pass(9);
    assert_eq!(step(&zone), 0);
    zone.pass(1);
    zone.observe();
    assert_eq!(step(&zone), 4);
    assert!((zone.machine.standing().load() - 1.2).abs() < 1e-9);
    // Noise between two steps moves nothing, however long it lasts.
    for noisy in [1.26, 1.14, 1.27, 1.13] {
        zone.load = Some(noisy);
        zone.pass(100);
        assert_eq!(step(&zone), 4, "{noisy}");
    }
    // A short peak moves nothing.
    zone.load = Some(9.0);
    zone.pass(9);
    zone.load = Some(1.2);
    zone.pass(100);
    assert_eq!(step(&zone), 4);
    // Frozen: the load is not followed.
    zone.load = None;
    zone.pass(100);
    assert_eq!(step(&zone), 4);
    for strange in [f64::NAN, f64::NEG_INFINITY] {
        zone.load = Some(strange);
        zone.pass(100);
        assert_eq!(step(&zone), 0);
    }
}

fn any_rules() -> impl Strategy<Value = Failover> {
    let ramp = (prop::collection::vec(1..1_000_u16, 0..5), 0..50_u64)
        .prop_map(|(steps, step_ms)| Failback::Ramp { steps, step_ms });
    let failback = prop_oneof![Just(Failback::Manual), ramp];
    let percents = (1..=100_u8, 1..=100_u8);
    (percents, 0..50_u64, 0..200_u64, 0..200_u64, failback).prop_map(
        |((a, b), hold_ms, hold_max_ms, calm_ms, failback)| Failover {
            thresholds: Thresholds::new(a.min(b), a.max(b)).expect("in order"),
            hold_ms,
            hold_max_ms,
            calm_ms,
            failback,
            ramp_leaves_region: false,
            damping_ms: 5,
        },
    )
}

proptest! {
    /// For any events: too few healthy instances never get a full share, a drained zone gets none,
    /// and the next observation lies in the future.
    #[test]
    fn verdicts_follow_what_is_seen(
        rules in any_rules(),
        events in prop::collection::vec((0..=10_u32, 0..4_u8, 0..40_u64, any::<bool>()), 1..60),
    ) {
        let mut zone = Zone::serving(rules);
        let mut written = ZoneStanding::default();
        for (healthy, directive, pass_ms, restart) in events {
            zone.now_ms += pass_ms;
            zone.healthy = healthy;
            zone.directive = match directive {
                0 => Some(ZoneDirective::Drain),
                1 => Some(ZoneDirective::Pin),
                _ => None,
            };
            if restart {
                zone.machine = ZoneMachine::default();
                zone.machine.adopt(written, zone.now_ms);
            }
            let verdict = zone.observe();
            written = zone.machine.standing();
            prop_assert!(verdict.share >= 1 && verdict.share <= 1_000);
            prop_assert!(verdict.again_at_ms.is_none_or(|at| at > zone.now_ms), "{verdict:?}");
            let down = u32::from(zone.rules.thresholds.down_below_percent());
            let expected = match (zone.directive, healthy) {
                (Some(ZoneDirective::Drain), _) | (_, 0) => Some(ZoneState::Empty),
                (Some(ZoneDirective::Pin), _) => Some(ZoneState::Up),
                (None, healthy) if healthy * 10 < down => Some(ZoneState::Down),
                (None, _) => None,
            };
            match expected {
                Some(state) => prop_assert_eq!(verdict.state, state),
                None => prop_assert!(verdict.state != ZoneState::Empty),
            }
            if matches!(verdict.why, Why::Returning { .. }) {
                prop_assert_eq!(verdict.state, ZoneState::Up);
            }
        }
        // No zone is out forever: after a hold, and confirmation if required, every zone is in
        // again.
        zone.healthy = 10;
        zone.directive = None;
        zone.pass(1);
        if zone.observe().why == Why::AwaitingOperator {
            let back = ZoneStanding { phase: Phase::In, ..zone.machine.standing() };
            zone.machine.adopt(back, zone.now_ms);
        }
        zone.pass(1);
        zone.check("healthy", 1_000);
    }
}

#[test]
fn an_operators_directives_are_no_flaps() {
    // A zone without a healthy instance, pinned and released, drained and released, again and
    // again.
    for directive in [ZoneDirective::Pin, ZoneDirective::Drain] {
        let mut zone = Zone::serving(rules());
        zone.directive = Some(ZoneDirective::Drain);
        zone.set(0, "drained");
        for _ in 0..4 {
            zone.directive = Some(directive);
            zone.pass(1);
            zone.directive = None;
            zone.pass(1);
            assert_eq!(zone.machine.standing().flaps, 0, "{directive:?}");
        }
        // Its first instances wait for at most one hold.
        zone.set(
            10,
            if directive == ZoneDirective::Pin {
                "holding"
            } else {
                "returning"
            },
        );
        zone.pass(31);
        zone.set(10, "returning");
    }
    // A zone that became unhealthy while pinned goes out by the operator's doing, too.
    let mut zone = Zone::serving(rules());
    zone.directive = Some(ZoneDirective::Pin);
    zone.check("pinned", 1_000);
    zone.set(1, "pinned");
    zone.directive = None;
    zone.set(1, "unhealthy");
    assert_eq!(zone.machine.standing().flaps, 0);
    // A zone that becomes unhealthy on its own flaps, even after a pin.
    let mut zone = Zone::serving(rules());
    zone.directive = Some(ZoneDirective::Pin);
    zone.check("pinned", 1_000);
    zone.directive = None;
    zone.check("healthy", 1_000);
    zone.set(1, "unhealthy");
    assert_eq!(zone.machine.standing().flaps, 1);
}
