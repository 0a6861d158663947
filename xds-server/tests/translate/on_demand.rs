//! Virtual hosts on demand, and times to live: the resources of a role's proxies with them.

use std::sync::Arc;

use envoy_types::pb::envoy::config::{
    listener::v3::Listener,
    route::v3::{RouteConfiguration, VirtualHost},
};
use prost::Message;
use xds::resource::{Kind, Resource};
use xds_server::{
    snapshot::{Role, View, ViewKey},
    translate::{route_table_on_demand, virtual_host_on_demand, virtual_hosts},
    world::World,
};

use super::*;

fn mesh(more: &str) -> Arc<xds_server::config::Mesh> {
    let rest = format!(
        "services:\n\
         - {{name: orders, routes: [{{host: a.example, prefix: /}}]}}\n\
         - {{name: carts, routes: [{{host: '*.example', prefix: /}}]}}\n\
         {more}\n"
    );
    Arc::new(testing::mesh("sh-a/shanghai", &rest))
}

fn view(more: &str, role: Role) -> Arc<View> {
    let mut world = World::new(mesh(more));
    let snapshot = world.snapshot(0).expect("a first snapshot");
    let key = ViewKey {
        zone: Arc::from("sh-a"),
        role,
    };
    Arc::clone(snapshot.view(&key).expect("a view"))
}

fn names(view: &View, kind: Kind) -> Vec<&str> {
    view.of(kind).keys().map(|name| &**name).collect()
}

fn read<M: Message + Default>(resource: &Resource) -> M {
    M::decode(resource.message()).expect("its claimed version")
}

const ON_DEMAND: &str = "listeners: {gateway: {address: 127.0.0.1, port: 0, on_demand: true}}";

#[test]
fn a_role_on_demand_has_a_table_without_virtual_hosts_and_a_filter_that_asks_for_them() {
    let filters = |view: &View| {
        let listener: Listener = read(&view.of(Kind::Listener)["ingress"]);
        // An encoded message contains names as plain text.
        let text = String::from_utf8_lossy(&listener.encode_to_vec()).into_owned();
        let at = |name: &str| text.find(name);
        (
            at("envoy.filters.http.on_demand"),
            at("envoy.filters.http.router"),
        )
    };
    let table = |view: &View| -> RouteConfiguration { read(&view.of(Kind::Routes)["tidegate"]) };

    let gateway = view(ON_DEMAND, Role::Gateway);
    assert!(gateway.is_on_demand());
    assert_eq!(
        names(&gateway, Kind::VirtualHosts),
        ["tidegate/*.example", "tidegate/a.example"]
    );
    assert!(table(&gateway).virtual_hosts.is_empty() && table(&gateway).vhds.is_some());
    let (on_demand, router) = filters(&gateway);
    assert!(on_demand.is_some() && on_demand < router);

    let sidecar = view(ON_DEMAND, Role::Sidecar);
    assert!(!sidecar.is_on_demand());
    assert!(table(&sidecar).virtual_hosts.len() == 2 && table(&sidecar).vhds.is_none());
    assert_eq!(filters(&sidecar).0, None);
}

#[test]
fn a_time_to_live_is_for_its_kind_alone() {
    let plain = view("", Role::Gateway);
    let lasting = view("xds: {ttl_s: {eds: 60, ecds: 30}}", Role::Gateway);
    for kind in Kind::ALL {
        for (name, resource) in lasting.of(kind) {
            let ttl_s = resource.ttl_s.map(|ttl_s| ttl_s.get());
            let expected = match kind {
                Kind::Endpoints => Some(60),
                Kind::FilterConfig => Some(30),
                _ => None,
            };
            assert_eq!(ttl_s, expected, "{} {name}", kind.as_str());
            let same = resource.version == plain.of(kind)[name].version;
            assert_eq!(same, expected.is_none(), "{} {name}", kind.as_str());
        }
    }
}

proptest! {
    #[test]
    fn hosts_one_by_one_are_those_of_the_table(rules in any::rules()) {
        let whole = table::read(&routes(&rules, &weighted));
        let entries = virtual_hosts(&rules, &weighted);
        let hosts = entries.iter().map(|(host, entry)| {
            let resource = virtual_host_on_demand(host, entry);
            let mut host: VirtualHost = read(&resource);
            // It matches all requests without another route, so that Envoy does not request the
            // host again.
            let last = host.routes.pop().and_then(|route| route.action);
            assert!(matches!(last, Some(Action::DirectResponse(answer)) if answer.status == 404));
            assert_eq!(host.name, *resource.name);
            let name = host.name.strip_prefix("tidegate/").expect("the table's name");
            VirtualHost { name: name.to_owned(), ..host }
        });
        let empty: RouteConfiguration = read(&route_table_on_demand());
        prop_assert_eq!(RouteConfiguration { virtual_hosts: hosts.collect(), vhds: None, ..empty }, whole);
    }
}
