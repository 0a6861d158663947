//! The separate services: each kind on its own stream.

use anyhow::{Context, Result};
use e2e::bootstrap::Bootstrap;
use e2e::client::Request;
use e2e::envoy::{Envoy, Protocol};
use e2e::mesh::{Builder, Mesh};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

use crate::support::{MANAGER, ZONE, aggregated, answers, listener, logs, router, separate};

fn bootstrap(mesh: &Mesh) -> Result<Bootstrap> {
    Bootstrap::read("gateway.yaml")?
        .node("separate", "shanghai", ZONE)?
        .cluster_at("tidegate", mesh.control_plane.xds())
}

/// Listeners and clusters come from their own services. The resources that they name come over the
/// aggregated one, by their config sources.
fn roots(mesh: &Mesh, protocol: Protocol) -> Result<Bootstrap> {
    let dynamic = json!({
        "ads_config": aggregated(protocol),
        "lds_config": separate(protocol),
        "cds_config": separate(protocol),
    });
    bootstrap(mesh)?.with("/dynamic_resources", dynamic)
}

/// The user's own listener and clusters, which name the services of routes, policy and endpoints.
fn leaves(mesh: &Mesh, protocol: Protocol) -> Result<Bootstrap> {
    let manager = json!({
        "@type": MANAGER,
        "stat_prefix": "ingress",
        "http_filters": [{
            "name": "tidegate",
            "config_discovery": {
                "config_source": separate(protocol),
                "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
            },
        }, router()],
        "rds": { "route_config_name": "tidegate", "config_source": separate(protocol) },
    });
    let members = format!("orders/{ZONE}");
    let endpoints = json!({
        "name": members,
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": { "eds_config": separate(protocol) },
    });
    let aggregate = |class: &str| {
        json!({
            "name": format!("{members}/{class}"),
            "connect_timeout": "1s",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": {
                "name": "envoy.clusters.aggregate",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig",
                    "clusters": [members],
                },
            },
        })
    };
    let own: Vec<Value> = vec![endpoints, aggregate("reads"), aggregate("writes")];
    own.into_iter().try_fold(
        bootstrap(mesh)?
            .with("/dynamic_resources", json!({}))?
            .insert(
                "/static_resources",
                "listeners",
                json!([listener(&manager)]),
            )?,
        |bootstrap, cluster| bootstrap.push("/static_resources/clusters", cluster),
    )
}

async fn serves(
    name: &str,
    bootstrap: impl Fn(&Mesh, Protocol) -> Result<Bootstrap>,
) -> Result<()> {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let name = format!("{name}-{protocol:?}").to_lowercase();
        let mut mesh = Builder::new(Workdir::kept(&name)?)
            .service(json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] }))
            .start()
            .await?;
        mesh.add_upstream("orders", ZONE, "one").await?;
        let bootstrap = bootstrap(&mesh, protocol)?;
        let envoy = Envoy::start_with(mesh.workdir().path(), "separate", &bootstrap, 1).await?;
        let outcome = scenario(&mut mesh, &envoy).await;
        outcome.with_context(|| format!("{name}\n{}", logs(&mesh, Some(&envoy))))?;
    }
    Ok(())
}

async fn scenario(mesh: &mut Mesh, envoy: &Envoy) -> Result<()> {
    let at = envoy.ingress().await?;
    for request in [Request::get("/orders"), Request::post("/orders")] {
        answers(at, request, "one").await?;
    }
    mesh.add_upstream("orders", ZONE, "two").await?;
    // It drains and deregisters.
    drop(mesh.take_upstream("one")?);
    for request in [Request::get("/orders"), Request::post("/orders")] {
        answers(at, request, "two").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_and_clusters_come_from_their_own_services() -> Result<()> {
    serves("separate-roots", roots).await
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_policy_and_endpoints_come_from_their_own_services() -> Result<()> {
    serves("separate-leaves", leaves).await
}
