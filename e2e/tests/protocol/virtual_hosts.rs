//! Virtual hosts on demand.

use anyhow::{Context, Result, ensure};
use e2e::client::{Reply, Request};
use e2e::envoy::{Envoy, Protocol};
use e2e::mesh::{Builder, Mesh};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

use crate::support::{ZONE, gateway, logs};

fn service(name: &str, host: &str, prefix: &str) -> Value {
    json!({ "name": name, "routes": [{ "host": host, "prefix": prefix }] })
}

fn builder(name: &str) -> Result<Builder> {
    let builder = Builder::new(Workdir::kept(name)?)
        .service(service("orders", "orders.example", "/"))
        .service(service("carts", "carts.example", "/"))
        .service(service("shops", "*.shop.example", "/"))
        .service(service("books", "books.shop.example", "/"))
        .on_demand();
    let services = ["orders", "carts", "shops", "books"].into_iter();
    Ok(services.fold(builder, |builder, service| builder.upstreams(service, 1)))
}

/// The virtual hosts that an Envoy has fetched, in order.
async fn fetched(envoy: &Envoy) -> Result<Vec<String>> {
    let dump = envoy.admin().config_dump().await?;
    let configs = dump["configs"].as_array().context("no configs")?;
    let tables = configs
        .iter()
        .filter_map(|config| config["dynamic_route_configs"].as_array());
    let hosts = tables
        .flatten()
        .filter_map(|table| table["route_config"]["virtual_hosts"].as_array());
    let mut names: Vec<String> = hosts
        .flatten()
        .filter_map(|host| host["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

async fn send(mesh: &Mesh, host: &str, request: Request) -> Result<Reply> {
    mesh.send(ZONE, request.header("host", host)).await
}

fn from(reply: &Reply, service: &str) -> Result<()> {
    let seen = reply.echo()?.service;
    ensure!(seen == service, "{seen} answered instead of {service}");
    Ok(())
}

fn not_found(reply: &Reply) -> Result<()> {
    ensure!(reply.status == 404, "{} {}", reply.status, reply.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_host_comes_with_its_first_request() -> Result<()> {
    let mut mesh = builder("hosts-on-demand")?.start().await?;
    mesh.add_envoy(gateway(Protocol::Delta)).await?;
    let outcome = scenario(&mut mesh).await;
    outcome.with_context(|| mesh.logs())
}

async fn scenario(mesh: &mut Mesh) -> Result<()> {
    // The listener did not wait for virtual hosts, without a request.
    let envoy = mesh.gateway(ZONE)?;
    let waited = envoy.admin().stats("vhds.*init_fetch_timeout").await?;
    ensure!(waited.values().eq([&0]), "{waited:?}");
    ensure!(
        fetched(envoy).await?.is_empty(),
        "a virtual host before any request"
    );

    from(
        &send(mesh, "Orders.Example:8080", Request::get("/")).await?,
        "orders",
    )?;
    ensure!(fetched(envoy).await? == ["tidegate/orders.example"]);
    from(
        &send(mesh, "carts.example", Request::post("/")).await?,
        "carts",
    )?;
    for request in [Request::get("/"), Request::post("/")] {
        not_found(&send(mesh, "nobody.example", request).await?)?;
    }
    // The wildcard's response contains the host that it would hide.
    from(
        &send(mesh, "any.shop.example", Request::post("/")).await?,
        "shops",
    )?;
    let all = [
        "tidegate/*.shop.example",
        "tidegate/books.shop.example",
        "tidegate/carts.example",
        "tidegate/orders.example",
    ];
    ensure!(fetched(envoy).await? == all, "{:?}", fetched(envoy).await?);
    from(
        &send(mesh, "books.shop.example", Request::post("/")).await?,
        "books",
    )?;

    // A change is pushed, even to a host that was requested by an alias, and does not affect
    // others.
    let count = "http.ingress.rds.vhds.tidegate.config_reload";
    let before = envoy.admin().stat(count).await?;
    mesh.control_plane
        .configure(|config| config.services[0] = service("orders", "orders.example", "/v2"))?;
    let envoy = mesh.gateway(ZONE)?;
    eventually(PATIENCE, "the route to move", async || {
        from(
            &send(mesh, "orders.example", Request::get("/v2")).await?,
            "orders",
        )?;
        not_found(&send(mesh, "orders.example", Request::get("/")).await?)
    })
    .await?;
    // The requests that found no route before did not fetch it again either.
    let reloads = envoy.admin().stat(count).await? - before;
    ensure!(reloads == 1, "{reloads} reloads for one virtual host");
    from(
        &send(mesh, "carts.example", Request::get("/")).await?,
        "carts",
    )?;

    // A removed host is gone, and an added one is served.
    mesh.control_plane
        .configure(|config| config.services[0] = service("orders", "late.example", "/"))?;
    eventually(PATIENCE, "the host to be gone", async || {
        not_found(&send(mesh, "orders.example", Request::get("/v2")).await?)
    })
    .await?;
    from(
        &send(mesh, "late.example", Request::post("/")).await?,
        "orders",
    )?;

    // Resources that the proxy has by their names are not sent again; one under another name is.
    mesh.control_plane.process().kill()?;
    from(
        &send(mesh, "carts.example", Request::get("/")).await?,
        "carts",
    )?;
    mesh.control_plane.restart().await?;
    eventually(PATIENCE, "the proxy to come back", async || {
        let proxies = mesh.registry().metric("tidegate_xds_streams").await?;
        ensure!(proxies == 1.0, "{proxies}");
        Ok(())
    })
    .await?;
    not_found(&send(mesh, "orders.example", Request::get("/")).await?)?;
    let vhds = "tidegate_xds_resources_total{kind=\"vhds\"}";
    let sent = mesh.registry().metric(vhds).await?;
    ensure!(sent == 1.0, "{sent} sent instead of the wildcard alone");
    let rds = "tidegate_xds_resources_total{kind=\"rds\"}";
    ensure!(
        mesh.registry().metric(rds).await? == 0.0,
        "the table was sent again"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_the_world_is_refused_where_virtual_hosts_are_on_demand() -> Result<()> {
    let mesh = builder("hosts-in-sotw")?.start().await?;
    let envoy = mesh.start_envoy(&gateway(Protocol::Sotw)).await?;
    let refused = "tidegate_xds_streams_refused_total{reason=\"on_demand\"}";
    let outcome = eventually(PATIENCE, "the refusal", async || {
        let count = mesh.registry().metric(refused).await?;
        ensure!(count > 0.0, "no refusal");
        let text = mesh.control_plane.process().tail();
        ensure!(
            text.contains("DELTA_GRPC"),
            "the log does not name the remedy"
        );
        Ok(())
    })
    .await;
    outcome.with_context(|| logs(&mesh, Some(&envoy)))
}
