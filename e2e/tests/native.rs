//! The dynamic module: as a guest the same cases as those of the wasm filter, in an Envoy that
//! Tidegate configures, and what only a module has.

#[path = "guests/cases.rs"]
mod cases;

use std::path::Path;

use anyhow::{Result, ensure};
use cases::{A, B, Host, Site};
use e2e::bootstrap::{Bootstrap, Flavour};
use e2e::cells::Cells;
use e2e::client::Request;
use e2e::config::region_of;
use e2e::envoy::{self, Envoy, Options};
use e2e::paths;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::json;

cases::all!(Flavour::Native);

/// A site whose control plane sends Envoys the module, and its gateway in shanghai-a.
async fn owned(name: &str) -> Result<Host> {
    let site = Site::start(Flavour::Native, name, |config| {
        config.flavour = Flavour::Native;
        Ok(())
    })
    .await?;
    let options = Options {
        concurrency: 2,
        ..Options::gateway(region_of(A), A)
    };
    let envoy = Envoy::start(site.workdir.path(), &options, site.control_plane.xds()).await?;
    Host::of(site, envoy).await
}

#[tokio::test]
async fn a_module_that_the_control_plane_sends_routes_and_fences() -> Result<()> {
    let host = owned("native-owned").await?;
    host.until_taken().await?;
    let spoofed = Request::post("/orders").header("x-tidegate-epoch", "99");
    let write = host.seen(&spoofed).await?;
    assert_eq!(write("x-tidegate-epoch").as_deref(), Some("1"));
    assert_eq!(write("x-tidegate-cell").as_deref(), Some("main"));
    let read = host.seen(&Request::get("/orders").home(B)).await?;
    assert_eq!(read("x-tidegate-home").as_deref(), Some(B));
    assert_eq!(read("x-tidegate-epoch"), None);

    // The next policy comes by ECDS, and the writes of the zone that lost the cell end.
    let cells = Cells::new(host.site.control_plane.admin());
    cells.override_to("main", B, "a test").await?;
    let refused = host.until_refused("not_owner").await?;
    assert_eq!(refused.status, 421);
    host.passes(&Request::get("/orders")).await?;
    let back = async || cells.move_to("main", A, "a test").await;
    eventually(PATIENCE, "the cell to move back", back).await?;
    host.until_taken().await?;
    let write = host.seen(&Request::post("/orders")).await?;
    assert_eq!(write("x-tidegate-epoch").as_deref(), Some("3"));
    Ok(())
}

#[tokio::test]
async fn a_module_reports_the_policy_that_it_has_applied() -> Result<()> {
    let host = owned("native-reports").await?;
    eventually(PATIENCE, "the report", async || {
        let wanted = host.site.control_plane.registry().view(A).await?;
        let wanted = wanted["policy_version"].clone();
        let applied = host.envoy.admin();
        let applied = applied.stat("wasmcustom.tidegate.policy_version").await?;
        ensure!(json!(applied) == wanted, "{applied} instead of {wanted}");
        let registry = host.site.control_plane.registry();
        let proxies = registry.proxies().await?;
        let policy = &proxies[0]["policy"];
        ensure!(policy["state"] == "applied", "{proxies}");
        Ok(())
    })
    .await
}

fn with_module(module: &Path) -> Result<Bootstrap> {
    Bootstrap::example("envoy/fence.yaml", Flavour::Wasm)?.with_module(module)
}

#[tokio::test]
async fn a_module_of_another_abi_is_refused_with_a_message() -> Result<()> {
    let workdir = Workdir::kept("native-other-abi")?;
    let own = with_module(&paths::module()?)?;
    envoy::validate(workdir.path(), "own", &own).await?;
    let other = with_module(&paths::module_of_another_abi()?)?;
    let refused = envoy::validate(workdir.path(), "other", &other).await;
    let told = format!("{:#}", refused.expect_err("another ABI was accepted"));
    for expected in [
        "tidegate is not loaded: this Envoy has the ABI v0.2.0 of dynamic modules",
        "and the module is built for v0.0.0",
        "Failed to initialize dynamic module",
    ] {
        assert!(told.contains(expected), "{told}");
    }
    Ok(())
}
