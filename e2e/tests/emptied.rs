//! The control plane is restarted on a store that was emptied, without its last good state: Envoys
//! keep their resources.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::client::{Client, Request, Version};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::envoy::{Envoy, Protocol};
use e2e::registry::{Instance, InstanceName};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::json;

/// A control plane that keeps no last good state, and its directory.
async fn start(workdir: &Workdir) -> Result<(ControlPlane, PathBuf)> {
    let directory = workdir.path().join("plane");
    fs::create_dir_all(&directory)?;
    let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
    let mut config = Config::new(StoreConfig::Embedded, vec![service]);
    config.state = None;
    let plane = ControlPlane::start(&directory, config).await?;
    Ok((plane, directory))
}

async fn start_envoy(workdir: &Workdir, plane: &ControlPlane, protocol: Protocol) -> Result<Envoy> {
    let (zone, region) = ZONES[0];
    let mut bootstrap = Bootstrap::read("gateway.yaml")?
        .node("gateway", region, zone)?
        .cluster_at("tidegate", plane.xds())?;
    if protocol == Protocol::Sotw {
        bootstrap = bootstrap.state_of_the_world()?;
    }
    Envoy::start_with(workdir.path(), "gateway", &bootstrap, 1).await
}

/// Restarts the control plane with an empty store.
async fn restart_emptied(plane: &mut ControlPlane, directory: &Path) -> Result<()> {
    plane.process().kill()?;
    for file in ["tidegate.redb", "tidegate.redb.mark", "tidegate.redb.state"] {
        match fs::remove_file(directory.join(file)) {
            // The last good state is written within a second.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.with_context(|| file.to_owned())?,
        }
    }
    plane.begin().await
}

async fn never_had_an_instance(protocol: Protocol) -> Result<()> {
    let workdir = Workdir::kept(&format!("never-had-an-instance-{protocol:?}"))?;
    let (mut plane, directory) = start(&workdir).await?;
    let envoy = start_envoy(&workdir, &plane, protocol).await?;
    eventually(PATIENCE, "the listener", async || envoy.ingress().await).await?;
    restart_emptied(&mut plane, &directory).await?;
    eventually(PATIENCE, "the Envoy to be served", async || {
        let (_, ready) = plane.registry().readiness().await?;
        ensure!(!ready.to_string().contains("TG2010"), "{ready:#}");
        let streams = plane.registry().metric("tidegate_xds_streams").await?;
        ensure!(streams == 1.0, "{streams}");
        Ok(())
    })
    .await?;
    let ever = fs::read_to_string(plane.process().log())?.contains("TG2010");
    ensure!(!ever, "the store was doubted");
    Ok(())
}

async fn scenario(protocol: Protocol) -> Result<()> {
    let zone = ZONES[0].0;
    let workdir = Workdir::kept(&format!("emptied-{protocol:?}"))?;
    let (mut plane, directory) = start(&workdir).await?;
    let name = InstanceName::new("orders", zone, "one");
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let instance = Server::start(name.clone(), any_port).await?;
    let record = Instance::at(instance.address());
    plane.registry().put(&name, &record, None).await?;
    let envoy = start_envoy(&workdir, &plane, protocol).await?;
    let ingress = eventually(PATIENCE, "the listener", async || envoy.ingress().await).await?;
    let client = Client::new(Version::Http1);
    let read = async || {
        let reply = client.send(ingress, &Request::get("/orders")).await?;
        ensure!(
            reply.status.is_success(),
            "{} {}",
            reply.status,
            reply.text()
        );
        Ok(())
    };
    eventually(PATIENCE, "a read", read).await?;

    restart_emptied(&mut plane, &directory).await?;
    // It is connected, and requests its earlier resources.
    eventually(PATIENCE, "the store to be doubted", async || {
        read().await?;
        let (_, ready) = plane.registry().readiness().await?;
        ensure!(ready.to_string().contains("TG2010"), "{ready:#}");
        Ok(())
    })
    .await?;
    for _ in 0..20 {
        read().await?;
    }

    // The instance registers again, and service continues.
    plane.registry().put(&name, &record, None).await?;
    eventually(PATIENCE, "the Envoy to be served again", async || {
        read().await?;
        let streams = plane.registry().metric("tidegate_xds_streams").await?;
        ensure!(streams == 1.0, "{streams}");
        Ok(())
    })
    .await?;
    for _ in 0..20 {
        read().await?;
    }
    Ok(())
}

#[test]
fn an_emptied_store_is_not_believed_by_a_control_plane_that_knows_nothing_else() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        if let Err(error) = runtime.block_on(scenario(protocol)) {
            panic!("{protocol:?}: {error:?}");
        }
    }
}

#[test]
fn a_store_that_never_had_an_instance_is_believed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        if let Err(error) = runtime.block_on(never_had_an_instance(protocol)) {
            panic!("{protocol:?}: {error:?}");
        }
    }
}
