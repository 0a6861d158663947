//! The same zones, instances and load in an Istio mesh: gateways that istiod configures, with
//! failover by locality and outlier detection as Istio's documentation has them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use e2e::config::ZONES;
use e2e::netns::Network;
use e2e::paths;
use e2e::peers::istio::{Istiod, Workload};
use e2e::peers::kubernetes::Kubernetes;
use e2e::peers::objects::Objects;
use e2e::process::Process;
use e2e::stage::load::Load;
use e2e::stage::{GATEWAY_PORT, SERVICE, instance, name, start_instance, zones};
use e2e::wait::eventually;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::Case;
use super::cases::{HOME, RECOVERY, WATCH, apart, elsewhere, request};
use super::judge::Verdict;
use super::round;

const NAMESPACE: &str = "bench";
const HOST: &str = "orders.bench.example";
const INSTANCES: u8 = 3;

/// The mesh, under load.
pub(super) struct Mesh {
    // Dropped first: it uses the others.
    load: Load,
    _gateways: Vec<Process>,
    instances: Vec<Vec<Process>>,
    _istiod: Istiod,
    objects: Objects,
    _kubernetes: Kubernetes,
    network: Arc<Network>,
    directory: PathBuf,
}

/// The faults that both meshes can have. An Istio mesh drains a zone by its endpoints.
pub(super) fn has(case: Case) -> bool {
    matches!(
        case,
        Case::KillZone | Case::HangZone | Case::CutZone | Case::DrainZone
    )
}

/// The endpoints of all zones but those.
fn entry(without: &[u8]) -> Value {
    let of_zones = zones().filter(|zone| !without.contains(zone));
    let endpoints = of_zones.flat_map(|zone| {
        let (name, region) = ZONES[usize::from(zone)];
        (0..INSTANCES).map(move |at| {
            let address = instance(zone, at);
            json!({
                "address": address.ip(),
                "ports": { "http": address.port() },
                "locality": format!("{region}/{name}"),
            })
        })
    });
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": { "name": SERVICE, "namespace": NAMESPACE },
        "spec": {
            "hosts": [HOST],
            "ports": [{ "number": GATEWAY_PORT, "name": "http", "protocol": "HTTP" }],
            "resolution": "STATIC",
            "location": "MESH_INTERNAL",
            "endpoints": endpoints.collect::<Vec<_>>(),
        },
    })
}

/// As "Locality failover" in Istio's tasks has it, with two differences: hosts come back after 3 s
/// instead of a minute, so that a round is short, and all hosts of a zone may be ejected instead of
/// a tenth. Retries are Istio's default: two, on errors of the connection and "unavailable".
fn rule() -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "name": SERVICE, "namespace": NAMESPACE },
        "spec": {
            "host": HOST,
            "trafficPolicy": {
                "connectionPool": { "http": { "maxRequestsPerConnection": 1 } },
                "loadBalancer": {
                    "simple": "ROUND_ROBIN",
                    "localityLbSetting": { "enabled": true },
                },
                "outlierDetection": {
                    "consecutive5xxErrors": 1,
                    "interval": "1s",
                    "baseEjectionTime": "3s",
                    "maxEjectionPercent": 100,
                },
            },
        },
    })
}

impl Mesh {
    pub(super) async fn set(directory: &Path, network: Arc<Network>, rps: u32) -> Result<Mesh> {
        let kubernetes = Kubernetes::start(directory, &[]).await?;
        let istiod = Istiod::start_at(directory, &kubernetes, Network::hub_address()).await?;
        let objects = kubernetes.objects().await?;
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        for object in [namespace, entry(&[]), rule()] {
            objects.apply_one(&object).await?;
        }
        let (mut gateways, mut instances) = (vec![], vec![]);
        for zone in zones() {
            let of_zone = directory.join(format!("istio-{}", name(zone)));
            fs::create_dir_all(&of_zone)?;
            let started = (0..INSTANCES)
                .map(|at| start_instance(&network, &of_zone, zone, at, false))
                .collect::<Result<_>>()?;
            instances.push(started);
            let (id, region) = ZONES[usize::from(zone)];
            let gateway = Workload::new(NAMESPACE, &format!("gateway-{id}"), region, id)
                .bind(Network::address(zone));
            objects
                .apply_one(&gateway.listens_for(GATEWAY_PORT))
                .await?;
            let file = of_zone.join("gateway.json");
            gateway.bootstrap(istiod.xds()).write(&file)?;
            let arguments = [
                "-c",
                &file.display().to_string(),
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "warning",
            ];
            let arguments = arguments.map(str::to_owned);
            let envoy = paths::envoy()?;
            let process = network
                .zone(zone)?
                .start(&of_zone, "gateway", &envoy, &arguments)?;
            gateways.push(process);
        }
        let host = format!("{HOST}:{GATEWAY_PORT}");
        let next = move |_, count| request(count).header("host", &host);
        let load = Load::start(&network, rps, Arc::new(next));
        Ok(Mesh {
            load,
            _gateways: gateways,
            instances,
            _istiod: istiod,
            objects,
            _kubernetes: kubernetes,
            network,
            directory: directory.to_owned(),
        })
    }

    /// One round, as [`Scene::round`](super::cases::Scene::round).
    pub(super) async fn round(&mut self, case: Case) -> Result<(Verdict, BTreeMap<String, u64>)> {
        self.normal().await.context("before the fault")?;
        self.load.forget();
        let fault = Instant::now();
        let mended = match case {
            Case::KillZone => {
                self.signal_instances(Signal::SIGKILL)?;
                let mended = round::watch(&self.load, WATCH).await?;
                self.restart_instances()?;
                mended
            }
            Case::HangZone => {
                self.signal_instances(Signal::SIGSTOP)?;
                let mended = round::watch(&self.load, WATCH).await?;
                self.signal_instances(Signal::SIGCONT)?;
                mended
            }
            Case::CutZone => {
                self.network.link(HOME, false)?;
                let mended = round::watch(&self.load, WATCH).await?;
                self.network.link(HOME, true)?;
                mended
            }
            Case::DrainZone => {
                self.objects.apply_one(&entry(&[HOME])).await?;
                let mended = round::watch(&self.load, WATCH).await?;
                self.objects.apply_one(&entry(&[])).await?;
                mended
            }
            other => bail!("Istio has no {}", other.name()),
        };
        self.normal().await.context("after the fault")?;
        let belongs = match case {
            Case::CutZone => apart,
            _ => elsewhere,
        };
        round::verdict(&self.load, fault, mended, belongs).await
    }

    fn signal_instances(&self, signal: Signal) -> Result<()> {
        let of_home = self
            .instances
            .get(usize::from(HOME))
            .context("no such zone")?;
        of_home
            .iter()
            .try_for_each(|instance| instance.signal(signal))
    }

    fn restart_instances(&mut self) -> Result<()> {
        let of_zone = self.directory.join(format!("istio-{}", name(HOME)));
        let of_home = self
            .instances
            .get_mut(usize::from(HOME))
            .context("no such zone")?;
        for (at, instance) in (0..).zip(of_home) {
            *instance = start_instance(&self.network, &of_zone, HOME, at, false)?;
        }
        Ok(())
    }

    /// Waits until every gateway is served by its own zone alone.
    async fn normal(&self) -> Result<()> {
        eventually(RECOVERY, "everything as it was", async || {
            let reads = round::reads(&self.load).await;
            ensure!(reads.len() > 20, "{} reads", reads.len());
            let strange = reads
                .iter()
                .filter(|read| read.zone != Some(read.gateway))
                .count();
            ensure!(
                strange == 0,
                "{strange} of {} are served by others",
                reads.len()
            );
            Ok(())
        })
        .await
    }
}
