//! Selects the view of a proxy; [`xds`] serves it.

pub mod conditions;
mod events;
pub(crate) mod node;
pub mod proxies;

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::time::Instant;
use tonic::Status;
use tracing::warn;
use xds::stream::Variant;

use crate::{
    access_rules::AccessRules,
    authority::Homes,
    metrics::{Metrics, ReasonLabel},
    net::tls::Peer,
    snapshot::{Snapshot, ViewKey},
};
use events::Counted;
use node::{InvalidNode, Proxy};
use proxies::Proxies;

/// The current snapshot; none before the first.
pub type Snapshots = xds::Snapshots<Snapshot>;

/// Selects the view of each proxy by its zone and role. Cheap to clone.
#[derive(Clone)]
pub struct ZoneViews {
    snapshots: Snapshots,
    proxies: Proxies,
    metrics: Arc<Metrics>,
    rules: AccessRules,
    homes: Homes,
}

impl ZoneViews {
    /// Lists the proxies in `proxies`.
    pub fn new(snapshots: Snapshots, proxies: Proxies, metrics: Metrics) -> ZoneViews {
        ZoneViews {
            snapshots,
            proxies,
            metrics: Arc::new(metrics),
            rules: AccessRules::default(),
            homes: Homes::unknown(),
        }
    }

    /// Adds access rules for views. Without them any client may request any view.
    pub fn behind(self, rules: AccessRules) -> ZoneViews {
        ZoneViews { rules, ..self }
    }

    /// Adds the knowledge of which zones have a control plane of their own. Without it every client
    /// stays.
    pub fn among(self, homes: Homes) -> ZoneViews {
        ZoneViews { homes, ..self }
    }

    /// The discovery services.
    pub fn into_server(self) -> xds::Server<ZoneViews> {
        let events = Counted::new(Arc::clone(&self.metrics));
        let clients = self.proxies.clients().clone();
        xds::Server::new(self, events).listing_in(clients)
    }

    fn introduce(
        &self,
        peer: &Peer,
        node: Option<&Node>,
        variant: Variant,
        snapshot: &Snapshot,
    ) -> Result<Proxy, InvalidNode> {
        let rules = self.rules.rules();
        let permits = |zone: &str, role| rules.view(&peer.caller, zone, role);
        let proxy = Proxy::introduce(node, snapshot, permits)?;
        if let Some(view) = snapshot.view(&proxy.view) {
            proxy.can_use(view, variant)?;
        }
        Ok(proxy)
    }

    /// Counts and logs a rejection.
    fn reject(&self, error: InvalidNode) -> Status {
        warn!(%error, "stream refused");
        if let InvalidNode::UnknownZone { id, zone, .. } = &error {
            self.proxies.reject(id, zone, Instant::now());
        }
        let reason = error.reason();
        let refused = &self.metrics.streams_refused;
        refused.get_or_create(&ReasonLabel { reason }).inc();
        error.into()
    }
}

impl xds::Discovery for ZoneViews {
    type Peer = Peer;
    type Key = ViewKey;
    type Snapshot = Snapshot;

    fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }

    fn admit(
        &self,
        peer: &Peer,
        node: Option<&Node>,
        variant: Variant,
        snapshot: &Snapshot,
    ) -> Result<ViewKey, Status> {
        match self.introduce(peer, node, variant, snapshot) {
            Ok(proxy) => {
                self.proxies.accept(&proxy.id);
                Ok(proxy.view)
            }
            Err(error) => Err(self.reject(error)),
        }
    }

    fn view(&self, snapshot: &Arc<Snapshot>, key: &ViewKey) -> Option<Arc<xds::View>> {
        Some(Arc::clone(snapshot.view(key)?.resources()))
    }

    fn is_in_doubt(&self, snapshot: &Snapshot) -> bool {
        snapshot.is_bare()
    }

    fn moves_away(
        &self,
        key: &ViewKey,
        node_id: &str,
    ) -> impl Future<Output = Status> + Send + Unpin + 'static {
        self.homes.sent_home(&key.zone, node_id)
    }
}
