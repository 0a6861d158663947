//! The resources of proxyless gRPC clients (`xds:///NAME`).
//!
//! Such a client requests a listener by the name in its target, then the route table of the
//! listener, the clusters of the table, and their endpoints. It rejects a listener without these.
//! Names are a contract:
//!
//! - a *listener* is named after a host of the configuration; each service with routes on host `*`
//!   has one with its own name, since `*` cannot be requested;
//! - its *route table* is `tidegate/<host>`, shared by all listeners of one host pattern;
//! - *clusters* are `<service>/<place>`, as for proxies, but without fields that gRPC does not
//!   support. Their endpoints are the same resources that proxies get;
//! - [`REFUSED`] is a cluster without endpoints. gRPC does not support direct responses, so calls
//!   that have to be rejected are routed there, and fail at once with `UNAVAILABLE`.
//!
//! Only features that gRPC has in all its languages are used (gRFC A27, A28, A32, A42, A44).

mod routes;

use std::{collections::BTreeMap, sync::Arc};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster,
            circuit_breakers::Thresholds,
            cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy},
        },
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::{ApiListener, Listener},
    },
    extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
    },
};
use policy::Rules;

use super::{from_ads, listener::router_filter, place::places, uint32};
use crate::config::{CircuitBreakers as Limits, Mesh, Strategy};
use xds::resource::{Resource, Resources, any};

pub use routes::{replan_virtual_hosts, routes, table, tables, virtual_hosts};

/// The cluster of all rejected calls.
pub const REFUSED: &str = "tidegate-refuses";

/// The clusters of all services, and [`REFUSED`]. They depend on the mesh only.
pub fn clusters(mesh: &Mesh) -> Resources {
    let services = mesh.services.iter().filter(|service| service.is_routed());
    let clusters = services.flat_map(|service| {
        let resilience = &service.resilience;
        let places = places(&mesh.topology, &resilience.strategy).into_iter();
        places.map(|place| {
            let name = place.cluster(&mesh.topology, &service.name);
            cluster(&name, &resilience.strategy, resilience.circuit_breakers)
        })
    });
    let refused = cluster(REFUSED, &Strategy::Weighted, Limits::default());
    by_name(clusters.chain([refused]))
}

/// The endpoints of [`REFUSED`]: none. Those of services are built elsewhere.
pub fn no_endpoints() -> Arc<Resource> {
    let assignment = ClusterLoadAssignment {
        cluster_name: REFUSED.to_owned(),
        ..ClusterLoadAssignment::default()
    };
    Arc::new(Resource::encode(REFUSED, &assignment))
}

/// The listeners under all names that a client may request.
pub fn listeners(rules: &Rules) -> Resources {
    let mut tables = BTreeMap::new();
    for (host, routes) in rules.hosts() {
        if host == "*" {
            // A host of that name is more specific.
            for (_, service, _) in routes {
                tables.entry(service.name.as_str()).or_insert(host);
            }
        } else if !host.starts_with('*') {
            tables.insert(host, host);
        }
    }
    by_name((tables.into_iter()).map(|(name, host)| listener(name, host)))
}

/// The name of a host pattern's route table.
fn table_name(host: &str) -> String {
    format!("tidegate/{host}")
}

fn listener(name: &str, host: &str) -> Arc<Resource> {
    let manager = HttpConnectionManager {
        http_filters: vec![router_filter()],
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(from_ads()),
            route_config_name: table_name(host),
        })),
        ..HttpConnectionManager::default()
    };
    let listener = Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener {
            api_listener: Some(any(&manager)),
        }),
        ..Listener::default()
    };
    Arc::new(Resource::encode(name, &listener))
}

/// Outlier detection is omitted: gRPC would count every status except OK as an error of the
/// instance.
fn cluster(name: &str, strategy: &Strategy, limits: Limits) -> Arc<Resource> {
    let cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(from_ads()),
            service_name: String::new(),
        }),
        lb_policy: match strategy {
            Strategy::Weighted => LbPolicy::RoundRobin,
            // gRPC does not support Maglev.
            Strategy::RegionFirstHash { .. } => LbPolicy::RingHash,
        }
        .into(),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_requests: uint32(limits.max_requests),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        ..Cluster::default()
    };
    Arc::new(Resource::encode(name, &cluster))
}

fn by_name(resources: impl Iterator<Item = Arc<Resource>>) -> Resources {
    resources.map(|r| (Arc::clone(&r.name), r)).collect()
}
