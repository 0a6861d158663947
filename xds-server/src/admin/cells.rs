//! Who may write, and moving that.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
};
use policy::fence::{Cause, Name, Unwilling};
use registry::authority::{EPOCH_MAX, StateName};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Admin, Problem, parse_json};
use crate::authority::{CellStatus, Gone, Operation, Wish};

/// How long a move may take before the answer says that it is still under way.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<CellStatus>> {
    Json(admin.authorities.cells().to_vec())
}

pub(super) async fn operations(State(admin): State<Admin>) -> Json<Vec<Operation>> {
    Json(admin.authorities.operations().to_vec())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveRequest {
    to: Vec<String>,
    #[serde(default)]
    reason: String,
    /// The new epoch is at least this.
    epoch: Option<u64>,
}

/// What became of a move.
#[derive(Serialize)]
pub(super) struct Moved {
    cell: String,
    epoch: u64,
    owners: Vec<String>,
    state: Option<StateName>,
    /// How long it took.
    took_ms: u64,
    /// Fenced services that the new owners cannot serve.
    unserved: Vec<String>,
}

pub(super) async fn shift(
    State(admin): State<Admin>,
    Path(cell): Path<String>,
    body: Bytes,
) -> Result<Json<Moved>, Problem> {
    begin(&admin, cell, &body, Cause::Operator).await
}

/// Ends what the owners hold, whatever they say. What they still may have under way is waited for.
pub(super) async fn force(
    State(admin): State<Admin>,
    Path(cell): Path<String>,
    body: Bytes,
) -> Result<Json<Moved>, Problem> {
    begin(&admin, cell, &body, Cause::Override).await
}

async fn begin(
    admin: &Admin,
    cell: String,
    body: &[u8],
    cause: Cause,
) -> Result<Json<Moved>, Problem> {
    let request: MoveRequest = parse_json(body)?;
    let forced = cause == Cause::Override;
    if forced && request.reason.trim().is_empty() {
        return Err(Problem::bad_request(
            "reason: say why, for those who look later: an override is recorded",
        ));
    }
    if request.epoch.is_some() && !forced {
        return Err(Problem::bad_request("epoch: only an override can raise it"));
    }
    let highest = EPOCH_MAX / 2;
    if request.epoch.is_some_and(|epoch| epoch > highest) {
        return Err(Problem::bad_request(format!(
            "epoch: at most {highest}, so that there are always higher ones"
        )));
    }
    check_zones(admin, &request.to)?;
    admin.writing()?;
    let mut cells = admin.authorities.subscribe();
    let find = |cells: &[CellStatus]| cells.iter().find(|status| status.cell == cell).cloned();
    let before = find(&cells.borrow_and_update())
        .ok_or_else(|| Problem::not_found(format!("no cell {cell:?}: GET /v1/cells lists them")))?;
    // Above every epoch that anybody can remember, where the store that is left remembers less.
    let other_store = before.state.is_none();
    let epoch_min = request.epoch.unwrap_or(match other_store {
        true => crate::authority::unix_ms(),
        false => 0,
    });
    let wish = Wish {
        cell: Name::from(cell.as_str()),
        to: request
            .to
            .iter()
            .map(|zone| Name::from(zone.as_str()))
            .collect(),
        cause,
        reason: Name::from(request.reason),
        epoch_min,
    };
    let begun = tokio::time::Instant::now();
    admin.authorities.wish(wish).await??;
    let moved = |status: &CellStatus| {
        status.epoch > before.epoch && same(&status.owners, &request.to) && status.moving.is_none()
    };
    let mut fenced = false;
    let outcome = timeout(PATIENCE, async {
        loop {
            if cells.changed().await.is_err() {
                return Err(Problem::from(Gone));
            }
            let Some(status) = find(&cells.borrow_and_update()) else {
                continue;
            };
            if moved(&status) {
                return Ok(status);
            }
            fenced |= status.moving.is_some();
            if fenced && status.moving.is_none() {
                return Err(Problem::conflict(format!(
                    "the move was given up: cell {cell} belongs to {} as before; GET /v1/operations tells more",
                    status.owners.join(", ")
                )));
            }
        }
    })
    .await;
    let status = outcome.map_err(|_| {
        let detail = format!(
            "the move goes on: after {PATIENCE:?} it waits for whoever holds permission to write; `tidegate cells` shows it, an override ends it"
        );
        Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)
    })??;
    let unserved = unserved(admin, &status.owners);
    Ok(Json(Moved {
        unserved,
        cell,
        epoch: status.epoch,
        owners: status.owners,
        state: status.state,
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

fn check_zones(admin: &Admin, zones: &[String]) -> Result<(), Problem> {
    if zones.is_empty() {
        return Err(Problem::bad_request("to: name at least one zone"));
    }
    for zone in zones {
        admin.view(zone)?;
    }
    let mut distinct = zones.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() != zones.len() {
        return Err(Problem::bad_request("to: a zone stands twice"));
    }
    let view = admin.view(&zones[0])?;
    let policy::Policy::Serving(rules) = &**view.policy() else {
        return Ok(());
    };
    let topology = rules.topology();
    let region = |zone: &String| {
        topology
            .zone_named(zone)
            .map(|zone| topology.region_of(zone))
    };
    match zones.iter().all(|zone| region(zone) == region(&zones[0])) {
        true => Ok(()),
        false => Err(Problem::bad_request(
            "to: several owners have to be zones of one region",
        )),
    }
}

/// The fenced services that have nobody to serve them in any of `zones`.
fn unserved(admin: &Admin, zones: &[String]) -> Vec<String> {
    let Some(view) = zones.first().and_then(|zone| admin.view(zone).ok()) else {
        return Vec::new();
    };
    let policy::Policy::Serving(rules) = &**view.policy() else {
        return Vec::new();
    };
    let overview = admin.feed.overviews.borrow();
    let serves = |service: &str| {
        zones.iter().any(|zone| {
            let status = overview
                .statuses
                .get(&(service.into(), zone.as_str().into()));
            status.is_some_and(|status| status.verdict.state == policy::ZoneState::Up)
        })
    };
    let services = rules.services().iter();
    let fenced = services.filter(|service| service.writes != policy::Writes::Free);
    let names = fenced.map(|service| service.name.clone());
    names.filter(|service| !serves(service)).collect()
}

fn same(a: &[String], b: &[String]) -> bool {
    let sorted = |zones: &[String]| {
        let mut zones = zones.to_vec();
        zones.sort_unstable();
        zones
    };
    sorted(a) == sorted(b)
}

impl From<Gone> for Problem {
    fn from(gone: Gone) -> Problem {
        Problem::unavailable(gone)
    }
}

impl From<Unwilling> for Problem {
    fn from(unwilling: Unwilling) -> Problem {
        let status = match unwilling {
            Unwilling::NoCell => StatusCode::NOT_FOUND,
            Unwilling::NoSession => StatusCode::SERVICE_UNAVAILABLE,
            Unwilling::SameOwners
            | Unwilling::Moving
            | Unwilling::TargetSilent(_)
            | Unwilling::OtherStore => StatusCode::CONFLICT,
        };
        Problem::new(status, unwilling)
    }
}
