//! What speaks against a move of authority, before it is begun. Each objection has a code, and an operator who wants the move all
//! the same names it back.

use std::collections::BTreeSet;

use super::{Admin, Problem, cells::same};
use crate::authority::CellStatus;

/// The new owners cannot serve what the present ones serve.
pub(super) const UNSERVED: &str = "TG3101";
/// The new owners have no proxy that could hold grants.
pub(super) const NO_PROXY: &str = "TG3102";
/// No replica speaks for a new owner.
pub(super) const SILENT: &str = "TG3103";
/// The cell belongs to the new owners already.
pub(super) const SAME_OWNERS: &str = "TG3104";

const CODES: [&str; 4] = [UNSERVED, NO_PROXY, SILENT, SAME_OWNERS];

/// One thing that speaks against a move.
pub(super) struct Objection {
    pub(super) code: &'static str,
    pub(super) detail: String,
}

/// Refuses codes that no objection has.
pub(super) fn check_accepted(accepted: &BTreeSet<String>) -> Result<(), Problem> {
    let known = |code: &&String| CODES.contains(&code.as_str());
    match accepted.iter().find(|code| !known(code)) {
        None => Ok(()),
        Some(unknown) => Err(Problem::bad_request(format!(
            "accept: nothing has the code {unknown:?}; these can be accepted: {}",
            CODES.join(", ")
        ))),
    }
}

/// All of them, with what to do.
pub(super) fn in_words(objections: &[Objection]) -> String {
    let each = objections
        .iter()
        .map(|o| format!("{}: {}", o.code, o.detail));
    let codes: Vec<&str> = objections.iter().map(|objection| objection.code).collect();
    format!(
        "{}. To move it all the same: --accept {}",
        each.collect::<Vec<_>>().join("; "),
        codes.join(",")
    )
}

/// What speaks against a move of the cell `status` to the zones `to`.
pub(super) fn objections(
    admin: &Admin,
    status: &CellStatus,
    to: &[String],
    forced: bool,
) -> Vec<Objection> {
    let mut found = Vec::new();
    let mut object = |code, detail| found.push(Objection { code, detail });
    let settled = status.state.is_some() && status.moving.is_none();
    if same(&status.owners, to) && settled {
        // Without force there is nothing to do, which the move itself says.
        if forced {
            object(
                SAME_OWNERS,
                format!(
                    "cell {} belongs to {} already: an override only interrupts its writes until what is in flight has settled",
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
                SILENT,
                format!("no replica speaks for zone {zone}: nobody could grant writes there"),
            );
        } else if speakers.proxies == Some(0) {
            object(
                NO_PROXY,
                format!(
                    "no proxy of zone {zone} is connected to its control plane to hold grants: all writes would be refused there"
                ),
            );
        }
    }
    let now = unserved(admin, &status.owners);
    let then = unserved(admin, to).into_iter();
    let lost: Vec<String> = then.filter(|service| !now.contains(service)).collect();
    if !lost.is_empty() {
        object(
            UNSERVED,
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

/// The fenced services that have nobody to serve them in any of `zones`.
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
