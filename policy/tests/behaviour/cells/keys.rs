//! The key of a write chooses its cell.

use policy::{Facts, Forward, KeySource, Policy, Reason, Service, Writes, decide, shard};

use super::{cell, check, facts, fencing, orders};
use crate::support::{self, request};

#[test]
fn with_several_cells_the_key_says_which_and_the_write_brings_its_name() {
    let here = cell("here", 0, &["sh-a"], Forward::Region);
    let there = cell("there", 512, &["sh-b"], Forward::Region);
    let fence = fencing(vec![here, there]);
    let shard_of = |key: &str| shard::jump_hash(shard::key_digest(key.as_bytes()), 1_024);
    let keys = ["1", "2", "3", "4", "5", "6", "7", "8", ""];
    let low = *keys
        .iter()
        .find(|key| !key.is_empty() && shard_of(key) < 512)
        .expect("a key");
    let high = *keys.iter().find(|key| shard_of(key) >= 512).expect("a key");
    let policy = super::policy("UUUU", fence.clone());
    check(
        &policy,
        Some(7),
        &[("x-user", low)],
        "cell=here epoch=7: admitted",
    );
    let forwarded = "to=gateway/sh-b cell=there tidegate-epoch=7: forwarded @sh-b";
    check(&policy, None, &[("x-user", high)], forwarded);
    // Requests without a key belong to the cell of the empty key.
    let of = |more: &[_]| Facts::gather(&policy, &request("POST /orders", more)).cell;
    let keyless = fence.cell_of(None);
    assert_eq!(fence.cell_of(Some(shard::key_digest(b""))), keyless);
    assert_eq!(
        (of(&[]), of(&[("x-user", "")])),
        (Some(keyless), Some(keyless))
    );
    let invalid = "400 grpc 3: key_invalid";
    check(
        &policy,
        Some(7),
        &[("x-user", low), ("x-user", high)],
        invalid,
    );
    check(
        &policy,
        Some(7),
        &[("x-user", low), ("x-user", low)],
        invalid,
    );
    check(&policy, Some(7), &[("x-user", "50%")], invalid);
}

/// The cell that each request selects in an `orders` with its key in `source`; none if the key is
/// rejected.
fn cell_by(
    source: KeySource,
    line: &'static str,
    more: &[(&'static str, &'static str)],
) -> Option<usize> {
    let cells = (0..16).map(|at| cell(&format!("c{at}"), 64 * at, &["sh-a"], Forward::Never));
    let Policy::Serving(rules) = support::policy(vec![Service {
        writes: Writes::Fenced { key: Some(source) },
        ..orders("UUUU")
    }]) else {
        unreachable!("a serving policy");
    };
    let policy = Policy::Serving(Box::new(rules.fenced(fencing(cells.collect()))));
    let facts = facts(&policy, &request(line, more), Some(7));
    match decide(&policy, &facts).reason {
        Reason::KeyInvalid => None,
        _ => facts.cell.map(|cell| cell.index()),
    }
}

#[test]
fn a_key_is_the_same_however_it_is_percent_encoded() {
    let digest = shard::key_digest("u6@exämple.com".as_bytes());
    let wanted = Some(shard::jump_hash(digest, 1_024) as usize / 64);
    let encoded = [
        "u6@ex\u{e4}mple.com",
        "u6%40ex%c3%a4mple.com",
        "%75%36%40%65x%C3%A4mple.com",
    ];
    let header = || KeySource::Header("x-user".into());
    let cookie = || KeySource::Cookie("user".into());
    for key in encoded {
        let headers = [("x-user", key)];
        assert_eq!(cell_by(header(), "POST /orders", &headers), wanted, "{key}");
    }
    for line in [
        "POST /orders/u6@ex\u{e4}mple.com",
        "POST /orders/u6%40ex%c3%a4mple.com?x=%",
        "POST /orders/%75%36%40%65x%C3%A4mple.com/items",
    ] {
        assert_eq!(
            cell_by(KeySource::PathSegment(1), line, &[]),
            wanted,
            "{line}"
        );
    }
    for cookies in [
        "user=u6@ex\u{e4}mple.com",
        "a=%; user=u6%40ex%c3%a4mple.com; users=1",
        "user=%75%36%40%65x%C3%A4mple.com",
    ] {
        let headers = [("cookie", cookies)];
        assert_eq!(
            cell_by(cookie(), "POST /orders", &headers),
            wanted,
            "{cookies}"
        );
    }
    // A plus sign is not decoded.
    let plus = cell_by(header(), "POST /orders", &[("x-user", "a+b")]);
    assert_eq!(
        plus,
        cell_by(header(), "POST /orders", &[("x-user", "a%2Bb")])
    );
}

#[test]
fn a_key_that_can_be_read_in_two_ways_or_in_none_is_refused() {
    let header = || KeySource::Header("x-user".into());
    let cookie = || KeySource::Cookie("user".into());
    for bad in ["%", "50%", "a%4", "%zz", "%4g", "%%40", "%-1", "% 1"] {
        let headers = [("x-user", bad)];
        assert_eq!(cell_by(header(), "POST /orders", &headers), None, "{bad}");
    }
    for line in [
        "POST /orders/50%",
        "POST /orders/%4?x",
        "POST /orders/%zz/1",
    ] {
        assert_eq!(
            cell_by(KeySource::PathSegment(1), line, &[]),
            None,
            "{line}"
        );
    }
    let twice = [("x-user", "1"), ("x-user", "1")];
    assert_eq!(cell_by(header(), "POST /orders", &twice), None);
    for bad in [
        &[("cookie", "user=%")][..],
        &[("cookie", "user=1; user=2")],
        &[("cookie", "user=1; user=1")],
        &[("cookie", "user=1"), ("cookie", "user=1")],
    ] {
        assert_eq!(cell_by(cookie(), "POST /orders", bad), None, "{bad:?}");
    }
}
