//! A server that gives every Envoy a listener, a route and a cluster, and changes the cluster's
//! endpoint each second.
//!
//! Run `cargo run -p tidegate-xds --example minimal -- 127.0.0.1:18000`, and an Envoy whose
//! bootstrap fetches clusters and listeners from that address by ADS.

use std::{env, sync::Arc, time::Duration};

use envoy_types::pb::envoy::config::{
    cluster::v3::{
        Cluster,
        cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
    },
    core::v3::{
        Address, AggregatedConfigSource, ConfigSource, SocketAddress, address::Address as Kinds,
        config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
    },
    endpoint::v3::{
        ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
        lb_endpoint::HostIdentifier,
    },
    listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
    route::v3::{
        Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
        route_action::ClusterSpecifier, route_match::PathSpecifier,
    },
};
use envoy_types::pb::envoy::extensions::filters::{
    http::router::v3::Router,
    network::http_connection_manager::v3::{
        HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
        http_filter,
    },
};
use tokio::{net::TcpListener, sync::watch, time::sleep};
use xds::{Kind, Resource, Resources, Server, View, resource::any, transport};

const NAME: &str = "orders";

fn from_ads() -> Option<ConfigSource> {
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    Some(ConfigSource {
        resource_api_version: 2,
        config_source_specifier: Some(ads),
        ..Default::default()
    })
}

fn at(port: u32) -> Option<Address> {
    let port_specifier = Some(PortSpecifier::PortValue(port));
    let socket = SocketAddress {
        address: "127.0.0.1".to_owned(),
        port_specifier,
        ..Default::default()
    };
    Some(Address {
        address: Some(Kinds::SocketAddress(socket)),
    })
}

fn cluster() -> Cluster {
    let eds = EdsClusterConfig {
        eds_config: from_ads(),
        ..Default::default()
    };
    Cluster {
        name: NAME.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(eds),
        ..Default::default()
    }
}

fn endpoints(port: u32) -> ClusterLoadAssignment {
    let endpoint = Endpoint {
        address: at(port),
        ..Default::default()
    };
    let host = Some(HostIdentifier::Endpoint(endpoint));
    let hosts = vec![LbEndpoint {
        host_identifier: host,
        ..Default::default()
    }];
    let endpoints = vec![LocalityLbEndpoints {
        lb_endpoints: hosts,
        ..Default::default()
    }];
    ClusterLoadAssignment {
        cluster_name: NAME.to_owned(),
        endpoints,
        ..Default::default()
    }
}

fn listener() -> Listener {
    let rds = Rds {
        config_source: from_ads(),
        route_config_name: NAME.to_owned(),
    };
    let router = http_filter::ConfigType::TypedConfig(any(&Router::default()));
    let manager = HttpConnectionManager {
        stat_prefix: NAME.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: vec![HttpFilter {
            name: "router".to_owned(),
            config_type: Some(router),
            ..Default::default()
        }],
        ..Default::default()
    };
    let config_type = Some(ConfigType::TypedConfig(any(&manager)));
    let filters = vec![Filter {
        name: "http".to_owned(),
        config_type,
    }];
    let filter_chains = vec![FilterChain {
        filters,
        ..Default::default()
    }];
    Listener {
        name: NAME.to_owned(),
        address: at(0),
        filter_chains,
        ..Default::default()
    }
}

fn routes() -> RouteConfiguration {
    let to = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(NAME.to_owned())),
        ..Default::default()
    };
    let all = RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    };
    let routes = vec![Route {
        r#match: Some(all),
        action: Some(Action::Route(to)),
        ..Default::default()
    }];
    let host = VirtualHost {
        name: NAME.to_owned(),
        domains: vec!["*".to_owned()],
        routes,
        ..Default::default()
    };
    RouteConfiguration {
        name: NAME.to_owned(),
        virtual_hosts: vec![host],
        ..Default::default()
    }
}

fn view(port: u32) -> View {
    let mut resources: [Resources; Kind::ALL.len()] = Default::default();
    for (kind, resource) in [
        (Kind::Cluster, Resource::encode(NAME, &cluster())),
        (Kind::Endpoints, Resource::encode(NAME, &endpoints(port))),
        (Kind::Listener, Resource::encode(NAME, &listener())),
        (Kind::Routes, Resource::encode(NAME, &routes())),
    ] {
        resources[kind.index()].insert(Arc::clone(&resource.name), Arc::new(resource));
    }
    // The routes wait until a client has this cluster's endpoints.
    View::new(resources, [Arc::from(NAME)].into_iter().collect())
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:18000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    let mut current = Arc::new(view(8080));
    let (publisher, views) = watch::channel(Some(Arc::clone(&current)));
    let services = transport::Services::new(Server::new(views, ()), Default::default());
    tokio::spawn(transport::listen(listener, services));
    for port in (8080..8090).cycle() {
        sleep(Duration::from_secs(1)).await;
        // The version is the hash of the content: only the endpoints are sent.
        current = Arc::new(view(port).after(&current));
        publisher.send_replace(Some(Arc::clone(&current)));
    }
    Ok(())
}
