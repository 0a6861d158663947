//! The project's own commands, in Rust so that they run the same everywhere: `cargo xtask setup |
//! test | demo | bench | sim | torture | wasm | native | clean`.
//!
//! This program installs nothing on the machine. The tools that Tidegate needs besides cargo are kept
//! in the user's cache folder, with links to them below `target/tools/`; `clean` removes them. This
//! crate has no dependency that needs protoc to build, because it provisions protoc.

// These commands may access the machine's environment and clock.
#![allow(clippy::disallowed_methods)]

mod built;
mod cache;
mod counts;
mod launch;
mod run;
mod setup;
mod test;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use cache::Cache;
use launch::{Store, Torture};
use setup::Wanted;
use tree::Tree;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Tidegate's own commands",
    version
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Provision the missing tools: protoc, Envoy, etcd, docker-compose, gRPC clients, and the Rust
    /// targets. They lie in $TIDEGATE_CACHE or ~/.cache/tidegate, with links below target/tools
    Setup {
        /// Also the tools of `cargo xtask bench`: wrk, h2load, and the server for comparison in
        /// `xds`
        #[arg(long)]
        bench: bool,
        /// Also Istio with a Kubernetes API server, for the step `istio` of the tests: built with
        /// Go in 13 minutes
        #[arg(long)]
        istio: bool,
    },
    /// Run every check and test, or only the named steps
    Test {
        /// Steps to run, in the order of --list; by default all of them
        steps: Vec<String>,
        /// List the steps and exit
        #[arg(long)]
        list: bool,
    },
    /// Build everything and run the demo: zones, Envoys, services and a failover on this machine
    Demo {
        /// The store of the control plane
        #[arg(long, value_enum, default_value_t = Store::Embedded)]
        store: Store,
        /// Run the story once and exit, instead of running until Ctrl-C
        #[arg(long)]
        once: bool,
        /// Passed on to the demo unchanged
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        more: Vec<String>,
    },
    /// Build for release and run the benchmarks, or the named one
    Bench {
        /// The benchmark to run; by default all of them
        name: Option<String>,
        /// Write the figures to this file as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Passed on to the benchmark unchanged
        #[arg(last = true)]
        more: Vec<String>,
    },
    /// Run the control plane's and the filter's code on a virtual clock, with different faults for
    /// each seed
    Sim {
        /// The number of seeds, from 0
        #[arg(long, default_value_t = 2_000)]
        seeds: u32,
    },
    /// Build for release, and fail three zones in every way under a load of writes; needs root and
    /// `ip`
    Torture(Torture),
    /// Build only the filter, to target/filter/tidegate_filter.wasm
    Wasm,
    /// Build only the dynamic module, to target/filter/libtidegate_module.so
    Native,
    /// Remove the tools of all checkouts: $TIDEGATE_CACHE or ~/.cache/tidegate
    Clean,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Task::Setup { bench, istio } => setup(bench, istio),
        Task::Test { list: true, .. } => {
            test::list();
            Ok(())
        }
        Task::Test { steps, list: false } => test::run(&Tree::of_this_checkout(), &steps),
        Task::Demo { store, once, more } => {
            launch::demo(&Tree::of_this_checkout(), store, once, &more)
        }
        Task::Bench { name, json, more } => launch::bench(
            &Tree::of_this_checkout(),
            name.as_deref(),
            json.as_deref(),
            &more,
        ),
        Task::Sim { seeds } => launch::sim(&Tree::of_this_checkout(), seeds),
        Task::Torture(torture) => launch::torture(&Tree::of_this_checkout(), &torture),
        Task::Wasm => setup::run(&Tree::of_this_checkout(), Wanted::Filter)
            .and_then(|()| launch::wasm(&Tree::of_this_checkout())),
        Task::Native => setup::run(&Tree::of_this_checkout(), Wanted::Filter)
            .and_then(|()| launch::native(&Tree::of_this_checkout())),
        Task::Clean => Cache::of_this_user().and_then(|cache| cache.clean()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn setup(bench: bool, istio: bool) -> Result<()> {
    let tree = Tree::of_this_checkout();
    setup::run(&tree, Wanted::Test)?;
    if bench {
        setup::run(&tree, Wanted::Bench { peer: true })?;
    }
    if istio {
        setup::run(&tree, Wanted::Istio)?;
    }
    Ok(())
}
