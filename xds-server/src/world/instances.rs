//! The registered instances, and the rejected records.

use std::collections::{BTreeMap, btree_map};

use registry::record::{Health, Instance, InstanceKey, InvalidRecord, Warning};
use registry::store::Entry;

use super::Rejection;
use super::claims::{Claim, Claims};

/// The rejected records, by store key, with the reason. Cheap to clone.
pub type Rejected = imbl::OrdMap<String, InvalidRecord>;

/// Oddities of accepted records, by store key. Cheap to clone.
pub type Warnings = imbl::OrdMap<String, Vec<Warning>>;

/// A registered instance.
#[derive(Clone, Debug)]
struct Registered {
    instance: Instance,
    /// The mesh has its service and zone, and accepts its address.
    known: bool,
    part: Part,
    /// The record is gone from the store, but the instance is still served.
    gone: bool,
    unknown_fields: Option<Warning>,
}

/// The role of a record among those that name its address.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// Undecided.
    New,
    /// It is served.
    Holder,
    /// Another zone keeps the address. Until then this instance was served, and still is while its
    /// disappearance is doubted.
    Doubted(Box<Instance>),
    /// Another record is served.
    Shadowed,
}

impl Registered {
    fn is_served(&self) -> bool {
        self.known && self.served().is_some()
    }

    /// The served instance, if there is one.
    fn served(&self) -> Option<&Instance> {
        match &self.part {
            Part::Holder => Some(&self.instance),
            Part::Doubted(before) => Some(before),
            Part::New | Part::Shadowed => None,
        }
    }

    /// Its role when it loses its address. Its disappearance is doubted, unless its own zone
    /// continues to serve that address.
    fn beaten(&self, error: &InvalidRecord) -> Part {
        let Some(before) = self.served() else {
            return Part::Shadowed;
        };
        let address = |instance: &Instance| (instance.address, instance.port);
        let is_served_on = matches!(error, InvalidRecord::DuplicateAddress(_))
            && address(before) == address(&self.instance);
        match is_served_on || self.instance.health == Health::Draining {
            true => Part::Shadowed,
            false => Part::Doubted(Box::new(before.clone())),
        }
    }
}

/// The change of an instance since the last call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Served, and its record is in the store.
    Kept,
    /// Served, although another zone has its address now, or its record is gone.
    Doubted,
    /// Not served, although its record is in the store.
    Unused,
    /// Its record is gone, and its address is served as another instance.
    Replaced,
}

type Zones = BTreeMap<String, BTreeMap<String, Registered>>;

/// Every readable record, including those that the mesh does not know (yet).
#[derive(Default)]
pub(super) struct Instances {
    /// By service, zone and instance.
    registered: BTreeMap<String, Zones>,
    count: usize,
    /// The number of served instances.
    served: usize,
    claims: Claims,
    rejected: Rejected,
    warnings: Warnings,
    /// Instances that started or stopped being used because other records changed.
    resettled: Vec<InstanceKey>,
    /// Newly rejected records.
    rejections: Vec<Rejection>,
}

impl Instances {
    /// Applies a record, or records why it is rejected; an instance whose record becomes unreadable
    /// is not changed. `known` says whether the mesh has its service and zone, and accepts its
    /// address.
    pub(super) fn put(
        &mut self,
        entry: &Entry,
        known: impl Fn(&InstanceKey, &Instance) -> Result<(), InvalidRecord>,
    ) -> Option<InstanceKey> {
        let parsed = InstanceKey::parse(&entry.key);
        let parsed = parsed.and_then(|at| Ok((at, Instance::parse_warned(&entry.value)?)));
        let (at, (instance, unknown_fields)) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                self.reject(&entry.key, error);
                return None;
            }
        };
        self.accept(&entry.key, |error| {
            !is_of_mesh(error) && !is_of_claims(error)
        });
        let verdict = known(&at, &instance);
        let claim = Claim::of(&at.service, &instance);
        // Until the decision, so that it is not missing when its previous claim is settled.
        let part = self.get(&at).filter(|before| before.known);
        let part = part.map_or(Part::New, |before| match &before.part {
            // The same endpoint with another health or weight.
            Part::Doubted(was) if Claim::of(&at.service, was) == claim => {
                Part::Doubted(Box::new(instance.clone()))
            }
            // The previously served instance, in case the new address is not available.
            Part::Holder if Claim::of(&at.service, &before.instance) != claim => {
                Part::Doubted(Box::new(before.instance.clone()))
            }
            part => part.clone(),
        });
        self.drop_claim(&at, Some(&claim));
        let zones = self.registered.entry(at.service.clone()).or_default();
        let registered = Registered {
            instance,
            known: verdict.is_ok(),
            part,
            gone: false,
            unknown_fields,
        };
        self.served += usize::from(registered.is_served());
        let zone = zones.entry(at.zone.clone()).or_default();
        let before = zone.insert(at.instance.clone(), registered);
        self.count += usize::from(before.is_none());
        self.served -= usize::from(before.is_some_and(|before| before.is_served()));
        self.warn(&at, Vec::new());
        self.know(&at, verdict);
        let created = entry.create_revision;
        self.claims.insert(claim.clone(), created, at.clone());
        self.settle(&claim);
        Some(at)
    }

    /// Records that the record of a served instance is gone from the store.
    pub(super) fn vanished(&mut self, key: &str) {
        if let Ok(at) = InstanceKey::parse(key) {
            self.alter(&at, |registered| registered.gone = true);
        }
    }

    /// A doubt has ended: the instance is not served any more. Returns its key, if anything
    /// changes.
    pub(super) fn release(&mut self, key: &str) -> Option<InstanceKey> {
        let at = InstanceKey::parse(key).ok()?;
        let changes = self.alter(&at, |registered| {
            match (&registered.part, registered.gone) {
                (_, true) => None,
                (Part::Doubted(_), false) => {
                    registered.part = Part::Shadowed;
                    Some(true)
                }
                // The doubt is over in another way: the mesh does not know it any more.
                (Part::New | Part::Holder | Part::Shadowed, false) => Some(false),
            }
        });
        match changes.flatten() {
            Some(changes) => changes.then_some(at),
            None => self.delete(key),
        }
    }

    /// Removes a record, readable or not. Returns the instance, if it was one.
    pub(super) fn delete(&mut self, key: &str) -> Option<InstanceKey> {
        self.rejected.remove(key);
        self.warnings.remove(key);
        let at = InstanceKey::parse(key).ok()?;
        self.drop_claim(&at, None);
        let zones = self.registered.get_mut(&at.service)?;
        if let Some(instances) = zones.get_mut(&at.zone) {
            let removed = instances.remove(&at.instance);
            self.count -= usize::from(removed.is_some());
            self.served -= usize::from(removed.is_some_and(|removed| removed.is_served()));
            if instances.is_empty() {
                zones.remove(&at.zone);
            }
        }
        if zones.is_empty() {
            self.registered.remove(&at.service);
        }
        Some(at)
    }

    /// Checks again whether the mesh knows the registered instances.
    pub(super) fn review(
        &mut self,
        known: impl Fn(&InstanceKey, &Instance) -> Result<(), InvalidRecord>,
    ) {
        let keys: Vec<InstanceKey> = self.keys().collect();
        for at in keys {
            let verdict = self.alter(&at, |registered| {
                let verdict = known(&at, &registered.instance);
                registered.known = verdict.is_ok();
                verdict
            });
            if let Some(verdict) = verdict {
                self.know(&at, verdict);
            }
        }
        let claims: Vec<Claim> = self.claims.all().cloned().collect();
        claims.iter().for_each(|claim| self.settle(claim));
    }

    /// The store keys of all records, used or not.
    pub(super) fn store_keys(&self) -> Vec<String> {
        let readable = self.keys().map(|at| at.store_key());
        let unreadable = self.rejected.keys().cloned();
        readable.chain(unreadable).collect()
    }

    /// The usable instances of a service in a zone, by name.
    pub(super) fn of(&self, service: &str, zone: &str) -> impl Iterator<Item = (&str, &Instance)> {
        let zones = self.registered.get(service);
        let instances = zones.and_then(|zones| zones.get(zone));
        instances
            .map_or_else(btree_map::Iter::default, BTreeMap::iter)
            .filter_map(|(name, registered)| Some((name.as_str(), registered.served()?)))
    }

    /// The instance at a store key, while it may receive requests: a draining one may not.
    pub(super) fn serves(&self, key: &str) -> bool {
        let Ok(at) = InstanceKey::parse(key) else {
            return false;
        };
        let served = self.get(&at).filter(|registered| registered.known);
        let served = served.and_then(Registered::served);
        served.is_some_and(|instance| instance.health != Health::Draining)
    }

    /// The instances that started or stopped being used because of other records, since the last
    /// call.
    pub(super) fn take_resettled(&mut self) -> Vec<InstanceKey> {
        std::mem::take(&mut self.resettled)
    }

    /// The records that were newly rejected since the last call.
    pub(super) fn take_rejections(&mut self) -> Vec<Rejection> {
        std::mem::take(&mut self.rejections)
    }

    /// The fate of a registered instance.
    pub(super) fn fate(&self, at: &InstanceKey) -> Option<Fate> {
        let registered = self.get(at)?;
        Some(match (&registered.part, registered.gone) {
            (Part::Shadowed, true) => Fate::Replaced,
            (Part::New | Part::Shadowed, false) => Fate::Unused,
            (Part::Doubted(_), _) | (_, true) => Fate::Doubted,
            (Part::Holder, false) => Fate::Kept,
        })
    }

    /// The number of readable records.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The number of served instances.
    pub(super) fn served(&self) -> usize {
        self.served
    }

    /// The rejected records.
    pub(super) fn rejected(&self) -> &Rejected {
        &self.rejected
    }

    /// The oddities of the accepted ones.
    pub(super) fn warnings(&self) -> &Warnings {
        &self.warnings
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

    /// Changes a registered instance, and updates the number of served ones.
    fn alter<T>(
        &mut self,
        at: &InstanceKey,
        change: impl FnOnce(&mut Registered) -> T,
    ) -> Option<T> {
        let zones = self.registered.get_mut(&at.service)?;
        let registered = zones.get_mut(&at.zone)?.get_mut(&at.instance)?;
        self.served -= usize::from(registered.is_served());
        let changed = change(registered);
        self.served += usize::from(registered.is_served());
        Some(changed)
    }

    /// Records that the record at `key` is rejected; the same error is reported only once.
    fn reject(&mut self, key: &str, error: InvalidRecord) {
        if self.rejected.get(key) != Some(&error) {
            self.rejected.insert(key.to_owned(), error.clone());
            let key = key.to_owned();
            self.rejections.push(Rejection { key, error });
        }
    }

    /// Removes errors of this kind.
    fn accept(&mut self, key: &str, of_kind: impl Fn(&InvalidRecord) -> bool) {
        if self.rejected.get(key).is_some_and(of_kind) {
            self.rejected.remove(key);
        }
    }

    /// Records whether the mesh accepts a record. A record that it does not is ignored, and comes
    /// back like a new one.
    fn know(&mut self, at: &InstanceKey, verdict: Result<(), InvalidRecord>) {
        let key = at.store_key();
        match verdict {
            Ok(()) => self.accept(&key, is_of_mesh),
            Err(error) => {
                self.alter(at, |registered| registered.part = Part::New);
                self.reject_for_others(&key, error);
            }
        }
    }

    /// The record's own fault, if it has one, takes precedence.
    fn reject_for_others(&mut self, key: &str, error: InvalidRecord) {
        let before = self.rejected.get(key);
        if before.is_none_or(|e| is_of_mesh(e) || is_of_claims(e)) {
            self.reject(key, error);
        }
    }

    /// Records an oddity of a record.
    fn warn(&mut self, at: &InstanceKey, contenders: Vec<String>) {
        let Some(registered) = self.get(at) else {
            return;
        };
        let contested = (!contenders.is_empty()).then_some(Warning::Contested(contenders));
        let unknown = registered.unknown_fields.clone().into_iter();
        let warnings: Vec<Warning> = unknown.chain(contested).collect();
        let key = at.store_key();
        match warnings.is_empty() {
            true => self.warnings.remove(&key),
            false => self.warnings.insert(key, warnings),
        };
    }

    /// Removes the claim of the record at `at`, unless it keeps that one.
    fn drop_claim(&mut self, at: &InstanceKey, goes_on: Option<&Claim>) {
        let Some(registered) = self.get(at) else {
            return;
        };
        let claim = Claim::of(&at.service, &registered.instance);
        self.claims.remove(&claim, at);
        if goes_on != Some(&claim) {
            self.settle(&claim);
        }
    }

    /// Gives each record that names this address its role.
    fn settle(&mut self, claim: &Claim) {
        let is_known = |at: &InstanceKey| self.get(at).is_some_and(|registered| registered.known);
        let Some(settled) = self.claims.settle(claim, is_known) else {
            return;
        };
        self.warn(&settled.holder, settled.contenders);
        self.give(&settled.holder, Part::Holder);
        self.accept(&settled.holder.store_key(), is_of_claims);
        for (at, error) in settled.losers {
            self.warn(&at, Vec::new());
            let part = self.get(&at).map(|registered| registered.beaten(&error));
            if let Some(part) = part {
                self.give(&at, part);
            }
            self.reject_for_others(&at.store_key(), error);
        }
    }

    fn give(&mut self, at: &InstanceKey, part: Part) {
        let changed = self.alter(at, |registered| {
            std::mem::replace(&mut registered.part, part.clone()) != part
        });
        if changed == Some(true) {
            self.resettled.push(at.clone());
        }
    }
}

/// Whether the record itself is valid, and only the mesh rejects it.
fn is_of_mesh(error: &InvalidRecord) -> bool {
    matches!(
        error,
        InvalidRecord::UnknownZone(_)
            | InvalidRecord::UnknownService(_)
            | InvalidRecord::Loopback(_)
    )
}

/// Whether the record itself is valid, and only another record excludes it.
fn is_of_claims(error: &InvalidRecord) -> bool {
    matches!(
        error,
        InvalidRecord::DuplicateAddress(_) | InvalidRecord::AddressOfAnotherZone(_)
    )
}
