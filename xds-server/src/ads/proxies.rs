//! The connected proxies, as operators see them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

use super::{
    node::Proxy,
    stream::{Answer, Stream, Variant},
};
use crate::resource::Kind;

/// How many characters of a proxy's refusal are kept.
const MESSAGE_CHARS_MAX: usize = 1_000;
/// How many names of a kind are listed for a proxy; the rest is counted.
const NAMES_MAX: usize = 100;

/// One stream of a proxy.
#[derive(Clone, Debug, Serialize)]
pub struct ProxyStatus {
    pub node: String,
    pub zone: String,
    pub role: &'static str,
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
    /// The last refusal, as long as nothing newer of this kind was accepted.
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
    by_id: BTreeMap<u64, ProxyStatus>,
}

impl Proxies {
    /// A copy of every stream's status, in the order of arrival.
    pub fn list(&self) -> Vec<ProxyStatus> {
        self.lock().by_id.values().cloned().collect()
    }

    /// How many streams are open.
    pub fn count(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Enters a stream; it leaves when the entry is dropped.
    pub(super) fn enter(&self, proxy: &Proxy, variant: Variant) -> Entry {
        let status = ProxyStatus {
            node: proxy.id.clone(),
            zone: proxy.view.zone.to_string(),
            role: proxy.view.role.as_str(),
            variant: match variant {
                Variant::Delta => "delta",
                Variant::StateOfTheWorld => "sotw",
            },
            orphaned: false,
            kinds: BTreeMap::new(),
        };
        let mut streams = self.lock();
        streams.last_id += 1;
        let id = streams.last_id;
        streams.by_id.insert(id, status);
        Entry {
            proxies: self.clone(),
            id,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Streams> {
        // Every change is one insertion or removal: a panic elsewhere cannot have left it half done.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's place in the list.
pub(super) struct Entry {
    proxies: Proxies,
    id: u64,
}

impl Entry {
    /// Notes what the client has now, after it answered a response of `kind`.
    pub(super) fn answered(&self, kind: Kind, stream: &Stream, answer: &Answer) {
        let nack = match answer {
            Answer::None => return,
            Answer::Accepted => None,
            Answer::Refused(refused) => Some(Nack {
                resources: refused
                    .resources
                    .iter()
                    .take(NAMES_MAX)
                    .map(ToString::to_string)
                    .collect(),
                message: refused.message.chars().take(MESSAGE_CHARS_MAX).collect(),
            }),
        };
        let acked: Vec<_> = stream.acked(kind).collect();
        let status = KindStatus {
            acked: acked.len(),
            versions: acked
                .into_iter()
                .take(NAMES_MAX)
                .map(|(name, version)| (name.to_owned(), version.to_string()))
                .collect(),
            nack,
        };
        if let Some(proxy) = self.proxies.lock().by_id.get_mut(&self.id) {
            proxy.kinds.insert(kind.as_str(), status);
        }
    }
}

impl Entry {
    /// Forgets refusals of what is no longer offered.
    pub(super) fn forget_nacks(&self, is_refused: impl Fn(Kind) -> bool) {
        if let Some(proxy) = self.proxies.lock().by_id.get_mut(&self.id) {
            for kind in Kind::ALL {
                if let Some(status) = proxy.kinds.get_mut(kind.as_str())
                    && !is_refused(kind)
                {
                    status.nack = None;
                }
            }
        }
    }

    /// Notes whether the proxy's zone is gone; true if that is news.
    pub(super) fn set_orphaned(&self, orphaned: bool) -> bool {
        let mut streams = self.proxies.lock();
        let Some(proxy) = streams.by_id.get_mut(&self.id) else {
            return false;
        };
        std::mem::replace(&mut proxy.orphaned, orphaned) != orphaned
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.proxies.lock().by_id.remove(&self.id);
    }
}
