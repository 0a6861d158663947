//! The chart on a real API server with the real controllers: Helm installs it, upgrades it, and
//! leaves nothing behind, and its pods serve. The overlays for Kustomize make the same objects.

mod install;
mod kustomize;
mod serve;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::paths;
use e2e::peers::kubernetes::Kubernetes;
use e2e::peers::objects::Objects;

const CHART: &str = "deploy/helm/tidegate";
const VALUES: &str = "examples/kubernetes/three-zones.yaml";
const RELEASE: &str = "tidegate";

/// The strictest pod security standard is in force.
const NAMESPACE: &str = "
apiVersion: v1
kind: Namespace
metadata:
  name: tidegate
  labels: {pod-security.kubernetes.io/enforce: restricted}
";

/// An API server with its controllers, and Helm.
struct Cluster {
    kubernetes: Kubernetes,
    objects: Objects,
    /// Helm's own files.
    home: PathBuf,
}

impl Cluster {
    async fn start(directory: &Path) -> Result<Cluster> {
        let mut kubernetes = Kubernetes::start(directory, &[]).await?;
        kubernetes.start_controllers()?;
        let objects = kubernetes.objects().await?;
        objects.apply(NAMESPACE).await?;
        let home = directory.join("helm");
        fs::create_dir_all(&home)?;
        Ok(Cluster {
            kubernetes,
            objects,
            home,
        })
    }

    /// Runs Helm in the root of the repository, in the chart's namespace; returns its output.
    fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = Command::new(paths::helm()?);
        helm.args(arguments)
            .args(["--namespace", "tidegate"])
            .env("KUBECONFIG", self.kubernetes.admin())
            .env("HOME", &self.home)
            .current_dir(paths::workspace());
        // It has no network of its own to choose, but the one of this thread.
        let output = helm.output().context("helm does not start")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm {arguments:?}: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
