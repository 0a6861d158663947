//! From headers to the outcome of a request, at the proxies of `sh-a`.

use policy::{Facts, KeySource, Outcome, Policy, RegionRule, Service, TraceRule, decide};

use crate::support::{self, Request, grpc, plans, prefix, request, service, verdict};

fn orders() -> Service {
    service(
        "orders",
        vec![prefix("*", "/orders"), grpc("*", "shop.v1.Orders")],
    )
}

#[track_caller]
fn check(orders: Service, request: &Request<&str>, expected: &str) {
    assert_eq!(verdict(&support::policy(vec![orders]), request), expected);
}

#[test]
fn a_request_needs_one_stamp_and_a_write_with_a_foreign_home_two() {
    for (line, home, expected) in [
        ("GET /orders", None, "home=sh-a: home_zone"),
        ("POST /orders", None, "class=write: home_zone"),
        ("GET /orders", Some("sh-a"), "home=sh-a: home_zone"),
        // The local zone represents its own region.
        ("GET /orders", Some("shanghai"), "home=sh-a: home_zone"),
        (
            "POST /orders",
            Some("sh-b"),
            "class=write home=sh-b: home_zone",
        ),
        // The nearer of Beijing's zones represents it.
        ("GET /orders", Some("beijing"), "home=bj-c: home_zone"),
        ("GET /elsewhere", Some("sh-b"), "pass: no_service"),
    ] {
        let headers: Vec<_> = home.map(|home| ("x-region-id", home)).into_iter().collect();
        check(orders(), &request(line, &headers), expected);
    }
}

#[test]
fn a_request_without_a_valid_region_is_local_or_refused() {
    use RegionRule::{Local, Reject};
    const MISSING: &[&str] = &[];
    const UNKNOWN: &[&str] = &["mars"];
    const TWICE: &[&str] = &["sh-b", "sh-b"];
    for (missing, unknown, said, expected) in [
        (Local, Local, MISSING, "home=sh-a: home_zone"),
        (Local, Local, UNKNOWN, "home=sh-a: home_zone"),
        (Local, Local, TWICE, "home=sh-a: home_zone"),
        (Reject, Local, MISSING, "400 grpc 3: region_missing"),
        (Reject, Local, &[""], "400 grpc 3: region_missing"),
        (Reject, Local, UNKNOWN, "home=sh-a: home_zone"),
        (Local, Reject, MISSING, "home=sh-a: home_zone"),
        (Local, Reject, UNKNOWN, "400 grpc 3: region_unknown"),
        (Local, Reject, TWICE, "400 grpc 3: region_unknown"),
    ] {
        let orders = Service {
            region_missing: missing,
            region_unknown: unknown,
            ..orders()
        };
        let headers: Vec<_> = said.iter().map(|value| ("x-region-id", *value)).collect();
        check(orders, &request("GET /orders", &headers), expected);
    }
}

#[test]
fn a_trace_id_is_demanded_only_where_configured() {
    let demanding = || Service {
        trace_missing: TraceRule::Reject,
        ..orders()
    };
    check(
        demanding(),
        &request("GET /orders", &[]),
        "400 grpc 3: trace_missing",
    );
    check(
        demanding(),
        &request("GET /orders", &[("x-trace-id", "t")]),
        "home=sh-a: home_zone",
    );
}

#[test]
fn requests_leave_a_failed_zone_and_only_reads_a_failed_region() {
    for (states, line, expected) in [
        ("EUUU", "GET /orders", "home=sh-a: home_region"),
        ("EUUU", "POST /orders", "class=write: home_region"),
        ("EEUU", "GET /orders", "home=sh-a: remote_read"),
        ("EEUU", "POST /orders", "503 grpc 14: no_capacity"),
        ("EEEE", "GET /orders", "503 grpc 14: no_capacity"),
    ] {
        let orders = Service {
            plans: plans(states),
            ..orders()
        };
        check(orders, &request(line, &[]), expected);
    }
}

#[test]
fn without_rules_reads_stay_local_and_writes_are_fenced() {
    let grpc = [("content-type", "application/grpc")];
    for (request, expected) in [
        (request("GET /orders", &[]), "class=read: fallback"),
        (
            request("GET /orders", &[("x-region-id", "mars")]),
            "class=read: fallback",
        ),
        (request("POST /orders", &[]), "503 grpc 14: fenced"),
        (
            request("POST /shop.v1.Orders/Get", &grpc),
            "503 grpc 14: fenced",
        ),
        (request("BREW /", &[]), "503 grpc 14: fenced"),
    ] {
        assert_eq!(verdict(&Policy::Fallback, &request), expected);
    }
}

#[test]
fn a_pin_names_one_cluster_of_the_plan() {
    let keyed = |states| Service {
        zone_affinity: Some(KeySource::Header("x-user".into())),
        plans: plans(states),
        ..orders()
    };
    // Only one zone is left to pin to.
    for (states, line, more, expected) in [
        (
            "UEUU",
            "GET /orders",
            &[("x-user", "42")][..],
            "home=sh-a to=orders/sh-a/reads: home_zone",
        ),
        (
            "EUUU",
            "POST /orders",
            &[("x-user", "42")],
            "class=write to=orders/sh-b/writes tier=region decision=home_region: home_region",
        ),
        (
            "EUUU",
            "GET /orders",
            &[("x-user", "42"), ("x-region-id", "sh-b")],
            "home=sh-b to=orders/sh-b/reads: home_zone",
        ),
        ("UEUU", "GET /orders", &[], "home=sh-a: home_zone"),
        (
            "EEEE",
            "GET /orders",
            &[("x-user", "42")],
            "503 grpc 14: no_capacity",
        ),
    ] {
        check(keyed(states), &request(line, more), expected);
    }
}

#[test]
fn a_drawn_request_names_its_cluster() {
    let check = |states, line, more: &[(&'static str, &'static str)], draw, expected: &str| {
        let policy = support::policy(vec![Service {
            plans: plans(states),
            ..orders()
        }]);
        let facts = Facts {
            draw: Some(draw),
            ..Facts::gather(&policy, &request(line, more))
        };
        assert_eq!(support::verdict_of(&decide(&policy, &facts)), expected);
    };
    // 80 % stay in the home zone, and 20 % go to its region: the tier is that of the plan.
    let (home, region) = (799, 800);
    let near = &[("x-region-id", "sh-b")];
    let first = "home=sh-a to=orders/sh-a/reads: home_zone";
    check("UUUU", "GET /orders", &[], home, first);
    let second = "home=sh-a to=orders/sh-b/reads: home_zone";
    check("UUUU", "GET /orders", &[], region, second);
    let foreign = "class=write home=sh-b to=orders/sh-b/writes: home_zone";
    check("UUUU", "POST /orders", near, region, foreign);
    let region_serves =
        "class=write to=orders/sh-b/writes tier=region decision=home_region: home_region";
    check("EUUU", "POST /orders", &[], home, region_serves);
    let remote = "home=sh-a to=orders/bj-c/reads tier=remote decision=remote_read: remote_read";
    check("EEUE", "GET /orders", &[], home, remote);
    check(
        "EEUE",
        "POST /orders",
        &[],
        home,
        "503 grpc 14: no_capacity",
    );
}

#[test]
fn facts_of_another_policy_are_harmless() {
    let facts = Facts {
        service: Some(policy::ServiceId::new(9)),
        ..Facts::gather(&Policy::Fallback, &request("GET /orders", &[]))
    };
    let policy = support::policy(vec![orders()]);
    assert_eq!(decide(&policy, &facts).outcome, Outcome::Pass);
}

#[test]
fn a_write_that_a_drain_leaves_no_zone_is_told_so() {
    let topology = support::topology();
    let mut loads = support::states("EEUU");
    let detail = |loads: &[policy::ZoneLoad]| {
        let plans = policy::Plans::compute(&topology, policy::Weighting::default(), loads, &[]);
        let policy = support::policy(vec![Service { plans, ..orders() }]);
        let request = request("POST /orders", &[]);
        match decide(&policy, &Facts::gather(&policy, &request)).outcome {
            Outcome::Refuse(refusal) => {
                assert_eq!(refusal.reason.as_str(), "no_capacity");
                refusal.detail
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(detail(&loads).contains("healthy instance"));
    loads[0].drained = true;
    assert!(detail(&loads).contains("an operator has drained"));
}
