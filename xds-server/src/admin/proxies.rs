//! The connected proxies, and the policies that their filters have applied.

use axum::{Json, extract::State};
use serde::Serialize;
use tokio::time::Instant;

use super::Admin;
use crate::{applied::AppliedStatus, discovery::proxies::ProxyStatus, guests::Details};

/// A proxy that Tidegate configures, or a guest.
#[derive(Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    status: ProxyStatus,
    policy: PolicyStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<Details>,
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
    let policy = |node: &str, wanted: Option<u64>| {
        let (state, applied) = admin.applied.standing(node, wanted, now);
        PolicyStatus {
            state: state.as_str(),
            wanted,
            applied,
        }
    };
    let proxies = admin.proxies.list().into_iter().map(|status| {
        let view = snapshot.as_ref().and_then(|s| s.view(&status.view));
        let wanted = view.map(|view| view.policy_version());
        Listed {
            policy: policy(&status.node, wanted),
            status,
            guest: None,
        }
    });
    let guests = admin.guests.list().into_iter().map(|guest| Listed {
        policy: policy(&guest.node, guest.wanted),
        status: ProxyStatus::of_guest(guest.node, &guest.zone),
        guest: Some(guest.guest),
    });
    Json(proxies.chain(guests).collect())
}
