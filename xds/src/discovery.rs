//! The two traits by which a server is told apart from its surroundings: [`Discovery`] says which
//! view a client may have, and [`Events`] hears of each event.

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

/// How many names of refused resources are logged.
const REFUSED_NAMES_LOGGED: usize = 10;

/// Where streams find the present snapshot; none before the first. When its sender is dropped, all streams end.
pub type Snapshots<S> = watch::Receiver<Option<Arc<S>>>;

/// Which view a client may have.
///
/// A clone goes with each stream, so a clone should be cheap.
pub trait Discovery: Clone + Send + Sync + 'static {
    /// The other end of a connection, as the listener knows it: an address, or a certificate's names.
    type Peer: Clone + Send + Sync + 'static;
    /// The key of a client's view. Kept with the client.
    type Key: Key;
    /// All views at one moment.
    type Snapshot: Send + Sync + 'static;

    /// The snapshots, as they come. Called once.
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

    /// The view of an admitted client; none where it is no longer served, and keeps its resources.
    fn view(&self, snapshot: &Arc<Self::Snapshot>, key: &Self::Key) -> Option<Arc<View>>;

    /// Whether the snapshot may be empty by mistake, as after a loss of data. A client that comes
    /// with other clusters or endpoints then gets nothing, and keeps its resources, until a
    /// snapshot is not in doubt.
    fn is_in_doubt(&self, snapshot: &Self::Snapshot) -> bool {
        let _ = snapshot;
        false
    }

    /// Completes when a client had better ask another server; its stream then ends with the status.
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
    /// The node that client status (CSDS) tells of a client, but for its id.
    fn node(&self) -> Node {
        Node::default()
    }
}

/// Of a server that has one view for all.
impl Key for () {}

/// One view for all clients alike.
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
                "virtual hosts on demand are for delta alone: set api_type: DELTA_GRPC in the proxy's bootstrap",
            )),
            Variant::StateOfTheWorld | Variant::Delta => Ok(()),
        }
    }

    fn view(&self, view: &Arc<View>, (): &()) -> Option<Arc<View>> {
        Some(Arc::clone(view))
    }
}

/// The events of a server's streams, to be counted and logged. Each method may be called by many
/// threads at once, and holds up the stream that calls it. Unless told otherwise, they log the
/// events of interest to a person.
pub trait Events<K: Key>: Send + Sync + 'static {
    /// A client was admitted.
    fn connected(&self, client: &Client<K>) {
        info!(node = client.node_id, key = ?client.key, variant = ?client.variant, "client connected");
    }

    /// An admitted client's stream has ended.
    fn disconnected(&self, client: &Client<K>) {
        info!(node = client.node_id, "client disconnected");
    }

    /// A client's view is gone: it keeps its last state and learns nothing more.
    fn orphaned(&self, client: &Client<K>) {
        warn!(node = client.node_id, key = ?client.key, "client has no view any more");
    }

    /// A response is about to be sent: so many resources, and so many times to live renewed.
    fn responds(&self, kind: Kind, resources: usize, renewals: usize) {
        let _ = (kind, resources, renewals);
    }

    /// A client refused resources (NACK).
    fn refused(&self, node_id: &str, kind: Kind, refused: &Refused) {
        warn_of_refusal(node_id, kind, refused);
    }

    /// A client is sent nothing, since the snapshot [is in doubt](Discovery::is_in_doubt).
    fn held_back(&self, node_id: &str) {
        warn!(
            node = node_id,
            "the client gets no resources: it holds other clusters or endpoints, and the snapshot is in doubt"
        );
    }

    /// So many streams are held back now. Called in the order in which the number changes.
    fn held_back_now(&self, streams: usize) {
        let _ = streams;
    }
}

/// The log line of a refusal (NACK), with its first few names.
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

/// Logs, and counts nothing.
impl<K: Key> Events<K> for () {}
