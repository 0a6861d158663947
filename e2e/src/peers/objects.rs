//! A client of a Kubernetes API server for objects of any kind, as YAML.

use std::path::Path;

use anyhow::{Context, Result};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use kube::{Client, Config};
use serde_json::Value;

use crate::wait::{PATIENCE, eventually};

/// The manager of the fields that [`Objects::apply`] sets.
const FIELD_MANAGER: &str = "e2e";

/// The namespace of objects that name none, as for kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// One user of an API server.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    field_manager: String,
    force: bool,
}

impl Objects {
    /// The user of a kubeconfig file.
    pub async fn of(kubeconfig: &Path) -> Result<Objects> {
        let read = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        Ok(Objects {
            client: Client::try_from(config)?,
            field_manager: FIELD_MANAGER.to_owned(),
            force: false,
        })
    }

    /// The same user, as another manager of fields.
    pub fn managed_by(mut self, field_manager: &str) -> Objects {
        self.field_manager = field_manager.to_owned();
        self
    }

    /// The same, which takes fields of other managers.
    pub fn forced(mut self) -> Objects {
        self.force = true;
        self
    }

    /// To use typed objects, watches and all else.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Server-side apply of all documents, in their order. Fields that another manager has set to
    /// other values are a conflict, [`code`] 409.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            self.apply_one(&object).await?;
        }
        Ok(())
    }

    /// As [`apply`](Objects::apply), for one object.
    pub async fn apply_one(&self, object: &Value) -> Result<()> {
        let (api, name) = self.place(object).await?;
        let mut params = PatchParams::apply(&self.field_manager);
        params.force = self.force;
        let applied = api.patch(&name, &params, &Patch::Apply(object)).await;
        applied.with_context(|| format!("cannot apply {} {name}", object["kind"]))?;
        Ok(())
    }

    /// Deletes the objects of all documents; their kinds and names are enough.
    pub async fn delete(&self, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            let (api, name) = self.place(&object).await?;
            let deleted = api.delete(&name, &DeleteParams::default()).await;
            deleted.with_context(|| format!("cannot delete {} {name}", object["kind"]))?;
        }
        Ok(())
    }

    /// The present state of a document's object; its kind and name are enough.
    pub async fn get(&self, yaml: &str) -> Result<Value> {
        let object: Value = serde_saphyr::from_str(yaml).with_context(|| yaml.to_owned())?;
        let (api, name) = self.place(&object).await?;
        let found = api.get(&name).await;
        let found = found.with_context(|| format!("cannot get {} {name}", object["kind"]))?;
        Ok(serde_json::to_value(found)?)
    }

    /// The objects of a kind, such as `networking.istio.io/v1` and `VirtualService`, in a namespace
    /// if they have one.
    pub async fn api(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
    ) -> Result<Api<DynamicObject>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = GroupVersionKind::gvk(group, version, kind);
        // A definition is established a moment before its objects are served.
        let what = format!("the API server to serve {kind:?}");
        let (resource, capabilities) = eventually(PATIENCE, &what, async || {
            Ok(discovery::pinned_kind(&self.client, &kind).await?)
        })
        .await?;
        let client = self.client.clone();
        Ok(match capabilities.scope {
            Scope::Cluster => Api::all_with(client, &resource),
            Scope::Namespaced => Api::namespaced_with(client, namespace, &resource),
        })
    }

    /// Where an object belongs, and its name.
    async fn place(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let field = |pointer| text(pointer).with_context(|| format!("no {pointer} in {object}"));
        let namespace = text("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE);
        let api = self.api(field("/apiVersion")?, field("/kind")?, namespace);
        Ok((api.await?, field("/metadata/name")?.to_owned()))
    }
}

/// The HTTP status with which an API server refused a request: 403, 404, 409, …
pub fn code(error: &anyhow::Error) -> Option<u16> {
    let mut causes = error.chain();
    let error = causes.find_map(|cause| cause.downcast_ref::<kube::Error>())?;
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The documents of a YAML file, but for empty ones.
fn documents(yaml: &str) -> Result<Vec<Value>> {
    let documents = serde_saphyr::from_multiple::<Value>(yaml);
    let mut documents = documents.context("YAML for the API server")?;
    documents.retain(|document| !document.is_null());
    Ok(documents)
}
