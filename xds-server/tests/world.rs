//! Changes in, snapshots out: what proxies are sent when instances come, go and misbehave.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::envoy::config::{
    core::v3::{address, socket_address::PortSpecifier},
    endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
};
use policy::Standing;
use policy::{Class, Policy};
use proptest::{collection::vec, prelude::*, sample::select};
use prost::Message;
use registry::{
    desired::StandingRecord,
    record::{INSTANCES_PREFIX, Instance},
    store::{Entry, Revision},
};
use xds_server::{
    config::{Config, Mesh},
    resource::{Kind, Version},
    snapshot::{Role, Snapshot, View, ViewKey},
    world::{Change, DOUBT_MS, Implausible, Origin, Rejection},
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
    let zones: Vec<String> = zones
        .iter()
        .map(|zone| format!("{{name: {zone}, region: shanghai}}"))
        .collect();
    let text = format!(
        "store: {{embedded: {{path: t.redb}}}}\nfilter: {{path: f.wasm}}\n{more}\nzones: [{}]\nservices: [{}]\n",
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

/// A record that was created at this revision.
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

    fn apply(&mut self, change: Change) -> Vec<Rejection> {
        self.world.apply(change, self.now_ms)
    }

    fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        self.world.snapshot(self.now_ms)
    }

    /// Lets time pass; what is due happens, and everything that is proposed is written.
    fn pass(&mut self, ms: u64) -> Option<Arc<Snapshot>> {
        let end_ms = self.now_ms + ms;
        let mut last = None;
        for revision in 100..1_000 {
            last = self.snapshot().or(last);
            for (key, proposal) in self.world.proposals().clone() {
                let value = StandingRecord::to_json(proposal.standing);
                self.apply(match proposal.standing == Standing::default() {
                    true => Change::Deleted { key },
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
        self.world.rejected()
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
        // Of each zone its endpoints, and what reads and writes turn to.
        assert_eq!(Kind::ALL.map(|kind| view.of(kind).len()), [6, 2, 1, 1, 1]);
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
        ["web/sh-a", "web/sh-a/reads", "web/sh-a/writes"]
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

/// `orders` with ten instances in `sh-a`, of which so many are healthy, and one in `sh-b`.
fn of_ten(world: &mut World, healthy: u16) {
    world.apply(put("orders/sh-b/1", record(99, "healthy")));
    for port in 1..=10 {
        let health = match port <= healthy {
            true => "healthy",
            false => "unhealthy",
        };
        world.apply(put(&format!("orders/sh-a/{port}"), record(port, health)));
    }
}

#[test]
fn a_zone_that_goes_down_moves_its_share_at_once_and_comes_back_with_care() {
    let ramp = "failover: {hold_s: 30, ramp: {percent: [10, 50], over_s: 20}}";
    let orders = format!(
        "{{name: orders, routes: [{{prefix: /orders}}], weights: {{zone: 80, region: 20}}, {ramp}}}"
    );
    let mut world = World::new(mesh(&[&orders]));
    let mut seen = |healthy, ms| {
        of_ten(&mut world, healthy);
        let before = world.snapshot();
        let after = world.pass(ms).or(before);
        after.as_deref().map(shares).unwrap_or_default()
    };
    assert_eq!(seen(10, 0), [800, 200]);
    assert_eq!(seen(3, 0), [800, 200]);
    assert_eq!(seen(2, 0), [1000]);
    // 50 % would have been enough to stay up.
    assert_eq!(seen(5, 60_000), [1000]);
    assert_eq!(seen(6, 29_999), [1000]);
    assert_eq!(seen(6, 1), [80, 920]);
    assert_eq!(seen(6, 10_000), [400, 600]);
    assert_eq!(seen(6, 10_000), [800, 200]);
    assert_eq!(seen(5, 0), [800, 200]);
}

#[test]
fn noise_in_the_load_pushes_nothing_and_a_load_that_lasts_moves_weights_once() {
    let computed = "{name: orders, routes: [{prefix: /orders}], weights: computed}";
    let mut world = World::new(mesh(&[computed]));
    let mut load = |load: f64, ms: u64| {
        let loaded = format!(r#"{{"address":"10.0.0.1","port":1,"load1_per_core":{load}}}"#);
        world.apply(put("orders/sh-a/1", loaded));
        world.apply(put("orders/sh-b/2", record(2, "healthy")));
        world.pass(ms).map(|snapshot| shares(&snapshot))
    };
    assert_eq!(load(0.2, 0), Some(vec![750, 250]));
    for noise in [0.1, 0.87, 0.7, 0.84, 0.2] {
        assert_eq!(load(noise, 60_000), None, "{noise}");
    }
    // An overload of a half; and then around it.
    assert_eq!(load(1.3, 9_999), None);
    assert_eq!(load(1.3, 1), Some(vec![600, 400]));
    for noise in [1.25, 1.36, 1.24] {
        assert_eq!(load(noise, 60_000), None, "{noise}");
    }
}

#[test]
fn what_an_operator_wants_counts_at_once() {
    let (mut world, _) = serving();
    let intent = |at: &str, name: &str| {
        let key = format!("/tidegate/v1/config/intents/{at}");
        Change::Put(entry(key, format!(r#"{{"intent": "{name}"}}"#), 1))
    };
    let gone = |at: &str| Change::Deleted {
        key: format!("/tidegate/v1/config/intents/{at}"),
    };
    world.apply(intent("sh-a/orders", "drain"));
    assert_eq!(shares(&world.snapshot().expect("a drain")), [1000]);
    // What cannot be read changes nothing.
    assert_eq!(world.apply(intent("sh-a/orders", "explode")).len(), 1);
    assert_eq!(world.apply(intent("sh-a/orders/x", "pin")).len(), 1);
    assert!(world.snapshot().is_none());
    // What is wanted for the service comes before what is wanted for the zone.
    world.apply(intent("sh-a", "drain"));
    world.apply(intent("sh-a/orders", "pin"));
    assert_eq!(shares(&world.snapshot().expect("a pin")), [800, 200]);
    world.apply(gone("sh-a/orders"));
    assert_eq!(shares(&world.snapshot().expect("a drain")), [1000]);
    world.apply(gone("sh-a"));
    assert_eq!(shares(&world.snapshot().expect("a ramp")), [8, 992]);
}

#[test]
fn a_replica_that_starts_goes_on_where_the_others_are() {
    let mut world = World::new(mesh(&[ORDERS]));
    of_ten(&mut world, 10);
    world.snapshot();
    of_ten(&mut world, 2);
    world.snapshot();
    let written: Vec<_> = world.world.proposals().clone().into_iter().collect();
    let [(at, proposal)] = &written[..] else {
        panic!("one zone has gone out: {written:?}");
    };
    assert_eq!(at, "/tidegate/v1/standings/orders/sh-a");
    assert_eq!(proposal.replaces, Revision(0));

    let mut fresh = World::new(mesh(&[ORDERS]));
    of_ten(&mut fresh, 10);
    let standing = StandingRecord::to_json(proposal.standing);
    fresh.apply(Change::Put(entry(at.clone(), standing, 7)));
    assert_eq!(shares(&fresh.snapshot().expect("a first snapshot")), [1000]);
    assert!(fresh.world.proposals().is_empty());
    // Somebody deletes the record: nothing is remembered.
    fresh.apply(Change::Deleted { key: at.clone() });
    assert_eq!(shares(&fresh.snapshot().expect("it is back")), [800, 200]);
}

#[test]
fn of_two_instances_with_one_address_the_newer_is_used() {
    let (mut world, _) = serving();
    let newer = entry(key("orders/sh-b/newer"), record(1, "unhealthy"), 9);
    let told = world.apply(Change::Put(newer.clone()));
    let [rejection] = &told[..] else {
        panic!("one is told of: {told:?}");
    };
    assert_eq!(rejection.key, key("orders/sh-a/1"));
    assert_eq!(rejection.error.code(), "duplicate_address");
    assert!(rejection.error.to_string().contains("orders/sh-b/newer"));
    let snapshot = world.snapshot().expect("other endpoints");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [] as [u32; 0]);
    assert_eq!(ports(&snapshot, "orders/sh-b"), [2, 1]);
    assert_eq!(world.rejected(), 1);
    // Another service may have the same address, and what is written again is not told again.
    assert_eq!(world.apply(put("web/sh-a/1", record(1, "healthy"))), []);
    assert_eq!(
        world
            .apply(put("orders/sh-a/1", record(1, "healthy")))
            .len(),
        1
    );
    // The newer one moves to another address.
    let moved = entry(key("orders/sh-b/newer"), record(3, "healthy"), 9);
    assert_eq!(world.apply(Change::Put(moved)), []);
    let snapshot = world.snapshot().expect("other endpoints");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1]);
    assert_eq!(world.rejected(), 0);
    // What the mesh does not know is in nobody's way.
    let elsewhere = entry(key("orders/mars/9"), record(1, "healthy"), 99);
    assert_eq!(world.apply(Change::Put(elsewhere)).len(), 1);
    assert!(world.snapshot().is_none());
    // It comes back, and goes.
    world.apply(Change::Put(newer));
    world.apply(Change::Deleted {
        key: key("orders/sh-b/newer"),
    });
    let snapshot = world.pass(DOUBT_MS).expect("other endpoints");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [1]);
}

/// `ORDERS` in two zones, with its writes fenced.
fn fenced_mesh() -> Arc<Mesh> {
    mesh_with(AUTHORITY, &["sh-a", "sh-b"], &[ORDERS])
}

/// The owners of the cell `main` and its epoch, as `sh-a`'s proxies are told.
fn owners(snapshot: &Snapshot) -> (Vec<String>, u64) {
    let Policy::Serving(rules) = &**view(snapshot, "sh-a").policy() else {
        panic!("a serving policy");
    };
    let cell = &rules.fencing().expect("a fence").cells()[0];
    let names = cell
        .owners
        .iter()
        .map(|zone| rules.topology().zone_name(*zone));
    (names.map(str::to_owned).collect(), cell.epoch)
}

#[test]
fn new_owners_reach_every_policy_and_change_nothing_else() {
    let authority = |cell: &str, value: &str| {
        let key = format!("/tidegate/v1/authority/{cell}");
        Change::Put(entry(key, value, 1))
    };
    let mut world = World::new(fenced_mesh());
    world.apply(put("orders/sh-a/1", record(1, "healthy")));
    let before = world.snapshot().expect("a first snapshot");
    assert_eq!(owners(&before), (vec![], 0));

    let first = r#"{"store": "1", "epoch": 3, "owners": ["sh-a", "mars"], "state": "settling"}"#;
    assert_eq!(world.apply(authority("main", first)), []);
    let after = world.snapshot().expect("an owner");
    assert_eq!(owners(&after), (vec!["sh-a".to_owned()], 3));
    let changed = versions(&after);
    let changed = versions(&before)
        .into_iter()
        .filter(|(at, version)| changed[at] != *version);
    let kinds: BTreeSet<Kind> = changed.map(|((_, kind, _), _)| kind).collect();
    assert_eq!(kinds, BTreeSet::from([Kind::FilterConfig]));

    // Where the cell is between two moves is nothing to proxies, nor is what cannot be read, or of no cell of this mesh.
    let active = r#"{"store": "1", "epoch": 3, "owners": ["sh-a", "mars"], "state": "active"}"#;
    assert_eq!(world.apply(authority("main", active)), []);
    assert_eq!(world.apply(authority("other", active)), []);
    for (cell, value, code) in [
        ("main", "garbage", "json"),
        ("main", r#"{"epoch": -1, "owners": []}"#, "json"),
        ("main", r#"{"epoch": 9}"#, "json"),
        ("main/x", active, "key"),
    ] {
        let told = world.apply(authority(cell, value));
        assert_eq!(
            told.iter().map(|r| r.error.code()).collect::<Vec<_>>(),
            [code]
        );
    }
    assert!(world.snapshot().is_none());

    let moved = r#"{"store": "1", "epoch": 4, "owners": ["sh-b"], "state": "active"}"#;
    world.apply(authority("main", moved));
    let snapshot = world.snapshot().expect("another owner");
    assert_eq!(owners(&snapshot), (vec!["sh-b".to_owned()], 4));
    // It is deleted, or does not stand in a listing.
    let key = || "/tidegate/v1/authority/main".to_owned();
    world.apply(Change::Deleted { key: key() });
    let snapshot = world.snapshot().expect("no owner");
    assert_eq!(owners(&snapshot), (vec![], 0));
    for origin in [Origin::Store, Origin::Confirmed] {
        let instance = entry(self::key("orders/sh-a/1"), record(1, "healthy"), 1);
        let listed = |entries| Change::Listed {
            entries,
            revision: Revision(1),
            origin,
        };
        world.apply(listed(vec![instance.clone(), entry(key(), moved, 2)]));
        let snapshot = world.snapshot().expect("an owner");
        assert_eq!(owners(&snapshot), (vec!["sh-b".to_owned()], 4));
        world.apply(listed(vec![instance]));
        let snapshot = world.snapshot().expect("no owner");
        assert_eq!(owners(&snapshot), (vec![], 0));
    }
    // A new mesh keeps what is known.
    world.apply(authority("main", moved));
    world.apply(Change::Mesh(mesh(&[ORDERS])));
    world.snapshot().expect("no fence");
    world.apply(Change::Mesh(fenced_mesh()));
    let snapshot = world.snapshot().expect("a fence");
    assert_eq!(owners(&snapshot), (vec!["sh-b".to_owned()], 4));
}

#[test]
fn gateways_are_endpoints_to_which_no_route_leads() {
    let mut world = World::new(fenced_mesh());
    world.apply(put("orders/sh-a/1", record(1, "healthy")));
    let before = world.snapshot().expect("a first snapshot");
    assert_eq!(world.apply(put("gateway/sh-b/g", record(9, "healthy"))), []);
    let after = world.snapshot().expect("a gateway");
    assert_eq!(ports(&after, "gateway/sh-b"), [9]);
    let needed = |zone| {
        let needed = view(&after, zone).needed().iter();
        let gateways = needed.filter(|name| name.starts_with("gateway/"));
        gateways.map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (needed("sh-a"), needed("sh-b")),
        (
            vec!["gateway/sh-b".to_owned()],
            vec!["gateway/sh-a".to_owned()]
        )
    );
    for ((_, old), (_, new)) in before.views().zip(after.views()) {
        assert!(Arc::ptr_eq(old.policy(), new.policy()), "no plan changes");
    }
    let statuses = world.world.statuses();
    assert!(statuses.contains_key(&("gateway".into(), "sh-b".into())));
    // It goes like any other.
    world.apply(Change::Deleted {
        key: key("gateway/sh-b/g"),
    });
    let gone = world.pass(DOUBT_MS).expect("no gateway");
    assert_eq!(ports(&gone, "gateway/sh-b"), [] as [u32; 0]);
    // Without a fence nobody needs them.
    world.apply(put("gateway/sh-b/g", record(9, "healthy")));
    let told = world.apply(Change::Mesh(mesh(&[ORDERS])));
    assert_eq!(
        told.iter().map(|r| r.error.code()).collect::<Vec<_>>(),
        ["unknown_service"]
    );
}

/// A world with ten instances of `orders` in each zone, and its first snapshot.
fn twenty() -> World {
    let mut world = World::new(mesh(&[ORDERS]));
    for port in 1..=20 {
        let zone = if port <= 10 { "sh-a" } else { "sh-b" };
        world.apply(put(
            &format!("orders/{zone}/{port}"),
            record(port, "healthy"),
        ));
    }
    world.snapshot().expect("a first snapshot");
    world
}

fn vanish(world: &mut World, ports: std::ops::RangeInclusive<u16>) {
    for port in ports {
        let zone = if port <= 10 { "sh-a" } else { "sh-b" };
        let key = key(&format!("orders/{zone}/{port}"));
        world.apply(Change::Deleted { key });
        world.snapshot();
    }
}

#[test]
fn half_of_all_instances_may_vanish_in_a_second() {
    let mut world = twenty();
    vanish(&mut world, 1..=10);
    assert_eq!(world.instances(), 20, "they are kept for a moment");
    let snapshot = world.pass(DOUBT_MS).expect("half of them");
    assert_eq!(shares(&snapshot), [1000]);
    assert_eq!((world.instances(), world.world.implausible()), (10, None));
}

#[test]
fn more_than_half_of_all_instances_cannot_vanish_in_a_second_unless_somebody_says_so() {
    let mut world = twenty();
    vanish(&mut world, 1..=5);
    world.pass(DOUBT_MS / 2);
    vanish(&mut world, 6..=11);
    let gone = Implausible::Vanished { gone: 11, of: 20 };
    assert_eq!(world.world.implausible(), Some(&gone));
    assert!(world.pass(100 * DOUBT_MS).is_none(), "nothing changes");
    assert_eq!((world.instances(), world.world.kept()), (20, 11));
    // A new instance is taken in meanwhile, and one that leaves on purpose goes.
    world.apply(put("orders/sh-a/99", record(99, "healthy")));
    world.apply(put("orders/sh-b/20", record(20, "draining")));
    vanish(&mut world, 20..=20);
    assert_eq!((world.instances(), world.world.kept()), (20, 11));

    world.world.confirm();
    let snapshot = world.snapshot().expect("it is believed");
    assert_eq!(ports(&snapshot, "orders/sh-a"), [99]);
    assert_eq!((world.instances(), world.world.implausible()), (9, None));
}

#[test]
fn an_empty_registry_is_not_believed_and_forgotten_when_instances_come_back() {
    let mut world = twenty();
    world.apply(listed(vec![]));
    assert!(world.pass(10 * DOUBT_MS).is_none());
    let all = Implausible::Vanished { gone: 20, of: 20 };
    assert_eq!(world.world.implausible(), Some(&all));
    for port in 1..=9 {
        world.apply(put(&format!("orders/sh-a/{port}"), record(port, "healthy")));
        assert!(world.pass(DOUBT_MS).is_none());
    }
    // Half of them are back: the others are really gone.
    world.apply(put("orders/sh-a/10", record(10, "healthy")));
    assert_eq!(shares(&world.pass(DOUBT_MS).expect("fewer")), [1000]);
    assert_eq!((world.instances(), world.world.implausible()), (10, None));
}

#[test]
fn a_store_that_went_back_is_not_believed_until_somebody_says_so() {
    let mut world = twenty();
    world.apply(Change::Restored {
        revision: Revision(3),
        was: Revision(300),
        cluster: None,
    });
    assert!(world.pass(10 * DOUBT_MS).is_none());
    let told = world.world.implausible().expect("told").to_string();
    assert!(told.contains("300") && told.contains("backup"), "{told}");
    let confirmed = Change::Listed {
        entries: vec![entry(key("orders/sh-a/1"), record(1, "healthy"), 1)],
        revision: Revision(3),
        origin: Origin::Confirmed,
    };
    assert_eq!(world.apply(confirmed), []);
    world.snapshot().expect("what the store says");
    assert_eq!((world.instances(), world.world.implausible()), (1, None));
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
    revision: i64,
    stored: BTreeMap<String, Entry>,
    served: BTreeMap<String, Entry>,
}

impl Model {
    /// What the store has after a put.
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

    /// Writes what the world proposes, and lets it know.
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

/// Meshes that believe everything that vanishes.
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
                    let entry = model.put(key, value);
                    model.serve(&entry);
                    world.apply(Change::Put(entry));
                }
                Event::Delete(key) => {
                    model.stored.remove(&key);
                    model.served.remove(&key);
                    world.apply(Change::Deleted { key });
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
