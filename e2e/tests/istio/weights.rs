//! istiod and plain Envoys as its proxies, without Tidegate.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Request, Version};
use e2e::peers::free_address;
use e2e::peers::istio::{Istiod, Sidecar, Workload};
use e2e::peers::kubernetes::Kubernetes;
use e2e::registry::InstanceName;
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;

use crate::{HOST, IN_A_ROW, SHOP};

/// How far a share of [`REQUESTS`] may be from its weight: over five standard deviations of 80 %.
const OFF_MAX: f64 = 0.07;
const REQUESTS: u32 = 1_000;

/// One service in two zones, on istiod, and a client's sidecar.
struct Scene {
    sidecar: Sidecar,
    kubernetes: Kubernetes,
    istiod: Istiod,
    port: u16,
    client: Client,
    _instances: [Server; 2],
    workdir: Workdir,
}

impl Scene {
    async fn start(name: &str) -> Result<Scene> {
        let workdir = Workdir::kept(name)?;
        let directory = workdir.path();
        let kubernetes = Kubernetes::start(directory, &[]).await?;
        let istiod = Istiod::start(directory, &kubernetes).await?;
        let instance = async |zone: &str, address: [u8; 4]| {
            let name = InstanceName::new("orders", zone, "one");
            Server::start(name, SocketAddr::from((address, 0))).await
        };
        // Each zone has an address of its own, as its hosts would.
        let instances = [
            instance("a", [127, 0, 0, 1]).await?,
            instance("b", [127, 0, 0, 2]).await?,
        ];
        let port = free_address()?.port();
        let objects = kubernetes.objects().await?;
        objects.apply(SHOP).await?;
        let addresses = instances.each_ref().map(Server::address);
        objects.apply(&service(port, addresses)).await?;
        objects.apply(&weights(80)).await?;
        let workload = Workload::new("shop", "app-1", "r1", "a").label("app", "app");
        let sidecar = Sidecar::start(directory, &workload, istiod.xds()).await?;
        Ok(Scene {
            sidecar,
            kubernetes,
            istiod,
            port,
            client: Client::new(Version::Http1),
            _instances: instances,
            workdir,
        })
    }

    /// The zones that answered.
    async fn zones(&self, requests: u32) -> Result<BTreeMap<String, u32>> {
        self.zones_through(&self.sidecar, requests).await
    }

    async fn zones_through(
        &self,
        sidecar: &Sidecar,
        requests: u32,
    ) -> Result<BTreeMap<String, u32>> {
        let at = sidecar.outbound(self.port).await?;
        let request = Request::get("/").header("host", format!("{HOST}:{}", self.port));
        let mut zones = BTreeMap::new();
        for _ in 0..requests {
            let reply = self.client.send(at, &request).await?;
            *zones.entry(reply.echo()?.zone).or_default() += 1;
        }
        Ok(zones)
    }

    async fn until_all_go_to(&self, zone: &str) -> Result<()> {
        let what = format!("all requests to go to zone {zone}");
        eventually(PATIENCE, &what, async || {
            let zones = self.zones(IN_A_ROW).await?;
            ensure!(zones.keys().eq([zone]), "{zones:?}");
            Ok(())
        })
        .await
    }
}

fn service(port: u16, [a, b]: [SocketAddr; 2]) -> String {
    let endpoint = |at: SocketAddr, zone: &str| {
        format!(
            "{{address: {}, ports: {{http: {}}}, locality: r1/{zone}, labels: {{zone: {zone}}}}}",
            at.ip(),
            at.port()
        )
    };
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: orders, namespace: shop}}
spec:
  hosts: [{HOST}]
  addresses: [240.240.0.9]
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints:
  - {}
  - {}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: orders, namespace: shop}}
spec:
  host: {HOST}
  subsets:
  - {{name: a, labels: {{zone: a}}}}
  - {{name: b, labels: {{zone: b}}}}
",
        endpoint(a, "a"),
        endpoint(b, "b")
    )
}

fn weights(a: u32) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: orders, namespace: shop}}
spec:
  hosts: [{HOST}]
  http:
  - route:
    - {{destination: {{host: {HOST}, subset: a}}, weight: {a}}}
    - {{destination: {{host: {HOST}, subset: b}}, weight: {}}}
",
        100 - a
    )
}

#[tokio::test]
async fn weights_of_a_virtual_service_act_and_follow_its_changes() -> Result<()> {
    let mut scene = Scene::start("istio-weights").await?;
    eventually(PATIENCE, "a request that is served", async || {
        scene.zones(1).await
    })
    .await
    .with_context(|| scene.sidecar.envoy().process().tail())?;
    let of_api_server = scene
        .sidecar
        .envoy()
        .admin()
        .listener("127.0.0.1_443")
        .await;
    ensure!(of_api_server.is_err(), "it listens at port 443");
    let zones = scene.zones(REQUESTS).await?;
    let share = f64::from(zones.get("a").copied().unwrap_or(0)) / f64::from(REQUESTS);
    ensure!((share - 0.8).abs() < OFF_MAX, "{zones:?}");
    let objects = scene.kubernetes.objects().await?;
    objects.apply(&weights(0)).await?;
    scene.until_all_go_to("b").await?;
    // istiod is away, which no request notices, and serves what changed meanwhile when it is back.
    scene.istiod.process().kill()?;
    objects.apply(&weights(100)).await?;
    let zones = scene.zones(IN_A_ROW).await?;
    ensure!(zones.keys().eq(["b"]), "{zones:?}");
    scene.istiod.restart().await?;
    scene.until_all_go_to("a").await?;
    let rejections = scene.sidecar.rejections().await?;
    ensure!(rejections == 0, "{rejections} configurations were rejected");
    Ok(())
}

#[tokio::test]
async fn two_sidecars_of_one_machine_do_not_share_a_port() -> Result<()> {
    let scene = Scene::start("istio-two-sidecars").await?;
    let objects = scene.kubernetes.objects().await?;
    let own = Ipv4Addr::new(127, 0, 0, 2);
    let second = Workload::new("shop", "app-2", "r1", "b").bind(own);
    objects.apply_one(&second.listens_for(scene.port)).await?;
    let directory = scene.workdir.path();
    let second = Sidecar::start(directory, &second, scene.istiod.xds()).await?;
    for sidecar in [&scene.sidecar, &second] {
        eventually(PATIENCE, "a request that is served", async || {
            scene.zones_through(sidecar, IN_A_ROW).await
        })
        .await?;
    }
    let addresses = [
        scene.sidecar.outbound(scene.port).await?.ip(),
        second.outbound(scene.port).await?.ip(),
    ];
    ensure!(addresses == [Ipv4Addr::LOCALHOST, own], "{addresses:?}");
    for sidecar in [&scene.sidecar, &second] {
        let rejections = sidecar.rejections().await?;
        ensure!(rejections == 0, "{rejections} configurations were rejected");
    }
    Ok(())
}
