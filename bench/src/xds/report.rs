//! The figures of one case: on the terminal, and for `--json`.

use e2e::figures::{Figure, median, quantile};

use super::contender::Seen;
use super::{CLUSTERS, Case};
use crate::against::Against;

pub(super) fn print(case: &Case) {
    println!(
        "\n{} proxies, {CLUSTERS} resources of {:.1} KB each{}",
        case.streams,
        case.ours.resource_bytes / 1e3,
        if case.tls { ", with TLS" } else { "" }
    );
    println!(
        "{:18} {:>20} {:>10} {:>20} {:>20} {:>10} {:>16} {:>14}",
        "",
        "CPU ms a change",
        "client's",
        "last proxy ms (p99)",
        "all change ms, CPU",
        "first s",
        "RSS MB, most",
        "us a stream"
    );
    line("tidegate", case.streams, &case.ours);
    let is_flooded = case.against == Against::GoControlPlane;
    if is_flooded {
        flooded("tidegate", &case.ours);
    }
    if let Some(peer) = &case.peer {
        line(case.against.as_str(), case.streams, peer);
        if is_flooded {
            flooded(case.against.as_str(), peer);
        }
        let ratios = Ratios::of(&case.ours, peer);
        println!(
            "ours to theirs: CPU {:.3}, memory {:.3}, last proxy p99 {:.3}",
            ratios.cpu, ratios.rss, ratios.last_p99
        );
    }
    let back = &case.reconnected;
    println!(
        "all back after a restart: {:.2} s, {:.2} s of them with a server that listens; {} resources sent, {} errors, at most \
         {:.0} MB",
        back.served_s, back.herd_s, back.resources, back.errors, back.rss_max
    );
}

fn line(name: &str, streams: usize, seen: &Seen) {
    println!(
        "{name:18} {:>20} {:10.1} {:>20} {:>20} {:10.2} {:>16} {:14.1}",
        format!(
            "{:.2} ({:.2}..{:.2})",
            median(&seen.cpu),
            quantile(&seen.cpu, 0.0),
            quantile(&seen.cpu, 1.0)
        ),
        median(&seen.client_cpu),
        format!(
            "{:.1} ({:.1})",
            median(&seen.ticks),
            quantile(&seen.ticks, 0.99)
        ),
        format!(
            "{:.0}, {:.0}",
            median(&seen.bursts),
            median(&seen.burst_cpu)
        ),
        seen.subscribed_s,
        format!("{:.0}, {:.0}", median(&seen.rss), seen.rss_max),
        median(&seen.cpu) * 1e3 / streams as f64,
    );
}

fn flooded(name: &str, seen: &Seen) {
    println!(
        "{name:18} while {:.0} changes a second come: last proxy {:.1} ms ({:.1}), {:.2} s of CPU a second, {:.0} MB afterwards",
        seen.flood_rate,
        median(&seen.flooded),
        quantile(&seen.flooded, 0.99),
        seen.flood_cpu,
        seen.flood_rss,
    );
}

/// The ratios of ours to theirs.
struct Ratios {
    cpu: f64,
    rss: f64,
    last_p50: f64,
    last_p99: f64,
    burst: f64,
    burst_cpu: f64,
}

impl Ratios {
    fn of(ours: &Seen, peer: &Seen) -> Ratios {
        // Turn by turn: other load at that time slowed both.
        let turns = ours.cpu.iter().zip(&peer.cpu);
        let cpu: Vec<f64> = turns.map(|(ours, peer)| ours / peer).collect();
        let last = |share| quantile(&ours.ticks, share) / quantile(&peer.ticks, share);
        Ratios {
            cpu: median(&cpu),
            rss: median(&ours.rss) / median(&peer.rss),
            last_p50: last(0.5),
            last_p99: last(0.99),
            burst: median(&ours.bursts) / median(&peer.bursts),
            burst_cpu: median(&ours.burst_cpu) / median(&peer.burst_cpu),
        }
    }
}

pub(super) fn figures(case: &Case) -> Vec<Figure> {
    let Case { streams, .. } = case;
    let suffix = case.suffix();
    let name = |what: &str| format!("{what}_{streams}{suffix}");
    let mut figures = absolute("xds", &name, &case.ours);
    if let Some(peer) = &case.peer {
        figures.extend(absolute("xds_peer", &name, peer));
        if case.against == Against::Istio {
            let Ratios { cpu, rss, .. } = Ratios::of(&case.ours, peer);
            figures.push(Figure::of(
                "xds_cpu_ratio_istiod".to_owned(),
                "",
                cpu,
                peer.ticks.len(),
            ));
            figures.push(Figure::of(
                "xds_rss_ratio_istiod".to_owned(),
                "",
                rss,
                peer.rss.len(),
            ));
        }
        let ratios = Ratios::of(&case.ours, peer);
        let (ticks, bursts) = (case.ours.ticks.len(), case.ours.bursts.len());
        let ratio = |what: &str, value, samples| {
            Figure::of(name(&format!("xds_{what}")), "", value, samples)
        };
        figures.extend([
            ratio("cpu_ratio", ratios.cpu, ticks),
            ratio("rss_ratio", ratios.rss, case.ours.rss.len()),
            ratio("last_p50_ratio", ratios.last_p50, ticks),
            ratio("last_p99_ratio", ratios.last_p99, ticks),
            ratio("burst_ratio", ratios.burst, bursts),
            ratio("burst_cpu_ratio", ratios.burst_cpu, bursts),
        ]);
    }
    let back = &case.reconnected;
    figures.extend([
        Figure::quantile(
            format!("etcd_to_{streams}{suffix}_p99_ms"),
            "ms",
            &case.ours.ticks,
            0.99,
        ),
        Figure::of(
            format!("reconnect_{streams}{suffix}_s"),
            "s",
            back.served_s,
            1,
        ),
        Figure::of(
            format!("reconnect_{streams}{suffix}_listening_s"),
            "s",
            back.herd_s,
            1,
        ),
        Figure::of(
            format!("reconnect_{streams}{suffix}_rss_max_mb"),
            "MB",
            back.rss_max,
            1,
        ),
        Figure::count(
            format!("reconnect_{streams}{suffix}_resources"),
            back.resources,
            *streams,
        ),
        Figure::count(
            format!("reconnect_{streams}{suffix}_errors"),
            back.errors,
            *streams,
        ),
    ]);
    figures
}

fn absolute(whose: &str, name: &impl Fn(&str) -> String, seen: &Seen) -> Vec<Figure> {
    let of = |what: &str| name(&format!("{whose}_{what}"));
    let mut figures = vec![
        Figure::quantile(of("cpu_ms"), "ms", &seen.cpu, 0.5),
        Figure::quantile(of("client_cpu_ms"), "ms", &seen.client_cpu, 0.5),
        Figure::quantile(of("rss_mb"), "MB", &seen.rss, 0.5),
        Figure::of(of("rss_max_mb"), "MB", seen.rss_max, 1),
        Figure::of(of("rss_subscribed_mb"), "MB", seen.rss_subscribed, 1),
        Figure::quantile(of("last_p50_ms"), "ms", &seen.ticks, 0.5),
        Figure::quantile(of("last_p99_ms"), "ms", &seen.ticks, 0.99),
        Figure::quantile(of("burst_ms"), "ms", &seen.bursts, 0.5),
        Figure::quantile(of("burst_cpu_ms"), "ms", &seen.burst_cpu, 0.5),
        Figure::of(of("subscribed_s"), "s", seen.subscribed_s, 1),
    ];
    if !seen.flooded.is_empty() {
        figures.extend([
            Figure::quantile(of("flooded_last_p50_ms"), "ms", &seen.flooded, 0.5),
            Figure::quantile(of("flooded_last_p99_ms"), "ms", &seen.flooded, 0.99),
            Figure::of(of("flooded_changes_per_s"), "", seen.flood_rate, 1),
            Figure::of(of("flooded_cpu_s_per_s"), "s", seen.flood_cpu, 1),
            Figure::of(of("flooded_rss_mb"), "MB", seen.flood_rss, 1),
        ]);
    }
    figures
}
