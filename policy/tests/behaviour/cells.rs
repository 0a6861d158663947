//! Writes of fenced services, at the proxies of `sh-a`: admission, forwarding and rejection.

mod keys;
mod properties;

use std::num::NonZeroU32;

use policy::{
    Cell, Class, Decision, Demand, Enforcement, Facts, Fencing, Forward, Headers, KeySource, Plans,
    Policy, Presented, Service, Weighting, Writes, ZoneLoad, decide, explain,
    fence::{EPOCH_MAX, Terms},
    hop::Signer,
    shard,
};

use crate::{
    any,
    support::{self, Request, plans, prefix, request, service, topology, verdict_of},
};

const TOKEN: &str = any::TOKEN;

/// A cell with these owners and epoch 7.
fn cell(name: &str, first_shard: u32, owners: &[&str], forward: Forward) -> Cell {
    let topology = topology();
    Cell {
        name: name.into(),
        first_shard,
        owners: (owners.iter())
            .map(|name| support::zone(&topology, name))
            .collect(),
        epoch: 7,
        forward,
    }
}

fn terms() -> Terms {
    Terms::new(3_000_000, 1_500_000, 1_500_000, 50_000, 10).expect("terms")
}

fn fencing(cells: Vec<Cell>) -> Fencing {
    let shards = NonZeroU32::new(1_024).expect("shards");
    let enforcement = Enforcement::Enforce;
    Fencing::new(cells, shards, enforcement, terms(), true, "tidegate".into()).expect("a fence")
}

/// `orders`, fenced, with the cell's key in `x-user`.
fn orders(states: &str) -> Service {
    let key = KeySource::Header("x-user".into());
    Service {
        writes: Writes::Fenced { key: Some(key) },
        plans: plans(states).fenced(&topology(), &support::states(states)),
        ..service("orders", vec![prefix("*", "/orders")])
    }
}

fn policy(states: &str, fencing: Fencing) -> Policy {
    let Policy::Serving(rules) = support::policy(vec![orders(states)]) else {
        unreachable!("a serving policy");
    };
    Policy::Serving(Box::new(rules.fenced(fencing)))
}

/// One cell, `main`.
fn single(owners: &[&str], forward: Forward) -> Fencing {
    fencing(vec![cell("main", 0, owners, forward)])
}

fn decided<'p>(policy: &'p Policy, request: &Request<&str>, granted: Option<u64>) -> Decision<'p> {
    decide(policy, &facts(policy, request, granted))
}

/// As the filter fills them in; [`TOKEN`] counts as a valid signature.
fn facts(policy: &Policy, request: &Request<&str>, granted: Option<u64>) -> Facts {
    Facts {
        granted,
        forwarded: request.get("tidegate-hop") == Presented::Once(TOKEN.as_bytes()),
        signer: Signer::Holds,
        ..Facts::gather(policy, request)
    }
}

/// Checks the verdict on a write to orders, and the owner that it names. `granted` is the epoch of
/// this zone's grant, `more` the write's headers.
#[track_caller]
fn check(
    policy: &Policy,
    granted: Option<u64>,
    more: &[(&'static str, &'static str)],
    wanted: &str,
) {
    let request = request("POST /orders", more);
    let decision = decided(policy, &request, granted);
    let owner = decision.owner.map(|owner| format!(" @{owner}"));
    let told = verdict_of(&decision) + &owner.unwrap_or_default();
    assert_eq!(told, wanted, "{granted:?} {more:?}");
}

#[test]
fn a_write_is_admitted_by_a_grant_alone_and_needs_one_stamp() {
    let own = policy("UUUU", single(&["sh-a"], Forward::Region));
    check(&own, Some(7), &[], "epoch=7: admitted");
    check(&own, None, &[], "503 grpc 14: fenced");
    // The pushed policy may be stale: the grant decides whether the zone may write now, and its
    // epoch.
    check(&own, Some(9), &[], "epoch=9: admitted");
    let other = policy("UUUU", single(&["sh-b"], Forward::Region));
    check(&other, Some(8), &[], "epoch=8: admitted");
    // A home does not change the target of a write. The class is stamped beside it, so that the
    // write never passes for a read.
    let home = [("x-region-id", "bj-c")];
    check(
        &own,
        Some(7),
        &home,
        "class=write home=bj-c epoch=7: admitted",
    );
    // No owner is known yet.
    let nobody = policy("UUUU", single(&[], Forward::Any));
    check(&nobody, None, &[], "503 grpc 14: fenced");
}

#[test]
fn reads_and_free_services_know_nothing_of_it() {
    let fence = single(&["bj-c"], Forward::Never);
    let request = request("GET /orders", &[("x-user", "1")]);
    let policy = policy("UUUU", fence.clone());
    let facts = Facts::gather(&policy, &request);
    assert_eq!((facts.cell, facts.key_digest), (None, None));
    assert_eq!(verdict_of(&decide(&policy, &facts)), "home=sh-a: home_zone");
    let free = service("orders", vec![prefix("*", "/orders")]);
    let Policy::Serving(rules) = support::policy(vec![free]) else {
        unreachable!("a serving policy");
    };
    let free = Policy::Serving(Box::new(rules.fenced(fence)));
    check(&free, None, &[], "class=write: home_zone");
}

#[test]
fn a_write_for_another_zone_is_forwarded_as_far_as_it_may_be() {
    use Forward::{Any, Never, Region};
    for (owners, forward, wanted) in [
        (&["sh-b"][..], Never, "421 grpc 9: not_owner @sh-b"),
        (
            &["sh-b"],
            Region,
            "to=gateway/sh-b tidegate-epoch=7: forwarded @sh-b",
        ),
        (
            &["sh-b"],
            Any,
            "to=gateway/sh-b tidegate-epoch=7: forwarded @sh-b",
        ),
        (&["bj-c"], Never, "421 grpc 9: not_owner @bj-c"),
        (&["bj-c"], Region, "421 grpc 9: not_owner @bj-c"),
        (
            &["bj-c"],
            Any,
            "to=gateway/bj-c tidegate-epoch=7: forwarded @bj-c",
        ),
        // The nearest of several.
        (
            &["bj-d", "bj-c"],
            Any,
            "to=gateway/bj-c tidegate-epoch=7: forwarded @bj-c",
        ),
        (
            &["bj-d", "sh-b"],
            Region,
            "to=gateway/sh-b tidegate-epoch=7: forwarded @sh-b",
        ),
        // An owner without a grant at the moment rejects the write itself.
        (&["sh-a", "sh-b"], Any, "503 grpc 14: fenced"),
    ] {
        check(&policy("UUUU", single(owners, forward)), None, &[], wanted);
    }
    let home = [("x-region-id", "sh-b")];
    check(
        &policy("UUUU", single(&["sh-b"], Region)),
        None,
        &home,
        "class=write home=sh-b to=gateway/sh-b tidegate-epoch=7: forwarded @sh-b",
    );
    // Without keys no gateway would accept it.
    let mut unsigned = single(&["sh-b"], Any);
    unsigned.forwarding = false;
    check(
        &policy("UUUU", unsigned),
        None,
        &[],
        "421 grpc 9: not_owner @sh-b",
    );
}

#[test]
fn a_proxy_forwards_only_what_it_can_sign() {
    let told = |owners: &[&str], signer| {
        let policy = policy("UUUU", single(owners, Forward::Region));
        let facts = facts(&policy, &request("POST /orders", &[]), None);
        verdict_of(&decide(&policy, &Facts { signer, ..facts }))
    };
    // A sidecar never can sign; a gateway that has just started soon will.
    assert_eq!(told(&["sh-b"], Signer::Withheld), "421 grpc 9: not_owner");
    assert_eq!(told(&["sh-b"], Signer::Untold), "503 grpc 14: fenced");
    // Without forwarding it makes no difference.
    assert_eq!(told(&["bj-c"], Signer::Untold), "421 grpc 9: not_owner");
    assert_eq!(told(&["sh-a"], Signer::Withheld), "503 grpc 14: fenced");
}

#[test]
fn a_forwarded_write_is_not_forwarded_again() {
    let other = policy("UUUU", single(&["sh-b"], Forward::Any));
    let hop = ("tidegate-hop", TOKEN);
    check(&other, None, &[hop], "421 grpc 9: not_owner @sh-b");
    check(&other, Some(7), &[hop], "hop=1 epoch=7: admitted");
    // Only one valid signature makes it a forwarded write. A write that merely claims to be
    // forwarded is not forwarded either: it may carry an old signature, and loop.
    for odd in [
        &[("tidegate-hop", "1")][..],
        &[("tidegate-hop", "")],
        &[hop, hop],
    ] {
        check(&other, None, odd, "421 grpc 9: not_owner @sh-b");
        check(&other, Some(7), odd, "epoch=7: admitted");
    }
}

#[test]
fn an_epoch_that_is_not_ours_counts_if_a_proxy_presents_it() {
    let own = policy("UUUU", single(&["sh-a"], Forward::Region));
    let by = |epoch| [("tidegate-hop", TOKEN), ("tidegate-epoch", epoch)];
    check(&own, Some(7), &by("7"), "hop=1 epoch=7: admitted");
    check(&own, Some(7), &by("6"), "412 grpc 9: stale_epoch");
    check(&own, Some(7), &by("8"), "503 grpc 14: ahead_epoch");
    // Without a grant the pushed epoch is compared.
    check(&own, None, &by("6"), "412 grpc 9: stale_epoch");
    check(&own, None, &by("8"), "503 grpc 14: ahead_epoch");
    check(&own, None, &by("7"), "503 grpc 14: fenced");
    // A malformed number is no epoch, and a client's claim is ignored.
    for odd in [
        "",
        "-1",
        "+8",
        "seven",
        "9007199254740993",
        "18446744073709551615",
        "99999999999999999999",
    ] {
        check(&own, Some(7), &by(odd), "hop=1 epoch=7: admitted");
    }
    for client in [
        &[("tidegate-epoch", "8")][..],
        &[("tidegate-hop", "x"), ("tidegate-epoch", "8")],
    ] {
        check(&own, Some(7), client, "epoch=7: admitted");
    }
}

#[test]
fn a_fence_that_observes_lets_everything_through_and_says_what_it_would_refuse() {
    let observing = |owners: &[&str], states: &str| {
        let mut fence = single(owners, Forward::Never);
        fence.enforcement = Enforcement::Observe;
        policy(states, fence)
    };
    check(
        &observing(&["sh-a"], "UUUU"),
        Some(8),
        &[],
        "epoch=8: admitted",
    );
    check(
        &observing(&["sh-a"], "UUUU"),
        None,
        &[],
        "epoch=7: observed",
    );
    check(
        &observing(&["bj-c"], "UUUU"),
        None,
        &[],
        "epoch=7: observed",
    );
    check(
        &observing(&["bj-c"], "EUUU"),
        None,
        &[],
        "503 grpc 14: no_capacity",
    );
}

#[test]
fn a_zone_that_cannot_serve_writes_leaves_them_to_another_owner() {
    let fence = |owners: &[&str], forward| policy("EUUU", single(owners, forward));
    let to_b = "to=gateway/sh-b tidegate-epoch=7: forwarded @sh-b";
    check(
        &fence(&["sh-a", "sh-b"], Forward::Region),
        Some(7),
        &[],
        to_b,
    );
    let hop = [("tidegate-hop", TOKEN)];
    check(
        &fence(&["sh-a", "sh-b"], Forward::Region),
        Some(7),
        &hop,
        "503 grpc 14: no_capacity",
    );
    check(
        &fence(&["sh-a", "sh-b"], Forward::Never),
        Some(7),
        &[],
        "503 grpc 14: no_capacity",
    );
    check(
        &fence(&["sh-a"], Forward::Any),
        Some(7),
        &[],
        "503 grpc 14: no_capacity",
    );
    check(
        &fence(&["sh-a"], Forward::Any),
        None,
        &[],
        "503 grpc 14: fenced",
    );
}

#[test]
fn weights_and_capacity_do_not_steer_fenced_writes() {
    let elsewhere = Weighting::Operator {
        zone: 0,
        region: 100,
    };
    let topology = topology();
    for loads in [
        support::states("UUUU"),
        support::states("DUUU"),
        support::states("UUUU")
            .into_iter()
            .map(|load| ZoneLoad {
                capacity: 1.0,
                share: 1,
                ..load
            })
            .collect(),
    ] {
        let demands = [Demand {
            reads: 9.0,
            writes: 100.0,
        }; 4];
        let plans = Plans::compute(&topology, elsewhere, &loads, &demands);
        let service = Service {
            plans: plans.clone().fenced(&topology, &loads),
            zone_affinity: Some(KeySource::Header("x-user".into())),
            ..orders("UUUU")
        };
        for home in topology.zones() {
            assert_eq!(
                service.plans.get(home, Class::Read),
                plans.get(home, Class::Read)
            );
        }
        let Policy::Serving(rules) = support::policy(vec![service]) else {
            unreachable!("a serving policy");
        };
        let policy = Policy::Serving(Box::new(rules.fenced(single(&["sh-a"], Forward::Never))));
        check(&policy, Some(7), &[("x-user", "1")], "epoch=7: admitted");
    }
}

#[test]
fn explanations_tell_the_cell_the_grant_and_the_way() {
    let told = |policy: &Policy, granted, more: &[_]| {
        let facts = facts(policy, &request("POST /orders", more), granted);
        let (_, steps) = explain(policy, &facts);
        // The first three are the service, the class and the home.
        let steps = steps.iter().skip(3).map(ToString::to_string);
        steps.collect::<Vec<_>>().join("; ")
    };
    let other = policy("UUUU", single(&["sh-b"], Forward::Any));
    assert_eq!(
        told(&other, None, &[]),
        "it belongs to cell main, epoch 7, owned by sh-b; this zone holds no grant to write; it is forwarded to sh-b, which decides"
    );
    let by = [("tidegate-hop", TOKEN), ("tidegate-epoch", "6")];
    assert_eq!(
        told(&other, Some(8), &by),
        "it belongs to cell main, epoch 7, owned by sh-b; this zone holds a grant to write for epoch 8; it was forwarded with epoch 6, and the epoch here is 8"
    );
    let mut observing = single(&[], Forward::Any);
    observing.enforcement = Enforcement::Observe;
    assert_eq!(
        told(&policy("UUUU", observing), None, &[]),
        "it belongs to cell main, epoch 7, owned by no zone that this proxy knows; this zone holds no grant to write; the fence only observes: it admits a write that it would reject"
    );
}

#[test]
fn facts_of_another_fence_admit_nothing() {
    let own = policy("UUUU", single(&["sh-a"], Forward::Region));
    let two = fencing(vec![
        cell("a", 0, &["sh-a"], Forward::Region),
        cell("b", 1, &["sh-a"], Forward::Region),
    ]);
    let stranger = two.cell_of(Some(shard::key_digest(b"1")));
    assert_eq!(
        (
            stranger.index(),
            two.cells()[stranger.index()].name.as_str()
        ),
        (1, "b")
    );
    let facts = Facts::gather(&own, &request("POST /orders", &[]));
    let facts = Facts {
        cell: Some(stranger),
        granted: Some(7),
        ..facts
    };
    assert_eq!(verdict_of(&decide(&own, &facts)), "503 grpc 14: fenced");
}

#[test]
fn bad_cells_are_refused_by_name() {
    let shards = NonZeroU32::new(10).expect("shards");
    let make = |cells, control_plane: &str| {
        let enforcement = Enforcement::Enforce;
        let control_plane = control_plane.into();
        Fencing::new(cells, shards, enforcement, terms(), false, control_plane)
    };
    let named = |name, first| cell(name, first, &[], Forward::Region);
    let a = || named("a", 0);
    for (fencing, wanted) in [
        (make(vec![], "t"), "there is no cell"),
        (
            make(vec![a(), named("a", 3)], "t"),
            "cell \"a\" stands twice",
        ),
        (
            make(vec![named("a", 1)], "t"),
            "cell \"a\" does not begin where the previous one ends",
        ),
        (
            make(vec![a(), named("b", 0)], "t"),
            "cell \"b\" does not begin where the previous one ends",
        ),
        (
            make(vec![a(), named("b", 10)], "t"),
            "cell \"b\" begins at shard 10, and there are 10",
        ),
        (make(vec![named("A", 0)], "t"), "cell \"A\""),
        (
            make(
                vec![Cell {
                    epoch: EPOCH_MAX + 1,
                    ..a()
                }],
                "t",
            ),
            "cell \"a\" has epoch 9007199254740993",
        ),
        (make(vec![a()], ""), "no cluster leads to the control plane"),
    ] {
        let error = fencing.expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
