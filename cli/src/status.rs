//! `tidegate status`.

use anyhow::bail;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use xds_server::conditions::report::Report;

use crate::{
    client::OperatorArgs,
    failure::Unwell,
    output::{self, Output},
};

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// The output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// The same as `-o json`.
    #[arg(long, conflicts_with = "output")]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

impl StatusArgs {
    /// Prints the state of the replica. Returns an error if a condition holds, for the exit code.
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        let answer: Value = self.operator.read("/v1/status").await?;
        let report = Report::deserialize(&answer)?;
        match self.output {
            _ if self.json => print!("{}", output::json(&answer)),
            Output::Json => print!("{}", output::json(&answer)),
            Output::Yaml => print!("{}", output::yaml(&answer)?),
            Output::Table => print!("{}", report.text()),
            Output::Name => bail!("-o name: a replica has no name; use table, json or yaml"),
        }
        match report.worst() {
            None => Ok(()),
            Some(worst) => {
                let count = report.conditions.len();
                Err(Unwell { count, worst }.into())
            }
        }
    }
}
