//! The updates that are due, and those that have to wait: make before break.

use std::{cell::LazyCell, collections::BTreeSet, sync::Arc};

use imbl::ordset::DiffItem;

use super::{
    Stream, Variant,
    subscription::{Held, Subscription},
};
use crate::resource::{Kind, Names, Resource};

/// The result of a check of a kind's pending names.
#[derive(Default)]
pub(super) struct Due {
    /// Sorted by name.
    pub(super) updates: Vec<Arc<Resource>>,
    /// Sorted.
    pub(super) removed: Vec<Arc<str>>,
    /// Names that need no further work.
    pub(super) over: Vec<Arc<str>>,
}

/// The clusters required by routes and filter that the client can use. A check of all of them for
/// each change of a route would cost as much as the mesh is large, for each stream. So this
/// remembers which ones to check again.
#[derive(Debug, Default)]
pub(super) struct Warmth {
    /// All of these were warm at one time, and still are, except those in `doubtful`; none before
    /// the first check.
    warm: Option<Names>,
    /// The members of `warm` that were sent, forgotten or requested since.
    doubtful: BTreeSet<Arc<str>>,
}

impl Warmth {
    pub(super) fn doubt(&mut self, name: &Arc<str>) {
        if self.warm.as_ref().is_some_and(|warm| warm.contains(name)) {
            self.doubtful.insert(Arc::clone(name));
        }
    }

    /// Forgets all warm clusters.
    pub(super) fn doubt_all(&mut self) {
        *self = Warmth::default();
    }

    pub(super) fn settled(&mut self, name: &str) {
        self.doubtful.remove(name);
    }
}

impl Stream {
    /// Whether the client has the cluster and its endpoints, and can use it.
    pub(super) fn is_warm(&self, name: &Arc<str>) -> bool {
        let confirmed = |kind: Kind| {
            let held = self.kinds[kind.index()].held().get(name);
            held.is_some_and(|held| held.acked && held.version().is_some())
        };
        // An aggregate cluster has no endpoints of its own; its members' clusters are required,
        // too.
        let has_endpoints = self.view.of(Kind::Endpoints).contains_key(name);
        confirmed(Kind::Cluster) && (!has_endpoints || confirmed(Kind::Endpoints))
    }

    /// Whether the client has no version of the cluster, or of its endpoints, and rejects the
    /// offered one. A cluster that it already has, or is being sent, will become usable.
    fn is_refused(&self, name: &Arc<str>) -> bool {
        [Kind::Cluster, Kind::Endpoints].into_iter().any(|kind| {
            let subscription = &self.kinds[kind.index()];
            let offered = self.view.of(kind).get(name);
            let held = subscription.held().get(name);
            offered.is_some_and(|offered| subscription.refuses(offered))
                && held.and_then(Held::version).is_none()
        })
    }

    /// Whether the client can use every cluster required by routes and filter, except those that it
    /// rejects. Waiting for rejected ones would be useless: one of them would hold back every
    /// service's routes, and the policy without which no grants are given after a change of terms.
    /// A request that is routed to one gets a 503.
    fn all_warm(&mut self) -> bool {
        let needed = self.view.needed();
        let is_settled = |name: &Arc<str>| self.is_warm(name) || self.is_refused(name);
        let settled = match &self.warmth.warm {
            None => needed.iter().all(is_settled),
            Some(warm) => {
                let doubtful = self.warmth.doubtful.iter();
                let mut doubtful = doubtful.filter(|name| needed.contains(*name));
                let mut new = warm.diff(needed).filter_map(|change| match change {
                    DiffItem::Add(name) => Some(name),
                    DiffItem::Remove(_) => None,
                });
                doubtful.all(is_settled) && new.all(is_settled)
            }
        };
        debug_assert_eq!(settled, needed.iter().all(is_settled));
        if settled {
            // Rejected clusters are checked each time: a new version is waited for again.
            let refused = [Kind::Cluster, Kind::Endpoints].into_iter();
            let refused = refused.flat_map(|kind| self.kinds[kind.index()].rejected.keys());
            let mut warm = needed.clone();
            for name in refused.filter(|name| !self.is_warm(name)) {
                warm.remove(name);
            }
            self.warmth = Warmth {
                warm: Some(warm),
                doubtful: BTreeSet::new(),
            };
        }
        settled
    }

    /// Whether the client can use every cluster with endpoints that it accepts. Aggregate clusters
    /// come after those: Envoy notifies each aggregate cluster of each new cluster, on its main
    /// thread. They cannot wait in the state of the world: a resource that is missing in a response
    /// is removed. Nor if endpoints come on another stream, whose state is unknown here.
    fn holds_members(&self) -> bool {
        let clusters = &self.kinds[Kind::Cluster.index()];
        let cannot_wait = self.variant == Variant::StateOfTheWorld || self.of_one_kind;
        if cannot_wait || !clusters.wildcard {
            return true;
        }
        let offered = self.view.of(Kind::Cluster);
        let endpoints = &self.kinds[Kind::Endpoints.index()];
        self.view
            .of(Kind::Endpoints)
            .iter()
            .all(|(name, assigned)| {
                offered.get(name).is_none_or(|cluster| {
                    // Waiting for a rejected resource is useless.
                    self.is_warm(name) || clusters.refuses(cluster) || endpoints.refuses(assigned)
                })
            })
    }

    /// Whether the client has the secrets that it requested: a cluster that waits for one accepts
    /// no requests. A rejected secret is not waited for.
    fn holds_secrets(&self) -> bool {
        let subscription = &self.kinds[Kind::Secret.index()];
        let offered = self.view.of(Kind::Secret);
        subscription.names.iter().all(|name| {
            offered.get(name).is_none_or(|secret| {
                let held = subscription.held().get(name);
                held.is_some_and(|held| held.acked) || subscription.refuses(secret)
            })
        })
    }

    /// Whether resources of `kind` may change now: see "make before break".
    fn may_update(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Cluster | Kind::Secret | Kind::Endpoints | Kind::Listener => true,
            Kind::Routes | Kind::VirtualHosts | Kind::FilterConfig => {
                // A client without a wildcard for clusters orders its requests itself: it requests
                // the clusters of its routes.
                let takes_clusters = self.kinds[Kind::Cluster.index()].wildcard;
                !takes_clusters || self.holds_secrets() && self.all_warm()
            }
        }
    }

    /// Whether clusters may be removed: no resource that sends requests to them is left.
    fn may_remove(&self, kind: Kind) -> bool {
        match kind {
            Kind::Listener | Kind::Routes | Kind::VirtualHosts | Kind::FilterConfig => true,
            // A listener or cluster that is being replaced may still use them.
            Kind::Cluster | Kind::Secret | Kind::Endpoints => self.has_moved(|_, _| false),
        }
    }

    /// Whether an update may be sent. An update that leaves a cluster without healthy endpoints
    /// waits until routes and policy that avoid the cluster are in force, or were rejected: waiting
    /// for rejected ones would be useless.
    fn is_timely(&self, subscription: &Subscription, resource: &Resource) -> bool {
        !Stream::loses_all(subscription, resource)
            || (self.grace_is_over || !self.applies_later())
                && self.has_moved(Subscription::refuses)
    }

    /// Whether an update removes the last healthy endpoints of a cluster from the client.
    pub(super) fn loses_all(subscription: &Subscription, resource: &Resource) -> bool {
        resource.no_healthy_endpoints
            && subscription.held().contains_key(&resource.name)
            && !subscription.has(resource)
    }

    /// Whether the client has acknowledged the current routes and policy, except those that are
    /// `excused`.
    pub(super) fn has_moved(&self, excused: impl Fn(&Subscription, &Resource) -> bool) -> bool {
        let users = [Kind::Routes, Kind::VirtualHosts, Kind::FilterConfig];
        users.into_iter().all(|user| {
            let subscription = &self.kinds[user.index()];
            let settled = |name: &Arc<str>| {
                let Some(resource) = self.view.of(user).get(name) else {
                    return true;
                };
                let held = subscription.held().get(name);
                held.is_some_and(|held| held.acked && held.version() == Some(resource.version))
                    || excused(subscription, resource)
            };
            subscription.names.iter().all(settled)
        })
    }

    /// Sorts the pending names.
    pub(super) fn due(&mut self, kind: Kind) -> Due {
        let may_update = self.may_update(kind);
        let subscription = &self.kinds[kind.index()];
        let offered = self.view.of(kind);
        // Computed only for the first name that needs it, since it may check every route.
        let may_remove = LazyCell::new(|| self.may_remove(kind));
        let holds_members = LazyCell::new(|| self.holds_members());
        let is_aggregate = |name: &Arc<str>| {
            kind == Kind::Cluster && !self.view.of(Kind::Endpoints).contains_key(name)
        };
        let mut due = Due::default();
        for name in &subscription.pending {
            let repeat = subscription.repeat.contains(name);
            match offered.get(name) {
                Some(resource) => {
                    let is_new = repeat || !subscription.has(resource);
                    if !is_new || !subscription.wants(name) || subscription.refuses(resource) {
                        due.over.push(Arc::clone(name));
                    } else if may_update
                        && self.is_timely(subscription, resource)
                        && (!is_aggregate(name) || *holds_members)
                    {
                        due.updates.push(Arc::clone(resource));
                    } else if may_update && repeat {
                        // The client waits for it with its cluster, and routes wait for the
                        // cluster. So the client gets its present version again. Of a resource from
                        // an earlier stream only the version is known.
                        let had = subscription.held().get(name).and_then(Held::resource);
                        due.updates.push(Arc::clone(had.unwrap_or(resource)));
                    }
                }
                None => match subscription.held().get(name).map(Held::version) {
                    // In these kinds the state of the world cannot express that a resource is gone.
                    _ if self.variant == Variant::StateOfTheWorld && !kind.full_state() => {
                        due.over.push(Arc::clone(name));
                    }
                    Some(Some(_)) if *may_remove => due.removed.push(Arc::clone(name)),
                    Some(Some(_)) => {}
                    _ if self.variant == Variant::StateOfTheWorld => {
                        due.over.push(Arc::clone(name));
                    }
                    Some(None) if !repeat => due.over.push(Arc::clone(name)),
                    // Requested by name but missing: the client waits for that answer.
                    _ if repeat || subscription.names.contains(name) => {
                        due.removed.push(Arc::clone(name));
                    }
                    _ => due.over.push(Arc::clone(name)),
                },
            }
        }
        due
    }

    /// A client drops a cluster's endpoints, and its subscription to them, with the cluster. The
    /// stream does not wait for the client's request. Otherwise, if the cluster comes back at once,
    /// endpoints that were acknowledged for the old one would release routes too early.
    pub(super) fn forget_endpoints(&mut self, clusters: &[Arc<str>]) {
        let endpoints = &mut self.kinds[Kind::Endpoints.index()];
        for name in clusters {
            self.warmth.doubt(name);
            endpoints.names.remove(name);
            endpoints.release(name);
            endpoints.repeat.remove(name);
            endpoints.pending.remove(name);
        }
    }

    /// A changed cluster is warmed anew, but Envoy does not request its endpoints again. Unless
    /// they are sent again, it waits for them until its time-out of 15 s.
    pub(super) fn repeat_endpoints(&mut self, clusters: &[Arc<str>]) {
        let endpoints = &mut self.kinds[Kind::Endpoints.index()];
        for name in clusters {
            if endpoints.held().contains_key(name) {
                endpoints.say_again(name);
            }
        }
    }
}
