//! The second act's traffic, and its expected outcome.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::Request;
use e2e::config::ZONES;
use e2e::load::{Load, RunningLoad, Tally};
use e2e::stage::witness::{CELLS, KEY, key_of};

use super::stage::Stage;
use crate::expect::Verdict;
use crate::traffic::Class;

/// The expected outcome of the writes by one gateway.
#[derive(Clone, Copy, Debug)]
pub(super) enum Writes {
    /// This zone accepts all of them.
    Taken(&'static str),
    /// All are rejected for this reason.
    Refused(&'static str),
    /// In transition.
    Any,
}

/// The expected outcome of the writes to each cell, by the gateways in their order.
pub(super) type Plan = [[Writes; 3]; CELLS.len()];

/// The expected outcome of a chapter.
pub(super) struct Expected<'c> {
    pub(super) writes: &'c Plan,
    /// Whether each cell's epoch rises; none: not known yet.
    pub(super) epochs_rise: Option<[bool; CELLS.len()]>,
    /// The epochs before the chapter, and after it.
    pub(super) epochs: [[u64; CELLS.len()]; 2],
}

/// The outcome of one kind of request.
#[derive(Clone, Debug)]
pub(super) struct Row {
    gateway: &'static str,
    class: Class,
    /// For writes, the position in [`CELLS`].
    cell: usize,
    pub(super) tally: Tally,
}

/// Continuous traffic: reads and writes by every gateway, which name no home.
pub(super) struct Traffic {
    kinds: Vec<(&'static str, Class, usize)>,
    load: RunningLoad,
}

impl Traffic {
    pub(super) fn start(stage: &Stage) -> Result<Traffic> {
        let (mut kinds, mut requests) = (vec![], vec![]);
        for (gateway, at) in stage.gateways() {
            kinds.push((gateway, Class::Read, 0));
            requests.push((at, Request::get("/orders")));
            for cell in 0..CELLS.len() {
                kinds.push((gateway, Class::Write, cell));
                let write = Request::post("/orders").header(KEY, key_of(cell));
                requests.push((at, write));
            }
        }
        let load = Load {
            pace: Duration::from_millis(10),
            ..Load::steady(requests)
        };
        Ok(Traffic {
            kinds,
            load: load.start(),
        })
    }

    /// The outcome of each kind since the last call.
    pub(super) fn take(&mut self) -> Vec<Row> {
        let tallies = self.load.take();
        let rows = self.kinds.iter().zip(tallies);
        rows.map(|((gateway, class, cell), tally)| Row {
            gateway,
            class: *class,
            cell: *cell,
            tally,
        })
        .collect()
    }

    /// Lets the last requests end.
    pub(super) async fn stop(self) {
        self.load.stop().await;
    }
}

/// Adds newer rows to older ones.
pub(super) fn add(rows: &mut [Row], newer: &[Row]) {
    for (row, newer) in rows.iter_mut().zip(newer) {
        row.tally.add(&newer.tally);
    }
}

pub(super) fn render(rows: &[Row]) -> String {
    let mut table = format!("{:<10} {:<10}", "gateway", "class");
    for (zone, _) in ZONES {
        let _ = write!(table, " {zone:>10}");
    }
    let _ = writeln!(table, " {:>7}  refused", "sent");
    for row in rows {
        let class = match row.class {
            Class::Read => "read".to_owned(),
            Class::Write => format!("write {}", CELLS[row.cell].0),
        };
        let _ = write!(table, "{:<10} {class:<10}", row.gateway);
        for (zone, _) in ZONES {
            let count = match row.tally.zone(zone) {
                0 => "-".to_owned(),
                count => count.to_string(),
            };
            let _ = write!(table, " {count:>10}");
        }
        let refused = row.tally.refused.iter();
        let refused: Vec<String> = refused
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let _ = writeln!(table, " {:>7}  {}", row.tally.sent, refused.join(", "));
    }
    table
}

/// Whether all writes of a sample have the expected outcome.
fn as_expected(expected: Writes, tally: &Tally) -> bool {
    let taken: u64 = tally.zones.values().sum();
    let none_failed = tally.failed == 0 && tally.sent > 0;
    none_failed
        && match expected {
            Writes::Taken(zone) => tally.zone(zone) == tally.sent,
            Writes::Refused(reason) => taken == 0 && tally.refused.get(reason) == Some(&tally.sent),
            Writes::Any => true,
        }
}

/// Every kind of writes, with its expected outcome.
fn with_expected<'r>(
    expected: &'r Plan,
    rows: &'r [Row],
) -> impl Iterator<Item = (&'r Row, Writes)> {
    let writes = rows.iter().filter(|row| row.class == Class::Write);
    writes.filter_map(|row| {
        let gateway = ZONES.iter().position(|(zone, _)| *zone == row.gateway)?;
        Some((row, expected[row.cell][gateway]))
    })
}

/// Whether a short sample of the traffic shows the expected state; the error describes the
/// difference.
pub(super) fn settled(expected: &Plan, frame: &[Row]) -> Result<()> {
    for (row, expected) in with_expected(expected, frame) {
        let Tally {
            zones,
            refused,
            failures,
            ..
        } = &row.tally;
        ensure!(
            as_expected(expected, &row.tally),
            "writes by {} to {} should be {expected:?}: {zones:?}, {refused:?}, {failures:?}",
            row.gateway,
            CELLS[row.cell].0
        );
    }
    let reads = frame.iter().filter(|row| row.class == Class::Read);
    for row in reads {
        let served = row.tally.zone(row.gateway);
        ensure!(served > 0, "{} serves no reads", row.gateway);
    }
    Ok(())
}

/// All expectations of a chapter: `turning` is the outcome of the requests until it had settled,
/// `watched` of those afterwards.
pub(super) fn verdicts(expected: &Expected<'_>, turning: &[Row], watched: &[Row]) -> Vec<Verdict> {
    let mut verdicts = vec![reads(turning, watched)];
    for (row, expected) in with_expected(expected.writes, watched) {
        let Row { gateway, tally, .. } = row;
        let cell = CELLS[row.cell].0;
        let what = match expected {
            Writes::Taken(zone) => format!("are taken by {zone}: {}", tally.zone(zone)),
            Writes::Refused(reason) => {
                let refused = tally.refused.get(reason).copied().unwrap_or(0);
                format!("are rejected, {reason}: {refused}")
            }
            Writes::Any => continue,
        };
        let mut text = format!("writes to {cell} by {gateway} {what} of {}", tally.sent);
        let passed = as_expected(expected, tally);
        if !passed {
            for (what, count) in &tally.failures {
                text += &format!("\n      {count} x {what}");
            }
        }
        verdicts.push(Verdict { passed, text });
    }
    let [before, after] = expected.epochs;
    for (cell, (name, ..)) in CELLS.into_iter().enumerate() {
        let Some(rises) = expected.epochs_rise.map(|rise| rise[cell]) else {
            continue;
        };
        let (before, after) = (before[cell], after[cell]);
        verdicts.push(match rises {
            true => Verdict {
                passed: after > before,
                text: format!("the epoch of {name} rises: {before}, then {after}"),
            },
            false => Verdict {
                passed: after == before,
                text: format!("{name} stays where it is: epoch {before}, then {after}"),
            },
        });
    }
    verdicts
}

/// Every read is answered, independently of the writes, and after the transition in the zone of its
/// gateway.
fn reads(turning: &[Row], watched: &[Row]) -> Verdict {
    let is_read = |row: &&Row| row.class == Class::Read;
    let mut sum = Tally::default();
    for row in turning.iter().chain(watched).filter(is_read) {
        sum.add(&row.tally);
    }
    let failed = sum.failed + sum.refusals();
    let mut at_home = watched.iter().filter(is_read);
    let at_home = at_home.all(|row| row.tally.zone(row.gateway) == row.tally.sent);
    Verdict {
        passed: failed == 0 && sum.sent > 0 && at_home,
        text: format!("reads go on in every zone: {failed} of {} failed", sum.sent),
    }
}
