//! The table: the destinations of requests, and the reasons.

use std::collections::BTreeMap;
use std::fmt::Write;

use e2e::config::ZONES;

use crate::traffic::{Class, Row};

/// One line for each kind of request.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut table = format!("{:<10} {:<11} {:<5}", "gateway", "X-Region-ID", "class");
    for (zone, _) in ZONES {
        let _ = write!(table, " {zone:>10}");
    }
    let _ = writeln!(
        table,
        "  {:<6} {:<11} {:>5} {:>7} {:>6} {:>6}",
        "tier", "reason", "sent", "refused", "failed", "p50 ms"
    );
    for row in rows {
        let class = match row.kind.class {
            Class::Read => "read",
            Class::Write => "write",
        };
        let header = row.kind.header.unwrap_or("-");
        let _ = write!(table, "{:<10} {header:<11} {class:<5}", row.kind.gateway);
        for (zone, _) in ZONES {
            let share = match row.tally.zone(zone) {
                0 => "-".to_owned(),
                _ => format!("{:.1} %", row.tally.share(zone) * 100.0),
            };
            let _ = write!(table, " {share:>10}");
        }
        let median = row.tally.median();
        let _ = writeln!(
            table,
            "  {:<6} {:<11} {:>5} {:>7} {:>6} {:>6}",
            most(&row.tally.tiers),
            most(&row.tally.reasons),
            row.tally.sent,
            row.tally.refusals(),
            row.tally.failed,
            median.map_or("-".to_owned(), |m| format!("{:.2}", m.as_secs_f64() * 1e3)),
        );
    }
    table
}

fn most(counts: &BTreeMap<String, u64>) -> &str {
    let most = counts.iter().max_by_key(|(_, count)| **count);
    most.map_or("-", |(name, _)| name)
}
