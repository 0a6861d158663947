//! An edge node without any control plane: safe by default.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use e2e::bootstrap::Bootstrap;
use e2e::client::{Client, Request, Version};
use e2e::envoy::Envoy;
use e2e::paths;
use e2e::registry::InstanceName;
use e2e::upstream::Server;
use e2e::workdir::Workdir;

struct Edge {
    envoy: Envoy,
    ingress: SocketAddr,
    client: Client,
    origin: Server,
    _workdir: Workdir,
}

impl Edge {
    async fn start(name: &str) -> Result<Edge> {
        let workdir = Workdir::kept(name)?;
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let origin =
            Server::start(InstanceName::new("origin", "far", "origin-1"), any_port).await?;
        let bootstrap = Bootstrap::read("edge.yaml")?
            .edge(any_port, &paths::filter()?)?
            .cluster_at("origin", origin.address())?;
        let envoy = Envoy::start_with(workdir.path(), "edge", &bootstrap, 1).await?;
        let ingress = envoy.ingress().await?;
        Ok(Edge {
            envoy,
            ingress,
            client: Client::new(Version::Http1),
            origin,
            _workdir: workdir,
        })
    }
}

#[tokio::test]
async fn reads_reach_the_origin_and_writes_are_fenced() -> Result<()> {
    let edge = Edge::start("edge-fence").await?;
    let spoofed = Request::get("/page")
        .header("x-tidegate-class", "write")
        .header("x-tidegate-to", "elsewhere");
    let reply = edge.client.send(edge.ingress, &spoofed).await?;
    let echo = reply.echo()?;
    assert_eq!(echo.instance, "origin-1");
    assert_ne!(
        echo.headers.get("x-tidegate-class").map(String::as_str),
        Some("write")
    );
    assert_eq!(echo.headers.get("x-tidegate-to"), None);

    let served = edge.origin.served();
    let lie = Request::post("/page").header("x-tidegate-class", "read");
    for write in [Request::post("/page"), lie] {
        let reply = edge.client.send(edge.ingress, &write).await?;
        assert_eq!(reply.status, 503);
        assert_eq!(reply.refusal()?, "fenced");
        assert!(reply.header("retry-after").is_some());
    }
    assert_eq!(edge.origin.served(), served, "a write reached the origin");
    Ok(())
}

#[tokio::test]
async fn decisions_are_counted_with_labels() -> Result<()> {
    let edge = Edge::start("edge-metrics").await?;
    for request in [Request::get("/"), Request::get("/"), Request::post("/")] {
        edge.client.send(edge.ingress, &request).await?;
    }
    let metrics = edge.envoy.admin().prometheus().await?;
    for (labels, count) in [
        (r#"{tier="none",class="read",reason="fallback"}"#, 2),
        (r#"{tier="none",class="write",reason="fenced"}"#, 1),
    ] {
        let line = format!("tidegate_decisions{labels} {count}");
        assert!(
            metrics.lines().any(|l| l == line),
            "no {line} in\n{metrics}"
        );
    }
    Ok(())
}
