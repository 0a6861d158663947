//! `tidegate check`: a configuration of Tidegate, or of an Envoy with a guest.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::{
    inspect::{self, Finding, Severity},
    mesh::Mesh,
    source,
};
use crate::{
    failure::Found,
    output::{self, Output},
    serve,
};

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// The YAML file. With --guest: the services whose writes are fenced, and the terms.
    #[arg(long, value_name = "FILE", required_unless_present = "guest")]
    config: Option<PathBuf>,
    /// As in `serve`.
    #[arg(long, value_name = "ZONE", conflicts_with = "guest")]
    zone: Option<String>,
    /// Check the configuration of an Envoy with the filter as a guest, and list everything that
    /// stands in the way: a bootstrap (YAML or JSON), the answer of `/config_dump`, or its address,
    /// http://HOST:PORT/config_dump.
    #[arg(long, value_name = "FILE")]
    guest: Option<String>,
    /// With --guest: the output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl CheckArgs {
    /// Checks, and prints the result.
    ///
    /// # Errors
    ///
    /// The first fault of a configuration of Tidegate; [`Found`] if a guest has findings.
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        let guest = match (&self.guest, &self.config) {
            (Some(guest), _) => guest,
            (None, Some(config)) => return serve::check(config, self.zone.as_deref()),
            (None, None) => bail!("give --config or --guest"),
        };
        let mesh = Mesh::read(self.config.as_deref())?;
        let document = source::read(guest).await?;
        let findings = inspect::inspect(&document, &mesh);
        let mut findings = findings.map_err(|error| anyhow::anyhow!("{guest}: {error}"))?;
        // Errors first, and each kind in the order of the configuration.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.problem.severity()));
        print!("{}", text(&findings, self.output)?);
        let worst = findings
            .iter()
            .map(|finding| finding.problem.severity())
            .max();
        match worst {
            None => Ok(()),
            Some(worst) => {
                let count = findings.len();
                let has_errors = worst == Severity::Error;
                Err(Found { count, has_errors }.into())
            }
        }
    }
}

fn text(findings: &[Finding], output: Output) -> anyhow::Result<String> {
    let json = || Value::from_iter(findings.iter().map(json));
    Ok(match output {
        Output::Json => output::json(&json()),
        Output::Yaml => output::yaml(&json())?,
        Output::Name => findings
            .iter()
            .map(|at| format!("{}\n", at.problem.name()))
            .collect(),
        Output::Table if findings.is_empty() => "good: nothing stands in the way\n".to_owned(),
        Output::Table => findings.iter().map(lines).collect(),
    })
}

/// A finding for people.
fn lines(finding: &Finding) -> String {
    let Finding { problem, place } = finding;
    format!(
        "{} [{}] {problem}\n    at {place}\n    {}\n",
        problem.severity().as_str(),
        problem.name(),
        problem.remedy(),
    )
}

fn json(finding: &Finding) -> Value {
    let problem = &finding.problem;
    json!({
        "name": problem.name(),
        "severity": problem.severity().as_str(),
        "message": problem.to_string(),
        "place": finding.place,
        "remedy": problem.remedy(),
    })
}
