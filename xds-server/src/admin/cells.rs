//! Endpoints of write authority and its moves.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
};
use policy::fence::{Cause, Key, MoveRejected, Name};
use registry::authority::{AuthorityRecord, EPOCH_MAX, StateName, store_key};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    Admin, Problem,
    objections::{objections, unserved},
    parse_json,
};
use crate::{
    authority::{CellStatus, Gone, MoveRequest, Operation},
    conditions::{Code, rules::Accepted},
    store_health::{Level, Status},
};

/// How long the handler waits for a move before it answers that the move is still under way.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the store may take to return the outcome of such a move.
const READ_PATIENCE: Duration = Duration::from_secs(2);
/// The default hold of a cell that an operator moves to a zone which can serve fewer services.
const HOLD_OF_WORSE: Duration = Duration::from_secs(600);
/// The longest hold.
const HOLD_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<CellStatus>> {
    let stale = stale(admin.store_health.status());
    let mut cells = admin.authorities.cells().to_vec();
    for cell in &mut cells {
        cell.stale.clone_from(&stale);
    }
    Json(cells)
}

/// Why the shown cells are stale; none while the store confirms the known state.
fn stale(store_health: Status) -> Option<String> {
    let old = store_health.stale || store_health.level != Level::Normal;
    old.then_some(match store_health.reason.is_empty() {
        true => "the store has not confirmed it".to_owned(),
        false => store_health.reason,
    })
}

pub(super) async fn operations(State(admin): State<Admin>) -> Json<Vec<Operation>> {
    Json(admin.authorities.operations().to_vec())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveBody {
    to: Vec<String>,
    #[serde(default)]
    reason: String,
    /// The lower bound of the new epoch.
    epoch: Option<u64>,
    /// For how long the cell then stays although other zones serve it better.
    hold_ms: Option<u64>,
    /// The safety rules to override.
    #[serde(default)]
    accept: Vec<Code>,
}

/// The outcome of a move.
#[derive(Serialize)]
pub(super) struct Moved {
    cell: String,
    epoch: u64,
    owners: Vec<String>,
    state: Option<StateName>,
    /// The duration of the move.
    took_ms: u64,
    /// Fenced services that the new owners cannot serve.
    unserved: Vec<String>,
    /// For how long it stays there although other zones serve it better.
    hold_ms: u64,
    /// Warnings for the operator.
    warnings: Vec<String>,
}

pub(super) async fn shift(
    State(admin): State<Admin>,
    Path(cell): Path<String>,
    body: Bytes,
) -> Result<Json<Moved>, Problem> {
    begin(&admin, cell, &body, Cause::Operator).await
}

/// Ends the owners' sessions without their consent. Writes that they may still have under way are
/// waited for.
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
    let request: MoveBody = parse_json(body)?;
    let forced = cause == Cause::Override;
    if forced && request.reason.trim().is_empty() {
        return Err(Problem::bad_request(
            "reason: state the reason: an override is recorded, with its reason",
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
    let accepted = Accepted::new(&request.accept, &request.reason);
    let accepted = accepted.map_err(Problem::bad_request)?;
    let hold_highest = HOLD_MAX.as_millis() as u64;
    if request.hold_ms.is_some_and(|hold| hold > hold_highest) {
        return Err(Problem::bad_request(format!(
            "hold_ms: at most {hold_highest}"
        )));
    }
    let mut cells = admin.authorities.subscribe();
    let find = |cells: &[CellStatus]| cells.iter().find(|status| status.cell == cell).cloned();
    let before = find(&cells.borrow_and_update())
        .ok_or_else(|| Problem::not_found(format!("no cell {cell:?}: GET /v1/cells lists them")))?;
    // Above every epoch that any replica remembers, in case the remaining store has lost some.
    let other_store = before.state.is_none();
    let epoch_min = request.epoch.unwrap_or(match other_store {
        true => crate::wall_clock::unix_ms(),
        false => 0,
    });
    let objections = objections(admin, &before, &request.to, forced);
    let refused = objections.iter().filter_map(|objection| {
        let checked = accepted.check(objection.rule, objection.detail.as_str());
        checked.err().map(|refusal| refusal.to_string())
    });
    let refused: Vec<String> = refused.collect();
    if !refused.is_empty() {
        return Err(Problem::conflict(refused.join("\n")));
    }
    let worse = (objections.iter()).any(|objection| objection.rule == Code::NoInstancesThere);
    let hold_ms = request.hold_ms.unwrap_or(match worse {
        true => HOLD_OF_WORSE.as_millis() as u64,
        false => 0,
    });
    let wish = MoveRequest {
        cell: Name::from(cell.as_str()),
        to: request
            .to
            .iter()
            .map(|zone| Name::from(zone.as_str()))
            .collect(),
        cause,
        reason: Name::from(request.reason),
        epoch_min,
        hold: hold_ms.saturating_mul(1_000),
        accepted: request.accept.contains(&Code::AlreadyOwner),
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
                    "the move was aborted: cell {cell} still belongs to {}; GET /v1/operations has details",
                    status.owners.join(", ")
                )));
            }
        }
    })
    .await;
    let status = match outcome {
        Ok(status) => Landed::from(status?),
        // This replica may have received no events for a while: read the store.
        Err(_) => read(admin, &cell, &before, &request.to).await?,
    };
    Ok(Json(Moved {
        unserved: unserved(admin, &status.owners),
        warnings: objections
            .into_iter()
            .map(|objection| objection.detail)
            .collect(),
        hold_ms,
        cell,
        epoch: status.epoch,
        owners: status.owners,
        state: status.state,
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

/// How far a move has got.
struct Landed {
    epoch: u64,
    owners: Vec<String>,
    state: Option<StateName>,
}

impl From<CellStatus> for Landed {
    fn from(status: CellStatus) -> Landed {
        Landed {
            epoch: status.epoch,
            owners: status.owners,
            state: status.state,
        }
    }
}

/// Reads the store's record of a move whose end this replica has not seen.
async fn read(
    admin: &Admin,
    cell: &str,
    before: &CellStatus,
    to: &[String],
) -> Result<Landed, Problem> {
    let key = store_key(&Key::Authority(Name::from(cell)));
    let asked = timeout(READ_PATIENCE, admin.store.get(&key)).await;
    let entry = asked.ok().and_then(Result::ok).flatten();
    let authority = entry.and_then(|entry| AuthorityRecord::parse(&entry.value).ok());
    let record = authority.map(|authority| AuthorityRecord::from(&authority));
    landed(cell, record, before.epoch, to)
}

/// How far a move to `to` has got by the store's record; none if the record does not show it. It
/// began after the epoch `before`.
fn landed(
    cell: &str,
    record: Option<AuthorityRecord>,
    before: u64,
    to: &[String],
) -> Result<Landed, Problem> {
    let timed_out = |detail: String| Problem::new(StatusCode::GATEWAY_TIMEOUT, detail);
    let Some(record) = record else {
        return Err(timed_out(format!(
            "the outcome is unknown: within {PATIENCE:?} this replica has not learned the move's outcome from the store, and the store does not answer now; see `tidegate get cells` on another replica"
        )));
    };
    let there = record.epoch > before && same(&record.owners, to);
    match &record.moving {
        None if there => Ok(Landed {
            epoch: record.epoch,
            owners: record.owners,
            state: Some(record.state),
        }),
        Some(moving) if same(&moving.to, to) => Err(timed_out(format!(
            "the move is still under way: after {PATIENCE:?} it waits until all grants have expired; see `tidegate get cells`, or force it by an override"
        ))),
        Some(moving) => Err(Problem::conflict(format!(
            "another move is under way: cell {cell} moves to {}",
            moving.to.join(", ")
        ))),
        None => Err(Problem::conflict(format!(
            "the move was not begun, or was aborted: in the store cell {cell} is with {}, epoch {}; this replica may lag behind the store, use another replica",
            record.owners.join(", "),
            record.epoch
        ))),
    }
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
        return Err(Problem::bad_request("to: a zone is repeated"));
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
            "to: several owners must be zones of one region",
        )),
    }
}

pub(super) fn same(a: &[String], b: &[String]) -> bool {
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

impl From<MoveRejected> for Problem {
    fn from(unwilling: MoveRejected) -> Problem {
        let status = match unwilling {
            MoveRejected::NoCell => StatusCode::NOT_FOUND,
            MoveRejected::NoSession | MoveRejected::TermsDiffer => StatusCode::SERVICE_UNAVAILABLE,
            MoveRejected::SameOwners
            | MoveRejected::Moving
            | MoveRejected::TargetSilent(_)
            | MoveRejected::OtherStore => StatusCode::CONFLICT,
        };
        match unwilling {
            MoveRejected::SameOwners => {
                let rule = Code::AlreadyOwner;
                let detail = format!(
                    "{rule} {}: {unwilling}. {}",
                    rule.name(),
                    rule.entry().what_to_do
                );
                Problem::new(status, detail).because(rule.name())
            }
            _ => Problem::new(status, unwilling),
        }
    }
}

#[cfg(test)]
mod tests {
    use policy::fence::Cause;
    use registry::{
        authority::MoveRecord,
        store::{RefusedCause, StoreError},
    };

    use super::*;
    use crate::{metrics::Metrics, store_health::StoreHealth};

    #[test]
    fn a_move_to_the_present_owner_is_refused_with_a_code() {
        let problem = Problem::from(MoveRejected::SameOwners);
        assert_eq!(problem.status, StatusCode::CONFLICT);
        assert!(
            problem.detail.starts_with("TG7002 already_owner: "),
            "{}",
            problem.detail
        );
    }

    fn record(epoch: u64, owner: &str, to: Option<&str>) -> AuthorityRecord {
        AuthorityRecord {
            store: "7".to_owned(),
            epoch,
            owners: vec![owner.to_owned()],
            standby: vec![],
            state: match to {
                Some(_) => StateName::Fencing,
                None => StateName::Active,
            },
            moving: to.map(|to| MoveRecord {
                id: "a move".to_owned(),
                to: vec![to.to_owned()],
                cause: Cause::Operator,
                reason: String::new(),
                epoch_min: 0,
                hold_ms: 0,
            }),
            unsettled: vec![],
            hold_ms: 0,
        }
    }

    #[tokio::test]
    async fn cells_are_old_while_the_store_does_not_confirm_them() {
        let store_health = StoreHealth::new(Metrics::default());
        store_health.loaded(Duration::from_secs(5));
        assert!(stale(store_health.status()).is_some(), "it comes from disk");
        store_health.confirmed();
        assert_eq!(stale(store_health.status()), None);
        store_health.unread(&StoreError::Unreachable {
            detail: "connection refused".to_owned(),
        });
        let told = stale(store_health.status()).expect("the store is away");
        assert!(told.contains("connection refused"), "{told}");
        store_health.confirmed();
        let full = StoreError::Refused {
            cause: RefusedCause::Full,
            detail: "mvcc: database space exceeded".to_owned(),
        };
        store_health.wrote::<()>(&Err(full));
        let told = stale(store_health.status()).expect("nothing is written");
        assert!(told.contains("database space exceeded"), "{told}");
    }

    #[test]
    fn a_replica_that_heard_nothing_tells_what_the_store_says_of_a_move() {
        let to = ["b".to_owned()];
        let told = |record| {
            landed("main", record, 3, &to)
                .map(|landed| landed.epoch)
                .map_err(|problem| problem.detail)
        };
        assert_eq!(told(Some(record(4, "b", None))), Ok(4), "it has happened");
        let cases = [
            (None, "the outcome is unknown"),
            (
                Some(record(3, "a", Some("b"))),
                "the move is still under way",
            ),
            (Some(record(3, "a", Some("c"))), "another move is under way"),
            (Some(record(3, "a", None)), "was not begun"),
            // Other moves have followed.
            (Some(record(5, "c", None)), "with c, epoch 5"),
            // An older record of the same owners.
            (Some(record(3, "b", None)), "was not begun"),
        ];
        for (record, expected) in cases {
            let told = told(record).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
    }
}
