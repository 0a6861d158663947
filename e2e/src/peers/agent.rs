//! Istio's own agent, which asks istiod for its Envoy, and fetches modules for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::istio::{CLUSTER, Sidecar, Workload};
use super::{START_TIME_MAX, with_addresses};
use crate::envoy::Envoy;
use crate::paths;
use crate::process::Process;

/// The agent stores modules below /var/lib, and its Envoy would outlive it.
const ALONE: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
const WITH_A_STORE: &str =
    "mount -t tmpfs tmpfs /var/lib && mkdir -p /var/lib/istio/data && exec \"$@\"";

/// Quicker than by default, which is 15 s and 5 retries.
const FETCHING: [&str; 3] = [
    // Registries in plain text: those of tests.
    "WASM_INSECURE_REGISTRIES=*",
    "WASM_HTTP_REQUEST_TIMEOUT=1s",
    "WASM_HTTP_REQUEST_MAX_RETRIES=2",
];

impl Sidecar {
    /// As [`start`](Sidecar::start), with Istio's own agent between Envoy and istiod.
    pub async fn with_agent(
        directory: &Path,
        workload: &Workload,
        xds: SocketAddr,
    ) -> Result<Sidecar> {
        let started = with_addresses(async |ports| {
            let arguments = arguments(directory, workload, xds, ports)?;
            let unshare = Path::new("unshare");
            let process = Process::start(directory, &workload.name, unshare, &arguments)?;
            let [admin, ..] = ports;
            Envoy::of(process, admin, START_TIME_MAX).await
        });
        let envoy = started.await.context("the agent does not start")?;
        Ok(Sidecar::of(envoy, workload))
    }
}

fn arguments(
    directory: &Path,
    workload: &Workload,
    xds: SocketAddr,
    ports: [SocketAddr; 4],
) -> Result<Vec<String>> {
    let Workload {
        namespace,
        name,
        region,
        zone,
        ..
    } = workload;
    let [admin, status, health, prometheus] = ports.map(|address| address.port());
    let address = Ipv4Addr::LOCALHOST;
    let mut labels = json!(workload.labels);
    labels["istio-locality"] = json!(format!("{region}.{zone}"));
    let config = json!({
        "binaryPath": paths::envoy()?,
        "concurrency": 1,
        "configPath": directory.join(format!("{name}.agent")),
        "controlPlaneAuthPolicy": "NONE",
        "discoveryAddress": xds.to_string(),
        "proxyAdminPort": admin,
        "proxyBootstrapTemplatePath": paths::istio("envoy_bootstrap.json")?,
        "statusPort": status,
    });
    let environment = [
        format!("ENVOY_PROMETHEUS_PORT={prometheus}"),
        format!("ENVOY_STATUS_PORT={health}"),
        // Nobody issues certificates here.
        "FILE_MOUNTED_CERTS=true".to_owned(),
        format!("INSTANCE_IP={address}"),
        format!("ISTIO_METAJSON_LABELS={labels}"),
        format!("ISTIO_META_CLUSTER_ID={CLUSTER}"),
        "ISTIO_META_INTERCEPTION_MODE=NONE".to_owned(),
        format!("POD_NAME={name}"),
        format!("POD_NAMESPACE={namespace}"),
        format!("PROXY_CONFIG={config}"),
    ];
    let program = paths::istio("pilot-agent")?.display().to_string();
    let domain = format!("{namespace}.svc.cluster.local");
    let agent = [&program, "proxy", "sidecar", "--domain", &domain];
    let before = ALONE
        .into_iter()
        .chain(["sh", "-c", WITH_A_STORE, "agent", "env"]);
    let all = before
        .chain(FETCHING)
        .chain(environment.iter().map(String::as_str))
        .chain(agent);
    Ok(all.map(str::to_owned).collect())
}
