//! The instances that are registered, and the records that cannot be used.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::net::IpAddr;

use registry::record::{Health, Instance, InstanceKey, InvalidRecord};
use registry::store::{Entry, Revision};

use super::Rejection;

/// An instance as it is registered.
#[derive(Clone, Debug)]
struct Registered {
    instance: Instance,
    /// The mesh has its service and zone.
    known: bool,
    /// Another known one, newer than this, has the same address and port.
    shadowed: bool,
}

type Zones = BTreeMap<String, BTreeMap<String, Registered>>;

/// Every readable record, also those that the mesh does not know (yet).
#[derive(Default)]
pub(super) struct Instances {
    /// By service, zone and instance.
    registered: BTreeMap<String, Zones>,
    count: usize,
    /// Who claims an address of a service, the oldest first.
    claims: BTreeMap<(String, IpAddr, u16), BTreeSet<(Revision, InstanceKey)>>,
    /// Store keys whose latest record is not used.
    rejected: BTreeMap<String, InvalidRecord>,
    /// Which are used, or are not any more, because of what became of others.
    resettled: Vec<InstanceKey>,
}

impl Instances {
    /// Takes a record in, or notes why it cannot be used; an instance whose record becomes unreadable stays as it was. `known`
    /// says whether the mesh has its service and zone.
    pub(super) fn put(
        &mut self,
        entry: &Entry,
        known: impl Fn(&InstanceKey) -> Result<(), InvalidRecord>,
    ) -> (Option<InstanceKey>, Vec<Rejection>) {
        let parsed = InstanceKey::parse(&entry.key);
        let parsed = parsed.and_then(|at| Ok((at, Instance::parse(&entry.value)?)));
        let (at, instance) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                let rejection = self.judge(entry.key.clone(), Err(error));
                return (None, rejection.into_iter().collect());
            }
        };
        let address = (instance.address, instance.port);
        self.drop_claim(&at);
        let verdict = known(&at);
        let zones = self.registered.entry(at.service.clone()).or_default();
        let before = zones.entry(at.zone.clone()).or_default().insert(
            at.instance.clone(),
            Registered {
                instance,
                known: verdict.is_ok(),
                shadowed: false,
            },
        );
        self.count += usize::from(before.is_none());
        let mut rejections: Vec<Rejection> = self
            .judge(entry.key.clone(), known(&at))
            .into_iter()
            .collect();
        let claim = (at.service.clone(), address.0, address.1);
        let claims = self.claims.entry(claim.clone()).or_default();
        claims.insert((entry.create_revision, at.clone()));
        rejections.extend(self.settle(&claim));
        (Some(at), rejections)
    }

    /// Forgets a record, readable or not. The instance, if it was one.
    pub(super) fn delete(&mut self, key: &str) -> Option<InstanceKey> {
        self.rejected.remove(key);
        let at = InstanceKey::parse(key).ok()?;
        self.drop_claim(&at);
        let zones = self.registered.get_mut(&at.service)?;
        if let Some(instances) = zones.get_mut(&at.zone) {
            self.count -= usize::from(instances.remove(&at.instance).is_some());
            if instances.is_empty() {
                zones.remove(&at.zone);
            }
        }
        if zones.is_empty() {
            self.registered.remove(&at.service);
        }
        Some(at)
    }

    /// Looks again at whether the mesh knows what is registered.
    pub(super) fn review(
        &mut self,
        known: impl Fn(&InstanceKey) -> Result<(), InvalidRecord>,
    ) -> Vec<Rejection> {
        let keys: Vec<InstanceKey> = self.keys().collect();
        let mut rejections = Vec::new();
        for at in keys {
            let key = at.store_key();
            let verdict = known(&at);
            if let Some(registered) = self.get_mut(&at) {
                registered.known = verdict.is_ok();
                // Who is shadowed follows below from who is known.
                registered.shadowed = false;
            }
            if self.rejected.get(&key).is_none_or(depends_on_others) {
                rejections.extend(self.judge(key, verdict));
            }
        }
        let claims: Vec<_> = self.claims.keys().cloned().collect();
        rejections.extend(claims.iter().flat_map(|claim| self.settle(claim)));
        rejections
    }

    /// The store keys of everything that was taken in, used or not.
    pub(super) fn store_keys(&self) -> Vec<String> {
        let readable = self.keys().map(|at| at.store_key());
        let unreadable = self.rejected.keys().cloned();
        readable.chain(unreadable).collect()
    }

    /// The instances of a service in a zone that can be used, by name.
    pub(super) fn of(&self, service: &str, zone: &str) -> impl Iterator<Item = (&str, &Instance)> {
        let zones = self.registered.get(service);
        let instances = zones.and_then(|zones| zones.get(zone));
        instances
            .map_or_else(btree_map::Iter::default, BTreeMap::iter)
            .filter(|(_, registered)| !registered.shadowed)
            .map(|(name, registered)| (name.as_str(), &registered.instance))
    }

    /// The instance at a store key, while it may take requests: one that is leaving on purpose may not.
    pub(super) fn serves(&self, key: &str) -> bool {
        let Ok(at) = InstanceKey::parse(key) else {
            return false;
        };
        self.get(&at).is_some_and(|registered| {
            registered.instance.health != Health::Draining
                && registered.known
                && !registered.shadowed
        })
    }

    /// Which instances are used, or are not any more, because of what became of others since this was asked.
    pub(super) fn take_resettled(&mut self) -> Vec<InstanceKey> {
        std::mem::take(&mut self.resettled)
    }

    /// How many readable records there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many records are not used.
    pub(super) fn rejected(&self) -> usize {
        self.rejected.len()
    }

    fn keys(&self) -> impl Iterator<Item = InstanceKey> {
        self.registered.iter().flat_map(|(service, zones)| {
            zones.iter().flat_map(move |(zone, instances)| {
                instances.keys().map(move |instance| InstanceKey {
                    service: service.clone(),
                    zone: zone.clone(),
                    instance: instance.clone(),
                })
            })
        })
    }

    fn get(&self, at: &InstanceKey) -> Option<&Registered> {
        self.registered
            .get(&at.service)?
            .get(&at.zone)?
            .get(&at.instance)
    }

    fn get_mut(&mut self, at: &InstanceKey) -> Option<&mut Registered> {
        self.registered
            .get_mut(&at.service)?
            .get_mut(&at.zone)?
            .get_mut(&at.instance)
    }

    /// Notes whether the record at `key` is used; a verdict that is not new is not reported again.
    fn judge(&mut self, key: String, verdict: Result<(), InvalidRecord>) -> Option<Rejection> {
        match verdict {
            Ok(()) => {
                self.rejected.remove(&key);
                None
            }
            Err(error) => {
                let before = self.rejected.insert(key.clone(), error.clone());
                (before.as_ref() != Some(&error)).then_some(Rejection { key, error })
            }
        }
    }

    fn drop_claim(&mut self, at: &InstanceKey) {
        let Some(registered) = self.get(at) else {
            return;
        };
        let claim = (
            at.service.clone(),
            registered.instance.address,
            registered.instance.port,
        );
        if let Some(claims) = self.claims.get_mut(&claim) {
            claims.retain(|(_, claimant)| claimant != at);
        }
        // Nobody is newly shadowed by somebody's leaving.
        self.settle(&claim);
    }

    /// Of several records with one address the newest is used: it was written by what listens there now.
    fn settle(&mut self, claim: &(String, IpAddr, u16)) -> Vec<Rejection> {
        let Some(claims) = self.claims.get(claim) else {
            return Vec::new();
        };
        if claims.is_empty() {
            self.claims.remove(claim);
            return Vec::new();
        }
        let is_known = |at: &InstanceKey| self.get(at).is_some_and(|registered| registered.known);
        let known: Vec<InstanceKey> = claims.iter().map(|(_, at)| at.clone()).collect();
        let known: Vec<InstanceKey> = known.into_iter().filter(is_known).collect();
        let Some(newest) = known.last().cloned() else {
            return Vec::new();
        };
        let mut rejections = Vec::new();
        for at in known {
            let shadowed = at != newest;
            let changed = self.get_mut(&at).is_some_and(|registered| {
                std::mem::replace(&mut registered.shadowed, shadowed) != shadowed
            });
            if changed {
                self.resettled.push(at.clone());
            }
            match (changed, shadowed) {
                (true, true) => {
                    let error = InvalidRecord::DuplicateAddress(newest.store_key());
                    rejections.extend(self.judge(at.store_key(), Err(error)));
                }
                (true, false) => {
                    self.judge(at.store_key(), Ok(()));
                }
                (false, _) => {}
            }
        }
        rejections
    }
}

/// Whether a record is good, and only the mesh or another record is in its way.
fn depends_on_others(error: &InvalidRecord) -> bool {
    matches!(
        error,
        InvalidRecord::UnknownZone(_)
            | InvalidRecord::UnknownService(_)
            | InvalidRecord::DuplicateAddress(_)
    )
}
