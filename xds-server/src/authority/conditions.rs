//! Causes of rejected writes, as conditions: grants that cannot be given, cells without a grantor,
//! moves that do not end.

use std::time::Duration;

use policy::fence::Terms;
use registry::authority::StateName;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Agreements, Authorities, CellStatus, Holding};
use crate::{
    conditions::{Code, Found, Lasting},
    metrics::Metrics,
    store_health::{Level, StoreHealth},
};

/// Between two checks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between two checks of a replica that joins.
const JOINING_INTERVAL: Duration = Duration::from_millis(50);
/// How long a replica that joins is not ready. Without a store it serves the last good state, and
/// proxies need it.
const JOINING_MAX: Duration = Duration::from_secs(5);
/// Slack on top of the terms' times: steps are taken on ticks, by busy machines.
const SLACK: Duration = Duration::from_secs(5);

/// The conditions that this module sets.
const CODES: &[Code] = &[
    Code::NoSession,
    Code::NotRegistered,
    Code::StoreOfAnotherId,
    Code::CellNotRecorded,
    Code::CellWithoutOwner,
    Code::SettlingTooLong,
    Code::FencingTooLong,
    Code::TargetWithoutProxies,
    Code::OwnerWithoutProxies,
    Code::OwnerWithoutInstances,
];

/// Checks periodically. Ends with the engine. From the call on the replica is not ready, until it has
/// joined.
pub(super) fn watch(
    authorities: Authorities,
    store_health: StoreHealth,
    agreements: Agreements,
    configured: Terms,
    metrics: Metrics,
) -> impl Future<Output = ()> {
    metrics.conditions.raise(Code::ReplicaJoins, "", "");
    async move {
        joined(&authorities, &store_health).await;
        metrics.conditions.clear(Code::ReplicaJoins, "");
        let mut lasting = Lasting::new(metrics.conditions, CODES);
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !authorities.commands.is_closed() {
            ticks.tick().await;
            let store = StoreView::of(&store_health);
            let terms = agreements.terms(&configured);
            let found = find(&authorities.cells(), &store, &terms);
            lasting.look(found, Instant::now());
        }
        lasting.look(Vec::new(), Instant::now());
    }
}

/// Waits until the replica can do its part of the fence: a rolling restart stops another replica as
/// soon as this one is ready. It does not wait for a store that fails.
async fn joined(authorities: &Authorities, store_health: &StoreHealth) {
    let joined = async {
        let mut ticks = interval(JOINING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !authorities.commands.is_closed() && !has_joined(&authorities.cells()) {
            ticks.tick().await;
        }
    };
    let mut health = store_health.subscribe();
    tokio::select! {
        () = joined => {}
        _ = health.wait_for(|status| status.level != Level::Normal) => {}
        () = sleep(JOINING_MAX) => {}
    }
}

/// Whether the replica has all its sessions, and is registered for the cells that its zones own. A
/// control plane with a fence has a cell.
fn has_joined(cells: &[CellStatus]) -> bool {
    let may_grant = |cell: &CellStatus| {
        let owned = |here: &&Holding| cell.owners.contains(&here.zone);
        let is_active = cell.state == Some(StateName::Active);
        let registered = cell.here.iter().filter(owned).all(|here| here.granting);
        let sessions = cell.here.iter().all(|here| here.session);
        sessions && (registered || !is_active)
    };
    !cells.is_empty() && cells.iter().all(may_grant)
}

/// The known state of the store.
struct StoreView {
    /// Its content is known and confirmed.
    is_current: bool,
    /// Why writes fail; empty if unknown.
    trouble: String,
}

impl StoreView {
    fn of(store_health: &StoreHealth) -> StoreView {
        let status = store_health.status();
        let trouble = match (status.level, store_health.write_error()) {
            (Level::Normal, error) => error.unwrap_or_default(),
            _ => status.reason,
        };
        StoreView {
            is_current: status.any && !status.stale,
            trouble,
        }
    }

    fn because(&self, what: &str) -> String {
        match self.trouble.as_str() {
            "" => what.to_owned(),
            trouble => format!("{what}: {trouble}"),
        }
    }
}

fn find(cells: &[CellStatus], store: &StoreView, terms: &Terms) -> Vec<Found> {
    let sessions = cells.iter().flat_map(|cell| &cell.here);
    let mut found: Vec<Found> = sessions
        .filter(|here| !here.session)
        .map(|here| {
            let why = store.because("no renewal of the session was confirmed in time");
            Found::new(Code::NoSession, &here.zone, why).after(span(terms.session_ttl))
        })
        .collect();
    found.dedup_by(|a, b| a.subject == b.subject);
    for cell in cells {
        find_of(cell, store, terms, &mut found);
    }
    found
}

fn find_of(cell: &CellStatus, store: &StoreView, terms: &Terms, found: &mut Vec<Found>) {
    let name = cell.cell.as_str();
    // Long enough for a takeover.
    let patience = span(terms.stretch(2 * terms.session_ttl + terms.write_drain)) + SLACK;
    let mut note = |code, detail: String, after| {
        found.push(Found::new(code, name, detail).after(after));
    };
    match cell.state {
        None if cell.revision != 0 => {
            let owners = cell.owners.join(", ");
            let detail = format!("its record names {owners}, epoch {}", cell.epoch);
            note(Code::StoreOfAnotherId, detail, Duration::ZERO);
        }
        // An unreachable store has no record either.
        None if store.is_current => {
            let detail = store.because("its owner zone has not written one");
            note(Code::CellNotRecorded, detail, patience);
        }
        None => {}
        Some(StateName::Active) => find_of_active(cell, store, patience, &mut note),
        Some(StateName::Settling) => {
            let detail = format!("for {}, epoch {}", cell.owners.join(", "), cell.epoch);
            note(Code::SettlingTooLong, detail, patience);
        }
        Some(StateName::Fencing) => {
            let detail = format!("waits for {}", cell.grantors.join(", "));
            note(Code::FencingTooLong, detail, patience);
        }
    }
}

fn find_of_active(
    cell: &CellStatus,
    store: &StoreView,
    patience: Duration,
    note: &mut impl FnMut(Code, String, Duration),
) {
    let speakers = |zone: &String| cell.zones.get(zone).copied().unwrap_or_default();
    let idle =
        |here: &&super::Holding| here.session && !here.granting && cell.owners.contains(&here.zone);
    if let Some(here) = cell.here.iter().find(idle) {
        let detail = store.because("its registration was not confirmed");
        note(
            Code::NotRegistered,
            format!("{}: {detail}", here.zone),
            patience,
        );
    }
    let owners = cell.owners.iter();
    if store.is_current && owners.clone().all(|zone| speakers(zone).replicas == 0) {
        let detail = format!("no replica of {} is alive", cell.owners.join(", "));
        note(Code::CellWithoutOwner, detail, patience);
    }
    let held = owners.clone().any(|zone| speakers(zone).proxies > Some(0));
    let empty = |zone: &&String| speakers(zone).proxies == Some(0);
    if !cell.owners.is_empty() && owners.clone().all(|zone| empty(&zone)) {
        let detail = format!("no Envoy of {} is connected", cell.owners.join(", "));
        note(Code::OwnerWithoutProxies, detail, patience);
    }
    if !cell.unserved.is_empty() {
        let (zones, services) = (cell.owners.join(", "), cell.unserved.join(", "));
        let detail = format!("{zones} has no usable instance of {services}");
        note(Code::OwnerWithoutInstances, detail, patience);
    }
    // A move may have turned a standby zone into an owner.
    let standby = cell.standby.iter();
    let standby = standby.filter(|zone| !cell.owners.contains(zone));
    let empty: Vec<&str> = standby.filter(empty).map(|z| z.as_str()).collect();
    if held && !empty.is_empty() {
        let detail = format!("no proxy is connected in {}", empty.join(", "));
        note(Code::TargetWithoutProxies, detail, patience);
    }
}

/// Microseconds as a span.
fn span(us: u64) -> Duration {
    Duration::from_micros(us)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{authority::Speakers, conditions::Conditions};

    const SECOND: u64 = 1_000_000;

    fn terms() -> Terms {
        Terms::new(3 * SECOND, SECOND, SECOND, SECOND / 10, 10).unwrap()
    }

    /// A healthy cell of zone a, with standby b, in the view of a replica of a.
    fn good() -> CellStatus {
        let speakers = Speakers {
            replicas: 1,
            proxies: Some(1),
        };
        CellStatus {
            cell: "main".to_owned(),
            revision: 7,
            epoch: 3,
            owners: vec!["a".to_owned()],
            standby: vec!["b".to_owned()],
            state: Some(StateName::Active),
            moving: None,
            unsettled: vec![],
            grantors: vec!["a-1".to_owned()],
            here: vec![Holding {
                zone: "a".to_owned(),
                incarnation: "a-1".to_owned(),
                session: true,
                granting: true,
                holders: 1,
            }],
            zones: BTreeMap::from([("a".to_owned(), speakers), ("b".to_owned(), speakers)]),
            unserved: vec![],
            hold_ms: 0,
            stale: None,
        }
    }

    /// The state becomes a condition only after a while, names its subject, and ends when the cell
    /// is healthy again.
    #[track_caller]
    fn begins_and_ends(change: impl Fn(&mut CellStatus), expected: Code, subject: &str) {
        let conditions = Conditions::new();
        let mut lasting = Lasting::new(conditions.clone(), CODES);
        let store = StoreView {
            is_current: true,
            trouble: "etcd is full".to_owned(),
        };
        let mut bad = good();
        change(&mut bad);
        let start = Instant::now();
        let mut look = |cell: &CellStatus, s| {
            let found = find(std::slice::from_ref(cell), &store, &terms());
            lasting.look(found, start + Duration::from_secs(s));
            let held = conditions.list().into_iter();
            held.map(|c| (c.code, c.subject)).collect::<Vec<_>>()
        };
        assert_eq!(look(&good(), 0), []);
        let at_once = look(&bad, 1);
        assert!(at_once.is_empty() || expected == Code::StoreOfAnotherId);
        assert_eq!(look(&bad, 61), [(expected, subject.to_owned())]);
        assert_eq!(look(&good(), 62), []);
    }

    #[test]
    fn every_reason_for_which_nobody_grants_is_a_condition() {
        begins_and_ends(|cell| cell.here[0].session = false, Code::NoSession, "a");
        begins_and_ends(
            |cell| cell.here[0].granting = false,
            Code::NotRegistered,
            "main",
        );
        begins_and_ends(|cell| cell.state = None, Code::StoreOfAnotherId, "main");
        let unrecorded = |cell: &mut CellStatus| {
            cell.state = None;
            cell.revision = 0;
        };
        begins_and_ends(unrecorded, Code::CellNotRecorded, "main");
        let settling = |cell: &mut CellStatus| cell.state = Some(StateName::Settling);
        begins_and_ends(settling, Code::SettlingTooLong, "main");
        let fencing = |cell: &mut CellStatus| cell.state = Some(StateName::Fencing);
        begins_and_ends(fencing, Code::FencingTooLong, "main");
        let gone = |cell: &mut CellStatus| {
            cell.zones.remove("a");
            cell.here.clear();
        };
        begins_and_ends(gone, Code::CellWithoutOwner, "main");
        let empty = |cell: &mut CellStatus| {
            cell.zones.get_mut("b").unwrap().proxies = Some(0);
        };
        begins_and_ends(empty, Code::TargetWithoutProxies, "main");
        let unheld = |cell: &mut CellStatus| {
            cell.zones.get_mut("a").unwrap().proxies = Some(0);
        };
        begins_and_ends(unheld, Code::OwnerWithoutProxies, "main");
        let unserved = |cell: &mut CellStatus| cell.unserved = vec!["orders".to_owned()];
        begins_and_ends(unserved, Code::OwnerWithoutInstances, "main");
    }

    #[test]
    fn a_replica_has_joined_with_its_sessions_and_registrations() {
        let joined = |change: &dyn Fn(&mut CellStatus)| {
            let mut cell = good();
            change(&mut cell);
            has_joined(&[cell])
        };
        assert!(joined(&|_| {}));
        assert!(!joined(&|cell| cell.here[0].session = false));
        assert!(!joined(&|cell| cell.here[0].granting = false));
        // Another zone owns the cell, or it is on its way: then nobody registers.
        assert!(joined(&|cell| {
            cell.owners = vec!["b".to_owned()];
            cell.here[0].granting = false;
        }));
        assert!(joined(&|cell| {
            cell.state = Some(StateName::Settling);
            cell.here[0].granting = false;
        }));
        // Before the store was read.
        assert!(!has_joined(&[]));
    }

    #[test]
    fn an_owner_does_not_stand_by_for_itself() {
        let mut cell = good();
        cell.owners = vec!["a".to_owned(), "b".to_owned()];
        cell.zones.get_mut("b").unwrap().proxies = Some(0);
        let store = StoreView {
            is_current: true,
            trouble: String::new(),
        };
        assert_eq!(find(&[cell], &store, &terms()), []);
    }

    #[test]
    fn the_detail_says_what_the_store_has_against_it() {
        let mut cell = good();
        cell.here[0].session = false;
        let store = StoreView {
            is_current: true,
            trouble: "database space exceeded".to_owned(),
        };
        let found = find(&[cell], &store, &terms());
        assert!(
            found[0].detail.ends_with(": database space exceeded"),
            "{found:?}"
        );
    }

    #[test]
    fn a_store_that_is_away_is_not_taken_for_one_without_records() {
        let mut cell = good();
        (cell.state, cell.revision) = (None, 0);
        cell.zones.clear();
        let store = StoreView {
            is_current: false,
            trouble: String::new(),
        };
        assert_eq!(find(&[cell], &store, &terms()), []);
    }
}
