//! Clusters on demand: a user's own proxy fetches a cluster at the first request to it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::client::{Client, Reply, Request, Version};
use e2e::envoy::{Envoy, Protocol};
use e2e::mesh::{Builder, Mesh};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

use crate::support::{MANAGER, ZONE, aggregated, answers, listener, logs, router, separate};

/// How long the proxy waits for a cluster. Longer than a test's patience, so that no test passes by
/// waiting.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Sends every request to the cluster that it names.
fn by_header() -> Value {
    listener(&json!({
        "@type": MANAGER,
        "stat_prefix": "ingress",
        "http_filters": [{
            "name": "envoy.filters.http.on_demand",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand",
                "odcds": {
                    "source": separate(Protocol::Delta),
                    "timeout": format!("{}s", TIMEOUT.as_secs()),
                },
            },
        }, router()],
        "route_config": {
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster_header": "x-to" } }],
            }],
        },
    }))
}

async fn proxy(mesh: &Mesh) -> Result<Envoy> {
    let bootstrap = Bootstrap::read("gateway.yaml")?
        .node("on-demand", "shanghai", ZONE)?
        .cluster_at("tidegate", mesh.control_plane.xds())?
        // Endpoints are sent over it. Clusters are not sent without a request.
        .with(
            "/dynamic_resources",
            json!({ "ads_config": aggregated(Protocol::Delta) }),
        )?
        .insert("/static_resources", "listeners", json!([by_header()]))?;
    Envoy::start_with(mesh.workdir().path(), "on-demand", &bootstrap, 1).await
}

async fn send(at: SocketAddr, cluster: &str) -> Result<Reply> {
    let request = Request::post("/orders").header("x-to", cluster);
    Client::new(Version::Http1).send(at, &request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_with_its_first_request() -> Result<()> {
    let mut mesh = Builder::new(Workdir::kept("clusters-on-demand")?)
        .service(json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] }))
        .start()
        .await?;
    mesh.add_upstream("orders", ZONE, "one").await?;
    let envoy = proxy(&mesh).await?;
    let outcome = scenario(&mut mesh, &envoy).await;
    outcome.with_context(|| logs(&mesh, Some(&envoy)))
}

async fn scenario(mesh: &mut Mesh, envoy: &Envoy) -> Result<()> {
    let at = envoy.ingress().await?;
    let of_orders = async || {
        let clusters = envoy.admin().clusters().await?;
        let statuses = clusters["cluster_statuses"]
            .as_array()
            .context("no clusters")?;
        let names = statuses.iter().filter_map(|status| status["name"].as_str());
        anyhow::Ok(
            names
                .filter(|name| name.starts_with("orders"))
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    };
    ensure!(
        of_orders().await?.is_empty(),
        "a cluster before any request"
    );

    let own = format!("orders/{ZONE}");
    let reply = send(at, &own).await?;
    ensure!(
        reply.echo()?.instance == "one",
        "the first request: {}",
        reply.status
    );
    ensure!(
        of_orders().await? == [own.clone()],
        "{:?}",
        of_orders().await?
    );

    // The control plane answers at once: no request has to wait for a time-out.
    let reply = send(at, "nothing/here").await?;
    ensure!(reply.status == 503, "{} {}", reply.status, reply.text());

    mesh.add_upstream("orders", ZONE, "two").await?;
    let first = mesh.take_upstream("one")?;
    let request = Request::post("/orders").header("x-to", &own);
    answers(at, request, "two").await?;
    drop(first);

    // An aggregate cluster is sent without its members: it serves through requested members.
    let aggregate = format!("{own}/writes");
    eventually(PATIENCE, "the aggregate cluster to serve", async || {
        send(at, &aggregate).await?.echo().map(drop)
    })
    .await?;
    // It knows none of the other zones' members, so the known ones replace them. The record of the
    // dead instance stays until its lease expires.
    eventually(PATIENCE, "the members that are known", async || {
        let reply = send(at, "orders/beijing-c/reads").await?;
        ensure!(reply.echo()?.instance == "two", "{}", reply.text());
        Ok(())
    })
    .await?;
    let members = of_orders().await?;
    ensure!(
        !members.contains(&"orders/beijing-c".to_owned()),
        "{members:?}"
    );
    Ok(())
}
