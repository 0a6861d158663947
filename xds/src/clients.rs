//! The connected clients, as operators see them. The list is computed only on request.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    discovery::Key,
    resource::Kind,
    stream::{Refused, Stream, Variant},
};

/// How many characters of a client's rejection are kept.
pub(super) const MESSAGE_CHARS_MAX: usize = 1_000;
/// How many names of a kind are listed for a client; the others are only counted.
const NAMES_MAX: usize = 100;
/// How many characters of a node id are kept.
const NODE_ID_CHARS_MAX: usize = 128;

/// An admitted client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client<K> {
    /// The beginning of its `node.id`.
    pub node_id: String,
    /// The key of its view.
    pub key: K,
    /// The protocol variant of its stream.
    pub variant: Variant,
}

impl<K> Client<K> {
    pub(super) fn new(node_id: &str, key: K, variant: Variant) -> Client<K> {
        Client {
            node_id: node_id.chars().take(NODE_ID_CHARS_MAX).collect(),
            key,
            variant,
        }
    }
}

/// One stream of a client.
#[derive(Clone, Debug)]
pub struct ClientStatus<K> {
    /// Its identity.
    pub client: Client<K>,
    /// Its view is gone: it keeps its last state and gets no updates.
    pub orphaned: bool,
    /// By kind, for the kinds that it has subscribed to.
    pub kinds: BTreeMap<Kind, KindStatus>,
}

/// A client's state of one kind.
#[derive(Clone, Debug, Default)]
pub struct KindStatus {
    /// Acknowledged resources.
    pub acked: usize,
    /// Versions of the first of them, by name.
    pub versions: BTreeMap<String, String>,
    /// The last rejection, while a rejected resource is still offered.
    pub nack: Option<Nack>,
}

/// A rejection.
#[derive(Clone, Debug)]
pub struct Nack {
    /// The first of the rejected resources.
    pub resources: Vec<String>,
    /// The beginning of the client's message.
    pub message: String,
}

/// All streams. Cheap to clone: clones share the list.
pub struct Clients<K> {
    streams: Arc<Mutex<Streams<K>>>,
}

struct Streams<K> {
    last_id: u64,
    by_id: BTreeMap<u64, Arc<Connected<K>>>,
}

/// A stream whose client was admitted.
pub(super) struct Connected<K> {
    pub(super) client: Client<K>,
    stream: Mutex<Stream>,
    orphaned: AtomicBool,
}

impl<K: Key> Connected<K> {
    /// The state of its stream. Locked for one change at a time, and never across an await.
    pub(super) fn stream(&self) -> MutexGuard<'_, Stream> {
        // A panic ends the stream, and this state with it.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records whether the client's view is gone; true if that is new.
    pub(super) fn set_orphaned(&self, orphaned: bool) -> bool {
        self.orphaned.swap(orphaned, Ordering::Relaxed) != orphaned
    }

    fn refusals(&self) -> Vec<(String, String)> {
        let stream = self.stream();
        let refusals = Kind::ALL.into_iter();
        let refusals = refusals.filter_map(|kind| Some((kind, stream.refusal(kind)?)));
        let each = refusals.flat_map(|(kind, refused)| {
            let nack = Nack::of(refused);
            let names = nack.resources.into_iter();
            names.map(move |name| (format!("{} {name}", kind.as_str()), nack.message.clone()))
        });
        each.collect()
    }

    fn status(&self) -> ClientStatus<K> {
        let stream = self.stream();
        let kinds = Kind::ALL.into_iter();
        let kinds = kinds.filter(|kind| stream.is_subscribed(*kind));
        ClientStatus {
            client: self.client.clone(),
            orphaned: self.orphaned.load(Ordering::Relaxed),
            kinds: kinds
                .map(|kind| (kind, KindStatus::of(&stream, kind)))
                .collect(),
        }
    }
}

impl KindStatus {
    fn of(stream: &Stream, kind: Kind) -> KindStatus {
        let acked = || stream.held(kind).filter(|(_, _, acked)| *acked);
        KindStatus {
            acked: acked().count(),
            versions: acked()
                .take(NAMES_MAX)
                .map(|(name, version, _)| (name.to_owned(), version.to_string()))
                .collect(),
            nack: stream.refusal(kind).map(Nack::of),
        }
    }
}

impl Nack {
    fn of(refused: &Refused) -> Nack {
        let resources = refused.resources.iter().take(NAMES_MAX);
        Nack {
            resources: resources.map(ToString::to_string).collect(),
            message: refused.message.chars().take(MESSAGE_CHARS_MAX).collect(),
        }
    }
}

/// The possible faults of one stream.
pub struct Health<K> {
    /// [`Client::node_id`].
    pub node: String,
    /// [`Client::key`].
    pub key: K,
    /// [`ClientStatus::orphaned`].
    pub orphaned: bool,
    /// The rejected resources that are still offered, as `kind name`, with the client's message.
    pub refusals: Vec<(String, String)>,
}

impl<K> Clone for Clients<K> {
    fn clone(&self) -> Clients<K> {
        Clients {
            streams: Arc::clone(&self.streams),
        }
    }
}

impl<K> Default for Clients<K> {
    fn default() -> Clients<K> {
        let streams = Streams {
            last_id: 0,
            by_id: BTreeMap::new(),
        };
        Clients {
            streams: Arc::new(Mutex::new(streams)),
        }
    }
}

impl<K: Key> Clients<K> {
    /// The possible faults of each stream: far cheaper than [`list`](Clients::list).
    pub fn health(&self) -> impl Iterator<Item = Health<K>> {
        let streams = self.connected().into_iter();
        streams.map(|connected| Health {
            node: connected.client.node_id.clone(),
            key: connected.client.key.clone(),
            orphaned: connected.orphaned.load(Ordering::Relaxed),
            refusals: connected.refusals(),
        })
    }

    /// Every stream's status, in the order of arrival.
    pub fn list(&self) -> Vec<ClientStatus<K>> {
        let streams = self.connected();
        streams.iter().map(|stream| stream.status()).collect()
    }

    /// Every stream, in the order of arrival. A copy: streams come and go meanwhile.
    pub(super) fn connected(&self) -> Vec<Arc<Connected<K>>> {
        self.lock().by_id.values().cloned().collect()
    }

    /// The first resource that a client rejects, with its message.
    pub fn refusal_of(&self, node_id: &str) -> Option<String> {
        let streams = self.connected().into_iter();
        let mut of_node = streams.filter(|connected| connected.client.node_id == node_id);
        let refused = of_node.find_map(|connected| connected.refusals().into_iter().next());
        refused.map(|(resource, message)| format!("{resource}: {message}"))
    }
}

impl<K> Clients<K> {
    /// The number of open streams.
    pub fn count(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Adds a stream; dropping the entry removes it.
    pub(super) fn enter(&self, client: Client<K>, stream: Stream) -> Entry<K> {
        let connected = Arc::new(Connected {
            client,
            stream: Mutex::new(stream),
            orphaned: AtomicBool::new(false),
        });
        let mut streams = self.lock();
        streams.last_id += 1;
        let id = streams.last_id;
        streams.by_id.insert(id, Arc::clone(&connected));
        Entry {
            clients: self.clone(),
            id,
            connected,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams<K>> {
        // Every change is one insertion or removal: a panic elsewhere cannot leave it half done.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's place in the list.
pub(super) struct Entry<K> {
    clients: Clients<K>,
    id: u64,
    connected: Arc<Connected<K>>,
}

impl<K> std::ops::Deref for Entry<K> {
    type Target = Connected<K>;

    fn deref(&self) -> &Connected<K> {
        &self.connected
    }
}

impl<K> Drop for Entry<K> {
    fn drop(&mut self) {
        self.clients.lock().by_id.remove(&self.id);
    }
}
