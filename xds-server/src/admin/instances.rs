//! Instances: the list of records, and registration.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use registry::{
    record::{INSTANCES_PREFIX, Instance, InstanceKey, Warning},
    store::Entry,
};
use serde::{Deserialize, Serialize};

use super::{Admin, Problem, leases, some_of};
use crate::{config::Mesh, net::tls::Peer};

#[derive(Serialize)]
pub(super) struct Listed {
    key: String,
    /// None if the record cannot be read.
    record: Option<Instance>,
    /// Why the record is rejected.
    error: Option<String>,
    /// The oddities of an accepted record.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

pub(super) async fn list(State(admin): State<Admin>) -> Result<Json<Vec<Listed>>, Problem> {
    let listing = admin.store.list(INSTANCES_PREFIX).await?;
    let listed = listing.entries.into_iter();
    Ok(Json(listed.map(|entry| admin.listed(entry)).collect()))
}

impl Admin {
    fn listed(&self, entry: Entry) -> Listed {
        let overview = Arc::clone(&self.feed.overviews.borrow());
        let record = Instance::parse(&entry.value);
        // A record that the world has not seen yet is checked on its own.
        let own = InstanceKey::parse(&entry.key).and_then(|_| record.clone().map(drop));
        let error = overview.rejected.get(&entry.key).cloned().or(own.err());
        let warnings = overview.warnings.get(&entry.key).into_iter().flatten();
        Listed {
            warnings: warnings.map(Warning::to_string).collect(),
            error: error.map(|error| error.to_string()),
            record: record.ok(),
            key: entry.key,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    lease: Option<String>,
    /// `?strict`: oddities are rejected; by default they cause warnings.
    strict: Option<String>,
}

impl Options {
    fn is_strict(&self) -> bool {
        self.strict.as_ref().is_some_and(|text| text != "false")
    }
}

/// The response to a registration with oddities.
#[derive(Serialize)]
struct Registered {
    warnings: Vec<String>,
}

/// 204, or 200 with warnings.
pub(super) async fn register(
    State(admin): State<Admin>,
    Path((service, zone, instance)): Path<(String, String, String)>,
    Query(options): Query<Options>,
    peer: Option<Extension<Peer>>,
    body: Bytes,
) -> Result<Response, Problem> {
    let at = key(service, zone, instance)?;
    let (record, unknown) = Instance::parse_warned(&body).map_err(Problem::bad_request)?;
    if let Some(unknown) = unknown.as_ref().filter(|_| options.is_strict()) {
        return Err(Problem::bad_request(unknown));
    }
    if let Some(mesh) = admin.rules.mesh() {
        check_known(&mesh, &at)?;
        mesh.guard.check(&record).map_err(Problem::bad_request)?;
    }
    admin.writing()?;
    let lease = match &options.lease {
        Some(name) => Some(admin.own_lease(name, &leases::caller(peer)).await?),
        None => None,
    };
    let is_new_claim = admin.claim(&at, &record).await?;
    let key = at.store_key();
    let put = admin.store.put(&key, record.to_json().into(), lease);
    admin.write(put).await?;
    let unused = match is_new_claim {
        true => None,
        false => admin.feed.overviews.borrow().rejected.get(&key).cloned(),
    };
    let unused = unused.map(|error| format!("the record is rejected: {error}"));
    let unknown = unknown.map(|warning| warning.to_string());
    let warnings: Vec<String> = unknown.into_iter().chain(unused).collect();
    match warnings.is_empty() {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Ok(Json(Registered { warnings }).into_response()),
    }
}

pub(super) async fn deregister(
    State(admin): State<Admin>,
    Path((service, zone, instance)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    let key = key(service, zone, instance)?.store_key();
    admin.write(admin.store.delete(&key)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn key(service: String, zone: String, instance: String) -> Result<InstanceKey, Problem> {
    let key = InstanceKey {
        service,
        zone,
        instance,
    };
    // Uses the feed's parser, so that an accepted record is also accepted there.
    InstanceKey::parse(&key.store_key()).map_err(Problem::bad_request)
}

impl Admin {
    /// Rejects an address that another zone has registered, since the older record keeps an
    /// address. Returns whether the record claims its address anew: then its key must be as new as
    /// that claim.
    async fn claim(&self, at: &InstanceKey, record: &Instance) -> Result<bool, Problem> {
        let key = at.store_key();
        let address = |instance: &Instance| (instance.address, instance.port);
        let before = self.store.get(&key).await;
        if matches!(before, Err(registry::store::StoreError::Timeout { .. })) {
            // The write would have waited as long.
            self.store_health.wrote(&before);
        }
        let before = before?;
        let old = before.as_ref().map(|entry| Instance::parse(&entry.value));
        if let Some(Ok(old)) = &old
            && address(old) == address(record)
        {
            return Ok(false);
        }
        let prefix = format!("{INSTANCES_PREFIX}{}/", at.service);
        let mesh = self.rules.mesh();
        let is_configured = |zone: &str| {
            let topology = mesh.as_ref().map(|mesh| &mesh.topology);
            topology.is_none_or(|topology| topology.zone_named(zone).is_some())
        };
        for entry in self.store.list(&prefix).await?.entries {
            let Ok(other) = InstanceKey::parse(&entry.key) else {
                continue;
            };
            let claims =
                Instance::parse(&entry.value).is_ok_and(|i| address(&i) == address(record));
            if claims && other.zone != at.zone && is_configured(&other.zone) {
                let detail = format!(
                    "{} of zone {} has this address and port: a zone cannot take over another zone's address; deregister that instance first",
                    entry.key, other.zone
                );
                return Err(Problem::conflict(detail).because("address_of_another_zone"));
            }
        }
        if before.is_some() {
            self.write(self.store.delete(&key)).await?;
        }
        Ok(true)
    }
}

/// A misspelt name would create an instance that never gets a request.
fn check_known(mesh: &Mesh, at: &InstanceKey) -> Result<(), Problem> {
    if mesh.topology.zone_named(&at.zone).is_none() {
        let zones = mesh
            .topology
            .zones()
            .map(|zone| mesh.topology.zone_name(zone));
        let detail = format!(
            "zone {:?} is not configured; configured zones: {}",
            at.zone,
            some_of(zones)
        );
        return Err(Problem::not_found(detail).because("unknown_zone"));
    }
    let mut services = mesh.services.iter().map(|service| service.name.as_str());
    if !services.any(|service| service == at.service) {
        let services = mesh.services.iter().map(|service| service.name.as_str());
        let detail = format!(
            "service {:?} is not configured; configured services: {}",
            at.service,
            some_of(services)
        );
        return Err(Problem::not_found(detail).because("unknown_service"));
    }
    Ok(())
}
