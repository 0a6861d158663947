//! A change only affects the parts that it touches, with the same result as a complete rebuild.

use std::sync::Arc;

use bytes::Bytes;
use policy::Policy;
use proptest::{collection::vec, prelude::*, sample::select};
use registry::store::{Entry, Revision};
use xds::resource::{Kind, Resources};
use xds_server::{
    config::Mesh,
    snapshot::{Role, Snapshot},
    translate,
    world::Change,
};

use super::{AUTHORITY, World, entry, key, listed, mesh_with, put, record, versions};

/// Services that share hosts. One of them uses hashing, and is fenced if anything is.
const SERVICES: [&str; 4] = [
    "{name: orders, routes: [{prefix: /orders}, {host: shop, prefix: /o}], weights: {zone: 80, region: 20}}",
    "{name: web, routes: [{prefix: /}, {host: shop, prefix: /}], weights: computed}",
    "{name: users, routes: [{host: u, prefix: /}, {host: '*.u', prefix: /}], fenced: false, failover: {hold_s: 1}}",
    "{name: carts, routes: [{host: shop, prefix: /carts}], fenced: false, strategy: {region_first_hash: {header: x-user}}}",
];

/// Listeners for all resources that consist of virtual hosts.
const LISTENERS: &str = "listeners: {gateway: {address: 0.0.0.0, port: 1}, sidecar: {address: 127.0.0.1, port: 2, on_demand: true}, grpc: true}";

#[derive(Clone, Debug)]
enum Step {
    Put(Entry),
    Deleted(String),
    Listed(Vec<Entry>),
    Mesh(usize),
    Pass(u64),
    Freeze(bool),
}

/// Instances, directives of operators, standings that the replicas agreed on, owners.
fn records() -> impl Strategy<Value = Entry> {
    let service = || select(vec!["orders", "web", "users", "carts", "gateway"]);
    let zone = || select(vec!["sh-a", "sh-b", "sh-c"]);
    let health = select(vec!["healthy", "healthy", "unhealthy", "draining"]);
    let instance = (service(), zone(), 0..3_u8, 1..4_u16, health, 0..3_u8).prop_map(
        |(service, zone, n, port, health, load)| {
            let value = format!(
                r#"{{"address":"10.0.0.1","port":{port},"health":"{health}","load1_per_core":{load}}}"#
            );
            entry(key(&format!("{service}/{zone}/{n}")), value, i64::from(n) + 1)
        },
    );
    let intent = (zone(), proptest::option::of(service()), any::<bool>()).prop_map(
        |(zone, service, drain)| {
            let service = service.map(|service| format!("/{service}"));
            let at = format!(
                "/tidegate/v1/config/intents/{zone}{}",
                service.unwrap_or_default()
            );
            let intent = if drain { "drain" } else { "pin" };
            entry(at, format!(r#"{{"intent": "{intent}"}}"#), 1)
        },
    );
    let authority = (1..4_u8, zone()).prop_map(|(epoch, owner)| {
        let value = format!(
            r#"{{"store": "1", "epoch": {epoch}, "owners": ["{owner}"], "state": "active"}}"#
        );
        entry("/tidegate/v1/authority/main".to_owned(), value, 1)
    });
    prop_oneof![8 => instance, 2 => intent, 1 => authority]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => records().prop_map(Step::Put),
        4 => records().prop_map(|entry| Step::Deleted(entry.key)),
        1 => vec(records(), 0..8).prop_map(Step::Listed),
        1 => (0..3_usize).prop_map(Step::Mesh),
        2 => (0..3_000_u64).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Freeze),
    ];
    vec(step, 1..40)
}

fn meshes() -> [Arc<Mesh>; 3] {
    let [orders, web, users, carts] = SERVICES;
    [
        mesh_with(AUTHORITY, &["sh-a", "sh-b"], &SERVICES),
        mesh_with(LISTENERS, &["sh-c", "sh-a", "sh-b"], &[web, orders, carts]),
        mesh_with(
            "explain: {header: x-ask, token: sesame}",
            &["sh-b", "sh-a"],
            &[users, carts, web, orders],
        ),
    ]
}

/// Checks that a snapshot's views hold the content of their policies, encoded as if nothing were
/// shared.
fn check_whole(snapshot: &Snapshot, mesh: &Mesh) -> Result<(), TestCaseError> {
    let resilience = |index: usize| mesh.services[index].resilience.clone();
    for (key, view) in snapshot.views() {
        let Policy::Serving(rules) = &**view.policy() else {
            panic!("a serving policy");
        };
        let tables = messages(view.of(Kind::Routes));
        if key.role == Role::Grpc {
            let anew = translate::grpc::routes(rules, &resilience);
            prop_assert_eq!(tables, messages(&anew));
            continue;
        }
        let mut encoder = protos::Encoder::default();
        let (filter, version) = translate::filter_config(&mesh.filter, view.policy(), &mut encoder);
        prop_assert_eq!(view.policy_version(), version);
        prop_assert_eq!(
            view.of(Kind::FilterConfig)[translate::FILTER].message(),
            filter.message()
        );
        if view.is_on_demand() {
            let anew = translate::virtual_hosts(rules, &resilience);
            let anew = anew.iter();
            let anew = anew.map(|(name, host)| translate::virtual_host_on_demand(name, host));
            let anew = anew.map(|host| (Arc::clone(&host.name), host)).collect();
            prop_assert_eq!(messages(view.of(Kind::VirtualHosts)), messages(&anew));
        } else {
            let table = translate::routes(rules, &resilience);
            prop_assert_eq!(tables, [table.message()]);
        }
        prop_assert_eq!(
            view.needed(),
            &translate::needed_clusters(rules, &resilience)
        );
    }
    Ok(())
}

fn messages(resources: &Resources) -> Vec<Bytes> {
    resources.values().map(|r| r.message()).collect()
}

/// For four services with paths on one host. The first one's routes share a piece with the head,
/// which contains the host's length.
#[test]
fn a_plan_leaves_the_routes_of_other_services_where_they_are_in_memory() {
    let services = ["a", "b", "c", "d"].map(|name| {
        format!(
            "{{name: {name}, routes: [{{prefix: /{name}}}], weights: {{zone: 80, region: 20}}}}"
        )
    });
    let services = services.each_ref().map(String::as_str);
    let mut world = World::new(mesh_with(LISTENERS, &["sh-a", "sh-b"], &services));
    for name in ["a", "b", "c", "d"] {
        for (port, zone) in (1..).zip(["sh-a", "sh-b"]) {
            world.apply(put(&format!("{name}/{zone}/1"), record(port, "healthy")));
        }
    }
    let before = world.snapshot().expect("a first snapshot");
    world.apply(put("c/sh-b/1", record(2, "unhealthy")));
    let after = world.snapshot().expect("another plan");
    for ((key, before), (_, after)) in before.views().zip(after.views()) {
        let kind = match before.is_on_demand() {
            true => Kind::VirtualHosts,
            false => Kind::Routes,
        };
        let whole = |resources: &Resources| {
            let mut resources = resources.values();
            let resource = resources.next().expect("one of them").clone();
            assert!(resources.next().is_none());
            resource
        };
        let [before, after] = [before, after].map(|view| whole(view.of(kind)));
        assert_ne!(before.version, after.version);
        // All bytes are still alive, so no two can have the same address.
        let shared = |piece: &&Bytes| {
            let mut pieces = before.rest().iter();
            pieces.any(|before| before.as_ptr() == piece.as_ptr() && before.len() == piece.len())
        };
        let has = |piece: &&Bytes, name: &str| {
            let path = format!("/{name}");
            piece.windows(2).any(|at| at == path.as_bytes())
        };
        for (name, stays) in [("a", false), ("b", true), ("c", false), ("d", true)] {
            let pieces = after.rest().iter().filter(|piece| has(piece, name));
            let pieces: Vec<bool> = pieces.map(|piece| shared(&piece)).collect();
            assert_eq!(pieces, [stays], "{key:?} {name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_follows_a_change_is_what_comes_of_beginning_anew(steps in steps()) {
        let meshes = meshes();
        let mut mesh = &meshes[0];
        let mut world = World::new(Arc::clone(mesh));
        let mut last = world.snapshot().expect("a first snapshot");
        for step in steps {
            match step {
                Step::Put(entry) => drop(world.apply(Change::Put(entry))),
                Step::Deleted(key) => drop(world.apply(Change::Deleted { key, revision: Revision(0) })),
                Step::Listed(entries) => drop(world.apply(listed(entries))),
                Step::Mesh(at) => {
                    mesh = &meshes[at];
                    world.apply(Change::Mesh(Arc::clone(mesh)));
                }
                Step::Pass(ms) => last = world.pass(ms).unwrap_or(last),
                Step::Freeze(frozen) => world.world.freeze(frozen),
            }
            if let Some(next) = world.snapshot() {
                last = next;
                check_whole(&last, mesh)?;
            }
        }
        // A reload rebuilds everything.
        world.apply(Change::Mesh(Arc::clone(mesh)));
        let anew = world.snapshot().expect("everything");
        prop_assert_eq!(versions(&last), versions(&anew));
        for ((_, a), (_, b)) in last.views().zip(anew.views()) {
            prop_assert_eq!(a.policy(), b.policy());
            prop_assert_eq!(a.needed(), b.needed());
        }
    }
}
