//! A request and a policy in, effects out. [`Recorder`] stands for the proxy and keeps the headers
//! as Envoy would.

use policy::{Class, Headers, Presented};
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    header_map::encode,
    testing::{hop_keys, serving},
};

#[derive(Default)]
pub(super) struct Recorder {
    pub(super) headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// Every call, as a line.
    pub(super) effects: Vec<String>,
    /// How many calls succeed, where not all do.
    pub(super) calls_left: Option<usize>,
    /// The epoch for which a write is admitted.
    granted: Option<u64>,
    /// The keys of hops.
    pub(super) keys: HopKeys,
    /// The number drawn for each request.
    drawn: u64,
}

impl Recorder {
    /// Admits fenced writes for this epoch.
    pub(super) fn granting(epoch: Option<u64>) -> Recorder {
        Recorder {
            granted: epoch,
            keys: hop_keys(),
            ..Recorder::default()
        }
    }

    fn call(&mut self, effect: String) -> Result<(), HostFailed> {
        if let Some(left) = &mut self.calls_left {
            *left = left.checked_sub(1).ok_or(HostFailed)?;
        }
        self.effects.push(effect);
        Ok(())
    }
}

impl Host for Recorder {
    fn set(&mut self, name: &str, value: &str) -> Result<(), HostFailed> {
        self.call(format!("set {name}: {value}"))?;
        self.headers.retain(|(n, _)| n != name.as_bytes());
        self.headers.push((name.into(), value.into()));
        Ok(())
    }

    fn remove(&mut self, name: &[u8]) -> Result<(), HostFailed> {
        self.call(format!("remove {}", name.escape_ascii()))?;
        self.headers.retain(|(n, _)| n != name);
        Ok(())
    }

    fn reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed> {
        let Reply {
            status,
            grpc_status,
            details,
            headers,
            body,
            awaited_body,
        } = reply;
        let headers: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        let awaited = awaited_body.map_or(String::new(), |bytes| format!(" after {bytes} bytes"));
        self.call(format!(
            "reply {status}/{grpc_status} {details} [{}] {body}{awaited}",
            headers.join(", ")
        ))
    }

    fn count(&mut self, counter: Metric, by: u32) {
        self.effects.push(format!("count {} {by}", counter.name()));
    }

    fn admit(&mut self, cell: &str, _: bool) -> Option<u64> {
        self.effects.push(format!("begin {cell}"));
        self.granted
    }

    fn release(&mut self, cell: &str) {
        self.effects.push(format!("end {cell}"));
    }

    fn hop_keys(&mut self) -> HopKeys {
        self.keys.clone()
    }

    fn draw(&mut self) -> u64 {
        self.drawn
    }
}

/// The effects of `request`: a method, a path, and further headers.
#[track_caller]
fn check(
    policy: &Policy,
    request: (&str, &str, &[(&str, &str)]),
    effects: &[&str],
) -> FilterHeadersStatus {
    let (method, path, headers) = request;
    let pseudo = [
        (":method", method),
        (":path", path),
        (":authority", "shop.example"),
    ];
    let map = encode(&[&pseudo, headers].concat()).unwrap();
    let mut host = Recorder::default();
    let verdict = apply(policy, Some(&map), &mut host);
    assert_eq!(host.effects, effects);
    verdict
}

const PROBLEM_FENCED: &str = concat!(
    "reply 503/14 tidegate_fenced [content-type: application/problem+json, retry-after: 1] ",
    r#"{"type":"urn:tidegate:problem:fenced","title":"Service Unavailable","status":503,"reason":"fenced","#,
    r#""detail":"this proxy has no policy yet and admits no writes: try again"}"#
);

const PROBLEM_BLIND: &str = concat!(
    "reply 503/14 tidegate_fenced [content-type: application/problem+json, retry-after: 1] ",
    r#"{"type":"urn:tidegate:problem:fenced","title":"Service Unavailable","status":503,"reason":"fenced","#,
    r#""detail":"this proxy cannot check the request, and rejects unchecked requests: try again"}"#
);

#[test]
fn a_local_request_costs_two_stamps() {
    let verdict = check(
        &serving(),
        ("GET", "/orders/7", &[]),
        &[
            "set x-tidegate-home: shanghai-a",
            "set x-tidegate-to: orders/shanghai-a/reads",
            "count tidegate.decisions.tier.zone.class.read.reason.home_zone 1",
        ],
    );
    assert_eq!(verdict, FilterHeadersStatus::Continue);
    check(
        &serving(),
        (
            "POST",
            "/shop.Orders/Get",
            &[("content-type", "application/grpc")],
        ),
        &[
            "set x-tidegate-home: shanghai-a",
            "set x-tidegate-to: orders/shanghai-a/reads",
            "count tidegate.decisions.tier.zone.class.read.reason.home_zone 1",
        ],
    );
}

#[test]
fn a_request_of_another_zone_carries_its_home() {
    check(
        &serving(),
        ("POST", "/orders", &[("x-region-id", "beijing")]),
        &[
            "set x-tidegate-class: write",
            "set x-tidegate-home: beijing-a",
            "set x-tidegate-to: orders/beijing-a",
            "count tidegate.decisions.tier.zone.class.write.reason.home_zone 1",
        ],
    );
}

#[test]
fn requests_are_shared_out_by_what_is_drawn() {
    let check = |drawn: u64, effects: &[&str]| {
        let request = [
            (":method", "GET"),
            (":path", "/orders"),
            ("x-debug", "s3cret"),
        ];
        let mut host = Recorder {
            drawn,
            ..Recorder::default()
        };
        apply(&serving(), Some(&encode(&request).unwrap()), &mut host);
        assert_eq!(host.effects[..effects.len()], *effects);
    };
    let home = "set x-tidegate-home: shanghai-a";
    // The plan says 80 to 20.
    check(799, &[home, "set x-tidegate-to: orders/shanghai-a/reads"]);
    check(800, &[home, "set x-tidegate-to: orders/shanghai-b/reads"]);
}

#[test]
fn spoofed_headers_go_each_once_and_stamps_overwrite_the_rest() {
    check(
        &serving(),
        (
            "GET",
            "/orders",
            &[
                ("x-tidegate-to", "orders/beijing-a"),
                ("x-tidegate-class", "write"),
                ("x-tidegate-to", "orders/shanghai-b"),
                ("x-envoy-upstream-alt-route", "secrets"),
            ],
        ),
        &[
            "count tidegate.spoofed_headers 3",
            "remove x-envoy-upstream-alt-route",
            "remove x-tidegate-class",
            "set x-tidegate-home: shanghai-a",
            "set x-tidegate-to: orders/shanghai-a/reads",
            "count tidegate.decisions.tier.zone.class.read.reason.home_zone 1",
        ],
    );
}

#[test]
fn names_with_underscores_are_spoofed_too() {
    check(
        &serving(),
        (
            "GET",
            "/orders",
            &[
                ("x_tidegate-epoch", "999999"),
                ("x-tidegate_home", "beijing-a"),
                ("x_tidegate_class", "write"),
                ("tidegate_hop", "1"),
                ("tidegate_epoch", "9"),
            ],
        ),
        &[
            "count tidegate.spoofed_headers 5",
            "remove tidegate_epoch",
            "remove tidegate_hop",
            "remove x-tidegate_home",
            "remove x_tidegate-epoch",
            "remove x_tidegate_class",
            "set x-tidegate-home: shanghai-a",
            "set x-tidegate-to: orders/shanghai-a/reads",
            "count tidegate.decisions.tier.zone.class.read.reason.home_zone 1",
        ],
    );
}

#[test]
fn a_request_that_goes_round_is_counted_and_ended() {
    let sent_on = |via: &str| {
        let pseudo = [
            (":method", "GET"),
            (":path", "/orders"),
            ("tidegate-via", via),
        ];
        let mut host = Recorder::default();
        apply(&serving(), Some(&encode(&pseudo).unwrap()), &mut host);
        let said = |effect: &String| effect.contains(headers::VIA) || effect.starts_with("reply ");
        host.effects.into_iter().find(said).unwrap()
    };
    assert_eq!(sent_on("1"), "set tidegate-via: 2");
    assert_eq!(sent_on("7"), "set tidegate-via: 8");
    assert_eq!(sent_on("x"), "set tidegate-via: 2");
    for round in ["8", "9", "4294967296", "99999999999999999999"] {
        let ended = sent_on(round);
        assert!(
            ended.starts_with("reply 508/9 tidegate_loop") || round.len() == 20,
            "{ended}"
        );
    }
}

#[test]
fn a_refusal_awaits_a_small_body_that_is_on_its_way() {
    let awaits = |headers: &[(&str, &str)]| {
        let pseudo = [(":method", "POST"), (":path", "/strict")];
        let map = encode(&[&pseudo[..], headers].concat()).unwrap();
        let mut host = Recorder::default();
        apply(&serving(), Some(&map), &mut host);
        let reply = host
            .effects
            .iter()
            .find(|effect| effect.starts_with("reply "))
            .unwrap();
        reply
            .split_once(" after ")
            .map(|(_, bytes)| bytes.to_owned())
    };
    assert_eq!(
        awaits(&[("content-length", "2")]).as_deref(),
        Some("2 bytes")
    );
    assert_eq!(
        awaits(&[("content-length", "16384")]).as_deref(),
        Some("16384 bytes")
    );
    for none in [
        &[][..],
        &[("content-length", "0")],
        &[("content-length", "16385")],
        &[("content-length", "99999999999")],
        &[("content-length", "x")],
        &[("content-length", "2"), ("content-length", "2")],
        &[("transfer-encoding", "chunked")],
        // The client waits for leave to send it.
        &[("content-length", "2"), ("expect", "100-continue")],
    ] {
        assert_eq!(awaits(none), None, "{none:?}");
    }
}

#[test]
fn a_request_without_a_service_loses_only_spoofed_headers() {
    for (headers, effects) in [
        (&[][..], &[][..]),
        (
            &[("x-tidegate-tier", "zone"), ("x-debug", "s3cret")],
            &["count tidegate.spoofed_headers 1", "remove x-tidegate-tier"],
        ),
    ] {
        let counted = "count tidegate.decisions.tier.none.class.write.reason.no_service 1";
        let verdict = check(
            &serving(),
            ("POST", "/else", headers),
            &[effects, &[counted]].concat(),
        );
        assert_eq!(verdict, FilterHeadersStatus::Continue);
    }
}

#[test]
fn a_caller_who_may_see_decisions_gets_the_reason() {
    check(
        &serving(),
        ("GET", "/orders", &[("x-debug", "s3cret")]),
        &[
            "set x-tidegate-home: shanghai-a",
            "set x-tidegate-to: orders/shanghai-a/reads",
            "set x-tidegate-explain: home_zone",
            "count tidegate.decisions.tier.zone.class.read.reason.home_zone 1",
        ],
    );
    check(
        &serving(),
        (
            "GET",
            "/orders",
            &[("x-debug", "guess"), ("x-tidegate-explain", "1")],
        ),
        &[
            "count tidegate.spoofed_headers 1",
            "remove x-tidegate-explain",
            "set x-tidegate-home: shanghai-a",
            "set x-tidegate-to: orders/shanghai-a/reads",
            "count tidegate.decisions.tier.zone.class.read.reason.home_zone 1",
        ],
    );
}

#[test]
fn without_a_policy_reads_go_on_and_writes_are_fenced() {
    check(
        &Policy::Fallback,
        ("GET", "/orders", &[("x-tidegate-to", "orders/beijing-a")]),
        &[
            "count tidegate.spoofed_headers 1",
            "remove x-tidegate-to",
            "set x-tidegate-class: read",
            "count tidegate.decisions.tier.none.class.read.reason.fallback 1",
        ],
    );
    let verdict = check(
        &Policy::Fallback,
        ("DELETE", "/orders", &[]),
        &[
            "set x-tidegate-decision: fenced",
            PROBLEM_FENCED,
            "count tidegate.decisions.tier.none.class.write.reason.fenced 1",
        ],
    );
    assert_eq!(verdict, FilterHeadersStatus::StopIteration);
}

#[test]
fn a_refusal_speaks_the_callers_protocol() {
    check(
        &serving(),
        (
            "GET",
            "/strict",
            &[("x-debug", "s3cret"), ("x-tidegate-decision", "fine")],
        ),
        &[
            "count tidegate.spoofed_headers 1",
            "remove x-tidegate-decision",
            "set x-tidegate-decision: region_missing",
            concat!(
                "reply 400/3 tidegate_region_missing ",
                "[content-type: application/problem+json, x-tidegate-decision: region_missing] ",
                r#"{"type":"urn:tidegate:problem:region_missing","title":"Bad Request","status":400,"#,
                r#""reason":"region_missing","#,
                r#""detail":"this service demands X-Region-ID: send the name of a zone or region"}"#
            ),
            "count tidegate.decisions.tier.none.class.read.reason.region_missing 1",
        ],
    );
    check(
        &serving(),
        (
            "POST",
            "/shop.Strict/Put",
            &[
                ("content-type", "application/grpc+proto"),
                ("x-region-id", "beijing-a"),
                ("x-trace-id", "t"),
                ("x-debug", "s3cret"),
            ],
        ),
        &[
            "set x-tidegate-decision: no_capacity",
            "reply 503/14 tidegate_no_capacity [x-tidegate-decision: no_capacity] \
             each zone that this request may use is drained, full, or without a healthy instance",
            "count tidegate.decisions.tier.none.class.write.reason.no_capacity 1",
        ],
    );
}

#[test]
fn a_map_that_cannot_be_read_lets_nothing_through() {
    for map in [None, Some(&b"\x01\0\0\0"[..])] {
        let mut host = Recorder::default();
        let verdict = apply(&serving(), map, &mut host);
        assert_eq!(verdict, FilterHeadersStatus::StopIteration);
        assert_eq!(
            host.effects,
            [
                "count tidegate.decisions.tier.none.class.write.reason.fenced 1",
                "set x-tidegate-decision: fenced",
                PROBLEM_BLIND
            ]
        );
    }
}

#[test]
fn a_call_that_fails_lets_nothing_through() {
    let request = [
        (":method", "GET"),
        (":path", "/orders"),
        ("x-region-id", "shanghai-b"),
        ("x-tidegate-tier", "zone"),
        ("x-debug", "s3cret"),
    ];
    let map = encode(&request).unwrap();
    // One removal, the home, the cluster, and the explanation.
    for calls in 0..4 {
        let mut host = Recorder {
            calls_left: Some(calls),
            ..Recorder::default()
        };
        let verdict = apply(&serving(), Some(&map), &mut host);
        assert_eq!(
            verdict,
            FilterHeadersStatus::StopIteration,
            "call {calls} fails"
        );
    }
    let mut host = Recorder {
        calls_left: Some(4),
        ..Recorder::default()
    };
    assert_eq!(
        apply(&serving(), Some(&map), &mut host),
        FilterHeadersStatus::Continue
    );
}

/// Header names and values, most of them such that they matter.
pub(super) fn any_header() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let names = select(vec![
        ":method",
        ":path",
        ":authority",
        "content-type",
        "x-region-id",
        "x-trace-id",
        "x-debug",
        "x-user",
        "cookie",
        "",
        headers::HOME,
        headers::CLASS,
        headers::TO,
        headers::TIER,
        headers::DECISION,
        headers::EXPLAIN,
        headers::ALT_ROUTE,
        "x_tidegate_home",
        "X_Tidegate-Epoch",
        "tidegate_hop",
        "tidegate_epoch",
        "x-tidegate-",
        "x-tidegate-\u{ff}",
    ]);
    let values = select(vec![
        "",
        "GET",
        "POST",
        "/orders/7?q",
        "/strict",
        "/shop.Orders/Get",
        "shop.example:8080",
        "application/grpc",
        "shanghai-a",
        "shanghai",
        "beijing-a",
        "s3cret",
        "write",
        "remote",
    ]);
    (
        prop_oneof![
            9 => names.prop_map(|name| name.as_bytes().to_vec()),
            1 => vec(any::<u8>(), 0..20),
        ],
        prop_oneof![
            8 => values.prop_map(|value| value.as_bytes().to_vec()),
            2 => vec(any::<u8>(), 0..20),
            1 => Just(vec![0xff; 60_000]),
        ],
    )
}

/// Everything that must hold whatever the request is.
fn check_invariants(policy: &Policy, headers: Vec<(Vec<u8>, Vec<u8>)>) {
    let map = encode(&headers).unwrap();
    let mut host = Recorder {
        headers,
        ..Recorder::default()
    };
    let verdict = apply(policy, Some(&map), &mut host);

    let made = |start: &str| host.effects.iter().filter(|e| e.starts_with(start)).count();
    assert_eq!(made("count tidegate.decisions"), 1, "{:?}", host.effects);
    match verdict {
        FilterHeadersStatus::StopIteration => assert_eq!(made("reply "), 1, "{:?}", host.effects),
        FilterHeadersStatus::Continue => {
            assert_eq!(made("reply "), 0, "{:?}", host.effects);
            check_internal_headers(&host);
            check_class(policy, &map, &host);
        }
    }
}

/// Each internal header that is left was set by the filter.
pub(super) fn check_internal_headers(host: &Recorder) {
    for (name, value) in &host.headers {
        if headers::is_internal(name) {
            let set = format!("set {}: {}", name.escape_ascii(), value.escape_ascii());
            assert!(host.effects.contains(&set), "{set}, in {:?}", host.effects);
        }
    }
}

/// Routed means a class or a home, each at most once, and a write always says that it is one; it
/// leaves no region, and goes nowhere without a policy.
fn check_class(policy: &Policy, map: &[u8], host: &Recorder) {
    let request = HeaderMap::parse(map).unwrap();
    let facts = Facts::gather(policy, &request);
    let values = |stamp: &str| -> Vec<&[u8]> {
        let named = |(name, _): &&(Vec<u8>, Vec<u8>)| name == stamp.as_bytes();
        let stamps = host.headers.iter().filter(named);
        stamps.map(|(_, value)| &value[..]).collect()
    };
    let (classes, homes) = (values(headers::CLASS), values(headers::HOME));
    assert!(classes.len() <= 1 && homes.len() <= 1);
    if facts.service.is_none() && *policy != Policy::Fallback {
        assert_eq!((classes.len(), homes.len()), (0, 0));
        return;
    }
    assert!(classes.len() + homes.len() > 0);
    let class = facts.class.as_str().as_bytes();
    assert!(classes.iter().all(|stamped| *stamped == class));
    assert!(facts.class == Class::Read || classes.len() == 1);
    if facts.class == Class::Write {
        assert_ne!(*policy, Policy::Fallback);
        let remote = "count tidegate.decisions.tier.remote";
        assert!(!host.effects.iter().any(|effect| effect.starts_with(remote)));
    }
    if let Presented::Once(method) = request.get(":method")
        && policy::Class::of_method(method) == Class::Write
    {
        // A method that writes is a read only as a gRPC method that is listed.
        assert!(facts.class == Class::Write || facts.grpc);
    }
}

proptest! {
    #[test]
    fn no_request_escapes(headers in vec(any_header(), 0..24)) {
        check_invariants(&serving(), headers.clone());
        check_invariants(&Policy::Fallback, headers);
    }

    #[test]
    fn no_encoding_makes_it_panic(map: Vec<u8>, calls in 0..4_usize) {
        for policy in [serving(), Policy::Fallback] {
            let mut host = Recorder { calls_left: Some(calls), ..Recorder::default() };
            apply(&policy, Some(&map), &mut host);
        }
    }
}

#[test]
fn thousands_of_spoofed_headers_are_all_removed() {
    let spoofed = |n: usize| {
        let name = format!("x-tidegate-{}", n % 5_000);
        (name.into_bytes(), b"x".to_vec())
    };
    let mut headers = vec![(b":path".to_vec(), b"/orders".to_vec())];
    headers.push((b":method".to_vec(), b"GET".to_vec()));
    headers.extend((0..20_000).map(spoofed));
    check_invariants(&serving(), headers);
}
