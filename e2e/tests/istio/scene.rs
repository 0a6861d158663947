//! An Istio mesh with a control plane of Tidegate.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Request, Version};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
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

pub(crate) const A: &str = "shanghai-a";
pub(crate) const B: &str = "shanghai-b";
pub(crate) const C: &str = "beijing-c";

/// The name of the objects that Tidegate makes.
pub(crate) const NAME: &str = "tidegate-orders";

const GROUP: &str = "networking.istio.io";
const KINDS: [&str; 3] = ["serviceentries", "destinationrules", "virtualservices"];
const VERBS: [&str; 5] = ["list", "watch", "create", "patch", "delete"];

/// The role of docs/guides/istio-objects.md and of the chart, for the user `tidegate`: each of
/// [`VERBS`] for each of [`KINDS`].
pub(crate) const ROLE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: tidegate}
rules:
- apiGroups: [networking.istio.io]
  resources: [serviceentries, destinationrules, virtualservices]
  verbs: [list, watch, create, patch, delete]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: tidegate}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tidegate}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: tidegate}
";

/// An Istio mesh with a control plane of Tidegate, and an instance of `orders` in each zone.
pub(crate) struct Scene {
    pub(crate) kubernetes: Kubernetes,
    pub(crate) istiod: Istiod,
    pub(crate) objects: Objects,
    pub(crate) control_plane: ControlPlane,
    /// In the order of [`ZONES`]; none once it is killed.
    pub(crate) instances: Vec<Option<Server>>,
    pub(crate) port: u16,
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

pub(crate) fn name(zone: &str) -> InstanceName {
    InstanceName::new("orders", zone, "one")
}

/// The object of a kind that Tidegate makes for `orders`.
pub(crate) fn ours(kind: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: {kind}, \
         metadata: {{name: {NAME}, namespace: shop}}}}"
    )
}

impl Scene {
    /// With objects of others, as users have them before Tidegate comes.
    pub(crate) async fn start(name: &str, theirs: &str) -> Result<Scene> {
        Scene::start_with(name, theirs, |_| {}).await
    }

    /// As [`start`](Scene::start), with a configuration that was changed.
    pub(crate) async fn start_with(
        name: &str,
        theirs: &str,
        change: impl FnOnce(&mut Config),
    ) -> Result<Scene> {
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
        change(&mut config);
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
    pub(crate) async fn serve(&self, zone: &str) -> Result<Server> {
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

    /// Whether the control plane was denied nothing, and has used every rule of its [`ROLE`].
    pub(crate) fn check_rights(&self) -> Result<()> {
        let calls = self.kubernetes.calls("tidegate")?;
        let denied: Vec<_> = calls.iter().filter(|call| call.code == 403).collect();
        ensure!(denied.is_empty(), "denied: {denied:?}");
        let needed: BTreeSet<(String, String)> = (calls.iter())
            .flat_map(|call| {
                call.needs()
                    .map(|verb| (call.resource.clone(), verb.to_owned()))
            })
            .collect();
        let role: BTreeSet<(String, String)> = KINDS
            .iter()
            .flat_map(|kind| VERBS.map(|verb| (format!("{GROUP}/{kind}"), verb.to_owned())))
            .collect();
        let (unused, more) = (role.difference(&needed), needed.difference(&role));
        let (unused, more) = (unused.collect::<Vec<_>>(), more.collect::<Vec<_>>());
        ensure!(
            unused.is_empty() && more.is_empty(),
            "unused: {unused:?}; more: {more:?}"
        );
        Ok(())
    }

    pub(crate) async fn sidecar(&self, name: &str, region: &str, zone: &str) -> Result<Sidecar> {
        let workload = self.workload(name, region, zone).await?;
        Sidecar::start(self.workdir.path(), &workload, self.istiod.xds()).await
    }

    /// As [`sidecar`](Scene::sidecar), with Istio's own agent.
    pub(crate) async fn sidecar_with_agent(
        &self,
        name: &str,
        region: &str,
        zone: &str,
    ) -> Result<Sidecar> {
        let workload = self.workload(name, region, zone).await?;
        Sidecar::with_agent(self.workdir.path(), &workload, self.istiod.xds()).await
    }

    async fn workload(&self, name: &str, region: &str, zone: &str) -> Result<Workload> {
        let last = 11 + u8::try_from(name.len())?;
        let workload = Workload::new("shop", name, region, zone).bind([127, 0, 0, last].into());
        self.objects
            .apply_one(&workload.listens_for(self.port))
            .await?;
        Ok(workload)
    }

    pub(crate) fn request(&self) -> Request {
        Request::get("/").header("host", format!("{HOST}:{}", self.port))
    }

    /// The zones that answer a sidecar.
    pub(crate) async fn zones(
        &self,
        sidecar: &Sidecar,
        request: &Request,
    ) -> Result<BTreeSet<String>> {
        let client = Client::new(Version::Http1);
        let at = sidecar.outbound(self.port).await?;
        let mut zones = BTreeSet::new();
        for _ in 0..IN_A_ROW {
            zones.insert(client.send(at, request).await?.echo()?.zone);
        }
        Ok(zones)
    }

    pub(crate) async fn until_served_by(
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

    pub(crate) async fn until_condition(&self, code: &str, holds: bool) -> Result<String> {
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
    pub(crate) async fn until_there(&self, object: &str, is_there: bool) -> Result<()> {
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
