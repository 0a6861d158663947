//! Load on one Envoy worker, and its processor time.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::paths;
use tokio::process::Command;

/// Concurrent connections: enough to keep the worker busy.
const CONNECTIONS: &str = "8";
/// Only hung load takes so long.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Identical requests.
pub(crate) struct Load<'l> {
    pub(crate) path: &'l str,
    /// The home in the request, if any.
    pub(crate) region: Option<&'l str>,
    /// A POST without a body; otherwise a GET.
    pub(crate) post: bool,
}

/// The cost of a number of requests.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    /// Processor time of the worker for one request.
    pub(crate) cpu_us: f64,
    /// Requests per second.
    pub(crate) rate: f64,
}

/// The only worker thread of an Envoy.
pub(crate) struct Worker {
    schedstat: PathBuf,
}

impl Worker {
    pub(crate) fn of(pid: u32) -> Result<Worker> {
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        for task in fs::read_dir(&tasks).with_context(|| tasks.display().to_string())? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.trim() == "wrk:worker_0" {
                let schedstat = task.join("schedstat");
                return Ok(Worker { schedstat });
            }
        }
        anyhow::bail!("Envoy has no thread wrk:worker_0")
    }

    /// Nanoseconds on a processor so far.
    fn cpu_ns(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.schedstat)?;
        let first = text.split_whitespace().next().context("empty schedstat")?;
        Ok(first.parse()?)
    }

    /// Sends `count` requests, and returns their cost; fails if one of them was not successful.
    pub(crate) async fn serve(&self, to: SocketAddr, load: &Load<'_>, count: u64) -> Result<Cost> {
        let mut command = Command::new(paths::workspace().join("target/tools/bin/h2load"));
        command.args(["--h1", "-t", "1", "-c", CONNECTIONS]);
        command.args(["-n", &count.to_string()]);
        if let Some(region) = load.region {
            command.args(["-H", &format!("x-region-id: {region}")]);
        }
        if load.post {
            // Not `-d`: h2load sends a body in a separate packet, which costs more than the
            // measured difference.
            command.args(["-H", ":method: POST", "-H", "content-length: 0"]);
        }
        command.arg(format!("http://{to}{}", load.path));
        command.stdin(Stdio::null()).kill_on_drop(true);

        let before = self.cpu_ns()?;
        let output = tokio::time::timeout(TIME_MAX, command.output()).await;
        let output = output.context("h2load hangs")?.context("h2load")?;
        let spent = self.cpu_ns()? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let succeeded = format!("{count} done, {count} succeeded");
        ensure!(text.contains(&succeeded), "no success for all:\n{text}");
        Ok(Cost {
            cpu_us: spent as f64 / 1e3 / count as f64,
            rate: rate(&text).with_context(|| text.into_owned())?,
        })
    }
}

/// From a line such as `finished in 1.02s, 9803.92 req/s, 1.96MB/s`.
fn rate(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("finished in"))?;
    let rate = line
        .split(", ")
        .find_map(|part| part.strip_suffix(" req/s"))?;
    rate.parse().ok()
}
