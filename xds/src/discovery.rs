//! The two traits that connect a server to its surroundings: [`Discovery`] selects a client's view,
//! and [`Events`] receives each event.

use std::{fmt, future::pending, sync::Arc};

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::sync::watch;
use tonic::Status;
use tracing::{info, warn};

use crate::{
    clients::Client,
    resource::Kind,
    stream::{Refused, Variant},
    view::View,
};

/// How many names of rejected resources are logged.
const REFUSED_NAMES_LOGGED: usize = 10;

/// The current snapshot; none before the first. All streams end when its sender is dropped.
pub type Snapshots<S> = watch::Receiver<Option<Arc<S>>>;

/// Selects the view of a client.
///
/// Each stream has a clone, so cloning should be cheap.
pub trait Discovery: Clone + Send + Sync + 'static {
    /// The other end of a connection, as the listener knows it: an address, or the names in a
    /// certificate.
    type Peer: Clone + Send + Sync + 'static;
    /// The key of a client's view. Kept with the client.
    type Key: Key;
    /// All views at one moment.
    type Snapshot: Send + Sync + 'static;

    /// The stream of snapshots. Called once.
    fn snapshots(&self) -> Snapshots<Self::Snapshot>;

    /// Admits a client by the node of its first request.
    ///
    /// # Errors
    ///
    /// The status with which the stream ends. Its message reaches the proxy's log, so it should
    /// name the change to make there.
    fn admit(
        &self,
        peer: &Self::Peer,
        node: Option<&Node>,
        variant: Variant,
        snapshot: &Self::Snapshot,
    ) -> Result<Self::Key, Status>;

    /// The view of an admitted client; none if it is no longer served. Then it keeps its resources.
    fn view(&self, snapshot: &Arc<Self::Snapshot>, key: &Self::Key) -> Option<Arc<View>>;

    /// Whether the snapshot may be empty by mistake, for example after a loss of data. A client
    /// that arrives with other clusters or endpoints then gets no response, and keeps its
    /// resources, until a snapshot is not in doubt.
    fn is_in_doubt(&self, snapshot: &Self::Snapshot) -> bool {
        let _ = snapshot;
        false
    }

    /// Completes when a client should connect to another server; its stream then ends with the
    /// status.
    fn moves_away(
        &self,
        key: &Self::Key,
        node_id: &str,
    ) -> impl Future<Output = Status> + Send + Unpin + 'static {
        let _ = (key, node_id);
        pending()
    }
}

/// The key of a client's view.
pub trait Key: Clone + fmt::Debug + Ord + Send + Sync + 'static {
    /// The node that client status (CSDS) reports for a client, without its id.
    fn node(&self) -> Node {
        Node::default()
    }
}

/// The key of a server with a single view.
impl Key for () {}

/// One view for all clients.
impl Discovery for Snapshots<View> {
    type Peer = ();
    type Key = ();
    type Snapshot = View;

    fn snapshots(&self) -> Snapshots<View> {
        self.clone()
    }

    fn admit(&self, _: &(), _: Option<&Node>, variant: Variant, view: &View) -> Result<(), Status> {
        match variant {
            Variant::StateOfTheWorld if view.is_on_demand() => Err(Status::invalid_argument(
                "virtual hosts on demand need the delta variant: set api_type: DELTA_GRPC in the proxy's bootstrap",
            )),
            Variant::StateOfTheWorld | Variant::Delta => Ok(()),
        }
    }

    fn view(&self, view: &Arc<View>, (): &()) -> Option<Arc<View>> {
        Some(Arc::clone(view))
    }
}

/// Receives the events of a server's streams, to count and log them. Several threads may call each
/// method at once, and a call blocks the stream. The default methods log the events that matter to
/// operators.
pub trait Events<K: Key>: Send + Sync + 'static {
    /// A client was admitted.
    fn connected(&self, client: &Client<K>) {
        info!(node = client.node_id, key = ?client.key, variant = ?client.variant, "client connected");
    }

    /// An admitted client's stream has ended.
    fn disconnected(&self, client: &Client<K>) {
        info!(node = client.node_id, "client disconnected");
    }

    /// A client's view is gone: it keeps its last state and gets no updates.
    fn orphaned(&self, client: &Client<K>) {
        warn!(node = client.node_id, key = ?client.key, "client has no view any more");
    }

    /// A response is about to be sent, with these numbers of resources and of renewed times to
    /// live.
    fn responds(&self, kind: Kind, resources: usize, renewals: usize) {
        let _ = (kind, resources, renewals);
    }

    /// A client rejected resources (NACK).
    fn refused(&self, node_id: &str, kind: Kind, refused: &Refused) {
        warn_of_refusal(node_id, kind, refused);
    }

    /// A client gets no response, since the snapshot [is in doubt](Discovery::is_in_doubt).
    fn held_back(&self, node_id: &str) {
        warn!(
            node = node_id,
            "the client gets no resources: it holds other clusters or endpoints, and the snapshot is in doubt"
        );
    }

    /// The number of streams that are held back has changed. Calls are in the order of the changes.
    fn held_back_now(&self, streams: usize) {
        let _ = streams;
    }
}

/// The log line of a rejection (NACK), with its first few names.
pub fn warn_of_refusal(node_id: &str, kind: Kind, refused: &Refused) {
    warn!(
        node = node_id,
        kind = kind.as_str(),
        resources = ?refused.resources.iter().take(REFUSED_NAMES_LOGGED).collect::<Vec<_>>(),
        count = refused.resources.len(),
        message = refused.message,
        "rejected: the proxy keeps the previous version, and gets this resource again once it changes (a listener is retried)"
    );
}

/// Logs only.
impl<K: Key> Events<K> for () {}
