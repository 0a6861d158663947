//! Weights and instances of Tidegate in an Istio mesh, as objects of Istio.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Request, Version};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::load::Load;
use e2e::peers::free_address;
use e2e::peers::istio::{Istiod, Sidecar, Workload};
use e2e::peers::kubernetes::Kubernetes;
use e2e::peers::objects::{Objects, code};
use e2e::registry::{Instance, InstanceName};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

use crate::{HOST, IN_A_ROW, SHOP};

const A: &str = "shanghai-a";
const B: &str = "shanghai-b";
const C: &str = "beijing-c";

const NAME: &str = "tidegate-orders";

/// The role of docs/guides/istio-objects.md, for the user `tidegate`.
const ROLE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: tidegate}
rules:
- apiGroups: [networking.istio.io]
  resources: [serviceentries, destinationrules, virtualservices]
  verbs: [get, list, watch, create, patch, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: tidegate}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tidegate}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: tidegate}
";

/// An Istio mesh with a control plane of Tidegate, and an instance of `orders` in each zone.
struct Scene {
    kubernetes: Kubernetes,
    istiod: Istiod,
    objects: Objects,
    control_plane: ControlPlane,
    /// In the order of [`ZONES`]; none once it is killed.
    instances: Vec<Option<Server>>,
    port: u16,
    workdir: Workdir,
}

fn istio(kubeconfig: &Path, port: u16) -> Value {
    json!({
        "kubeconfig": kubeconfig,
        "services": [{
            "name": "orders",
            "host": HOST,
            "namespace": "shop",
            "entry": { "port": port, "addresses": ["240.240.0.9"] },
        }],
    })
}

fn name(zone: &str) -> InstanceName {
    InstanceName::new("orders", zone, "one")
}

/// The object of a kind that Tidegate makes for `orders`.
fn ours(kind: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: {kind}, \
         metadata: {{name: {NAME}, namespace: shop}}}}"
    )
}

impl Scene {
    /// As users have it before Tidegate comes: `prepare` adds their own objects.
    async fn start(name: &str, theirs: &str) -> Result<Scene> {
        let workdir = Workdir::kept(name)?;
        let directory = workdir.path();
        let kubernetes = Kubernetes::start(directory, &["tidegate"]).await?;
        let istiod = Istiod::start(directory, &kubernetes).await?;
        let objects = kubernetes.objects().await?;
        objects.apply(ROLE).await?;
        objects.apply(SHOP).await?;
        objects.apply(theirs).await?;
        let port = free_address()?.port();
        let orders = json!({ "name": "orders", "routes": [{ "prefix": "/" }] });
        let mut config = Config::new(StoreConfig::Embedded, vec![orders]);
        config.istio = Some(istio(&kubernetes.kubeconfig("tidegate"), port));
        let control_plane = ControlPlane::start(directory, config).await?;
        let mut scene = Scene {
            kubernetes,
            istiod,
            objects,
            control_plane,
            instances: vec![],
            port,
            workdir,
        };
        for (zone, _) in ZONES {
            let server = scene.serve(zone).await?;
            scene.instances.push(Some(server));
        }
        Ok(scene)
    }

    /// An instance of a zone, at an address of its own, as its hosts would have.
    async fn serve(&self, zone: &str) -> Result<Server> {
        let at = ZONES.iter().position(|(name, _)| *name == zone);
        let last = u8::try_from(at.context("no such zone")?)? + 1;
        let any_port = SocketAddr::from(([127, 0, 0, last], 0));
        let server = Server::start(name(zone), any_port).await?;
        let record = Instance::at(server.address());
        let registry = self.control_plane.registry();
        let put = registry.put(&name(zone), &record, None).await?;
        ensure!(put.status.is_success(), "{}", put.text());
        Ok(server)
    }

    async fn sidecar(&self, name: &str, region: &str, zone: &str) -> Result<Sidecar> {
        let last = 11 + u8::try_from(name.len())?;
        let workload = Workload::new("shop", name, region, zone).bind([127, 0, 0, last].into());
        self.objects
            .apply_one(&workload.listens_for(self.port))
            .await?;
        Sidecar::start(self.workdir.path(), &workload, self.istiod.xds()).await
    }

    fn request(&self) -> Request {
        Request::get("/").header("host", format!("{HOST}:{}", self.port))
    }

    /// The zones that answer a sidecar.
    async fn zones(&self, sidecar: &Sidecar, request: &Request) -> Result<BTreeSet<String>> {
        let client = Client::new(Version::Http1);
        let at = sidecar.outbound(self.port).await?;
        let mut zones = BTreeSet::new();
        for _ in 0..IN_A_ROW {
            zones.insert(client.send(at, request).await?.echo()?.zone);
        }
        Ok(zones)
    }

    async fn until_served_by(
        &self,
        sidecar: &Sidecar,
        request: &Request,
        zone: &str,
    ) -> Result<()> {
        let what = format!("all requests to go to {zone}");
        let reached = eventually(PATIENCE, &what, async || {
            let zones = self.zones(sidecar, request).await?;
            ensure!(zones.iter().eq([zone]), "{zones:?}");
            Ok(())
        });
        let process = self.control_plane.process();
        reached.await.with_context(|| process.tail())
    }

    async fn until_condition(&self, code: &str, holds: bool) -> Result<String> {
        let what = format!("{code} to hold: {holds}");
        eventually(PATIENCE, &what, async || {
            let conditions = self.control_plane.registry().conditions().await?;
            let mut all = conditions.as_array().into_iter().flatten();
            let found = all.find(|it| it["code"] == code);
            ensure!(found.is_some() == holds, "{conditions:#}");
            let detail = found.and_then(|it| it["detail"].as_str());
            Ok(detail.unwrap_or_default().to_owned())
        })
        .await
    }

    /// Waits until an object is there, or is not.
    async fn until_there(&self, object: &str, is_there: bool) -> Result<()> {
        let what = format!("{object} to be there: {is_there}");
        eventually(PATIENCE, &what, async || {
            match self.objects.get(object).await {
                Ok(_) => ensure!(is_there, "it is there"),
                Err(error) if code(&error) == Some(404) => ensure!(!is_there, "it is missing"),
                Err(error) => return Err(error),
            }
            Ok(())
        })
        .await
    }
}

#[tokio::test]
async fn each_zone_has_its_weights_and_they_follow_the_instances() -> Result<()> {
    let scene = Scene::start("istio-objects", "").await?;
    let near = scene.sidecar("app-a", "shanghai", A).await?;
    let far = scene.sidecar("app-cc", "beijing", C).await?;
    let read = scene.request();
    scene.until_served_by(&near, &read, A).await?;
    scene.until_served_by(&far, &read, C).await?;
    // A guest's stamp decides, whatever the weights say.
    let stamped = scene
        .request()
        .header("x-tidegate-to", format!("orders/{B}"));
    scene.until_served_by(&near, &stamped, B).await?;
    // Zone after zone loses its instance.
    let registry = scene.control_plane.registry();
    registry.remove(&name(A)).await?;
    scene.until_served_by(&near, &read, B).await?;
    registry.remove(&name(B)).await?;
    scene.until_served_by(&near, &read, C).await?;
    scene.until_served_by(&near, &stamped, C).await?;
    for sidecar in [&near, &far] {
        let rejections = sidecar.rejections().await?;
        ensure!(rejections == 0, "{rejections} configurations were rejected");
    }
    Ok(())
}

#[tokio::test]
async fn no_read_fails_when_a_zone_dies() -> Result<()> {
    let mut scene = Scene::start("istio-zone-killed", "").await?;
    let sidecar = scene.sidecar("app-a", "shanghai", A).await?;
    let read = scene.request();
    scene.until_served_by(&sidecar, &read, A).await?;
    let at = sidecar.outbound(scene.port).await?;
    let mut load = Load::steady(vec![(at, read.clone())]).start();
    load.next(200).await?;
    // Its process dies, and nobody says so to the registry for a while.
    scene.instances[0].take();
    let unnoticed = load.next(500).await?;
    unnoticed.check_no_failure()?;
    scene.control_plane.registry().remove(&name(A)).await?;
    scene.until_served_by(&sidecar, &read, B).await?;
    // It is back.
    scene.instances[0] = Some(scene.serve(A).await?);
    scene.until_served_by(&sidecar, &read, A).await?;
    load.stop().await.check_no_failure()
}

#[tokio::test]
async fn objects_of_others_are_never_touched() -> Result<()> {
    let theirs = format!(
        "{{apiVersion: networking.istio.io/v1, kind: VirtualService, \
         metadata: {{name: theirs, namespace: shop}}, spec: {{hosts: [{HOST}], \
         http: [{{route: [{{destination: {{host: elsewhere.example}}}}]}}]}}}}"
    );
    let mut scene = Scene::start("istio-foreign", &theirs).await?;
    let before = scene.objects.get(&theirs).await?;
    let told = scene.until_condition("TG8002", true).await?;
    ensure!(told.contains("VirtualService shop/theirs"), "{told}");
    for kind in ["ServiceEntry", "DestinationRule", "VirtualService"] {
        scene.until_there(&ours(kind), false).await?;
    }
    // A field of ours that somebody else has set by then is a conflict, not a change.
    scene.objects.delete(&theirs).await?;
    scene.until_condition("TG8002", false).await?;
    scene.until_there(&ours("VirtualService"), true).await?;
    ensure!(
        before["metadata"]["resourceVersion"].is_string(),
        "{before}"
    );
    // A label alone does not make an object ours.
    let labelled = "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, \
         metadata: {name: labelled, namespace: shop, \
         labels: {app.kubernetes.io/managed-by: tidegate}}, \
         spec: {hosts: [labelled.example], resolution: DNS, \
         ports: [{number: 80, name: http, protocol: HTTP}]}}";
    scene.objects.apply(labelled).await?;
    // What is not configured any more goes.
    scene.control_plane.configure(|config| {
        if let Some(istio) = &mut config.istio {
            istio["services"] = json!([]);
        }
    })?;
    for kind in ["ServiceEntry", "DestinationRule", "VirtualService"] {
        scene.until_there(&ours(kind), false).await?;
    }
    scene.until_there(labelled, true).await
}

#[tokio::test]
async fn a_field_of_another_manager_is_a_conflict_and_is_left_alone() -> Result<()> {
    let scene = Scene::start("istio-conflict", "").await?;
    scene.until_there(&ours("DestinationRule"), true).await?;
    // Somebody takes the host by force.
    let taken = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "name": NAME, "namespace": "shop" },
        "spec": { "host": "taken.example" },
    });
    let forced = scene.objects.clone().managed_by("somebody").forced();
    forced.apply_one(&taken).await?;
    let told = scene.until_condition("TG8003", true).await?;
    ensure!(told.contains("somebody"), "{told}");
    let stored = scene.objects.get(&ours("DestinationRule")).await?;
    ensure!(stored["spec"]["host"] == "taken.example", "{stored}");
    // They give it back.
    let given_up = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "name": NAME, "namespace": "shop" },
    });
    forced.apply_one(&given_up).await?;
    scene.until_condition("TG8003", false).await?;
    let stored = scene.objects.get(&ours("DestinationRule")).await?;
    ensure!(stored["spec"]["host"] == HOST, "{stored}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_by_restarts_in_any_order() -> Result<()> {
    let mut scene = Scene::start("istio-restarts", "").await?;
    let sidecar = scene.sidecar("app-a", "shanghai", A).await?;
    let read = scene.request();
    scene.until_served_by(&sidecar, &read, A).await?;
    let at = sidecar.outbound(scene.port).await?;
    let load = Load::steady(vec![(at, read.clone())]).start();
    // Tidegate is away: the mesh goes on with what it has.
    scene.control_plane.process().kill()?;
    scene.istiod.restart().await?;
    scene.until_served_by(&sidecar, &read, A).await?;
    scene.control_plane.restart().await?;
    // The API server is away while a zone goes: its weights come with the server.
    scene.kubernetes.process().kill()?;
    scene.control_plane.registry().remove(&name(A)).await?;
    scene.until_condition("TG8001", true).await?;
    scene.kubernetes.restart().await?;
    scene.until_condition("TG8001", false).await?;
    scene.until_served_by(&sidecar, &read, B).await?;
    // istiod is away while it comes back.
    scene.istiod.process().kill()?;
    scene.instances[0] = Some(scene.serve(A).await?);
    scene.istiod.restart().await?;
    scene.until_served_by(&sidecar, &read, A).await?;
    load.stop().await.check_no_failure()
}

#[tokio::test]
async fn without_the_right_to_write_a_condition_says_so() -> Result<()> {
    let scene = Scene::start("istio-no-role", "").await?;
    scene.until_there(&ours("VirtualService"), true).await?;
    let read_only = ROLE.replace(", create, patch, delete", "");
    scene.objects.apply(&read_only).await?;
    scene.control_plane.registry().remove(&name(A)).await?;
    let told = scene.until_condition("TG8003", true).await?;
    ensure!(told.contains("forbidden"), "{told}");
    scene.objects.apply(ROLE).await?;
    scene.until_condition("TG8003", false).await.map(drop)
}
