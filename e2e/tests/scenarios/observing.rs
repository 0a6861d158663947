//! The decisions as operators and privileged callers see them.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::config::{ACCESS_LOG, ZONES};
use e2e::mesh::Mesh;
use e2e::wait::{PATIENCE, eventually};

use crate::shared::mesh;
use crate::support::{explained, on, reason, run};

#[test]
fn a_decision_is_shown_to_who_may_see_it() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        for request in [
            Request::get("/orders"),
            Request::get("/orders").home("beijing-c"),
            Request::post("/orders"),
        ] {
            let reply = mesh.send("shanghai-a", explained(request.clone())).await?;
            assert_eq!(reason(&reply)?, "home_zone");
            for stranger in [
                request.clone(),
                request.clone().header("x-explain-token", "guess"),
                request.clone().header("x-tidegate-explain", "1"),
            ] {
                let reply = mesh.send("shanghai-a", stranger).await?;
                assert!(reply.status.is_success(), "{}", reply.text());
                assert_eq!(
                    reply.header("x-tidegate-decision"),
                    None,
                    "{:?}",
                    reply.headers
                );
            }
        }
        let reply = mesh
            .send("shanghai-a", explained(Request::get("/strict")))
            .await?;
        assert_eq!(reason(&reply)?, "region_missing");
        let reply = mesh.send("shanghai-a", Request::get("/strict")).await?;
        assert_eq!(reply.header("x-tidegate-decision"), None);
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn the_access_log_has_every_decision() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        for (path, request, decision) in [
            (
                "/orders/log-read",
                Request::get("/orders/log-read"),
                "home_zone",
            ),
            (
                "/orders/log-write",
                Request::post("/orders/log-write"),
                "home_zone",
            ),
            (
                "/strict/log-refused",
                Request::get("/strict/log-refused"),
                "region_missing",
            ),
        ] {
            mesh.send("shanghai-a", request).await?;
            let log = mesh.workdir().path().join(ACCESS_LOG);
            let line = eventually(PATIENCE, "the line in the access log", async || {
                // Another test sends bytes that are not UTF-8.
                let log = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
                let line = log.lines().find(|line| line.contains(path));
                Ok(line.context("not there yet")?.to_owned())
            });
            let line = line.await?;
            let line: serde_json::Value = serde_json::from_str(&line).context(line)?;
            assert_eq!(line["decision"], decision, "{line}");
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn metrics_have_labels_and_say_which_policy_is_applied() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        mesh.send("shanghai-b", Request::post("/orders")).await?;
        mesh.send("shanghai-b", Request::get("/strict")).await?;
        let metrics = mesh.gateway("shanghai-b")?.admin().prometheus().await?;
        for labels in [
            r#"{tier="zone",class="write",reason="home_zone"}"#,
            r#"{tier="none",class="read",reason="region_missing"}"#,
        ] {
            let start = format!("tidegate_decisions{labels} ");
            assert!(
                metrics.lines().any(|line| line.starts_with(&start)),
                "{metrics}"
            );
        }
        // The configuration that the filter reports as applied is the control plane's current one.
        for (zone, _) in ZONES {
            let applied = async || {
                let wanted = mesh.registry().view(zone).await?["policy_version"].clone();
                let wanted = wanted.as_u64().context("a version")?;
                let admin = mesh.gateway(zone)?.admin();
                let applied = admin.stat("wasmcustom.tidegate.policy_version").await?;
                ensure!(applied == wanted, "{applied:x} instead of {wanted:x}");
                Ok(())
            };
            eventually(PATIENCE, "the policy to be applied", applied).await?;
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}
