//! Builds and starts the filter, the demo, the benchmarks, the torture.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::built;
use crate::run::{cargo, quiet, shown};
use crate::setup::{self, Wanted};
use crate::tree::{Tree, make_dir, put};

/// The packages whose programs or libraries the end-to-end tests use.
const E2E: [&str; 6] = ["-p", "tidegate", "-p", "e2e", "-p", "wall-clock"];
/// The packages of the demo, and of the benchmarks.
const DEMO: [&str; 6] = ["-p", "tidegate", "-p", "e2e", "-p", "demo"];
const BENCH: [&str; 6] = ["-p", "tidegate", "-p", "e2e", "-p", "bench"];

/// The arguments that `cargo xtask torture` passes on.
#[derive(clap::Args)]
pub(crate) struct Torture {
    /// How many faults
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passed on unchanged, for example --seed 7 or --unfenced
    #[arg(last = true)]
    more: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Store {
    /// One process, one file
    Embedded,
    /// A real etcd, started for the demo
    Etcd,
}

impl fmt::Display for Store {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
        })
    }
}

/// Builds the filter and puts it where the Envoys of the tests and the demo load it from.
pub(crate) fn wasm(tree: &Tree) -> Result<()> {
    build_filter(tree, "filter-wasm", &tree.filter())
}

/// Builds the dynamic module, and the one of another ABI that a test has Envoy refuse.
pub(crate) fn native(tree: &Tree) -> Result<()> {
    let module = tree.module();
    let build = ["build", "-p", "filter-native", "--profile", "native"];
    shown(&mut cargo(tree, &build))?;
    self::place(tree, &tree.built().join("native"), &module)?;
    let build = ["build", "-p", "filter-native", "--features", "other-abi"];
    shown(&mut cargo(tree, &build))?;
    let name = module.file_name().unwrap_or_default();
    let refused = module.with_file_name("other-abi").join(name);
    self::place(tree, &tree.built().join("debug"), &refused)
}

/// A filter that does nothing, for comparison with ours.
fn noop_wasm(tree: &Tree) -> Result<()> {
    let place = tree.filter().with_file_name("noop_filter.wasm");
    build_filter(tree, "noop-wasm", &place)
}

/// Builds a package to a wasm module and puts it at `place`, under cargo's name for it.
fn build_filter(tree: &Tree, package: &str, place: &Path) -> Result<()> {
    shown(&mut cargo(
        tree,
        &[
            "build",
            "-p",
            package,
            "--target",
            "wasm32-wasip1",
            "--profile",
            "wasm",
        ],
    ))?;
    self::place(tree, &tree.built().join("wasm32-wasip1/wasm"), place)
}

/// Puts what cargo has built in a directory at `place`, under the same name.
fn place(tree: &Tree, built: &Path, place: &Path) -> Result<()> {
    let built = built.join(place.file_name().unwrap_or_default());
    let fresh = place.with_extension("new");
    make_dir(place.parent().unwrap_or(tree.root()))?;
    let bytes =
        fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    put(&fresh, place)?;
    println!(
        "{}: {} KB",
        place.strip_prefix(tree.root()).unwrap_or(place).display(),
        bytes / 1024
    );
    Ok(())
}

pub(crate) fn demo(tree: &Tree, store: Store, once: bool, more: &[String]) -> Result<()> {
    // Its second act runs on etcd, with either store of the first one.
    setup::run(tree, Wanted::Demo)?;
    wasm(tree)?;
    shown(cargo(tree, &["build"]).args(DEMO))?;
    let mut demo = Command::new(tree.built().join("debug/demo"));
    demo.arg("--store").arg(store.to_string());
    if once {
        demo.arg("--once");
    }
    hand_over_to(demo.args(more))
}

pub(crate) fn bench(
    tree: &Tree,
    name: Option<&str>,
    json: Option<&Path>,
    more: &[String],
) -> Result<()> {
    let peer = name.is_none_or(|only| only == "xds");
    setup::run(tree, Wanted::Bench { peer })?;
    wasm(tree)?;
    native(tree)?;
    noop_wasm(tree)?;
    shown(cargo(tree, &["build", "--release"]).args(BENCH))?;
    let mut bench = Command::new(tree.built().join("release/bench"));
    bench.args(name);
    if let Some(file) = json {
        bench.arg("--json").arg(file);
    }
    hand_over_to(bench.args(more))
}

/// A benchmark in the output of `bench --list`.
struct Listed {
    name: String,
    needs_namespaces: bool,
}

/// Runs every benchmark and the demo in a short form; returns those that this machine cannot run.
pub(crate) fn smoke(tree: &Tree) -> Result<Vec<String>> {
    setup::run(tree, Wanted::Bench { peer: false })?;
    wasm(tree)?;
    native(tree)?;
    noop_wasm(tree)?;
    built::everything(tree)?;
    let left_out = smoke_each(tree, |_| true, &[])?;
    println!("\n--- demo --once");
    let mut demo = Command::new(tree.built().join("debug/demo"));
    shown(demo.args(["--store", "embedded", "--once"]))?;
    Ok(left_out)
}

/// The benchmarks that `--peer istio` concerns.
const BESIDE_ISTIO: [&str; 3] = ["propagation", "failover", "xds"];

/// Runs the benchmarks beside Istio in a short form, which is built; returns those that this machine
/// cannot run.
pub(crate) fn smoke_beside_istio(tree: &Tree) -> Result<Vec<String>> {
    smoke_each(
        tree,
        |name| BESIDE_ISTIO.contains(&name),
        &["--peer", "istio"],
    )
}

fn smoke_each(tree: &Tree, is_wanted: impl Fn(&str) -> bool, more: &[&str]) -> Result<Vec<String>> {
    let bench = tree.built().join("debug/bench");
    let list = quiet(Command::new(&bench).arg("--list"))?;
    let has_namespaces = quiet(Command::new("unshare").args(["--net", "ip", "link"])).is_ok();
    let mut left_out = Vec::new();
    let wanted = list.lines().filter_map(listed);
    for Listed {
        name,
        needs_namespaces,
    } in wanted.filter(|listed| is_wanted(&listed.name))
    {
        if needs_namespaces && !has_namespaces {
            left_out.push(name);
            continue;
        }
        println!("\n--- bench {name} --smoke {}", more.join(" "));
        shown(Command::new(&bench).args([&name, "--smoke"]).args(more))?;
    }
    Ok(left_out)
}

/// `failover     namespaces   The effect on users …`
fn listed(line: &str) -> Option<Listed> {
    let mut words = line.split_whitespace();
    Some(Listed {
        name: words.next()?.to_owned(),
        needs_namespaces: words.next()? == "namespaces",
    })
}

pub(crate) fn torture(tree: &Tree, torture: &Torture) -> Result<()> {
    setup::run(tree, Wanted::Test)?;
    wasm(tree)?;
    shown(cargo(tree, &["build", "--release"]).args(E2E))?;
    let mut command = Command::new(tree.built().join("release/torture"));
    command.arg("--rounds").arg(torture.rounds.to_string());
    if let Some(file) = &torture.json {
        command.arg("--json").arg(file);
    }
    hand_over_to(command.args(&torture.more))
}

/// Runs the simulation of control plane and filter with this many seeds; the tests run a few
/// hundred.
pub(crate) fn sim(tree: &Tree, seeds: u32) -> Result<()> {
    setup::run(tree, Wanted::Filter)?;
    let arguments = [
        "test",
        "--release",
        "-p",
        "tidegate-xds-server",
        "--test",
        "sim",
    ];
    let mut sim = cargo(tree, &arguments);
    sim.args(["--", "--nocapture"])
        .env("TIDEGATE_SIM_SEEDS", seeds.to_string());
    shown(&mut sim)
}

/// Replaces this process by that program, as cargo was replaced by this one: Ctrl-C reaches it
/// directly, it cleans up its children, and its exit code is the command's.
fn hand_over_to(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}
