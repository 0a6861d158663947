//! Times to live: renewed resources stay, and others expire.

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Reply, Request, Version};
use e2e::envoy::Protocol;
use e2e::load::Load;
use e2e::mesh::{Builder, Mesh};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::json;

use crate::support::{ZONE, gateway};

/// The shortest configurable value; a renewal is sent every second.
const TTL_S: u32 = 3;

async fn lasts(protocol: Protocol) -> Result<()> {
    let name = format!("ttl-{protocol:?}").to_lowercase();
    let ttl_s = json!({ "cds": TTL_S, "eds": TTL_S, "lds": TTL_S, "rds": TTL_S, "ecds": TTL_S });
    let mut mesh = Builder::new(Workdir::kept(&name)?)
        .service(json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] }))
        .upstreams("orders", 1)
        .ttl_s(ttl_s)
        .start()
        .await?;
    mesh.add_envoy(gateway(protocol)).await?;
    let outcome = scenario(&mut mesh, protocol).await;
    outcome.with_context(|| format!("{name}\n{}", mesh.logs()))
}

async fn scenario(mesh: &mut Mesh, protocol: Protocol) -> Result<()> {
    let served = |reply: &Reply| reply.echo().map(drop);
    mesh.eventually(ZONE, "the service", Request::post("/orders"), served)
        .await?;
    let requests = vec![(mesh.address(ZONE)?, Request::post("/orders"))];
    let load = Load::steady(requests).start();
    let counter = match protocol {
        Protocol::Delta => "tidegate_xds_renewals_total{kind=\"lds\"}",
        Protocol::Sotw => "tidegate_xds_responses_total{kind=\"lds\"}",
    };
    // The first may arrive when it was sent.
    let rounds = f64::from(2 * TTL_S + 1);
    eventually(PATIENCE, "renewals for two times to live", async || {
        let seen = mesh.registry().metric(counter).await?;
        ensure!(seen >= rounds, "{seen} of {rounds}");
        Ok(())
    })
    .await?;
    load.stop().await.check_no_failure()?;

    mesh.control_plane.process().kill()?;
    let envoy = mesh.gateway(ZONE)?;
    eventually(PATIENCE, "the listener to expire", async || {
        ensure!(
            envoy.admin().listener("ingress").await.is_err(),
            "it is there"
        );
        Ok(())
    })
    .await?;
    // With its clusters; Envoy survives the expiry.
    eventually(PATIENCE, "the clusters to expire", async || {
        let clusters = envoy.admin().clusters().await?.to_string();
        ensure!(!clusters.contains("orders/"), "{clusters}");
        Ok(())
    })
    .await?;
    mesh.control_plane.restart().await?;
    let envoy = mesh.gateway(ZONE)?;
    let at = eventually(PATIENCE, "the listener to come back", async || {
        envoy.admin().listener("ingress").await
    })
    .await?;
    let client = Client::new(Version::Http1);
    eventually(PATIENCE, "the service to be back", async || {
        let reply = client.send(at, &Request::post("/orders")).await?;
        reply.echo().map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_lasts_as_long_as_the_control_plane_in_delta() -> Result<()> {
    lasts(Protocol::Delta).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_lasts_as_long_as_the_control_plane_in_the_state_of_the_world() -> Result<()> {
    lasts(Protocol::Sotw).await
}
