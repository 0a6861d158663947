//! Envoy's admin interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::client::{Client, Request, Version};
use crate::registry::success;

/// A client of one Envoy's admin interface.
#[derive(Clone)]
pub struct Admin {
    client: Client,
    address: SocketAddr,
}

impl Admin {
    pub(super) fn new(address: SocketAddr) -> Admin {
        Admin {
            client: Client::new(Version::Http1),
            address,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The body of a GET.
    pub async fn get(&self, path: &str) -> Result<String> {
        let reply = self.client.send(self.address, &Request::get(path)).await?;
        success(&reply)?;
        Ok(reply.text())
    }

    /// `LIVE`, `INITIALIZING`, …
    pub async fn state(&self) -> Result<String> {
        let info: Value = self.json("/server_info").await?;
        Ok(info["state"].as_str().unwrap_or_default().to_owned())
    }

    /// The address of a listener.
    pub async fn listener(&self, name: &str) -> Result<SocketAddr> {
        #[derive(Deserialize)]
        struct Listeners {
            #[serde(default)]
            listener_statuses: Vec<Status>,
        }
        #[derive(Deserialize)]
        struct Status {
            name: String,
            local_address: Local,
        }
        #[derive(Deserialize)]
        struct Local {
            socket_address: Socket,
        }
        #[derive(Deserialize)]
        struct Socket {
            address: String,
            port_value: u16,
        }
        let listeners: Listeners = self.json("/listeners?format=json").await?;
        let names: Vec<&str> = listeners
            .listener_statuses
            .iter()
            .map(|s| s.name.as_str())
            .collect();
        let missing = format!("no listener {name}, only {names:?}");
        let status = listeners
            .listener_statuses
            .iter()
            .find(|status| status.name == name)
            .context(missing)?;
        let Socket {
            address,
            port_value,
        } = &status.local_address.socket_address;
        Ok(SocketAddr::new(address.parse()?, *port_value))
    }

    /// The counters and gauges whose names match a regular expression (without spaces).
    pub async fn stats(&self, filter: &str) -> Result<BTreeMap<String, u64>> {
        let text = self
            .get(&format!("/stats?filter={}", escape(filter)))
            .await?;
        let numbers = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            // Histograms and texts have no number.
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(numbers.collect())
    }

    /// One counter or gauge; 0 if Envoy has not created it yet.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let all = self
            .stats(&format!("^{}$", name.replace('.', "\\.")))
            .await?;
        Ok(all.get(name).copied().unwrap_or(0))
    }

    /// All stats as Prometheus sees them.
    pub async fn prometheus(&self) -> Result<String> {
        self.get("/stats/prometheus").await
    }

    pub async fn config_dump(&self) -> Result<Value> {
        self.json("/config_dump?include_eds").await
    }

    pub async fn clusters(&self) -> Result<Value> {
        self.json("/clusters?format=json").await
    }

    async fn json<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T> {
        let text = self.get(path).await?;
        serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
    }
}

/// Percent-encodes the characters that must not occur in a query.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
