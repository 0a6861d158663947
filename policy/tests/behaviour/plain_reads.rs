//! A plain read gets the same result without the filter.

use policy::{
    Class, Facts, Headers, Outcome, Policy, Presented, Routed, decide, rules::PlainReads,
};
use proptest::prelude::*;

use crate::{any, support::Request};

/// The checks of the route table before it switches the filter off: see [`PlainReads`].
fn is_plain(policy: &Policy, plain: PlainReads, request: &Request<String>) -> bool {
    let Policy::Serving(rules) = policy else {
        return false;
    };
    let viewer = rules.topology().zone_name(rules.viewer()).as_bytes();
    // Like Envoy, which compares every copy.
    let mut regions = request.0.iter().filter(|(name, _)| *name == "x-region-id");
    let region_ok = match request.get("x-region-id") {
        Presented::Absent => plain.without_region,
        _ => plain.with_local_region && regions.any(|(_, value)| value.as_bytes() == viewer),
    };
    let asks = |header| request.get(header) != Presented::Absent;
    request.get(":method") == Presented::Once(b"GET")
        && region_ok
        && !rules.explain().is_some_and(|explain| asks(&explain.header))
}

/// Requests, most of them plain reads.
fn mostly_plain() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    (any::request(), 0..4_u8).prop_map(|(mut request, dice)| {
        if dice > 0 {
            request.retain(|(name, _)| !matches!(*name, ":method" | "x-region-id" | "x-ask"));
            request.push((":method", "GET".into()));
        }
        if (1..=2).contains(&dice) {
            request.push(("x-region-id", "z0".into()));
        }
        if dice == 2 {
            request.push(("x-region-id", "z1".into()));
        }
        request
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_plain_read_is_decided_before_it_arrives(
        rules in any::rules(),
        request in mostly_plain(),
    ) {
        let policy = Policy::Serving(Box::new(rules));
        let request = Request(request);
        let Policy::Serving(rules) = &policy else {
            unreachable!("a serving policy");
        };
        let facts = Facts::gather(&policy, &request);
        let value = |name| match request.get(name) {
            Presented::Once(value) => value,
            _ => &[],
        };
        let Some((_, service, route)) = rules.route(value(":authority"), value(":path"), facts.grpc) else {
            return Ok(());
        };
        let Some(plain) = rules.plain_reads(service, route) else {
            return Ok(());
        };
        if !is_plain(&policy, plain, &request) {
            return Ok(());
        }
        let tier = match service.plans.get(rules.viewer(), Class::Read) {
            policy::Plan::Open { tier, .. } => Some(*tier),
            policy::Plan::Closed { .. } => None,
        };
        prop_assert!(tier.is_some());
        let home = Some(rules.topology().zone_name(rules.viewer()));
        let expected = Routed { class: Class::Read, tier, home, foreign: false, pin: None, write: None };
        prop_assert_eq!(decide(&policy, &facts).outcome, Outcome::Route(expected));
        prop_assert!(!facts.explain);
    }
}
