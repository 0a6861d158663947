//! The connected proxies, and what their filters have applied.

use axum::{Json, extract::State};
use serde::Serialize;
use tokio::time::Instant;

use super::Admin;
use crate::{ads::proxies::ProxyStatus, applied::AppliedStatus};

#[derive(Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    status: ProxyStatus,
    policy: PolicyStatus,
}

/// How far the filter is.
#[derive(Serialize)]
struct PolicyStatus {
    /// `applied`, `behind`, `refused`, or `unknown` where the filter has said nothing for five minutes, or not to this replica.
    state: &'static str,
    /// The version that the proxy is to have; none where its zone is gone.
    wanted: Option<u64>,
    applied: Option<AppliedStatus>,
}

impl PolicyStatus {
    fn of(wanted: Option<u64>, applied: Option<AppliedStatus>) -> PolicyStatus {
        let state = match (&applied, wanted) {
            (Some(applied), Some(wanted)) if applied.is_at(wanted) => "applied",
            (Some(applied), _) if applied.refused.is_some() => "refused",
            (Some(_), _) => "behind",
            (None, _) => "unknown",
        };
        PolicyStatus {
            state,
            wanted,
            applied,
        }
    }
}

pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<Listed>> {
    let now = Instant::now();
    let snapshot = admin.feed.snapshots.borrow().clone();
    let proxies = admin.proxies.list().into_iter();
    let listed = proxies.map(|status| {
        let view = snapshot.as_ref().and_then(|s| s.view(&status.view));
        let wanted = view.map(|view| view.policy_version());
        Listed {
            policy: PolicyStatus::of(wanted, admin.applied.of(&status.node, now)),
            status,
        }
    });
    Json(listed.collect())
}
