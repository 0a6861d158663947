//! Zone states and zone directives of operators.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
};
use policy::{Phase, Tier, Why, ZoneDirective, ZoneStanding, ZoneState, standing::SHARE_FULL};
use registry::{
    store::{Compare, Op},
    zone_records::{DIRECTIVES_PREFIX, DirectiveKey, DirectiveRecord, StandingKey, StandingRecord},
};
use serde::{Deserialize, Serialize};

use super::{Admin, Problem, parse_json, some_of};
use crate::{
    conditions::{Code, rules::Accepted},
    feed::Unconfirmed,
    world::Overview,
    world::ZoneStatus,
};

/// The states of all services and zones.
#[derive(Serialize)]
pub(super) struct Zones {
    /// The change of the store that a sanity guard rejects, in words; `POST /v1/confirm` accepts
    /// it.
    implausible: Option<String>,
    /// Instances that are still served although their records are gone.
    kept: usize,
    zones: Vec<Zone>,
}

#[derive(Serialize)]
struct Zone {
    service: String,
    zone: String,
    /// Why it has its share.
    state: &'static str,
    /// Per mille of its full share; 0 while it is out.
    share: u16,
    healthy: u32,
    unhealthy: u32,
    draining: u32,
    flaps: u8,
    /// How long the hold lasts if it stays healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_for_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    intent: Option<DirectiveRecord>,
}

impl Zone {
    fn of(service: &str, zone: &str, status: &ZoneStatus, overview: &Overview) -> Zone {
        let verdict = status.verdict;
        Zone {
            service: service.to_owned(),
            zone: zone.to_owned(),
            state: verdict.why.as_str(),
            share: match verdict.state {
                ZoneState::Up => verdict.share.min(SHARE_FULL),
                ZoneState::Down | ZoneState::Empty => 0,
            },
            healthy: status.counts.healthy,
            unhealthy: status.counts.unhealthy,
            draining: status.draining,
            flaps: status.standing.flaps,
            held_for_ms: match verdict.why {
                Why::Holding { until_ms } => Some(until_ms.saturating_sub(overview.now_ms)),
                _ => None,
            },
            intent: status.intent.clone(),
        }
    }
}

pub(super) async fn list(State(admin): State<Admin>) -> Json<Zones> {
    let overview = Arc::clone(&admin.feed.overviews.borrow());
    let zones = overview.statuses.iter();
    Json(Zones {
        implausible: overview.implausible.as_ref().map(ToString::to_string),
        kept: overview.kept,
        zones: zones
            .map(|((service, zone), status)| Zone::of(service, zone, status, &overview))
            .collect(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// None: every service.
    service: Option<String>,
}

pub(super) async fn intents(
    State(admin): State<Admin>,
) -> Result<Json<BTreeMap<String, serde_json::Value>>, Problem> {
    let listing = admin.store.list(DIRECTIVES_PREFIX).await?;
    let entries = listing.entries.into_iter().map(|entry| {
        let about = entry.key.trim_start_matches(DIRECTIVES_PREFIX).to_owned();
        let value = match DirectiveRecord::parse(&entry.value) {
            Ok(record) => serde_json::json!(record),
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        (about, value)
    });
    Ok(Json(entries.collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantRequest {
    intent: ZoneDirective,
    #[serde(default)]
    reason: String,
    /// Safety rules to override.
    #[serde(default)]
    accept: Vec<Code>,
}

/// Rejects a drain that leaves services without an instance in the region, unless the operator
/// accepts that.
fn check_drain(
    admin: &Admin,
    zone: &str,
    service: Option<&str>,
    request: &WantRequest,
) -> Result<(), Problem> {
    let accepted = Accepted::new(&request.accept, &request.reason);
    let accepted = accepted.map_err(Problem::bad_request)?;
    let left = left_alone(admin, zone, service)?;
    if left.is_empty() {
        return Ok(());
    }
    let services = some_of(left.iter().map(String::as_str));
    let detail = format!(
        "{zone} is the last zone of its region whose instances of {services} are not drained: writes would be rejected, and reads would leave the region"
    );
    let checked = accepted.check(Code::DrainsLastZone, detail);
    checked.map_err(|error| Problem::conflict(&error).because(error.rule.name()))
}

/// The services that no other zone of its region serves.
fn left_alone(admin: &Admin, zone: &str, service: Option<&str>) -> Result<Vec<String>, Problem> {
    let Some(mesh) = admin.rules.mesh() else {
        return Ok(Vec::new());
    };
    let topology = &mesh.topology;
    let siblings = topology.zone_named(zone).map(|at| {
        let others = topology.zones().filter(move |other| *other != at);
        others.filter(move |other| topology.tier(at, *other) != Tier::Remote)
    });
    let siblings: Vec<&str> = siblings
        .into_iter()
        .flatten()
        .map(|other| topology.zone_name(other))
        .collect();
    let overview = Arc::clone(&admin.feed.overviews.borrow());
    let serves = |service: &str, zone: &str| {
        let status = overview.statuses.get(&(service.into(), zone.into()));
        status.is_some_and(|status| status.verdict.state != ZoneState::Empty)
    };
    let matching = matching(admin, zone, service)?.into_iter();
    Ok(matching
        .map(|(at, _)| at.service)
        .filter(|service| serves(service, zone))
        .filter(|service| !siblings.iter().any(|sibling| serves(service, sibling)))
        .collect())
}

pub(super) async fn want(
    State(admin): State<Admin>,
    Path(zone): Path<String>,
    Query(which): Query<Which>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let request: WantRequest = parse_json(&body)?;
    if request.intent == ZoneDirective::Drain {
        check_drain(&admin, &zone, which.service.as_deref(), &request)?;
    }
    let key = intent_key(&admin, zone, which.service)?;
    let record = DirectiveRecord {
        directive: request.intent,
        reason: request.reason,
    };
    let put = admin.store.put(&key, record.to_json().into(), None);
    admin.write(put).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn release(
    State(admin): State<Admin>,
    Path(zone): Path<String>,
    Query(which): Query<Which>,
) -> Result<StatusCode, Problem> {
    let key = intent_key(&admin, zone.clone(), which.service.clone())?;
    if admin.store.get(&key).await?.is_none() {
        let listing = admin.store.list(DIRECTIVES_PREFIX).await?;
        let keys = listing.entries.iter().map(|entry| entry.key.as_str());
        let wanted: Vec<DirectiveKey> = keys
            .filter_map(|key| DirectiveKey::parse(key).ok())
            .collect();
        let detail = nothing_to_release(&zone, which.service.as_deref(), &wanted);
        return Err(Problem::not_found(detail));
    }
    admin.write(admin.store.delete(&key)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Drains of a zone and of its services are released one by one. Lists the existing ones.
fn nothing_to_release(zone: &str, service: Option<&str>, wanted: &[DirectiveKey]) -> String {
    let whole = |service: Option<&str>| match service {
        Some(service) => format!("service {service} in zone {zone}"),
        None => format!("zone {zone} as a whole"),
    };
    let nothing = format!("nothing is drained or pinned of {}", whole(service));
    let of_zone: Vec<&DirectiveKey> = wanted.iter().filter(|key| key.zone == zone).collect();
    let services = of_zone.iter().filter_map(|key| key.service.as_deref());
    let services: Vec<&str> = services.collect();
    let is_wanted = |service| of_zone.iter().any(|key| key.service.as_deref() == service);
    match service {
        None if !services.is_empty() => format!(
            "{nothing}; its services are: `tidegate release {zone} --service {}`",
            services.join("`, `--service ")
        ),
        Some(_) if is_wanted(None) => {
            format!("{nothing}; the whole zone is: `tidegate release {zone}`")
        }
        _ => format!("{nothing}: see the present directives in `tidegate get zones`, under INTENT"),
    }
}

/// A misspelt zone would create a drain without effect.
fn intent_key(admin: &Admin, zone: String, service: Option<String>) -> Result<String, Problem> {
    matching(admin, &zone, service.as_deref())?;
    Ok(DirectiveKey { zone, service }.store_key())
}

/// The configured services in this zone, all or one; never none.
fn matching(
    admin: &Admin,
    zone: &str,
    service: Option<&str>,
) -> Result<Vec<(StandingKey, Arc<ZoneStatus>)>, Problem> {
    let overview = Arc::clone(&admin.feed.overviews.borrow());
    let matching: Vec<_> = overview
        .statuses
        .iter()
        .filter(|((name, at), _)| &**at == zone && service.is_none_or(|s| s == &**name))
        .map(|((name, at), status)| {
            let key = StandingKey {
                service: name.to_string(),
                zone: at.to_string(),
            };
            (key, Arc::clone(status))
        })
        .collect();
    if matching.is_empty() {
        let what = service.map_or(String::new(), |service| format!("service {service:?} in "));
        let problem = format!("{what}zone {zone:?} is not configured: see GET /v1/zones");
        return Err(Problem::not_found(problem));
    }
    Ok(matching)
}

/// Readmits services that are out, as far as their instances are healthy.
pub(super) async fn fail_back(
    State(admin): State<Admin>,
    Path(zone): Path<String>,
    Query(which): Query<Which>,
) -> Result<Json<Vec<String>>, Problem> {
    let mut back = Vec::new();
    for (at, status) in matching(&admin, &zone, which.service.as_deref())? {
        if status.standing.phase != Phase::Out {
            continue;
        }
        let key = at.store_key();
        let unchanged = Compare::ModRevision {
            key: key.clone(),
            is: status.revision,
        };
        // With a manual failback, and without steps, the ramp ends at once.
        let returning = ZoneStanding {
            phase: Phase::Returning { step: 0 },
            ..status.standing
        };
        let put = Op::put(key, StandingRecord::to_json(returning));
        let swap = admin.store.txn(vec![unchanged], vec![put], None);
        if !admin.write(swap).await?.succeeded {
            return Err(Problem::conflict(format!(
                "{} has just changed: check /v1/zones, and retry",
                at.service
            )));
        }
        back.push(at.service);
    }
    Ok(Json(back))
}

pub(super) async fn confirm(State(admin): State<Admin>) -> Result<StatusCode, Problem> {
    let Admin {
        feed,
        store,
        store_health,
        ..
    } = &admin;
    let confirmed = feed.confirm.everywhere(&**store, store_health);
    match confirmed.await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error @ Unconfirmed::NotAsked) => Err(Problem::conflict(error.to_string())),
        Err(error @ Unconfirmed::NotShared(_)) => Err(Problem::unavailable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_that_finds_nothing_says_what_can_be_released() {
        let key = |zone: &str, service: Option<&str>| DirectiveKey {
            zone: zone.to_owned(),
            service: service.map(str::to_owned),
        };
        let wanted = [
            key("a", Some("orders")),
            key("a", Some("users")),
            key("b", None),
        ];
        for (zone, service, expected) in [
            (
                "a",
                None,
                "zone a as a whole; its services are: `tidegate release a --service orders`, `--service users`",
            ),
            (
                "b",
                Some("orders"),
                "service orders in zone b; the whole zone is: `tidegate release b`",
            ),
            ("c", None, "zone c as a whole: see the present directives"),
            (
                "a",
                Some("web"),
                "service web in zone a: see the present directives",
            ),
        ] {
            let told = nothing_to_release(zone, service, &wanted);
            assert!(told.contains(expected), "{told}");
        }
    }
}
