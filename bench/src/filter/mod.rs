//! The cost of the filter for a request: processor time of one Envoy worker, as a ratio to the same
//! request without a filter.
//!
//! All variants are listeners of one Envoy with one worker, and take turns: every round measures
//! each once, with the same number of requests, and every other round runs in reverse order. A
//! ratio compares measurements of one round, under the same conditions; the median of the rounds is
//! reported.

mod cases;
mod listeners;
pub(crate) mod load;
mod pushed;
mod report;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Request, Version};
use e2e::envoy::Envoy;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use hyper::Method;

use cases::{Ask, GROUPS, Group};
use e2e::figures::Figure;
use listeners::{Chain, End};
use load::{Cost, Load, Worker};
use pushed::{Pushed, Source};

/// The amount of measurements.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) rounds: u32,
    /// Requests of one variant in one round. Few, so that compared requests are close together in
    /// time: many short rounds agree better than a few long ones if other programs run on the
    /// machine.
    pub(crate) requests: u64,
}

impl Amount {
    pub(crate) const fn rounds(rounds: u32) -> Amount {
        Amount {
            rounds,
            requests: 2_500,
        }
    }

    /// Enough to see that it works.
    pub(crate) const SMOKE: Amount = Amount {
        rounds: 1,
        requests: 100,
    };
}

/// The Envoys of the benchmark.
struct Stage {
    envoy: Envoy,
    _upstream: Envoy,
    _source: Source,
    _workdir: Workdir,
}

impl Stage {
    async fn set() -> Result<Stage> {
        let (pushed, source) = Pushed::get().await?;
        let workdir = Workdir::temporary()?;
        let directory = workdir.path();
        let bootstrap = listeners::upstream(&pushed)?;
        let upstream = Envoy::start_with(directory, "upstream", &bootstrap, 1).await?;
        let (to, control_plane) = (upstream.ingress().await?, source.control_plane.xds());
        let bootstrap = listeners::measured(directory, &pushed, to, control_plane)?;
        let envoy = Envoy::start_with(directory, "measured", &bootstrap, 1).await?;
        Ok(Stage {
            envoy,
            _upstream: upstream,
            _source: source,
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

pub(crate) async fn run(amount: Amount) -> Result<Vec<Figure>> {
    let Amount { rounds, requests } = amount;
    println!("\nfilter: asking a real control plane for its configuration");
    let stage = Stage::set().await?;
    let mut all = find_listeners(&stage).await?;
    check(&all).await?;
    let variants: usize = all.iter().map(Vec::len).sum();
    println!(
        "filter: {variants} variants in {rounds} rounds of {requests} requests each; one Envoy worker, 8 connections"
    );
    let worker = Worker::of(stage.envoy.process().pid())?;
    // The first round is a warm-up.
    measure(&worker, &mut all, requests, false).await?;
    for series in all.iter_mut().flatten() {
        series.costs.clear();
    }
    for round in 0..rounds {
        measure(&worker, &mut all, requests, round % 2 == 1).await?;
    }
    report::print(&all)?;
    Ok(report::figures(&all))
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
    eventually(PATIENCE, "Envoy to be live", async || {
        let state = envoy.admin().state().await?;
        ensure!(state == "LIVE", "Envoy is {state}");
        Ok(())
    })
    .await
}

/// Every variant must decide alike, or a comparison would be meaningless.
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
            let answer = match group.end {
                End::Direct => group.ask.answer(),
                End::Proxied => "upstream",
            };
            // A guest gets its policy within milliseconds of the start.
            let alike = eventually(PATIENCE, "the right answer", async || {
                let reply = client.send(series.at, &request).await?;
                ensure!(
                    reply.status.is_success() && reply.text() == answer,
                    "{} {}",
                    reply.status,
                    reply.text()
                );
                Ok(())
            });
            let variant = || format!("{}, {}", group.ask.as_str(), series.chain.as_str());
            alike.await.with_context(variant)?;
        }
    }
    Ok(())
}

async fn measure(
    worker: &Worker,
    all: &mut [Vec<Series>],
    requests: u64,
    backwards: bool,
) -> Result<()> {
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
        let cost = worker.serve(series.at, &load, requests).await;
        series.costs.push(cost.with_context(|| group.ask.as_str())?);
    }
    Ok(())
}
