//! The state of one stream's client (its resources, subscriptions and rejections), and the next
//! response to it.
//!
//! Pure: requests and views go in, responses come out of [`Stream::next_due`]. At most one response
//! of a kind is unanswered. So a slow client costs one pending state and no queue, and bursts of
//! changes collapse into one response.
//!
//! **Make before break.**
//!
//! - Routes and the filter's policy wait until the endpoints of every cluster that they use are
//!   acknowledged. Envoy requests the endpoints of a cluster only after it has accepted the
//!   cluster, so this proves that it can use the cluster.
//! - Aggregate clusters are sent once the clusters with endpoints can be used.
//! - Clusters are removed last, when routes and policy that no longer use them are acknowledged.
//!   The same holds for the last healthy endpoints of a cluster: until then requests may still be
//!   sent there.
//! - A client that names its clusters is a gRPC client: it acknowledges routes before it applies
//!   them, so its last healthy endpoints stay for a while longer ([`Stream::awaits_grace`]).
//!
//! **Times to live.** [`Stream::renew`] makes the next response renew the times to live of the
//! client's resources. Delta has heartbeats for that, which carry no resource. In the state of the
//! world the resources are sent again: Envoy 1.40 ignores heartbeats there, and treats a response
//! of heartbeats alone as one without clusters.
#![doc = include_str!("../RULES.md")]

use std::{collections::BTreeSet, num::NonZeroU32, sync::Arc};

mod due;
mod hosts;
mod subscribe;
mod subscription;

use crate::{
    resource::{Kind, Resource, Version},
    view::View,
};
use due::{Due, Warmth};
use subscription::{Held, Subscription, What, shared_name};

/// The protocol variant of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Incremental xDS: the changes.
    Delta,
    /// All resources of a subscription, or of a kind.
    StateOfTheWorld,
}

/// A response, before it is encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The kind of all its resources.
    pub kind: Kind,
    /// The client's answer repeats it. Rises with each response of a stream.
    pub nonce: u64,
    /// The version of everything that the client has of this kind after this response.
    pub version: Version,
    /// Sorted by name.
    pub resources: Vec<Arc<Resource>>,
    /// Names that do not exist (any more). In the state of the world their absence expresses that.
    pub removed: Vec<Arc<str>>,
    /// The aliases of sent resources, if the client asked by alias: the resource's position, and
    /// its aliases.
    pub aliases: Vec<(usize, Vec<Arc<str>>)>,
    /// Aliases of virtual hosts that do not exist.
    pub unresolved: Vec<Arc<str>>,
    /// Resources of the client whose times to live are renewed.
    pub renewed: Vec<Arc<Resource>>,
    /// The client supports times to live.
    pub with_ttl: bool,
}

/// A client's rejection of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The kind of the response.
    pub kind: Kind,
    /// The resources in the client's message, or all of the response if the message names none.
    pub resources: Vec<Arc<str>>,
    /// The client's message, at most 4 KiB.
    pub message: String,
}

/// The meaning of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No answer to a response.
    None,
    /// Accepts the last response (ACK).
    Accepted,
    /// Rejects the last response, or a part of it (NACK).
    Refused(Refused),
}

/// A request's verdict on an earlier response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'m> {
    /// None: the first request of its kind, or (delta) a mere change of the subscription.
    None,
    /// The client has applied the response.
    Ack {
        /// The nonce of the response.
        nonce: &'m str,
    },
    /// The client rejects the response, or a part of it, and keeps its resources.
    Nack {
        /// The nonce of the response.
        nonce: &'m str,
        /// Free text that names the resources and the cause.
        message: &'m str,
    },
}

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    /// The resources that were sent, and the client's earlier ones, which it keeps if it rejects
    /// these. Without removals: a client cannot keep a removed resource.
    changes: Vec<(Arc<str>, Option<Held>)>,
    /// Renewed without being sent.
    renewed: Vec<Arc<str>>,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    variant: Variant,
    view: Arc<View>,
    kinds: [Subscription; Kind::ALL.len()],
    warmth: Warmth,
    last_nonce: u64,
    with_ttl: bool,
    /// The client has other streams for other kinds.
    of_one_kind: bool,
    /// A client that names its clusters has had time to apply the routes that it acknowledged last.
    grace_is_over: bool,
}

impl Stream {
    /// A stream whose client gets `view`.
    pub fn new(variant: Variant, view: Arc<View>) -> Stream {
        Stream {
            variant,
            view,
            kinds: Default::default(),
            warmth: Warmth::default(),
            last_nonce: 0,
            with_ttl: false,
            of_one_kind: false,
            grace_is_over: false,
        }
    }

    /// The same, but the client can subscribe to one kind only: it gets other kinds on other
    /// streams.
    pub fn of_one_kind(self) -> Stream {
        Stream {
            of_one_kind: true,
            ..self
        }
    }

    /// The same, for a client that supports times to live.
    pub fn with_ttl(self) -> Stream {
        Stream {
            with_ttl: true,
            ..self
        }
    }

    /// Sets the view that the client gets from now on.
    pub fn set_view(&mut self, view: Arc<View>) {
        for kind in Kind::ALL {
            let changed = view.changes_since(&self.view, kind);
            let (before, offered) = (self.view.of(kind), view.of(kind));
            let subscription = &mut self.kinds[kind.index()];
            subscription.changed(kind, &changed, offered);
            let comes_or_goes =
                |name: &Arc<str>| before.contains_key(name) != offered.contains_key(name);
            if kind == Kind::VirtualHosts && changed.iter().any(comes_or_goes) {
                subscription.review_hosts(offered);
            }
            if kind == Kind::Endpoints {
                // A cluster may have had no endpoints of its own, and need them now.
                let moved = changed.iter().filter(|name| comes_or_goes(name));
                moved.for_each(|name| self.warmth.doubt(name));
            }
        }
        self.view = view;
    }

    /// Applies a request's verdict on the last response of `kind`. `Err` for another nonce than the
    /// last one: the request was sent before that response arrived, and the protocol ignores its
    /// acknowledgement.
    pub fn settle(&mut self, kind: Kind, verdict: &Verdict<'_>) -> Result<Answer, StaleNonce> {
        let subscription = &mut self.kinds[kind.index()];
        let (nonce, message) = match verdict {
            Verdict::None => return Ok(Answer::None),
            Verdict::Ack { nonce } => (*nonce, None),
            Verdict::Nack { nonce, message } => (*nonce, Some(*message)),
        };
        let nonce = nonce.parse::<u64>().map_err(|_| StaleNonce)?;
        let matches = |in_flight: &mut InFlight| in_flight.nonce == nonce;
        let Some(in_flight) = subscription.in_flight.take_if(matches) else {
            return Err(StaleNonce);
        };
        subscription.settled_nonce = in_flight.nonce;
        if matches!(kind, Kind::Routes | Kind::VirtualHosts) {
            self.grace_is_over = false;
        }
        let subscription = &mut self.kinds[kind.index()];
        let Some(message) = message else {
            for (name, _) in &in_flight.changes {
                subscription.accepted(name);
                subscription.refused_last.remove(name);
            }
            if subscription.rejected.is_empty() {
                subscription.refusal = None;
            }
            if kind == Kind::FilterConfig && !in_flight.changes.is_empty() {
                // A listener is checked against the filter's configuration in the client: it may be
                // valid now.
                self.kinds[Kind::Listener.index()].pardon();
            }
            for (name, _) in &in_flight.changes {
                if self.is_warm(name) {
                    self.warmth.settled(name);
                }
            }
            return Ok(Answer::Accepted);
        };
        // Perhaps a heartbeat of a resource that has expired meanwhile, since the control plane was
        // delayed for too long.
        for name in in_flight.renewed {
            subscription.say_again(&name);
        }
        // Envoy applies the valid resources of a response and names the invalid ones in its
        // message. The protocol has no other way to distinguish them; if the message contains no
        // name, all of them count as rejected.
        let named = |name: &Arc<str>| mentions(message, name);
        let some_named = in_flight.changes.iter().any(|(name, _)| named(name));
        let mut refused = Vec::new();
        let told: Arc<str> = Arc::from(message);
        for (name, before) in in_flight.changes {
            if some_named && !named(&name) {
                subscription.accepted(&name);
                subscription.refused_last.remove(&name);
                continue;
            }
            if !subscription.held().contains_key(&name) {
                // It was released meanwhile, together with its cluster: the client has lost the
                // earlier version, too.
                refused.push(name);
                continue;
            }
            let sent = match before {
                Some(before) => subscription.hold(Arc::clone(&name), before),
                None => subscription.release(&name),
            };
            // A rejected resource that is no longer offered is forgotten, so that it is sent when
            // it comes back.
            let offered = self.view.of(kind).get(&name);
            if let (Some(version), Some(offered)) = (sent.and_then(|held| held.version()), offered)
            {
                if offered.version == version {
                    subscription.rejected.insert(Arc::clone(&name), version);
                }
                let last = (version, Arc::clone(&told));
                subscription.refused_last.insert(Arc::clone(&name), last);
            }
            // A newer version may be offered already.
            subscription.pending.insert(Arc::clone(&name));
            refused.push(name);
        }
        let refused = Refused {
            kind,
            resources: refused,
            message: message.to_owned(),
        };
        if !subscription.rejected.is_empty() {
            subscription.refusal = Some(refused.clone());
        }
        Ok(Answer::Refused(refused))
    }

    /// Whether `nonce` is the last response's of this kind, and was answered already.
    pub fn last_answered(&self, kind: Kind, nonce: &str) -> bool {
        let subscription = &self.kinds[kind.index()];
        subscription.in_flight.is_none() && nonce.parse() == Ok(subscription.settled_nonce)
    }

    /// The next response to send, if any is due. Call it until there is none, after every request
    /// and every new view.
    pub fn next_due(&mut self) -> Option<Outgoing> {
        Kind::ALL.into_iter().find_map(|kind| self.next_of(kind))
    }

    fn next_of(&mut self, kind: Kind) -> Option<Outgoing> {
        let subscription = &self.kinds[kind.index()];
        if !subscription.subscribed || subscription.in_flight.is_some() {
            return None;
        }
        let due = if subscription.pending.is_empty() {
            Due::default()
        } else {
            self.due(kind)
        };
        let subscription = &mut self.kinds[kind.index()];
        for name in &due.over {
            subscription.pending.remove(name);
            subscription.hosts.failed(name);
        }
        let nothing = due.updates.is_empty()
            && due.removed.is_empty()
            && subscription.hosts.unresolved.is_empty()
            && !subscription.awaits_answer;
        if nothing && !subscription.renewal {
            return None;
        }
        let renewed = self.renewed(kind);
        if nothing && renewed.is_empty() {
            return None;
        }
        Some(self.send(kind, due, renewed))
    }

    /// How long the client may keep resources of a kind without a renewal, in seconds. None:
    /// forever, or the client does not support times to live.
    pub fn ttl_s(&self, kind: Kind) -> Option<NonZeroU32> {
        // It is configured by kind.
        let (_, any) = self
            .view
            .of(kind)
            .get_min()
            .filter(|_| self.tells_ttl(kind))?;
        any.ttl_s
    }

    fn tells_ttl(&self, kind: Kind) -> bool {
        let delta = self.variant == Variant::Delta;
        self.with_ttl && (delta || kind.may_expire_in_state_of_the_world())
    }

    /// Renews the times to live of the client's resources of `kind` with the next response.
    pub fn renew(&mut self, kind: Kind) {
        self.kinds[kind.index()].renewal = true;
    }

    /// Sends the rejected resources of `kind` again, although they have not changed.
    pub fn retry(&mut self, kind: Kind) {
        self.kinds[kind.index()].pardon();
    }

    /// Whether endpoints wait only for the client to apply its routes: see "make before break".
    /// After a while [`Stream::end_grace`] ends the wait.
    pub fn awaits_grace(&self) -> bool {
        if self.grace_is_over || !self.applies_later() {
            return false;
        }
        let offered = self.view.of(Kind::Endpoints);
        let subscription = &self.kinds[Kind::Endpoints.index()];
        let offered = subscription
            .pending
            .iter()
            .filter_map(|name| offered.get(name));
        let mut last = offered.filter(|resource| Stream::loses_all(subscription, resource));
        last.next().is_some() && self.has_moved(Subscription::refuses)
    }

    /// Whether the client acknowledges routes before it applies them, like gRPC clients. They name
    /// their clusters.
    fn applies_later(&self) -> bool {
        !self.of_one_kind && !self.kinds[Kind::Cluster.index()].wildcard
    }

    /// The client has had time to apply the routes that it acknowledged.
    pub fn end_grace(&mut self) {
        self.grace_is_over = true;
    }

    /// The client's resources whose times to live have to be renewed.
    fn renewed(&mut self, kind: Kind) -> Vec<Arc<Resource>> {
        let tells_ttl = self.tells_ttl(kind);
        let offered = self.view.of(kind);
        let subscription = &mut self.kinds[kind.index()];
        if !std::mem::take(&mut subscription.renewal) || !tells_ttl {
            return Vec::new();
        }
        let has = |(name, held): (&Arc<str>, &Held)| match &held.what {
            What::Sent(resource) => Some(Arc::clone(resource)),
            What::Known(version) => offered.get(name).filter(|r| r.version == *version).cloned(),
            What::Nothing => None,
        };
        let held = subscription.held().iter().filter_map(has);
        held.filter(|resource| resource.ttl_s.is_some()).collect()
    }

    fn send(&mut self, kind: Kind, due: Due, mut renewed: Vec<Arc<Resource>>) -> Outgoing {
        let Due {
            updates,
            mut removed,
            ..
        } = due;
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        let offered = self.view.of(kind);
        let subscription = &mut self.kinds[kind.index()];
        let awaits_answer = std::mem::take(&mut subscription.awaits_answer);
        let mut aliases = Vec::new();
        let mut changes = Vec::with_capacity(updates.len());
        for (at, resource) in updates.iter().enumerate() {
            let name = &resource.name;
            self.warmth.doubt(name);
            let called = subscription.hosts.answered(name);
            if !called.is_empty() {
                aliases.push((at, called));
            }
            let newest = offered.get(name);
            if newest.is_none_or(|newest| newest.version == resource.version) {
                subscription.pending.remove(name);
            }
            subscription.repeat.remove(name);
            let before = subscription.hold(Arc::clone(name), Held::sent(resource, false));
            changes.push((Arc::clone(name), before));
        }
        for name in &removed {
            self.warmth.doubt(name);
            subscription.pending.remove(name);
            subscription.repeat.remove(name);
            // Delta remembers the names that it reported as absent, to report them only once.
            if subscription.names.contains(name) {
                let absent = Held {
                    what: What::Nothing,
                    acked: false,
                };
                subscription.hold(Arc::clone(name), absent);
            } else {
                subscription.release(name);
            }
        }
        let replaced = |(_, before): &&(_, Option<Held>)| {
            before.as_ref().is_some_and(|held| held.version().is_some())
        };
        let changed = match kind {
            Kind::Cluster => changes
                .iter()
                .filter(replaced)
                .map(|(name, _)| Arc::clone(name))
                .collect(),
            _ => Vec::new(),
        };
        if kind == Kind::Cluster {
            self.forget_endpoints(&removed);
            self.repeat_endpoints(&changed);
        }
        if kind == Kind::VirtualHosts && awaits_answer && updates.is_empty() {
            removed.extend(self.no_hosts());
        }
        // A response must not contain a name twice. Sending a resource also renews it, and an
        // answer about aliases can wait.
        let gone: BTreeSet<&Arc<str>> = removed.iter().collect();
        let stands_there = |name: &Arc<str>| {
            let sent = updates.binary_search_by(|resource| resource.name.cmp(name));
            sent.is_ok() || gone.contains(name)
        };
        renewed.retain(|resource| !stands_there(&resource.name));
        let subscription = &mut self.kinds[kind.index()];
        subscription.in_flight = Some(InFlight {
            nonce,
            changes,
            renewed: renewed.iter().map(|r| Arc::clone(&r.name)).collect(),
        });
        let hosts = &mut subscription.hosts;
        let (later, unresolved) = std::mem::take(&mut hosts.unresolved)
            .into_iter()
            .partition::<BTreeSet<_>, _>(stands_there);
        hosts.unresolved = later;
        let subscription = &self.kinds[kind.index()];
        let resources = match self.variant {
            Variant::StateOfTheWorld if kind.full_state() => {
                let held = subscription.held().values();
                held.filter_map(Held::resource).cloned().collect()
            }
            Variant::StateOfTheWorld => [updates, std::mem::take(&mut renewed)].concat(),
            Variant::Delta => updates,
        };
        if self.variant == Variant::StateOfTheWorld {
            renewed.clear();
        }
        Outgoing {
            kind,
            nonce,
            version: subscription.version(),
            resources,
            removed,
            aliases,
            unresolved: unresolved.into_iter().collect(),
            renewed,
            with_ttl: self.tells_ttl(kind),
        }
    }

    /// The answer to a client that has not requested a virtual host yet. Envoy holds a listener
    /// back until it has received its route table, for up to 15 s. An empty answer does not count,
    /// since it belongs to no table. So the answer reports for each table that the empty host,
    /// which no request can have, does not exist.
    fn no_hosts(&self) -> impl Iterator<Item = Arc<str>> {
        let tables = self.view.of(Kind::Routes).keys();
        tables.map(|table| Arc::from(format!("{table}/")))
    }

    /// How many names the client has subscribed to and holds, of all kinds.
    pub fn names(&self) -> usize {
        let kinds = self.kinds.iter();
        kinds
            .map(|s| s.names.len().max(s.held().len()) + s.hosts.len())
            .sum()
    }

    /// The last rejection of a kind, while a rejected resource is still offered.
    pub fn refusal(&self, kind: Kind) -> Option<&Refused> {
        self.kinds[kind.index()].refusal.as_ref()
    }

    /// The resources of a kind that the client has, by name: their versions, and whether it has
    /// acknowledged them.
    pub fn held(&self, kind: Kind) -> impl Iterator<Item = (&str, Version, bool)> {
        let held = self.kinds[kind.index()].held().iter();
        held.filter_map(|(name, held)| Some((&**name, held.version()?, held.acked)))
    }

    /// The names that the client has subscribed to without having a resource, and whether that
    /// resource exists.
    pub fn missing(&self, kind: Kind) -> impl Iterator<Item = (&str, bool)> {
        let subscription = &self.kinds[kind.index()];
        let offered = self.view.of(kind);
        let has = |name: &Arc<str>| {
            let held = subscription.held().get(name);
            held.is_some_and(|held| held.version().is_some())
        };
        let there = (offered.keys())
            .filter(move |name| subscription.wants(name) && !has(name))
            .map(|name| (&**name, true));
        let absent = (subscription.names.iter())
            .filter(move |name| !offered.contains_key(*name) && !has(name))
            .map(|name| (&**name, false));
        there.chain(absent)
    }

    /// The versions of resources that are offered and rejected, by name.
    pub fn rejected(&self, kind: Kind) -> impl Iterator<Item = (&str, Version)> {
        let rejected = self.kinds[kind.index()].rejected.iter();
        rejected.map(|(name, version)| (&**name, *version))
    }

    /// The nonce of the unanswered response of a kind.
    pub fn unanswered(&self, kind: Kind) -> Option<u64> {
        let in_flight = self.kinds[kind.index()].in_flight.as_ref();
        in_flight.map(|response| response.nonce)
    }

    /// Whether the client has subscribed to this kind.
    pub fn is_subscribed(&self, kind: Kind) -> bool {
        self.kinds[kind.index()].subscribed
    }

    /// The view that the client gets.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }
}

/// Whether `message` contains `name` as a whole word, not as a part of a longer name.
fn mentions(message: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/');
    message.match_indices(name).any(|(at, _)| {
        let before = message[..at].chars().next_back();
        let after = message[at + name.len()..].chars().next();
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

/// The nonce is not the last response's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleNonce;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
