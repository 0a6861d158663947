//! A registry behind the control plane's HTTP interface, for where the store is the control plane's
//! own file.
//!
//! It has no versions: a write is unconditional, and [`Target::audit`] compares the records
//! themselves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Method, StatusCode};
use registry::record::{Health, Instance, InstanceKey};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::renewing::Renewing;
use super::target::{Lease, Stored, Target, TargetError, Version};
use crate::http::Failure;
use crate::https::{Files, HttpsError};

/// How long one control plane has for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1000);

/// The longest answer: a listing of tens of thousands of instances.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The control plane, at one address or several.
pub struct HttpTarget {
    client: Renewing,
    /// `http://host:port` or `https://host:port`, without a path.
    bases: Vec<String>,
    /// Index of the one to ask first: it moves on when that one fails.
    preferred: AtomicUsize,
}

#[derive(Deserialize)]
struct Granted {
    lease: String,
}

#[derive(Deserialize)]
struct Problem {
    reason: String,
}

#[derive(Deserialize)]
struct Listed {
    key: String,
    record: Option<Instance>,
}

impl HttpTarget {
    /// `bases` are `http://host:port`, the preferred first.
    pub fn new(bases: Vec<String>) -> HttpTarget {
        HttpTarget::over(Renewing::plain(), bases)
    }

    /// `bases` are `https://host:port`, the preferred first. The files are followed, by a task on
    /// the present runtime.
    pub fn with_tls(bases: Vec<String>, files: Files) -> Result<HttpTarget, HttpsError> {
        Ok(HttpTarget::over(Renewing::start(files)?, bases))
    }

    fn over(client: Renewing, bases: Vec<String>) -> HttpTarget {
        HttpTarget {
            client,
            bases,
            preferred: AtomicUsize::new(0),
        }
    }

    /// Asks one address after the other until one answers. All requests may be made twice: a put
    /// has the same outcome, and an unknown lease ends by itself.
    async fn ask(&self, method: Method, path: &str, body: &[u8]) -> Result<Bytes, TargetError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut outcome = Err(TargetError::Refused("no address is configured".to_owned()));
        for offset in 0..self.bases.len() {
            let at = (first + offset) % self.bases.len();
            outcome = self.ask_one(at, method.clone(), path, body).await;
            match outcome {
                Err(TargetError::Unavailable(_) | TargetError::Timeout(_)) => {}
                _ => {
                    self.preferred.store(at, Ordering::Relaxed);
                    break;
                }
            }
        }
        outcome
    }

    async fn ask_one(
        &self,
        at: usize,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> Result<Bytes, TargetError> {
        let base = self.bases.get(at).map_or("", String::as_str);
        let url = format!("{base}{path}");
        let client = self.client.current();
        let sent = client.send(
            method,
            &url,
            body.to_vec(),
            REQUEST_TIMEOUT,
            ANSWER_BYTES_MAX,
        );
        let (status, answer) = sent.await.map_err(|failure| match failure {
            Failure::Timeout(after) => TargetError::Timeout(after),
            other => TargetError::Unavailable(format!("{base}: {other}")),
        })?;
        if status.is_success() {
            return Ok(answer);
        }
        let detail = format!("{base}: {status}: {}", String::from_utf8_lossy(&answer));
        let reason = serde_json::from_slice(&answer).map(|problem: Problem| problem.reason);
        Err(match status {
            // A service or zone that the mesh lacks is not found either, and no new lease mends
            // that. Older control planes give no reason.
            StatusCode::NOT_FOUND if reason.is_ok_and(|reason| reason != "lease_not_found") => {
                TargetError::Refused(detail)
            }
            StatusCode::NOT_FOUND => TargetError::LeaseNotFound,
            _ if status.is_client_error() => TargetError::Refused(detail),
            _ => TargetError::Unavailable(detail),
        })
    }
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, TargetError> {
    serde_json::from_slice(answer)
        .map_err(|error| TargetError::Refused(format!("an unreadable answer: {error}")))
}

#[async_trait]
impl Target for HttpTarget {
    async fn grant(&self, ttl: Duration) -> Result<Lease, TargetError> {
        let body = json!({ "ttl_s": ttl.as_secs() }).to_string();
        let answer = self
            .ask(Method::POST, "/v1/leases", body.as_bytes())
            .await?;
        let granted: Granted = read(&answer)?;
        Ok(Lease(granted.lease))
    }

    async fn keep_alive(&self, lease: &Lease) -> Result<(), TargetError> {
        let path = format!("/v1/leases/{lease}/keepalive");
        self.ask(Method::POST, &path, &[]).await.map(drop)
    }

    async fn revoke(&self, lease: &Lease) -> Result<(), TargetError> {
        let path = format!("/v1/leases/{lease}");
        self.ask(Method::DELETE, &path, &[]).await.map(drop)
    }

    async fn put(
        &self,
        lease: &Lease,
        key: &InstanceKey,
        record: &Instance,
        _: Option<Version>,
    ) -> Result<Version, TargetError> {
        let InstanceKey {
            service,
            zone,
            instance,
        } = key;
        let path = format!("/v1/instances/{service}/{zone}/{instance}?lease={lease}");
        let record = record.to_json();
        self.ask(Method::PUT, &path, &record).await?;
        Ok(Version(0))
    }

    async fn audit(&self, records: &[Stored]) -> Result<Vec<InstanceKey>, TargetError> {
        let answer = self.ask(Method::GET, "/v1/instances", &[]).await?;
        let listed: Vec<Listed> = read(&answer)?;
        let listed: BTreeMap<String, Option<Instance>> = listed
            .into_iter()
            .map(|Listed { key, record }| (key, record))
            .collect();
        let differs = |stored: &&Stored| {
            let record = listed.get(&stored.key.store_key()).and_then(Option::as_ref);
            record != Some(&stored.record)
        };
        let differing = records.iter().filter(differs);
        Ok(differing.map(|stored| stored.key.clone()).collect())
    }

    async fn healthy(&self, service: &str, zone: &str) -> Result<Vec<InstanceKey>, TargetError> {
        let answer = self.ask(Method::GET, "/v1/instances", &[]).await?;
        let listed: Vec<Listed> = read(&answer)?;
        let healthy = listed.into_iter().filter_map(|Listed { key, record }| {
            let healthy = record.is_some_and(|record| record.health == Health::Healthy);
            InstanceKey::parse(&key).ok().filter(|_| healthy)
        });
        Ok(healthy
            .filter(|key| key.service == service && key.zone == zone)
            .collect())
    }

    async fn look(&self) -> Result<(), TargetError> {
        self.ask(Method::GET, "/v1/instances", &[]).await.map(drop)
    }
}
