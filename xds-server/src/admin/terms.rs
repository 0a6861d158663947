//! The terms that all replicas have agreed on, and their changes.

use axum::{Json, body::Bytes, extract::State};
use policy::fence::Agreement;
use registry::{
    store::{Compare, Entry, Op},
    terms::{AgreedRecord, TERMS_KEY, TermsRecord},
};
use serde::Deserialize;

use super::{Admin, Problem, parse_json};
use crate::authority::TermsStatus;

pub(super) async fn show(State(admin): State<Admin>) -> Json<TermsStatus> {
    Json(TermsStatus::clone(&admin.agreements.status()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeRequest {
    next: AgreedRecord,
    /// The change may stop all fenced writes for a while.
    #[serde(default)]
    stop_writes: bool,
}

/// Begins a change. [`show`] reports its progress.
pub(super) async fn change(
    State(admin): State<Admin>,
    body: Bytes,
) -> Result<Json<TermsRecord>, Problem> {
    let request: ChangeRequest = parse_json(&body)?;
    let next = request.next.read().map_err(Problem::bad_request)?;
    let (entry, agreement) = agreed(&admin).await?;
    if agreement.next.is_some() {
        return Err(Problem::conflict(
            "another change of the terms is under way: see `tidegate terms`, or abort it with `tidegate terms cancel`",
        ));
    }
    if agreement.current.is_kept_by(&next) {
        return Err(Problem::conflict("these are the agreed terms already"));
    }
    let widened = agreement.widened(next);
    if widened.is_stopped() && !request.stop_writes {
        return Err(Problem::conflict(
            "this change moves writes from one cell to another (`shards` or `cell_key`), so no fenced write is admitted until all earlier grants and writes have ended. Confirm it with `--stop-writes`",
        ));
    }
    replace(&admin, &entry, &widened).await
}

/// Aborts a change.
pub(super) async fn cancel(State(admin): State<Admin>) -> Result<Json<TermsRecord>, Problem> {
    let (entry, agreement) = agreed(&admin).await?;
    if agreement.next.is_none() {
        return Err(Problem::conflict("no change of the terms is under way"));
    }
    replace(&admin, &entry, &agreement.back()).await
}

/// The record in the store.
async fn agreed(admin: &Admin) -> Result<(Entry, Agreement), Problem> {
    let entry = admin.store.get(TERMS_KEY).await?.ok_or_else(|| {
        Problem::conflict(
            "no terms are agreed yet: the first replica with a session records them. Without `authority` in the configuration there are none",
        )
    })?;
    let agreement = TermsRecord::parse(&entry.value).map_err(Problem::conflict)?;
    Ok((entry, agreement))
}

async fn replace(
    admin: &Admin,
    entry: &Entry,
    agreement: &Agreement,
) -> Result<Json<TermsRecord>, Problem> {
    let record = TermsRecord::from(agreement);
    let put = Op::put(TERMS_KEY, record.to_json());
    let unchanged = vec![Compare::unchanged(entry)];
    let made = admin.write(admin.store.txn(unchanged, vec![put], None));
    match made.await?.succeeded {
        true => Ok(Json(record)),
        false => Err(Problem::conflict(
            "the terms have just been changed: check them, and retry",
        )),
    }
}
