//! A change costs what it touches, and what it does not touch is as if everything were made anew.

use std::sync::Arc;

use policy::Policy;
use proptest::{collection::vec, prelude::*, sample::select};
use registry::store::Entry;
use xds_server::{config::Mesh, resource::Kind, snapshot::Snapshot, translate, world::Change};

use super::{AUTHORITY, World, entry, key, listed, mesh_with, versions};

/// Services that share hosts, one of which has its instances by hash, and is fenced where anything is.
const SERVICES: [&str; 4] = [
    "{name: orders, routes: [{prefix: /orders}, {host: shop, prefix: /o}], weights: {zone: 80, region: 20}}",
    "{name: web, routes: [{prefix: /}, {host: shop, prefix: /}], weights: computed}",
    "{name: users, routes: [{host: u, prefix: /}, {host: '*.u', prefix: /}], fenced: false, failover: {hold_s: 1}}",
    "{name: carts, routes: [{host: shop, prefix: /carts}], fenced: false, strategy: {region_first_hash: {header: x-user}}}",
];

#[derive(Clone, Debug)]
enum Step {
    Put(Entry),
    Deleted(String),
    Listed(Vec<Entry>),
    Mesh(usize),
    Pass(u64),
    Freeze(bool),
}

/// Instances, what operators want, what the replicas agreed on, who owns what.
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
        mesh_with("", &["sh-c", "sh-a", "sh-b"], &[web, orders, carts]),
        mesh_with(
            "explain: {header: x-ask, token: sesame}",
            &["sh-b", "sh-a"],
            &[users, carts, web, orders],
        ),
    ]
}

/// A snapshot's views hold what their policies say, encoded as if nothing were shared.
fn check_whole(snapshot: &Snapshot, mesh: &Mesh) -> Result<(), TestCaseError> {
    let resilience = |index: usize| mesh.services[index].resilience.clone();
    for (_, view) in snapshot.views() {
        let mut encoder = protos::Encoder::default();
        let (filter, version) = translate::filter_config(&mesh.filter, view.policy(), &mut encoder);
        prop_assert_eq!(view.policy_version(), version);
        prop_assert_eq!(
            view.of(Kind::FilterConfig)[translate::FILTER].message(),
            filter.message()
        );
        let Policy::Serving(rules) = &**view.policy() else {
            panic!("a serving policy");
        };
        let table = translate::routes(rules, &resilience);
        prop_assert_eq!(
            view.of(Kind::Routes)[translate::ROUTES].message(),
            table.message()
        );
        prop_assert_eq!(
            view.needed(),
            &translate::needed_clusters(rules, &resilience)
        );
    }
    Ok(())
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
                Step::Deleted(key) => drop(world.apply(Change::Deleted { key })),
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
        // A reload makes everything anew.
        world.apply(Change::Mesh(Arc::clone(mesh)));
        let anew = world.snapshot().expect("everything");
        prop_assert_eq!(versions(&last), versions(&anew));
        for ((_, a), (_, b)) in last.views().zip(anew.views()) {
            prop_assert_eq!(a.policy(), b.policy());
            prop_assert_eq!(a.needed(), b.needed());
        }
    }
}
