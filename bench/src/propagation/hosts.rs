//! The same in Envoys that somebody else configures: from a put to the first request with the new
//! behaviour at a guest, and at a sidecar of Istio.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::{Bootstrap, Flavour};
use e2e::client::{Client, Request, Version};
use e2e::config::{Config, StoreConfig, region_of};
use e2e::control_plane::ControlPlane;
use e2e::envoy::Envoy;
use e2e::figures::Figure;
use e2e::peers::free_address;
use e2e::peers::istio::{Istiod, Sidecar, Workload};
use e2e::peers::kubernetes::Kubernetes;
use e2e::registry::{Health, Instance, InstanceName, Registry};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::{HERE, NEAR, SERVICE, line, server};
use crate::probe::Prober;

/// Longer than Istio's debounce and its rate limit for pushes, so that each change stands alone.
const PAUSE: Duration = Duration::from_millis(300);
const HOST: &str = "orders.bench.example";
const NAMESPACE: &str = "bench";

/// Two zones with an instance each.
struct Zones {
    here: Server,
    near: Server,
}

impl Zones {
    async fn start() -> Result<Zones> {
        Ok(Zones {
            here: server(HERE, "here").await?,
            near: server(NEAR, "near").await?,
        })
    }

    async fn register(&self, registry: &Registry) -> Result<()> {
        put(registry, NEAR, Instance::at(self.near.address())).await?;
        put(registry, HERE, Instance::at(self.here.address())).await
    }
}

async fn put(registry: &Registry, zone: &str, instance: Instance) -> Result<()> {
    let name = InstanceName::new(SERVICE, zone, "instance");
    let put = registry.put(&name, &instance, None).await?;
    ensure!(put.status.is_success(), "{}", put.text());
    Ok(())
}

/// Measures a guest that routes.
pub(super) async fn guest(changes: u32) -> Result<Vec<Figure>> {
    println!("\npropagation: starting a control plane and an Envoy of somebody else");
    let workdir = Workdir::temporary()?;
    let zones = Zones::start().await?;
    let control_plane = ControlPlane::start(workdir.path(), config()).await?;
    zones.register(control_plane.registry()).await?;
    let bootstrap = Bootstrap::example("envoy/route.yaml", Flavour::Wasm)?
        .cluster_at("tidegate", control_plane.xds())?
        .cluster_at("orders-shanghai-a", zones.here.address())?
        .cluster_at("orders-shanghai-b", zones.near.address())?
        .cluster_at("orders-beijing-c", zones.near.address())?;
    let envoy = Envoy::start_with(workdir.path(), "foreign", &bootstrap, 1).await?;
    let ingress = envoy.ingress().await?;
    // Without a policy the host's own route leads here, too.
    let client = Client::new(Version::Http1);
    eventually(PATIENCE, "a policy", async || {
        let echo = client
            .send(ingress, &Request::get("/orders"))
            .await?
            .echo()?;
        ensure!(echo.headers.contains_key("x-tidegate-to"), "{echo:?}");
        Ok(())
    })
    .await?;
    let samples = measure(&zones, control_plane.registry(), ingress, "bench", changes).await?;
    line("at a guest, by the policy on its stream", &samples);
    Ok(vec![
        Figure::quantile("guest_policy_ms_p50", "ms", &samples, 0.5),
        Figure::quantile("guest_policy_ms_p99", "ms", &samples, 0.99),
    ])
}

/// Measures a sidecar whose routes istiod makes of our objects.
pub(super) async fn istio(changes: u32) -> Result<Vec<Figure>> {
    println!(
        "\npropagation: starting a Kubernetes API server, istiod, a control plane and a sidecar"
    );
    let workdir = Workdir::temporary()?;
    let directory = workdir.path();
    let zones = Zones::start().await?;
    let kubernetes = Kubernetes::start(directory, &[]).await?;
    let istiod = Istiod::start(directory, &kubernetes).await?;
    let objects = kubernetes.objects().await?;
    let port = free_address()?.port();
    let region = region_of(HERE);
    let bind = Ipv4Addr::new(127, 0, 0, 31);
    let workload = Workload::new(NAMESPACE, "client", region, HERE).bind(bind);
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    for object in [namespace, workload.listens_for(port)] {
        objects.apply_one(&object).await?;
    }
    let mut config = config();
    config.istio = Some(entry(&kubernetes.admin(), port));
    let control_plane = ControlPlane::start(directory, config).await?;
    zones.register(control_plane.registry()).await?;
    let sidecar = Sidecar::start(directory, &workload, istiod.xds()).await?;
    let at = sidecar.outbound(port).await?;
    let host = format!("{HOST}:{port}");
    let samples = measure(&zones, control_plane.registry(), at, &host, changes).await?;
    line("at a sidecar of Istio, by its objects", &samples);
    Ok(vec![
        Figure::quantile("istio_change_ms_p50", "ms", &samples, 0.5),
        Figure::quantile("istio_change_ms_p99", "ms", &samples, 0.99),
    ])
}

fn config() -> Config {
    let service = json!({ "name": SERVICE, "routes": [{ "prefix": "/orders" }] });
    Config::new(StoreConfig::Embedded, vec![service])
}

fn entry(kubeconfig: &Path, port: u16) -> Value {
    json!({
        "kubeconfig": kubeconfig,
        "services": [{
            "name": SERVICE,
            "host": HOST,
            "namespace": NAMESPACE,
            "entry": { "port": port, "addresses": ["240.240.0.9"] },
        }],
    })
}

/// The local instance fails and recovers in turn. The times are those from before the put to the
/// first answer of the other zone's instance, or of its own, in milliseconds.
async fn measure(
    zones: &Zones,
    registry: &Registry,
    at: SocketAddr,
    host: &str,
    changes: u32,
) -> Result<Vec<f64>> {
    let client = Client::new(Version::Http1);
    let read = Request::get("/orders").header("host", host);
    eventually(PATIENCE, "the first answer", async || {
        let answered = client.send(at, &read).await?.echo()?.instance;
        ensure!(answered == "here", "{answered} answered");
        Ok(())
    })
    .await?;
    let mut prober = Prober::connect(at, host, "/orders")?;
    let mut samples = vec![];
    for change in 0..changes {
        sleep(PAUSE).await;
        let fails = change.is_multiple_of(2);
        let mut instance = Instance::at(zones.here.address());
        if fails {
            instance.health = Health::Unhealthy;
        }
        let expected = if fails { "near" } else { "here" };
        let probing = spawn_blocking(move || (prober.until(expected), prober));
        let begin = Instant::now();
        put(registry, HERE, instance).await?;
        let (seen, back) = probing.await?;
        prober = back;
        let seen = seen.with_context(|| format!("change {change}"))?;
        let time = seen.at.saturating_duration_since(begin);
        samples.push(time.as_secs_f64() * 1e3);
    }
    Ok(samples)
}
