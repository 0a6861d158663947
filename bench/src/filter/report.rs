//! The table, and the figures.

use anyhow::{Context, Result};

use super::Series;
use super::cases::{Ask, GROUPS, Group};
use super::listeners::{Chain, End};
use e2e::figures::{Figure, machine_load, median, spread};

/// The rounds' ratios of processor time to the first of the group.
fn ratios(series: &Series, baseline: &Series) -> Vec<f64> {
    let pairs = series.costs.iter().zip(&baseline.costs);
    pairs.map(|(one, none)| one.cpu_us / none.cpu_us).collect()
}

/// The median of its additional cost over the first of the group.
fn more_us(series: &Series, baseline: &Series) -> f64 {
    let pairs = series.costs.iter().zip(&baseline.costs);
    let more: Vec<f64> = pairs.map(|(one, none)| one.cpu_us - none.cpu_us).collect();
    median(&more)
}

pub(super) fn print(all: &[Vec<Series>]) -> Result<()> {
    println!(
        "\n{:32} {:>10} {:>8} {:>8}   ratio of cpu: median (min .. max)",
        "", "requests/s", "cpu us", "more us"
    );
    for (group, several) in GROUPS.iter().zip(all) {
        let baseline = several.first().context("an empty group")?;
        println!("{}, {}", group.ask.as_str(), group.end.as_str());
        for series in several {
            let cpu: Vec<f64> = series.costs.iter().map(|cost| cost.cpu_us).collect();
            let rates: Vec<f64> = series.costs.iter().map(|cost| cost.rate).collect();
            println!(
                "  {:30} {:10.0} {:8.2} {:8.2}   {}",
                series.chain.title(),
                median(&rates),
                median(&cpu),
                more_us(series, baseline),
                spread(&ratios(series, baseline), 3),
            );
        }
    }
    print_parts(all)?;
    println!(
        "cpu is the processor time of Envoy's worker for one request. Without a filter, the routes match what the client \
         sent and add\nno headers; there are no access logs anywhere. Load average now: {}.",
        machine_load()?
    );
    Ok(())
}

/// The parts of a decision's time, from the variants that omit something.
fn print_parts(all: &[Vec<Series>]) -> Result<()> {
    let more = |ask, chain| {
        let groups = GROUPS.iter().zip(all);
        let (_, several) = groups
            .into_iter()
            .find(|(group, _)| group.ask == ask && group.end == End::Direct)?;
        let series = several.iter().find(|series| series.chain == chain)?;
        Some(more_us(series, several.first()?))
    };
    let more = |ask, chain| more(ask, chain).context("a variant that is not measured");
    let strip = more(Ask::ForeignRead, Chain::Strip)?;
    let enter = more(Ask::ForeignRead, Chain::Noop)?;
    let look = more(Ask::Elsewhere, Chain::Ours)?;
    let read = more(Ask::ForeignRead, Chain::Ours)?;
    let write = more(Ask::Write, Chain::Ours)?;
    println!("parts of a decision's time, in us");
    for (title, us) in [
        ("removing internal headers", strip),
        ("entering and leaving wasm", enter),
        ("reading headers, deciding, counting", look - enter - strip),
        ("stamping, and routing again: a read", read - look),
        ("stamping, and routing again: a write", write - look),
    ] {
        println!("  {title:40} {us:8.2}");
    }
    Ok(())
}

pub(super) fn figures(all: &[Vec<Series>]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (group, several) in GROUPS.iter().zip(all) {
        let lua = several.iter().find(|series| series.chain == Chain::Lua);
        for series in several.iter().skip(1) {
            let what = name(group, series.chain);
            let none = &several[0];
            let mut figure = |kind, unit, samples: Vec<f64>| {
                let name = format!("filter_{kind}_{what}");
                figures.push(Figure::quantile(name, unit, &samples, 0.5));
            };
            figure("cpu_ratio", "ratio", ratios(series, none));
            let pairs = series.costs.iter().zip(&none.costs);
            let more_ns = pairs.map(|(one, none)| (one.cpu_us - none.cpu_us) * 1_000.0);
            figure("ns", "ns", more_ns.collect());
            if let Some(lua) = lua.filter(|_| series.chain.is_ours()) {
                figure("cpu_vs_lua", "ratio", ratios(series, lua));
            }
        }
    }
    figures
}

/// `ours` alone is the read of another home, which its baseline serves too.
fn name(group: &Group, chain: Chain) -> String {
    let what = match (group.ask, chain) {
        (Ask::ForeignRead, chain) => chain.as_str().to_owned(),
        (Ask::LocalRead, Chain::Ours) => "local_read".to_owned(),
        (Ask::LocalRead, chain) => format!("local_read_{}", chain.as_str()),
        (Ask::Write, chain) => format!("{}_write", chain.as_str()),
        (Ask::Elsewhere, chain) => format!("{}_no_service", chain.as_str()),
    };
    let end = match group.end {
        End::Direct => "",
        End::Proxied => "_proxied",
    };
    format!("{what}{end}")
}
