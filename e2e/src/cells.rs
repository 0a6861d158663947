//! Write authority, as an operator sees and moves it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::{Client, Request, Version};
use crate::registry::success;

/// All possible objections to a move.
const OBJECTIONS: [&str; 4] = ["TG7004", "TG7003", "TG7006", "TG7002"];

/// A cell as a control plane describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub cell: String,
    #[serde(default)]
    pub epoch: u64,
    #[serde(default)]
    pub owners: Vec<String>,
    #[serde(default)]
    pub standby: Vec<String>,
    /// None while it is unknown.
    #[serde(default)]
    pub state: Option<String>,
    #[serde(default)]
    pub grantors: Vec<Value>,
    /// By zone.
    #[serde(default)]
    pub zones: BTreeMap<String, Speakers>,
    #[serde(default)]
    pub hold_ms: u64,
    /// Why this is stale, if it is.
    #[serde(default)]
    pub stale: Option<String>,
}

/// The replicas of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speakers {
    pub replicas: u32,
    pub proxies: Option<u32>,
}

/// The part of one control plane's admin API for write authority.
#[derive(Clone)]
pub struct Cells {
    client: Client,
    admin: SocketAddr,
}

impl Cell {
    /// Whether this zone alone owns it, and may write.
    pub fn is_active_in(&self, zone: &str) -> bool {
        self.owners == [zone] && self.state.as_deref() == Some("active")
    }
}

impl Cells {
    pub fn new(admin: SocketAddr) -> Cells {
        Cells {
            client: Client::new(Version::Http1),
            admin,
        }
    }

    pub async fn list(&self) -> Result<Vec<Cell>> {
        let request = Request::get("/v1/cells");
        self.client.send(self.admin, &request).await?.json()
    }

    pub async fn get(&self, cell: &str) -> Result<Cell> {
        let all = self.list().await?;
        let mut all = all.into_iter();
        all.find(|one| one.cell == cell)
            .with_context(|| format!("no cell {cell}"))
    }

    /// The outcomes of moves, the newest first.
    pub async fn operations(&self) -> Result<Value> {
        let request = Request::get("/v1/operations");
        self.client.send(self.admin, &request).await?.json()
    }

    /// Returns when the new owners are stored.
    pub async fn move_to(&self, cell: &str, zone: &str, reason: &str) -> Result<()> {
        let path = format!("/v1/cells/{cell}/move");
        let wish = json!({ "to": [zone], "reason": reason });
        self.post(&path, &wish).await
    }

    /// A move that does not wait for the old owners, despite any objection.
    pub async fn override_to(&self, cell: &str, zone: &str, reason: &str) -> Result<()> {
        let path = format!("/v1/cells/{cell}/override");
        let wish = json!({ "to": [zone], "reason": reason, "accept": OBJECTIONS, "hold_ms": 0 });
        self.post(&path, &wish).await
    }

    /// Confirms the content of the store although it is implausible.
    pub async fn confirm(&self) -> Result<()> {
        self.post("/v1/confirm", &json!({})).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<()> {
        let request = Request::new(Method::POST, path).json(body);
        success(&self.client.send(self.admin, &request).await?)
    }
}
