//! Helm's own commands.

use anyhow::{Context, Result, ensure};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use kube::api::{Api, DynamicObject, ListParams};

use crate::{CHART, Cluster, RELEASE, VALUES};

/// All kinds that the chart may make.
const KINDS: [(&str, &str); 12] = [
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("v1", "ConfigMap"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
];

/// The kinds and names of everything that is part of the release.
pub(super) async fn everything(cluster: &Cluster) -> Result<Vec<String>> {
    let label = format!("app.kubernetes.io/instance={RELEASE}");
    let mut all = vec![];
    for (version, kind) in KINDS {
        let api: Api<DynamicObject> = cluster.objects.api(version, kind, "tidegate").await?;
        let listed = api.list(&ListParams::default().labels(&label)).await?;
        let names = listed.into_iter().filter_map(|object| object.metadata.name);
        all.extend(names.map(|name| format!("{kind} {name}")));
    }
    Ok(all)
}

/// Waits until there are so many objects of a kind.
pub(super) async fn until(cluster: &Cluster, kind: &str, count: usize) -> Result<()> {
    let what = format!("{count} of the kind {kind}");
    eventually(PATIENCE, &what, async || {
        let all = everything(cluster).await?;
        let of_kind = all.iter().filter(|it| it.starts_with(&format!("{kind} ")));
        let found: Vec<_> = of_kind.collect();
        ensure!(found.len() == count, "{found:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chart_comes_changes_goes_back_and_leaves_nothing() -> Result<()> {
    let workdir = Workdir::kept("chart-install")?;
    let cluster = Cluster::start(workdir.path()).await?;
    cluster.helm(&["lint", "--strict", CHART, "--values", VALUES])?;
    let notes = cluster.helm(&["install", RELEASE, CHART, "--values", VALUES])?;
    ensure!(notes.contains("rollout status"), "{notes}");
    // Pods that the pod security standard refuses would not be there.
    until(&cluster, "Pod", 3 * 2 + 3).await?;
    until(&cluster, "PodDisruptionBudget", 3 + 1).await?;

    let change = [
        "--set",
        "image.tag=next,istio.rbac=true,agent.enabled=true,agent.config.zone=shanghai-a",
    ];
    let upgrade = ["upgrade", RELEASE, CHART, "--values", VALUES];
    cluster.helm(&[&upgrade[..], &change[..]].concat())?;
    until(&cluster, "ReplicaSet", 2 * 3).await?;
    until(&cluster, "ClusterRole", 1).await?;
    until(&cluster, "DaemonSet", 1).await?;

    cluster.helm(&["rollback", RELEASE, "1"])?;
    until(&cluster, "ClusterRole", 0).await?;
    until(&cluster, "DaemonSet", 0).await?;

    cluster.helm(&["uninstall", RELEASE])?;
    eventually(PATIENCE, "nothing to be left", async || {
        let left = everything(&cluster).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_cannot_work_are_refused_with_what_to_do() -> Result<()> {
    let workdir = Workdir::kept("chart-values")?;
    let cluster = Cluster::start(workdir.path()).await?;
    for (set, told) in [
        ("tls.acceptPlaintext=false", "tls.secretName"),
        ("etcd.trial.enabled=false", "etcd.endpoints"),
        ("etcd.endpoints={http://etcd:2379}", "not both"),
        ("etcd.tls.secretName=etcd", "plain text"),
        ("etcd.user.name=tidegate", "secretName"),
        ("config.store.embedded.path=/tmp", "config"),
        ("replicas=0", "replicas"),
        ("zone=shanghai-a", "zone"),
    ] {
        let rendered = ["template", RELEASE, CHART, "--values", VALUES, "--set", set];
        let refused = cluster.helm(&rendered).err();
        let refused = refused.with_context(|| format!("{set} was accepted"))?;
        ensure!(refused.to_string().contains(told), "{set}: {refused}");
    }
    // The other example needs kinds of others.
    let others = "examples/kubernetes/one-cluster-per-zone.yaml";
    let rendered = cluster.helm(&["template", RELEASE, CHART, "--values", others])?;
    ensure!(
        rendered.matches("kind: Deployment").count() == 1,
        "{rendered}"
    );
    ensure!(rendered.contains("kind: Certificate"), "{rendered}");
    Ok(())
}
