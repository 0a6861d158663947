//! The state of cells, for operators and for conditions.

use std::collections::{BTreeMap, BTreeSet};

use policy::fence::{AuthorityState, Name, Replica};
use registry::authority::{AuthorityRecord, MoveRecord, OperationRecord, StateName};
use serde::{Deserialize, Serialize};

use super::presence::Presence;

/// A cell, as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellStatus {
    pub cell: String,
    /// The revision of the authority's record; 0: there is none yet.
    pub revision: u64,
    pub epoch: u64,
    pub owners: Vec<String>,
    pub standby: Vec<String>,
    /// `active`, `fencing` or `settling`; none without a record, or with one of another store.
    pub state: Option<StateName>,
    /// The move under way.
    #[serde(rename = "move")]
    pub moving: Option<MoveStatus>,
    /// The incarnations whose grants may still be under way; `*`: any incarnation.
    pub unsettled: Vec<String>,
    /// The incarnations that are registered to grant.
    pub grantors: Vec<String>,
    /// The grants of this process, by zone.
    pub here: Vec<Holding>,
    /// The zones with a replica.
    #[serde(default)]
    pub zones: BTreeMap<String, Speakers>,
    /// Services with fenced writes without a usable instance at any owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unserved: Vec<String>,
    /// For this long after this record was seen, an operator's move keeps the cell in place
    /// although other zones serve it better.
    #[serde(default)]
    pub hold_ms: u64,
    /// Why this is stale: the store is unreachable, or its content is rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

pub type MoveStatus = MoveRecord;

/// The replicas of a zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speakers {
    /// Live sessions.
    pub replicas: u32,
    /// Proxies connected to them, to hold grants, as last reported; none if no replica reports.
    pub proxies: Option<u32>,
}

/// The grants of one replica for a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    pub zone: String,
    pub incarnation: String,
    /// Its session lives.
    pub session: bool,
    pub granting: bool,
    /// Proxies with grants of it that have not expired.
    pub holders: usize,
}

/// The outcome of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: String,
    #[serde(flatten)]
    pub record: OperationRecord,
}

/// The cells in the combined view of `replicas`, one for each zone. `out` has the services that a
/// zone cannot serve.
pub(super) fn of<'r>(
    replicas: impl Iterator<Item = &'r Replica> + Clone,
    presence: &Presence,
    out: &BTreeMap<Name, BTreeSet<Name>>,
    now: u64,
) -> Vec<CellStatus> {
    let mut cells = Vec::<CellStatus>::new();
    for replica in replicas {
        for (name, revision, authority, grantors, grantor) in replica.cells() {
            let holding = Holding {
                zone: replica.id().zone.to_string(),
                incarnation: replica.id().incarnation.to_string(),
                session: replica.session().left(now) > 0,
                granting: grantor.granting().is_some(),
                holders: grantor.holders(),
            };
            if let Some(cell) = cells.iter_mut().find(|cell| cell.cell == **name) {
                cell.here.push(holding);
                continue;
            }
            let own = authority.filter(|authority| replica.is_of_store(authority));
            let record = authority.map(AuthorityRecord::from);
            let moving = own.and_then(|authority| match &authority.state {
                AuthorityState::Fencing(next) => Some(MoveRecord::from(next)),
                _ => None,
            });
            cells.push(CellStatus {
                cell: name.to_string(),
                revision: revision.0,
                epoch: authority.map_or(0, |authority| authority.epoch),
                owners: record
                    .as_ref()
                    .map(|r| r.owners.clone())
                    .unwrap_or_default(),
                standby: record
                    .as_ref()
                    .map(|r| r.standby.clone())
                    .unwrap_or_default(),
                state: record.as_ref().filter(|_| own.is_some()).map(|r| r.state),
                moving,
                hold_ms: record.as_ref().map_or(0, |r| r.hold_ms),
                unsettled: record.map(|r| r.unsettled).unwrap_or_default(),
                grantors: grantors
                    .iter()
                    .map(|id| id.incarnation.to_string())
                    .collect(),
                here: vec![holding],
                unserved: authority.map_or_else(Vec::new, |a| unserved(&a.owners, out)),
                zones: presence.zones(replica.sessions(), now, replica.terms()),
                stale: None,
            });
        }
    }
    cells
}

/// The services that none of the owners can serve.
fn unserved(owners: &[Name], out: &BTreeMap<Name, BTreeSet<Name>>) -> Vec<String> {
    let Some((first, others)) = owners.split_first() else {
        return Vec::new();
    };
    let is_out = |zone: &Name, service| out.get(zone).is_some_and(|out| out.contains(service));
    let services = out.get(first).into_iter().flatten();
    services
        .filter(|service| others.iter().all(|zone| is_out(zone, *service)))
        .map(|service| service.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_unserved_where_no_owner_has_it() {
        let name = |text: &str| Name::from(text);
        let names = |texts: &[&str]| texts.iter().map(|text| name(text)).collect();
        let out = BTreeMap::from([
            (name("a"), names(&["orders", "users"])),
            (name("b"), names(&["orders"])),
        ]);
        let of = |owners: &[&str]| {
            let owners: Vec<Name> = owners.iter().map(|zone| name(zone)).collect();
            unserved(&owners, &out)
        };
        assert_eq!(of(&["a"]), ["orders", "users"]);
        assert_eq!(of(&["a", "b"]), ["orders"]);
        assert_eq!(of(&["b", "c"]), [""; 0]);
        assert_eq!(of(&[]), [""; 0]);
    }
}
