//! No two zones write at once under any faults: three zones under a load of writes, a fault in
//! every round, and a judge that has seen every write.
//!
//! Wall clocks are stepped for gateways and control planes. etcd's clock cannot be stepped that way
//! (it calls the kernel, not libc), and etcd does not use the wall clock for its leases.

#![allow(
    clippy::disallowed_methods,
    reason = "a program of the harness: it uses faults and the clock"
)]

mod attacks;
mod faults;
mod scene;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::{Parser, ValueEnum};
use e2e::config::ZONES;
use e2e::dice::Dice;
use e2e::figures::{self, Figure};
use e2e::history::Report;
use e2e::netns::Network;
use e2e::stage::Gateways;
use e2e::workdir::Workdir;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use faults::{Fault, Kind};
use scene::{LONG_MS, Scene};

/// Fails three zones in every way, under writes, and judges every write. Needs root and `ip`.
#[derive(Clone, Parser)]
#[command(name = "torture")]
struct Arguments {
    /// How many faults
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// The seed, which determines the faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these kinds of faults
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Requests per second in all; two thirds are writes
    #[arg(long, default_value_t = 450, value_parser = clap::value_parser!(u32).range(30..=5_000))]
    rps: u32,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run attackers meanwhile: spoofed headers, hops signed with a stolen secret, claims of other
    /// zones' instances
    #[arg(long)]
    attacks: bool,
    /// Gateways that somebody else configures, with the filter as a guest, on routes with Istio's
    /// default retries and without a time-out
    #[arg(long)]
    guests: bool,
    /// Only observe, and admit every write: a success if the judge finds violations
    #[arg(long)]
    unfenced: bool,
}

/// The exit code of a program that Ctrl-C ended, as a shell reports it.
const INTERRUPTED: u8 = 130;

/// The sum of all rounds.
#[derive(Default)]
struct Total {
    rounds: usize,
    failed_reads: usize,
    reads: usize,
    refused: usize,
    writable_ms: Vec<f64>,
    strayed: usize,
    report: Report,
    /// The number of attacks, a description of their outcome, and how many succeeded.
    attacks: Option<(usize, String, usize)>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Dropping the unfinished run drops every child and file.
    let ended = tokio::select! {
        done = run(&arguments) => done,
        interrupted = interrupted() => interrupted.map(|()| ExitCode::from(INTERRUPTED)),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The whole run is in namespaces, so it has its own thread, which is in one of them.
async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let workdir = Workdir::kept("torture")?;
    let network = Network::new(workdir.path(), ZONES.len() as u8).await?;
    let network = Arc::new(network);
    let (done, outcome) = oneshot::channel();
    let (inside, options) = (Arc::clone(&network), arguments.clone());
    thread::spawn(move || {
        let tortured = (|| {
            inside.hub().enter()?;
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(torture(&workdir, inside, &options))
        })();
        // The receiver is gone after an interruption.
        let _ = done.send(tortured);
    });
    let total = outcome
        .await
        .map_err(|_| anyhow!("the torturing thread has died"))??;
    if let Some(file) = &arguments.json {
        figures::write(file, &total.figures())?;
    }
    Ok(total.conclude(arguments.unfenced))
}

async fn torture(workdir: &Workdir, network: Arc<Network>, arguments: &Arguments) -> Result<Total> {
    let Arguments {
        rounds, seed, rps, ..
    } = *arguments;
    println!("torture: starting three zones in network namespaces");
    let enforcement = match arguments.unfenced {
        true => "observe",
        false => "enforce",
    };
    let gateways = match arguments.guests {
        true => Gateways::Guests,
        false => Gateways::Owned,
    };
    let mut scene = Scene::set(workdir.path(), network, rps, enforcement, gateways).await?;
    if arguments.attacks {
        scene.attack(seed)?;
    }
    let kinds = match arguments.only.as_slice() {
        [] => Kind::value_variants(),
        only => only,
    };
    println!("torture: {rounds} rounds, seed {seed}, {rps} requests a second, {enforcement}");
    let mut dice = Dice::new(seed);
    let mut total = Total::default();
    let begun = Instant::now();
    for round in 1..=rounds {
        let fault = Fault::any(&mut dice, kinds, LONG_MS);
        let played = scene.round(fault).await;
        let outcome = played.with_context(|| format!("round {round} with seed {seed}: {fault}"))?;
        println!(
            "{round:4} {:6.1} s  {fault}: writable after {} ms; {} admitted, {} not; {} reads, {} failed; {}",
            begun.elapsed().as_secs_f64(),
            outcome.writable.as_millis(),
            outcome.admitted,
            outcome.refused,
            outcome.reads,
            outcome.failed_reads,
            outcome.owners,
        );
        if outcome.failed_reads > 0 {
            for (words, count) in &outcome.said {
                println!("       {count} x {words}");
            }
        }
        match (total.report.violations(), outcome.report.violations()) {
            (before, now) if before == now => {}
            // The first ones are repeated as examples at the end.
            (0, _) => println!("     after this round: {}", outcome.report),
            (_, now) => println!("     after this round: {now} violations"),
        }
        total.rounds += 1;
        total.reads += outcome.reads;
        total.failed_reads += outcome.failed_reads;
        total.refused += outcome.refused;
        total.strayed += outcome.strayed;
        if outcome.strayed > 0 {
            println!(
                "     {} cells moved without a fault or a command",
                outcome.strayed
            );
        }
        total.writable_ms.push(ms(outcome.writable));
        total.report = outcome.report;
    }
    let attacks = scene.attacks();
    total.attacks = attacks.map(|a| (a.sent(), a.to_string(), a.believed()));
    Ok(total)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Total {
    /// The summary, and the exit code.
    fn conclude(&self, unfenced: bool) -> ExitCode {
        println!("\n{} rounds: {}", self.rounds, self.report);
        println!(
            "{} writes were not admitted; {} of {} reads failed by a gateway that was alive; writable again after {} ms",
            self.refused,
            self.failed_reads,
            self.reads,
            figures::spread(&self.writable_ms, 0)
        );
        println!(
            "{} cells moved in rounds without a fault or a command",
            self.strayed
        );
        if let Some((_, words, _)) = &self.attacks {
            println!("{words}");
        }
        let violated = self.report.violations() > 0;
        let believed = self.attacks.as_ref().is_some_and(|(.., count)| *count > 0);
        let good = match unfenced {
            true => violated,
            false => !violated && !believed && self.failed_reads == 0,
        };
        println!(
            "{}",
            match (unfenced, good) {
                (false, true) => "the fence held",
                (false, false) => "NOT AS IT SHOULD BE",
                (true, true) => "without the fence, the judge sees it",
                (true, false) =>
                    "NO VIOLATION FOUND: the judge failed, or there were too few rounds",
            }
        );
        match good {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }

    fn figures(&self) -> Vec<Figure> {
        let count = |name: &str, count| Figure::count(name.to_owned(), count, self.rounds);
        let time = |name: &str, share| Figure::quantile(name, "ms", &self.writable_ms, share);
        vec![
            count("torture_rounds", self.rounds),
            count("torture_violations", self.report.violations()),
            count("torture_admitted_writes", self.report.writes),
            count("torture_late_writes", self.report.late),
            count("torture_failed_reads", self.failed_reads),
            count("torture_strayed_cells", self.strayed),
            count("torture_attacks", self.attacks.as_ref().map_or(0, |a| a.0)),
            count(
                "torture_attacks_believed",
                self.attacks.as_ref().map_or(0, |a| a.2),
            ),
            time("torture_writable_ms_p50", 0.5),
            time("torture_writable_ms_p99", 0.99),
        ]
    }
}

/// Ready on Ctrl-C and on SIGTERM.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
