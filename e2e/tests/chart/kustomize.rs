//! The overlays of `deploy/kubernetes` make the objects of the chart, and leave nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use e2e::paths;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Map, Value, json};

use crate::install::{everything, until};
use crate::{CHART, Cluster, RELEASE, VALUES};

const THREE_ZONES: &str = "deploy/kubernetes/overlays/three-zones";
const ONE_ZONE: &str = "deploy/kubernetes/overlays/one-cluster-per-zone";
const ONE_ZONE_VALUES: &str = "examples/kubernetes/one-cluster-per-zone.yaml";
const COMPONENTS: &str = "deploy/kubernetes/components";
/// The oldest Kubernetes with all fields that the chart may set.
const KUBE_VERSION: &str = "1.35.0";

/// A kustomization, and the values of the chart that say the same.
struct Pair {
    kustomization: &'static str,
    values: &'static str,
    set: &'static str,
}

static PAIRS: [Pair; 3] = [
    Pair {
        kustomization: THREE_ZONES,
        values: VALUES,
        set: "service.preferSameZone=false",
    },
    Pair {
        kustomization: ONE_ZONE,
        values: ONE_ZONE_VALUES,
        set: "service.preferSameZone=false,serviceMonitor.enabled=false,\
              tls.secretName=tidegate-tls",
    },
    Pair {
        kustomization: "e2e/tests/chart/components",
        values: ONE_ZONE_VALUES,
        set: "agent.enabled=true,agent.config.zone=shanghai-a,istio.rbac=true",
    },
];

/// The output of a program in the root of the repository. `home` is for files of its own.
fn output(program: &Path, home: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("HOME", home)
        .current_dir(paths::workspace());
    let name = program.display();
    let output = command
        .output()
        .with_context(|| format!("{name} does not start"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

fn build(kustomization: &str, home: &Path) -> Result<String> {
    output(&paths::kustomize()?, home, &["build", kustomization])
}

impl Pair {
    /// What the chart makes, but for the pods of `helm test`.
    fn chart(&self, home: &Path) -> Result<String> {
        let arguments = [
            "template",
            RELEASE,
            CHART,
            "--namespace=tidegate",
            "--skip-tests",
            "--kube-version",
            KUBE_VERSION,
            "--values",
            self.values,
            "--set",
            self.set,
        ];
        output(&paths::helm()?, home, &arguments)
    }
}

/// All objects, by kind and name.
fn objects(manifests: &str) -> Result<Value> {
    // Kubernetes reads YAML 1.1, in which 0440 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents = serde_saphyr::from_multiple_with_options::<Value>(manifests, options)?;
    let mut all = Map::new();
    for object in documents {
        if object.is_null() {
            continue;
        }
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").context("no kind")?;
        let name = text("/metadata/name").context("no name")?;
        let key = format!("{kind} {name}");
        let twice = all.insert(key.clone(), comparable(object)?);
        ensure!(twice.is_none(), "{key} is there twice");
    }
    Ok(Value::Object(all))
}

/// The object without what is Helm's own, without its namespace, which `helm template` does not
/// tell, and with configuration as YAML instead of text.
fn comparable(mut object: Value) -> Result<Value> {
    for place in ["/metadata", "/spec/template/metadata"] {
        let found = object.pointer_mut(place).and_then(Value::as_object_mut);
        let Some(metadata) = found else { continue };
        metadata.remove("namespace");
        remove(
            metadata,
            "labels",
            &["app.kubernetes.io/managed-by", "helm.sh/chart"],
        );
        remove(metadata, "annotations", &["checksum/config"]);
    }
    if object["kind"] == "ConfigMap" {
        let files = object["data"].as_object_mut().context("no data")?;
        for file in files.values_mut() {
            let text = file.as_str().context("no text")?;
            *file = serde_saphyr::from_str::<Value>(text)?;
        }
    }
    Ok(object)
}

/// Removes keys from a field, and the field if that leaves it empty.
fn remove(metadata: &mut Map<String, Value>, field: &str, keys: &[&str]) {
    let found = metadata.get_mut(field).and_then(Value::as_object_mut);
    let Some(entries) = found else { return };
    entries.retain(|key, _| !keys.contains(&key.as_str()));
    if entries.is_empty() {
        metadata.remove(field);
    }
}

/// The first path at which they differ, and what is there. A field that is absent is null.
fn difference(path: &str, chart: &Value, overlay: &Value) -> Option<String> {
    match (chart, overlay) {
        (Value::Object(chart), Value::Object(overlay)) => {
            let mut keys: BTreeSet<&String> = chart.keys().collect();
            keys.extend(overlay.keys());
            keys.into_iter().find_map(|key| {
                let (chart, overlay) = (chart.get(key), overlay.get(key));
                difference(
                    &format!("{path}/{key}"),
                    chart.unwrap_or(&Value::Null),
                    overlay.unwrap_or(&Value::Null),
                )
            })
        }
        (Value::Array(chart), Value::Array(overlay)) if chart.len() == overlay.len() => {
            let mut items = chart.iter().zip(overlay).enumerate();
            items.find_map(|(at, (chart, overlay))| {
                difference(&format!("{path}/{at}"), chart, overlay)
            })
        }
        (chart, overlay) => {
            let told = || format!("{path}: {chart} in the chart, {overlay} in the overlay");
            (chart != overlay).then(told)
        }
    }
}

#[test]
fn overlays_make_the_objects_of_the_chart() -> Result<()> {
    let workdir = Workdir::kept("chart-kustomize")?;
    let home = workdir.path();
    for pair in &PAIRS {
        let chart = objects(&pair.chart(home)?)?;
        let overlay = objects(&build(pair.kustomization, home)?)?;
        ensure!(chart.as_object().is_some_and(|all| !all.is_empty()));
        if let Some(difference) = difference("", &chart, &overlay) {
            bail!("{}: {difference}", pair.kustomization);
        }
    }
    Ok(())
}

#[test]
fn every_component_is_compared() -> Result<()> {
    let mut used = String::new();
    for pair in &PAIRS {
        let folder = paths::workspace().join(pair.kustomization);
        used += &fs::read_to_string(folder.join("kustomization.yaml"))?;
    }
    for component in fs::read_dir(paths::workspace().join(COMPONENTS))? {
        let name = component?.file_name();
        let line = format!("components/{}\n", name.display());
        ensure!(used.contains(&line), "{}", name.display());
    }
    Ok(())
}

#[test]
fn a_difference_is_told_with_its_path() {
    let chart = json!({"Service a": {"spec": {"ports": [{"port": 1}]}}});
    let other = json!({"Service a": {"spec": {"ports": [{"port": 2}]}}});
    assert_eq!(difference("", &chart, &chart), None);
    assert_eq!(
        difference("", &chart, &other).as_deref(),
        Some("/Service a/spec/ports/0/port: 1 in the chart, 2 in the overlay")
    );
    assert_eq!(
        difference("", &json!({"Service b": 1}), &json!({})).as_deref(),
        Some("/Service b: 1 in the chart, null in the overlay")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_zones_come_and_leave_nothing() -> Result<()> {
    let workdir = Workdir::kept("chart-three-zones")?;
    let manifests = build(THREE_ZONES, workdir.path())?;
    let cluster = Cluster::start(workdir.path()).await?;
    cluster.objects.apply(&manifests).await?;
    until(&cluster, "Deployment", 3).await?;
    // Pods that the pod security standard refuses would not be there.
    until(&cluster, "Pod", 3 * 2 + 3).await?;
    until(&cluster, "PodDisruptionBudget", 3 + 1).await?;

    cluster.objects.delete(&manifests).await?;
    eventually(PATIENCE, "nothing to be left", async || {
        let left = everything(&cluster).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}
