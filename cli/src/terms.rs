//! `tidegate terms`: the terms that all replicas have agreed on, and changes of them without a
//! stop.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::Method;
use registry::{authority::Configured, terms::AgreedRecord};

use xds_server::{
    authority::{TermsStatus, waits_for},
    reload,
};

use crate::client::OperatorArgs;

/// How often the progress of a change is checked.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct TermsArgs {
    #[command(subcommand)]
    command: Option<TermsCommand>,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Subcommand)]
enum TermsCommand {
    /// Change the terms to those of a configuration file. Begin with this command, then give all
    /// replicas the file: each applies it while it runs. Meanwhile all replicas promise the shorter
    /// span and wait for the longer one.
    Change {
        /// The new configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Admit no fenced write during the change: a change of `shards` or of a `cell_key`
        /// requires that.
        #[arg(long)]
        stop_writes: bool,
        /// Begin the change, and do not wait for its end.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Abort a change that is not completed: the terms stay as they were.
    Cancel {
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

impl TermsArgs {
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        match &self.command {
            None => print!("{}", show(&status(&self.operator).await?)),
            Some(TermsCommand::Cancel { operator }) => {
                operator
                    .ask(Method::DELETE, "/v1/terms/next", Bytes::new())
                    .await?;
                println!("the change is aborted: give all replicas the previous configuration");
            }
            Some(TermsCommand::Change {
                config,
                stop_writes,
                no_wait,
                operator,
            }) => {
                let (config, _) = reload::read(config)?;
                let next = config.mesh.agreed();
                let next = next.context("the file has no `authority`, so it contains no terms")?;
                let next = AgreedRecord::from(&next);
                begin(operator, &next, *stop_writes).await?;
                if !no_wait {
                    wait(operator, &next).await?;
                }
            }
        }
        Ok(())
    }
}

async fn status(operator: &OperatorArgs) -> anyhow::Result<TermsStatus> {
    operator.read("/v1/terms").await
}

async fn begin(
    operator: &OperatorArgs,
    next: &AgreedRecord,
    stop_writes: bool,
) -> anyhow::Result<()> {
    let body = serde_json::json!({ "next": next, "stop_writes": stop_writes });
    let body = Bytes::from(body.to_string());
    operator.ask(Method::POST, "/v1/terms/change", body).await?;
    let status = status(operator).await?;
    println!(
        "begun: give all replicas the new file now; they apply it while they run, or at a restart"
    );
    match status.stopped {
        true => println!("no fenced write is admitted until the change is completed"),
        false => println!(
            "until then all replicas promise the shorter of both spans, and wait for the longer"
        ),
    }
    Ok(())
}

/// Waits until the new terms are the only ones.
async fn wait(operator: &OperatorArgs, next: &AgreedRecord) -> anyhow::Result<()> {
    let mut said = String::new();
    loop {
        let status = status(operator).await?;
        if status.next.is_none() && status.revision > 0 {
            let same = status.current.as_ref().is_some_and(|now| {
                (now.session_ttl_ms, now.grant_ttl_ms, now.write_drain_ms)
                    == (next.session_ttl_ms, next.grant_ttl_ms, next.write_drain_ms)
                    && now.drift_permille == next.drift_permille
                    && now.cells == next.cells
            });
            anyhow::ensure!(same, "another operator aborted the change");
            println!("changed: the new terms are in force");
            return Ok(());
        }
        let waiting = waits_for(&status).into_iter();
        let waiting: Vec<String> = waiting
            .map(|replica| format!("{} ({})", replica.process, replica.zone))
            .collect();
        let saying = match waiting.is_empty() {
            true => "waiting until earlier grants have expired".to_owned(),
            false => format!("waiting for the new file at {}", waiting.join(", ")),
        };
        if saying != said {
            println!("{saying}");
            said = saying;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The terms, and the replicas that act by them.
fn show(status: &TermsStatus) -> String {
    let mut text = String::new();
    if !status.agrees {
        let differences = status.differences.join("; ");
        let _ = writeln!(
            text,
            "THIS REPLICA DIFFERS, and grants nothing: {differences}"
        );
    }
    if status.stopped {
        text += "WRITES ARE STOPPED until the change is completed\n";
    }
    for (name, terms) in [("agreed", &status.current), ("next", &status.next)] {
        let Some(terms) = terms else {
            continue;
        };
        let cells = terms.cells.iter();
        let cells: Vec<String> = cells
            .map(|cell| format!("{} ({})", cell.name, cell.shards))
            .collect();
        let _ = writeln!(
            text,
            "{name:<8} session_ttl_ms {}  grant_ttl_ms {}  write_drain_ms {}  drift_permille {}  cells {}",
            terms.session_ttl_ms,
            terms.grant_ttl_ms,
            terms.write_drain_ms,
            terms.drift_permille,
            cells.join(", "),
        );
        for (service, key) in &terms.keys {
            let _ = writeln!(text, "{:<8} cell_key of {service}: {key}", "");
        }
    }
    if status.revision == 0 {
        text += "no terms are agreed yet\n";
    }
    for replica in &status.replicas {
        let configured = match replica.configured {
            Some(Configured::Current) => "as agreed",
            Some(Configured::Next) => "as next",
            Some(Configured::Other) => "DIFFERENTLY, and grants nothing",
            None => "unknown: it has not seen these terms yet, or has an older version",
        };
        let behind = match replica.behind {
            true => "; it grants under earlier terms",
            false => "",
        };
        let _ = writeln!(
            text,
            "{:<16} {} is configured {configured}{behind}",
            replica.zone, replica.process
        );
    }
    text
}
