//! The objects of a Kubernetes cluster: watched, applied, deleted.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use kube::{
    Api, Client, Config, Resource,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use registry::causes::in_one_line;
use tokio::sync::watch;

use super::objects::{GROUP, Key, Kind, OWNER, OWNER_LABEL, Object, VERSION};

/// How long one request to the API server may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a first listing may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// A cluster, with its Istio objects as they were seen last.
pub(super) struct Cluster {
    client: Client,
    stores: BTreeMap<Kind, Store<DynamicObject>>,
    /// Rises with each seen change, and with each failed watch.
    seen: watch::Receiver<Seen>,
    watches: Vec<tokio::task::JoinHandle<()>>,
}

/// The course of the watches.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) changes: u64,
    /// By kind, the error of a watch that is broken.
    pub(super) errors: BTreeMap<Kind, String>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for watch in &self.watches {
            watch.abort();
        }
    }
}

impl Cluster {
    /// Connects, and lists all objects of the three kinds.
    ///
    /// # Errors
    ///
    /// The credentials cannot be read, the API server does not answer, refuses to list, or does not
    /// know Istio's kinds.
    pub(super) async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Cluster> {
        let mut config = match kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path)?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
            }
            None => Config::infer().await?,
        };
        config.connect_timeout = Some(REQUEST_TIMEOUT);
        config.write_timeout = Some(REQUEST_TIMEOUT);
        let client = Client::try_from(config)?;
        let (sender, seen) = watch::channel(Seen::default());
        let sender = Arc::new(sender);
        let mut cluster = Cluster {
            client,
            stores: BTreeMap::new(),
            seen,
            watches: vec![],
        };
        for kind in Kind::ALL {
            cluster.watch(kind, Arc::clone(&sender));
        }
        cluster.until_listed().await?;
        Ok(cluster)
    }

    /// Waits for the first listings; fails with the first error, which the caller tells.
    async fn until_listed(&self) -> anyhow::Result<()> {
        let mut seen = self.seen.clone();
        let all = self.stores.values().map(Store::wait_until_ready);
        let listed = futures::future::try_join_all(all);
        tokio::select! {
            listed = listed => {
                listed?;
                Ok(())
            }
            failed = seen.wait_for(|seen| !seen.errors.is_empty()) => {
                let error = failed?.errors.values().next().cloned();
                Err(anyhow::Error::msg(error.unwrap_or_default()))
            }
            () = tokio::time::sleep(LIST_TIMEOUT) => {
                Err(anyhow::Error::msg("the API server does not answer"))
            }
        }
    }

    fn watch(&mut self, kind: Kind, sender: Arc<watch::Sender<Seen>>) {
        let resource = resource(kind);
        let writer = reflector::store::Writer::<DynamicObject>::new(resource.clone());
        self.stores.insert(kind, writer.as_reader());
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let events = watcher(api, watcher::Config::default()).default_backoff();
        let mut events = reflector(writer, events).boxed();
        self.watches.push(tokio::spawn(async move {
            loop {
                let event = events.try_next().await;
                let error = match &event {
                    Ok(Some(_)) => None,
                    Ok(None) => return,
                    Err(error) => Some(in_one_line(error)),
                };
                sender.send_modify(|seen| {
                    seen.changes += 1;
                    match error {
                        Some(error) => drop(seen.errors.insert(kind, error)),
                        None => drop(seen.errors.remove(&kind)),
                    }
                });
            }
        }));
    }

    /// Follows the watches.
    pub(super) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// All objects of a kind.
    pub(super) fn all(&self, kind: Kind) -> Vec<Arc<DynamicObject>> {
        self.stores.get(&kind).map(Store::state).unwrap_or_default()
    }

    /// The object with this name.
    pub(super) fn get(&self, key: &Key) -> Option<Arc<DynamicObject>> {
        let name = ObjectRef::new_with(&key.name, resource(key.kind)).within(&key.namespace);
        self.stores.get(&key.kind)?.get(&name)
    }

    /// Server-side apply, which takes no field from another manager.
    ///
    /// # Errors
    ///
    /// Those of the API server: a conflict (409) where another manager has set a field to another
    /// value.
    pub(super) async fn apply(&self, key: &Key, object: &Object) -> Result<(), kube::Error> {
        let params = PatchParams::apply(OWNER);
        let manifest = object.manifest(key);
        let patch = Patch::Apply(&manifest);
        self.api(key).patch(&key.name, &params, &patch).await?;
        Ok(())
    }

    /// Deletes an object that is still the one that was seen.
    ///
    /// # Errors
    ///
    /// Those of the API server. An object that has gone meanwhile is none.
    pub(super) async fn delete(&self, key: &Key, seen: &DynamicObject) -> Result<(), kube::Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: seen.meta().uid.clone(),
                resource_version: seen.meta().resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        match self.api(key).delete(&key.name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    fn api(&self, key: &Key) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &key.namespace, &resource(key.kind))
    }
}

/// The key of a seen object.
pub(super) fn key_of(kind: Kind, object: &DynamicObject) -> Key {
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    Key {
        kind,
        namespace: text(&object.meta().namespace),
        name: text(&object.meta().name),
    }
}

/// Whether Tidegate has made an object: by its label, and by the owner of its fields. A label alone
/// can be copied.
pub(super) fn is_ours(object: &DynamicObject) -> bool {
    let labels = object.meta().labels.as_ref();
    let is_labelled = labels.is_some_and(|it| it.get(OWNER_LABEL).is_some_and(|it| it == OWNER));
    let mut managers = object.meta().managed_fields.iter().flatten();
    is_labelled && managers.any(|fields| fields.manager.as_deref() == Some(OWNER))
}

fn resource(kind: Kind) -> ApiResource {
    let gvk = GroupVersionKind::gvk(GROUP, VERSION, kind.as_str());
    ApiResource::from_gvk_with_plural(&gvk, kind.plural())
}
