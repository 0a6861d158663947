//! The common parts of the scenarios.

use anyhow::{Result, ensure};
use e2e::client::{Client, Request, Version};
use e2e::envoy::{Envoy, Options, Protocol};
use e2e::mesh::Mesh;
use e2e::wait::{PATIENCE, eventually};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// The zone of all proxies here.
pub(crate) const ZONE: &str = "shanghai-a";

pub(crate) fn gateway(protocol: Protocol) -> Options {
    Options {
        protocol,
        ..Options::gateway("shanghai", ZONE)
    }
}

/// A config source with the separate service of the resource that contains it.
pub(crate) fn separate(protocol: Protocol) -> Value {
    json!({
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": api_type(protocol),
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "tidegate" } }],
        },
    })
}

/// The aggregated service, without any subscription of its own.
pub(crate) fn aggregated(protocol: Protocol) -> Value {
    json!({
        "api_type": api_type(protocol),
        "transport_api_version": "V3",
        "grpc_services": [{ "envoy_grpc": { "cluster_name": "tidegate" } }],
    })
}

fn api_type(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Delta => "DELTA_GRPC",
        Protocol::Sotw => "GRPC",
    }
}

/// The test's own listener, `ingress` like ours.
pub(crate) fn listener(manager: &Value) -> Value {
    json!({
        "name": "ingress",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        }] }],
    })
}

pub(crate) const MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

pub(crate) fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    })
}

/// Waits until an instance of this name answers at an address.
pub(crate) async fn answers(at: SocketAddr, request: Request, instance: &str) -> Result<()> {
    let client = Client::new(Version::Http1);
    let what = format!("{instance} to answer");
    eventually(PATIENCE, &what, async || {
        let reply = client.send(at, &request).await?;
        let seen = reply.echo()?.instance;
        ensure!(seen == instance, "{seen} answered");
        Ok(())
    })
    .await
}

/// The ends of all logs, including the test's own Envoy.
pub(crate) fn logs(mesh: &Mesh, envoy: Option<&Envoy>) -> String {
    let own = envoy.map(|envoy| envoy.process().tail());
    format!("{}\n{}", mesh.logs(), own.unwrap_or_default())
}
