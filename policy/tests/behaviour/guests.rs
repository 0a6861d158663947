//! The decisions of guests, at the proxies of `sh-a`.

use std::num::NonZeroU32;

use policy::{
    Cell, Class, Enforcement, Facts, Fencing, Forward, InvalidRules, Outcome, Policy, Service,
    Writes,
    fence::Terms,
    guest::{Guest, Mode},
};

use crate::support::{
    Request, always, grpc, policy, prefix, request, service, topology, verdict, zone,
};

const WRITE_DRAIN_MS: u64 = 1_500;

fn terms() -> Terms {
    let write_drain = WRITE_DRAIN_MS * 1_000;
    Terms::new(3_000_000, 1_500_000, write_drain, 50_000, 10).expect("terms")
}

/// `orders` is fenced, by the cell `main` of `owner` in epoch 5; `drafts` is not.
fn fenced_by(owner: &str) -> Policy {
    let orders = Service {
        writes: Writes::Fenced { key: None },
        ..service(
            "orders",
            vec![prefix("*", "/orders"), grpc("*", "shop.Orders")],
        )
    };
    let drafts = service("drafts", vec![prefix("*", "/drafts")]);
    let main = Cell {
        name: "main".into(),
        first_shard: 0,
        owners: vec![zone(&topology(), owner)],
        epoch: 5,
        forward: Forward::Any,
    };
    let shards = NonZeroU32::new(1_024).expect("shards");
    let control_plane = "tidegate".into();
    let fencing = Fencing::new(
        vec![main],
        shards,
        Enforcement::Enforce,
        terms(),
        true,
        control_plane,
    );
    let Policy::Serving(rules) = policy(vec![orders, drafts]) else {
        unreachable!("a serving policy");
    };
    Policy::Serving(Box::new(rules.fenced(fencing.expect("a fence"))))
}

fn guest(mode: Mode) -> Guest {
    Guest::new(mode, None, vec![], vec![]).expect("no lists")
}

/// The decision of a guest in words, as its stamps or its rejection, and the reason.
fn decide(guest: &Guest, policy: &Policy, request: &Request<&str>, granted: Option<u64>) -> String {
    let facts = Facts {
        granted,
        ..guest.facts(policy, request)
    };
    let decision = guest.decide(policy, &facts, request);
    let outcome = match decision.outcome {
        Outcome::Pass => "pass".to_owned(),
        Outcome::Refuse(refusal) => format!("{} grpc {}", refusal.status, refusal.grpc_status),
        Outcome::Route(routed) => {
            let stamps = guest.stamps(&routed, request).into_iter();
            let stamps = stamps.map(|(name, value)| {
                let name = name.trim_start_matches("x-tidegate-");
                format!("{name}={value} ")
            });
            stamps.collect::<String>().trim_end().to_owned()
        }
    };
    format!("{outcome}: {}", decision.reason.as_str())
}

const UPGRADE: &[(&str, &str)] = &[("upgrade", "websocket")];
const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc")];

#[test]
fn a_guest_that_fences_marks_everything_that_the_net_would_reject() {
    let (guest, policy) = (guest(Mode::Fence), fenced_by("sh-a"));
    for (line, more, granted, expected) in [
        ("GET /orders", &[][..], None, ": not_fenced"),
        ("GET /orders", UPGRADE, None, "class=read: not_fenced"),
        ("GET /elsewhere", &[], None, ": no_service"),
        ("POST /elsewhere", &[], None, "class=write: no_service"),
        ("POST /drafts", &[], None, "class=write: not_fenced"),
        (
            "POST /shop.Orders/Get",
            GRPC,
            None,
            "class=read: not_fenced",
        ),
        (
            "POST /orders",
            &[],
            Some(5),
            "class=write epoch=5 cell=main: admitted",
        ),
        (
            "POST /shop.Orders/Put",
            GRPC,
            Some(6),
            "class=write epoch=6 cell=main: admitted",
        ),
        ("POST /orders", &[], None, "503 grpc 14: fenced"),
    ] {
        let told = decide(&guest, &policy, &request(line, more), granted);
        assert_eq!(told, expected, "{line} {more:?}");
    }
}

#[test]
fn a_guest_that_fences_forwards_nothing_and_asks_no_route() {
    let policy = fenced_by("sh-b");
    let write = request("POST /orders", &[]);
    let told = decide(&guest(Mode::Fence), &policy, &write, None);
    assert_eq!(told, "421 grpc 9: not_owner");
    // Where a write goes is the host's matter, also where the zone has no instance.
    let empty = Policy::Serving(Box::new(match fenced_by("sh-a") {
        Policy::Serving(mut rules) => {
            let id = policy::ServiceId::new(0);
            rules.replan(id, crate::support::plans("EUUU"));
            *rules
        }
        Policy::Fallback => unreachable!("a serving policy"),
    }));
    let told = decide(&guest(Mode::Fence), &empty, &write, Some(5));
    assert_eq!(told, "class=write epoch=5 cell=main: admitted");
}

#[test]
fn a_guest_that_routes_stamps_all_that_a_foreign_table_may_match() {
    let (guest, policy) = (guest(Mode::Route), fenced_by("sh-a"));
    let home_b = &[("x-region-id", "sh-b")][..];
    for (line, more, granted, expected) in [
        (
            "GET /orders",
            home_b,
            None,
            "class=read home=sh-b tier=zone decision=home_zone: home_zone",
        ),
        ("GET /elsewhere", &[], None, "class=read: no_service"),
        (
            "POST /orders",
            &[],
            Some(5),
            "class=write epoch=5 cell=main home=sh-a tier=zone decision=home_zone: admitted",
        ),
    ] {
        let told = decide(&guest, &policy, &request(line, more), granted);
        assert_eq!(told, expected, "{line} {more:?}");
    }
}

#[test]
fn without_a_policy_the_lists_decide_and_then_the_method() {
    let classes = vec![
        // As for routes of services, the most specific host decides alone.
        always(Class::Read, prefix("shop.example", "/search")),
        always(Class::Write, prefix("shop.example", "/buy")),
        always(Class::Write, prefix("*", "/search")),
        grpc("shop.example", "shop.Orders"),
    ];
    let unfenced = vec![prefix("*", "/carts")];
    for mode in [Mode::Fence, Mode::Route] {
        let guest = Guest::new(mode, None, classes.clone(), unfenced.clone()).expect("lists");
        for (line, more, passes) in [
            ("GET /orders", &[][..], true),
            ("GET /orders", UPGRADE, false),
            ("POST /orders", &[], false),
            ("POST /search", &[], true),
            ("GET /buy", &[], false),
            ("GET /buy", &[(":authority", "SHOP.example:443")], false),
            ("GET /buy", &[(":authority", "other.example")], true),
            ("POST /shop.Orders/Get", GRPC, true),
            ("POST /shop.Orders/Put", GRPC, false),
            ("POST /carts/7", &[], true),
            ("BREW /carts", &[], true),
        ] {
            let told = decide(&guest, &Policy::Fallback, &request(line, more), None);
            let expected = if passes { "fallback" } else { "fenced" };
            assert!(told.ends_with(expected), "{line} {more:?}: {told}");
        }
    }
}

#[test]
fn a_listed_route_is_checked_like_a_services() {
    let refused = Guest::new(Mode::Fence, None, vec![prefix("*", "orders")], vec![]);
    assert!(matches!(refused, Err(InvalidRules::Prefix { .. })));
}

#[test]
fn routes_that_let_writes_outlive_the_fence_are_known() {
    let of = |drain_ms| Guest::new(Mode::Fence, drain_ms, vec![], vec![]).expect("no lists");
    assert!(!of(None).outlives(&terms()));
    assert!(!of(Some(WRITE_DRAIN_MS)).outlives(&terms()));
    assert!(of(Some(WRITE_DRAIN_MS + 1)).outlives(&terms()));
    assert!(of(Some(u64::MAX)).outlives(&terms()));
}

#[test]
fn an_owned_proxy_decides_as_before() {
    let policy = fenced_by("sh-a");
    let told = verdict(&policy, &request("GET /elsewhere", &[]));
    assert_eq!(told, "pass: no_service");
}
