//! `tidegate status`.

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;

use super::{OperatorArgs, failure::Unwell};
use crate::conditions::report::Report;

impl OperatorArgs {
    /// Prints how the replica stands. An error where a condition holds, so that the exit code says so.
    pub(super) async fn status(&self, is_json: bool) -> anyhow::Result<()> {
        let answer = self.ask(Method::GET, "/v1/status", Bytes::new()).await?;
        let report: Report =
            serde_json::from_slice(&answer).context("an answer of another version")?;
        match is_json {
            true => println!("{}", String::from_utf8_lossy(&answer)),
            false => print!("{}", report.text()),
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
