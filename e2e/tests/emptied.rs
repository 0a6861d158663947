//! The control plane is started again on a store that was emptied, and nothing is left of what it knew: Envoys keep what they have.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

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

async fn scenario(protocol: Protocol) -> Result<()> {
    let (zone, region) = ZONES[0];
    let workdir = Workdir::kept(&format!("emptied-{protocol:?}"))?;
    let directory = workdir.path().join("plane");
    fs::create_dir_all(&directory)?;
    let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
    let mut config = Config::new(StoreConfig::Embedded, vec![service]);
    config.state = None;
    let mut plane = ControlPlane::start(&directory, config).await?;
    let name = InstanceName::new("orders", zone, "one");
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let instance = Server::start(name.clone(), any_port).await?;
    let record = Instance::at(instance.address());
    plane.registry().put(&name, &record, None).await?;
    let mut bootstrap = Bootstrap::read("gateway.yaml")?
        .node("gateway", region, zone)?
        .cluster_at("tidegate", plane.xds())?;
    if protocol == Protocol::Sotw {
        bootstrap = bootstrap.state_of_the_world()?;
    }
    let envoy = Envoy::start_with(workdir.path(), "gateway", &bootstrap, 1).await?;
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

    plane.process().kill()?;
    for file in ["tidegate.redb", "tidegate.redb.mark", "tidegate.redb.state"] {
        match fs::remove_file(directory.join(file)) {
            // The last good state is written within a second.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.with_context(|| file.to_owned())?,
        }
    }
    plane.begin().await?;
    // It is connected, and asks for what it had.
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

    // The instance registers again: it goes on.
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
