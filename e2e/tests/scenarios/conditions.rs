//! No silent faults: a fault of the store is a condition, and so is its effect on writes.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::mesh::{Builder, Mesh, Store};
use e2e::paths;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, ConnectOptions, DeleteOptions};
use hyper::StatusCode;
use serde_json::json;

use crate::support::{assert_refused, on, run};

const ZONE: &str = "shanghai-a";
/// Alarms are read every ten seconds, and a lost session becomes a condition after its time to
/// live.
const LONG: Duration = Duration::from_secs(3 * PATIENCE.as_secs());
/// More than an empty etcd has, and quickly filled.
const QUOTA_BYTES: u64 = 2 << 20;

/// A gateway whose writes are fenced, on an etcd of one member.
async fn fenced(name: &str) -> Result<Mesh> {
    let authority = json!({
        "zones": [ZONE, "shanghai-b", "beijing-c"],
        "session_ttl_ms": 4_000,
        "grant_ttl_ms": 1_500,
        "write_drain_ms": 1_000,
        "forward_token": "gateways-of-one-mesh",
        "cells": [{ "name": "main", "owners": [ZONE], "standby": [] }],
    });
    let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }], "fenced": true });
    Builder::new(Workdir::kept(name)?)
        .store(Store::Etcd(1))
        .service(service)
        .authority(authority)
        .gateways()
        .upstreams("orders", 1)
        .start()
        .await
}

async fn until_taken(mesh: &Mesh) -> Result<()> {
    let write = Request::post("/orders");
    let taken = mesh.eventually(ZONE, "a write to be taken", write, |reply| {
        reply.echo().map(drop)
    });
    taken.await.map(drop)
}

/// The codes in `/readyz`, which answers 200.
async fn codes(mesh: &Mesh) -> Result<(String, Vec<String>)> {
    let (status, said) = mesh.registry().readiness().await?;
    ensure!(status == StatusCode::OK, "{status} {said}");
    let mode = said["mode"].as_str().context("a mode")?.to_owned();
    let listed = said["conditions"].as_array().context("conditions")?.iter();
    let codes = listed.filter_map(|condition| condition["code"].as_str());
    Ok((mode, codes.map(str::to_owned).collect()))
}

/// Waits until at least these conditions hold, in this mode.
async fn until_held(mesh: &Mesh, mode: &str, expected: &[&str]) -> Result<()> {
    eventually(LONG, &format!("{mode} with {expected:?}"), async || {
        let (is, held) = codes(mesh).await?;
        ensure!(is == mode, "{is} {held:?}");
        let missing = expected
            .iter()
            .find(|code| !held.iter().any(|h| h == *code));
        ensure!(missing.is_none(), "{held:?}");
        Ok(())
    })
    .await
}

/// Waits until no condition of severity error holds.
async fn until_well(mesh: &Mesh) -> Result<()> {
    eventually(LONG, "no condition", async || {
        let (mode, held) = codes(mesh).await?;
        let errors = mesh.registry().metric("tidegate_condition{").await?;
        ensure!(
            mode == "normal" && held.is_empty() && errors == 0.0,
            "{mode} {held:?}"
        );
        Ok(())
    })
    .await
}

/// `tidegate status`: exit code and output.
fn status(mesh: &Mesh) -> Result<(Option<i32>, String)> {
    let admin = format!("http://{}", mesh.control_plane.admin());
    let output = Command::new(paths::tidegate()?)
        .args(["status", "--admin", &admin])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.code(), text))
}

/// On a busy machine the store may be slow for a moment.
async fn until_status(mesh: &Mesh, code: i32) -> Result<()> {
    eventually(LONG, &format!("exit code {code}"), async || {
        let (is, text) = status(mesh)?;
        ensure!(is == Some(code), "{is:?} {text}");
        Ok(())
    })
    .await
}

/// Lines of the log that contain all of these.
fn logged(mesh: &Mesh, words: &[&str]) -> Result<usize> {
    let log = fs::read_to_string(mesh.control_plane.process().log())?;
    let has = |line: &&str| words.iter().all(|word| line.contains(word));
    Ok(log.lines().filter(has).count())
}

/// Writes until etcd is full, and then raises its quota.
async fn fill(client: &mut Client) -> Result<()> {
    let value = vec![b'x'; 100 << 10];
    for index in 0..1_000 {
        let put = client
            .put(format!("/filling/{index}"), value.clone(), None)
            .await;
        if let Err(error) = put {
            ensure!(error.to_string().contains("space exceeded"), "{error}");
            return Ok(());
        }
    }
    anyhow::bail!("etcd took everything")
}

async fn make_room(client: &mut Client) -> Result<()> {
    let prefix = DeleteOptions::new().with_prefix();
    let deleted = client.delete("/filling/", Some(prefix)).await?;
    let revision = deleted.header().context("a header")?.revision();
    client.compact(revision, None).await?;
    client.defragment().await?;
    // Each member has its own alarm, and `etcdctl alarm disarm` also disarms each.
    let raised = client
        .alarm(AlarmAction::Get, AlarmType::None, None)
        .await?;
    for alarm in raised.alarms() {
        let mut of_member = AlarmOptions::new();
        of_member.with_member(alarm.member_id());
        let (end, what) = (AlarmAction::Deactivate, AlarmType::Nospace);
        client.alarm(end, what, Some(of_member)).await?;
    }
    Ok(())
}

#[test]
fn an_etcd_without_space_is_a_condition_and_so_are_the_grants_that_cannot_be_given() {
    run(async {
        let mut mesh = fenced("conditions-nospace").await?;
        until_taken(&mesh).await?;
        let etcd = mesh.etcd.as_mut().context("etcd")?;
        etcd.set_quota(QUOTA_BYTES);
        etcd.restart().await?;
        on(&mesh, async |mesh| {
            until_taken(mesh).await?;
            until_well(mesh).await?;
            until_status(mesh, 0).await?;
            let mut client = mesh.etcd.as_ref().context("etcd")?.client().await?;
            fill(&mut client).await?;
            // The store is full, nothing is written, and the session cannot be renewed.
            until_held(mesh, "L3", &["TG2003", "TG2004", "TG1001"]).await?;
            let full = "tidegate_condition{code=\"TG2004\",name=\"store_full\",severity=\"error\"}";
            assert_eq!(mesh.registry().metric(full).await?, 1.0);
            let (code, text) = status(mesh)?;
            assert_eq!(code, Some(4), "{text}");
            assert!(
                text.contains("TG2004 store_full") && text.contains("alarm disarm"),
                "{text}"
            );
            assert!(text.contains("space exceeded"), "{text}");
            assert!(logged(mesh, &["TG2004", "condition begins"])? > 0);
            let refused = mesh.send(ZONE, Request::post("/orders")).await?;
            assert_refused(&refused, 503, "fenced");

            make_room(&mut client).await?;
            until_well(mesh).await?;
            let begun = logged(mesh, &["TG2004", "condition begins"])?;
            assert_eq!(logged(mesh, &["TG2004", "condition ends"])?, begun);
            until_status(mesh, 0).await?;
            until_taken(mesh).await
        })
        .await
    });
}

#[test]
fn alarms_denials_and_a_frozen_member_are_conditions_where_nothing_is_written() {
    run(async {
        let mesh = Builder::new(Workdir::kept("conditions-relatives")?)
            .store(Store::Etcd(1))
            .start()
            .await?;
        on(&mesh, async |mesh| {
            until_well(mesh).await?;
            let etcd = mesh.etcd.as_ref().context("etcd")?;
            let mut client = etcd.client().await?;
            let (activate, end) = (AlarmAction::Activate, AlarmAction::Deactivate);
            client.alarm(activate, AlarmType::Nospace, None).await?;
            until_held(mesh, "L3", &["TG2004"]).await?;
            client.alarm(end, AlarmType::Nospace, None).await?;
            until_well(mesh).await?;

            client.alarm(activate, AlarmType::Corrupt, None).await?;
            until_held(mesh, "L3", &["TG2005"]).await?;
            client.alarm(end, AlarmType::Corrupt, None).await?;
            until_well(mesh).await?;

            client.user_add("root", "secret", None).await?;
            client.role_add("root").await?;
            client.user_grant_role("root", "root").await?;
            client.auth_enable().await?;
            until_held(mesh, "L2", &["TG2002", "TG2006"]).await?;
            let as_root = ConnectOptions::new().with_user("root", "secret");
            let mut root = Client::connect(etcd.endpoints(), Some(as_root)).await?;
            root.auth_disable().await?;
            until_well(mesh).await?;

            etcd.members()[0].process().pause()?;
            until_held(mesh, "L2", &["TG2002", "TG2009"]).await?;
            etcd.members()[0].process().resume()?;
            until_well(mesh).await
        })
        .await
    });
}
