//! Messages arrive as they were sent, and bytes that are no policy are rejected by name.

#[allow(dead_code, reason = "its other users need the rest")]
#[path = "../../policy/tests/behaviour/any.rs"]
mod any;

use std::num::NonZeroU32;
use std::sync::Arc;

use policy::{
    Cell, Class, ClassRule, Enforcement, Explain, Fencing, Forward, KeySource, Link, Plan, Plans,
    Policy, RegionRule, Route, RouteMatch, Rules, Service, ServiceId, Topology, TraceRule,
    Weighting, Writes, ZoneLoad, ZoneState, fence::Terms, shared::CHUNK,
};
use proptest::{collection::vec, prelude::*};
use prost::Message;
use protos::{Decoder, VERSION_BITS, decode, encode, wire};

/// A small policy in which every field of the wire form says something.
fn small() -> Policy {
    let link = Link {
        rtt_ms: 1.5,
        cost: 2.0,
    };
    let zones = [
        ("sh-a", "shanghai"),
        ("sh-b", "shanghai"),
        ("bj-c", "beijing"),
    ];
    let topology = Topology::new(zones, [("sh-a", "sh-b", link)]).expect("a valid topology");
    let up = ZoneLoad {
        state: ZoneState::Up,
        ..ZoneLoad::default()
    };
    let weighting = Weighting::Operator {
        zone: 80,
        region: 20,
    };
    let route = |matches, class| Route {
        host: "shop.example".into(),
        matches,
        class,
    };
    let orders = Service {
        name: "orders".into(),
        routes: vec![
            route(RouteMatch::Prefix("/orders".into()), ClassRule::ByMethod),
            route(
                RouteMatch::Prefix("/graphql".into()),
                ClassRule::Always(Class::Read),
            ),
            route(
                RouteMatch::Grpc("shop.v1.Orders".into()),
                ClassRule::GrpcReads(vec!["Get".into()]),
            ),
        ],
        region_missing: RegionRule::Local,
        region_unknown: RegionRule::Reject,
        trace_missing: TraceRule::Generate,
        zone_affinity: Some(KeySource::PathSegment(1)),
        writes: Writes::Free,
        plans: Plans::compute(&topology, weighting, &[up; 3], &[]),
    };
    let explain = Explain {
        header: "x-ask".into(),
        token: "sesame".into(),
    };
    let viewer = topology.zone_named("sh-a").expect("a zone");
    Policy::Serving(Box::new(
        Rules::new(topology, viewer, vec![orders], Some(explain)).expect("valid rules"),
    ))
}

/// `small()` with its writes fenced: the other fields of the wire form.
fn fenced() -> Policy {
    let Policy::Serving(rules) = small() else {
        unreachable!("a serving policy");
    };
    let mut orders = rules.services().get(0).expect("a service").clone();
    let key = KeySource::Cookie("user".into());
    orders.writes = Writes::Fenced { key: Some(key) };
    let zone = |name| rules.topology().zone_named(name).expect("a zone");
    let cell = |name: &str, first_shard, owner, forward| Cell {
        name: name.into(),
        first_shard,
        owners: vec![zone(owner)],
        epoch: 7,
        forward,
    };
    let cells = vec![
        cell("east", 0, "sh-b", Forward::Any),
        cell("north", 300, "bj-c", Forward::Never),
    ];
    let fencing = Fencing::new(
        cells,
        NonZeroU32::new(1_000).expect("shards"),
        Enforcement::Observe,
        Terms::new(3_000_000, 1_500_000, 1_200_000, 50_000, 10).expect("terms"),
        true,
        "tidegate".into(),
    );
    let explain = rules.explain().cloned();
    let topology = rules.topology().clone();
    let again = Rules::new(topology, rules.viewer(), vec![orders], explain).expect("valid rules");
    Policy::Serving(Box::new(again.fenced(fencing.expect("a valid fence"))))
}

/// `small()` and `fenced()` at generation 7. `TIDEGATE_BLESS=1 cargo test -p tidegate-protos`
/// writes them anew, which is right only together with a change of the wire form: a proxy whose
/// policy did not change must see the same version after an upgrade.
const GOLDEN: [(&str, &str); 2] = [
    ("policy.hex", include_str!("../testdata/policy.hex")),
    (
        "policy-fenced.hex",
        include_str!("../testdata/policy-fenced.hex"),
    ),
];

#[test]
fn the_bytes_of_a_policy_stay_what_they_were() {
    for ((name, golden), policy) in GOLDEN.into_iter().zip([small(), fenced()]) {
        let (bytes, version) = encode(&policy, 7, "");
        let lines = bytes.chunks(48).map(|line| {
            let digits: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
            digits + "\n"
        });
        let text = lines.collect::<String>();
        #[allow(clippy::disallowed_methods, reason = "the recipe, not the test")]
        if std::env::var("TIDEGATE_BLESS").is_ok() {
            let path = format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::write(path, &text).expect("a writable checkout");
        }
        assert_eq!(text, golden, "{name}");
        assert_eq!(decode(&bytes).expect("a policy").version, version);
    }
}

/// Why `small()` is refused after `spoil` had its way with the message.
#[track_caller]
fn check(spoil: impl FnOnce(&mut wire::Rules), expected: &str) {
    check_of(&small(), spoil, expected);
}

/// Why `policy` is.
#[track_caller]
fn check_of(policy: &Policy, spoil: impl FnOnce(&mut wire::Rules), expected: &str) {
    let (bytes, _) = encode(policy, 0, "");
    let mut message = wire::Policy::decode(&bytes[..]).expect("a message");
    let Some(wire::policy::Mode::Rules(rules)) = &mut message.mode else {
        panic!("rules");
    };
    spoil(rules);
    let error = decode(&message.encode_to_vec()).expect_err(expected);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_malformed_policy_is_refused_with_the_field() {
    let error = decode(&[0xff]).expect_err("not protobuf");
    assert!(
        error.to_string().starts_with("not a tidegate.v1.Policy: "),
        "{error}"
    );
    let error = decode(&[]).expect_err("no mode");
    assert_eq!(error.to_string(), "mode: missing");

    check(
        |rules| rules.services[0].routes[0].r#match = None,
        "rules.services.routes.match: missing",
    );
    check(
        |rules| rules.services[0].routes[0].class = None,
        "rules.services.routes.class: missing",
    );
    check(
        |rules| rules.services[0].zone_affinity = Some(wire::KeySource { source: None }),
        "rules.services.zone_affinity.source: missing",
    );
    check(
        |rules| {
            let source = Some(wire::key_source::Source::PathSegment(256));
            rules.services[0].zone_affinity = Some(wire::KeySource { source });
        },
        "rules.services.zone_affinity.path_segment: 256 is above 255",
    );
    check(
        |rules| rules.viewer = "mars".into(),
        "rules.viewer: \"mars\" is none of rules.zones",
    );
    check(
        |rules| rules.links[0].to = 3,
        "rules.links: there is no zone 3",
    );
    check(
        |rules| rules.zones[1].name = "sh-a".into(),
        "rules.zones, rules.links: zone \"sh-a\" stands twice",
    );
    check(
        |rules| rules.services[0].routes[0].host = "Shop".into(),
        "rules.services: service \"orders\": host \"Shop\": use \"*\", a name, or \"*.\" and a domain; lower case, no port",
    );
}

#[test]
fn plans_that_would_lose_or_misplace_requests_are_refused() {
    let plan = |targets: &[(u32, u32)]| wire::Plan {
        targets: targets
            .iter()
            .map(|(zone, weight)| wire::Target {
                zone: *zone,
                weight: *weight,
            })
            .collect(),
        shed: 0,
        drained: false,
    };
    // Plans 0 and 1 are the reads and writes of zone 0.
    let with = |at: usize, targets: &[(u32, u32)], expected: &str| {
        let plan = plan(targets);
        check(|rules| rules.services[0].plans[at] = plan, expected);
    };
    check(
        |rules| rules.services[0].plans.truncate(5),
        "rules.services[orders].plans: 5, where 6 are needed: reads and writes of every zone",
    );
    with(
        0,
        &[(3, 1000)],
        "rules.services.plans.targets.zone: there is no zone 3",
    );
    for targets in [&[(0, 1000)][..], &[]] {
        let mut full = plan(targets);
        full.shed = if targets.is_empty() { 1 } else { 1000 };
        let expected = format!(
            "rules.services[orders].plans.shed: {} per mille: an open plan sheds less than 1000, a closed one sheds none",
            full.shed
        );
        check(|rules| rules.services[0].plans[0] = full, &expected);
    }
    with(
        0,
        &[(0, 999)],
        "rules.services[orders].plans.targets: weights add up to 999, not 1000",
    );
    with(
        0,
        &[(0, u32::MAX), (1, 1001)],
        "rules.services[orders].plans.targets: weights add up to 4294968296, not 1000",
    );
    let misplaced = "rules.services[orders].plans.targets: a weight is 0, or a zone stands twice or out of order";
    with(0, &[(0, 1000), (1, 0)], misplaced);
    with(0, &[(0, 500), (0, 500)], misplaced);
    with(0, &[(1, 500), (0, 500)], misplaced);
    with(
        1,
        &[(0, 500), (2, 500)],
        "rules.services[orders].plans.targets: a write leaves the region of its home",
    );
}

#[test]
fn a_fence_that_could_not_hold_is_refused_with_the_field() {
    let check = |spoil: fn(&mut wire::Fencing), expected: &str| {
        let spoil = |rules: &mut wire::Rules| spoil(rules.fencing.as_mut().expect("a fence"));
        check_of(&fenced(), spoil, expected);
    };
    check(|fence| fence.shards = 0, "rules.fencing.shards: 0");
    check(
        |fence| fence.drift_permille = 65_536,
        "rules.fencing.drift_permille: 65536 is above 65535",
    );
    check(
        |fence| fence.drift_permille = 1_000,
        "rules.fencing: clocks may drift by less than 1000 per mille",
    );
    check(
        |fence| fence.write_drain_us = 0,
        "rules.fencing: a grant and the drain of writes last longer than 0",
    );
    check(
        |fence| fence.cells[1].owners[0] = 3,
        "rules.fencing.cells.owners: there is no zone 3",
    );
    check(
        |fence| fence.cells[1].name = "east".into(),
        "rules.fencing: cell \"east\" stands twice",
    );
    check(
        |fence| fence.cells.clear(),
        "rules.fencing: there is no cell",
    );
    check(
        |fence| fence.cells[1].first_shard = 1_000,
        "rules.fencing: cell \"north\" begins at shard 1000, and there are 1000",
    );
    check(
        |fence| fence.cells[1].epoch = u64::MAX,
        "rules.fencing: cell \"north\" has epoch 18446744073709551615: the highest one is 9007199254740992",
    );
    check(
        |fence| fence.control_plane.clear(),
        "rules.fencing: no cluster leads to the control plane",
    );
    check_of(
        &fenced(),
        |rules| rules.fencing = None,
        "rules.services[orders].fenced_writes: there is no rules.fencing",
    );
}

#[test]
fn a_way_of_forwarding_from_the_future_is_none() {
    let (bytes, _) = encode(&fenced(), 0, "tidegate");
    assert_eq!(decode(&bytes).expect("a policy").policy, fenced());
    let mut message = wire::Policy::decode(&bytes[..]).expect("a message");
    let Some(wire::policy::Mode::Rules(rules)) = &mut message.mode else {
        panic!("rules");
    };
    rules.fencing.as_mut().expect("a fence").cells[0].forward = 9;
    let Policy::Serving(rules) = decode(&message.encode_to_vec()).expect("a policy").policy else {
        panic!("rules");
    };
    let fencing = rules.fencing().expect("a fence");
    assert_eq!(fencing.cells()[0].forward, Forward::Never);
}

#[test]
fn a_class_from_the_future_is_a_write() {
    let (bytes, _) = encode(&small(), 0, "tidegate");
    let mut message = wire::Policy::decode(&bytes[..]).expect("a message");
    let Some(wire::policy::Mode::Rules(rules)) = &mut message.mode else {
        panic!("rules");
    };
    rules.services[0].routes[1].class = Some(wire::route::Class::Always(9));
    let Policy::Serving(rules) = decode(&message.encode_to_vec()).expect("a policy").policy else {
        panic!("rules");
    };
    assert_eq!(
        rules.services().get(0).expect("a service").routes[1].class,
        ClassRule::Always(Class::Write)
    );
}

#[test]
fn services_that_stay_the_same_are_shared_with_the_policy_before() {
    let Policy::Serving(small) = small() else {
        unreachable!("a serving policy");
    };
    let one = small.services().get(0).expect("a service");
    let services = (0..2 * CHUNK).map(|number| Service {
        name: format!("service-{number}"),
        routes: vec![Route {
            host: format!("{number}.example"),
            ..one.routes[0].clone()
        }],
        ..one.clone()
    });
    let rules = Rules::new(
        small.topology().clone(),
        small.viewer(),
        services.collect(),
        None,
    );
    let mut rules = rules.expect("valid rules");
    let mut decoder = Decoder::default();
    let mut read = |rules: &Rules| {
        let (bytes, _) = encode(&Policy::Serving(Box::new(rules.clone())), 1, "tidegate");
        let Policy::Serving(read) = decoder.decode(&bytes).expect("a policy").policy else {
            unreachable!("a serving policy");
        };
        read
    };
    let before = read(&rules);
    let closed = Plans::from_fn(rules.topology(), |_, _| Plan::CLOSED);
    rules.replan(ServiceId::new(CHUNK), closed);
    let after = read(&rules);
    assert!(*after == rules, "what was sent has arrived");
    let chunks = before.services().chunks().iter();
    let shared = chunks.zip(after.services().chunks());
    let shared: Vec<bool> = shared.map(|(a, b)| Arc::ptr_eq(a, b)).collect();
    assert_eq!(shared, [true, false]);
}

proptest! {
    #[test]
    fn a_policy_arrives_as_it_was_sent(rules in any::rules(), generation in any::<u64>()) {
        let policy = Policy::Serving(Box::new(rules));
        let (bytes, version) = encode(&policy, generation, "tidegate");
        let edition = decode(&bytes).expect("a policy");
        prop_assert_eq!(&edition.policy, &policy);
        prop_assert_eq!((edition.version, edition.generation), (version, generation));
        prop_assert!(version < 1 << VERSION_BITS);
        // The replica that decodes what another encoded would send the same.
        prop_assert_eq!(encode(&edition.policy, generation, "tidegate"), (bytes, version));
    }

    #[test]
    fn versions_tell_policies_apart(a in any::rules(), b in any::rules()) {
        let same = a == b;
        let version = |rules: &Rules, generation| {
            encode(&Policy::Serving(Box::new(rules.clone())), generation, "tidegate").1
        };
        prop_assert_eq!(version(&a, 1) == version(&b, 1), same);
        prop_assert_ne!(version(&a, 1), version(&a, 2));
        prop_assert_ne!(version(&a, 1), encode(&Policy::Fallback, 1, "tidegate").1);
    }

    #[test]
    fn one_policy_after_another_is_decoded_as_each_alone(
        rules in any::rules(),
        others in vec(any::rules(), 0..3),
        changes in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..6_u8), 1..12),
    ) {
        let mut decoder = Decoder::default();
        let mut rules = rules;
        for (at, other, byte, kind) in changes {
            match kind {
                // Other rules altogether.
                0 if !others.is_empty() => rules = other.get(&others).clone(),
                // Another service's plans, of which there are as many.
                1 | 2 => {
                    let len = rules.services().len();
                    let (to, from) = (ServiceId::new(at.index(len)), ServiceId::new(other.index(len)));
                    let plans = rules.service(from).expect("a service").plans.clone();
                    rules.replan(to, plans);
                }
                // Other owners.
                3 => {
                    if let Some(fencing) = rules.fencing().cloned() {
                        let cells = fencing.cells().iter().cloned();
                        let cells = cells.map(|cell| Cell { epoch: u64::from(byte) + 1, ..cell });
                        let shards = fencing.shards();
                        let fencing = Fencing::new(
                            cells.collect(), shards, fencing.enforcement, fencing.terms.clone(),
                            fencing.forwarding, fencing.control_plane.clone(),
                        );
                        rules = rules.fenced(fencing.expect("a fence"));
                    }
                }
                _ => {}
            }
            let (mut bytes, _) = encode(&Policy::Serving(Box::new(rules.clone())), 1, "tidegate");
            if kind == 5 {
                // Damaged on the way.
                let at = at.index(bytes.len());
                bytes[at] = byte;
                bytes.truncate(other.index(bytes.len() + 1));
            }
            prop_assert_eq!(decoder.decode(&bytes), decode(&bytes));
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_a_policy(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    /// Arbitrary bytes seldom come far; a policy with a few bytes changed does.
    #[test]
    fn damaged_policies_are_refused_or_a_policy(
        rules in any::rules(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut bytes, _) = encode(&Policy::Serving(Box::new(rules)), 1, "tidegate");
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode(&bytes[..cut.index(bytes.len())]);
        if let Ok(edition) = decode(&bytes) {
            // Valid by construction: it can be sent on.
            let (bytes, _) = encode(&edition.policy, edition.generation, "tidegate");
            prop_assert_eq!(decode(&bytes).expect("a policy").policy, edition.policy);
        }
    }
}

mod status {
    use prost::Message;
    use protos::{
        fence::NODE_BYTES_MAX,
        status::{
            Applied, AppliedReport, EDITIONS_MAX, InvalidReport, REASON_BYTES_MAX, Refused, cut,
            edition_of,
        },
        wire,
    };

    use super::*;

    fn report(node: &str, editions: usize, message: &str) -> AppliedReport {
        AppliedReport {
            node: node.into(),
            applied: (0..editions)
                .map(|i| Applied {
                    version: i as u64,
                    generation: 1,
                    threads: 2,
                })
                .collect(),
            refused: Some(Refused {
                version: 9,
                generation: 3,
                message: message.into(),
            }),
        }
    }

    fn read(report: &AppliedReport) -> Result<AppliedReport, InvalidReport> {
        wire::AppliedReport::decode(&report.encode()[..])
            .expect("a message")
            .try_into()
    }

    #[test]
    fn a_report_arrives_as_it_was_sent_but_for_what_is_too_long() {
        let sent = report("gw-1", 2, "mode: missing");
        assert_eq!(read(&sent), Ok(sent));
        let long = "\u{e9}".repeat(2_000);
        let got = read(&report(&long, 20, &long)).expect("cut, so good");
        assert_eq!(got.node.len(), NODE_BYTES_MAX);
        assert_eq!(got.applied.len(), EDITIONS_MAX);
        assert_eq!(
            got.refused.expect("a refusal").message.len(),
            REASON_BYTES_MAX
        );
    }

    #[test]
    fn a_malformed_report_is_refused() {
        let sent = |report: wire::AppliedReport| AppliedReport::try_from(report).unwrap_err();
        assert_eq!(sent(wire::AppliedReport::default()), InvalidReport::NoNode);
        let node = "x".repeat(NODE_BYTES_MAX + 1);
        let named = |node: &str| wire::AppliedReport {
            node: node.into(),
            ..wire::AppliedReport::default()
        };
        assert_eq!(sent(named(&node)), InvalidReport::Node);
        let mut many = named("gw-1");
        many.applied = vec![wire::AppliedEdition::default(); EDITIONS_MAX + 1];
        assert_eq!(sent(many), InvalidReport::Editions(EDITIONS_MAX + 1));
        let mut wordy = named("gw-1");
        wordy.refused = Some(wire::RefusedEdition {
            message: "x".repeat(REASON_BYTES_MAX + 1),
            ..wire::RefusedEdition::default()
        });
        assert_eq!(sent(wordy), InvalidReport::Reason);
    }

    #[test]
    fn an_edition_that_is_no_policy_may_still_say_which_it_is() {
        let (bytes, version) = encode(&Policy::Fallback, 3, "tidegate");
        assert_eq!(edition_of(&bytes), (version, 3));
        assert_eq!(edition_of(b"no policy at all"), (0, 0));
    }

    proptest! {
        #[test]
        fn a_cut_never_panics(text in ".*", at in 0_usize..50) {
            let kept = cut(&text, at);
            prop_assert!(kept.len() <= at && text.starts_with(kept));
        }
    }
}
