//! A control plane with a foreign Envoy as its guest.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::bootstrap::{Bootstrap, Flavour};
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::envoy::Envoy;
use e2e::registry::{Instance, InstanceName};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

pub(crate) const A: &str = "shanghai-a";
pub(crate) const B: &str = "shanghai-b";

/// A control plane, and an instance of `orders` in each zone.
pub(crate) struct Site {
    flavour: Flavour,
    pub(crate) control_plane: ControlPlane,
    /// In the order of [`ZONES`].
    pub(super) instances: Vec<Server>,
    pub(crate) workdir: Workdir,
}

/// A site with a foreign Envoy in shanghai-a.
pub(crate) struct Host {
    pub(crate) site: Site,
    pub(crate) envoy: Envoy,
    ingress: SocketAddr,
    client: Client,
}

fn config() -> Config {
    let orders = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }], "fenced": true });
    let drafts =
        json!({ "name": "drafts", "routes": [{ "prefix": "/orders/drafts" }], "fenced": false });
    let mut config = Config::new(StoreConfig::Embedded, vec![orders, drafts]);
    config.authority = Some(json!({
        "write_drain_ms": 1_500,
        "cells": [{ "name": "main", "owners": [A], "standby": [B], "cool_down_s": 0 }],
    }));
    config
}

impl Site {
    pub(crate) async fn start(
        flavour: Flavour,
        name: &str,
        change: impl FnOnce(&mut Config) -> Result<()>,
    ) -> Result<Site> {
        let workdir = Workdir::kept(&format!("{name}-{}", flavour.as_str()))?;
        let mut config = config();
        change(&mut config)?;
        let control_plane = ControlPlane::start(workdir.path(), config).await?;
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut instances = vec![];
        for (zone, _) in ZONES {
            let orders = InstanceName::new("orders", zone, &format!("orders-{zone}"));
            let server = Server::start(orders.clone(), any_port).await?;
            let drafts = InstanceName::new("drafts", zone, &format!("orders-{zone}"));
            for name in [orders, drafts] {
                let record = Instance::at(server.address());
                let put = control_plane.registry().put(&name, &record, None).await?;
                ensure!(put.status.is_success(), "{}", put.text());
            }
            instances.push(server);
        }
        Ok(Site {
            flavour,
            control_plane,
            instances,
            workdir,
        })
    }

    /// Starts the Envoy of an example, changed as `change` says.
    pub(super) async fn host(
        self,
        example: &str,
        change: impl FnOnce(Bootstrap) -> Result<Bootstrap>,
    ) -> Result<Host> {
        let bootstrap = Bootstrap::example(&format!("envoy/{example}.yaml"), self.flavour)?;
        let mut bootstrap = bootstrap.cluster_at("tidegate", self.control_plane.xds())?;
        for ((zone, _), server) in ZONES.iter().zip(&self.instances) {
            bootstrap = match example {
                "fence" if *zone == A => bootstrap.cluster_at("orders", server.address())?,
                "fence" => bootstrap,
                _ => bootstrap.cluster_at(&format!("orders-{zone}"), server.address())?,
            };
        }
        let bootstrap = change(bootstrap)?;
        let envoy = Envoy::start_with(self.workdir.path(), "foreign", &bootstrap, 2).await?;
        Host::of(self, envoy).await
    }
}

impl Host {
    /// An Envoy of this site.
    pub(crate) async fn of(site: Site, envoy: Envoy) -> Result<Host> {
        let ingress = envoy.ingress().await?;
        Ok(Host {
            site,
            envoy,
            ingress,
            client: Client::new(Version::Http1),
        })
    }

    /// As in the example, with the guest's configuration changed as `change` says.
    pub(crate) async fn start(
        flavour: Flavour,
        name: &str,
        example: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Host> {
        let site = Site::start(flavour, name, |_| Ok(())).await?;
        site.host(example, |bootstrap| {
            let mut guest = bootstrap.guest_configuration()?;
            change(&mut guest);
            bootstrap.guest(&guest)
        })
        .await
    }

    pub(super) async fn send(&self, request: &Request) -> Result<Reply> {
        self.client.send(self.ingress, request).await
    }

    /// Waits until the answer to a request is as it should be; `check` returns the difference.
    pub(super) async fn eventually<T>(
        &self,
        what: &str,
        request: Request,
        check: impl Fn(&Reply) -> Result<T>,
    ) -> Result<T> {
        let reached = eventually(PATIENCE, what, async || check(&self.send(&request).await?));
        reached.await.map_err(|error| {
            let (envoy, control) = (self.envoy.process(), self.site.control_plane.process());
            anyhow!("{error:#}\n{}\n{}", envoy.tail(), control.tail())
        })
    }

    pub(crate) async fn until_taken(&self) -> Result<()> {
        let what = "a write to be taken";
        let write = Request::post("/orders");
        self.eventually(what, write, |reply| reply.echo().map(drop))
            .await
    }

    pub(crate) async fn until_refused(&self, reason: &str) -> Result<Reply> {
        let what = format!("a write to be refused as {reason}");
        self.eventually(&what, Request::post("/orders"), |reply| {
            let told = reply.refusal()?;
            ensure!(told == reason, "{told}");
            Ok(reply.clone())
        })
        .await
    }

    /// Waits for a condition, and returns its detail.
    pub(super) async fn until_condition(&self, code: &str) -> Result<String> {
        eventually(PATIENCE, &format!("{code} to hold"), async || {
            let conditions = self.site.control_plane.registry().conditions().await?;
            let mut all = conditions.as_array().into_iter().flatten();
            let found = all.find(|it| it["code"] == code);
            let detail = found.and_then(|it| it["detail"].as_str());
            let detail = detail.with_context(|| conditions.to_string());
            Ok(detail?.to_owned())
        })
        .await
    }

    pub(super) async fn until_no_condition(&self, code: &str) -> Result<()> {
        eventually(PATIENCE, &format!("{code} to end"), async || {
            let conditions = self.site.control_plane.registry().conditions().await?;
            let mut all = conditions.as_array().into_iter().flatten();
            ensure!(all.all(|it| it["code"] != code), "{conditions:#}");
            Ok(())
        })
        .await
    }

    /// What identifies the configuration in force.
    pub(super) async fn digest(&self) -> Result<String> {
        let metrics = self.site.control_plane.registry().metrics().await?;
        let mut lines = metrics.lines();
        let found = lines.find(|line| line.starts_with("tidegate_config_digest "));
        Ok(found.context("no digest")?.to_owned())
    }

    /// How the control plane lists the guest.
    pub(super) async fn listed(&self) -> Result<Value> {
        eventually(PATIENCE, "the guest to be listed", async || {
            let proxies = self.site.control_plane.registry().proxies().await?;
            let mut all = proxies.as_array().into_iter().flatten();
            let guest = all.find(|it| it["role"] == "guest" && it["policy"]["state"] == "applied");
            Ok(guest.with_context(|| proxies.to_string())?.clone())
        })
        .await
    }

    pub(crate) async fn passes(&self, request: &Request) -> Result<()> {
        self.seen(request).await.map(drop)
    }

    /// The headers of a request that passed, as the instance has them.
    pub(crate) async fn seen(
        &self,
        request: &Request,
    ) -> Result<impl Fn(&str) -> Option<String> + use<>> {
        let reply = self.send(request).await?;
        let echo = reply.echo().with_context(|| reply.text())?;
        Ok(move |header: &str| echo.headers.get(header).cloned())
    }
}
