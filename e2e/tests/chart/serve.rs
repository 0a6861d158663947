//! The pods of the chart, as the real controllers made them, serve real Envoys through a rolling
//! restart.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::client::Request;
use e2e::config::ZONES;
use e2e::netns::Network;
use e2e::paths;
use e2e::peers::kubelet::{Kubelet, Service};
use e2e::process::Process;
use e2e::registry::{Instance, InstanceName, Registry};
use e2e::stage::load::{Load, Sample};
use e2e::stage::{SERVICE, instance, name, start_instance, zones};
use e2e::wait::PATIENCE;
use e2e::workdir::Workdir;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::{CHART, Cluster, RELEASE, VALUES};

const PODS: &str = "app.kubernetes.io/component=control-plane";
const XDS: u16 = 18_000;
const ADMIN: u16 = 18_001;
/// The zones of the network for pods: two for each zone of the mesh, two that end, and one more.
const FOR_PODS: std::ops::Range<u8> = 3..18;
/// The zone that takes writes.
const OWNER: u8 = 0;
/// A rolling restart of all zones. A replica first returns its grants.
const ROLLOUT: Duration = Duration::from_secs(150);
const EVERY: Duration = Duration::from_millis(100);

/// A mesh on the pods of the chart, in namespaces.
struct Mesh {
    kubelet: Kubelet,
    /// In the order of the zones.
    services: Vec<Service>,
    cluster: Cluster,
    values: Vec<String>,
    /// Gateways, instances and etcd, which the chart does not have.
    others: Vec<Process>,
}

fn pods(kubelet: &Kubelet, zone: &str) -> Vec<SocketAddr> {
    let of_zone = kubelet.ready().filter(|(pod, _)| {
        let labels = pod.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get("tidegate.dev/zone"))
            .is_some_and(|it| it == zone)
    });
    of_zone
        .map(|(_, at)| (Network::address(at), XDS).into())
        .collect()
}

fn start_etcd(network: &Network, directory: &Path) -> Result<(Process, String)> {
    let url = |port: u16| format!("http://{}:{port}", Network::hub_address());
    let (client, peer) = (url(2379), url(2380));
    let member = format!("one={peer}");
    let data = directory.join("etcd-of-tidegate").display().to_string();
    let arguments = [
        ["--name", "one"],
        ["--data-dir", &data],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", &peer],
        ["--initial-advertise-peer-urls", &peer],
        ["--initial-cluster", &member],
        ["--log-level", "warn"],
    ];
    let mut arguments: Vec<String> = arguments.concat().iter().map(ToString::to_string).collect();
    arguments.push("--unsafe-no-fsync".to_owned());
    let etcd = network
        .hub()
        .start(directory, "etcd-of-tidegate", &paths::etcd()?, &arguments)?;
    Ok((etcd, client))
}

impl Mesh {
    async fn start(directory: &Path, network: &Arc<Network>) -> Result<Mesh> {
        let (etcd, url) = start_etcd(network, directory)?;
        let cluster = Cluster::start(directory).await?;
        let filter = paths::filter()?;
        let values: Vec<String> = [
            "--values".to_owned(),
            VALUES.to_owned(),
            "--set".to_owned(),
            format!(
                "etcd.trial.enabled=false,etcd.endpoints[0]={url},config.filter.path={}",
                filter.display()
            ),
        ]
        .into();
        let given = values.iter().map(String::as_str);
        let install = ["install", RELEASE, CHART].into_iter().chain(given);
        cluster.helm(&install.collect::<Vec<_>>())?;
        let client = cluster.objects.client().clone();
        let kubelet = Kubelet::start(client, "tidegate", PODS, network, FOR_PODS, directory);
        let mut mesh = Mesh {
            kubelet: kubelet.await?,
            services: vec![],
            cluster,
            values,
            others: vec![etcd],
        };
        for zone in zones() {
            mesh.services.push(Service::start(service(zone)).await?);
        }
        mesh.until("two replicas of each zone are ready", ROLLOUT, |kubelet| {
            let all = zones().map(|zone| pods(kubelet, name(zone)).len());
            let counts: Vec<_> = all.collect();
            ensure!(counts == [2, 2, 2], "{counts:?}");
            Ok(())
        })
        .await?;
        mesh.serve(directory, network).await?;
        Ok(mesh)
    }

    /// Starts instances and gateways.
    async fn serve(&mut self, directory: &Path, network: &Arc<Network>) -> Result<()> {
        let (_, at) = self.kubelet.ready().next().context("no pod is ready")?;
        let registry = Registry::new((Network::address(at), ADMIN).into());
        for zone in zones() {
            let of_zone = directory.join(name(zone));
            fs::create_dir_all(&of_zone)?;
            let process = start_instance(network, &of_zone, zone, 0, false)?;
            self.others.push(process);
            let key = InstanceName::new(SERVICE, name(zone), "one");
            let put = registry
                .put(&key, &Instance::at(instance(zone, 0)), None)
                .await?;
            ensure!(put.status.is_success(), "{}", put.text());
            let (id, region) = ZONES[usize::from(zone)];
            let bootstrap = Bootstrap::read("gateway.yaml")?
                .node(&format!("gateway-{id}"), region, id)?
                .cluster_at("tidegate", service(zone))?;
            let file = of_zone.join("gateway.json");
            bootstrap.write(&file)?;
            let file = file.display().to_string();
            let arguments = ["-c", &file, "--concurrency", "1", "--disable-hot-restart"];
            let arguments = arguments.map(str::to_owned);
            let envoy = paths::envoy()?;
            let gateway = network
                .zone(zone)?
                .start(&of_zone, "gateway", &envoy, &arguments)?;
            self.others.push(gateway);
        }
        Ok(())
    }

    /// Waits until all requests of a second are answered.
    async fn until_served(&mut self, load: &Load) -> Result<()> {
        const LATELY: Duration = Duration::from_secs(1);
        let begun = Instant::now();
        loop {
            self.step().await?;
            let recent = load.since((Instant::now() - LATELY).into_std());
            let failed = recent.iter().filter(|sample| sample.failed()).count();
            if failed == 0 && recent.len() > 100 {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < ROLLOUT,
                "{failed} of {} requests fail: {:?}",
                recent.len(),
                load.all().1
            );
        }
    }

    /// One round of the kubelet and of the Services.
    async fn step(&mut self) -> Result<()> {
        self.kubelet
            .sync()
            .await
            .with_context(|| self.kubelet.logs())?;
        for (zone, service) in zones().zip(&self.services) {
            service.set(pods(&self.kubelet, name(zone)));
        }
        sleep(EVERY).await;
        Ok(())
    }

    async fn until(
        &mut self,
        what: &str,
        within: Duration,
        is: impl Fn(&Kubelet) -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.step().await?;
            match is(&self.kubelet) {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > within => {
                    return Err(error.context(format!("waited {within:?} for: {what}")));
                }
                Err(_) => {}
            }
        }
    }

    /// All replicas take a changed ConfigMap, and no pod restarts.
    async fn takes_another_file(&mut self) -> Result<()> {
        let (names, before) = (self.names(), self.digests().await?);
        ensure!(before.len() == 1, "{before:?}");
        self.upgrade("config.services[0].timeout_ms=9000")?;
        let begun = Instant::now();
        loop {
            self.step().await?;
            let now = self.digests().await?;
            if now.len() == 1 && now != before {
                break;
            }
            ensure!(begun.elapsed() < PATIENCE, "{now:?} after {before:?}");
        }
        ensure!(self.names() == names, "{:?} after {names:?}", self.names());
        Ok(())
    }

    /// What identifies the configurations in force.
    async fn digests(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for (_, at) in self.kubelet.ready() {
            let registry = Registry::new((Network::address(at), ADMIN).into());
            let metrics = registry.metrics().await?;
            let mut lines = metrics.lines();
            let digest = lines.find(|line| line.starts_with("tidegate_config_digest "));
            all.insert(digest.context("no digest")?.to_owned());
        }
        Ok(all)
    }

    /// The names of the ready pods.
    fn names(&self) -> BTreeSet<String> {
        let ready = self.kubelet.ready();
        ready
            .filter_map(|(pod, _)| pod.metadata.name.clone())
            .collect()
    }

    fn upgrade(&self, set: &str) -> Result<()> {
        let given = self.values.iter().map(String::as_str);
        let upgrade = ["upgrade", RELEASE, CHART].into_iter().chain(given);
        let upgrade = upgrade.chain(["--set", set]);
        self.cluster.helm(&upgrade.collect::<Vec<_>>())?;
        Ok(())
    }
}

/// Where the proxies of a zone ask.
fn service(zone: u8) -> SocketAddr {
    (Network::hub_address(), XDS + 100 + u16::from(zone)).into()
}

/// Reads at all gateways, and writes at that of the zone that owns the cell.
fn request(gateway: u8, number: u64) -> Request {
    match gateway == OWNER && number.is_multiple_of(10) {
        true => Request::post("/orders"),
        false => Request::get("/orders"),
    }
}

async fn roll(workdir: &Workdir, network: Arc<Network>) -> Result<()> {
    let mut mesh = Mesh::start(workdir.path(), &network).await?;
    let load = Load::start(&network, 1_000, Arc::new(request));
    mesh.until_served(&load).await?;
    mesh.takes_another_file().await?;

    let before = mesh.names();
    load.forget();
    mesh.upgrade("podAnnotations.restarted=once")?;
    mesh.until("all pods are new ones", ROLLOUT, |kubelet| {
        let ready = kubelet.ready();
        let ready = ready.filter_map(|(pod, _)| pod.metadata.name.clone());
        let ready: BTreeSet<_> = ready.collect();
        ensure!(
            ready.len() == 6 && ready.is_disjoint(&before),
            "{ready:?} after {before:?}"
        );
        Ok(())
    })
    .await?;
    mesh.until_served(&load).await?;
    load.settled(Instant::now().into_std()).await?;
    let (samples, failures) = load.all();
    let (reads, writes): (Vec<&Sample>, Vec<&Sample>) =
        samples.iter().partition(|sample| sample.read);
    ensure!(reads.len() > 1_000, "{} reads", reads.len());
    let failed = reads.iter().filter(|read| read.failed()).count();
    ensure!(
        failed == 0,
        "{failed} of {} reads: {failures:?}",
        reads.len()
    );
    // The fence may reject writes while the grants change hands, and nothing else may.
    let odd = writes
        .iter()
        .filter(|write| ![200, 503].contains(&write.status));
    ensure!(odd.count() == 0, "{failures:?}");
    // A replica that stops sends its proxies to another one before their grants run out. If it kept
    // their connections it would be nearly half of the writes.
    let refused = writes.iter().filter(|write| write.failed()).count();
    ensure!(
        3 * refused < writes.len(),
        "{refused} of {} writes",
        writes.len()
    );
    Ok(())
}

/// The threads of the load and of this test are in namespaces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_the_pods_costs_no_read() -> Result<()> {
    let workdir = Workdir::kept("chart-serve")?;
    let network = Arc::new(Network::new(workdir.path(), FOR_PODS.end).await?);
    let (done, outcome) = oneshot::channel();
    thread::spawn(move || {
        let rolled = (|| {
            network.hub().enter()?;
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(roll(&workdir, Arc::clone(&network)))
        })();
        // The test has ended before.
        let _ = done.send(rolled);
    });
    outcome.await.map_err(|_| anyhow!("the thread has died"))?
}
