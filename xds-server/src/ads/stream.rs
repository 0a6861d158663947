//! What one stream's client has, wants and refused, and what it is to be sent next.
//!
//! Pure: requests and views go in, responses come out of [`Stream::next_due`]. At most one response of a kind is unanswered, so
//! a slow client costs one pending state and no queue, and bursts of changes collapse by themselves.
//!
//! **Make before break.** Routes and the filter's policy wait until every cluster that they use has its endpoints
//! acknowledged: Envoy asks for the endpoints of a cluster only once it has taken the cluster, so that is the proof that it
//! can use it. Clusters go last, when routes and policy that no longer use them are acknowledged, and so do the last healthy
//! endpoints of a cluster: until then requests may still be sent there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    resource::{Kind, Resource, Version},
    snapshot::View,
};

/// Which of the two protocol variants a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Delta,
    StateOfTheWorld,
}

/// A response, before it has its wire form.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    pub kind: Kind,
    pub nonce: u64,
    /// Of everything that the client has of this kind after this response.
    pub version: Version,
    /// In order of names.
    pub resources: Vec<Arc<Resource>>,
    /// Names that do not exist (any more). In the state of the world their absence says it.
    pub removed: Vec<Arc<str>>,
}

/// A client's refusal of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub kind: Kind,
    /// The resources that the client's message names, or all of the response where it names none.
    pub resources: Vec<Arc<str>>,
    pub message: String,
}

/// How a request was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It says nothing about a response.
    None,
    Accepted,
    Refused(Refused),
}

/// What a request says about an earlier response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'m> {
    /// None: the first request of its kind, or (delta) a mere change of the subscription.
    None,
    Ack {
        nonce: &'m str,
    },
    Nack {
        nonce: &'m str,
        message: &'m str,
    },
}

/// What the client has under a name.
#[derive(Clone, Debug)]
struct Held {
    /// None: it was told that there is no such resource.
    version: Option<Version>,
    /// The resource, if this stream sent it; after a reconnect only its version is known.
    resource: Option<Arc<Resource>>,
    acked: bool,
}

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    /// What was sent, and what the client had before, which it keeps if it refuses. Without removals: a client has no way
    /// to keep what is gone.
    changes: Vec<(Arc<str>, Option<Held>)>,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    held: BTreeMap<Arc<str>, Held>,
    /// Not sent again while the version is this one.
    rejected: BTreeMap<Arc<str>, Version>,
    /// To be sent again, although the client has it.
    repeat: BTreeSet<Arc<str>>,
    in_flight: Option<InFlight>,
    /// The nonce of the last response that was acknowledged or refused; 0 for none.
    settled_nonce: u64,
    /// The client has subscribed and waits for its first answer, be it empty.
    awaits_answer: bool,
    subscribed: bool,
}

impl Subscription {
    fn wants(&self, name: &Arc<str>) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn has(&self, resource: &Resource) -> bool {
        self.held
            .get(&resource.name)
            .is_some_and(|held| held.version == Some(resource.version))
    }

    fn refuses(&self, resource: &Resource) -> bool {
        self.rejected.get(&resource.name) == Some(&resource.version)
    }
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    variant: Variant,
    view: Arc<View>,
    kinds: [Subscription; Kind::ALL.len()],
    last_nonce: u64,
}

impl Stream {
    /// A stream whose client is to have `view`.
    pub fn new(variant: Variant, view: Arc<View>) -> Stream {
        Stream {
            variant,
            view,
            kinds: Default::default(),
            last_nonce: 0,
        }
    }

    /// The client is to have `view` from now on.
    pub fn set_view(&mut self, view: Arc<View>) {
        self.view = view;
        for kind in Kind::ALL {
            let resources = self.view.of(kind);
            self.kinds[kind.index()].rejected.retain(|name, version| {
                resources
                    .get(name)
                    .is_some_and(|resource| resource.version == *version)
            });
        }
    }

    /// Takes what a request says about the last response of `kind`. `Err` for a nonce that is not the last one's: the
    /// request was sent before that response arrived, and the protocol says to ignore what it acknowledges.
    pub fn settle(&mut self, kind: Kind, verdict: &Verdict<'_>) -> Result<Answer, StaleNonce> {
        let subscription = &mut self.kinds[kind.index()];
        let (nonce, message) = match verdict {
            Verdict::None => return Ok(Answer::None),
            Verdict::Ack { nonce } => (*nonce, None),
            Verdict::Nack { nonce, message } => (*nonce, Some(*message)),
        };
        let matches = |in_flight: &mut InFlight| in_flight.nonce.to_string() == nonce;
        let Some(in_flight) = subscription.in_flight.take_if(matches) else {
            return Err(StaleNonce);
        };
        subscription.settled_nonce = in_flight.nonce;
        let Some(message) = message else {
            for (name, _) in in_flight.changes {
                if let Some(held) = subscription.held.get_mut(&name) {
                    held.acked = true;
                }
            }
            return Ok(Answer::Accepted);
        };
        // Envoy takes the good resources of a response and names the bad ones in its message. Nothing in the protocol but
        // that text tells them apart; where no name is found in it, all of them count as refused.
        let named = |name: &Arc<str>| mentions(message, name);
        let some_named = in_flight.changes.iter().any(|(name, _)| named(name));
        let mut refused = Vec::new();
        for (name, before) in in_flight.changes {
            if some_named && !named(&name) {
                if let Some(held) = subscription.held.get_mut(&name) {
                    held.acked = true;
                }
                continue;
            }
            let sent = match before {
                Some(before) => subscription.held.insert(Arc::clone(&name), before),
                None => subscription.held.remove(&name),
            };
            if let Some(version) = sent.and_then(|held| held.version) {
                subscription.rejected.insert(Arc::clone(&name), version);
            }
            refused.push(name);
        }
        Ok(Answer::Refused(Refused {
            kind,
            resources: refused,
            message: message.to_owned(),
        }))
    }

    /// Whether `nonce` is the last response's of this kind, and that is settled already.
    pub fn last_answered(&self, kind: Kind, nonce: &str) -> bool {
        let subscription = &self.kinds[kind.index()];
        subscription.in_flight.is_none() && subscription.settled_nonce.to_string() == nonce
    }

    /// Delta: changes the subscription. `initial` are the versions of what the client has from an earlier stream.
    pub fn subscribe_delta<'n>(
        &mut self,
        kind: Kind,
        subscribe: impl Iterator<Item = &'n str>,
        unsubscribe: impl Iterator<Item = &'n str>,
        initial: impl Iterator<Item = (&'n str, Version)>,
    ) {
        let subscription = &mut self.kinds[kind.index()];
        let first = !subscription.subscribed;
        subscription.subscribed = true;
        let mut names_given = false;
        for name in subscribe {
            names_given = true;
            if name == "*" {
                subscription.wildcard = true;
            } else {
                let name: Arc<str> = Arc::from(name);
                // Who asks again for what it has is sent it again.
                subscription.held.remove(&name);
                subscription.names.insert(name);
            }
        }
        if first && !names_given && kind.full_state() {
            // The older way to say "*".
            subscription.wildcard = true;
        }
        subscription.awaits_answer |= first && subscription.wildcard;
        for name in unsubscribe {
            if name == "*" {
                subscription.wildcard = false;
                let names = &subscription.names;
                subscription.held.retain(|name, _| names.contains(name));
            } else if subscription.names.remove(name) && !subscription.wildcard {
                subscription.held.remove(name);
            }
        }
        for (name, version) in initial {
            subscription.awaits_answer = false;
            let held = Held {
                version: Some(version),
                resource: None,
                acked: true,
            };
            subscription.held.insert(Arc::from(name), held);
        }
    }

    /// State of the world: replaces the subscription. `version` is what the client says it has, empty for nothing.
    pub fn subscribe_sotw<'n>(
        &mut self,
        kind: Kind,
        names: impl Iterator<Item = &'n str>,
        version: &str,
    ) {
        let subscription = &mut self.kinds[kind.index()];
        let first = !subscription.subscribed;
        subscription.subscribed = true;
        let names: BTreeSet<Arc<str>> = names.map(Arc::from).collect();
        let explicit = names.contains("*");
        let legacy = names.is_empty() && kind.full_state() && (first || subscription.wildcard);
        subscription.wildcard = explicit || legacy;
        let wanted = |name: &Arc<str>| explicit || legacy || names.contains(name);
        subscription.held.retain(|name, _| wanted(name));
        subscription.names = names;
        if !first {
            return;
        }
        subscription.awaits_answer = kind.full_state();
        let subscription = &self.kinds[kind.index()];
        let wanted: Vec<Arc<Resource>> = self
            .view
            .of(kind)
            .values()
            .filter(|resource| subscription.wants(&resource.name))
            .cloned()
            .collect();
        if Version::of_set(wanted.iter().map(Arc::as_ref)).to_string() == version {
            // It came from another replica, or from before a restart, and has everything.
            let subscription = &mut self.kinds[kind.index()];
            subscription.awaits_answer = false;
            for resource in wanted {
                subscription
                    .held
                    .insert(Arc::clone(&resource.name), held(&resource, true));
            }
        }
    }

    /// The next response to send, if any is due. Call it until there is none, after every request and every new view.
    pub fn next_due(&mut self) -> Option<Outgoing> {
        Kind::ALL.into_iter().find_map(|kind| self.next_of(kind))
    }

    fn next_of(&mut self, kind: Kind) -> Option<Outgoing> {
        let subscription = &self.kinds[kind.index()];
        if !subscription.subscribed || subscription.in_flight.is_some() {
            return None;
        }
        let updates = if self.may_update(kind) {
            self.updates(kind)
        } else {
            Vec::new()
        };
        let removed = self.removals(kind);
        if updates.is_empty() && removed.is_empty() && !subscription.awaits_answer {
            return None;
        }
        Some(self.send(kind, updates, removed))
    }

    /// Whether resources of `kind` may change now: see "make before break".
    fn may_update(&self, kind: Kind) -> bool {
        match kind {
            Kind::Cluster | Kind::Endpoints | Kind::Listener => true,
            Kind::Routes | Kind::FilterConfig => {
                // A client that does not take all clusters looks after itself: it asks for those that its routes name.
                let takes_clusters = self.kinds[Kind::Cluster.index()].wildcard;
                let confirmed = |kind: Kind, name| {
                    let held = self.kinds[kind.index()].held.get(name);
                    held.is_some_and(|held| held.acked && held.version.is_some())
                };
                // An aggregate cluster has no endpoints of its own; those of its members are needed, too.
                let endpoints = self.view.of(Kind::Endpoints);
                let warm = |name| {
                    confirmed(Kind::Cluster, name)
                        && (!endpoints.contains_key(name) || confirmed(Kind::Endpoints, name))
                };
                !takes_clusters || self.view.needed().iter().all(warm)
            }
        }
    }

    /// Whether clusters may go: whatever could still send requests to them is gone.
    fn may_remove(&self, kind: Kind) -> bool {
        match kind {
            Kind::Listener | Kind::Routes | Kind::FilterConfig => true,
            Kind::Cluster | Kind::Endpoints => self.has_moved(|_, _| false),
        }
    }

    /// Whether an update may be sent. What makes endpoints a dead end waits until routes and policy that avoid them are in
    /// force, or were refused: nothing is gained by waiting for those.
    fn is_timely(&self, subscription: &Subscription, resource: &Resource) -> bool {
        !resource.dead_end
            || !subscription.held.contains_key(&resource.name)
            || subscription.has(resource)
            || self.has_moved(Subscription::refuses)
    }

    /// Whether the client has acknowledged the present routes and policy, but for those that are `excused`.
    fn has_moved(&self, excused: impl Fn(&Subscription, &Resource) -> bool) -> bool {
        [Kind::Routes, Kind::FilterConfig].into_iter().all(|user| {
            let subscription = &self.kinds[user.index()];
            let settled = |name: &Arc<str>| {
                let Some(resource) = self.view.of(user).get(name) else {
                    return true;
                };
                let held = subscription.held.get(name);
                held.is_some_and(|held| held.acked && held.version == Some(resource.version))
                    || excused(subscription, resource)
            };
            subscription.names.iter().all(settled)
        })
    }

    fn updates(&self, kind: Kind) -> Vec<Arc<Resource>> {
        let subscription = &self.kinds[kind.index()];
        let due = |resource: &&Arc<Resource>| {
            (!subscription.has(resource) || subscription.repeat.contains(&resource.name))
                && !subscription.refuses(resource)
                && self.is_timely(subscription, resource)
        };
        let resources = self.view.of(kind);
        if subscription.wildcard {
            resources.values().filter(due).cloned().collect()
        } else {
            let names = subscription.names.iter();
            let wanted = names.filter_map(|name| resources.get(name));
            wanted.filter(due).cloned().collect()
        }
    }

    fn removals(&self, kind: Kind) -> Vec<Arc<str>> {
        let subscription = &self.kinds[kind.index()];
        let resources = self.view.of(kind);
        let gone = subscription
            .held
            .iter()
            .filter(|(name, held)| held.version.is_some() && !resources.contains_key(*name))
            .map(|(name, _)| Arc::clone(name));
        let mut removed: Vec<Arc<str>> = if self.may_remove(kind) {
            gone.collect()
        } else {
            Vec::new()
        };
        if self.variant == Variant::Delta {
            // Asked for by name and not there: the client waits to be told so.
            let absent = subscription.names.iter().filter(|name| {
                !subscription.held.contains_key(*name) && !resources.contains_key(*name)
            });
            removed.extend(absent.cloned());
        } else if !kind.full_state() {
            // The state of the world cannot say of these kinds that one is gone.
            removed.clear();
        }
        removed
    }

    fn send(
        &mut self,
        kind: Kind,
        updates: Vec<Arc<Resource>>,
        removed: Vec<Arc<str>>,
    ) -> Outgoing {
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        let subscription = &mut self.kinds[kind.index()];
        subscription.awaits_answer = false;
        let mut changes = Vec::with_capacity(updates.len());
        for resource in &updates {
            subscription.repeat.remove(&resource.name);
            let before = subscription
                .held
                .insert(Arc::clone(&resource.name), held(resource, false));
            changes.push((Arc::clone(&resource.name), before));
        }
        for name in &removed {
            // Delta remembers what it told to be absent, so as not to tell it again.
            let absent = Held {
                version: None,
                resource: None,
                acked: false,
            };
            if subscription.names.contains(name) {
                subscription.held.insert(Arc::clone(name), absent);
            } else {
                subscription.held.remove(name);
            }
        }
        let changed: Vec<Arc<str>> = changes
            .iter()
            .filter(|(_, before)| before.as_ref().is_some_and(|held| held.version.is_some()))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        subscription.in_flight = Some(InFlight { nonce, changes });
        if kind == Kind::Cluster {
            self.forget_endpoints(&removed);
            self.repeat_endpoints(&changed);
        }
        let subscription = &self.kinds[kind.index()];
        let all = || {
            let held = subscription.held.values();
            held.filter_map(|held| held.resource.as_ref())
        };
        let resources = match self.variant {
            Variant::StateOfTheWorld if kind.full_state() => all().cloned().collect(),
            _ => updates,
        };
        Outgoing {
            kind,
            nonce,
            version: Version::of_set(all().map(Arc::as_ref)),
            resources,
            removed,
        }
    }

    /// With a cluster a client drops its endpoints and its interest in them. Not waiting to be told so matters where the
    /// cluster comes back at once: endpoints acknowledged for the old one would let routes pass too early.
    fn forget_endpoints(&mut self, clusters: &[Arc<str>]) {
        let endpoints = &mut self.kinds[Kind::Endpoints.index()];
        for name in clusters {
            endpoints.names.remove(name);
            endpoints.held.remove(name);
            endpoints.repeat.remove(name);
        }
    }

    /// A cluster that changes is warmed anew, and Envoy does not ask again for endpoints that it has asked for: unless they
    /// are sent again, it waits for them until its time-out of 15 s.
    fn repeat_endpoints(&mut self, clusters: &[Arc<str>]) {
        let endpoints = &mut self.kinds[Kind::Endpoints.index()];
        let held = clusters
            .iter()
            .filter(|name| endpoints.held.contains_key(*name));
        endpoints.repeat.extend(held.cloned());
    }

    /// How many names the client has subscribed to and holds, of all kinds.
    pub fn names(&self) -> usize {
        let kinds = self.kinds.iter();
        kinds.map(|s| s.names.len().max(s.held.len())).sum()
    }

    /// Whether the client refused a present resource of this kind.
    pub fn is_refused(&self, kind: Kind) -> bool {
        !self.kinds[kind.index()].rejected.is_empty()
    }

    /// The versions of what the client has acknowledged, by name.
    pub fn acked(&self, kind: Kind) -> impl Iterator<Item = (&str, Version)> {
        self.kinds[kind.index()]
            .held
            .iter()
            .filter(|(_, held)| held.acked)
            .filter_map(|(name, held)| Some((&**name, held.version?)))
    }
}

fn held(resource: &Arc<Resource>, acked: bool) -> Held {
    Held {
        version: Some(resource.version),
        resource: Some(Arc::clone(resource)),
        acked,
    }
}

/// Whether `name` stands in `message` as a word of its own, not as a part of a longer name.
fn mentions(message: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/');
    message.match_indices(name).any(|(at, _)| {
        let before = message[..at].chars().next_back();
        let after = message[at + name.len()..].chars().next();
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

/// A nonce that is not the last response's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleNonce;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
