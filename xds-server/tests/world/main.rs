//! Changes in, snapshots out: the resources of proxies when instances come, go and misbehave.

mod claims;
mod fence;
mod guard;
mod incremental;
mod replicas;
mod zones;

use std::{collections::BTreeMap, sync::Arc};

use envoy_types::pb::envoy::config::{
    core::v3::{address, socket_address::PortSpecifier},
    endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
};
use policy::{Class, Policy, ZoneStanding};
use prost::Message;
use registry::{
    record::INSTANCES_PREFIX,
    store::{Entry, Revision},
    zone_records::StandingRecord,
};
use xds::resource::{Kind, Version};
use xds_server::{
    config::Mesh,
    snapshot::{Role, Snapshot, View, ViewKey},
    testing,
    world::{Change, DOUBT_MS, Origin, Rejection},
};

const ORDERS: &str = "{name: orders, routes: [{prefix: /orders}], weights: {zone: 80, region: 20}}";
const WEB: &str = "{name: web, routes: [{prefix: /}]}";

fn mesh(services: &[&str]) -> Arc<Mesh> {
    mesh_of(&["sh-a", "sh-b"], services)
}

fn mesh_of(zones: &[&str], services: &[&str]) -> Arc<Mesh> {
    mesh_with("", zones, services)
}

const AUTHORITY: &str = "authority: {forward_token: 0123456789abcdef}";

/// A mesh with more of the configuration.
fn mesh_with(more: &str, zones: &[&str], services: &[&str]) -> Arc<Mesh> {
    let zones = zones.iter().map(|zone| format!("{zone}/shanghai "));
    let rest = format!("{more}\nservices: [{}]", services.join(", "));
    Arc::new(testing::mesh(&zones.collect::<String>(), &rest))
}

fn key(at: &str) -> String {
    format!("{INSTANCES_PREFIX}{at}")
}

fn record(port: u16, health: &str) -> Vec<u8> {
    format!(r#"{{"address":"10.0.0.1","port":{port},"health":"{health}"}}"#).into_bytes()
}

/// A record created at this revision.
fn entry(key: String, value: impl Into<Vec<u8>>, created: i64) -> Entry {
    Entry {
        key,
        value: value.into().into(),
        create_revision: Revision(created),
        mod_revision: Revision(created),
        lease: None,
    }
}

fn put(at: &str, value: impl Into<Vec<u8>>) -> Change {
    Change::Put(entry(key(at), value, 1))
}

fn listed(entries: Vec<Entry>) -> Change {
    Change::Listed {
        entries,
        revision: Revision(1),
        origin: Origin::Store,
    }
}

/// A world and its clock.
struct World {
    world: xds_server::world::World,
    now_ms: u64,
}

impl World {
    fn new(mesh: Arc<Mesh>) -> World {
        World {
            world: xds_server::world::World::new(mesh),
            now_ms: 5,
        }
    }

    /// A world that starts with an empty store and no last good state.
    fn unvouched(mesh: Arc<Mesh>) -> World {
        World {
            world: xds_server::world::World::new(mesh).unvouched(),
            now_ms: 5,
        }
    }

    fn apply(&mut self, change: Change) -> Vec<Rejection> {
        self.world.apply(change, self.now_ms)
    }

    fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        self.world.snapshot(self.now_ms)
    }

    /// Lets time pass; due changes happen, and all proposals are written.
    fn pass(&mut self, ms: u64) -> Option<Arc<Snapshot>> {
        let end_ms = self.now_ms + ms;
        let mut last = None;
        for revision in 100..1_000 {
            last = self.snapshot().or(last);
            for (key, proposal) in self.world.proposals().clone() {
                let value = StandingRecord::to_json(proposal.standing);
                self.apply(match proposal.standing == ZoneStanding::default() {
                    true => Change::Deleted {
                        key,
                        revision: Revision(0),
                    },
                    false => Change::Put(entry(key, value, revision)),
                });
            }
            match self.world.due_ms() {
                Some(due_ms) if due_ms <= end_ms => self.now_ms = due_ms.max(self.now_ms),
                _ => break,
            }
        }
        self.now_ms = end_ms;
        last
    }

    fn rejected(&self) -> usize {
        self.world.rejected().len()
    }

    fn instances(&self) -> usize {
        self.world.instances()
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
    let assignment = ClusterLoadAssignment::decode(resource.message()).expect("an assignment");
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
    let plan = rules
        .services()
        .get(0)
        .expect("a service")
        .plans
        .get(rules.viewer(), Class::Read);
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
        // For each zone its endpoints, and the destinations of reads and writes.
        assert_eq!(
            Kind::ALL.map(|kind| view.of(kind).len()),
            [6, 0, 2, 1, 1, 0, 1]
        );
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
        assert!(
            world.snapshot().is_none(),
            "{at} changes the proxies' resources"
        );

        // The others continue.
        world.apply(put("orders/sh-a/9", record(9, "healthy")));
        let snapshot = world.snapshot().expect("a new instance");
        assert_eq!(ports(&snapshot, "orders/sh-a"), [1, 9]);

        world.apply(Change::Deleted {
            key: key(at),
            revision: Revision(0),
        });
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
    // Neither a listing with the same garbage nor a new mesh removes it.
    let all = vec![
        entry(key("orders/sh-a/1"), "garbage", 1),
        entry(key("orders/sh-b/2"), record(2, "healthy"), 1),
    ];
    assert_eq!(world.apply(listed(all)), []);
    assert!(world.snapshot().is_none());
    assert_eq!(world.apply(Change::Mesh(mesh(&[ORDERS, WEB]))), []);
    let after = world.snapshot().expect("a snapshot of the new mesh");
    assert_eq!(versions(&after), versions(&before));
    assert_eq!(world.rejected(), 1);

    world.apply(Change::Deleted {
        key: key("orders/sh-a/1"),
        revision: Revision(0),
    });
    let snapshot = world.pass(DOUBT_MS).expect("an instance less");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [] as [u32; 0]);
    assert_eq!((world.rejected(), world.instances()), (0, 1));
}

#[test]
fn a_listing_removes_what_it_does_not_hold() {
    let (mut world, _) = serving();
    world.apply(put("orders/sh-a/bad", "{"));
    let rest = vec![
        entry(key("orders/sh-b/2"), record(2, "healthy"), 1),
        entry(key("orders/sh-b/3"), record(3, "healthy"), 1),
    ];
    assert_eq!(world.apply(listed(rest)), []);
    let snapshot = world.pass(DOUBT_MS).expect("other instances");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [] as [u32; 0]);
    assert_eq!(ports(&snapshot, "orders/sh-b"), [2, 3]);
    assert_eq!((world.rejected(), world.instances()), (0, 2));
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
    world.apply(put("orders/sh-a/9", record(9, "draining")));
    world.apply(Change::Deleted {
        key: key("orders/sh-a/9"),
        revision: Revision(0),
    });
    world.apply(Change::Deleted {
        key: key("orders/sh-a/never-there"),
        revision: Revision(0),
    });
    // The operator's weights ignore load.
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
