//! The record that may use an address. Several records may name the same one: an instance that
//! restarts under another name, a mistake, or an attack.
//!
//! Within a zone the newest record is used: it was written by the process that listens there now.
//! Between zones the zone with the oldest record keeps the address. Otherwise any zone could take
//! over another zone's instances by naming their addresses. Age is the revision that created the
//! record, so all replicas agree at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use registry::record::{Instance, InstanceKey, InvalidRecord, NAMED_MAX};
use registry::store::Revision;

/// An address of a service, as records name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    service: String,
    address: IpAddr,
    port: u16,
}

impl Claim {
    pub(super) fn of(service: &str, instance: &Instance) -> Claim {
        Claim {
            service: service.to_owned(),
            address: instance.address,
            port: instance.port,
        }
    }
}

/// The records that name an address, the oldest first.
#[derive(Default)]
pub(super) struct Claims(BTreeMap<Claim, BTreeSet<(Revision, InstanceKey)>>);

/// The decision among the records of one claim.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// The record that is used.
    pub(super) holder: InstanceKey,
    /// The rejected records, with the reason.
    pub(super) losers: Vec<(InstanceKey, InvalidRecord)>,
    /// Records of other zones, up to a limit.
    pub(super) contenders: Vec<String>,
}

impl Claims {
    pub(super) fn insert(&mut self, claim: Claim, created: Revision, at: InstanceKey) {
        self.0.entry(claim).or_default().insert((created, at));
    }

    pub(super) fn remove(&mut self, claim: &Claim, at: &InstanceKey) {
        let Some(claimants) = self.0.get_mut(claim) else {
            return;
        };
        claimants.retain(|(_, claimant)| claimant != at);
        if claimants.is_empty() {
            self.0.remove(claim);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Claim> {
        self.0.keys()
    }

    /// Decides among the records that satisfy `counts`; none if there is none.
    pub(super) fn settle(
        &self,
        claim: &Claim,
        counts: impl Fn(&InstanceKey) -> bool,
    ) -> Option<Settled> {
        let claimants = self.0.get(claim)?.iter().map(|(_, at)| at);
        let claimants: Vec<&InstanceKey> = claimants.filter(|at| counts(at)).collect();
        let zone = &claimants.first()?.zone;
        let of_zone = |at: &&&InstanceKey| at.zone == *zone;
        let holder = (*claimants.iter().rfind(of_zone)?).clone();
        let key = holder.store_key();
        let lost = |at: &InstanceKey| match at.zone == holder.zone {
            true => InvalidRecord::DuplicateAddress(key.clone()),
            false => InvalidRecord::AddressOfAnotherZone(key.clone()),
        };
        let losers = claimants.iter().filter(|at| ***at != holder);
        let losers = losers.map(|at| ((*at).clone(), lost(at))).collect();
        let contenders = claimants.iter().filter(|at| !of_zone(at));
        let contenders = contenders.take(NAMED_MAX).map(|at| at.store_key());
        Some(Settled {
            losers,
            contenders: contenders.collect(),
            holder,
        })
    }
}
