//! The same services without Tidegate: plain EDS clusters, a virtual host with one route each, and
//! no filter. They are served by the same code as ours.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use e2e::config::{ZONES, region_of};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, Locality, SocketAddress, address,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, Listener as ListenerResource, filter,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::google::protobuf::Duration;
use policy::Policy;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use xds_server::discovery::proxies::Proxies;
use xds_server::discovery::ZoneViews;
use xds_server::net::connections::Listener;
use xds_server::metrics::Metrics;
use xds::resource::{Kind, Resource, Resources, any};
use xds_server::snapshot::{Role, Snapshot, View, ViewKey};
use xds_server::net::tls::Port;
use xds_server::proxy_port;
use xds::transport::Services;

use super::shape::{HERE, NEAR, PROBE, Places, Shape, host};

const LISTENER: &str = "ingress";
const ROUTES: &str = "routes";

/// The unit of a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Per {
    Zone,
    Service,
}

pub(super) struct Floor {
    address: SocketAddr,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    server: JoinHandle<()>,
    resources: [Resources; Kind::ALL.len()],
    per: Per,
    hosts: Vec<VirtualHost>,
    places: Places,
    at: usize,
    away: bool,
    sequence: u64,
}

impl Floor {
    pub(super) async fn start(shape: Shape, places: Places, per: Per) -> Result<Floor> {
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        let address = tcp.local_addr()?;
        let (snapshots, followed) = watch::channel(None);
        let views = ZoneViews::new(followed, Proxies::default(), Metrics::default());
        let services = Services::new(views.into_server(), Routes::default());
        let server = tokio::spawn(proxy_port::serve(Listener::plain(tcp, Port::Xds), services));
        let mut floor = Floor {
            address,
            snapshots,
            server,
            resources: Default::default(),
            per,
            hosts: shape.names().map(|name| virtual_host(&name, per)).collect(),
            places,
            at: 0,
            away: false,
            sequence: 0,
        };
        floor.fill(shape);
        floor.publish()?;
        Ok(floor)
    }

    pub(super) fn xds(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn place(&mut self, at: usize) -> Result<()> {
        self.at = at;
        self.publish()
    }

    pub(super) fn plan(&mut self, away: bool) -> Result<()> {
        self.away = away;
        self.publish()
    }

    fn put(&mut self, kind: Kind, resource: Resource) {
        let resource = Arc::new(resource);
        self.resources[kind.index()].insert(Arc::clone(&resource.name), resource);
    }

    /// The constant part.
    fn fill(&mut self, shape: Shape) {
        self.put(Kind::Listener, Resource::encode(LISTENER, &listener()));
        let mut assigned: BTreeMap<String, Vec<LocalityLbEndpoints>> = BTreeMap::new();
        for group in shape.groups() {
            let name = match self.per {
                Per::Zone => format!("{}/{}", group.service, group.zone),
                Per::Service => group.service,
            };
            let locality = locality(group.zone, &group.addresses);
            assigned.entry(name).or_default().push(locality);
        }
        for name in [HERE, NEAR].map(|zone| format!("{PROBE}/{zone}")) {
            self.put(Kind::Cluster, Resource::encode(&name, &cluster(&name)));
        }
        for (name, endpoints) in assigned {
            self.put(Kind::Cluster, Resource::encode(&name, &cluster(&name)));
            self.assign(name, endpoints);
        }
    }

    fn assign(&mut self, name: String, endpoints: Vec<LocalityLbEndpoints>) {
        let assignment = ClusterLoadAssignment {
            cluster_name: name.clone(),
            endpoints,
            ..ClusterLoadAssignment::default()
        };
        self.put(Kind::Endpoints, Resource::encode(&name, &assignment));
    }

    fn publish(&mut self) -> Result<()> {
        let here = *self.places.here.get(self.at).context("no such place")?;
        for (zone, address) in [(HERE, here), (NEAR, self.places.near)] {
            let endpoints = vec![locality(zone, &[address])];
            self.assign(format!("{PROBE}/{zone}"), endpoints);
        }
        let to = if self.away { NEAR } else { HERE };
        let probe = routed(PROBE, format!("{PROBE}/{to}"));
        let table = RouteConfiguration {
            name: ROUTES.to_owned(),
            virtual_hosts: self.hosts.iter().cloned().chain([probe]).collect(),
            ..RouteConfiguration::default()
        };
        self.put(Kind::Routes, Resource::encode(ROUTES, &table));
        self.sequence += 1;
        let key = ViewKey {
            zone: Arc::from(HERE),
            role: Role::Gateway,
        };
        let needed = self.resources[Kind::Cluster.index()].keys().cloned();
        let policy = Arc::new(Policy::Fallback);
        let view = View::new(self.resources.clone(), needed.collect(), policy, 0);
        let before = self.snapshots.borrow().clone();
        let view = match before.as_ref().and_then(|snapshot| snapshot.view(&key)) {
            Some(before) => view.after(before),
            None => view,
        };
        let views = BTreeMap::from([(key, Arc::new(view))]);
        let snapshot = Snapshot::new(self.sequence, views, Arc::default());
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
        Ok(())
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn from_ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(Duration {
            seconds: 1,
            nanos: 0,
        }),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(from_ads()),
            service_name: String::new(),
        }),
        ..Cluster::default()
    }
}

fn locality(zone: &str, addresses: &[SocketAddr]) -> LocalityLbEndpoints {
    let endpoint = |at: &SocketAddr| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(*at)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    LocalityLbEndpoints {
        locality: Some(Locality {
            region: region_of(zone).to_owned(),
            zone: zone.to_owned(),
            ..Locality::default()
        }),
        lb_endpoints: addresses.iter().map(endpoint).collect(),
        ..LocalityLbEndpoints::default()
    }
}

fn socket(at: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(at.port()))),
            ..SocketAddress::default()
        })),
    }
}

fn virtual_host(service: &str, per: Per) -> VirtualHost {
    let cluster = match per {
        Per::Zone => format!("{service}/{}", ZONES[0].0),
        Per::Service => service.to_owned(),
    };
    routed(service, cluster)
}

fn routed(service: &str, cluster: String) -> VirtualHost {
    VirtualHost {
        name: service.to_owned(),
        domains: vec![host(service)],
        routes: vec![Route {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..RouteMatch::default()
            }),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
                ..RouteAction::default()
            })),
            ..Route::default()
        }],
        ..VirtualHost::default()
    }
}

fn listener() -> ListenerResource {
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(
            any(&Router::default()),
        )),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: LISTENER.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(from_ads()),
            route_config_name: ROUTES.to_owned(),
        })),
        http_filters: vec![router],
        ..HttpConnectionManager::default()
    };
    ListenerResource {
        name: LISTENER.to_owned(),
        address: Some(socket(([127, 0, 0, 1], 0).into())),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(any(&manager))),
            }],
            ..FilterChain::default()
        }],
        ..ListenerResource::default()
    }
}
