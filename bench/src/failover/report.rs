//! The table, and the figures.

use super::cases::Case;
use super::judge::Verdict;
use e2e::figures::{Figure, quantile};

/// The figures of the rounds of one case.
pub(crate) struct Report {
    /// The mesh, as in the names of figures.
    prefix: &'static str,
    name: String,
    rounds: usize,
    reads: usize,
    failed_reads: usize,
    failed_back: usize,
    failed_writes: usize,
    stray: usize,
    /// In ms; infinite for a round that never switched, which is worse than any measured one.
    switches: Vec<f64>,
    /// In ms; of the cases with a change.
    changes: Vec<f64>,
    slowest_ms: u128,
}

impl Report {
    pub(crate) fn new(prefix: &'static str, case: Case, verdicts: &[Verdict]) -> Report {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let sum = |count: fn(&Verdict) -> usize| verdicts.iter().map(count).sum();
        let switches = verdicts
            .iter()
            .map(|verdict| verdict.switch.map_or(f64::INFINITY, ms));
        let slowest = verdicts.iter().map(|verdict| verdict.slowest_read).max();
        Report {
            prefix,
            name: case.name(),
            rounds: verdicts.len(),
            reads: sum(|verdict| verdict.reads),
            failed_reads: sum(|verdict| verdict.failed_reads),
            failed_back: sum(|verdict| verdict.failed_back),
            failed_writes: sum(|verdict| verdict.failed_writes),
            stray: sum(|verdict| verdict.stray),
            switches: switches.collect(),
            changes: verdicts
                .iter()
                .filter_map(|verdict| verdict.change.map(ms))
                .collect(),
            slowest_ms: slowest.unwrap_or_default().as_millis(),
        }
    }

    pub(crate) fn head() -> String {
        format!(
            "{:10} {:18} {:>6} {:>8} {:>7} {:>7} {:>7} {:>8} {:>8} {:>7} {:>10} {:>9}",
            "mesh",
            "case",
            "rounds",
            "reads",
            "failed",
            "back",
            "writes",
            "p50 ms",
            "p99 ms",
            "stray",
            "slowest ms",
            "change ms"
        )
    }

    pub(crate) fn line(&self) -> String {
        let change = match self.changes[..] {
            [] => String::new(),
            _ => format!("{:.0}", quantile(&self.changes, 0.5)),
        };
        let line = format!(
            "{:10} {:18} {:>6} {:>8} {:>7} {:>7} {:>7} {:>8.1} {:>8.1} {:>7} {:>10} {change:>9}",
            self.prefix,
            self.name,
            self.rounds,
            self.reads,
            self.failed_reads,
            self.failed_back,
            self.failed_writes,
            quantile(&self.switches, 0.5),
            quantile(&self.switches, 0.99),
            self.stray,
            self.slowest_ms,
        );
        line.trim_end().to_owned()
    }

    /// The meaning of the columns.
    pub(crate) fn legend() -> &'static str {
        "failed: reads without a 200 within 5 s, from those under way at the fault to its repair; back: the same from there\n\
         until everything is normal; writes: failed writes, which are not retried once they were sent; ms: from the\n\
         fault until 99 % of the reads of the next second are answered within 200 ms by the right zone (0: never\n\
         disturbed, inf: not before the repair); stray: later answers of a wrong zone; change: from the death\n\
         of an instance until every control plane counts it out."
    }

    pub(crate) fn figures(&self) -> Vec<Figure> {
        let count = |what: &str, count: usize| {
            Figure::count(
                format!("{}_{}_{what}", self.prefix, self.name),
                count,
                self.rounds,
            )
        };
        let time = |what: &str, samples: &[f64], share| {
            Figure::quantile(
                format!("{}_{}_{what}", self.prefix, self.name),
                "ms",
                samples,
                share,
            )
        };
        let mut figures = vec![
            count("failed_reads", self.failed_reads + self.failed_back),
            count("failed_reads_back", self.failed_back),
            count("failed_writes", self.failed_writes),
            count("stray", self.stray),
            time("ms_p50", &self.switches, 0.5),
            time("ms_p99", &self.switches, 0.99),
        ];
        if !self.changes.is_empty() {
            figures.push(time("change_ms_p50", &self.changes, 0.5));
        }
        figures
    }
}

/// The figures of an Istio mesh, over all its cases. The endpoints that go with a drained zone are
/// its change.
pub(crate) fn of_peer(reports: &[Report]) -> Vec<Figure> {
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum();
    let failed = sum(|report| report.failed_reads + report.failed_back);
    let rounds = sum(|report| report.rounds);
    let mut figures = vec![Figure::count(
        "peer_istio_failed_reads".to_owned(),
        failed,
        rounds,
    )];
    if let Some(drains) = reports.iter().find(|it| it.name == Case::DrainZone.name()) {
        let name = "peer_istio_change_ms_p99";
        figures.push(Figure::quantile(name, "ms", &drains.switches, 0.99));
    }
    figures.extend(reports.iter().flat_map(Report::figures));
    figures
}
