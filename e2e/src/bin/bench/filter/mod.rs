//! What the filter costs a request: processor time of one Envoy worker, as a ratio to the same request without a filter.
//!
//! All variants are listeners of one Envoy with one worker, and take turns: every round measures each once, with the same
//! number of requests, and every other round goes backwards. A ratio is taken inside a round, where both sides met the
//! same machine; what is reported is the median of the rounds.

mod listeners;
mod load;
mod pushed;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Request, Version};
use e2e::envoy::Envoy;
use e2e::workdir::Workdir;
use hyper::Method;

use crate::figures::{self, Figure, median};
use listeners::{Chain, End};
use load::{Cost, Load, Worker};
use pushed::Pushed;

/// Requests of one variant in one round. Few, so that what is compared is close together in time: many short rounds agree
/// better than a few long ones when something else runs on the machine.
const REQUESTS: u64 = 2_500;
/// Another zone's name, so that the filter has a home to stamp.
const FOREIGN: &str = "shanghai-b";

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ask {
    ForeignRead,
    Write,
    LocalRead,
    Elsewhere,
}

impl Ask {
    const fn as_str(self) -> &'static str {
        match self {
            Ask::ForeignRead => "read of another home",
            Ask::Write => "write (POST)",
            Ask::LocalRead => "plain local read",
            Ask::Elsewhere => "read of no service",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Ask::Elsewhere => "/elsewhere",
            _ => "/orders",
        }
    }

    /// The cluster that every variant must choose.
    const fn answer(self) -> &'static str {
        match self {
            Ask::ForeignRead => "orders/shanghai-b",
            Ask::Write | Ask::LocalRead => "orders/shanghai-a",
            Ask::Elsewhere => "elsewhere",
        }
    }

    fn region(self) -> Option<&'static str> {
        (self == Ask::ForeignRead).then_some(FOREIGN)
    }
}

/// One request through several chains; the first is what the others are compared to.
struct Group {
    ask: Ask,
    end: End,
    chains: &'static [Chain],
}

const GROUPS: [Group; 7] = [
    Group {
        ask: Ask::ForeignRead,
        end: End::Direct,
        chains: &[
            Chain::None,
            Chain::Strip,
            Chain::Noop,
            Chain::Lua,
            Chain::Ours,
        ],
    },
    Group {
        ask: Ask::Write,
        end: End::Direct,
        chains: &[Chain::None, Chain::Lua, Chain::Ours],
    },
    Group {
        ask: Ask::LocalRead,
        end: End::Direct,
        chains: &[Chain::None, Chain::Strip, Chain::Ours],
    },
    Group {
        ask: Ask::Elsewhere,
        end: End::Direct,
        chains: &[Chain::None, Chain::Ours],
    },
    Group {
        ask: Ask::ForeignRead,
        end: End::Proxied,
        chains: &[
            Chain::None,
            Chain::Strip,
            Chain::Headers,
            Chain::Lua,
            Chain::Ours,
        ],
    },
    Group {
        ask: Ask::Write,
        end: End::Proxied,
        chains: &[Chain::None, Chain::Ours],
    },
    Group {
        ask: Ask::LocalRead,
        end: End::Proxied,
        chains: &[Chain::None, Chain::Strip, Chain::Ours],
    },
];

/// The Envoys of the benchmark.
struct Stage {
    envoy: Envoy,
    _upstream: Envoy,
    _workdir: Workdir,
}

impl Stage {
    async fn set() -> Result<Stage> {
        let pushed = Pushed::get().await?;
        let workdir = Workdir::temporary()?;
        let directory = workdir.path();
        let bootstrap = listeners::upstream(&pushed)?;
        let upstream = Envoy::start_with(directory, "upstream", &bootstrap, 1).await?;
        let bootstrap = listeners::measured(directory, &pushed, upstream.ingress().await?)?;
        let envoy = Envoy::start_with(directory, "measured", &bootstrap, 1).await?;
        Ok(Stage {
            envoy,
            _upstream: upstream,
            _workdir: workdir,
        })
    }
}

/// All rounds of one chain of a group.
struct Series {
    at: SocketAddr,
    chain: Chain,
    costs: Vec<Cost>,
}

pub(crate) async fn run(rounds: u32) -> Result<Vec<Figure>> {
    println!("\nfilter: asking a real control plane for its configuration");
    let stage = Stage::set().await?;
    let mut all = find_listeners(&stage).await?;
    check(&all).await?;
    let variants: usize = all.iter().map(Vec::len).sum();
    println!(
        "filter: {variants} variants in {rounds} rounds of {REQUESTS} requests each; one Envoy worker, 8 connections"
    );
    let worker = Worker::of(stage.envoy.process().pid())?;
    // The first round warms everything up.
    measure(&worker, &mut all, false).await?;
    for series in all.iter_mut().flatten() {
        series.costs.clear();
    }
    for round in 0..rounds {
        measure(&worker, &mut all, round % 2 == 1).await?;
    }
    print(&all)?;
    Ok(figures(&all))
}

async fn find_listeners(stage: &Stage) -> Result<Vec<Vec<Series>>> {
    stage
        .envoy
        .process()
        .unless_it_ends(live(&stage.envoy))
        .await?;
    let mut all = vec![];
    for group in &GROUPS {
        let mut several = vec![];
        for chain in group.chains {
            let name = listeners::listener_name(*chain, group.end);
            several.push(Series {
                at: stage.envoy.admin().listener(&name).await?,
                chain: *chain,
                costs: vec![],
            });
        }
        all.push(several);
    }
    Ok(all)
}

async fn live(envoy: &Envoy) -> Result<()> {
    e2e::wait::eventually(e2e::wait::PATIENCE, "Envoy to be live", async || {
        let state = envoy.admin().state().await?;
        ensure!(state == "LIVE", "Envoy is {state}");
        Ok(())
    })
    .await
}

/// Every variant must decide alike, or a comparison would say nothing.
async fn check(all: &[Vec<Series>]) -> Result<()> {
    let client = Client::new(Version::Http1);
    for (group, several) in GROUPS.iter().zip(all) {
        let method = match group.ask {
            Ask::Write => Method::POST,
            _ => Method::GET,
        };
        let mut request = Request::new(method, group.ask.path());
        if let Some(region) = group.ask.region() {
            request = request.home(region);
        }
        for series in several {
            let reply = client.send(series.at, &request).await?;
            let answer = match group.end {
                End::Direct => group.ask.answer(),
                End::Proxied => "upstream",
            };
            ensure!(
                reply.status.is_success() && reply.text() == answer,
                "{}, {}: {} {}",
                group.ask.as_str(),
                series.chain.as_str(),
                reply.status,
                reply.text()
            );
        }
    }
    Ok(())
}

async fn measure(worker: &Worker, all: &mut [Vec<Series>], backwards: bool) -> Result<()> {
    let mut turns: Vec<(&Group, &mut Series)> = GROUPS
        .iter()
        .zip(all)
        .flat_map(|(group, several)| several.iter_mut().map(move |series| (group, series)))
        .collect();
    if backwards {
        turns.reverse();
    }
    for (group, series) in turns {
        let load = Load {
            path: group.ask.path(),
            region: group.ask.region(),
            post: group.ask == Ask::Write,
        };
        let cost = worker.serve(series.at, &load, REQUESTS).await;
        series.costs.push(cost.with_context(|| group.ask.as_str())?);
    }
    Ok(())
}

/// The rounds' ratios of processor time to the first of the group.
fn ratios(series: &Series, baseline: &Series) -> Vec<f64> {
    let pairs = series.costs.iter().zip(&baseline.costs);
    pairs.map(|(one, none)| one.cpu_us / none.cpu_us).collect()
}

fn print(all: &[Vec<Series>]) -> Result<()> {
    println!(
        "\n{:32} {:>9} {:>8} {:>8}  {:<22} ratio of processor time, median (min .. max)",
        "", "requests", "cpu", "more", ""
    );
    println!("{:32} {:>9} {:>8} {:>8}", "", "per s", "us", "us");
    for (group, several) in GROUPS.iter().zip(all) {
        let baseline = several.first().context("an empty group")?;
        let end = match group.end {
            End::Direct => "answered by Envoy",
            End::Proxied => "proxied to an upstream",
        };
        println!("{}, {end}", group.ask.as_str());
        for series in several {
            let cpu: Vec<f64> = series.costs.iter().map(|cost| cost.cpu_us).collect();
            let rates: Vec<f64> = series.costs.iter().map(|cost| cost.rate).collect();
            let more: Vec<f64> = series
                .costs
                .iter()
                .zip(&baseline.costs)
                .map(|(one, none)| one.cpu_us - none.cpu_us)
                .collect();
            println!(
                "  {:30} {:9.0} {:8.2} {:8.2}  {:<22}",
                title(series.chain),
                median(&rates),
                median(&cpu),
                median(&more),
                figures::spread(&ratios(series, baseline), 3),
            );
        }
    }
    println!(
        "none: the same listener with routes on what the client sends. Load average now: {}.",
        figures::machine_load()?
    );
    Ok(())
}

const fn title(chain: Chain) -> &'static str {
    match chain {
        Chain::None => "no filter",
        Chain::Strip => "internal headers removed",
        Chain::Headers => "and headers added by the route",
        Chain::Noop => "a wasm filter that does nothing",
        Chain::Lua => "a Lua filter that does the same",
        Chain::Ours => "ours",
    }
}

fn figures(all: &[Vec<Series>]) -> Vec<Figure> {
    let mut by_name: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (group, several) in GROUPS.iter().zip(all) {
        let end = match group.end {
            End::Direct => "",
            End::Proxied => "_proxied",
        };
        for series in several.iter().skip(1) {
            let name = match (group.ask, series.chain) {
                (Ask::ForeignRead, chain) => chain.as_str().to_owned(),
                (Ask::LocalRead, Chain::Ours) => "local_read".to_owned(),
                (Ask::LocalRead, chain) => format!("local_read_{}", chain.as_str()),
                (Ask::Write, chain) => format!("{}_write", chain.as_str()),
                (Ask::Elsewhere, chain) => format!("{}_no_service", chain.as_str()),
            };
            by_name.insert(
                format!("filter_cpu_ratio_{name}{end}"),
                ratios(series, &several[0]),
            );
        }
    }
    by_name
        .into_iter()
        .map(|(name, ratios)| Figure::quantile(name, "ratio", &ratios, 0.5))
        .collect()
}
