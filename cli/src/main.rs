//! `tidegate`: the command line of the control plane, of the agent, and of operators.

mod client;
mod failure;
mod get;
mod guest;
mod image;
mod logging;
mod operate;
mod output;
#[cfg(test)]
mod reference;
mod serve;
mod status;
mod terms;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use xds_server::{
    agent_port,
    conditions::{Code, page},
    control_plane::{Leaving, Options},
};

use get::{DescribeArgs, GetArgs, HowArgs};
use guest::{CheckArgs, GuestArgs};
use image::ImageArgs;
use operate::Operation;
use status::StatusArgs;
use terms::TermsArgs;

/// Keeps a service that runs in several data centres correct and available while one of them fails.
///
/// Log lines go to standard error; RUST_LOG selects them (default: info).
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = failure::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane: watch the store, serve xDS to the proxies.
    Serve {
        /// The YAML file with topology and services. Changes to it take effect while running. A
        /// file with an error is rejected and reported, and the last good configuration stays in
        /// force.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The zone that this replica serves: it grants writes to that zone's proxies. Replaces
        /// `authority.zones`.
        #[arg(long, value_name = "ZONE")]
        zone: Option<String>,
        /// Write the listening addresses to this file, as JSON, once they are known: for ports
        /// chosen by the kernel.
        #[arg(long, value_name = "FILE")]
        addresses_file: Option<PathBuf>,
        /// Serve this filter (tidegate_filter.wasm) at `/filter.wasm` of the port for operators, to
        /// all who reach the port. By default the one of the container image.
        #[arg(long, value_name = "FILE")]
        filter: Option<PathBuf>,
        /// On SIGTERM, first move the cells to a standby zone for which no other replica of this
        /// zone can grant writes. Without this option the cells stay, and the zone has as long to
        /// return as a session lasts.
        #[arg(long)]
        hand_over: bool,
        /// Log as JSON.
        #[arg(long)]
        log_json: bool,
    },
    /// Run the agent: probe instances beside it, keep them registered, drain them on SIGTERM.
    Agent {
        /// The agent's YAML file. Changes to it take effect with a restart.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Check the file and exit: exit status 0 if it is valid, 1 with file, line and field if
        /// not.
        #[arg(long)]
        check: bool,
        /// Leave the records to the next agent on SIGTERM, for as long as their lease lasts: for an
        /// upgrade while instances continue. Drain them by `POST /v1/drain/...` before they stop.
        #[arg(long)]
        keep: bool,
        /// Write the listening address to this file, as JSON: for a port chosen by the kernel.
        #[arg(long, value_name = "FILE")]
        addresses_file: Option<PathBuf>,
        /// Log as JSON.
        #[arg(long)]
        log_json: bool,
    },
    /// Check a configuration file and exit: exit status 0 if `serve` would start with it, 1 with
    /// file, line and field if not. With --guest: check an Envoy that carries the filter as a guest;
    /// exit status 6 or 7 if something stands in the way.
    Check(CheckArgs),
    /// Print the pieces of configuration by which an Envoy, Istio, Envoy Gateway or Higress carries
    /// the filter as a guest, or how they leave.
    Guest(GuestArgs),
    /// Write the filter as an OCI image, in the OCI layout: for registries, `oci://` addresses and
    /// image volumes.
    Image(ImageArgs),
    /// List the codes of conditions and safety rules, with the remedy for each.
    Codes {
        /// Explain this code: TG2001, or its name.
        code: Option<Code>,
        /// Print the page of the documentation.
        #[arg(long, conflicts_with = "code")]
        markdown: bool,
    },
    /// Show the state of a replica: mode, sessions, proxies, certificates, and conditions with
    /// their remedies.
    Status(StatusArgs),
    /// List zones, cells, proxies, instances, operations or conditions.
    Get(GetArgs),
    /// Show everything known of one of them, and the conditions that name it.
    Describe(DescribeArgs),
    /// The agreed terms (time-outs, drift, shards, cell keys), and the configuration of each
    /// replica.
    Terms(TermsArgs),
    #[command(flatten)]
    Operate(Operation),
    /// The same as `get zones`.
    #[command(hide = true)]
    Zones(HowArgs),
    /// The same as `get cells`.
    #[command(hide = true)]
    Cells(HowArgs),
    /// The same as `get proxies`.
    #[command(hide = true)]
    Proxies(HowArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Check(check) => operate(check.run()),
        Command::Agent {
            config,
            check: true,
            ..
        } => agent::check(&config).map(|good| println!("{good}")),
        Command::Agent {
            config,
            keep,
            addresses_file,
            log_json,
            ..
        } => {
            let (_, _lines) = logging::begin(log_json);
            agent(agent::Options {
                config: &config,
                addresses_file: addresses_file.as_deref(),
                keep,
            })
        }
        Command::Serve {
            config,
            zone,
            addresses_file,
            filter,
            hand_over,
            log_json,
        } => {
            let (left_out, _lines) = logging::begin(log_json);
            let leaving = match hand_over {
                true => Leaving::HandingOver,
                false => Leaving::ToComeBack,
            };
            let options = Options {
                config,
                zone,
                state_directory: serve::state_directory(),
                filter: filter.or_else(serve::filter_of_the_image),
                collectors: vec![Box::new(left_out)],
            };
            serve::serve(options, addresses_file.as_deref(), leaving)
        }
        Command::Guest(guest) => guest.run(),
        Command::Image(image) => image.run(),
        Command::Codes { code, markdown } => {
            print!("{}", codes(code, markdown));
            Ok(())
        }
        Command::Status(status) => operate(status.run()),
        Command::Get(get) => operate(get.run()),
        Command::Describe(describe) => operate(describe.run()),
        Command::Terms(terms) => operate(terms.run()),
        Command::Operate(operation) => operate(operation.run()),
        Command::Zones(how) => operate(GetArgs::all(get::Kind::Zones, how).run()),
        Command::Cells(how) => operate(GetArgs::all(get::Kind::Cells, how).run()),
        Command::Proxies(how) => operate(GetArgs::all(get::Kind::Proxies, how).run()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn codes(code: Option<Code>, markdown: bool) -> String {
    match (code, markdown) {
        (Some(code), _) => page::explain(code),
        (None, true) => page::markdown(),
        (None, false) => page::list(),
    }
}

#[tokio::main]
async fn operate(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    work.await
}

#[tokio::main]
async fn agent(options: agent::Options<'_>) -> anyhow::Result<()> {
    agent::run(options, agent_port::serve).await
}
