//! The connected proxies, as operators see them. Nothing is worked out before somebody asks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    node::Proxy,
    stream::{Refused, Stream, Variant},
};
use crate::{resource::Kind, snapshot::ViewKey};

/// How many characters of a proxy's refusal are kept.
pub(super) const MESSAGE_CHARS_MAX: usize = 1_000;
/// How many names of a kind are listed for a proxy; the rest is counted.
const NAMES_MAX: usize = 100;
/// How many rejected proxies are remembered: whoever reaches the port may make up node ids.
const STRANGERS_MAX: usize = 64;
/// For how long, after the last try: Envoy tries again at least every half minute.
const STRANGER_FOR: Duration = Duration::from_secs(90);

/// One stream of a proxy.
#[derive(Clone, Debug, Serialize)]
pub struct ProxyStatus {
    pub node: String,
    pub zone: String,
    pub role: &'static str,
    #[serde(skip)]
    pub view: ViewKey,
    /// `delta` or `sotw`.
    pub variant: &'static str,
    /// Its zone is no longer configured: it keeps its last state and learns nothing more.
    pub orphaned: bool,
    /// By kind (`cds`, `eds`, `lds`, `rds`, `ecds`).
    pub kinds: BTreeMap<&'static str, KindStatus>,
}

/// What a proxy has of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KindStatus {
    /// Acknowledged resources.
    pub acked: usize,
    /// Versions of the first of them, by name.
    pub versions: BTreeMap<String, String>,
    /// The last refusal, as long as something that was refused is still offered.
    pub nack: Option<Nack>,
}

/// A refusal.
#[derive(Clone, Debug, Serialize)]
pub struct Nack {
    pub resources: Vec<String>,
    pub message: String,
}

/// All streams. Cheap to clone.
#[derive(Clone, Default)]
pub struct Proxies {
    streams: Arc<Mutex<Streams>>,
}

#[derive(Default)]
struct Streams {
    last_id: u64,
    by_id: BTreeMap<u64, Arc<Connected>>,
    /// By node id: the unknown zone that it named, and when.
    strangers: BTreeMap<String, (String, Instant)>,
}

/// A stream whose client has introduced itself.
pub(super) struct Connected {
    pub(super) proxy: Proxy,
    pub(super) variant: Variant,
    stream: Mutex<Stream>,
    orphaned: AtomicBool,
}

impl Connected {
    /// What is remembered of it. Held for one change at a time, and never across a wait.
    pub(super) fn stream(&self) -> MutexGuard<'_, Stream> {
        // A panic ends the stream and with it this.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether the proxy's zone is gone; true if that is news.
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

    fn status(&self) -> ProxyStatus {
        let stream = self.stream();
        let kinds = Kind::ALL.into_iter();
        let kinds = kinds.filter(|kind| stream.is_subscribed(*kind));
        ProxyStatus {
            node: self.proxy.id.clone(),
            zone: self.proxy.view.zone.to_string(),
            role: self.proxy.view.role.as_str(),
            view: self.proxy.view.clone(),
            variant: match self.variant {
                Variant::Delta => "delta",
                Variant::StateOfTheWorld => "sotw",
            },
            orphaned: self.orphaned.load(Ordering::Relaxed),
            kinds: kinds
                .map(|kind| (kind.as_str(), KindStatus::of(&stream, kind)))
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

/// What may be wrong with one stream.
pub struct Health {
    pub node: String,
    pub view: ViewKey,
    pub orphaned: bool,
    /// The refused resources that are still offered, as `kind name`, with the proxy's message.
    pub refusals: Vec<(String, String)>,
}

impl Proxies {
    /// What may be wrong with each stream: far cheaper than [`list`](Proxies::list).
    pub fn health(&self) -> impl Iterator<Item = Health> {
        let streams = self.connected().into_iter();
        streams.map(|connected| Health {
            node: connected.proxy.id.clone(),
            view: connected.proxy.view.clone(),
            orphaned: connected.orphaned.load(Ordering::Relaxed),
            refusals: connected.refusals(),
        })
    }

    /// Every stream's status, in the order of arrival.
    pub fn list(&self) -> Vec<ProxyStatus> {
        let streams = self.connected();
        streams.iter().map(|stream| stream.status()).collect()
    }

    /// Every stream, in the order of arrival. Not under the lock: they come and go meanwhile.
    pub(super) fn connected(&self) -> Vec<Arc<Connected>> {
        self.lock().by_id.values().cloned().collect()
    }

    /// The first thing that a proxy refuses, with its message.
    pub fn refusal_of(&self, node: &str) -> Option<String> {
        let streams = self.connected().into_iter();
        let mut of_node = streams.filter(|connected| connected.proxy.id == node);
        let refused = of_node.find_map(|connected| connected.refusals().into_iter().next());
        refused.map(|(resource, message)| format!("{resource}: {message}"))
    }

    /// A proxy of a zone that is not configured was rejected.
    pub(crate) fn reject(&self, node: &str, zone: &str, now: Instant) {
        let strangers = &mut self.lock().strangers;
        strangers.insert(node.to_owned(), (zone.to_owned(), now));
        while strangers.len() > STRANGERS_MAX {
            let oldest = strangers.iter().min_by_key(|(_, (_, at))| *at);
            let Some(oldest) = oldest.map(|(node, _)| node.clone()) else {
                return;
            };
            strangers.remove(&oldest);
        }
    }

    /// The proxies that were rejected lately and did not come back with a known zone, and the zones that they name.
    pub fn strangers(&self, now: Instant) -> Vec<(String, String)> {
        let strangers = &mut self.lock().strangers;
        strangers.retain(|_, (_, at)| now.saturating_duration_since(*at) < STRANGER_FOR);
        let named = strangers.iter().map(|(node, (zone, _))| (node, zone));
        named
            .map(|(node, zone)| (node.clone(), zone.clone()))
            .collect()
    }

    /// How many streams are open.
    pub fn count(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Enters a stream; it leaves when the entry is dropped.
    pub(super) fn enter(&self, proxy: Proxy, variant: Variant, stream: Stream) -> Entry {
        let connected = Arc::new(Connected {
            proxy,
            variant,
            stream: Mutex::new(stream),
            orphaned: AtomicBool::new(false),
        });
        let mut streams = self.lock();
        streams.strangers.remove(&connected.proxy.id);
        streams.last_id += 1;
        let id = streams.last_id;
        streams.by_id.insert(id, Arc::clone(&connected));
        Entry {
            proxies: self.clone(),
            id,
            connected,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Every change is one insertion or removal: a panic elsewhere cannot have left it half done.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's place in the list.
pub(super) struct Entry {
    proxies: Proxies,
    id: u64,
    connected: Arc<Connected>,
}

impl std::ops::Deref for Entry {
    type Target = Connected;

    fn deref(&self) -> &Connected {
        &self.connected
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.proxies.lock().by_id.remove(&self.id);
    }
}
