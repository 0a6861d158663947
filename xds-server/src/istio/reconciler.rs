//! Brings the objects of the cluster to their wanted state.

use std::collections::BTreeMap;

use futures::StreamExt;
use registry::causes::in_one_line;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tracing::{debug, info};

use super::{
    RECHECK,
    cluster::{Cluster, Seen, is_ours, key_of},
    foreign::foreign,
    objects::{Key, Kind, Object, Objects},
};
use crate::{
    conditions::Code,
    config::Istio,
    metrics::{Metrics, ResultLabel},
};

/// How many requests to the API server are under way at once.
const AT_ONCE: usize = 16;

/// The objects after an attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) shown: Vec<Shown>,
}

/// An object, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub host: String,
    pub state: State,
    /// What stands in the way; empty where nothing does.
    pub detail: String,
    /// As Kubernetes takes it.
    pub object: Value,
}

/// The state of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It stands in the cluster as it should.
    Applied,
    /// The configuration says not to apply it.
    Printed,
    /// It is not in the cluster, since an object of others has its host.
    Foreign,
    /// The API server refused it, or does not answer.
    Failed,
}

pub(super) struct Reconciler {
    /// None where nothing is applied.
    cluster: Option<Cluster>,
    seen: Option<watch::Receiver<Seen>>,
    metrics: Metrics,
    has_failed: bool,
}

impl Reconciler {
    pub(super) fn new(cluster: Option<Cluster>, metrics: Metrics) -> Reconciler {
        Reconciler {
            seen: cluster.as_ref().map(Cluster::seen),
            cluster,
            metrics,
            has_failed: false,
        }
    }

    /// Applies what differs, and deletes objects of ours that are not wanted.
    pub(super) async fn reconcile(&mut self, istio: &Istio, wanted: Objects) -> Report {
        let Some(cluster) = &self.cluster else {
            let shown = wanted.iter();
            return Report {
                shown: shown
                    .map(|(key, object)| show(key, object, State::Printed, String::new()))
                    .collect(),
            };
        };
        let seen = self.seen.as_mut().map(watch::Receiver::borrow_and_update);
        let unreachable = seen.and_then(|seen| seen.errors.values().next().cloned());
        let foreign = foreign(cluster, &istio.services);
        let mut shown = vec![];
        let mut failures = BTreeMap::new();
        // One kind after the other: routes name subsets, and subsets name hosts.
        for kind in Kind::ALL {
            // Owned, since the compiler does not follow borrowed keys through a stream of futures.
            let of_kind = wanted.iter().filter(|(key, _)| key.kind == kind);
            let of_kind: Vec<(Key, Object)> = of_kind
                .map(|(key, object)| (key.clone(), object.clone()))
                .collect();
            let applies = of_kind
                .into_iter()
                .map(|(key, object)| self.bring(cluster, &foreign, key, object));
            let mut applies = futures::stream::iter(applies).buffered(AT_ONCE);
            while let Some(object) = applies.next().await {
                if object.state == State::Failed {
                    let name = format!("{} {}/{}", object.kind, object.namespace, object.name);
                    failures.insert(name, object.detail.clone());
                }
                shown.push(object);
            }
        }
        for kind in Kind::ALL.into_iter().rev() {
            for object in cluster.all(kind).iter().filter(|object| is_ours(object)) {
                let key = key_of(kind, object);
                if wanted.contains_key(&key) {
                    continue;
                }
                match cluster.delete(&key, object).await {
                    Ok(()) => info!(%key, "an object of Istio is deleted: its service is gone"),
                    Err(error) => drop(failures.insert(key.to_string(), in_one_line(&error))),
                }
            }
        }
        self.has_failed = !failures.is_empty();
        self.tell(istio, failures, &foreign, unreachable);
        Report { shown }
    }

    /// Brings one object to its wanted state.
    async fn bring(
        &self,
        cluster: &Cluster,
        foreign: &BTreeMap<String, Key>,
        key: Key,
        object: Object,
    ) -> Shown {
        let present = cluster.get(&key);
        let is_there = present.is_some();
        match present {
            // Even fields that nobody has set are not ours to set there.
            Some(present) if !is_ours(&present) => {
                let detail = "an object of this name is there, and Tidegate has not made it: remove it, or name the service differently";
                return show(&key, &object, State::Failed, detail.to_owned());
            }
            Some(present) if covers(&present.data["spec"], &object.spec) => {
                return show(&key, &object, State::Applied, String::new());
            }
            Some(_) | None => {}
        }
        // An object that exists goes on: stale weights are worse than two objects.
        if let Some(other) = foreign.get(&object.host).filter(|_| !is_there) {
            let detail = format!("{other} has the host");
            return show(&key, &object, State::Foreign, detail);
        }
        let applied = cluster.apply(&key, &object).await;
        let (result, state, detail) = match applied {
            Ok(()) => ("ok", State::Applied, String::new()),
            Err(error) => ("error", State::Failed, in_one_line(&error)),
        };
        let label = ResultLabel { result };
        self.metrics.istio_applies.get_or_create(&label).inc();
        debug!(%key, result, "an object of Istio was applied");
        show(&key, &object, state, detail)
    }

    fn tell(
        &self,
        istio: &Istio,
        failures: BTreeMap<String, String>,
        foreign: &BTreeMap<String, Key>,
        unreachable: Option<String>,
    ) {
        let conditions = &self.metrics.conditions;
        conditions.replace(Code::IstioObjectFailed, failures);
        let foreign = istio.services.iter().filter_map(|service| {
            let other = foreign.get(&service.host)?;
            let detail = format!("{other} has the host {}", service.host);
            Some((service.service.clone(), detail))
        });
        let foreign: Vec<(String, String)> = foreign.collect();
        conditions.replace(Code::IstioForeignObject, foreign);
        match unreachable {
            Some(error) => conditions.raise(Code::IstioUnreachable, "", error),
            None => conditions.clear(Code::IstioUnreachable, ""),
        }
    }

    /// Waits until the objects have to be looked at again although nothing new is wanted: after a
    /// failure, or once somebody has changed one. Two replicas that do not agree would never rest
    /// if they did not wait.
    pub(super) async fn until_due(&mut self) {
        let Some(seen) = &mut self.seen else {
            return std::future::pending().await;
        };
        if !self.has_failed {
            // Its sender lives as long as the cluster.
            let _ = seen.changed().await;
        }
        tokio::time::sleep(RECHECK).await;
    }
}

fn show(key: &Key, object: &Object, state: State, detail: String) -> Shown {
    Shown {
        kind: key.kind.as_str(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        host: object.host.clone(),
        state,
        detail,
        object: object.manifest(key),
    }
}

/// Whether a present value has all that is wanted. The API server may have added fields, but lists
/// are whole.
fn covers(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted.iter().all(|(name, wanted)| {
            let present = present.get(name);
            present.is_some_and(|present| covers(present, wanted))
        }),
        (Value::Array(present), Value::Array(wanted)) => {
            let mut pairs = present.iter().zip(wanted);
            present.len() == wanted.len() && pairs.all(|(present, wanted)| covers(present, wanted))
        }
        _ => present == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::covers;

    #[test]
    fn added_fields_do_not_matter_and_everything_else_does() {
        let wanted = json!({ "host": "orders", "subsets": [{ "name": "a" }, { "name": "b" }] });
        let with = |change: fn(&mut serde_json::Value)| {
            let mut present = wanted.clone();
            change(&mut present);
            covers(&present, &wanted)
        };
        assert!(with(|_| {}));
        assert!(with(|it| it["exportTo"] = json!(["*"])));
        assert!(with(|it| it["subsets"][0]["labels"] = json!({})));
        assert!(!with(|it| it["host"] = json!("carts")));
        assert!(!with(|it| it["subsets"][1]["name"] = json!("c")));
        assert!(!with(|it| drop(
            it["subsets"].as_array_mut().unwrap().pop()
        )));
        assert!(!with(|it| drop(it["subsets"].take())));
    }
}
