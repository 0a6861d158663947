//! Paths of the programs and files that the harness starts. The error for a missing one contains
//! the command that creates it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Envoy: `TIDEGATE_ENVOY`, or the one that `cargo xtask setup` provisioned.
pub fn envoy() -> Result<PathBuf> {
    provisioned("TIDEGATE_ENVOY", "target/tools/bin/envoy", "setup")
}

/// etcd: `TIDEGATE_ETCD`, or the one that `cargo xtask setup` provisioned.
pub fn etcd() -> Result<PathBuf> {
    provisioned("TIDEGATE_ETCD", "target/tools/bin/etcd", "setup")
}

/// etcd's command lines, `etcdctl` and `etcdutl`, in etcd's directory.
pub fn etcd_tool(name: &str) -> Result<PathBuf> {
    let path = etcd()?.with_file_name(name);
    ensure!(
        path.exists(),
        "{} does not exist: run `cargo xtask setup`, or put it beside etcd",
        path.display()
    );
    Ok(path)
}

/// The packages of Python's gRPC client.
pub fn grpcio() -> Result<PathBuf> {
    provisioned("TIDEGATE_GRPCIO", "target/tools/grpcio", "setup")
}

/// The packages of JavaScript's gRPC client.
pub fn grpc_js() -> Result<PathBuf> {
    provisioned(
        "TIDEGATE_GRPC_JS",
        "target/tools/grpc-js/node_modules",
        "setup",
    )
}

/// Node.js, for JavaScript's gRPC client.
pub fn node() -> Result<PathBuf> {
    provisioned("TIDEGATE_NODE", "target/tools/bin/node", "setup")
}

/// h2spec, which tests servers of HTTP/2.
pub fn h2spec() -> Result<PathBuf> {
    provisioned(
        "TIDEGATE_H2SPEC",
        "target/tools/h2spec/h2spec",
        "test peers",
    )
}

/// A program of Kubernetes: `kube-apiserver`, `kube-controller-manager`.
pub fn kubernetes(program: &str) -> Result<PathBuf> {
    provisioned_in("TIDEGATE_KUBERNETES", "target/tools/kubernetes", program)
}

/// A program of Istio, `pilot-discovery` or `pilot-agent`, or a file beside them:
/// `crd-all.gen.yaml` with its CRDs, and `envoy_bootstrap.json`, the agent's template.
pub fn istio(name: &str) -> Result<PathBuf> {
    provisioned_in("TIDEGATE_ISTIO", "target/tools/istio", name)
}

/// Helm.
pub fn helm() -> Result<PathBuf> {
    provisioned_in("TIDEGATE_HELM", "target/tools/helm", "helm")
}

/// Kustomize.
pub fn kustomize() -> Result<PathBuf> {
    provisioned_in("TIDEGATE_KUSTOMIZE", "target/tools/kustomize", "kustomize")
}

/// The go-control-plane server for comparison in `bench xds`, if it could be provisioned.
pub fn xds_peer() -> Option<PathBuf> {
    let path = workspace().join("target/tools/xds-peer/xds-peer");
    path.exists().then_some(path)
}

/// The library that steps one process's wall clock, from the same build as this program.
pub fn wall_clock() -> Result<PathBuf> {
    built("libwall_clock.so", "cargo build -p wall-clock")
}

/// The filter: `TIDEGATE_FILTER`, or the one that `cargo xtask wasm` built.
pub fn filter() -> Result<PathBuf> {
    provisioned(
        "TIDEGATE_FILTER",
        "target/filter/tidegate_filter.wasm",
        "wasm",
    )
}

/// The filter as a dynamic module: `TIDEGATE_MODULE`, or the one that `cargo xtask native` built.
pub fn module() -> Result<PathBuf> {
    provisioned(
        "TIDEGATE_MODULE",
        "target/filter/libtidegate_module.so",
        "native",
    )
}

/// The same, built for an ABI that no Envoy has.
pub fn module_of_another_abi() -> Result<PathBuf> {
    let path = module()?.with_file_name("other-abi/libtidegate_module.so");
    ensure!(
        path.exists(),
        "{} does not exist: run `cargo xtask native`",
        path.display()
    );
    Ok(path)
}

/// The example of the crate `tidegate-xds`.
pub fn xds_example() -> Result<PathBuf> {
    built(
        "examples/minimal",
        "cargo build -p tidegate-xds --example minimal",
    )
}

/// The control plane's binary, from the same build as this program.
pub fn tidegate() -> Result<PathBuf> {
    built("tidegate", "cargo build -p tidegate")
}

/// The sample upstream's binary, from the same build as this program.
pub fn upstream() -> Result<PathBuf> {
    built("upstream", "cargo build -p e2e")
}

/// The root of the checkout.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

fn provisioned(variable: &str, default: &str, task: &str) -> Result<PathBuf> {
    let path = env::var_os(variable).map_or_else(|| workspace().join(default), PathBuf::from);
    ensure!(
        path.exists(),
        "{} does not exist: run `cargo xtask {task}`, or set {variable}",
        path.display()
    );
    // Children run in other directories.
    path.canonicalize()
        .with_context(|| path.display().to_string())
}

/// A file in a directory that `cargo xtask setup --istio` provisioned, or in that of a variable.
fn provisioned_in(variable: &str, default: &str, name: &str) -> Result<PathBuf> {
    let path = provisioned(variable, default, "setup --istio")?.join(name);
    ensure!(
        path.exists(),
        "{} does not exist: run `cargo xtask setup --istio`, or set {variable}",
        path.display()
    );
    Ok(path)
}

/// A binary next to this one; tests run one directory deeper, in `deps`.
fn built(name: &str, command: &str) -> Result<PathBuf> {
    let me = env::current_exe().context("where this program is")?;
    let directory = me
        .ancestors()
        .skip(1)
        .find(|ancestor| !ancestor.ends_with("deps"))
        .context("this program is in no directory")?;
    let path = directory.join(name);
    ensure!(
        path.exists(),
        "{} does not exist: run `{command}`",
        path.display()
    );
    Ok(path)
}
