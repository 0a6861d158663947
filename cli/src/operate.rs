//! Operators' changes: requests to the admin port, which enforces the rules.

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::Method;
use registry::authority::StateName;
use serde::Deserialize;
use xds_server::{authority::CellStatus, conditions::Code};

use crate::{client::OperatorArgs, get::cells::state_of};

/// Changes by operators.
#[derive(Subcommand)]
pub(crate) enum Operation {
    /// Drain a zone: requests in flight complete, new ones go elsewhere.
    Drain {
        #[command(flatten)]
        wanted: WantedArgs,
        /// The reason, for the record.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        accept: AcceptArgs,
    },
    /// Pin a zone: it stays in while it has a healthy instance.
    Pin {
        #[command(flatten)]
        wanted: WantedArgs,
        /// The reason, for the record.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End a drain or a pin.
    Release {
        #[command(flatten)]
        wanted: WantedArgs,
    },
    /// Readmit a zone that is out: ends a hold, and confirms a return with `failback: manual`.
    Failback {
        #[command(flatten)]
        wanted: WantedArgs,
    },
    /// Move the permission to write to other zones: the old owners are fenced first.
    Move {
        #[command(flatten)]
        moved: MoveArgs,
        /// The reason, for the record.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Move a cell by force, also after a restore of the store: the old owners lose their sessions,
    /// the move waits for their writes, the epoch rises, and the reason is recorded.
    Override {
        #[command(flatten)]
        moved: MoveArgs,
        /// The reason, recorded with the move.
        #[arg(long)]
        reason: String,
        /// The lower bound of the new epoch: higher than any that storage has seen.
        #[arg(long)]
        epoch: Option<u64>,
    },
    /// Forget the lists of a guest that will not come back. While it counts, no service is fenced
    /// whose writes its lists let pass (TG4008).
    ForgetGuest {
        /// Its identity, or its node id where it has none: as the condition names it.
        guest: String,
        /// Its zone.
        #[arg(long)]
        zone: String,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Make all replicas accept a store that a sanity guard rejects: instances are gone, or it was
    /// restored.
    Confirm {
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

/// The rules that a command overrides. The command has its own `--reason`.
#[derive(Args)]
pub(crate) struct AcceptArgs {
    /// Override a safety rule: the code in the rejection, or several. Requires --reason.
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    accept: Vec<Code>,
}

#[derive(Args)]
pub(crate) struct MoveArgs {
    /// The cell.
    cell: String,
    /// The new owner, or several of one region, separated by commas.
    #[arg(long, value_name = "ZONE", value_delimiter = ',', required = true)]
    to: Vec<String>,
    /// For how many seconds the cell stays there although other zones serve it better. Default: 600
    /// if the new zone can serve fewer services (`--accept TG7004`), else 0. A lost zone loses the
    /// cell nevertheless.
    #[arg(long, value_name = "SECONDS")]
    hold: Option<u64>,
    #[command(flatten)]
    accept: AcceptArgs,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Args)]
pub(crate) struct WantedArgs {
    /// The zone.
    zone: String,
    /// One service; without it all services.
    #[arg(long)]
    service: Option<String>,
    #[command(flatten)]
    operator: OperatorArgs,
}

impl Operation {
    /// Executes it, and prints the result.
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        match self {
            Operation::Drain {
                wanted,
                reason,
                accept,
            } => wanted.want("drain", reason, &accept.accept).await?,
            Operation::Pin { wanted, reason } => wanted.want("pin", reason, &[]).await?,
            Operation::Release { wanted } => wanted.release().await?,
            Operation::Failback { wanted } => match &wanted.fail_back().await?[..] {
                [] => println!("no service is out in {}", wanted.zone),
                back => println!("coming back: {}", back.join(", ")),
            },
            Operation::ForgetGuest {
                guest,
                zone,
                operator,
            } => {
                let body = serde_json::json!({ "zone": zone, "guest": guest }).to_string();
                let path = "/v1/guests/forget";
                operator.ask(Method::POST, path, body.into()).await?;
            }
            Operation::Confirm { operator } => {
                let nothing = Bytes::new();
                operator.ask(Method::POST, "/v1/confirm", nothing).await?;
            }
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
            _ => "; no zone writes until the old owners' writes have settled",
        };
        println!("{cell} belongs to {owners}, epoch {epoch}, after {took_ms} ms{settling}");
        if hold_ms > 0 {
            let seconds = hold_ms / 1_000;
            println!("the cell stays there for {seconds} s although other zones serve it better");
        }
        for warning in warnings {
            println!("warning, accepted: {warning}");
        }
        if !unserved.is_empty() {
            let services = unserved.join(", ");
            println!(
                "warning: {owners} has no healthy instance of {services}: its writes are rejected"
            );
        }
        Ok(())
    }
}

impl MoveArgs {
    /// An error of a move, with the other replicas' view of the cell: the queried replica may be
    /// the one that lags.
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

impl WantedArgs {
    fn path(&self, kind: &str) -> String {
        let service = self.service.iter().map(|s| format!("?service={s}"));
        format!("/v1/{kind}/{}{}", self.zone, service.collect::<String>())
    }

    async fn want(&self, intent: &str, reason: &str, accept: &[Code]) -> anyhow::Result<()> {
        let mut body = serde_json::json!({ "intent": intent, "reason": reason });
        // Older control planes do not know the field.
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

    /// Returns the readmitted services.
    async fn fail_back(&self) -> anyhow::Result<Vec<String>> {
        let path = self.path("failback");
        let answer = self.operator.ask(Method::POST, &path, Bytes::new()).await?;
        serde_json::from_slice(&answer).context("an answer of another version")
    }
}
