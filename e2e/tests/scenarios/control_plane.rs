//! The control plane stops and returns.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::config::{ZONES, region_of};
use e2e::envoy::{Options, Protocol};
use e2e::load::Load;
use e2e::mesh::{Builder, Mesh};
use e2e::registry::{Instance, InstanceName};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;

use crate::shared::plain;
use crate::support::run;

/// An instance without a lease, so that it stays registered however long the control plane is down.
async fn instance(mesh: &Mesh, zone: &str, instance: &str) -> Result<Server> {
    let name = InstanceName::new("orders", zone, instance);
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(name.clone(), any_port).await?;
    let record = Instance::at(server.address());
    let put = mesh.registry().put(&name, &record, None).await?;
    ensure!(put.status.is_success(), "{}", put.text());
    Ok(server)
}

/// As [`Options::gateway`], with `protocol`.
pub(crate) fn gateway(zone: &str, protocol: Protocol) -> Options {
    Options {
        protocol,
        ..Options::gateway(region_of(zone), zone)
    }
}

/// Waits until the gateway sends requests to the zone.
async fn until_served(mesh: &Mesh, gateway: &str, zone: &str) -> Result<()> {
    let request = Request::get("/orders").home(zone);
    let what = format!("{gateway} to reach {zone}");
    mesh.eventually(gateway, &what, request, |reply| {
        let seen = reply.echo()?.zone;
        ensure!(seen == zone, "{seen} answered");
        Ok(())
    })
    .await?;
    Ok(())
}

#[test]
fn it_is_killed_and_comes_back_and_nobody_notices() {
    run(async {
        let mut mesh = Builder::new(Workdir::kept("killed")?)
            .service(plain("orders"))
            .envoy(gateway("shanghai-a", Protocol::Delta))
            .envoy(gateway("shanghai-b", Protocol::Sotw))
            .envoy(gateway("beijing-c", Protocol::Delta))
            .start()
            .await?;
        let mut servers = vec![];
        for (zone, _) in ZONES {
            servers.push(instance(&mesh, zone, &format!("orders-{zone}")).await?);
        }
        let mut requests = vec![];
        for (gateway, _) in ZONES {
            for (home, _) in ZONES {
                until_served(&mesh, gateway, home).await?;
                let address = mesh.address(gateway)?;
                requests.push((address, Request::get("/orders").home(home)));
                requests.push((address, Request::post("/orders").home(home)));
            }
        }
        let mut load = Load::steady(requests).start();
        load.next(300).await?;
        mesh.control_plane.process().kill()?;
        load.next(1_500).await.context("without a control plane")?;
        mesh.control_plane.restart().await?;
        eventually(PATIENCE, "the proxies to come back", async || {
            let streams = mesh.registry().metric("tidegate_xds_streams").await?;
            ensure!(streams == 3.0, "{streams} streams");
            Ok(())
        })
        .await?;

        // A change reaches all of them, and only the change: resources that they had were not sent
        // again.
        servers.push(instance(&mesh, "beijing-c", "late").await?);
        eventually(PATIENCE, "the new instance in every proxy", async || {
            for (gateway, _) in ZONES {
                let clusters = mesh.gateway(gateway)?.admin().clusters().await?;
                let late = format!("\"port_value\":{}", servers[3].address().port());
                ensure!(clusters.to_string().contains(&late), "not in {gateway}");
            }
            Ok(())
        })
        .await?;
        load.next(300).await?;
        for (kind, sent) in [("lds", 0), ("cds", 0), ("rds", 0), ("ecds", 0), ("eds", 3)] {
            let name = format!("tidegate_xds_resources_total{{kind=\"{kind}\"}}");
            let resources = mesh.registry().metric(&name).await?;
            assert_eq!(resources, f64::from(sent), "{kind}\n{}", mesh.logs());
        }
        load.stop().await.check_no_failure()
    });
}

#[test]
fn a_proxy_that_starts_first_is_served_as_soon_as_it_can_be() {
    run(async {
        for protocol in [Protocol::Delta, Protocol::Sotw] {
            let mut mesh = Builder::new(Workdir::kept(&format!("envoy-first-{protocol:?}"))?)
                .service(plain("orders"))
                .start()
                .await?;
            let _server = instance(&mesh, "shanghai-a", "orders-1").await?;
            mesh.control_plane.stop().await?;
            let envoy = mesh.start_envoy(&gateway("shanghai-a", protocol)).await?;
            ensure!(
                envoy.admin().listener("ingress").await.is_err(),
                "a listener"
            );
            mesh.control_plane.restart().await?;
            mesh.admit_envoy(gateway("shanghai-a", protocol), envoy)
                .await?;
            until_served(&mesh, "shanghai-a", "shanghai-a").await?;
        }
        Ok(())
    });
}

/// Waits until the control plane has read its file, and accepted or rejected it.
async fn judged(mesh: &Mesh, good: bool) -> Result<()> {
    eventually(PATIENCE, "the file to be judged", async || {
        let current = mesh.registry().metric("tidegate_config_current").await?;
        ensure!(current == f64::from(u8::from(good)), "{current}");
        Ok(())
    })
    .await
}

#[test]
fn a_bad_configuration_file_changes_nothing() {
    run(async {
        let mut mesh = Builder::new(Workdir::kept("bad-config")?)
            .service(plain("orders"))
            .envoy(gateway("shanghai-a", Protocol::Delta))
            .start()
            .await?;
        let _server = instance(&mesh, "shanghai-a", "orders-1").await?;
        until_served(&mesh, "shanghai-a", "shanghai-a").await?;
        judged(&mesh, true).await?;
        let mut load = Load::steady(vec![(mesh.address("shanghai-a")?, Request::get("/orders"))]);
        load.concurrency = 1;
        let mut load = load.start();
        mesh.control_plane
            .misconfigure("services: [{ name: 7 ]\n")?;
        judged(&mesh, false).await?;
        load.next(50).await?;
        mesh.control_plane
            .configure(|config| config.services.push(plain("carts")))?;
        judged(&mesh, true).await?;
        load.next(50).await?;
        load.stop().await.check_no_failure()
    });
}
