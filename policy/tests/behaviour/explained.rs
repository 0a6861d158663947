//! An explanation comes from the decision itself, in readable sentences.

use policy::{Class, Facts, KeySource, Outcome, Policy, Reason, Service, Tier, explain};
use proptest::prelude::*;

use crate::{
    any,
    support::{self, Request, plans, prefix, request, service},
};

#[track_caller]
fn check(policy: &Policy, request: &Request<&str>, expected: &[&str]) {
    let (_, steps) = explain(policy, &Facts::gather(policy, request));
    let sentences: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(sentences, expected);
}

#[test]
fn explanations_read_like_sentences() {
    let policy = |states| {
        support::policy(vec![Service {
            zone_affinity: Some(KeySource::Header("x-user".into())),
            plans: plans(states),
            ..service("orders", vec![prefix("*", "/orders")])
        }])
    };
    check(
        &policy("UUUU"),
        &request("GET /orders", &[]),
        &[
            "host and path belong to service orders",
            "it is a read",
            "X-Region-ID is missing: the home is the local zone sh-a",
            "the nearest usable tier seen from sh-a is zone",
            "shares: sh-a 800/1000 sh-b 200/1000",
        ],
    );
    check(
        &policy("UEEE"),
        &request("POST /orders", &[("x-region-id", "beijing")]),
        &[
            "host and path belong to service orders",
            "it is a write",
            "X-Region-ID names the region beijing: bj-c represents it",
            "each zone that a write of bj-c may use is drained, full, or without a healthy instance",
        ],
    );
    check(
        &policy("EUUU"),
        &request("GET /orders", &[("x-region-id", "sh-a"), ("x-user", "42")]),
        &[
            "host and path belong to service orders",
            "it is a read",
            "X-Region-ID names the home sh-a",
            "the nearest usable tier seen from sh-a is region",
            "shares: sh-b 1000/1000",
            "its affinity key keeps it in orders/sh-b/reads",
        ],
    );
    check(
        &policy("UUUU"),
        &request("GET /", &[]),
        &["no service claims this host and path"],
    );
    check(
        &Policy::Fallback,
        &request("POST /orders", &[]),
        &[
            "no policy has arrived yet: reads stay local, writes are fenced",
            "it is a write",
        ],
    );
}

#[test]
fn reasons_have_names_of_their_own() {
    let mut names = Reason::ALL.map(Reason::as_str).to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
}

proptest! {
    #[test]
    fn a_decision_is_explained_kept_in_its_region_and_within_its_plan(
        rules in any::rules(),
        request in any::request(),
        fallback in prop::bool::weighted(0.1),
        granted in any::granted(),
    ) {
        let topology = rules.topology().clone();
        let viewer = rules.viewer();
        let policy = if fallback { Policy::Fallback } else { Policy::Serving(Box::new(rules)) };
        let facts = Facts { granted, ..Facts::gather(&policy, &Request(request)) };
        let decision = policy::decide(&policy, &facts);
        let (explained, steps) = explain(&policy, &facts);
        prop_assert_eq!(decision, explained);
        prop_assert!(!steps.is_empty());
        prop_assert!(steps.iter().all(|step| !step.to_string().is_empty()));

        let Outcome::Route(routed) = decision.outcome else {
            return Ok(());
        };
        prop_assert_eq!(routed.class, facts.class);
        prop_assert_eq!(routed.write.is_some(), facts.cell.is_some());
        let forwarded = decision.reason == Reason::Forwarded;
        prop_assert!(facts.class == Class::Read || forwarded || routed.tier != Some(Tier::Remote));
        let home = routed.home.and_then(|name| topology.zone_named(name));
        prop_assert_eq!(home.is_some(), !fallback);
        prop_assert_eq!(routed.foreign, home.is_some_and(|home| home != viewer));
        if let (Policy::Serving(rules), Some(_), Some(pin)) = (&policy, routed.write, routed.pin) {
            prop_assert!(forwarded && !facts.forwarded);
            let owner = decision.owner.and_then(|owner| topology.zone_named(owner));
            prop_assert_eq!(owner.and_then(|owner| rules.gateway(owner)), Some(pin));
            return Ok(());
        }
        if let (Policy::Serving(rules), Some(pin)) = (&policy, routed.pin) {
            let service = facts.service.and_then(|id| rules.service(id)).expect("a service");
            let home = home.expect("a home");
            let plan = service.plans.get(home, routed.class);
            let mut clusters = plan.targets().iter().map(|target| {
                let zone = topology.zone_name(target.zone);
                match policy::rules::is_alone(&topology, target.zone, facts.class) {
                    true => policy::rules::cluster_name(&service.name, zone),
                    false => policy::rules::route_cluster_name(&service.name, zone, facts.class),
                }
            });
            prop_assert!(clusters.any(|cluster| cluster == pin), "{pin} is not in {plan:?}");
        }
    }
}
