//! The common parts of the scenarios.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::cells::Cells;
use e2e::client::{Reply, Request};
use e2e::config::{EXPLAIN, ZONES};
use e2e::etcd::Etcd;
use e2e::mesh::Mesh;
use e2e::paths;
use e2e::registry::{Health, Instance, InstanceName};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use tokio::runtime::Runtime;

/// Runs a scenario on the runtime that all tests of this binary share: tasks that one of them
/// starts continue in the next.
pub(crate) fn run(scenario: impl Future<Output = Result<()>>) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"));
    if let Err(error) = runtime.block_on(scenario) {
        panic!("{error:#}");
    }
}

/// Runs a scenario with a mesh, and prints the logs after a failure.
pub(crate) async fn on<'m, F: Future<Output = Result<()>>>(
    mesh: &'m Mesh,
    scenario: impl FnOnce(&'m Mesh) -> F,
) -> Result<()> {
    let outcome = scenario(mesh).await;
    outcome.map_err(|error| anyhow!("{error:#}\n{}", mesh.logs()))
}

/// Runs an operator's command; returns its output, or its error as text.
pub(crate) fn operate(mesh: &Mesh, arguments: &[&str]) -> Result<String> {
    let admin = format!("http://{}", mesh.control_plane.admin());
    let output = Command::new(paths::tidegate()?)
        .args(arguments)
        .args(["--admin", &admin])
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(text(&output.stdout))
}

/// Waits until every zone has a proxy that could hold grants: so moves of cells need no further
/// acceptance.
pub(crate) async fn until_held(mesh: &Mesh) -> Result<()> {
    let cells = Cells::new(mesh.control_plane.admin());
    eventually(PATIENCE, "a proxy in every zone", async || {
        for cell in cells.list().await? {
            for (zone, _) in ZONES {
                let proxies = cell.zones.get(zone).and_then(|speakers| speakers.proxies);
                ensure!(proxies > Some(0), "{zone}: {cell:?}");
            }
        }
        Ok(())
    })
    .await
}

/// Requests the decision's reason.
pub(crate) fn explained(request: Request) -> Request {
    let (header, token) = EXPLAIN;
    request.header(header, token)
}

/// The reason in the answer to an explained request.
pub(crate) fn reason(reply: &Reply) -> Result<&str> {
    let reason = reply.header("x-tidegate-decision");
    reason.with_context(|| format!("no reason: {} {:?}", reply.status, reply.headers))
}

/// A rejection with this status and reason.
#[track_caller]
pub(crate) fn assert_refused(reply: &Reply, status: u16, reason: &str) {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.refusal().unwrap(), reason);
}

/// A server whose record the test writes to etcd directly, like a foreign registry. It has no
/// lease.
pub(crate) struct Registered {
    pub(crate) name: InstanceName,
    pub(crate) server: Server,
    record: Instance,
    etcd: etcd_client::Client,
}

impl Registered {
    /// Starts it and writes a healthy record.
    pub(crate) async fn start(
        etcd: &Etcd,
        service: &str,
        zone: &str,
        instance: &str,
    ) -> Result<Registered> {
        let name = InstanceName::new(service, zone, instance);
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::start(name.clone(), any_port).await?;
        let mut registered = Registered {
            record: Instance::at(server.address()),
            name,
            server,
            etcd: etcd.client().await?,
        };
        registered.set(Health::Healthy).await?;
        Ok(registered)
    }

    /// Writes the record with this health.
    pub(crate) async fn set(&mut self, health: Health) -> Result<()> {
        self.record.health = health;
        self.write().await
    }

    /// Writes the record with this load.
    pub(crate) async fn report(&mut self, load1_per_core: f64) -> Result<()> {
        self.record.load1_per_core = Some(load1_per_core);
        self.write().await
    }

    async fn write(&mut self) -> Result<()> {
        let value = serde_json::to_vec(&self.record)?;
        self.etcd.put(self.name.key(), value, None).await?;
        Ok(())
    }

    /// Deletes the record; the server stays.
    pub(crate) async fn remove(&mut self) -> Result<()> {
        let deleted = self.etcd.delete(self.name.key(), None).await?;
        ensure!(deleted.deleted() == 1, "there was no {}", self.name.key());
        Ok(())
    }
}
