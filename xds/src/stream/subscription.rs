//! A client's resources and subscriptions of one kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{InFlight, Refused, hosts::Hosts};
use crate::{
    resource::{Digest, Kind, Resource, Resources, Version},
    view::View,
};

/// The client's resource under a name.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) what: What,
    pub(super) acked: bool,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// The client knows that there is no such resource.
    Nothing,
    /// A resource of an earlier stream, with its version.
    Known(Version),
    /// A resource that this stream sent.
    Sent(Arc<Resource>),
}

impl Held {
    pub(super) fn sent(resource: &Arc<Resource>, acked: bool) -> Held {
        Held {
            what: What::Sent(Arc::clone(resource)),
            acked,
        }
    }

    pub(super) fn version(&self) -> Option<Version> {
        match &self.what {
            What::Nothing => None,
            What::Known(version) => Some(*version),
            What::Sent(resource) => Some(resource.version),
        }
    }

    pub(super) fn resource(&self) -> Option<&Arc<Resource>> {
        match &self.what {
            What::Sent(resource) => Some(resource),
            What::Nothing | What::Known(_) => None,
        }
    }

    fn digest(&self, name: &str) -> Digest {
        match &self.what {
            What::Nothing => Digest::default(),
            What::Known(version) => Digest::of(name, *version),
            What::Sent(resource) => resource.digest(),
        }
    }
}

/// A client's subscription to one kind, and its resources of that kind.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<Arc<str>>,
    held: BTreeMap<Arc<str>, Held>,
    /// The digest of all held resources.
    digest: Digest,
    /// By name, rejected versions. They are not sent again.
    pub(super) rejected: BTreeMap<Arc<str>, Version>,
    /// The last rejected version under a name, until another one is accepted. If Envoy gets the
    /// same bytes again, it treats them as its present resource: it acknowledges them, but does not
    /// apply them.
    pub(super) refused_last: BTreeMap<Arc<str>, (Version, Arc<str>)>,
    /// The last rejection, until every rejected resource has changed, or is accepted.
    pub(super) refusal: Option<Refused>,
    /// The names that may have to be sent or removed; only these are checked for due updates. A
    /// change costs only the names that it touches, and a slow client costs one set.
    pub(super) pending: BTreeSet<Arc<str>>,
    /// To be sent again, or reported as gone again.
    pub(super) repeat: BTreeSet<Arc<str>>,
    pub(super) in_flight: Option<InFlight>,
    /// The nonce of the last response that was acknowledged or refused; 0 for none.
    pub(super) settled_nonce: u64,
    /// The client has subscribed and waits for its first answer, even an empty one.
    pub(super) awaits_answer: bool,
    pub(super) subscribed: bool,
    /// The client has named a resource, so that naming none no longer means everything.
    pub(super) named: bool,
    /// For virtual hosts: the aliases that were requested. `names` are then the hosts' own.
    pub(super) hosts: Hosts,
    /// The times to live of the client's resources have to be renewed.
    pub(super) renewal: bool,
}

impl Subscription {
    pub(super) fn wants(&self, name: &Arc<str>) -> bool {
        self.wildcard || self.names.contains(name)
    }

    pub(super) fn has(&self, resource: &Resource) -> bool {
        self.held
            .get(&resource.name)
            .is_some_and(|held| held.version() == Some(resource.version))
    }

    pub(super) fn refuses(&self, resource: &Resource) -> bool {
        self.rejected.get(&resource.name) == Some(&resource.version)
    }

    pub(super) fn held(&self) -> &BTreeMap<Arc<str>, Held> {
        &self.held
    }

    /// The version of all held resources.
    pub(super) fn version(&self) -> Version {
        self.digest.version()
    }

    /// The client has this resource now. Returns the previous one.
    pub(super) fn hold(&mut self, name: Arc<str>, held: Held) -> Option<Held> {
        self.digest = self.digest.plus(held.digest(&name));
        let before = self.held.insert(Arc::clone(&name), held);
        if let Some(before) = &before {
            self.digest = self.digest.minus(before.digest(&name));
        }
        before
    }

    /// The client reports this resource from an earlier stream.
    pub(super) fn bring(&mut self, name: Arc<str>, version: Version) {
        let held = Held {
            what: What::Known(version),
            acked: true,
        };
        self.pending.insert(Arc::clone(&name));
        self.hold(name, held);
    }

    /// The client has no resource under this name any more, and nothing is known of it.
    pub(super) fn release(&mut self, name: &str) -> Option<Held> {
        let before = self.held.remove(name)?;
        self.digest = self.digest.minus(before.digest(name));
        Some(before)
    }

    /// The resource that was sent under this name was accepted.
    pub(super) fn accepted(&mut self, name: &str) {
        if let Some(held) = self.held.get_mut(name) {
            held.acked = true;
        }
    }

    /// Allows the rejected resources to be sent again, although they have not changed.
    pub(super) fn pardon(&mut self) {
        self.refused_last.clear();
        let refused = std::mem::take(&mut self.rejected);
        self.pending.extend(refused.into_keys());
    }

    pub(super) fn release_unless(&mut self, stays: impl Fn(&Arc<str>) -> bool) {
        let gone: Vec<Arc<str>> = (self.held.keys().filter(|name| !stays(name)).cloned()).collect();
        for name in gone {
            self.release(&name);
        }
        self.pending.retain(|name| stays(name));
        self.repeat.retain(|name| stays(name));
    }

    /// Records that the offered resources under these names have changed.
    pub(super) fn changed(&mut self, kind: Kind, names: &[Arc<str>], offered: &Resources) {
        for name in names {
            if self.wants(name) || self.held.contains_key(name) {
                self.pending.insert(Arc::clone(name));
            }
            if let Some(version) = self.rejected.get(name)
                && offered.get(name).map(|resource| resource.version) != Some(*version)
            {
                self.rejected.remove(name);
            }
            self.refuse_again(kind, name, offered);
        }
        if self.rejected.is_empty() {
            self.refusal = None;
        }
    }

    /// A resource that was rejected last and is offered again is still rejected.
    fn refuse_again(&mut self, kind: Kind, name: &Arc<str>, offered: &Resources) {
        let Some((version, message)) = self.refused_last.get(name) else {
            return;
        };
        match offered.get(name) {
            None => drop(self.refused_last.remove(name)),
            Some(resource) if resource.version == *version => {
                self.refusal = Some(Refused {
                    kind,
                    resources: vec![Arc::clone(name)],
                    message: message.to_string(),
                });
                self.rejected.insert(Arc::clone(name), *version);
            }
            Some(_) => {}
        }
    }

    /// Records a wildcard subscription.
    pub(super) fn want_all(&mut self, offered: &Resources) {
        self.wildcard = true;
        let missing = offered.values().filter(|resource| !self.has(resource));
        let missing: Vec<Arc<str>> = missing.map(|resource| Arc::clone(&resource.name)).collect();
        self.pending.extend(missing);
        // Resources from an earlier stream may not exist any more.
        let gone = self.held.keys().filter(|name| !offered.contains_key(*name));
        self.pending.extend(gone.cloned().collect::<Vec<_>>());
    }

    /// The next response of this kind has to contain this name, too.
    pub(super) fn say_again(&mut self, name: &Arc<str>) {
        self.repeat.insert(Arc::clone(name));
        self.pending.insert(Arc::clone(name));
    }
}

/// The name as stored in the view, so that streams share it; otherwise a new copy.
pub(super) fn shared_name(view: &View, kind: crate::resource::Kind, name: &str) -> Arc<str> {
    let offered = view.of(kind).get(name);
    offered.map_or_else(|| Arc::from(name), |resource| Arc::clone(&resource.name))
}
