//! Runs all checks, the quickest first, up to the first failure.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::built::{self, TestProgram};
use crate::counts::Counts;
use crate::launch;
use crate::run::{cargo, quiet, shown};
use crate::setup::{self, GrpcClient, Wanted};
use crate::tree::Tree;

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Tree, &mut Counts) -> Result<Outcome>,
}

enum Outcome {
    Passed,
    /// With the reason. A check that did not run never counts as passed.
    Skipped(String),
}

const STEPS: [Step; 14] = [
    Step {
        name: "fmt",
        about: "the sources are formatted",
        run: fmt,
    },
    Step {
        name: "clippy",
        about: "no lint warns, tests included",
        run: clippy,
    },
    Step {
        name: "clippy-wasm",
        about: "no lint warns in the filter, built for wasm",
        run: clippy_wasm,
    },
    Step {
        name: "no-std",
        about: "the policy builds where there is no std",
        run: no_std,
    },
    Step {
        name: "wasm",
        about: "the filter builds",
        run: wasm,
    },
    Step {
        name: "native",
        about: "the dynamic module builds",
        run: native,
    },
    Step {
        name: "unit",
        about: "unit, property and store tests",
        run: unit,
    },
    Step {
        name: "e2e",
        about: "scenarios with real Envoys and a real etcd",
        run: e2e,
    },
    Step {
        name: "smoke",
        about: "every benchmark and the demo run, in a short form",
        run: smoke,
    },
    Step {
        name: "grpc",
        about: "real gRPC clients without a proxy",
        run: grpc,
    },
    Step {
        name: "istio",
        about: "a real istiod, and the chart, on a real Kubernetes API server, built with Go at the first time",
        run: istio,
    },
    Step {
        name: "oldest-envoy",
        about: "guests in the oldest Envoy that they are promised for",
        run: oldest_envoy,
    },
    Step {
        name: "compose",
        about: "docker-compose.yml is valid",
        run: compose,
    },
    Step {
        name: "deny",
        about: "licences, bans and sources of the dependencies",
        run: deny,
    },
];

/// Steps that run only by name.
const BY_NAME: [Step; 2] = [
    Step {
        name: "quick",
        about: "by name only: the tests that need no server, in a minute once they are built",
        run: quick_tests,
    },
    Step {
        name: "peers",
        about: "by name only: h2spec and Envoy Gateway, built with Go at the first time",
        run: peers,
    },
];

fn every_step() -> impl Iterator<Item = &'static Step> {
    STEPS.iter().chain(&BY_NAME)
}

pub(crate) fn list() {
    for step in every_step() {
        println!("{:12} {}", step.name, step.about);
    }
}

/// Runs the named steps, or all, and prints at the end the outcome of each and the number of
/// executed test functions.
pub(crate) fn run(tree: &Tree, names: &[String]) -> Result<()> {
    let known = |name: &String| every_step().any(|step| step.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        bail!("no step `{unknown}`: `cargo xtask test --list` lists them");
    }
    let steps: Vec<&Step> = match names {
        [] => STEPS.iter().collect(),
        names => every_step()
            .filter(|step| names.iter().any(|name| name == step.name))
            .collect(),
    };
    let mut report = Report::default();
    let mut counts = Counts::default();
    let mut failure = report
        .measure("setup", || {
            setup::run(tree, Wanted::Test).map(|()| Outcome::Passed)
        })
        .err();
    for step in steps {
        if failure.is_none() {
            failure = report
                .measure(step.name, || (step.run)(tree, &mut counts))
                .err();
        } else {
            report
                .lines
                .push((step.name, "not run".to_owned(), Duration::ZERO));
        }
    }
    report.print();
    if counts != Counts::default() {
        println!("{} passed, {} failed", counts.passed, counts.failed);
    }
    match failure {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

#[derive(Default)]
struct Report {
    lines: Vec<(&'static str, String, Duration)>,
}

impl Report {
    fn measure(&mut self, name: &'static str, run: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = run();
        let took = start.elapsed();
        println!("=== {name}: {:.1} s", took.as_secs_f64());
        let word = match &outcome {
            Ok(Outcome::Passed) => "ok".to_owned(),
            Ok(Outcome::Skipped(why)) => format!("skipped: {why}"),
            Err(_) => "FAILED".to_owned(),
        };
        self.lines.push((name, word, took));
        outcome.map(drop).with_context(|| format!("step {name}"))
    }

    fn print(&self) {
        println!();
        for (name, word, took) in &self.lines {
            println!("{name:12} {:7.1} s  {word}", took.as_secs_f64());
        }
        let total: Duration = self.lines.iter().map(|(_, _, took)| *took).sum();
        println!("{:12} {:7.1} s\n", "all", total.as_secs_f64());
    }
}

fn fmt(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    passed(shown(&mut cargo(tree, &["fmt", "--all", "--check"])))
}

fn clippy(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    passed(shown(&mut cargo(tree, &arguments)))
}

fn clippy_wasm(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    let arguments = [
        "clippy",
        "-p",
        "filter-wasm",
        "--target",
        "wasm32-wasip1",
        "--",
        "-D",
        "warnings",
    ];
    passed(shown(&mut cargo(tree, &arguments)))
}

fn no_std(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    passed(shown(&mut cargo(
        tree,
        &[
            "build",
            "-p",
            "tidegate-policy",
            "--target",
            "x86_64-unknown-none",
        ],
    )))
}

fn wasm(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    passed(launch::wasm(tree))
}

fn native(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    passed(launch::native(tree))
}

/// The packages whose tests start Envoys.
const WITH_SERVERS: [&str; 3] = ["e2e", "bench", "demo"];

fn starts_servers(tree: &Tree, program: &TestProgram) -> bool {
    WITH_SERVERS.map(Path::new).contains(&program.package(tree))
}

fn unit(tree: &Tree, counts: &mut Counts) -> Result<Outcome> {
    let programs = built::everything(tree)?;
    let without_servers = programs.iter().filter(|p| !starts_servers(tree, p));
    counts.add_all(without_servers, &[])?;
    passed(counts.add(&mut cargo(tree, &["test", "--workspace", "--doc"])))
}

/// The integration tests that are quick.
const QUICK: [&str; 4] = ["behaviour", "translate", "world", "docs"];

fn quick_tests(tree: &Tree, counts: &mut Counts) -> Result<Outcome> {
    let programs = built::everything(tree)?;
    let without_servers = programs.iter().filter(|p| !starts_servers(tree, p));
    let is_quick =
        |p: &&TestProgram| p.is_library || p.name == "tidegate" || QUICK.contains(&p.name.as_str());
    passed(counts.add_all(without_servers.filter(is_quick), &[]))
}

/// The test programs that the step `istio` runs.
const ON_ISTIO: [&str; 2] = ["istio", "chart"];

/// Those that the step `oldest-envoy` runs again.
const OF_GUESTS: [&str; 2] = ["guests", "guest_pieces"];

/// One scenario at a time: each starts Envoys and measures how fast they are, possibly on two
/// cores.
fn e2e(tree: &Tree, counts: &mut Counts) -> Result<Outcome> {
    launch::wasm(tree)?;
    launch::native(tree)?;
    let programs = built::everything(tree)?;
    let with_servers = programs.iter().filter(|p| starts_servers(tree, p));
    let with_servers = with_servers.filter(|p| !ON_ISTIO.contains(&p.name.as_str()));
    // The gRPC clients are a separate step, since they may be unavailable, and so are the peers.
    let arguments = [
        "--test-threads=1",
        "--skip=real_clients::",
        "--skip=h2spec::",
    ];
    passed(counts.add_all(with_servers, &arguments))
}

/// Never skipped: it is requested by name.
fn peers(tree: &Tree, counts: &mut Counts) -> Result<Outcome> {
    setup::run(tree, Wanted::Peers)?;
    launch::wasm(tree)?;
    let programs = built::everything(tree)?;
    let peers = programs.iter().filter(|p| p.name == "conformance");
    passed(counts.add_all(peers, &["--test-threads=1", "--nocapture"]))
}

/// The step omits the torture: the scenarios run a few of its rounds.
fn smoke(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    Ok(ran(&launch::smoke(tree)?))
}

/// The outcome of benchmarks, of which these were left out.
fn ran(left_out: &[String]) -> Outcome {
    match left_out {
        [] => Outcome::Passed,
        some => Outcome::Skipped(format!(
            "not {}, which need root and `ip`; the rest ran",
            some.join(", ")
        )),
    }
}

fn grpc(tree: &Tree, counts: &mut Counts) -> Result<Outcome> {
    let clients = GrpcClient::ALL.into_iter();
    let (here, missing): (Vec<_>, Vec<_>) = clients.partition(|client| client.is_here(tree));
    let missing: Vec<_> = missing.into_iter().map(GrpcClient::module).collect();
    if here.is_empty() {
        let why = "neither grpcio nor @grpc/grpc-js-xds is available";
        return Ok(Outcome::Skipped(why.to_owned()));
    }
    launch::wasm(tree)?;
    let programs = built::everything(tree)?;
    let clients = programs.iter().filter(|p| p.name == "grpc_clients");
    let skipped = missing.iter().flat_map(|module| {
        let tests = format!("real_clients::{module}::");
        ["--skip".to_owned(), tests]
    });
    let arguments: Vec<String> = ["--test-threads=1".to_owned()]
        .into_iter()
        .chain(skipped)
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    counts.add_all(clients, &arguments)?;
    Ok(match missing.as_slice() {
        [] => Outcome::Passed,
        missing => Outcome::Skipped(format!(
            "without {}, which is unavailable; the others passed",
            missing.join(", ")
        )),
    })
}

/// Foreign programs that cannot be fetched or built here are no fault of ours: like the gRPC clients
/// they are then left out, and the summary says why.
fn istio(tree: &Tree, counts: &mut Counts) -> Result<Outcome> {
    if let Err(error) = setup::run(tree, Wanted::Istio) {
        return Ok(Outcome::Skipped(format!("{error:#}")));
    }
    launch::wasm(tree)?;
    let programs = built::everything(tree)?;
    let on_istio = programs
        .iter()
        .filter(|p| ON_ISTIO.contains(&p.name.as_str()));
    counts.add_all(on_istio, &["--test-threads=1"])?;
    Ok(ran(&launch::smoke_beside_istio(tree)?))
}

fn oldest_envoy(tree: &Tree, counts: &mut Counts) -> Result<Outcome> {
    setup::run(tree, Wanted::OldestEnvoy)?;
    launch::wasm(tree)?;
    let programs = built::everything(tree)?;
    for name in OF_GUESTS {
        let program = programs.iter().find(|program| program.name == name);
        let program = program.with_context(|| format!("{name} was not built"))?;
        println!("\n--- {name} with Envoy 1.36");
        let mut command = program.command();
        command.env("TIDEGATE_ENVOY", setup::oldest_envoy(tree));
        counts.add(command.arg("--test-threads=1"))?;
    }
    Ok(Outcome::Passed)
}

fn compose(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    let Some(program) = setup::compose(tree) else {
        return Ok(Outcome::Skipped(
            "docker-compose 2 is not available".to_owned(),
        ));
    };
    let mut check = Command::new(program);
    passed(shown(
        check
            .args(["-f", "docker-compose.yml", "config", "-q"])
            .current_dir(tree.root()),
    ))
}

/// Advisories are checked where their database can be fetched: the result would change without a
/// change here.
fn deny(tree: &Tree, _: &mut Counts) -> Result<Outcome> {
    if quiet(&mut cargo(tree, &["deny", "--version"])).is_err() {
        return Ok(Outcome::Skipped(
            "no cargo-deny here; `cargo install cargo-deny` brings it".to_owned(),
        ));
    }
    passed(shown(&mut cargo(
        tree,
        &["deny", "check", "bans", "licenses", "sources"],
    )))
}

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}
