//! Access rules and their permissions.

use proptest::prelude::*;

use super::*;

fn named(names: &[&str]) -> Caller {
    let (uris, dns) =
        (names.iter().map(|name| (*name).to_owned())).partition(|n: &String| n.contains("://"));
    Caller::Named(Arc::new(Identity { uris, dns }))
}

fn rule(pattern: &str) -> Rule {
    Rule {
        pattern: Pattern::parse(pattern).unwrap(),
        zones: None,
        roles: None,
    }
}

/// Whether a certificate of this name may ask for the zone and role by this pattern.
#[track_caller]
fn check(pattern: &str, name: &str, zone: &str, role: Role, expected: bool) {
    let access = Access {
        proxies: Some(vec![rule(pattern)]),
        ..Access::default()
    };
    let permitted = access.view(&named(&[name]), zone, role).is_ok();
    assert_eq!(permitted, expected, "{pattern} {name} {zone} {role:?}");
}

#[test]
fn a_pattern_permits_the_zone_and_role_that_stand_in_the_name() {
    use Role::{Gateway, Sidecar};
    let spiffe = "spiffe://mesh/zone/{zone}/role/{role}";
    let gateway_a = "spiffe://mesh/zone/a/role/gateway";
    check(spiffe, gateway_a, "a", Gateway, true);
    check(spiffe, gateway_a, "a", Sidecar, false);
    check(spiffe, gateway_a, "b", Gateway, false);
    check(spiffe, gateway_a, "", Gateway, false);
    check(
        spiffe,
        "spiffe://mesh/zone//role/gateway",
        "",
        Gateway,
        false,
    );
    check(
        spiffe,
        "spiffe://mesh/zone/a/role/gateway/x",
        "a",
        Gateway,
        false,
    );
    check(
        spiffe,
        "spiffe://other/zone/a/role/gateway",
        "a",
        Gateway,
        false,
    );
    // The requested zone is text, and never a pattern itself.
    check(spiffe, gateway_a, "*", Gateway, false);
    check(spiffe, gateway_a, "{zone}", Gateway, false);
    check(
        "spiffe://mesh/zone/{zone}/*",
        gateway_a,
        "a",
        Gateway,
        false,
    );
    check(
        "spiffe://mesh/zone/{zone}/*/gateway",
        gateway_a,
        "a",
        Sidecar,
        true,
    );
    check("spiffe://mesh/*", "spiffe://mesh/", "a", Gateway, false);
    check(
        "spiffe://mesh/gw-{zone}",
        "spiffe://mesh/gw-a-b",
        "a-b",
        Gateway,
        true,
    );
    check(
        "spiffe://mesh/gw-{zone}",
        "spiffe://mesh/gw-a-b",
        "a",
        Gateway,
        false,
    );
    check(
        "spiffe://mesh/zone/{zone}",
        "spiffe://mesh/zone/A",
        "a",
        Gateway,
        false,
    );

    let dns = "*.gw.{zone}.example";
    check(dns, "one.gw.a.example", "a", Gateway, true);
    check(dns, "one.GW.A.example", "a", Gateway, true);
    check(dns, "one.gw.a.example", "b", Gateway, false);
    check(dns, "gw.a.example", "a", Gateway, false);
    check(dns, "x.one.gw.a.example", "a", Gateway, false);
    check(dns, "one.gw.eu.west.example", "eu.west", Gateway, true);
    // Kinds of names are not mixed up.
    check("{zone}", "spiffe://a", "a", Gateway, false);
}

#[test]
fn rules_add_up_and_each_holds_within_its_zones_and_roles() {
    let limited = Rule {
        zones: Some(vec!["a".into()]),
        roles: Some(vec![Role::Sidecar]),
        ..rule("spiffe://mesh/*")
    };
    let access = Access {
        proxies: Some(vec![limited, rule("gw.{zone}")]),
        ..Access::default()
    };
    let caller = named(&["spiffe://mesh/x", "gw.b"]);
    let may = |zone, role| access.view(&caller, zone, role).is_ok();
    assert!(may("a", Role::Sidecar));
    assert!(!may("a", Role::Gateway));
    assert!(may("b", Role::Gateway));
    assert!(!may("c", Role::Gateway));
    for (zone, expected) in [("a", true), ("b", true), ("c", false), ("*", false)] {
        assert_eq!(access.grants(&caller, zone).is_ok(), expected, "{zone}");
    }
    for nobody in [Caller::Plain, Caller::Anonymous, named(&[])] {
        assert!(access.view(&nobody, "b", Role::Gateway).is_err());
    }
}

#[test]
fn a_certificate_for_a_grpc_client_alone_gets_no_grants() {
    let client = Rule {
        roles: Some(vec![Role::Grpc]),
        ..rule("spiffe://mesh/client/{zone}")
    };
    let access = Access {
        proxies: Some(vec![client, rule("spiffe://mesh/{zone}/{role}")]),
        ..Access::default()
    };
    for name in ["spiffe://mesh/client/a", "spiffe://mesh/a/grpc"] {
        let caller = named(&[name]);
        assert!(access.view(&caller, "a", Role::Grpc).is_ok(), "{name}");
        assert!(access.view(&caller, "a", Role::Gateway).is_err(), "{name}");
        assert!(access.grants(&caller, "a").is_err(), "{name}");
    }
    let gateway = named(&["spiffe://mesh/a/gateway"]);
    assert!(access.grants(&gateway, "a").is_ok());
    assert!(access.view(&gateway, "a", Role::Grpc).is_err());
}

#[test]
fn without_rules_every_certificate_may_and_nobody_who_should_show_one_and_does_not() {
    let access = Access::default();
    for (caller, expected) in [
        (Caller::Plain, true),
        (named(&[]), true),
        (Caller::Anonymous, false),
    ] {
        assert_eq!(access.view(&caller, "a", Role::Gateway).is_ok(), expected);
        assert_eq!(access.grants(&caller, "a").is_ok(), expected);
        assert_eq!(access.register(&caller, "a").is_ok(), expected);
        assert_eq!(access.lease(&caller, ["a"]).is_ok(), expected);
        assert_eq!(access.operate(&caller).is_ok(), expected);
        assert_eq!(access.read(&caller).is_ok(), expected);
    }
}

#[test]
fn registrars_write_instances_of_their_zone_and_operators_everything() {
    let access = Access {
        registrars: Some(vec![rule("agent.{zone}")]),
        operators: Some(vec![rule("ops")]),
        ..Access::default()
    };
    let (agent, operator, other) = (named(&["agent.a"]), named(&["ops"]), named(&["x"]));
    assert!(access.register(&agent, "a").is_ok());
    assert!(access.register(&agent, "b").is_err());
    assert!(access.lease(&agent, ["b", "a"]).is_ok());
    assert!(access.lease(&agent, ["b"]).is_err());
    assert!(access.operate(&agent).is_err());
    assert!(access.register(&operator, "b").is_ok());
    assert!(access.lease(&operator, ["b"]).is_ok());
    assert!(access.operate(&operator).is_ok());
    assert!(access.register(&other, "a").is_err());
    assert!(access.read(&other).is_ok());
    // Each list is about its own matter.
    let access = Access {
        operators: None,
        ..access
    };
    assert!(access.register(&other, "a").is_err());
    assert!(access.operate(&other).is_ok());
}

#[test]
fn a_refusal_says_who_it_is_and_what_was_asked_for() {
    let access = Access {
        proxies: Some(vec![rule("x")]),
        ..Access::default()
    };
    let refused = access.view(
        &named(&["spiffe://mesh/a", "b.example"]),
        "z",
        Role::Sidecar,
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the certificate of \"spiffe://mesh/a\", \"b.example\" may not ask for zone \"z\", role sidecar: no rule of `access.proxies` permits it"
    );
    let many: Vec<String> = (0..100)
        .map(|n| format!("{n}{}", "é".repeat(1_000)))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let refused = access.view(&named(&many), &"z".repeat(100_000), Role::Sidecar);
    let text = refused.unwrap_err().to_string();
    assert!(text.contains(" and 92 more may not"), "{text}");
    assert!(text.len() < 8_000, "{}", text.len());
}

#[test]
fn a_pattern_that_could_be_misread_is_refused() {
    for (pattern, expected) in [
        (
            "",
            "empty: write a name like spiffe://mesh.example/zone/{zone} or *.{zone}.example",
        ),
        (
            "spiffe://mesh/{region}",
            "\"spiffe://mesh/{region}\": only {zone} and {role} can stand in braces",
        ),
        (
            "spiffe://mesh/}",
            "\"spiffe://mesh/}\": only {zone} and {role} can stand in braces",
        ),
        (
            "spiffe://mesh/x*",
            "\"spiffe://mesh/x*\": `*` stands for a whole path segment or label, not for a part of one",
        ),
        (
            "*x.example",
            "\"*x.example\": `*` stands for a whole path segment or label, not for a part of one",
        ),
        (
            "{zone}*",
            "\"{zone}*\": `*` stands for a whole path segment or label, not for a part of one",
        ),
        (
            "mesh/zone",
            "\"mesh/zone\": a DNS name has letters, digits, '-', '_' and '.'; a URI has `://`",
        ),
        (
            "spiffe://mesh/a b",
            "\"spiffe://mesh/a b\": a DNS name has letters, digits, '-', '_' and '.'; a URI has `://`",
        ),
    ] {
        assert_eq!(Pattern::parse(pattern).unwrap_err().to_string(), expected);
    }
}

/// Text of the characters that mean something here, and of any others.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        r"[a-c{}*./:é]{0,12}",
        r"(spiffe://|)(\{zone\}|\{role\}|\*|/|\.|a|b){0,6}",
        any::<String>()
    ]
}

proptest! {
    #[test]
    fn no_pattern_and_no_name_panics(pattern in text(), name in text(), zone in text()) {
        if let Ok(pattern) = Pattern::parse(&pattern) {
            let identity = Identity { uris: vec![name.clone()], dns: vec![name] };
            pattern.matches(&identity, &zone, "gateway");
        }
    }

    #[test]
    fn a_name_made_by_a_pattern_is_its_zones_alone(
        pattern in r"(spiffe://m/|)(\{zone\}|x)([/]x|)",
        zone in "[a-c.-]{1,4}", other in "[a-c.-]{1,4}",
    ) {
        if let Ok(parsed) = Pattern::parse(&pattern) {
            let name = pattern.replace("{zone}", &zone);
            let identity = Identity { uris: vec![name.clone()], dns: vec![name] };
            prop_assert!(parsed.matches(&identity, &zone, "gateway"));
            let others = !pattern.contains("{zone}") || zone == other;
            prop_assert_eq!(parsed.matches(&identity, &other, "gateway"), others);
        }
    }
}

fn guest(name: &str) -> Caller {
    Caller::Guest(Arc::new(Identity {
        uris: vec![name.to_owned()],
        dns: vec![],
    }))
}

fn guests_of(pattern: &str, zones: &[&str]) -> Rule {
    Rule {
        zones: Some(zones.iter().map(|zone| (*zone).to_owned()).collect()),
        roles: Some(vec![Role::Guest]),
        ..rule(pattern)
    }
}

#[test]
fn a_guest_holds_grants_of_the_one_zone_that_its_identity_proves() {
    let name = "spiffe://mesh/ns/shop/sa/front";
    let check = |rules: Option<Vec<Rule>>, zones: &[&str]| {
        let access = Access {
            proxies: rules,
            ..Access::default()
        };
        let granted = ["a", "b"].map(|zone| access.guest_grants(&guest(name), zone).is_ok());
        let expected = ["a", "b"].map(|zone| zones.contains(&zone));
        assert_eq!(granted, expected, "{access:?}");
    };
    check(Some(vec![guests_of(name, &["a"])]), &["a"]);
    check(
        Some(vec![guests_of("spiffe://mesh/ns/*/sa/front", &["b"])]),
        &["b"],
    );
    // An identity of several zones proves none.
    check(Some(vec![guests_of(name, &["a", "b"])]), &[]);
    check(
        Some(vec![guests_of(name, &["a"]), guests_of(name, &["b"])]),
        &[],
    );
    // Rules about other roles, or about all of them, are not about guests' certificates.
    check(Some(vec![rule(name)]), &[]);
    check(None, &[]);
    check(
        Some(vec![guests_of("spiffe://mesh/ns/shop/sa/back", &["a"])]),
        &[],
    );
}

#[test]
fn a_guests_certificate_opens_nothing_else() {
    let name = "spiffe://mesh/ns/shop/sa/front";
    let rules = [None, Some(vec![rule(name), guests_of(name, &["a"])])];
    for rules in rules {
        let access = Access {
            proxies: rules.clone(),
            registrars: rules.clone(),
            operators: rules,
        };
        let guest = guest(name);
        assert!(access.follow(&guest).is_ok());
        for role in Role::ALL {
            assert!(access.view(&guest, "a", role).is_err());
        }
        assert!(access.grants(&guest, "a").is_err());
        assert!(access.register(&guest, "a").is_err());
        assert!(access.lease(&guest, ["a"]).is_err());
        assert!(access.operate(&guest).is_err());
        assert!(access.read(&guest).is_err());
    }
    // Without a certificate, policies are had only where none is demanded.
    let open = Access::default();
    assert!(open.follow(&Caller::Plain).is_ok());
    assert!(open.follow(&Caller::Anonymous).is_err());
    let listed = Access {
        proxies: Some(vec![rule("a")]),
        ..Access::default()
    };
    assert!(listed.follow(&Caller::Plain).is_err());
    assert!(listed.follow(&named(&["b"])).is_ok());
}
