//! Records of the store: put, deleted, and listed anew.

use std::collections::BTreeSet;

use policy::{ZoneStanding, fence::Agreement};
use registry::{
    authority::AUTHORITY_PREFIX,
    record::{INSTANCES_PREFIX, InstanceKey, InvalidRecord},
    store::{Entry, Revision},
    terms::{TERMS_KEY, TermsRecord},
    zone_records::{
        DIRECTIVES_PREFIX, DirectiveKey, DirectiveRecord, STANDINGS_PREFIX, StandingKey,
        StandingRecord,
    },
};

use super::{Origin, Rejection, World, known};

impl World {
    pub(super) fn relist(
        &mut self,
        entries: Vec<Entry>,
        origin: Origin,
        now_ms: u64,
    ) -> Vec<Rejection> {
        match origin {
            Origin::Confirmed => self.believe(Revision(i64::MAX)),
            // The store is trusted once it is listed.
            Origin::Store => self.guard.restored_is_over(),
            Origin::Disk => {}
        }
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let standings = self.zones.written();
        let intents = self.zones.wanted();
        let gone: Vec<String> = (self.instances.store_keys().into_iter())
            .chain(standings.iter().map(StandingKey::store_key))
            .chain(intents.iter().map(DirectiveKey::store_key))
            .chain(self.authorities.store_keys())
            .filter(|key| !listed.contains(key.as_str()))
            .collect();
        for key in gone {
            match origin {
                Origin::Confirmed if self.instances.serves(&key) => self.remove(&key),
                _ => self.delete(&key, now_ms),
            }
        }
        let put = |entry: &Entry| self.put(entry, now_ms);
        entries.iter().flat_map(put).collect()
    }

    pub(super) fn put(&mut self, entry: &Entry, now_ms: u64) -> Vec<Rejection> {
        if entry.key.starts_with(INSTANCES_PREFIX) {
            let (mesh, positions) = (&self.mesh, &self.positions);
            let known = |at: &_, instance: &_| known(mesh, positions, at, instance);
            if let Some(at) = self.instances.put(entry, known) {
                self.follow_fate(&at, now_ms);
                self.touch_instances(at);
            }
            return Vec::new();
        }
        let taken = if entry.key.starts_with(STANDINGS_PREFIX) {
            self.put_standing(entry, now_ms)
        } else if entry.key.starts_with(DIRECTIVES_PREFIX) {
            self.put_intent(entry)
        } else if entry.key == TERMS_KEY {
            self.put_terms(entry)
        } else if entry.key.starts_with(AUTHORITY_PREFIX) {
            let put = self.authorities.put(entry);
            put.map(|cell| self.reowned(cell))
        } else {
            // A record of another kind, perhaps of a newer version.
            Ok(())
        };
        let reject = |error| Rejection {
            key: entry.key.clone(),
            error,
        };
        taken.err().map(reject).into_iter().collect()
    }

    fn put_standing(&mut self, entry: &Entry, now_ms: u64) -> Result<(), InvalidRecord> {
        let at = StandingKey::parse(&entry.key)?;
        // An unreadable record counts as the default, and is replaced.
        let standing = StandingRecord::parse(&entry.value);
        self.touch(Some(&at.service));
        let remembered = standing.clone().unwrap_or_else(|_| ZoneStanding::default());
        self.zones.adopt(at, remembered, entry.mod_revision, now_ms);
        standing.map(|_| ())
    }

    /// Applies a directive. An unreadable one changes nothing: the operator's last readable
    /// directive counts.
    fn put_intent(&mut self, entry: &Entry) -> Result<(), InvalidRecord> {
        let at = DirectiveKey::parse(&entry.key)?;
        let intent = DirectiveRecord::parse(&entry.value)?;
        self.touch(at.service.as_deref());
        self.zones.want(at, Some(intent));
        Ok(())
    }

    /// The cell has other owners, or another epoch.
    fn reowned(&mut self, cell: Option<String>) {
        let authority = self.mesh.authority.as_ref();
        let mut cells = authority.into_iter().flat_map(|authority| &authority.cells);
        self.authority_dirty |= cell.is_some_and(|name| cells.any(|cell| cell.name == name));
    }

    fn touch(&mut self, service: Option<&str>) {
        let (one, all) = match service {
            Some(service) => (Some(service.to_owned()), None),
            None => (None, Some(self.positions.keys().cloned())),
        };
        for service in one.into_iter().chain(all.into_iter().flatten()) {
            self.dirty.entry(service).or_default();
        }
    }

    pub(super) fn touch_instances(&mut self, at: InstanceKey) {
        self.dirty.entry(at.service).or_default().insert(at.zone);
    }

    /// The record at `key` is gone from the store. An instance that did not report `draining` is
    /// doubted first.
    pub(super) fn delete(&mut self, key: &str, now_ms: u64) {
        if self.instances.serves(key) {
            self.instances.vanished(key);
            self.guard.vanish(key, self.revision, now_ms);
        } else if let Ok(at) = StandingKey::parse(key) {
            self.zones.forget(&at, now_ms);
            self.touch(Some(&at.service));
        } else if key.starts_with(AUTHORITY_PREFIX) {
            let cell = self.authorities.delete(key);
            self.reowned(cell);
        } else if let Ok(at) = DirectiveKey::parse(key) {
            self.touch(at.service.as_deref());
            self.zones.want(at, None);
        } else {
            self.remove(key);
        }
    }

    /// A doubt has ended.
    pub(super) fn release(&mut self, key: &str) {
        if let Some(at) = self.instances.release(key) {
            self.touch_instances(at);
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.guard.back(key);
        if let Some(at) = self.instances.delete(key) {
            self.touch_instances(at);
        }
    }

    /// Applies terms. Unreadable or deleted ones change nothing: proxies keep the last ones.
    fn put_terms(&mut self, entry: &Entry) -> Result<(), InvalidRecord> {
        let agreement = Some(TermsRecord::parse(&entry.value)?);
        let under = |agreement: &Option<Agreement>| {
            let agreement = agreement.as_ref()?;
            self.configured.under(agreement)
        };
        let changed = self.agreement != agreement && under(&self.agreement) != under(&agreement);
        self.agreement = agreement;
        if changed {
            self.take_mesh();
        }
        Ok(())
    }
}
