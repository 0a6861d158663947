//! The objections to a move of authority, collected before it begins. Each is a safety rule, which
//! an operator can override by its code.

use super::{Admin, cells::same};
use crate::{authority::CellStatus, conditions::Code};

/// One objection to a move.
pub(super) struct Objection {
    pub(super) rule: Code,
    pub(super) detail: String,
}

/// The objections to a move of the cell `status` to the zones `to`.
pub(super) fn objections(
    admin: &Admin,
    status: &CellStatus,
    to: &[String],
    forced: bool,
) -> Vec<Objection> {
    let mut found = Vec::new();
    let mut object = |rule, detail| found.push(Objection { rule, detail });
    let settled = status.state.is_some() && status.moving.is_none();
    if same(&status.owners, to) && settled {
        // Without force there is nothing to do, which the move itself reports.
        if forced {
            object(
                Code::AlreadyOwner,
                format!(
                    "cell {} belongs to {} already: an override would only interrupt its writes until the writes in flight have settled",
                    status.cell,
                    to.join(", ")
                ),
            );
        }
        return found;
    }
    for zone in to {
        let speakers = status.zones.get(zone).copied().unwrap_or_default();
        if speakers.replicas == 0 && forced {
            object(
                Code::NoReplicaThere,
                format!("no replica serves zone {zone}, so no replica could grant writes there"),
            );
        } else if speakers.proxies == Some(0) {
            object(
                Code::NoProxiesThere,
                format!(
                    "no proxy of zone {zone} is connected to its control plane to hold grants: all writes would be rejected there"
                ),
            );
        }
    }
    let now = unserved(admin, &status.owners);
    let then = unserved(admin, to).into_iter();
    let lost: Vec<String> = then.filter(|service| !now.contains(service)).collect();
    if !lost.is_empty() {
        object(
            Code::NoInstancesThere,
            format!(
                "{} has no healthy instance of {}, which {} serves",
                to.join(", "),
                lost.join(", "),
                status.owners.join(", ")
            ),
        );
    }
    found
}

/// The fenced services without a usable instance in all of `zones`.
pub(super) fn unserved(admin: &Admin, zones: &[String]) -> Vec<String> {
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
