//! The control plane's admin API, as used by an upstream or an operator.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::{Client, Reply, Request, Version};

/// The health of an instance. A draining one gets no new requests and is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy,
    Unhealthy,
    Draining,
}

/// The name of an instance, which determines its record's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceName {
    pub service: String,
    pub zone: String,
    pub instance: String,
}

impl InstanceName {
    pub fn new(service: &str, zone: &str, instance: &str) -> InstanceName {
        InstanceName {
            service: service.to_owned(),
            zone: zone.to_owned(),
            instance: instance.to_owned(),
        }
    }

    /// The record's key in etcd.
    pub fn key(&self) -> String {
        format!("/tidegate/v1/instances/{}", self.path())
    }

    fn path(&self) -> String {
        format!("{}/{}/{}", self.service, self.zone, self.instance)
    }
}

/// An instance's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub address: String,
    pub port: u16,
    pub health: Health,
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load1_per_core: Option<f64>,
}

impl Instance {
    /// A healthy instance.
    pub fn at(address: SocketAddr) -> Instance {
        Instance {
            address: address.ip().to_string(),
            port: address.port(),
            health: Health::Healthy,
            weight: 1,
            load1_per_core: None,
        }
    }
}

/// A client of one control plane.
#[derive(Clone)]
pub struct Registry {
    client: Client,
    admin: SocketAddr,
}

impl Registry {
    pub fn new(admin: SocketAddr) -> Registry {
        Registry {
            client: Client::new(Version::Http1),
            admin,
        }
    }

    pub async fn grant_lease(&self, ttl: Duration) -> Result<String> {
        #[derive(Deserialize)]
        struct Granted {
            lease: String,
        }
        let request = Request::new(Method::POST, "/v1/leases");
        let request = request.json(&json!({ "ttl_s": ttl.as_secs() }));
        let granted: Granted = self.client.send(self.admin, &request).await?.json()?;
        Ok(granted.lease)
    }

    /// Whether the lease still exists.
    pub async fn keep_alive(&self, lease: &str) -> Result<bool> {
        let path = format!("/v1/leases/{lease}/keepalive");
        let request = Request::new(Method::POST, &path).json(&json!({}));
        let reply = self.client.send(self.admin, &request).await?;
        match reply.status {
            StatusCode::NOT_FOUND => Ok(false),
            _ => success(&reply).map(|()| true),
        }
    }

    /// Ends the lease, and with it every instance on it.
    pub async fn revoke_lease(&self, lease: &str) -> Result<()> {
        let path = format!("/v1/leases/{lease}");
        success(&self.send(Method::DELETE, &path).await?)
    }

    /// Puts a record; without a lease it stays until it is removed.
    pub async fn put(
        &self,
        name: &InstanceName,
        instance: &Instance,
        lease: Option<&str>,
    ) -> Result<Reply> {
        let lease = lease.map_or_else(String::new, |lease| format!("?lease={lease}"));
        let path = format!("/v1/instances/{}{lease}", name.path());
        let request = Request::new(Method::PUT, &path).json(&serde_json::to_value(instance)?);
        self.client.send(self.admin, &request).await
    }

    pub async fn remove(&self, name: &InstanceName) -> Result<()> {
        let path = format!("/v1/instances/{}", name.path());
        success(&self.send(Method::DELETE, &path).await?)
    }

    /// Forgets the lists of a guest.
    pub async fn forget_guest(&self, zone: &str, guest: &str) -> Result<Reply> {
        let request = Request::new(Method::POST, "/v1/guests/forget");
        let request = request.json(&json!({ "zone": zone, "guest": guest }));
        self.client.send(self.admin, &request).await
    }

    pub async fn instances(&self) -> Result<Value> {
        self.send(Method::GET, "/v1/instances").await?.json()
    }

    /// The view of a zone's proxies.
    pub async fn view(&self, zone: &str) -> Result<Value> {
        let path = format!("/v1/views/{zone}");
        self.send(Method::GET, &path).await?.json()
    }

    /// The connected proxies, and the resources that they have acknowledged.
    pub async fn proxies(&self) -> Result<Value> {
        self.send(Method::GET, "/v1/proxies").await?.json()
    }

    pub async fn metrics(&self) -> Result<String> {
        let reply = self.send(Method::GET, "/metrics").await?;
        success(&reply).map(|()| reply.text())
    }

    /// The sum of all samples of a metric, with any labels; 0 without samples.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        sum_of(&self.metrics().await?, name)
    }

    /// The conditions that hold, with details.
    pub async fn conditions(&self) -> Result<Value> {
        self.send(Method::GET, "/v1/conditions").await?.json()
    }

    pub async fn ready(&self) -> Result<()> {
        success(&self.send(Method::GET, "/readyz").await?)
    }

    /// The state of the store: the status, and the answer of `/readyz`.
    pub async fn readiness(&self) -> Result<(StatusCode, Value)> {
        let reply = self.send(Method::GET, "/readyz").await?;
        let said = serde_json::from_str(&reply.text()).with_context(|| reply.text())?;
        Ok((reply.status, said))
    }

    async fn send(&self, method: Method, path: &str) -> Result<Reply> {
        self.client
            .send(self.admin, &Request::new(method, path))
            .await
    }
}

pub(crate) fn success(reply: &Reply) -> Result<()> {
    ensure!(
        reply.status.is_success(),
        "{}: {}",
        reply.status,
        reply.text()
    );
    Ok(())
}

/// Adds up the samples of one metric in Prometheus' text format.
fn sum_of(text: &str, name: &str) -> Result<f64> {
    let mut sum = 0.0;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        if !rest.starts_with(['{', ' ']) {
            continue;
        }
        let value = rest.rsplit(' ').next().unwrap_or_default();
        sum += value.parse::<f64>().with_context(|| line.to_owned())?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_add_up() {
        let text = "# TYPE a counter\na_total{x=\"1 2\"} 2\na_total{x=\"3\"} 3\na_totals 9\nb 7\n";
        assert_eq!(sum_of(text, "a_total").unwrap(), 5.0);
        assert_eq!(sum_of(text, "b").unwrap(), 7.0);
        assert_eq!(sum_of(text, "c").unwrap(), 0.0);
    }
}
