//! A real istiod on a [`Kubernetes`], and plain Envoys as its proxies.
//!
//! Envoy's own release lacks Istio's filters. So istiod is told to leave out those that it can
//! leave out, and an `EnvoyFilter` removes the other one, `istio.alpn`.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kubernetes::Kubernetes;
use super::objects::Objects;
use super::{START_TIME_MAX, with_addresses};
use crate::bootstrap::Bootstrap;
use crate::client::{Client, Request, Version};
use crate::envoy::Envoy;
use crate::paths;
use crate::process::Process;
use crate::registry::success;
use crate::wait::{PATIENCE, eventually};

/// Istio's own namespace. Its objects there concern every proxy.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// The version that proxies say they have.
const PROXY_VERSION: &str = "1.32.0";

pub(super) const CLUSTER: &str = "Kubernetes";

/// No endpoint of a service is here.
const NO_ENDPOINT: Ipv4Addr = Ipv4Addr::new(127, 255, 0, 1);

/// The label with a workload's name.
const POD_LABEL: &str = "pod";

/// No parts of Istio's own Envoy, and no certificates: clusters would wait for them.
const MESH: &str = "\
accessLogFile: /dev/stdout
defaultProviders: {metrics: []}
enablePrometheusMerge: false
enableAutoMtls: false
";

const ENVIRONMENT: [&str; 8] = [
    // By default 25 streams a second of two cores. Many proxies of a benchmark come at once, and
    // unlike Envoys they do not come again.
    "PILOT_MAX_REQUESTS_PER_SECOND=2000",
    "PILOT_ENABLE_METADATA_EXCHANGE=false",
    "PILOT_DISABLE_MX_ALPN=true",
    "PILOT_ENABLE_TELEMETRY_LABEL=false",
    "PILOT_ENDPOINT_TELEMETRY_LABEL=false",
    "PILOT_ENABLE_AGENTGATEWAY=false",
    "POD_NAME=istiod",
    "POD_NAMESPACE=istio-system",
];

const ROOT: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
";

const WITHOUT_ALPN: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: plain-envoy, namespace: istio-system}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: ANY
      listener:
        filterChain:
          filter:
            name: envoy.filters.network.http_connection_manager
            subFilter: {name: istio.alpn}
    patch: {operation: REMOVE}
";

/// The service of the API server, at port 443. A proxy without interception would listen there:
/// only root may, and other proxies of the machine would, too.
const HIDDEN_SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: kubernetes
  namespace: default
  annotations: {networking.istio.io/exportTo: '~'}
";

/// A running istiod.
pub struct Istiod {
    process: Process,
    directory: PathBuf,
    arguments: Vec<String>,
    xds: SocketAddr,
    http: SocketAddr,
    monitoring: SocketAddr,
}

impl Istiod {
    /// Puts Istio's definitions and an `EnvoyFilter` for plain Envoys into the cluster, starts
    /// istiod, and waits until it is ready.
    pub async fn start(directory: &Path, kubernetes: &Kubernetes) -> Result<Istiod> {
        Istiod::start_at(directory, kubernetes, Ipv4Addr::LOCALHOST).await
    }

    /// As [`start`](Istiod::start), for proxies that reach it at this address.
    pub async fn start_at(
        directory: &Path,
        kubernetes: &Kubernetes,
        address: Ipv4Addr,
    ) -> Result<Istiod> {
        install(&kubernetes.objects().await?).await?;
        let mesh = directory.join("mesh.yaml");
        fs::write(&mesh, MESH).with_context(|| mesh.display().to_string())?;
        let admin = kubernetes.admin();
        let started = with_addresses(async |[xds, http, monitoring]| {
            let xds = SocketAddr::from((address, xds.port()));
            let arguments = arguments(&admin, &mesh, [xds, http, monitoring])?;
            let process = Process::start(directory, "istiod", Path::new("env"), &arguments)?;
            ready(&process, http).await?;
            Ok(Istiod {
                process,
                directory: directory.to_owned(),
                arguments,
                xds,
                http,
                monitoring,
            })
        });
        started.await.context("istiod does not start")
    }

    /// Where proxies ask it, without TLS.
    pub fn xds(&self) -> SocketAddr {
        self.xds
    }

    /// Where it serves `/metrics`.
    pub fn monitoring(&self) -> SocketAddr {
        self.monitoring
    }

    /// To kill, pause and resume it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Starts it again, in place of the one that runs.
    pub async fn restart(&mut self) -> Result<()> {
        // One that has ended already is as good.
        let _ = self.process.kill();
        let env = Path::new("env");
        self.process = Process::start(&self.directory, "istiod", env, &self.arguments)?;
        ready(&self.process, self.http).await
    }
}

/// The definitions of Istio's kinds, and what plain Envoys need.
async fn install(objects: &Objects) -> Result<()> {
    let path = paths::istio("crd-all.gen.yaml")?;
    let definitions = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    objects.apply(&definitions).await?;
    objects.apply(ROOT).await?;
    objects.apply(WITHOUT_ALPN).await?;
    // The API server makes it a moment after it is ready.
    eventually(PATIENCE, "the API server's service", async || {
        objects.get(HIDDEN_SERVICE).await
    })
    .await?;
    objects.apply(HIDDEN_SERVICE).await
}

fn arguments(kubeconfig: &Path, mesh: &Path, ports: [SocketAddr; 3]) -> Result<Vec<String>> {
    let [xds, http, monitoring] = ports;
    let program = paths::istio("pilot-discovery")?.display().to_string();
    let kubeconfig = kubeconfig.display().to_string();
    let mut arguments = ENVIRONMENT.map(str::to_owned).to_vec();
    arguments.push(format!("KUBECONFIG={kubeconfig}"));
    arguments.extend([program, "discovery".to_owned()]);
    let flags = [
        ("--kubeconfig", kubeconfig),
        ("--meshConfig", mesh.display().to_string()),
        ("--clusterID", CLUSTER.to_owned()),
        ("--grpcAddr", xds.to_string()),
        ("--httpAddr", http.to_string()),
        ("--monitoringAddr", monitoring.to_string()),
        ("--httpsAddr", String::new()),
        ("--secureGRPCAddr", String::new()),
        ("--ctrlz_port", "0".to_owned()),
    ];
    let flags = flags
        .into_iter()
        .map(|(flag, value)| [flag.to_owned(), value]);
    arguments.extend(flags.flatten());
    Ok(arguments)
}

async fn ready(process: &Process, http: SocketAddr) -> Result<()> {
    let client = Client::new(Version::Http1);
    let ready = eventually(START_TIME_MAX, "istiod to be ready", async || {
        success(&client.send(http, &Request::get("/ready")).await?)
    });
    process.unless_it_ends(ready).await
}

/// A workload whose Envoy asks istiod, as the agent of a pod has it ask.
#[derive(Clone, Debug)]
pub struct Workload {
    pub namespace: String,
    /// Of its pod. Unique: the names of its files begin with it.
    pub name: String,
    pub region: String,
    pub zone: String,
    pub labels: BTreeMap<String, String>,
    /// Further metadata of the node: fields of an object.
    pub metadata: Value,
    /// Of its pod. Where a `ServiceEntry`, `WorkloadEntry` or pod has this address, istiod takes it
    /// for the same workload, with its labels instead of these.
    pub address: Ipv4Addr,
    /// Where it takes requests of its application. Anything but 127.0.0.1 needs
    /// [`listens_for`](Workload::listens_for).
    pub bind: Ipv4Addr,
}

impl Workload {
    pub fn new(namespace: &str, name: &str, region: &str, zone: &str) -> Workload {
        Workload {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            region: region.to_owned(),
            zone: zone.to_owned(),
            labels: BTreeMap::new(),
            metadata: json!({}),
            address: NO_ENDPOINT,
            bind: Ipv4Addr::LOCALHOST,
        }
        .label(POD_LABEL, name)
    }

    /// A loopback address of its own, such as 127.0.0.2. The proxies of one machine would otherwise
    /// share the ports of services, and the kernel would choose among them.
    pub fn bind(mut self, address: Ipv4Addr) -> Workload {
        self.bind = address;
        self
    }

    /// The object that has it listen for a port of services at [`bind`](Workload::bind).
    pub fn listens_for(&self, port: u16) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "Sidecar",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": {
                "workloadSelector": { "labels": { POD_LABEL: self.name } },
                "egress": [{
                    "port": { "number": port, "name": "http", "protocol": "HTTP" },
                    "bind": self.bind,
                    "captureMode": "NONE",
                    "hosts": ["*/*"],
                }],
            },
        })
    }

    pub fn label(mut self, name: &str, value: &str) -> Workload {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The bootstrap of its Envoy. Traffic is not intercepted: each port of a service has a listener
    /// on loopback.
    pub fn bootstrap(&self, xds: SocketAddr) -> Bootstrap {
        let Workload {
            namespace,
            name,
            address,
            ..
        } = self;
        let domain = format!("{namespace}.svc.cluster.local");
        let mut metadata = json!({
            "NAMESPACE": namespace,
            "NAME": name,
            "CLUSTER_ID": CLUSTER,
            "ISTIO_VERSION": PROXY_VERSION,
            "INTERCEPTION_MODE": "NONE",
            "LABELS": self.labels,
        });
        if let (Some(all), Some(more)) = (metadata.as_object_mut(), self.metadata.as_object()) {
            all.extend(more.clone());
        }
        let ads = json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" });
        let socket = |address: SocketAddr| {
            let socket = json!({ "address": address.ip(), "port_value": address.port() });
            json!({ "socket_address": socket })
        };
        Bootstrap::of(json!({
            "node": {
                "id": format!("sidecar~{address}~{name}.{namespace}~{domain}"),
                "cluster": format!("{name}.{namespace}"),
                "locality": { "region": self.region, "zone": self.zone },
                "metadata": metadata,
            },
            "admin": { "address": socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) },
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
                },
                "lds_config": ads,
                "cds_config": ads,
            },
            "static_resources": { "clusters": [{
                "name": "xds-grpc",
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/\
                                  envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http2_protocol_options": {} },
                    },
                },
                "load_assignment": {
                    "cluster_name": "xds-grpc",
                    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(xds) } }] }],
                },
            }] },
        }))
    }
}

/// The plain Envoy of a [`Workload`].
pub struct Sidecar {
    envoy: Envoy,
    bind: Ipv4Addr,
}

impl Sidecar {
    /// Starts it, and waits until its admin interface answers.
    pub async fn start(directory: &Path, workload: &Workload, xds: SocketAddr) -> Result<Sidecar> {
        Sidecar::start_with(directory, workload, &workload.bootstrap(xds)).await
    }

    /// As [`start`](Sidecar::start), with a bootstrap that was changed.
    pub async fn start_with(
        directory: &Path,
        workload: &Workload,
        bootstrap: &Bootstrap,
    ) -> Result<Sidecar> {
        let envoy = Envoy::start_with(directory, &workload.name, bootstrap, 1).await?;
        Ok(Sidecar::of(envoy, workload))
    }

    pub(super) fn of(envoy: Envoy, workload: &Workload) -> Sidecar {
        let bind = workload.bind;
        Sidecar { envoy, bind }
    }

    pub fn envoy(&self) -> &Envoy {
        &self.envoy
    }

    /// Where its application sends requests for a port of a service, as soon as that takes
    /// connections.
    pub async fn outbound(&self, port: u16) -> Result<SocketAddr> {
        let admin = self.envoy.admin();
        let listens = eventually(PATIENCE, "istiod's listener", async || {
            // A listener stands in the list before the workers have it.
            let state = admin.state().await?;
            ensure!(state == "LIVE", "Envoy is {state}");
            admin.listener(&format!("{}_{port}", self.bind)).await
        });
        self.envoy.process().unless_it_ends(listens).await
    }

    /// How many configurations of istiod it has rejected.
    pub async fn rejections(&self) -> Result<u64> {
        let stats = self.envoy.admin().stats(r"\.update_rejected$").await?;
        Ok(stats.values().sum())
    }
}
