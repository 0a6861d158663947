//! Istio as users run it: a real istiod on a real Kubernetes API server, with plain Envoys as
//! proxies. `cargo xtask setup --istio` builds them, and `cargo xtask test istio` runs this.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Request, Version};
use e2e::peers::free_address;
use e2e::peers::istio::{Istiod, Sidecar, Workload};
use e2e::peers::kubernetes::Kubernetes;
use e2e::peers::objects::code;
use e2e::registry::InstanceName;
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;

const HOST: &str = "orders.shop.example";

const SHOP: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";

/// How far a share of [`REQUESTS`] may be from its weight: over five standard deviations of 80 %.
const OFF_MAX: f64 = 0.07;
const REQUESTS: u32 = 1_000;
/// So many in a row are no chance, with a weight of 20 %.
const IN_A_ROW: u32 = 40;

fn config_map(value: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: settings, namespace: shop}}, \
         data: {{mode: {value}}}}}"
    )
}

#[tokio::test]
async fn server_side_apply_knows_who_owns_a_field() -> Result<()> {
    let workdir = Workdir::kept("kubernetes-apply")?;
    let kubernetes = Kubernetes::start(workdir.path(), &[]).await?;
    let ours = kubernetes.objects().await?.managed_by("ours");
    ours.apply(SHOP).await?;
    ours.apply(&config_map("fence")).await?;
    // Again, as a controller does it.
    ours.apply(&config_map("fence")).await?;
    let theirs = ours.clone().managed_by("theirs");
    let refused = theirs.apply(&config_map("route")).await;
    let refused = refused.err().context("a field of another was taken")?;
    ensure!(code(&refused) == Some(409), "{refused:#}");
    let stored = ours.get(&config_map("")).await?;
    ensure!(stored["data"]["mode"] == "fence", "{stored}");
    ours.delete(&config_map("")).await?;
    theirs.apply(&config_map("route")).await
}

#[tokio::test]
async fn rbac_permits_a_user_only_the_granted_verbs() -> Result<()> {
    let workdir = Workdir::kept("kubernetes-rbac")?;
    let kubernetes = Kubernetes::start(workdir.path(), &["tidegate"]).await?;
    let admin = kubernetes.objects().await?;
    admin.apply(SHOP).await?;
    admin.apply(&config_map("fence")).await?;
    let user = kubernetes.objects_of("tidegate").await?;
    let forbidden = async || {
        let refused = user.apply(&config_map("fence")).await;
        let refused = refused.err().context("the write was accepted")?;
        ensure!(code(&refused) == Some(403), "{refused:#}");
        Ok(())
    };
    forbidden().await?;
    ensure!(
        user.get(&config_map("")).await.is_err(),
        "a read was accepted"
    );
    let role = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: shop}
rules:
- {apiGroups: [''], resources: [configmaps], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: tidegate}
";
    admin.apply(role).await?;
    eventually(PATIENCE, "the role to be in force", async || {
        user.get(&config_map("")).await
    })
    .await?;
    forbidden().await
}

#[tokio::test]
async fn controllers_act_on_objects() -> Result<()> {
    let workdir = Workdir::kept("kubernetes-controllers")?;
    let mut kubernetes = Kubernetes::start(workdir.path(), &[]).await?;
    kubernetes.start_controllers()?;
    let objects = kubernetes.objects().await?;
    objects.apply(SHOP).await?;
    objects.apply(&config_map("fence")).await?;
    objects.delete(SHOP).await?;
    eventually(PATIENCE, "the namespace to go", async || {
        let found = objects.get(SHOP).await;
        let error = found.err().context("it is there")?;
        ensure!(code(&error) == Some(404), "{error:#}");
        Ok(())
    })
    .await
}

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
