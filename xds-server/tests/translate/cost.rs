//! The cost of a service of three zones in a proxy, so that it cannot grow unnoticed. `cargo xtask
//! bench envoy` shows the memory and time of a cluster and a route.

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster::ClusterDiscoveryType};
use prost::Message;
use xds_server::{
    config::Mesh,
    testing,
    translate::{clusters, routes},
};

use crate::{rules_of, table};

fn mesh(service: &str) -> Mesh {
    testing::mesh("sh-a/sh sh-b/sh bj-c/bj", service)
}

/// Clusters with endpoints, aggregate clusters, the bytes of both, routes, the bytes of their
/// table.
fn cost(mesh: &Mesh) -> [usize; 5] {
    let clusters = clusters(&mesh.topology, &mesh.services[0]);
    let decoded = clusters.iter().map(|resource| {
        Cluster::decode(resource.message())
            .expect("a cluster")
            .cluster_discovery_type
    });
    let aggregates =
        decoded.filter(|kind| matches!(kind, Some(ClusterDiscoveryType::ClusterType(_))));
    let aggregates = aggregates.count();
    let cluster_bytes = clusters
        .iter()
        .map(|resource| resource.message().len())
        .sum();
    let resilience = |at: usize| mesh.services[at].resilience.clone();
    let resource = routes(&rules_of(mesh, "UUU"), &resilience);
    let hosts = table::read(&resource).virtual_hosts;
    let routes = hosts.iter().map(|host| host.routes.len()).sum();
    let route_bytes = hosts.iter().map(Message::encoded_len).sum();
    [
        clusters.len() - aggregates,
        aggregates,
        cluster_bytes,
        routes,
        route_bytes,
    ]
}

/// A proxy's work for aggregate clusters grows with the square of their number.
#[test]
fn a_service_of_three_zones_costs_a_proxy_so_much() {
    let service = "services: [{name: orders, routes: [{host: orders.example, prefix: /}]}]";
    assert_eq!(cost(&mesh(service)), [3, 5, 2_700, 9, 3_076]);
}
