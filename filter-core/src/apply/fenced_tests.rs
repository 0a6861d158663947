//! Writes to a service that is fenced.

use policy::{
    Enforcement, Forward,
    fence::EPOCH_MAX,
    hop::{Claim, HopKeys},
};

use super::tests::{Recorder, any_header, check_internal_headers};
use super::*;
use crate::{
    header_map::encode,
    testing::{fenced, fenced_by, fenced_under, hop_keys},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

/// The effects of a write to `orders` with further headers.
#[track_caller]
fn check(policy: &Policy, granted: Option<u64>, headers: &[(&str, &str)], effects: &[&str]) {
    let pseudo = [
        (":method", "POST"),
        (":path", "/orders"),
        (":authority", "shop.example"),
    ];
    let map = encode(&[&pseudo, headers].concat()).unwrap();
    let mut host = Recorder::granting(granted);
    apply(policy, Some(&map), &mut host);
    assert_eq!(host.effects, effects);
}

#[test]
fn an_admitted_write_carries_its_epoch_and_stays_in_flight() {
    check(
        &fenced(),
        Some(7),
        &[],
        &[
            "begin main",
            "set x-tidegate-epoch: 7",
            "count tidegate.decisions.tier.zone.class.write.reason.admitted 1",
        ],
    );
}

#[test]
fn under_terms_that_were_changed_a_write_says_how_long_it_may_live() {
    check(
        &fenced_under(3),
        Some(7),
        &[("x-tidegate-write-drain-ms", "60000")],
        &[
            "begin main",
            "count tidegate.spoofed_headers 1",
            "set x-tidegate-epoch: 7",
            "set x-tidegate-write-drain-ms: 2000",
            "count tidegate.decisions.tier.zone.class.write.reason.admitted 1",
        ],
    );
}

#[test]
fn without_a_grant_a_write_is_refused_and_no_longer_in_flight() {
    check(
        &fenced(),
        None,
        &[],
        &[
            "begin main",
            "set x-tidegate-decision: fenced",
            concat!(
                "reply 503/14 tidegate_fenced ",
                "[content-type: application/problem+json, retry-after: 1] ",
                r#"{"type":"urn:tidegate:problem:fenced","title":"Service Unavailable","#,
                r#""status":503,"reason":"fenced","#,
                r#""detail":"this zone holds no permission to write at the moment: try again"}"#
            ),
            "end main",
            "count tidegate.decisions.tier.none.class.write.reason.fenced 1",
        ],
    );
}

#[test]
fn a_write_that_is_only_observed_is_not_in_flight() {
    let policy = fenced_by("shanghai-a", Forward::Region, Enforcement::Observe);
    check(
        &policy,
        None,
        &[],
        &[
            "begin main",
            "set x-tidegate-epoch: 5",
            "end main",
            "count tidegate.decisions.tier.zone.class.write.reason.observed 1",
        ],
    );
}

#[test]
fn a_write_for_another_zone_is_forwarded_or_names_the_owner() {
    let near = fenced_by("shanghai-b", Forward::Region, Enforcement::Enforce);
    check(
        &near,
        None,
        &[("tidegate-epoch", "99")],
        &[
            "begin main",
            "count tidegate.spoofed_headers 1",
            "set x-tidegate-to: gateway/shanghai-b",
            "set tidegate-epoch: 5",
            &format!("set tidegate-hop: {}", signed(5)),
            "end main",
            "count tidegate.decisions.tier.region.class.write.reason.forwarded 1",
        ],
    );
    let far = fenced_by("beijing-a", Forward::Region, Enforcement::Enforce);
    check(
        &far,
        None,
        &[("content-type", "application/grpc"), ("x-debug", "s3cret")],
        &[
            "begin main",
            "set x-tidegate-decision: not_owner",
            concat!(
                "reply 421/9 tidegate_not_owner ",
                "[x-tidegate-owner: beijing-a, x-tidegate-decision: not_owner] ",
                "another zone takes these writes: send it there, x-tidegate-owner names it"
            ),
            "end main",
            "count tidegate.decisions.tier.none.class.write.reason.not_owner 1",
        ],
    );
    check(
        &far,
        None,
        &[],
        &[
            "begin main",
            "set x-tidegate-decision: not_owner",
            concat!(
                "reply 421/9 tidegate_not_owner ",
                "[content-type: application/problem+json, x-tidegate-owner: beijing-a] ",
                r#"{"type":"urn:tidegate:problem:not_owner","title":"Misdirected Request","#,
                r#""status":421,"reason":"not_owner","#,
                r#""detail":"another zone takes these writes: send it there, x-tidegate-owner names it"}"#
            ),
            "end main",
            "count tidegate.decisions.tier.none.class.write.reason.not_owner 1",
        ],
    );
}

/// The headers of another zone's gateway on a write to `orders`.
fn signed(epoch: u64) -> String {
    let claim = Claim {
        method: b"POST",
        authority: b"shop.example",
        path: b"/orders",
        cell: "main",
        epoch,
    };
    hop_keys().sign(&claim).unwrap()
}

const ADMITTED: &str = "count tidegate.decisions.tier.zone.class.write.reason.admitted 1";

#[test]
fn headers_of_another_zones_proxy_are_removed_and_not_counted_as_spoofed() {
    check(
        &fenced(),
        Some(5),
        &[
            ("tidegate-hop", &signed(5)),
            ("tidegate-epoch", "5"),
            ("x-tidegate-hop", "1"),
        ],
        &[
            "begin main",
            "count tidegate.spoofed_headers 1",
            "remove tidegate-epoch",
            "remove tidegate-hop",
            "set x-tidegate-hop: 1",
            "set x-tidegate-epoch: 5",
            ADMITTED,
        ],
    );
    // A guess, a signature for another epoch, the secret itself, and one without an epoch.
    for (hop, epoch) in [
        ("guess", "6"),
        (&signed(5), "6"),
        ("0123456789abcdef", "6"),
        (&signed(5), ""),
    ] {
        check(
            &fenced(),
            Some(5),
            &[("tidegate-hop", hop), ("tidegate-epoch", epoch)],
            &[
                "begin main",
                "count tidegate.spoofed_headers 2",
                "remove tidegate-epoch",
                "remove tidegate-hop",
                "set x-tidegate-epoch: 5",
                ADMITTED,
            ],
        );
    }
}

/// A write by another zone's gateway, that knows this epoch: the last effects.
fn hop_of(epoch: u64, granted: u64) -> Vec<String> {
    let (hop, presented) = (signed(epoch), epoch.to_string());
    let headers = [
        (":method", "POST"),
        (":path", "/orders"),
        (":authority", "shop.example"),
        ("tidegate-hop", &hop),
        ("tidegate-epoch", &presented),
    ];
    let map = encode(&headers).unwrap();
    let mut host = Recorder::granting(Some(granted));
    apply(&fenced(), Some(&map), &mut host);
    host.effects.split_off(host.effects.len() - 2)
}

#[test]
fn a_newer_epoch_from_another_zone_concerns_this_write_alone() {
    let ahead = "count tidegate.decisions.tier.none.class.write.reason.ahead_epoch 1";
    assert_eq!(hop_of(9, 7), ["end main", ahead]);
    assert_eq!(hop_of(EPOCH_MAX, 7), ["end main", ahead]);
    // None is that high: it is passed over, and then nothing is signed.
    for impossible in [EPOCH_MAX + 1, u64::MAX] {
        assert_eq!(hop_of(impossible, 7), ["set x-tidegate-epoch: 7", ADMITTED]);
    }
}

#[test]
fn without_keys_nothing_is_forwarded_or_believed() {
    let near = fenced_by("shanghai-b", Forward::Region, Enforcement::Enforce);
    let reason = |keys, policy: &Policy, granted| {
        let headers = [(":method", "POST"), (":path", "/orders")];
        let mut host = Recorder::granting(granted);
        host.keys = keys;
        apply(policy, Some(&encode(&headers).unwrap()), &mut host);
        let counted = host.effects.last().unwrap().clone();
        counted
            .trim_end_matches(" 1")
            .rsplit('.')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(reason(HopKeys::Untold, &near, None), "fenced");
    assert_eq!(reason(HopKeys::Withheld, &near, None), "not_owner");
    assert_eq!(reason(hop_keys(), &near, None), "forwarded");
    assert_eq!(reason(HopKeys::Untold, &fenced(), Some(7)), "admitted");
}

#[test]
fn a_write_that_cannot_be_marked_is_no_longer_in_flight() {
    let map = encode(&[(":method", "POST"), (":path", "/orders")]).unwrap();
    let mut host = Recorder::granting(Some(7));
    host.calls_left = Some(0);
    assert_eq!(
        apply(&fenced(), Some(&map), &mut host),
        FilterHeadersStatus::StopIteration
    );
    assert_eq!(host.effects[..2], ["begin main", "end main"]);
}

#[test]
fn reads_and_free_writes_ask_for_nothing() {
    for (method, path) in [("GET", "/orders"), ("POST", "/strict"), ("POST", "/else")] {
        let map = encode(&[(":method", method), (":path", path)]).unwrap();
        let mut host = Recorder::granting(Some(7));
        apply(&fenced(), Some(&map), &mut host);
        assert!(!host.effects.contains(&"begin main".to_owned()));
    }
}

proptest! {
    /// Exactly the admitted requests that go on are in flight, and only these carry the epoch of a
    /// grant.
    #[test]
    fn only_what_goes_on_admitted_is_in_flight(
        headers in vec(any_header(), 0..24),
        token: bool,
        presented in option::of(4..9_u64),
        granted in option::of(5..8_u64),
        owner in select(vec!["shanghai-a", "shanghai-b", "beijing-a"]),
        forward in select(vec![Forward::Never, Forward::Region, Forward::Any]),
        observe: bool,
        calls_left in option::of(0..4_usize),
    ) {
        let enforcement = match observe {
            true => Enforcement::Observe,
            false => Enforcement::Enforce,
        };
        let policy = fenced_by(owner, forward, enforcement);
        let mut headers = headers;
        headers.extend(token.then(|| (b"tidegate-hop".to_vec(), signed(7).into())));
        headers.extend(presented.map(|epoch| (b"tidegate-epoch".to_vec(), epoch.to_string().into())));
        let map = encode(&headers).unwrap();
        let mut host = Recorder::granting(granted);
        host.headers = headers;
        host.calls_left = calls_left;
        let verdict = apply(&policy, Some(&map), &mut host);

        let made = |line: &str| host.effects.iter().filter(|effect| *effect == line).count();
        let in_flight = made("begin main") - made("end main");
        let admitted = "count tidegate.decisions.tier.zone.class.write.reason.admitted 1";
        prop_assert_eq!(in_flight, made(admitted), "{:?}", host.effects);
        prop_assert!(in_flight == 0 || verdict == FilterHeadersStatus::Continue && granted.is_some());
        if verdict == FilterHeadersStatus::Continue {
            check_internal_headers(&host);
            let marked = host.headers.iter().any(|(name, _)| name == b"x-tidegate-epoch");
            prop_assert!(!marked || in_flight == 1 || observe);
        }
    }
}
