//! Replicas agree with each other, and one replica with itself, however it learned its state.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*, sample::select};
use registry::{
    record::{INSTANCES_PREFIX, Instance},
    store::{Entry, Revision},
    zone_records::StandingRecord,
};
use xds_server::{config::Mesh, world::Change};

use super::{AUTHORITY, ORDERS, World, entry, key, listed, mesh_with, record, versions};

/// An event of a store, or of its watchers.
#[derive(Clone, Debug)]
enum Event {
    Put(String, Vec<u8>),
    Delete(String),
    /// As above, but the watch has lost it.
    LostPut(String, Vec<u8>),
    LostDelete(String),
    Relist,
    Mesh(usize),
    Snapshot,
}

/// The content of the store, and the part of it that can be served: an unreadable record leaves the
/// previously served one.
#[derive(Default)]
struct Model {
    revision: i64,
    stored: BTreeMap<String, Entry>,
    served: BTreeMap<String, Entry>,
}

impl Model {
    /// The store's entry after a put.
    fn put(&mut self, key: String, value: Vec<u8>) -> Entry {
        self.revision += 1;
        let before = self.stored.get(&key).map(|old| old.create_revision);
        let entry = Entry {
            create_revision: before.unwrap_or(Revision(self.revision)),
            ..entry(key.clone(), value, self.revision)
        };
        self.stored.insert(key, entry.clone());
        entry
    }

    fn serve(&mut self, entry: &Entry) {
        let readable = match entry.key.starts_with(INSTANCES_PREFIX) {
            true => Instance::parse(&entry.value).is_ok(),
            false => entry.value != "garbage",
        };
        if readable {
            self.served.insert(entry.key.clone(), entry.clone());
        }
    }

    fn relist(&mut self) -> Vec<Entry> {
        let held: BTreeSet<String> = self.stored.keys().cloned().collect();
        self.served.retain(|key, _| held.contains(key));
        let entries: Vec<Entry> = self.stored.values().cloned().collect();
        entries.iter().for_each(|entry| self.serve(entry));
        entries
    }

    /// Writes the world's proposals, and reports them to it.
    fn write(&mut self, world: &mut World) {
        for (key, proposal) in world.world.proposals().clone() {
            let standing = StandingRecord::to_json(proposal.standing);
            let entry = self.put(key, standing);
            self.serve(&entry);
            world.apply(Change::Put(entry));
        }
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let at = || {
        let service = select(vec!["orders", "web", "users", "gateway"]);
        let zone = select(vec!["sh-a", "sh-b", "sh-c", "mars"]);
        (service, zone, 0..3_u8)
            .prop_map(|(service, zone, n)| key(&format!("{service}/{zone}/{n}")))
    };
    let health = select(vec!["healthy", "healthy", "unhealthy", "draining"]);
    let value = prop_oneof![
        8 => (1..4_u16, health, 0..3_u8).prop_map(|(port, health, load)| {
            let text = format!(
                r#"{{"address":"10.0.0.1","port":{port},"health":"{health}","load1_per_core":{load}}}"#
            );
            text.into_bytes()
        }),
        1 => Just(b"garbage".to_vec()),
        1 => Just(record(0, "healthy")),
    ];
    let owner = prop_oneof![
        4 => (1..4_u8, select(vec!["sh-a", "sh-b", "mars"])).prop_map(|(epoch, owner)| {
            let owners = format!(r#""epoch": {epoch}, "owners": ["{owner}"]"#);
            format!(r#"{{"store": "1", {owners}, "state": "active"}}"#).into_bytes()
        }),
        1 => Just(b"garbage".to_vec()),
    ];
    let cell = || "/tidegate/v1/authority/main".to_owned();
    let event = prop_oneof![
        2 => owner.clone().prop_map(move |value| Event::Put(cell(), value)),
        1 => owner.prop_map(move |value| Event::LostPut(cell(), value)),
        1 => select(vec![Event::Delete(cell()), Event::LostDelete(cell())]),
        12 => (at(), value.clone()).prop_map(|(key, value)| Event::Put(key, value)),
        4 => at().prop_map(Event::Delete),
        1 => (at(), value).prop_map(|(key, value)| Event::LostPut(key, value)),
        1 => at().prop_map(Event::LostDelete),
        1 => Just(Event::Relist),
        1 => (0..3_usize).prop_map(Event::Mesh),
        4 => Just(Event::Snapshot),
    ];
    vec(event, 1..40)
}

/// Meshes whose guard permits any disappearance.
fn meshes() -> [Arc<Mesh>; 3] {
    let web = "{name: web, routes: [{prefix: /}], weights: computed}";
    let users = "{name: users, routes: [{host: u, prefix: /}]}";
    let believing = |more: &str, zones: &[&str], services: &[&str]| {
        let mut mesh = mesh_with(more, zones, services);
        Arc::make_mut(&mut mesh).guard.vanish_percent = 100;
        mesh
    };
    [
        believing(AUTHORITY, &["sh-a", "sh-b"], &[ORDERS, web]),
        believing(
            "authority: {cells: [{name: x}, {name: main}]}",
            &["sh-c", "sh-a", "sh-b"],
            &[web, users, ORDERS],
        ),
        believing("", &["sh-b"], &[web]),
    ]
}

/// Found by the property below: the record was lost until the next listing.
#[test]
fn a_mesh_without_a_doubted_instance_keeps_its_record() {
    let [_, with, without] = meshes();
    let mut model = Model::default();
    let older = model.put(key("users/sh-c/0"), record(1, "healthy"));
    let newer = model.put(key("users/sh-a/0"), record(1, "healthy"));
    let mut world = World::new(with);
    world.apply(Change::Put(newer.clone()));
    // Another zone has the older record of the address, so that one is doubted.
    world.apply(listed(vec![newer, older]));
    world.apply(Change::Mesh(without));
    drop(world.snapshot());
    assert_eq!(world.instances(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Replicas agree after any sequence of events: one that followed every event sends the same as
    /// one that has just started.
    #[test]
    fn the_way_to_a_state_leaves_no_trace_in_it(events in events(), order in any::<prop::sample::Index>()) {
        let meshes = meshes();
        let mut mesh = &meshes[0];
        let mut model = Model::default();
        let mut world = World::new(Arc::clone(mesh));
        let mut last = world.snapshot();
        for event in events {
            match event {
                Event::Put(key, value) => {
                    let entry = model.put(key, value);
                    model.serve(&entry);
                    world.apply(Change::Put(entry));
                }
                Event::Delete(key) => {
                    model.stored.remove(&key);
                    model.served.remove(&key);
                    world.apply(Change::Deleted { key, revision: Revision(0) });
                }
                Event::LostPut(key, value) => {
                    model.put(key, value);
                }
                Event::LostDelete(key) => {
                    model.stored.remove(&key);
                }
                Event::Relist => {
                    world.apply(listed(model.relist()));
                }
                Event::Mesh(at) => {
                    mesh = &meshes[at];
                    world.apply(Change::Mesh(Arc::clone(mesh)));
                }
                Event::Snapshot => {
                    last = world.snapshot().or(last);
                    model.write(&mut world);
                }
            }
        }
        last = world.snapshot().or(last);
        model.write(&mut world);
        prop_assert!(world.snapshot().is_none());

        let mut all: Vec<_> = model.served.into_values().collect();
        let instances = all.iter().filter(|e| e.key.starts_with(INSTANCES_PREFIX)).count();
        if !all.is_empty() {
            let by = order.index(all.len());
            all.rotate_left(by);
        }
        let mut fresh = World::new(Arc::clone(mesh));
        fresh.apply(listed(all));
        let fresh = fresh.snapshot().expect("a first snapshot");
        let last = last.expect("a snapshot");
        prop_assert_eq!(versions(&last), versions(&fresh));
        prop_assert_eq!(world.instances(), instances);
        for ((_, a), (_, b)) in last.views().zip(fresh.views()) {
            prop_assert_eq!(a.policy_version(), b.policy_version());
            prop_assert_eq!(a.needed(), b.needed());
        }
    }
}
