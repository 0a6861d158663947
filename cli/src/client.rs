//! Requests to the admin port.

use std::{path::PathBuf, time::Duration};

use agent::{http::Client, https};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode, Uri};
use serde::{Deserialize, de::DeserializeOwned};

use crate::failure::{self, OutcomeUnknown};

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

#[derive(Args)]
pub(crate) struct OperatorArgs {
    /// The admin interface of the control plane. Several replicas separated by commas: the first is asked, and the others where
    /// it does not answer, or to find out what became of a move.
    #[arg(
        long,
        value_name = "URL",
        env = "TIDEGATE_ADMIN",
        default_value = "http://127.0.0.1:18001"
    )]
    pub(crate) admin: String,
    /// With https: the CA of the control plane's certificate (PEM).
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// With https: your own certificate (PEM).
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CERT", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", env = "TIDEGATE_KEY", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// How long an answer may take. After that the outcome of a change is unknown (exit code 3).
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

/// A number of seconds, above 0; the store's own deadlines are some seconds long.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let span = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let span = span.filter(|span| !span.is_zero());
    span.ok_or_else(|| "a number of seconds above 0".to_owned())
}

impl OperatorArgs {
    /// Reads JSON from the first replica that answers.
    pub(crate) async fn read<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.ask(Method::GET, path, Bytes::new()).await?;
        serde_json::from_slice(&answer).context("an answer of another version")
    }

    fn client(&self, uri: &Uri) -> anyhow::Result<Client> {
        let files = self.ca.clone().map(|ca| https::Files {
            ca,
            own: self.cert.clone().zip(self.key.clone()),
        });
        let is_https = uri.scheme_str() == Some("https");
        if is_https && files.is_none() {
            bail!("--ca: name the file with the CA of the control plane's certificate");
        }
        Ok(files.map_or_else(|| Ok(Client::plain()), |files| Client::with_tls(&files))?)
    }

    /// Asks the first replica; where only something is to be read and it does not answer, the others in turn.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        let mut admins = self.admin.split(',');
        let first = admins.next().unwrap_or_default();
        let mut answer = self.ask_at(first, method.clone(), path, body).await;
        if method == Method::GET {
            for other in admins {
                if answer.is_ok() {
                    break;
                }
                answer = self.ask_at(other, Method::GET, path, Bytes::new()).await;
            }
        }
        answer
    }

    pub(crate) async fn ask_at(
        &self,
        admin: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        if !admin.contains("://") {
            bail!(
                "--admin: {admin:?} has no scheme: http://{admin}, or https://{admin} with --ca where the port speaks TLS"
            );
        }
        let uri = format!("{}{path}", admin.trim_end_matches('/'));
        let uri: Uri = uri.parse().with_context(|| format!("{uri:?} is no URL"))?;
        let is_change = method != Method::GET;
        let (client, url) = (self.client(&uri)?, uri.to_string());
        let answer = client.send(method, &url, body, self.timeout, ANSWER_BYTES_MAX);
        let answer = answer.await;
        let (status, body) = answer.map_err(|error| failure::no_answer(&error, &uri, is_change))?;
        match status.is_success() {
            true => Ok(body),
            false => Err(refusal(&uri, status, &body, is_change)),
        }
    }
}

/// The error in an answer that is no success.
fn refusal(uri: &Uri, status: StatusCode, body: &[u8], is_change: bool) -> anyhow::Error {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    let problem = serde_json::from_slice::<Problem>(body).ok();
    // A proxy in between says nothing of its outcome.
    let is_unknown =
        status == StatusCode::GATEWAY_TIMEOUT || problem.is_none() && status.is_server_error();
    let detail = problem.map_or_else(|| format!("{uri} answered {status}"), |p| p.detail);
    if is_unknown && is_change {
        let how = failure::how_to_find_out(uri.path());
        return OutcomeUnknown { why: detail, how }.into();
    }
    anyhow::Error::msg(detail)
}

#[cfg(test)]
mod tests;
