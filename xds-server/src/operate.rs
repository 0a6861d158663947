//! What operators do by the command line: requests to the admin interface, which keeps the rules.

pub mod failure;
mod proxies;
mod status;
mod terms;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use agent::https;
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, Uri, header::CONTENT_TYPE};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use registry::authority::StateName;
use serde::Deserialize;

use crate::{
    authority::CellStatus,
    conditions::{Code, rules::AcceptArgs},
};
use failure::OutcomeUnknown;

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What an operator does.
#[derive(Subcommand)]
pub enum Operation {
    /// How every service is doing in every zone.
    Zones {
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Give a zone nothing: requests in flight end, new ones go elsewhere.
    Drain {
        #[command(flatten)]
        wanted: WantedArgs,
        /// For those who look later.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        accept: AcceptArgs,
    },
    /// Keep a zone in for as long as it has a healthy instance.
    Pin {
        #[command(flatten)]
        wanted: WantedArgs,
        /// For those who look later.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End a drain or a pin.
    Release {
        #[command(flatten)]
        wanted: WantedArgs,
    },
    /// Let a zone that is out come back now: ends a hold, and is what `failback: manual` waits for.
    Failback {
        #[command(flatten)]
        wanted: WantedArgs,
    },
    /// Who may write for each cell, and who grants it.
    Cells {
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// The terms (time-outs, drift, shards, cell keys) that all replicas have agreed on, and which replica is configured how.
    Terms(terms::TermsArgs),
    /// Move the permission to write to other zones: the old owners are taken out first.
    Move {
        #[command(flatten)]
        moved: MoveArgs,
        /// For those who look later.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Move it whatever the old owners say, or where the store was restored: what they hold is ended and waited for, the epoch
    /// rises, and the reason is recorded.
    Override {
        #[command(flatten)]
        moved: MoveArgs,
        /// Why; recorded with the move.
        #[arg(long)]
        reason: String,
        /// The new epoch is at least this: higher than any that storage has seen.
        #[arg(long)]
        epoch: Option<u64>,
    },
    /// How a replica stands: mode, sessions, proxies, certificates, and the conditions that hold, with what to do.
    Status {
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// The connected proxies: what they hold, what they refused, and what their filters have applied.
    Proxies {
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Have all replicas accept a store that they did not accept before: instances are gone, or it was restored.
    Confirm {
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

#[derive(Args)]
pub struct OperatorArgs {
    /// The admin interface of the control plane. Several replicas separated by commas: the first is asked, and the others where
    /// it does not answer, or to find out what became of a move.
    #[arg(
        long,
        value_name = "URL",
        env = "TIDEGATE_ADMIN",
        default_value = "http://127.0.0.1:18001"
    )]
    admin: String,
    /// With https: the CA of the control plane's certificate (PEM).
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CA")]
    ca: Option<PathBuf>,
    /// With https: your own certificate (PEM).
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", env = "TIDEGATE_KEY", requires = "cert")]
    key: Option<PathBuf>,
    /// How long an answer may take. After that the outcome of a change is unknown (exit code 3).
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    timeout: Duration,
}

/// A number of seconds, above 0; the store's own deadlines are some seconds long.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let span = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let span = span.filter(|span| !span.is_zero());
    span.ok_or_else(|| "a number of seconds above 0".to_owned())
}

#[derive(Args)]
pub struct MoveArgs {
    /// The cell.
    cell: String,
    /// The new owner, or several of one region, separated by commas.
    #[arg(long, value_name = "ZONE", value_delimiter = ',', required = true)]
    to: Vec<String>,
    /// For how many seconds the cell stays there though other zones serve it better. Default: 600 where fewer services can be
    /// served there (`--accept TG7004`), else 0. A zone that is lost loses it all the same.
    #[arg(long, value_name = "SECONDS")]
    hold: Option<u64>,
    #[command(flatten)]
    accept: AcceptArgs,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Args)]
pub struct WantedArgs {
    /// The zone.
    zone: String,
    /// One service; without it all services.
    #[arg(long)]
    service: Option<String>,
    #[command(flatten)]
    operator: OperatorArgs,
}

impl Operation {
    /// Does it, and prints what there is to say.
    pub async fn run(&self) -> anyhow::Result<()> {
        match self {
            Operation::Zones { operator } => print!("{}", operator.zones().await?),
            Operation::Drain {
                wanted,
                reason,
                accept,
            } => wanted.want("drain", reason, &accept.accept).await?,
            Operation::Pin { wanted, reason } => wanted.want("pin", reason, &[]).await?,
            Operation::Release { wanted } => wanted.release().await?,
            Operation::Failback { wanted } => match &wanted.fail_back().await?[..] {
                [] => println!("nothing is out in {}", wanted.zone),
                back => println!("coming back: {}", back.join(", ")),
            },
            Operation::Confirm { operator } => operator.confirm().await?,
            Operation::Status { json, operator } => operator.status(*json).await?,
            Operation::Proxies { operator } => print!("{}", operator.proxies().await?),
            Operation::Terms(terms) => terms.run().await?,
            Operation::Cells { operator } => print!("{}", operator.cells().await?),
            Operation::Move { moved, reason } => moved.run("move", reason, None).await?,
            Operation::Override {
                moved,
                reason,
                epoch,
            } => moved.run("override", reason, *epoch).await?,
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Zones {
    implausible: Option<String>,
    kept: usize,
    zones: Vec<Zone>,
}

#[derive(Deserialize)]
struct Zone {
    service: String,
    zone: String,
    state: String,
    share: u16,
    healthy: u32,
    unhealthy: u32,
    draining: u32,
    flaps: u8,
    held_for_ms: Option<u64>,
    intent: Option<Intent>,
}

#[derive(Deserialize)]
struct Intent {
    intent: String,
    reason: String,
}

impl OperatorArgs {
    /// A table of how every service is doing in every zone.
    async fn zones(&self) -> anyhow::Result<String> {
        let answer = self.ask(Method::GET, "/v1/zones", Bytes::new()).await?;
        let all: Zones = serde_json::from_slice(&answer).context("an answer of another version")?;
        let mut table = String::new();
        if let Some(implausible) = &all.implausible {
            table += &format!("NOT BELIEVED: {implausible} ({} kept)\n", all.kept);
        }
        table += &row(
            "SERVICE", "ZONE", "STATE", "SHARE", "HEALTHY", "FLAPS", "INTENT",
        );
        for zone in &all.zones {
            let all_of_it = zone.healthy + zone.unhealthy;
            let draining = match zone.draining {
                0 => String::new(),
                n => format!(" +{n}"),
            };
            let held = zone
                .held_for_ms
                .map(|ms| format!(" {} s", ms.div_ceil(1_000)));
            let intent = zone
                .intent
                .as_ref()
                .map(|wanted| match wanted.reason.as_str() {
                    "" => wanted.intent.clone(),
                    reason => format!("{}: {reason}", wanted.intent),
                });
            table += &row(
                &zone.service,
                &zone.zone,
                &format!("{}{}", zone.state, held.unwrap_or_default()),
                &format!("{}.{} %", zone.share / 10, zone.share % 10),
                &format!("{}/{all_of_it}{draining}", zone.healthy),
                &zone.flaps.to_string(),
                &intent.unwrap_or_default(),
            );
        }
        Ok(table)
    }

    /// A table of who may write.
    async fn cells(&self) -> anyhow::Result<String> {
        let answer = self.ask(Method::GET, "/v1/cells", Bytes::new()).await?;
        let cells: Vec<CellStatus> =
            serde_json::from_slice(&answer).context("an answer of another version")?;
        let mut table = String::new();
        if let Some(stale) = cells.iter().find_map(|cell| cell.stale.as_ref()) {
            table += &format!("STALE, as last seen: {stale}\n");
        }
        table += &cell_row([
            "CELL",
            "EPOCH",
            "STATE",
            "OWNERS",
            "STANDBY",
            "PROXIES",
            "GRANTED BY",
        ]);
        for cell in &cells {
            let stale = if cell.stale.is_some() { "?" } else { "" };
            table += &cell_row([
                &cell.cell,
                &cell.epoch.to_string(),
                &format!("{}{stale}", state_of(cell)),
                &cell.owners.join(","),
                &cell.standby.join(","),
                &proxies_of(cell),
                &cell.grantors.join(","),
            ]);
        }
        Ok(table)
    }

    /// Has this replica believe what it does not.
    async fn confirm(&self) -> anyhow::Result<()> {
        self.ask(Method::POST, "/v1/confirm", Bytes::new()).await?;
        Ok(())
    }

    fn connector(&self, uri: &Uri) -> anyhow::Result<https::Connector> {
        let files = self.ca.clone().map(|ca| https::Files {
            ca,
            own: self.cert.clone().zip(self.key.clone()),
        });
        let is_https = uri.scheme_str() == Some("https");
        if is_https && files.is_none() {
            bail!("--ca: name the file with the CA of the control plane's certificate");
        }
        Ok(files.map_or_else(|| Ok(https::plain()), |files| https::connector(&files))?)
    }

    /// Asks the first replica; where only something is to be read and it does not answer, the others in turn.
    async fn ask(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
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

    async fn ask_at(
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
        let request = Request::builder().method(method).uri(uri.clone());
        // Also without a body: see `agent::cross_origin`.
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(body))?;
        let client = Client::builder(TokioExecutor::new()).build(self.connector(&uri)?);
        let asked = async {
            let answer = client.request(request).await?;
            let status = answer.status();
            let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
            let body = body.collect().await.map_err(anyhow::Error::from_boxed)?;
            anyhow::Ok((status, body.to_bytes()))
        };
        let late = |_| anyhow::anyhow!("no answer within {:?} (--timeout)", self.timeout);
        let answer = tokio::time::timeout(self.timeout, asked).await;
        let answer = answer.map_err(late).and_then(|answer| answer);
        let (status, body) = answer.map_err(|error| failure::no_answer(error, &uri, is_change))?;
        match status.is_success() {
            true => Ok(body),
            false => Err(refusal(&uri, status, &body, is_change)),
        }
    }
}

/// What an answer says that is no success.
fn refusal(uri: &Uri, status: StatusCode, body: &[u8], is_change: bool) -> anyhow::Error {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    let problem = serde_json::from_slice::<Problem>(body).ok();
    // A proxy in between says nothing of what became of it.
    let is_unknown =
        status == StatusCode::GATEWAY_TIMEOUT || problem.is_none() && status.is_server_error();
    let detail = problem.map_or_else(|| format!("{uri} answered {status}"), |p| p.detail);
    if is_unknown && is_change {
        let how = failure::how_to_find_out(uri.path());
        return OutcomeUnknown { why: detail, how }.into();
    }
    anyhow::Error::msg(detail)
}

impl MoveArgs {
    async fn run(&self, how: &str, reason: &str, epoch: Option<u64>) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Moved {
            cell: String,
            epoch: u64,
            owners: Vec<String>,
            state: Option<StateName>,
            took_ms: u64,
            #[serde(default)]
            unserved: Vec<String>,
            #[serde(default)]
            warnings: Vec<String>,
            #[serde(default)]
            hold_ms: u64,
        }
        let body = serde_json::json!({
            "to": self.to,
            "reason": reason,
            "epoch": epoch,
            "hold_ms": self.hold.map(|seconds| seconds.saturating_mul(1_000)),
            "accept": self.accept.accept,
        });
        let path = format!("/v1/cells/{}/{how}", self.cell);
        let body = body.to_string().into();
        let asked = self.operator.ask(Method::POST, &path, body).await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => return Err(self.with_what_others_say(error).await),
        };
        let moved: Moved =
            serde_json::from_slice(&answer).context("an answer of another version")?;
        let Moved {
            cell,
            epoch,
            owners,
            state,
            took_ms,
            unserved,
            warnings,
            hold_ms,
        } = moved;
        let owners = owners.join(", ");
        let settling = match state {
            Some(StateName::Active) => "",
            _ => "; nobody writes before what the old owners may have under way is over",
        };
        println!("{cell} belongs to {owners}, epoch {epoch}, after {took_ms} ms{settling}");
        if hold_ms > 0 {
            let seconds = hold_ms / 1_000;
            println!("it stays there for {seconds} s though other zones serve it better");
        }
        for warning in warnings {
            println!("warning, accepted: {warning}");
        }
        if !unserved.is_empty() {
            let services = unserved.join(", ");
            println!(
                "warning: {owners} has no healthy instance of {services}: its writes are refused"
            );
        }
        Ok(())
    }
}

impl MoveArgs {
    /// An error of a move, with what the other replicas see of the cell: the one that was asked may be the one that is blind.
    async fn with_what_others_say(&self, error: anyhow::Error) -> anyhow::Error {
        let others = self.operator.admin.split(',').skip(1);
        for other in others {
            let asked = self
                .operator
                .ask_at(other, Method::GET, "/v1/cells", Bytes::new());
            let Ok(answer) = asked.await else { continue };
            let Ok(cells) = serde_json::from_slice::<Vec<CellStatus>>(&answer) else {
                continue;
            };
            if let Some(cell) = cells.iter().find(|cell| cell.cell == self.cell) {
                let (owners, state) = (cell.owners.join(", "), state_of(cell));
                let epoch = cell.epoch;
                return error.context(format!(
                    "{other} says: {} belongs to {owners}, epoch {epoch}, {state}",
                    self.cell
                ));
            }
        }
        error
    }
}

/// A cell's state in one word or a few.
fn state_of(cell: &CellStatus) -> String {
    match (cell.state, &cell.moving) {
        (_, Some(moving)) => format!("fencing -> {}", moving.to.join(",")),
        (Some(StateName::Active), _) => "active".to_owned(),
        (Some(StateName::Settling), _) => "settling".to_owned(),
        (Some(StateName::Fencing), None) => "fencing".to_owned(),
        (None, _) if cell.revision == 0 => "unknown".to_owned(),
        (None, _) => "of another store".to_owned(),
    }
}

/// How many proxies could hold grants in each zone that may own the cell.
fn proxies_of(cell: &CellStatus) -> String {
    let each = cell.owners.iter().chain(&cell.standby).map(|zone| {
        match cell.zones.get(zone).map(|speakers| speakers.proxies) {
            None => format!("{zone}:-"),
            Some(None) => format!("{zone}:?"),
            Some(Some(proxies)) => format!("{zone}:{proxies}"),
        }
    });
    each.collect::<Vec<_>>().join(" ")
}

impl WantedArgs {
    fn path(&self, kind: &str) -> String {
        let service = self.service.iter().map(|s| format!("?service={s}"));
        format!("/v1/{kind}/{}{}", self.zone, service.collect::<String>())
    }

    async fn want(&self, intent: &str, reason: &str, accept: &[Code]) -> anyhow::Result<()> {
        let mut body = serde_json::json!({ "intent": intent, "reason": reason });
        // Older control planes do not know it.
        if !accept.is_empty() {
            body["accept"] = serde_json::json!(accept);
        }
        let body = body.to_string();
        let path = self.path("intents");
        self.operator.ask(Method::PUT, &path, body.into()).await?;
        Ok(())
    }

    async fn release(&self) -> anyhow::Result<()> {
        let path = self.path("intents");
        self.operator
            .ask(Method::DELETE, &path, Bytes::new())
            .await?;
        Ok(())
    }

    /// The services that come back.
    async fn fail_back(&self) -> anyhow::Result<Vec<String>> {
        let path = self.path("failback");
        let answer = self.operator.ask(Method::POST, &path, Bytes::new()).await?;
        serde_json::from_slice(&answer).context("an answer of another version")
    }
}

fn row(a: &str, b: &str, c: &str, d: &str, e: &str, f: &str, g: &str) -> String {
    let line = format!("{a:<20} {b:<16} {c:<22} {d:>8} {e:>10} {f:>5}  {g}");
    format!("{}\n", line.trim_end())
}

fn cell_row([a, b, c, d, e, f, g]: [&str; 7]) -> String {
    let line = format!("{a:<12} {b:>14}  {c:<24} {d:<22} {e:<30} {f:<30} {g}");
    format!("{}\n", line.trim_end())
}
