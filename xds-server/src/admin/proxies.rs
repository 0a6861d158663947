//! The connected proxies, and the policies that their filters have applied.

use axum::{Json, extract::State};
use serde::Serialize;
use tokio::time::Instant;

use super::Admin;
use crate::{applied::AppliedStatus, discovery::proxies::ProxyStatus};

#[derive(Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    status: ProxyStatus,
    policy: PolicyStatus,
}

/// The progress of the filter.
#[derive(Serialize)]
struct PolicyStatus {
    /// `applied`, `behind`, `refused`, or `unknown` if the filter has sent no report for five
    /// minutes, or none to this replica.
    state: &'static str,
    /// The version that the proxy should have; none if its zone is gone.
    wanted: Option<u64>,
    applied: Option<AppliedStatus>,
}

pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<Listed>> {
    let now = Instant::now();
    let snapshot = admin.feed.snapshots.borrow().clone();
    let proxies = admin.proxies.list().into_iter();
    let listed = proxies.map(|status| {
        let view = snapshot.as_ref().and_then(|s| s.view(&status.view));
        let wanted = view.map(|view| view.policy_version());
        let (state, applied) = admin.applied.standing(&status.node, wanted, now);
        Listed {
            policy: PolicyStatus {
                state: state.as_str(),
                wanted,
                applied,
            },
            status,
        }
    });
    Json(listed.collect())
}
