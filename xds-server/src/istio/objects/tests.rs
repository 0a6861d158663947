use std::sync::Arc;

use registry::store::{Entry, Revision};

use super::*;
use crate::{
    testing::mesh,
    world::{Change, Origin, World},
};

const REST: &str = "
guard: {vanish_percent: 100}
services:
- {name: orders, routes: [{prefix: /orders}]}
- {name: carts, routes: [{prefix: /carts}]}
istio:
  services:
  - {name: orders, host: orders.shop.svc.cluster.local}
  - {name: carts, host: carts.example, namespace: shop, entry: {port: 80}, gateways: [shop/front]}
";

/// The objects with these instances, as `service/zone/instance` and health.
fn with(instances: &[(&str, &str)]) -> Objects {
    let mesh = Arc::new(mesh("a/r b/r c/s", REST));
    let entries = instances.iter().enumerate().map(|(at, (name, health))| {
        let record = format!(
            r#"{{"address": "10.0.0.{}", "port": 80, "health": "{health}", "weight": 2}}"#,
            at + 1
        );
        Entry {
            key: format!("/tidegate/v1/instances/{name}"),
            value: record.into(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: None,
        }
    });
    let mut world = World::new(Arc::clone(&mesh));
    let listed = Change::Listed {
        entries: entries.collect(),
        revision: Revision(1),
        origin: Origin::Store,
    };
    assert_eq!(world.apply(listed, 0), []);
    let snapshot = world.snapshot(0).unwrap();
    let istio = mesh.istio.as_ref().unwrap();
    objects(istio, &mesh.services, &snapshot).unwrap()
}

fn spec(objects: &Objects, kind: Kind, name: &str) -> Value {
    let key = Key {
        kind,
        namespace: "shop".into(),
        name: name.into(),
    };
    objects
        .get(&key)
        .map(|it| it.spec.clone())
        .unwrap_or_default()
}

/// `10.0.0.1 r/a`, for each endpoint of the entry of `carts`.
fn endpoints(objects: &Objects) -> Vec<String> {
    let spec = spec(objects, Kind::ServiceEntry, "tidegate-carts");
    let endpoints = spec["endpoints"].as_array().unwrap().iter();
    let text = |it: &Value| it.as_str().unwrap().to_owned();
    endpoints
        .map(|it| format!("{} {}", text(&it["address"]), text(&it["locality"])))
        .collect()
}

/// The subsets of a route with their weights, as `first-a 1000`.
fn route(objects: &Objects, service: &str, route: &str) -> Vec<String> {
    let spec = spec(
        objects,
        Kind::VirtualService,
        &format!("tidegate-{service}"),
    );
    let mut routes = spec["http"].as_array().unwrap().iter();
    let found = routes.find(|it| it["name"] == route).unwrap();
    let shares = found["route"].as_array().unwrap().iter();
    shares
        .map(|it| {
            let subset = it["destination"]["subset"].as_str().unwrap();
            format!("{subset} {}", it["weight"])
        })
        .collect()
}

#[test]
fn only_healthy_instances_are_endpoints_unless_there_are_none() {
    let some = with(&[
        ("carts/a/1", "healthy"),
        ("carts/a/2", "unhealthy"),
        ("carts/b/1", "draining"),
        ("carts/c/1", "healthy"),
    ]);
    assert_eq!(endpoints(&some), ["10.0.0.1 r/a", "10.0.0.4 s/c"]);
    let sick = with(&[("carts/a/1", "unhealthy"), ("carts/b/1", "draining")]);
    assert_eq!(endpoints(&sick), ["10.0.0.1 r/a"]);
    assert_eq!(endpoints(&with(&[])), [""; 0]);
}

#[test]
fn clients_of_each_zone_have_the_weights_of_their_plan() {
    let all = with(&[
        ("carts/a/1", "healthy"),
        ("carts/b/1", "healthy"),
        ("carts/c/1", "healthy"),
    ]);
    let from = |route_name: &str| route(&all, "carts", route_name);
    assert_eq!(from("read-from-a"), ["first-a 1000"]);
    assert_eq!(from("write-from-b"), ["only-b 1000"]);
    assert_eq!(from("read-to-c"), ["first-c null"]);
    assert_eq!(from("write-to-c"), ["only-c null"]);
    // Clients of no zone of the mesh have a way, too.
    assert_eq!(from("read-from-elsewhere"), ["first-a 1000"]);
    // Reads leave the region, and writes do not.
    let far = with(&[("carts/c/1", "healthy")]);
    assert_eq!(route(&far, "carts", "read-from-a"), ["first-c 1000"]);
    assert_eq!(route(&far, "carts", "write-from-a"), ["only-a null"]);
}

#[test]
fn a_kubernetes_service_has_subsets_and_routes_alone() {
    let objects = with(&[("orders/a/1", "healthy"), ("carts/a/1", "healthy")]);
    let kinds: Vec<_> = objects
        .keys()
        .map(|key| (key.kind, key.name.as_str()))
        .collect();
    assert_eq!(
        kinds,
        [
            (Kind::ServiceEntry, "tidegate-carts"),
            (Kind::DestinationRule, "tidegate-carts"),
            (Kind::DestinationRule, "tidegate-orders"),
            (Kind::VirtualService, "tidegate-carts"),
            (Kind::VirtualService, "tidegate-orders"),
        ]
    );
    let gateways = |name: &str| spec(&objects, Kind::VirtualService, name)["gateways"].clone();
    assert_eq!(gateways("tidegate-orders"), json!(["mesh"]));
    assert_eq!(gateways("tidegate-carts"), json!(["mesh", "shop/front"]));
}

#[test]
fn each_zone_has_a_subset_of_its_own_and_one_with_all_in_its_order() {
    let objects = with(&[("orders/a/1", "healthy")]);
    let spec = spec(&objects, Kind::DestinationRule, "tidegate-orders");
    let subsets = spec["subsets"].as_array().unwrap();
    let names = subsets.iter().map(|it| it["name"].as_str().unwrap());
    let names: Vec<_> = names.collect();
    assert_eq!(
        names,
        [
            "only-a", "first-a", "only-b", "first-b", "only-c", "first-c"
        ]
    );
    assert_eq!(subsets[0]["labels"], json!({ ZONE_LABEL: "a" }));
    let balancer = &subsets[5]["trafficPolicy"]["loadBalancer"];
    assert_eq!(
        balancer["localityLbSetting"]["failoverPriority"],
        json!([
            "topology.kubernetes.io/region=s",
            "topology.kubernetes.io/zone=c"
        ])
    );
}

#[test]
fn manifests_are_those_of_one_manager() {
    let objects = with(&[]);
    for (key, object) in &objects {
        let manifest = object.manifest(key);
        assert_eq!(manifest["apiVersion"], "networking.istio.io/v1");
        assert_eq!(manifest["metadata"]["labels"][OWNER_LABEL], OWNER);
        assert_eq!(manifest["metadata"]["namespace"], "shop");
    }
}

#[test]
fn a_mesh_that_may_have_been_emptied_has_no_objects() {
    let mesh = Arc::new(mesh("a/r", REST));
    let mut world = World::new(Arc::clone(&mesh)).unvouched();
    let snapshot = world.snapshot(0).unwrap();
    assert!(snapshot.is_bare());
    let istio = mesh.istio.as_ref().unwrap();
    assert_eq!(objects(istio, &mesh.services, &snapshot), None);
}
