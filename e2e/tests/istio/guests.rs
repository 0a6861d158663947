//! The filter as a guest in Istio's proxies, in each form that istiod delivers, with the pieces
//! that `tidegate guest` prints.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::routing::get;
use e2e::cells::Cells;
use e2e::client::{Client, Reply, Request, Version};
use e2e::paths;
use e2e::peers::free_address;
use e2e::peers::istio::Sidecar;
use e2e::wait::{PATIENCE, eventually};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::HOST;
use crate::scene::{A, B, Scene};

/// The client whose sidecar has the guest.
const FRONT: &str = "front";

/// How the guest comes to the sidecar.
struct Delivered<'a> {
    /// For `--delivery`.
    by: &'a str,
    module: &'a str,
    /// Further options.
    more: &'a [&'a str],
    /// Istio's own agent stands between Envoy and istiod.
    has_agent: bool,
}

/// A mesh with a fence, and a guest in the sidecar of a client in shanghai-a.
struct Fenced {
    scene: Scene,
    sidecar: Sidecar,
    client: Client,
}

/// The pieces of a guest in the sidecar of [`FRONT`].
fn pieces(scene: &Scene, more: &[&str]) -> Result<String> {
    let address = scene.control_plane.xds().to_string();
    let host = format!("{HOST}:{}", scene.port);
    let fixed = [
        "guest",
        "--kind",
        "istio",
        "--context",
        "sidecar-outbound",
        "--namespace",
        "shop",
        "--selector",
        "pod=front",
        "--address",
        &address,
        "--virtual-host",
        &host,
    ];
    let output = Command::new(paths::tidegate()?)
        .args(fixed)
        .args(more)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    Ok(String::from_utf8(output.stdout)?)
}

impl Fenced {
    /// With a guest that the host delivers in this way from a file, with these further options.
    async fn start(name: &str, by: &str, more: &[&str]) -> Result<Fenced> {
        let file = paths::filter()?.display().to_string();
        let module = match by {
            "plugin" | "traffic-extension" => format!("file://{file}"),
            _ => file,
        };
        let delivered = Delivered {
            by,
            module: &module,
            more,
            has_agent: false,
        };
        Fenced::start_with(name, &delivered).await
    }

    async fn start_with(name: &str, delivered: &Delivered<'_>) -> Result<Fenced> {
        let scene = Scene::start_with(name, "", |config| {
            config.authority = Some(json!({
                "write_drain_ms": 1_500,
                "cells": [{ "name": "main", "owners": [A], "standby": [B], "cool_down_s": 0 }],
            }));
        })
        .await?;
        let Delivered {
            by, module, more, ..
        } = *delivered;
        let options = ["--delivery", by, "--module", module];
        let pieces = pieces(&scene, &[&options[..], more].concat())?;
        scene
            .objects
            .apply(&pieces)
            .await
            .with_context(|| pieces.clone())?;
        let sidecar = match delivered.has_agent {
            true => scene.sidecar_with_agent(FRONT, "shanghai", A).await?,
            false => scene.sidecar(FRONT, "shanghai", A).await?,
        };
        Ok(Fenced {
            scene,
            sidecar,
            client: Client::new(Version::Http1),
        })
    }

    fn request(&self, method: Method) -> Request {
        let host = format!("{HOST}:{}", self.scene.port);
        Request::new(method, "/orders").header("host", host)
    }

    async fn send(&self, request: &Request) -> Result<Reply> {
        let at = self.sidecar.outbound(self.scene.port).await?;
        self.client.send(at, request).await
    }

    async fn until<T>(
        &self,
        what: &str,
        request: Request,
        check: impl Fn(&Reply) -> Result<T>,
    ) -> Result<T> {
        let reached = eventually(PATIENCE, what, async || check(&self.send(&request).await?));
        reached.await.with_context(|| {
            let control_plane = self.scene.control_plane.process();
            format!(
                "{}\n{}",
                self.sidecar.envoy().process().tail(),
                control_plane.tail()
            )
        })
    }

    async fn until_written(&self) -> Result<()> {
        let write = self.request(Method::POST).header("x-tidegate-epoch", "99");
        self.until("a write to be taken", write, |reply| {
            let echo = reply.echo()?;
            let epoch = echo.headers.get("x-tidegate-epoch").map(String::as_str);
            ensure!(epoch.is_some_and(|epoch| epoch != "99"), "{epoch:?}");
            Ok(())
        })
        .await
    }

    async fn until_fenced(&self) -> Result<()> {
        let write = self.request(Method::POST);
        self.until("a write to be refused", write, |reply| {
            ensure!(reply.status == 503, "{}", reply.status);
            ensure!(reply.refusal()? == "fenced", "{}", reply.text());
            Ok(())
        })
        .await
    }

    async fn reads_pass(&self) -> Result<()> {
        for _ in 0..20 {
            let reply = self.send(&self.request(Method::GET)).await?;
            reply.echo().with_context(|| reply.text())?;
        }
        Ok(())
    }

    /// Kills the agent, with its Envoy, and starts another.
    async fn restart_agent(&mut self) -> Result<()> {
        self.sidecar.envoy().process().kill()?;
        self.sidecar = self.scene.sidecar_with_agent(FRONT, "shanghai", A).await?;
        Ok(())
    }

    /// The fence as everywhere: writes where the zone owns the cell, and nowhere else.
    async fn fences(&mut self) -> Result<()> {
        self.until_written().await?;
        let cells = Cells::new(self.scene.control_plane.admin());
        cells.override_to("main", B, "a test").await?;
        let write = self.request(Method::POST);
        self.until("writes to be of another zone", write, |reply| {
            ensure!(reply.refusal()? == "not_owner", "{}", reply.text());
            Ok(())
        })
        .await?;
        cells.move_to("main", A, "a test").await?;
        self.until_written().await?;
        self.reads_pass().await?;
        // Without its control plane it holds nothing for long.
        self.scene.control_plane.process().kill()?;
        self.until_fenced().await?;
        self.reads_pass().await?;
        self.scene.control_plane.restart().await?;
        self.until_written().await?;
        let rejections = self.sidecar.rejections().await?;
        ensure!(rejections == 0, "{rejections} configurations were rejected");
        Ok(())
    }
}

#[tokio::test]
async fn a_guest_of_an_envoy_filter_fences_and_the_net_holds_without_it() -> Result<()> {
    let mut fenced = Fenced::start("istio-guest-filter", "file", &[]).await?;
    fenced.fences().await?;
    // The guest goes, and its net stays.
    let guest = "{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, \
                 metadata: {name: tidegate-guest, namespace: shop}}";
    fenced.scene.objects.delete(guest).await?;
    let write = fenced.request(Method::POST);
    fenced
        .until("the net to refuse a write", write, |reply| {
            ensure!(reply.refusal()? == "fenced", "{}", reply.text());
            ensure!(reply.text().contains("away"), "{}", reply.text());
            Ok(())
        })
        .await?;
    fenced.reads_pass().await
}

#[tokio::test]
async fn a_guest_of_a_wasm_plugin_fences() -> Result<()> {
    let mut fenced = Fenced::start("istio-guest-plugin", "plugin", &[]).await?;
    fenced.fences().await
}

#[tokio::test]
async fn a_guest_of_a_traffic_extension_fences() -> Result<()> {
    let mut fenced = Fenced::start("istio-guest-extension", "traffic-extension", &[]).await?;
    fenced.fences().await
}

/// Serves the filter, as a registry of modules does, until the set is dropped.
async fn serve_module() -> Result<(SocketAddr, JoinSet<()>)> {
    let module = fs::read(paths::filter()?)?;
    let serves = move || {
        let module = module.clone();
        async move { module }
    };
    serve(Router::new().route("/filter.wasm", get(serves))).await
}

async fn serve(router: Router) -> Result<(SocketAddr, JoinSet<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        // It does not end by itself.
        let _ = axum::serve(listener, router).await;
    });
    Ok((address, serving))
}

/// Whatever of the mesh restarts, in whatever order: reads go on, and writes come back.
#[tokio::test]
async fn a_guest_that_istios_agent_fetches_fences_through_restarts() -> Result<()> {
    let (registry, _serving) = serve_module().await?;
    let delivered = Delivered {
        by: "plugin",
        module: &format!("http://{registry}/filter.wasm"),
        more: &[],
        has_agent: true,
    };
    let mut fenced = Fenced::start_with("istio-agent", &delivered).await?;
    fenced.fences().await?;
    // Without istiod the Envoy keeps what it has.
    fenced.scene.istiod.process().kill()?;
    fenced.until_written().await?;
    fenced.reads_pass().await?;
    // A control plane that comes back finds no istiod.
    fenced.scene.control_plane.process().kill()?;
    fenced.until_fenced().await?;
    fenced.reads_pass().await?;
    fenced.scene.control_plane.restart().await?;
    fenced.until_written().await?;
    fenced.scene.istiod.restart().await?;
    fenced.reads_pass().await?;
    fenced.until_written().await?;
    // An agent that comes back fetches the module again.
    fenced.restart_agent().await?;
    fenced.until_written().await?;
    fenced.reads_pass().await
}

/// Serves the filter as an image in a registry, by OCI's Distribution Specification; returns its
/// `oci://` address.
async fn serve_image(directory: &Path) -> Result<(String, JoinSet<()>)> {
    let layout = directory.join("image");
    let mut image = Command::new(paths::tidegate()?);
    image.args(["image", "--tag", "test", "--filter"]);
    let made = image
        .arg(paths::filter()?)
        .arg("--to")
        .arg(&layout)
        .output();
    let made = made.context("tidegate image")?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let top = index["manifests"][0]["digest"].as_str();
    let top = top.context("no image")?.to_owned();
    let blob = move |reference: String| {
        // By its tag, or by the digest of one that it names.
        let digest = match reference.as_str() {
            "test" => top.clone(),
            _ => reference,
        };
        let bytes = fs::read(layout.join("blobs").join(digest.replace(':', "/")));
        async move {
            let bytes = bytes.map_err(|_| StatusCode::NOT_FOUND)?;
            // A blob's own type is in the descriptor that led to it.
            let content: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let media = content["mediaType"].as_str();
            let media = media.unwrap_or("application/octet-stream").to_owned();
            let headers = [("content-type", media), ("docker-content-digest", digest)];
            Ok::<_, StatusCode>((headers, bytes))
        }
    };
    let manifests = blob.clone();
    let router = Router::new()
        .route("/v2/", get(async || "{}"))
        .route(
            "/v2/tidegate/filter/manifests/{reference}",
            get(move |axum::extract::Path(of): axum::extract::Path<String>| manifests(of)),
        )
        .route(
            "/v2/tidegate/filter/blobs/{digest}",
            get(move |axum::extract::Path(of): axum::extract::Path<String>| blob(of)),
        );
    let (address, serving) = serve(router).await?;
    Ok((format!("oci://{address}/tidegate/filter:test"), serving))
}

#[tokio::test]
async fn a_guest_comes_as_an_image_from_a_registry() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (module, _serving) = serve_image(directory.path()).await?;
    let delivered = Delivered {
        by: "plugin",
        module: &module,
        more: &[],
        has_agent: true,
    };
    let mut fenced = Fenced::start_with("istio-image", &delivered).await?;
    // The control plane serves the same one.
    let admin = fenced.scene.control_plane.admin();
    let served = fenced
        .client
        .send(admin, &Request::get("/filter.wasm"))
        .await?;
    ensure!(served.body == fs::read(paths::filter()?)?, "another module");
    fenced.fences().await
}

#[tokio::test]
async fn where_istios_agent_cannot_fetch_the_guest_reads_go_on_and_writes_do_not() -> Result<()> {
    let nobody = free_address()?;
    for (name, by) in [
        ("istio-not-fetched", "plugin"),
        ("istio-not-fetched-extension", "traffic-extension"),
    ] {
        let delivered = Delivered {
            by,
            module: &format!("http://{nobody}/filter.wasm"),
            more: &[],
            has_agent: true,
        };
        let fenced = Fenced::start_with(name, &delivered).await?;
        fenced.until_fenced().await?;
        fenced.reads_pass().await?;
        let write = fenced.request(Method::POST).header("x-tidegate-epoch", "1");
        let reply = fenced.send(&write).await?;
        ensure!(reply.refusal()? == "fenced", "{}", reply.text());
    }
    Ok(())
}

#[tokio::test]
async fn the_stamps_of_a_guest_choose_among_the_subsets() -> Result<()> {
    let fenced = Fenced::start("istio-guest-route", "file", &["--mode", "route"]).await?;
    fenced.until_written().await?;
    for zone in [A, B] {
        let what = format!("reads of {zone} to go there");
        let read = fenced.request(Method::GET).home(zone);
        fenced
            .until(&what, read, |reply| {
                let echo = reply.echo()?;
                let to = echo.headers.get("x-tidegate-to").map(String::as_str);
                ensure!(echo.zone == zone, "{}", echo.zone);
                ensure!(to == Some(&*format!("orders/{zone}")), "{to:?}");
                Ok(())
            })
            .await?;
    }
    Ok(())
}
