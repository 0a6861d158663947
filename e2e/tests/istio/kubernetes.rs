//! The harness itself: the API server, RBAC and the controllers are real.

use anyhow::{Context, Result, ensure};
use e2e::peers::kubernetes::Kubernetes;
use e2e::peers::objects::code;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;

use crate::SHOP;

fn config_map(value: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: settings, namespace: shop}}, \
         data: {{mode: {value}}}}}"
    )
}

#[tokio::test]
async fn server_side_apply_knows_who_owns_a_field() -> Result<()> {
    let workdir = Workdir::kept("kubernetes-apply")?;
    let kubernetes = Kubernetes::start(workdir.path(), &[]).await?;
    let ours = kubernetes.objects().await?.managed_by("ours");
    ours.apply(SHOP).await?;
    ours.apply(&config_map("fence")).await?;
    // Again, as a controller does it.
    ours.apply(&config_map("fence")).await?;
    let theirs = ours.clone().managed_by("theirs");
    let refused = theirs.apply(&config_map("route")).await;
    let refused = refused.err().context("a field of another was taken")?;
    ensure!(code(&refused) == Some(409), "{refused:#}");
    let stored = ours.get(&config_map("")).await?;
    ensure!(stored["data"]["mode"] == "fence", "{stored}");
    ours.delete(&config_map("")).await?;
    theirs.apply(&config_map("route")).await
}

#[tokio::test]
async fn rbac_permits_a_user_only_the_granted_verbs() -> Result<()> {
    let workdir = Workdir::kept("kubernetes-rbac")?;
    let kubernetes = Kubernetes::start(workdir.path(), &["tidegate"]).await?;
    let admin = kubernetes.objects().await?;
    admin.apply(SHOP).await?;
    admin.apply(&config_map("fence")).await?;
    let user = kubernetes.objects_of("tidegate").await?;
    let forbidden = async || {
        let refused = user.apply(&config_map("fence")).await;
        let refused = refused.err().context("the write was accepted")?;
        ensure!(code(&refused) == Some(403), "{refused:#}");
        Ok(())
    };
    forbidden().await?;
    ensure!(
        user.get(&config_map("")).await.is_err(),
        "a read was accepted"
    );
    let role = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: shop}
rules:
- {apiGroups: [''], resources: [configmaps], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: tidegate}
";
    admin.apply(role).await?;
    eventually(PATIENCE, "the role to be in force", async || {
        user.get(&config_map("")).await
    })
    .await?;
    forbidden().await
}

#[tokio::test]
async fn controllers_act_on_objects() -> Result<()> {
    let workdir = Workdir::kept("kubernetes-controllers")?;
    let mut kubernetes = Kubernetes::start(workdir.path(), &[]).await?;
    kubernetes.start_controllers()?;
    let objects = kubernetes.objects().await?;
    objects.apply(SHOP).await?;
    objects.apply(&config_map("fence")).await?;
    objects.delete(SHOP).await?;
    eventually(PATIENCE, "the namespace to go", async || {
        let found = objects.get(SHOP).await;
        let error = found.err().context("it is there")?;
        ensure!(code(&error) == Some(404), "{error:#}");
        Ok(())
    })
    .await
}
