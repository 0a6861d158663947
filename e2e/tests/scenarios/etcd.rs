//! Members of etcd hang and die.

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::envoy::Protocol;
use e2e::load::{Load, RunningLoad};
use e2e::mesh::{Builder, Mesh, Store};
use e2e::registry::{Instance, InstanceName};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;

use crate::control_plane::gateway;
use crate::shared::plain;
use crate::support::run;

/// Registers an instance with a member, and waits until it answers requests.
async fn add(mesh: &Mesh, member: usize, instance: &str, load: &mut RunningLoad) -> Result<Server> {
    let etcd = mesh.etcd.as_ref().context("etcd")?;
    let name = InstanceName::new("orders", "shanghai-a", instance);
    let server = Server::start(name.clone(), "127.0.0.1:0".parse()?).await?;
    let record = serde_json::to_vec(&Instance::at(server.address()))?;
    let endpoint = etcd.members()[member].endpoint();
    // Without a leader a put has to be retried.
    eventually(PATIENCE, "etcd to take a record", async || {
        let mut client = etcd_client::Client::connect([&endpoint], None).await?;
        client.put(name.key(), record.clone(), None).await?;
        Ok(())
    })
    .await?;
    eventually(PATIENCE, "the instance to answer", async || {
        let tally = load.next(50).await?;
        let seen = tally.instances.get(instance);
        ensure!(seen.is_some(), "only {:?}", tally.instances);
        Ok(())
    })
    .await?;
    Ok(server)
}

#[test]
fn no_request_and_no_change_is_lost_while_members_hang_and_die() {
    run(async {
        let mut mesh = Builder::new(Workdir::kept("etcd")?)
            .store(Store::Etcd(3))
            .service(plain("orders"))
            .upstreams("orders", 1)
            .envoy(gateway("shanghai-a", Protocol::Delta))
            .start()
            .await?;
        let request = Request::get("/orders");
        mesh.eventually("shanghai-a", "an instance", request.clone(), |reply| {
            reply.echo().map(drop)
        })
        .await?;
        let mut load = Load::steady(vec![(mesh.address("shanghai-a")?, request)]).start();

        // The control plane's preferred member: connections stay open, and no answer arrives.
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        etcd.members()[0].process().pause()?;
        let _one = add(&mesh, 1, "while-one-hangs", &mut load).await?;
        etcd.members()[0].process().resume()?;

        // No quorum: nothing can change, and nothing does.
        for member in etcd.members() {
            member.process().kill()?;
        }
        load.next(1_000).await.context("without etcd")?;
        let etcd = mesh.etcd.as_mut().context("etcd")?;
        etcd.restart().await?;
        let _two = add(&mesh, 2, "after-the-restart", &mut load).await?;
        load.stop().await.check_no_failure()
    });
}
