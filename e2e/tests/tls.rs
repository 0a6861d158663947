//! TLS of the Envoys: to clients, instances, and gateways of other zones.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::certificates::{CERTIFICATE, Ca, KEY, TRUSTED};
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::{Config, StoreConfig};
use e2e::control_plane::ControlPlane;
use e2e::envoy::{Envoy, Options};
use e2e::registry::{Instance, InstanceName};
use e2e::tls::{Connection, Front};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

/// A control plane, and directories with certificates.
struct Scene {
    workdir: Workdir,
    control_plane: ControlPlane,
}

impl Scene {
    async fn start(workdir: Workdir, change: impl FnOnce(&mut Config)) -> Result<Scene> {
        let mut config = Config::new(StoreConfig::Embedded, vec![]);
        change(&mut config);
        let control_plane = ControlPlane::start(workdir.path(), config).await?;
        Ok(Scene {
            workdir,
            control_plane,
        })
    }

    async fn gateway(&self, region: &str, zone: &str) -> Result<(Envoy, SocketAddr)> {
        let options = Options::gateway(region, zone);
        let envoy = Envoy::start(self.workdir.path(), &options, self.control_plane.xds()).await?;
        let ingress = envoy.ingress().await?;
        Ok((envoy, ingress))
    }

    async fn put(&self, service: &str, zone: &str, name: &str, at: SocketAddr) -> Result<()> {
        let name = InstanceName::new(service, zone, name);
        let registry = self.control_plane.registry();
        let reply = registry.put(&name, &Instance::at(at), None).await?;
        ensure!(reply.status.is_success(), "{}", reply.text());
        Ok(())
    }
}

/// A scene's directory with certificates.
fn directory(workdir: &Workdir, name: &str) -> PathBuf {
    workdir.path().join("certificates").join(name)
}

fn files(directory: &std::path::Path) -> Value {
    json!({ "cert": directory.join(CERTIFICATE), "key": directory.join(KEY) })
}

fn trusted(directory: &std::path::Path) -> Value {
    json!({ "file": directory.join(TRUSTED) })
}

async fn server(service: &str, zone: &str) -> Result<Server> {
    let name = InstanceName::new(service, zone, "one");
    Server::start(name, (Ipv4Addr::LOCALHOST, 0).into()).await
}

fn is_served(reply: &Reply) -> Result<()> {
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
    Ok(())
}

#[tokio::test]
async fn a_gateway_presents_certificates_by_server_name_and_follows_renewed_files() -> Result<()> {
    let workdir = Workdir::kept("tls-gateway")?;
    let (ca, clients, next) = (Ca::new("servers")?, Ca::new("clients")?, Ca::new("next")?);
    let [shop, other, own, stranger] =
        ["shop", "other", "client", "stranger"].map(|name| directory(&workdir, name));
    ca.issue(&shop, "shop.example", &[&clients])?;
    ca.issue(&other, "other.example", &[&clients])?;
    clients.issue(&own, "spiffe://mesh/client", &[&ca, &next])?;
    ca.issue(&stranger, "spiffe://mesh/client", &[&ca])?;
    let mut named = files(&shop);
    named["hosts"] = json!(["shop.example"]);
    let tls = json!({
        "certificates": [named, files(&other)],
        "trusted_ca": trusted(&shop),
    });
    let scene = Scene::start(workdir, |config| {
        config.services = vec![json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] })];
        config.gateway = json!({ "tls": tls, "proxy_protocol": true });
    })
    .await?;
    let orders = server("orders", "shanghai-a").await?;
    scene
        .put("orders", "shanghai-a", "one", orders.address())
        .await?;
    let (envoy, ingress) = scene.gateway("shanghai", "shanghai-a").await?;
    let client = "PROXY TCP4 192.0.2.7 127.0.0.1 50000 443\r\n".as_bytes();
    let open = async |server_name: &str, certificate: Option<&PathBuf>| {
        let certificate = certificate.map(PathBuf::as_path);
        Connection::open(ingress, server_name, &own, certificate, client).await
    };

    // The client verifies the names, which shows the presented certificate.
    let mut first = eventually(PATIENCE, "an answer over TLS", async || {
        let mut connection = open("shop.example", Some(&own)).await?;
        is_served(&connection.send(Request::get("/orders")).await?)?;
        Ok(connection)
    })
    .await
    .with_context(|| envoy.process().tail())?;
    let mut default = open("other.example", Some(&own)).await?;
    is_served(&default.send(Request::get("/orders")).await?)?;

    let forged = Request::get("/orders").header("x-forwarded-client-cert", "URI=spiffe://forged");
    let echo = first.send(forged).await?.echo()?;
    let certificate = &echo.headers["x-forwarded-client-cert"];
    ensure!(
        certificate.contains("URI=spiffe://mesh/client"),
        "{certificate}"
    );
    ensure!(!certificate.contains("forged"), "{certificate}");
    let forwarded = &echo.headers["x-forwarded-for"];
    ensure!(forwarded == "192.0.2.7", "{forwarded}");

    // In TLS 1.3 a client learns of its rejection with the first answer.
    for refused in [None, Some(&stranger)] {
        let answer = async {
            let mut connection = open("shop.example", refused).await?;
            connection.send(Request::get("/orders")).await
        };
        ensure!(answer.await.is_err(), "served {refused:?}");
    }

    // `own` trusts the new CA as well; a client that trusts only the new CA sees when the new file
    // is in use.
    let only_next = directory(&scene.workdir, "only-next");
    clients.issue(&only_next, "spiffe://mesh/client", &[&next])?;
    next.issue(&shop, "shop.example", &[&clients])?;
    eventually(PATIENCE, "the renewed certificate", async || {
        let renewed = Connection::open(
            ingress,
            "shop.example",
            &only_next,
            Some(&only_next),
            client,
        );
        is_served(&renewed.await?.send(Request::get("/orders")).await?)
    })
    .await
    .with_context(|| envoy.process().tail())?;
    is_served(&first.send(Request::get("/orders")).await?).context("the open connection")
}

#[tokio::test]
async fn instances_are_reached_by_mutual_tls_and_only_under_their_name() -> Result<()> {
    let workdir = Workdir::kept("tls-instances")?;
    let ca = Ca::new("mesh")?;
    let [instance, gateway] = ["instance", "gateway"].map(|name| directory(&workdir, name));
    ca.issue(&instance, "spiffe://mesh/orders", &[&ca])?;
    ca.issue(&gateway, "spiffe://mesh/gateway", &[&ca])?;
    let service = |name: &str, san: &str| {
        json!({
            "name": name,
            "routes": [{ "prefix": format!("/{name}") }],
            "tls": {
                "trusted_ca": trusted(&gateway),
                "subject_alt_names": [san],
                "certificate": files(&gateway),
            },
        })
    };
    let services = vec![
        service("orders", "spiffe://mesh/orders"),
        service("others", "spiffe://mesh/others"),
    ];
    let scene = Scene::start(workdir, |config| config.services = services).await?;
    let orders = server("orders", "shanghai-a").await?;
    let front = Front::start(&instance, orders.address()).await?;
    let second = Front::start(&instance, orders.address()).await?;
    scene
        .put("orders", "shanghai-a", "one", front.address())
        .await?;
    scene
        .put("others", "shanghai-a", "one", second.address())
        .await?;
    let (envoy, ingress) = scene.gateway("shanghai", "shanghai-a").await?;
    for version in [Version::Http1, Version::Http2] {
        let client = Client::new(version);
        eventually(PATIENCE, "an answer through mutual TLS", async || {
            is_served(&client.send(ingress, &Request::get("/orders")).await?)
        })
        .await
        .with_context(|| envoy.process().tail())?;
        let reply = client.send(ingress, &Request::get("/others")).await?;
        ensure!(reply.status == 503, "{} {}", reply.status, reply.text());
    }
    Ok(())
}

#[tokio::test]
async fn writes_are_forwarded_between_zones_over_mutual_tls() -> Result<()> {
    let workdir = Workdir::kept("tls-forward")?;
    let ca = Ca::new("mesh")?;
    let gateways = directory(&workdir, "gateways");
    ca.issue(&gateways, "gateway.internal", &[&ca])?;
    let tls = json!({ "certificates": [files(&gateways)], "trusted_ca": trusted(&gateways) });
    let forward = json!({
        "trusted_ca": trusted(&gateways),
        "subject_alt_names": ["gateway.internal"],
        "certificate": files(&gateways),
    });
    let scene = Scene::start(workdir, |config| {
        config.services = vec![json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] })];
        config.gateway = json!({ "tls": tls });
        config.authority = Some(json!({
            "forward_token": "a-secret-of-16-to-128-characters",
            "forward_tls": forward,
            "cells": [{ "name": "main", "owners": ["shanghai-a"], "standby": ["shanghai-b"] }],
        }));
    })
    .await?;
    let mut running = vec![];
    for zone in ["shanghai-a", "shanghai-b"] {
        let orders = server("orders", zone).await?;
        scene.put("orders", zone, "one", orders.address()).await?;
        let (envoy, ingress) = scene.gateway("shanghai", zone).await?;
        scene.put("gateway", zone, "one", ingress).await?;
        running.push((orders, envoy, ingress));
    }
    let (_, envoy, ingress) = running.last().context("two gateways")?;
    let forwarded = eventually(PATIENCE, "a forwarded write", async || {
        let open = Connection::open(
            *ingress,
            "gateway.internal",
            &gateways,
            Some(&gateways),
            &[],
        );
        let reply = open.await?.send(Request::post("/orders")).await?;
        is_served(&reply)?;
        reply.echo()
    });
    let echo = forwarded.await.with_context(|| envoy.process().tail())?;
    ensure!(echo.zone == "shanghai-a", "{echo:?}");
    ensure!(echo.headers["x-tidegate-hop"] == "1", "{echo:?}");
    Ok(())
}
