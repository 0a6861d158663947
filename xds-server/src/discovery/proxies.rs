//! The connected proxies, and those that were rejected, as operators see them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;
use xds::{
    clients::{self, ClientStatus, Clients},
    stream::Variant,
};

use crate::snapshot::{Role, ViewKey};

/// How many rejected proxies are remembered: any client of the port can invent node ids.
const STRANGERS_MAX: usize = 64;
/// For how long, after the last attempt: Envoy retries at least every half minute.
const STRANGER_FOR: Duration = Duration::from_secs(90);

/// One stream of a proxy.
#[derive(Clone, Debug, Serialize)]
pub struct ProxyStatus {
    pub node: String,
    pub zone: String,
    pub role: &'static str,
    #[serde(skip)]
    pub view: ViewKey,
    /// `delta` or `sotw`; `policy` for a guest, which has no resources.
    pub variant: &'static str,
    /// Its zone is no longer configured: it keeps its last state and gets no updates.
    pub orphaned: bool,
    /// By kind (`cds`, `eds`, `lds`, `rds`, `ecds`).
    pub kinds: BTreeMap<&'static str, KindStatus>,
}

/// A proxy's resources of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KindStatus {
    /// Acknowledged resources.
    pub acked: usize,
    /// Versions of the first of them, by name.
    pub versions: BTreeMap<String, String>,
    /// The last rejection, while a rejected resource is still offered.
    pub nack: Option<Nack>,
}

/// A rejection.
#[derive(Clone, Debug, Serialize)]
pub struct Nack {
    pub resources: Vec<String>,
    pub message: String,
}

impl ProxyStatus {
    /// A guest of a zone, which has no resources.
    pub fn of_guest(node: String, zone: &str) -> ProxyStatus {
        let view = ViewKey {
            zone: Arc::from(zone),
            role: Role::Guest,
        };
        ProxyStatus {
            node,
            zone: zone.to_owned(),
            role: view.role.as_str(),
            view,
            variant: "policy",
            orphaned: false,
            kinds: BTreeMap::new(),
        }
    }
}

impl From<ClientStatus<ViewKey>> for ProxyStatus {
    fn from(status: ClientStatus<ViewKey>) -> ProxyStatus {
        let view = status.client.key;
        let kinds = status.kinds.into_iter();
        ProxyStatus {
            node: status.client.node_id,
            zone: view.zone.to_string(),
            role: view.role.as_str(),
            view,
            variant: match status.client.variant {
                Variant::Delta => "delta",
                Variant::StateOfTheWorld => "sotw",
            },
            orphaned: status.orphaned,
            kinds: kinds
                .map(|(kind, status)| (kind.as_str(), status.into()))
                .collect(),
        }
    }
}

impl From<clients::KindStatus> for KindStatus {
    fn from(status: clients::KindStatus) -> KindStatus {
        let nack = |clients::Nack { resources, message }| Nack { resources, message };
        KindStatus {
            acked: status.acked,
            versions: status.versions,
            nack: status.nack.map(nack),
        }
    }
}

/// The connected proxies, and the rejected ones. Cheap to clone: clones share them.
#[derive(Clone, Default)]
pub struct Proxies {
    clients: Clients<ViewKey>,
    /// By node id: the unknown zone that it named, and when.
    strangers: Arc<Mutex<BTreeMap<String, (String, Instant)>>>,
}

impl Proxies {
    /// The connected proxies.
    pub fn clients(&self) -> &Clients<ViewKey> {
        &self.clients
    }

    /// Every stream's status, in the order of arrival.
    pub fn list(&self) -> Vec<ProxyStatus> {
        let streams = self.clients.list().into_iter();
        streams.map(ProxyStatus::from).collect()
    }

    /// Records a proxy that was rejected because its zone is not configured.
    pub(crate) fn reject(&self, node: &str, zone: &str, now: Instant) {
        let mut strangers = self.strangers_lock();
        strangers.insert(node.to_owned(), (zone.to_owned(), now));
        while strangers.len() > STRANGERS_MAX {
            let oldest = strangers.iter().min_by_key(|(_, (_, at))| *at);
            let Some(oldest) = oldest.map(|(node, _)| node.clone()) else {
                return;
            };
            strangers.remove(&oldest);
        }
    }

    /// Records an admitted proxy.
    pub(super) fn accept(&self, node: &str) {
        self.strangers_lock().remove(node);
    }

    /// The proxies that were rejected lately and have not reconnected with a known zone, and the
    /// zones that they name.
    pub fn strangers(&self, now: Instant) -> Vec<(String, String)> {
        let mut strangers = self.strangers_lock();
        strangers.retain(|_, (_, at)| now.saturating_duration_since(*at) < STRANGER_FOR);
        let named = strangers.iter().map(|(node, (zone, _))| (node, zone));
        named
            .map(|(node, zone)| (node.clone(), zone.clone()))
            .collect()
    }

    fn strangers_lock(&self) -> MutexGuard<'_, BTreeMap<String, (String, Instant)>> {
        // Every change is one insertion or removal: a panic elsewhere cannot leave it half done.
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
