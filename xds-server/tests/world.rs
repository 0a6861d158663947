//! Changes in, snapshots out: what proxies are sent when instances come, go and misbehave.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::envoy::config::{
    core::v3::{address, socket_address::PortSpecifier},
    endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
};
use policy::{Class, Policy};
use proptest::{collection::vec, prelude::*, sample::select};
use prost::Message;
use registry::record::{INSTANCES_PREFIX, Instance};
use registry::store::{Entry, Revision};
use xds_server::{
    config::{Config, Mesh},
    resource::{Kind, Version},
    snapshot::{Role, Snapshot, View, ViewKey},
    world::{Change, Origin, World},
};

const ORDERS: &str = "{name: orders, routes: [{prefix: /orders}], weights: {zone: 80, region: 20}}";
const WEB: &str = "{name: web, routes: [{prefix: /}]}";

fn mesh(services: &[&str]) -> Arc<Mesh> {
    mesh_of(&["sh-a", "sh-b"], services)
}

fn mesh_of(zones: &[&str], services: &[&str]) -> Arc<Mesh> {
    let zones: Vec<String> = zones
        .iter()
        .map(|zone| format!("{{name: {zone}, region: shanghai}}"))
        .collect();
    let text = format!(
        "store: {{embedded: {{path: t.redb}}}}\nfilter: {{path: f.wasm}}\nzones: [{}]\nservices: [{}]\n",
        zones.join(", "),
        services.join(", ")
    );
    Arc::new(
        Config::parse("mesh.yaml", &text)
            .expect("a good configuration")
            .mesh,
    )
}

fn key(at: &str) -> String {
    format!("{INSTANCES_PREFIX}{at}")
}

fn record(port: u16, health: &str) -> Vec<u8> {
    format!(r#"{{"address":"10.0.0.1","port":{port},"health":"{health}"}}"#).into_bytes()
}

fn put(at: &str, value: impl Into<Vec<u8>>) -> Change {
    Change::Put(entry(key(at), value))
}

fn entry(key: String, value: impl Into<Vec<u8>>) -> Entry {
    Entry {
        key,
        value: value.into().into(),
        create_revision: Revision(1),
        mod_revision: Revision(1),
        lease: None,
    }
}

fn listed(entries: Vec<(String, Vec<u8>)>) -> Change {
    let entries = entries.into_iter().map(|(key, value)| entry(key, value));
    Change::Listed {
        entries: entries.collect(),
        revision: Revision(1),
        origin: Origin::Store,
    }
}

/// A world with `orders/sh-a/1` at port 1 and `orders/sh-b/2` at port 2, and its first snapshot.
fn serving() -> (World, Arc<Snapshot>) {
    let mut world = World::new(mesh(&[ORDERS, WEB]));
    world.apply(put("orders/sh-a/1", record(1, "healthy")));
    world.apply(put("orders/sh-b/2", record(2, "healthy")));
    let snapshot = world.snapshot().expect("a first snapshot");
    (world, snapshot)
}

fn view<'s>(snapshot: &'s Snapshot, zone: &str) -> &'s View {
    let key = ViewKey {
        zone: zone.into(),
        role: Role::Gateway,
    };
    snapshot.view(&key).expect("a view")
}

/// The ports of a cluster's endpoints.
fn ports(snapshot: &Snapshot, cluster: &str) -> Vec<u32> {
    let view = view(snapshot, "sh-a");
    let resource = view.of(Kind::Endpoints).get(cluster).expect("endpoints");
    let assignment =
        ClusterLoadAssignment::decode(&resource.body.value[..]).expect("an assignment");
    let endpoints = assignment.endpoints.iter().flat_map(|l| &l.lb_endpoints);
    endpoints
        .map(|endpoint| {
            let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
                panic!("an endpoint");
            };
            let address = endpoint.address.as_ref().and_then(|a| a.address.as_ref());
            let Some(address::Address::SocketAddress(socket)) = address else {
                panic!("a socket address");
            };
            match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => port,
                _ => panic!("a port"),
            }
        })
        .collect()
}

/// The shares of orders' reads at `sh-a`.
fn shares(snapshot: &Snapshot) -> Vec<u32> {
    let Policy::Serving(rules) = &**view(snapshot, "sh-a").policy() else {
        panic!("a serving policy");
    };
    let plan = rules.services()[0].plans.get(rules.viewer(), Class::Read);
    plan.targets().iter().map(|target| target.weight).collect()
}

/// Every resource of every view with its version.
fn versions(snapshot: &Snapshot) -> BTreeMap<(String, Kind, String), Version> {
    let views = snapshot.views();
    views
        .flat_map(|(key, view)| {
            Kind::ALL.into_iter().flat_map(move |kind| {
                view.of(kind).iter().map(move |(name, resource)| {
                    let proxies = format!("{} {}", key.zone, key.role.as_str());
                    ((proxies, kind, name.to_string()), resource.version)
                })
            })
        })
        .collect()
}

#[test]
fn an_empty_mesh_has_routes_that_refuse_and_clusters_without_endpoints() {
    let mut world = World::new(mesh(&[ORDERS]));
    let snapshot = world.snapshot().expect("a first snapshot");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [] as [u32; 0]);
    assert_eq!(shares(&snapshot), [] as [u32; 0]);
    assert_eq!(snapshot.zones().collect::<Vec<_>>(), ["sh-a", "sh-b"]);
    for (_, view) in snapshot.views() {
        assert_eq!(Kind::ALL.map(|kind| view.of(kind).len()), [2, 2, 1, 1, 1]);
    }
}

#[test]
fn bad_records_are_reported_once_and_everything_else_goes_on() {
    for (at, value, code) in [
        ("orders/sh-a/3", &b"{"[..], "json"),
        ("orders/sh-a/3", &record(0, "healthy"), "port"),
        ("orders/sh-a/3", &record(3, "fine"), "json"),
        ("orders/mars/3", &record(3, "healthy"), "unknown_zone"),
        ("users/sh-a/3", &record(3, "healthy"), "unknown_service"),
        ("orders/sh-a", &record(3, "healthy"), "key"),
        ("orders/sh-a/3/4", &record(3, "healthy"), "key"),
    ] {
        let (mut world, _) = serving();
        let rejections = world.apply(put(at, value));
        let told: Vec<_> = rejections
            .iter()
            .map(|r| (r.key.as_str(), r.error.code()))
            .collect();
        assert_eq!(told, [(key(at).as_str(), code)]);
        assert_eq!(world.apply(put(at, value)), [], "{at} is reported again");
        assert_eq!(world.rejected(), 1);
        assert!(world.snapshot().is_none(), "{at} changes what proxies get");

        // The others go on.
        world.apply(put("orders/sh-a/9", record(9, "healthy")));
        let snapshot = world.snapshot().expect("a new instance");
        assert_eq!(ports(&snapshot, "orders/sh-a"), [1, 9]);

        world.apply(Change::Deleted { key: key(at) });
        assert_eq!(world.rejected(), 0);
    }
}

#[test]
fn another_fault_of_the_same_record_is_news() {
    let (mut world, _) = serving();
    assert_eq!(world.apply(put("orders/sh-a/3", "{")).len(), 1);
    assert_eq!(
        world
            .apply(put("orders/sh-a/3", record(0, "healthy")))
            .len(),
        1
    );
    assert_eq!(world.apply(put("orders/sh-a/3", record(3, "healthy"))), []);
    assert_eq!(world.rejected(), 0);
}

#[test]
fn an_instance_whose_record_becomes_unreadable_stays_until_it_is_gone() {
    let (mut world, before) = serving();
    assert_eq!(world.apply(put("orders/sh-a/1", "garbage")).len(), 1);
    assert!(world.snapshot().is_none());
    // Neither a listing that holds the same garbage nor a new mesh takes it away.
    let all = vec![
        (key("orders/sh-a/1"), b"garbage".to_vec()),
        (key("orders/sh-b/2"), record(2, "healthy")),
    ];
    assert_eq!(world.apply(listed(all)), []);
    assert!(world.snapshot().is_none());
    assert_eq!(world.apply(Change::Mesh(mesh(&[ORDERS, WEB]))), []);
    let after = world.snapshot().expect("a snapshot of the new mesh");
    assert_eq!(versions(&after), versions(&before));
    assert_eq!(world.rejected(), 1);

    world.apply(Change::Deleted {
        key: key("orders/sh-a/1"),
    });
    let snapshot = world.snapshot().expect("an instance less");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [] as [u32; 0]);
    assert_eq!((world.rejected(), world.instances()), (0, 1));
}

#[test]
fn a_listing_removes_what_it_does_not_hold() {
    let (mut world, _) = serving();
    world.apply(put("orders/sh-a/bad", "{"));
    let all = vec![(key("orders/sh-b/3"), record(3, "healthy"))];
    assert_eq!(world.apply(listed(all)), []);
    let snapshot = world.snapshot().expect("other instances");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [] as [u32; 0]);
    assert_eq!(ports(&snapshot, "orders/sh-b"), [3]);
    assert_eq!((world.rejected(), world.instances()), (0, 1));
}

#[test]
fn a_new_mesh_adopts_what_registered_before_it_and_reports_what_it_no_longer_knows() {
    let mut world = World::new(mesh(&[ORDERS]));
    assert_eq!(
        world.apply(put("web/sh-a/1", record(7, "healthy"))).len(),
        1
    );
    world.apply(put("orders/sh-b/2", record(8, "healthy")));
    world.snapshot().expect("a first snapshot");

    assert_eq!(world.apply(Change::Mesh(mesh(&[ORDERS, WEB]))), []);
    assert_eq!(world.rejected(), 0);
    let snapshot = world.snapshot().expect("a new service");
    assert_eq!(ports(&snapshot, "web/sh-a"), [7]);
    assert_eq!(ports(&snapshot, "orders/sh-b"), [8]);

    let rejections = world.apply(Change::Mesh(mesh_of(&["sh-a"], &[WEB])));
    let codes: Vec<_> = rejections.iter().map(|r| r.error.code()).collect();
    assert_eq!(codes, ["unknown_zone"]);
    let snapshot = world.snapshot().expect("a smaller mesh");
    let clusters = view(&snapshot, "sh-a").of(Kind::Cluster).keys();
    assert_eq!(
        clusters.map(|name| &**name).collect::<Vec<_>>(),
        ["web/sh-a"]
    );
    assert_eq!(snapshot.zones().collect::<Vec<_>>(), ["sh-a"]);
}

#[test]
fn where_nothing_changes_nothing_is_sent() {
    let (mut world, _) = serving();
    assert!(world.snapshot().is_none());
    world.apply(put("orders/sh-a/1", record(1, "healthy")));
    world.apply(put("orders/sh-a/9", record(9, "healthy")));
    world.apply(Change::Deleted {
        key: key("orders/sh-a/9"),
    });
    world.apply(Change::Deleted {
        key: key("orders/sh-a/never-there"),
    });
    // The operator's weights do not ask for load.
    let loaded = r#"{"address":"10.0.0.1","port":1,"load1_per_core":3}"#;
    world.apply(put("orders/sh-a/1", loaded));
    assert!(world.snapshot().is_none());
}

#[test]
fn an_instance_that_moves_no_plan_changes_its_own_endpoints_alone() {
    let (mut world, before) = serving();
    world.apply(put("orders/sh-a/9", record(9, "healthy")));
    let after = world.snapshot().expect("a new instance");
    assert!(after.sequence > before.sequence);
    for ((_, old), (_, new)) in before.views().zip(after.views()) {
        assert!(Arc::ptr_eq(old.policy(), new.policy()));
        for kind in Kind::ALL {
            for (name, resource) in new.of(kind) {
                let shared = Arc::ptr_eq(resource, &old.of(kind)[name]);
                let own = kind == Kind::Endpoints && &**name == "orders/sh-a";
                assert_eq!(shared, !own, "{} {name}", kind.as_str());
            }
        }
    }
}

#[test]
fn a_zone_that_goes_down_moves_its_share_and_comes_back_only_when_it_is_well() {
    let mut world = World::new(mesh(&[ORDERS]));
    world.apply(put("orders/sh-b/1", record(99, "healthy")));
    let mut healthy_of_ten = |healthy: u16| {
        for port in 1..=10 {
            let health = if port <= healthy {
                "healthy"
            } else {
                "unhealthy"
            };
            world.apply(put(&format!("orders/sh-a/{port}"), record(port, health)));
        }
        shares(&world.snapshot().expect("other endpoints"))
    };
    assert_eq!(healthy_of_ten(10), [800, 200]);
    assert_eq!(healthy_of_ten(3), [800, 200]);
    assert_eq!(healthy_of_ten(2), [1000]);
    // 50 % would have been enough to stay up.
    assert_eq!(healthy_of_ten(5), [1000]);
    assert_eq!(healthy_of_ten(6), [800, 200]);
    assert_eq!(healthy_of_ten(5), [800, 200]);
}

#[test]
fn draining_instances_get_nothing_new_and_do_not_count_as_ill() {
    let (mut world, _) = serving();
    for port in 10..20 {
        world.apply(put(
            &format!("orders/sh-a/{port}"),
            record(port, "draining"),
        ));
    }
    let snapshot = world.snapshot().expect("more endpoints");
    assert_eq!(ports(&snapshot, "orders/sh-a").len(), 11);
    assert_eq!(shares(&snapshot), [800, 200]);
}

/// Something that happens to a store, or to those who watch it.
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

/// What the store holds, and what of it can be served: an unreadable record leaves what was served before.
#[derive(Default)]
struct Model {
    stored: BTreeMap<String, Vec<u8>>,
    served: BTreeMap<String, Vec<u8>>,
}

impl Model {
    fn serve(&mut self, key: &str, value: &[u8]) {
        if Instance::parse(value).is_ok() {
            self.served.insert(key.to_owned(), value.to_vec());
        }
    }

    fn relist(&mut self) -> Vec<(String, Vec<u8>)> {
        let held: BTreeSet<String> = self.stored.keys().cloned().collect();
        self.served.retain(|key, _| held.contains(key));
        for (key, value) in self.stored.clone() {
            self.serve(&key, &value);
        }
        self.stored.clone().into_iter().collect()
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let at = || {
        let service = select(vec!["orders", "web", "users"]);
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
    let event = prop_oneof![
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

/// Meshes whose zone states follow from the counts alone: down below as much as up from.
fn meshes() -> [Arc<Mesh>; 3] {
    let sharp = "thresholds: {down_below_percent: 50, up_from_percent: 50}";
    let web = format!("{{name: web, routes: [{{prefix: /}}], weights: computed, {sharp}}}");
    let orders = format!(
        "{{name: orders, routes: [{{prefix: /orders}}], weights: {{zone: 80, region: 20}}, {sharp}}}"
    );
    let users = format!("{{name: users, routes: [{{host: u, prefix: /}}], {sharp}}}");
    [
        mesh_of(&["sh-a", "sh-b"], &[&orders, &web]),
        mesh_of(&["sh-c", "sh-a", "sh-b"], &[&web, &users, &orders]),
        mesh_of(&["sh-b"], &[&web]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Replicas agree, whatever each of them saw of the way here: one that followed every event sends the same as one
    /// that has just started.
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
                    model.stored.insert(key.clone(), value.clone());
                    model.serve(&key, &value);
                    world.apply(Change::Put(entry(key, value)));
                }
                Event::Delete(key) => {
                    model.stored.remove(&key);
                    model.served.remove(&key);
                    world.apply(Change::Deleted { key });
                }
                Event::LostPut(key, value) => {
                    model.stored.insert(key, value);
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
                Event::Snapshot => last = world.snapshot().or(last),
            }
        }
        last = world.snapshot().or(last);
        prop_assert!(world.snapshot().is_none());

        let mut all: Vec<_> = model.served.into_iter().collect();
        let instances = all.len();
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
