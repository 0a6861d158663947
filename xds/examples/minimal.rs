//! A server that gives every Envoy a listener, a route and a cluster, and moves the cluster's endpoint each second.
//!
//! `cargo run -p tidegate-xds --example minimal -- 127.0.0.1:18000`

use std::{env, sync::Arc, time::Duration};

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};
use tokio::{net::TcpListener, sync::watch, time::sleep};
use xds::{Kind, Resource, Resources, Server, View, transport};

fn view(round: u64) -> View {
    let mut resources: [Resources; Kind::ALL.len()] = Default::default();
    let mut put = |kind: Kind, resource: Resource| {
        resources[kind.index()].insert(Arc::clone(&resource.name), Arc::new(resource));
    };
    let name = || "orders".to_owned();
    let cluster = Cluster {
        name: name(),
        ..Cluster::default()
    };
    put(Kind::Cluster, Resource::encode("orders", &cluster));
    // Real endpoints would stand here. The version is the hash of the content, so only a change is sent.
    let policy = format!("round {round}");
    let endpoints = ClusterLoadAssignment {
        cluster_name: policy,
        ..Default::default()
    };
    put(Kind::Endpoints, Resource::encode("orders", &endpoints));
    let listener = Listener {
        name: name(),
        ..Listener::default()
    };
    put(Kind::Listener, Resource::encode("orders", &listener));
    let routes = RouteConfiguration {
        name: name(),
        ..Default::default()
    };
    put(Kind::Routes, Resource::encode("orders", &routes));
    // Routes wait until a client has this cluster's endpoints.
    View::new(resources, [Arc::from("orders")].into_iter().collect())
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:18000".to_owned());
    let mut current = Arc::new(view(0));
    let (publisher, views) = watch::channel(Some(Arc::clone(&current)));
    let services = transport::Services::new(Server::new(views, ()), Default::default());
    tokio::spawn(transport::listen(
        TcpListener::bind(address).await?,
        services,
    ));
    for round in 1.. {
        sleep(Duration::from_secs(1)).await;
        current = Arc::new(view(round).after(&current));
        publisher.send_replace(Some(Arc::clone(&current)));
    }
    Ok(())
}
