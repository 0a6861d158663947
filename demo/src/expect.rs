//! The expected outcome of the traffic.

use anyhow::{Result, ensure};
use e2e::config::{ZONES, region_of};
use e2e::load::{Tally, deviations};

use crate::traffic::{Class, Kind, Row};

/// The share that the demo configures for the home zone; the other zones of its region get the
/// rest.
const HOME_SHARE: f64 = 0.8;
/// A correct share differs by more once in about two million times.
const DEVIATIONS_MAX: f64 = 5.0;
/// The reason of a write without a zone that may serve it.
const NO_CAPACITY: &str = "no_capacity";

/// The expected destinations of the requests of one kind while `down` is down.
pub(crate) struct Expected {
    /// Empty: they are rejected.
    zones: Vec<&'static str>,
    reason: &'static str,
}

/// Whether an expectation is met, with the figure.
pub(crate) struct Verdict {
    pub(crate) passed: bool,
    pub(crate) text: String,
}

impl Expected {
    /// The rules of tiers, repeated independently of the demonstrated code.
    fn of(kind: Kind, down: Option<&str>) -> Expected {
        let home = kind.home();
        let zones = |near: bool| {
            ZONES
                .iter()
                .filter(move |(zone, region)| {
                    Some(*zone) != down && (*region == region_of(home)) == near
                })
                .map(|(zone, _)| *zone)
                .collect::<Vec<_>>()
        };
        let near = zones(true);
        let (zones, reason) = match kind.class {
            _ if near.contains(&home) => (near, "home_zone"),
            _ if !near.is_empty() => (near, "home_region"),
            Class::Read => (zones(false), "remote_read"),
            Class::Write => (vec![], NO_CAPACITY),
        };
        Expected { zones, reason }
    }

    /// Whether a short sample of the traffic shows the expected destinations; the error describes
    /// the difference.
    pub(crate) fn settled(down: Option<&str>, frame: &[Row]) -> Result<()> {
        for row in frame {
            let expected = Expected::of(row.kind, down);
            let answered: Vec<&str> = row.tally.zones.keys().map(String::as_str).collect();
            ensure!(
                answered.iter().all(|zone| expected.zones.contains(zone)),
                "{:?} is answered by {answered:?}",
                row.kind
            );
            let home_serves = expected.reason == "home_zone";
            ensure!(
                !home_serves || answered.contains(&row.kind.home()),
                "{:?} is answered by {answered:?}",
                row.kind
            );
            ensure!(
                row.tally.failed == 0 && (expected.zones.is_empty() || row.tally.refusals() == 0),
                "{:?} fails: {:?}",
                row.kind,
                row.tally.failures
            );
        }
        Ok(())
    }
}

/// All expectations of a chapter: `turning` is the outcome of the requests while `turned` went down
/// or came back, `watched` of those afterwards.
pub(crate) fn verdicts(
    down: Option<&str>,
    turned: Option<&str>,
    turning: &[Row],
    watched: &[Row],
) -> Vec<Verdict> {
    let mut verdicts = vec![];
    if let Some(zone) = turned {
        let way = if down.is_some() {
            "went down"
        } else {
            "came back"
        };
        verdicts.push(no_failure(&format!("while {zone} {way}"), turned, turning));
    }
    verdicts.push(no_failure("while we watched", down, watched));
    if let Some(zone) = down {
        let answered: u64 = watched.iter().map(|row| row.tally.zone(zone)).sum();
        verdicts.push(Verdict {
            passed: answered == 0,
            text: format!("{zone} is empty: it answered {answered} requests"),
        });
    }
    for (home, _) in ZONES {
        verdicts.extend(shares(home, down, watched));
    }
    let writes = || [turning, watched].into_iter().flatten().filter(is_write);
    let remote: u64 = writes().map(Row::remote).sum();
    let sent: u64 = writes().map(|row| row.tally.sent).sum();
    verdicts.push(Verdict {
        passed: remote == 0,
        text: format!("writes stay in their city: {remote} of {sent} left it"),
    });
    verdicts
}

fn is_write(row: &&Row) -> bool {
    row.kind.class == Class::Write
}

/// No request fails, and only the expected writes are rejected while `down` is down.
fn no_failure(when: &str, down: Option<&str>, rows: &[Row]) -> Verdict {
    let mut sum = Tally::default();
    let mut rightly_refused = 0;
    for row in rows {
        if Expected::of(row.kind, down).zones.is_empty() {
            rightly_refused += row.tally.refused.get(NO_CAPACITY).copied().unwrap_or(0);
        }
        sum.add(&row.tally);
    }
    let failed = sum.failed + sum.refusals() - rightly_refused;
    let mut text = format!("{failed} of {} requests failed {when}", sum.sent);
    if rightly_refused > 0 {
        text += &format!("; {rightly_refused} writes were rightly rejected");
    }
    if failed > 0 {
        for (what, count) in &sum.failures {
            text += &format!("\n      {count} x {what}");
        }
    }
    Verdict {
        passed: failed == 0 && sum.sent > 0,
        text,
    }
}

/// The requests of one home go to the expected zones, in the right shares, and for the right
/// reason.
fn shares(home: &'static str, down: Option<&str>, rows: &[Row]) -> Vec<Verdict> {
    [Class::Read, Class::Write]
        .map(|class| {
            let rows = rows
                .iter()
                .filter(|row| row.kind.home() == home && row.kind.class == class);
            let mut tally = Tally::default();
            let mut expected = None;
            for row in rows {
                tally.add(&row.tally);
                expected = Some(Expected::of(row.kind, down));
            }
            expected.map(|expected| share(home, class, &expected, &tally))
        })
        .into_iter()
        .flatten()
        .collect()
}

fn share(home: &str, class: Class, expected: &Expected, tally: &Tally) -> Verdict {
    let reasons: Vec<&str> = tally.reasons.keys().map(String::as_str).collect();
    let for_the_reason = reasons == [expected.reason];
    let zones = ZONES.iter().filter(|(zone, _)| tally.zone(zone) > 0);
    let shares: Vec<String> = zones
        .map(|(zone, _)| format!("{zone} {:.1} %", tally.share(zone) * 100.0))
        .collect();
    let inside = tally
        .zones
        .keys()
        .all(|zone| expected.zones.contains(&zone.as_str()));
    let answered: u64 = tally.zones.values().sum();
    let (passed, bounds) = match expected.zones.as_slice() {
        [] => (answered == 0 && tally.sent > 0, String::new()),
        [_, _] if expected.reason == "home_zone" => {
            let off = deviations(tally.zone(home), answered, HOME_SHARE);
            let bounds = format!(
                " ({off:.1} standard deviations from {} %)",
                HOME_SHARE * 100.0
            );
            (answered > 0 && off < DEVIATIONS_MAX, bounds)
        }
        _ => (answered > 0, String::new()),
    };
    let whereto = if shares.is_empty() {
        "are refused".to_owned()
    } else {
        format!("go to {}", shares.join(", "))
    };
    let class = match class {
        Class::Read => "reads",
        Class::Write => "writes",
    };
    Verdict {
        passed: passed && inside && for_the_reason,
        text: format!(
            "{} {class} of {home} {whereto}{bounds}: {}",
            tally.sent,
            reasons.join(", ")
        ),
    }
}
