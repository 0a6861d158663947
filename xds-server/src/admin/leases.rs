//! Leases and their owners.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
};
use registry::{lease::LeaseOwner, store::LeaseId};
use serde::{Deserialize, Serialize};

use super::{Admin, Problem, parse_json};
use crate::{net::access::Caller, net::tls::Peer};

/// The reason of a problem: the lease has ended, or belongs to another client.
pub(super) const NOT_FOUND: &str = "lease_not_found";

/// How many owners are cached. The store is read for the others.
const OWNERS_MAX: usize = 100_000;

/// The owners of recently used leases. An owner never changes. Cheap to clone.
#[derive(Clone, Default)]
pub struct LeaseOwners(Arc<Mutex<HashMap<LeaseId, LeaseOwner>>>);

impl LeaseOwners {
    fn get(&self, lease: LeaseId) -> Option<LeaseOwner> {
        // Each change is one insertion: a panic elsewhere cannot leave it half done.
        let owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(&lease).cloned()
    }

    fn insert(&self, lease: LeaseId, owner: LeaseOwner) {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() >= OWNERS_MAX {
            owners.clear();
        }
        owners.insert(lease, owner);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantRequest {
    ttl_s: u32,
}

#[derive(Serialize)]
pub(super) struct Granted {
    lease: String,
    ttl_s: u32,
}

pub(super) async fn grant(
    State(admin): State<Admin>,
    peer: Option<Extension<Peer>>,
    body: Bytes,
) -> Result<Json<Granted>, Problem> {
    let request: GrantRequest = parse_json(&body)?;
    if request.ttl_s == 0 {
        return Err(Problem::bad_request("ttl_s: at least 1"));
    }
    let owner = owner(&caller(peer));
    let ttl = Duration::from_secs(u64::from(request.ttl_s));
    let lease = admin.write(admin.store.lease_grant(ttl)).await?;
    let key = LeaseOwner::store_key(lease);
    let put = admin.store.put(&key, owner.to_json().into(), Some(lease));
    // If the owner cannot be stored, the lease has no owner and expires.
    admin.write(put).await?;
    admin.owners.insert(lease, owner);
    Ok(Json(Granted {
        lease: format!("{:x}", lease.0),
        ttl_s: request.ttl_s,
    }))
}

pub(super) async fn keep_alive(
    State(admin): State<Admin>,
    peer: Option<Extension<Peer>>,
    Path(lease): Path<String>,
) -> Result<StatusCode, Problem> {
    // The store does not persist this, so its outcome says nothing about writes.
    admin.writing()?;
    let lease = admin.own_lease(&lease, &caller(peer)).await?;
    admin.store.lease_keep_alive(lease).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn revoke(
    State(admin): State<Admin>,
    peer: Option<Extension<Peer>>,
    Path(lease): Path<String>,
) -> Result<StatusCode, Problem> {
    admin.writing()?;
    let lease = admin.own_lease(&lease, &caller(peer)).await?;
    admin.write(admin.store.lease_revoke(lease)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The calling client. Without a peer it is anonymous.
pub(super) fn caller(peer: Option<Extension<Peer>>) -> Caller {
    peer.map_or(Caller::Anonymous, |Extension(peer)| peer.caller)
}

/// The owner of a lease of this client.
fn owner(caller: &Caller) -> LeaseOwner {
    match caller {
        Caller::Named(identity) | Caller::Guest(identity) => {
            LeaseOwner::certificate(&identity.uris, &identity.dns)
        }
        // With TLS the port's access check rejects clients without a certificate.
        Caller::Plain | Caller::Anonymous => LeaseOwner::Plaintext,
    }
}

impl Admin {
    /// The lease with this name, if it belongs to this client or the client is a listed operator.
    /// Another client's lease looks like an expired one.
    pub(super) async fn own_lease(&self, name: &str, caller: &Caller) -> Result<LeaseId, Problem> {
        let lease = parse(name)?;
        let none = || {
            let detail = format!(
                "{caller} has no lease {name}: it has expired, or belongs to another client; grant one with POST /v1/leases"
            );
            Problem::not_found(detail).because(NOT_FOUND)
        };
        if self.rules.rules().lists_operator(caller) {
            return Ok(lease);
        }
        let known = match self.owners.get(lease) {
            Some(known) => known,
            None => {
                let entry = self.store.get(&LeaseOwner::store_key(lease)).await?;
                // The record must be attached to its own lease, so that it cannot outlive it.
                let entry = entry.filter(|entry| entry.lease == Some(lease));
                let known = entry.and_then(|entry| LeaseOwner::parse(&entry.value).ok());
                let known = known.ok_or_else(none)?;
                self.owners.insert(lease, known.clone());
                known
            }
        };
        match known == owner(caller) {
            true => Ok(lease),
            false => Err(none()),
        }
    }
}

/// Leases are 64-bit numbers, which JSON readers round, so they are sent as hexadecimal text.
fn parse(text: &str) -> Result<LeaseId, Problem> {
    i64::from_str_radix(text, 16)
        .ok()
        // A store treats 0 as no lease.
        .filter(|lease| *lease > 0)
        .map(LeaseId)
        .ok_or_else(|| Problem::bad_request("lease: use the text that POST /v1/leases returned"))
}
