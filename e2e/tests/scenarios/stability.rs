//! The control plane without its store: the served resources, its reports, and its recovery.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::{Reply, Request};
use e2e::config::STATE;
use e2e::envoy::{Options, Protocol};
use e2e::etcd::Etcd;
use e2e::mesh::{Builder, Mesh, Store};
use e2e::registry::{Instance, InstanceName};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use hyper::StatusCode;

use crate::control_plane::gateway;
use crate::shared::plain;
use crate::support::{Registered, on, run};

const ZONE: &str = "shanghai-a";

/// A gateway, and one instance without a lease that it reaches.
async fn serving(name: &str, members: usize) -> Result<(Mesh, Registered)> {
    let mesh = Builder::new(Workdir::kept(name)?)
        .store(Store::Etcd(members))
        .service(plain("orders"))
        .envoy(gateway(ZONE, Protocol::Delta))
        .start()
        .await?;
    let one = Registered::start(etcd(&mesh)?, "orders", ZONE, "one").await?;
    until_reached(&mesh, "one").await?;
    Ok((mesh, one))
}

fn etcd(mesh: &Mesh) -> Result<&Etcd> {
    mesh.etcd.as_ref().context("etcd")
}

/// Waits until the instance answers at the gateway.
async fn until_reached(mesh: &Mesh, instance: &str) -> Result<()> {
    let what = format!("{instance} to answer");
    let answers = |reply: &Reply| {
        let seen = reply.echo()?.instance;
        ensure!(seen == instance, "{seen} answered");
        Ok(())
    };
    mesh.eventually(ZONE, &what, Request::get("/orders"), answers)
        .await?;
    Ok(())
}

/// Waits until `/readyz` and `/metrics` report this.
async fn until_mode(mesh: &Mesh, ready: bool, mode: &str, stale: bool) -> Result<String> {
    let what = format!("ready: {ready}, mode: {mode}, stale: {stale}");
    let said = eventually(PATIENCE, &what, async || {
        let (status, said) = mesh.registry().readiness().await?;
        ensure!((status == StatusCode::OK) == ready, "{status}: {said}");
        ensure!(said["ready"] == ready, "{said}");
        ensure!(said["mode"] == mode && said["stale"] == stale, "{said}");
        let name = match mode {
            "L1" => "unreachable",
            "L2" => "degraded",
            "L3" => "read_only",
            normal => normal,
        };
        let present = format!("tidegate_mode{{mode=\"{mode}\",name=\"{name}\"}}");
        ensure!(mesh.registry().metric(&present).await? == 1.0, "{present}");
        ensure!(mesh.registry().metric("tidegate_mode").await? == 1.0);
        let counted = mesh.registry().metric("tidegate_state_stale").await?;
        ensure!(counted == f64::from(u8::from(stale)), "{counted}");
        Ok(said["detail"].as_str().unwrap_or_default().to_owned())
    });
    said.await
}

fn state_file(mesh: &Mesh) -> PathBuf {
    mesh.workdir().path().join(STATE)
}

/// Waits until the last good state on disk has the instance.
async fn until_kept(mesh: &Mesh, instance: &str) -> Result<()> {
    let written = eventually(PATIENCE, "the state on disk", async || {
        let text = fs::read_to_string(state_file(mesh))?;
        ensure!(text.contains(&format!("/{ZONE}/{instance}\"")), "{text}");
        Ok(())
    });
    written.await
}

fn logged(mesh: &Mesh, text: &str) -> Result<()> {
    let log = fs::read_to_string(mesh.control_plane.process().log())?;
    ensure!(log.contains(text), "not in the log: {text}");
    Ok(())
}

#[test]
fn a_control_plane_that_starts_without_etcd_serves_the_last_good_state() {
    run(async {
        let (mut mesh, _one) = serving("stability-l1", 1).await?;
        until_mode(&mesh, true, "normal", false).await?;
        until_kept(&mesh, "one").await?;
        mesh.control_plane.process().kill()?;
        etcd(&mesh)?.kill()?;
        mesh.control_plane.begin().await?;
        let detail = until_mode(&mesh, true, "L1", true).await?;
        assert!(detail.contains("cannot be reached"), "{detail}");
        logged(&mesh, "the last good state is served from disk")?;

        // A proxy without any resources is served.
        let late = Options {
            id: "late".to_owned(),
            ..gateway("shanghai-b", Protocol::Delta)
        };
        let ingress = mesh.add_envoy(late).await?;
        let client = e2e::client::Client::new(e2e::client::Version::Http1);
        eventually(PATIENCE, "the late proxy to serve", async || {
            let request = Request::get("/orders").home(ZONE);
            let reply = client.send(ingress, &request).await?;
            ensure!(reply.echo()?.instance == "one");
            Ok(())
        })
        .await?;

        let pid = mesh.control_plane.process().pid();
        mesh.etcd.as_mut().context("etcd")?.restart().await?;
        let detail = until_mode(&mesh, true, "normal", false).await?;
        assert_eq!(detail, "");
        let _two = Registered::start(etcd(&mesh)?, "orders", ZONE, "two").await?;
        until_reached(&mesh, "two").await?;
        until_reached(&mesh, "one").await?;
        assert_eq!(mesh.control_plane.process().pid(), pid);
        Ok(())
    });
}

#[test]
fn etcd_that_hangs_freezes_what_is_served() {
    run(async {
        let (mut mesh, _one) = serving("stability-l2", 3).await?;
        until_kept(&mesh, "one").await?;
        for member in etcd(&mesh)?.members() {
            member.process().pause()?;
        }
        until_mode(&mesh, true, "L2", true).await?;
        until_reached(&mesh, "one").await?;
        // Even a start does not wait for a hung store.
        mesh.control_plane.process().kill()?;
        mesh.control_plane.begin().await?;
        until_mode(&mesh, true, "L2", true).await?;
        until_reached(&mesh, "one").await?;
        for member in etcd(&mesh)?.members() {
            member.process().resume()?;
        }
        until_mode(&mesh, true, "normal", false).await?;
        let _two = Registered::start(etcd(&mesh)?, "orders", ZONE, "two").await?;
        until_reached(&mesh, "two").await
    });
}

#[test]
fn three_writes_that_time_out_end_registration_until_one_succeeds() {
    run(async {
        let (mesh, _one) = serving("stability-l3", 1).await?;
        let two = InstanceName::new("orders", ZONE, "two");
        let record = Instance::at("127.0.0.1:9".parse()?);
        let put = || mesh.registry().put(&two, &record, None);
        let member = &etcd(&mesh)?.members()[0];
        member.process().pause()?;
        // A write in flight, whose connection was closed because of another request, failed, but
        // did not time out.
        let mut timeouts = 0;
        for _ in 0..9 {
            let reply = put().await?;
            // No record was written: the record that it would replace could not be read.
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
            timeouts += u32::from(reply.text().contains("did not answer within"));
            if timeouts == 3 {
                break;
            }
        }
        assert_eq!(timeouts, 3);
        until_mode(&mesh, true, "L3", true).await?;
        let begun = Instant::now();
        let refused = put().await?;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        let text = refused.text();
        assert!(text.contains("3 writes in a row"), "{text}");
        // Far below the two seconds of a write's time-out: it was not attempted.
        assert!(begun.elapsed() < Duration::from_secs(1));
        logged(&mesh, "this replica registers nothing")?;
        member.process().resume()?;
        on(&mesh, |mesh| async move {
            until_mode(mesh, true, "normal", false).await.map(drop)
        })
        .await?;
        let reply = put().await?;
        assert!(reply.status.is_success(), "{}", reply.text());
        Ok(())
    });
}

#[test]
fn without_etcd_and_without_a_state_it_says_so_and_recovers() {
    run(async {
        let (mut mesh, _one) = serving("stability-nothing", 1).await?;
        mesh.control_plane.stop().await?;
        fs::remove_file(state_file(&mesh))?;
        etcd(&mesh)?.kill()?;
        mesh.control_plane.begin().await?;
        let detail = until_mode(&mesh, false, "L1", false).await?;
        assert!(detail.contains("nothing to serve"), "{detail}");
        // The proxy keeps its resources.
        until_reached(&mesh, "one").await?;
        mesh.etcd.as_mut().context("etcd")?.restart().await?;
        until_mode(&mesh, true, "normal", false).await?;
        until_kept(&mesh, "one").await?;

        // A clean shutdown writes the known state, even the newest.
        let mut two = Registered::start(etcd(&mesh)?, "orders", ZONE, "two").await?;
        until_reached(&mesh, "two").await?;
        two.remove().await?;
        eventually(PATIENCE, "the instance to be gone", async || {
            let known = mesh.registry().metric("tidegate_instances").await?;
            ensure!(known == 1.0, "{known}");
            Ok(())
        })
        .await?;
        mesh.control_plane.stop().await?;
        let text = fs::read_to_string(state_file(&mesh))?;
        assert!(text.contains("one") && !text.contains("two"), "{text}");
        Ok(())
    });
}

#[test]
fn a_damaged_state_is_put_aside() {
    run(async {
        let (mut mesh, _one) = serving("stability-damaged", 1).await?;
        mesh.control_plane.stop().await?;
        let file = state_file(&mesh);
        let mut bytes = fs::read(&file)?;
        let last = bytes.last_mut().context("an empty state")?;
        *last ^= 1;
        fs::write(&file, &bytes)?;
        mesh.control_plane.restart().await?;
        logged(&mesh, "is damaged")?;
        let aside = file.with_file_name(format!("{STATE}.broken"));
        assert_eq!(fs::read(&aside)?, bytes);
        until_mode(&mesh, true, "normal", false).await?;
        until_kept(&mesh, "one").await?;
        until_reached(&mesh, "one").await
    });
}
