//! The figures: on the terminal, and for `--json`.

use e2e::figures::{Figure, median, quantile};

use super::Seen;

pub(super) fn head() {
    println!(
        "\n{:18} {:>5} {:>16} {:>16} {:>14} {:>7} {:>8}  end of the attackers",
        "waits in ms", "load", "update (worst)", "join (worst)", "RSS MB, most", "CPU s", "sent MB"
    );
}

pub(super) fn line(seen: &Seen) {
    let times = |samples: &[f64]| {
        let worst = quantile(samples, 1.0);
        format!("{:.1} ({worst:.1})", median(samples))
    };
    println!(
        "{:18} {:>5} {:>16} {:>16} {:>14} {:7.2} {:8.1}  {}{}",
        seen.name,
        seen.load,
        times(&seen.updates),
        times(&seen.joins),
        format!("{:.1}, {:.1}", seen.rss_before, seen.rss_max),
        seen.cpu.as_secs_f64(),
        seen.outcome.sent_bytes as f64 / 1e6,
        seen.outcome.text(),
        match seen.failures {
            0 => String::new(),
            failures => format!("; {failures} honest waits failed"),
        }
    );
}

/// The worst attacks compared with the floor, which was measured at the begin and the end.
pub(super) fn foot(all: &[Seen]) {
    let [before, attacks @ .., after] = all else {
        return;
    };
    let floor = [&before.updates[..], &after.updates].concat();
    let worst = attacks
        .iter()
        .max_by(|a, b| median(&a.updates).total_cmp(&median(&b.updates)));
    let Some(worst) = worst else {
        return;
    };
    println!(
        "The median update takes {:.1} ms without an attack, and {:.1} ms with the worst, {}. etcd has one member and does \
         not\nwait for its disk. Load is the average of a minute, attackers included.",
        median(&floor),
        median(&worst.updates),
        worst.name
    );
}

pub(super) fn figures(seen: &Seen) -> Vec<Figure> {
    let of = |what: &str| format!("attacks_{}_{what}", seen.name);
    let updates = seen.updates.len();
    vec![
        Figure::quantile(of("update_ms_p50"), "ms", &seen.updates, 0.5),
        Figure::quantile(of("update_ms_max"), "ms", &seen.updates, 1.0),
        Figure::quantile(of("join_ms_p50"), "ms", &seen.joins, 0.5),
        Figure::quantile(of("join_ms_max"), "ms", &seen.joins, 1.0),
        Figure::count(of("honest_failed"), seen.failures, updates),
        Figure::of(of("rss_before_mb"), "MB", seen.rss_before, 1),
        Figure::of(of("rss_max_mb"), "MB", seen.rss_max, 1),
        Figure::of(of("cpu_s"), "s", seen.cpu.as_secs_f64(), 1),
        Figure::of(of("sent_mb"), "MB", seen.outcome.sent_bytes as f64 / 1e6, 1),
        Figure::count(of("ended_by_server"), seen.outcome.ended(), 1),
        Figure::count(of("streams_reset"), seen.outcome.streams_reset, 1),
    ]
}
