//! Finds what stands in the way of a guest in the configuration of an Envoy.
//!
//! Pure: a document comes in, findings go out; no file, no socket, no clock. The document is
//! somebody else's, so a field of an unknown shape counts as absent, and nothing panics.

mod chain;
mod clusters;
mod finding;
mod guests;
mod json;
mod reach;
mod routes;
#[cfg(test)]
mod tests;
mod view;
mod ways;

use policy::guest::Mode;
use serde_json::Value;

use self::{guests::Guest, view::View};

pub(super) use super::mesh::Mesh as Known;
pub(super) use finding::{Finding, Problem, Severity};
pub(super) use view::NotEnvoy;

/// The findings about a bootstrap or a `/config_dump`, by place.
///
/// # Errors
///
/// [`NotEnvoy`] for any other document.
pub(super) fn inspect(document: &Value, known: &Known) -> Result<Vec<Finding>, NotEnvoy> {
    let view = View::of(document)?;
    let mut findings: Vec<Finding> = vec![];
    let mut found = |problem: Problem, place: &str| {
        let place = place.to_owned();
        let finding = Finding { problem, place };
        // Two managers may share a table.
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    };
    let guests: Vec<Option<Guest>> = view.managers.iter().map(guests::of).collect();
    for kind in &view.absent {
        let place = match *kind {
            "listeners" => "dynamic_resources.lds_config",
            _ => "dynamic_resources.cds_config",
        };
        found(Problem::Incomplete { kind }, place);
    }
    if guests.iter().all(Option::is_none) {
        if !view.absent.contains(&"listeners") {
            found(Problem::NoGuest, "listeners");
        }
        return Ok(findings);
    }
    let mut first: Option<&Guest> = None;
    for (manager, guest) in view.managers.iter().zip(&guests) {
        let Some(guest) = guest else { continue };
        let net = chain::net(manager);
        guests::check(manager, guest, net.is_some(), &view, known, &mut found);
        chain::check(manager, guest.index, net, &mut found);
        chain::normalization(manager, &mut found);
        routes::check(manager, guest, net, known, &mut found);
        if let Some(what) = &manager.unread {
            let what = what.clone();
            found(Problem::RoutesUnread { what }, &manager.place);
        }
        if let Ok(config) = &guest.config {
            clusters::control_plane(&config.control_plane, &view, &mut found);
        }
        if guest
            .config
            .as_ref()
            .is_ok_and(|config| config.guest.mode == Mode::Route)
            && routes::names_clusters(manager)
            && let Some(cluster) = clusters::unknown(guest, &view, known)
        {
            found(Problem::ClusterUnknown { cluster }, &manager.place);
        }
        if first.is_some_and(|first| differ(first, guest)) {
            found(Problem::GuestsDiffer, &manager.place);
        }
        first = first.or(Some(guest));
    }
    ways::check(&view, &guests, known, &mut found);
    Ok(findings)
}

/// Whether two guests follow another policy.
fn differ(a: &Guest, b: &Guest) -> bool {
    match (&a.config, &b.config) {
        (Ok(a), Ok(b)) => (&a.control_plane, &a.zone) != (&b.control_plane, &b.zone),
        _ => false,
    }
}
