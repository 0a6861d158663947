//! The records on the lease: which are written, which are being written, and which should be
//! written next. No I/O.

use std::collections::BTreeMap;

use registry::record::{Instance, InstanceKey};
use tokio::task::AbortHandle;

use super::target::{Stored, Version};
use crate::instances::Table;

/// Records being written at once; the others wait their turn.
const PUTS_MAX: usize = 64;
/// The same for writes that change nothing but load.
const LOAD_PUTS_MAX: usize = 8;

#[derive(Default)]
pub(super) struct Records {
    slots: BTreeMap<InstanceKey, Slot>,
    /// Puts are numbered, so that the result of one that was given up is recognised.
    last_put: u64,
}

#[derive(Default)]
struct Slot {
    /// The record that was acknowledged last.
    stored: Option<Instance>,
    /// None: unknown, so the record is written whatever `stored` says.
    version: Option<Version>,
    flight: Option<Flight>,
}

/// A put under way.
struct Flight {
    number: u64,
    record: Instance,
    load_only: bool,
    task: AbortHandle,
}

/// A write that should begin.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Write {
    pub(super) key: InstanceKey,
    pub(super) record: Instance,
    /// It changes nothing but load.
    pub(super) load_only: bool,
}

/// The number of a put that begins, and the version that the registry is believed to hold.
pub(super) struct Begun {
    pub(super) number: u64,
    pub(super) known: Option<Version>,
}

/// The need of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// Only the load is another.
    Load,
    Now,
}

impl Slot {
    fn need(&self, wanted: &Instance) -> Need {
        if let Some(flight) = &self.flight {
            // Load waits for its turn.
            return match flight.record.health == wanted.health {
                true => Need::Nothing,
                false => Need::Now,
            };
        }
        match (&self.stored, self.version) {
            (Some(stored), Some(_)) if stored == wanted => Need::Nothing,
            (Some(stored), Some(_)) if stored.health == wanted.health => Need::Load,
            _ => Need::Now,
        }
    }

    fn give_up(&mut self) {
        if let Some(flight) = self.flight.take() {
            flight.task.abort();
            self.version = None;
        }
    }
}

impl Records {
    /// The records to write now, so that the registry matches the table. Load alone only when
    /// nothing that matters more is under way.
    pub(super) fn due(&self, table: &Table) -> Vec<Write> {
        let flights = || self.slots.values().filter_map(|slot| slot.flight.as_ref());
        let load_only = flights().filter(|flight| flight.load_only).count();
        let urgent = flights().count() - load_only;
        let needing = |needed: Need| {
            table.iter().filter_map(move |(key, known)| {
                let record = known.record()?;
                let slot = self.slots.get(key);
                let need = slot.map_or(Need::Now, |slot| slot.need(&record));
                (need == needed).then(|| Write {
                    key: key.clone(),
                    record,
                    load_only: need == Need::Load,
                })
            })
        };
        let due: Vec<Write> = needing(Need::Now)
            .take(PUTS_MAX.saturating_sub(urgent))
            .collect();
        if urgent > 0 || !due.is_empty() {
            return due;
        }
        needing(Need::Load)
            .take(LOAD_PUTS_MAX.saturating_sub(load_only))
            .collect()
    }

    /// Whether a put is under way.
    pub(super) fn in_flight(&self) -> bool {
        self.slots.values().any(|slot| slot.flight.is_some())
    }

    /// A put of this record begins, in place of an older one that is under way. Until it is
    /// answered the registry's content is unknown.
    pub(super) fn begin(&mut self, key: &InstanceKey) -> Begun {
        let slot = self.slots.entry(key.clone()).or_default();
        slot.give_up();
        self.last_put += 1;
        Begun {
            number: self.last_put,
            known: slot.version.take(),
        }
    }

    /// The put is under way in this task.
    pub(super) fn begun(&mut self, write: Write, number: u64, task: AbortHandle) {
        let slot = self.slots.entry(write.key).or_default();
        slot.flight = Some(Flight {
            number,
            record: write.record,
            load_only: write.load_only,
            task,
        });
    }

    /// A put was answered; none: its outcome is unknown. False if it had been given up.
    pub(super) fn answered(
        &mut self,
        key: &InstanceKey,
        number: u64,
        version: Option<Version>,
    ) -> bool {
        let Some(slot) = self.slots.get_mut(key) else {
            return false;
        };
        let flight = slot.flight.take_if(|flight| flight.number == number);
        let awaited = flight.is_some();
        if let (Some(flight), Some(version)) = (flight, version) {
            slot.stored = Some(flight.record);
            slot.version = Some(version);
        }
        awaited
    }

    /// The records that the registry is known to hold.
    pub(super) fn certain(&self) -> Vec<Stored> {
        let certain = self.slots.iter().filter_map(|(key, slot)| {
            Some(Stored {
                key: key.clone(),
                record: slot.stored.clone()?,
                version: slot.version?,
            })
        });
        certain.collect()
    }

    /// The registry does not hold this record. False if it has been written anew since, or is being
    /// written.
    pub(super) fn differs(&mut self, stored: &Stored) -> bool {
        let slot = self.slots.get_mut(&stored.key).filter(|slot| {
            slot.flight.is_none()
                && slot.version == Some(stored.version)
                && slot.stored.as_ref() == Some(&stored.record)
        });
        let Some(slot) = slot else {
            return false;
        };
        slot.stored = None;
        slot.version = None;
        true
    }

    /// The acknowledged version of each record.
    pub(super) fn acknowledged(&self) -> BTreeMap<InstanceKey, Instance> {
        let stored = self.slots.iter();
        stored
            .filter_map(|(key, slot)| Some((key.clone(), slot.stored.clone()?)))
            .collect()
    }

    /// Ends the puts under way.
    pub(super) fn give_up(&mut self) {
        self.slots.values_mut().for_each(Slot::give_up);
    }

    /// Forgets everything: the lease is gone, and the records with it.
    pub(super) fn clear(&mut self) {
        self.give_up();
        self.slots.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::ProbeVerdict;
    use crate::instances::Known;

    fn key(name: &str) -> InstanceKey {
        InstanceKey {
            service: "s".to_owned(),
            zone: "z".to_owned(),
            instance: name.to_owned(),
        }
    }

    fn table(names: impl IntoIterator<Item = String>) -> Table {
        let known = |name: String| {
            let record = Instance::parse(br#"{"address": "127.0.0.1", "port": 1}"#);
            let mut known = Known::new(record.expect("a record"));
            known.verdict = Some(ProbeVerdict::Healthy);
            (key(&name), known)
        };
        names.into_iter().map(known).collect()
    }

    fn two() -> Table {
        table(["a".to_owned(), "b".to_owned()])
    }

    /// Begins the due puts; the tasks never end by themselves.
    fn begin(records: &mut Records, due: Vec<Write>) -> Vec<(InstanceKey, u64)> {
        let each = due.into_iter().map(|write| {
            let (key, begun) = (write.key.clone(), records.begin(&write.key));
            let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
            records.begun(write, begun.number, task);
            (key, begun.number)
        });
        each.collect()
    }

    fn written(table: &Table) -> Records {
        let mut records = Records::default();
        let due = records.due(table);
        for (key, number) in begin(&mut records, due) {
            assert!(records.answered(&key, number, Some(Version(1))));
        }
        assert_eq!(records.due(table), []);
        records
    }

    fn names(due: &[Write]) -> Vec<(&str, bool)> {
        let names = due
            .iter()
            .map(|write| (write.key.instance.as_str(), write.load_only));
        names.collect()
    }

    #[tokio::test]
    async fn load_waits_until_nothing_else_is_under_way_and_delays_nothing() {
        let mut table = two();
        let mut records = written(&table);
        table.get_mut(&key("a")).unwrap().load.load1_per_core = 1.0;
        let due = records.due(&table);
        assert_eq!(names(&due), [("a", true)]);
        let load = begin(&mut records, due);
        assert_eq!(names(&records.due(&table)), []);

        // The same instance falls ill while its load is being written: now, and in its place.
        table.get_mut(&key("a")).unwrap().verdict = Some(ProbeVerdict::Unhealthy);
        table.get_mut(&key("b")).unwrap().load.load1_per_core = 1.0;
        let due = records.due(&table);
        assert_eq!(names(&due), [("a", false)]);
        let health = begin(&mut records, due);
        assert!(!records.answered(&load[0].0, load[0].1, Some(Version(2))));
        assert_eq!(names(&records.due(&table)), [], "the load of b waits");
        assert!(records.answered(&health[0].0, health[0].1, Some(Version(3))));
        assert_eq!(names(&records.due(&table)), [("b", true)]);
    }

    #[tokio::test]
    async fn a_put_in_place_of_another_trusts_no_version() {
        let mut table = two();
        let mut records = written(&table);
        assert_eq!(records.begin(&key("b")).known, Some(Version(1)));
        table.get_mut(&key("a")).unwrap().verdict = Some(ProbeVerdict::Unhealthy);
        let due = records.due(&table);
        begin(&mut records, due);
        assert_eq!(records.begin(&key("a")).known, None);
    }

    #[tokio::test]
    async fn a_failed_put_is_due_again_even_if_the_old_record_is_wanted_again() {
        let mut table = two();
        let mut records = written(&table);
        table.get_mut(&key("a")).unwrap().verdict = Some(ProbeVerdict::Unhealthy);
        let due = records.due(&table);
        let begun = begin(&mut records, due);
        assert!(records.answered(&begun[0].0, begun[0].1, None));
        table.get_mut(&key("a")).unwrap().verdict = Some(ProbeVerdict::Healthy);
        assert_eq!(names(&records.due(&table)), [("a", false)]);
    }

    #[tokio::test]
    async fn an_audit_counts_only_for_what_was_not_written_since() {
        let table = two();
        let mut records = written(&table);
        let certain = records.certain();
        assert_eq!(certain.len(), 2);
        assert!(records.differs(&certain[0]));
        assert!(!records.differs(&certain[0]), "it is known already");
        assert_eq!(names(&records.due(&table)), [("a", false)]);
        let due = records.due(&table);
        begin(&mut records, due);
        assert!(!records.differs(&certain[0]), "it is being written");
        assert_eq!(records.acknowledged().len(), 1);
    }

    #[tokio::test]
    async fn writes_at_once_are_bounded() {
        let table = table((0..100).map(|n| format!("i{n}")));
        let mut records = Records::default();
        let due = records.due(&table);
        assert_eq!(due.len(), PUTS_MAX);
        let begun = begin(&mut records, due);
        assert_eq!(records.due(&table), []);
        assert!(records.answered(&begun[0].0, begun[0].1, Some(Version(1))));
        assert_eq!(records.due(&table).len(), 1);
    }
}
