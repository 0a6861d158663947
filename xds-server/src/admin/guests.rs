//! Guests that will not come back.

use axum::{body::Bytes, extract::State, http::StatusCode};
use registry::guest_record::{GUESTS_PREFIX, GuestKey};
use serde::Deserialize;

use super::{Admin, Problem, parse_json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forget {
    zone: String,
    guest: String,
}

/// Deletes the lists of a guest. One that is connected, or connects, brings them again.
pub(super) async fn forget(State(admin): State<Admin>, body: Bytes) -> Result<StatusCode, Problem> {
    let Forget { zone, guest } = parse_json(&body)?;
    let key = GuestKey { zone, guest };
    let at = key.store_key();
    if admin.store.get(&at).await?.is_none() {
        let listing = admin.store.list(GUESTS_PREFIX).await?;
        let all = listing.entries.iter();
        let all = all.filter_map(|entry| GuestKey::parse(&entry.key));
        let all: Vec<_> = all
            .map(|key| format!("{} of {}", key.guest, key.zone))
            .collect();
        let known = match all.is_empty() {
            true => "no guest has any".to_owned(),
            false => format!("these have some: {}", all.join(", ")),
        };
        return Err(Problem::not_found(format!(
            "the guest {} of {} has no lists: {known}",
            key.guest, key.zone
        )));
    }
    admin.write(admin.store.delete(&at)).await?;
    Ok(StatusCode::NO_CONTENT)
}
