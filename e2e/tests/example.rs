//! The example of the crate `tidegate-xds`, on a real Envoy.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::envoy::Envoy;
use e2e::paths;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;

/// Killed with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_minimal_server_configures_an_envoy_and_moves_its_endpoint() -> Result<()> {
    let mut child = Command::new(paths::xds_example()?)
        .arg("127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let _server = Server(child);
    let mut address = String::new();
    BufReader::new(output).read_line(&mut address)?;
    let address = address.trim().parse().context(address)?;

    let workdir = Workdir::kept("example")?;
    let bootstrap = Bootstrap::read("gateway.yaml")?
        .node("one", "region", "zone")?
        .cluster_at("tidegate", address)?;
    let envoy = Envoy::start_with(workdir.path(), "one", &bootstrap, 1).await?;
    let listens = eventually(PATIENCE, "the listener", async || {
        envoy.admin().listener("orders").await
    });
    listens.await?;
    let has_port = async |wanted: &dyn Fn(u64) -> bool| {
        let clusters = envoy.admin().clusters().await?;
        let all = clusters["cluster_statuses"]
            .as_array()
            .context("clusters")?;
        let orders = all.iter().find(|cluster| cluster["name"] == "orders");
        let orders = orders.context("no cluster orders")?;
        let port = &orders["host_statuses"][0]["address"]["socket_address"]["port_value"];
        let port = port.as_u64().context("no endpoint of orders")?;
        ensure!(wanted(port), "port {port}");
        Ok(port)
    };
    let first = eventually(PATIENCE, "an endpoint", async || {
        has_port(&|port| port > 0).await
    });
    let first = first.await?;
    let moved = eventually(PATIENCE, "another endpoint", async || {
        has_port(&|port| port != first).await
    });
    moved.await?;
    Ok(())
}
