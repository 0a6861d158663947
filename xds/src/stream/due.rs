//! The updates that are due, and those that have to wait: make before break.

use std::{cell::LazyCell, collections::BTreeSet, sync::Arc};

use imbl::ordset::DiffItem;

use super::{
    Stream, Variant,
    subscription::{Held, Subscription},
};
use crate::resource::{Kind, Names, Resource};

/// The work on the pending names of a kind.
#[derive(Default)]
pub(super) struct Due {
    /// In order of names.
    pub(super) updates: Vec<Arc<Resource>>,
    /// In order.
    pub(super) removed: Vec<Arc<str>>,
    /// Names about which nothing is to be done any more.
    pub(super) over: Vec<Arc<str>>,
}

/// Which of the clusters that routes and filter need the client can use. To look at all of them for each change of a route
/// would cost as much as the mesh is large, for each stream; so this remembers which have to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Warmth {
    /// All of these were warm at one time, and are still but for those in `doubtful`; none before the first time.
    warm: Option<Names>,
    /// Those of `warm` of which something was sent, forgotten or asked for since.
    doubtful: BTreeSet<Arc<str>>,
}

impl Warmth {
    pub(super) fn doubt(&mut self, name: &Arc<str>) {
        if self.warm.as_ref().is_some_and(|warm| warm.contains(name)) {
            self.doubtful.insert(Arc::clone(name));
        }
    }

    /// Forgets which clusters are warm.
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
        // An aggregate cluster has no endpoints of its own; those of its members are needed, too.
        let has_endpoints = self.view.of(Kind::Endpoints).contains_key(name);
        confirmed(Kind::Cluster) && (!has_endpoints || confirmed(Kind::Endpoints))
    }

    /// Whether the client has no version of the cluster, or none of its endpoints, and refuses the
    /// offer. Of one that it has, or is sent, it will be able to use that.
    fn is_refused(&self, name: &Arc<str>) -> bool {
        [Kind::Cluster, Kind::Endpoints].into_iter().any(|kind| {
            let subscription = &self.kinds[kind.index()];
            let offered = self.view.of(kind).get(name);
            let held = subscription.held().get(name);
            offered.is_some_and(|offered| subscription.refuses(offered))
                && held.and_then(Held::version).is_none()
        })
    }

    /// Whether the client can use every cluster that routes and filter need, but for those that it refuses. Nothing is gained by
    /// waiting for these: one of them would hold back every service's routes, and the policy without which nothing is granted
    /// once the terms have changed. A request that is led there gets a 503.
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
            // Those that are refused are looked at each time: an offer in their place is waited for
            // again.
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

    /// Whether the client can use every cluster with endpoints that it takes. Aggregate clusters
    /// come after those: Envoy asks each aggregate cluster that it has about each cluster that
    /// comes, on its main thread. In the state of the world they cannot wait: a resource that a
    /// response does not have is gone. Nor where endpoints come on another stream, of which nothing
    /// is known here.
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
                    // To wait for a refused resource gains nothing.
                    self.is_warm(name) || clusters.refuses(cluster) || endpoints.refuses(assigned)
                })
            })
    }

    /// Whether the client has the secrets that it asked for: a cluster that waits for one takes no
    /// requests. A refused secret is not waited for.
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
                // A client that does not take all clusters looks after itself: it asks for those that its routes name.
                let takes_clusters = self.kinds[Kind::Cluster.index()].wildcard;
                !takes_clusters || self.holds_secrets() && self.all_warm()
            }
        }
    }

    /// Whether clusters may go: everything that could still send requests to them is gone.
    fn may_remove(&self, kind: Kind) -> bool {
        match kind {
            Kind::Listener | Kind::Routes | Kind::VirtualHosts | Kind::FilterConfig => true,
            // A listener or cluster that is being replaced may still use them.
            Kind::Cluster | Kind::Secret | Kind::Endpoints => self.has_moved(|_, _| false),
        }
    }

    /// Whether an update may be sent. An update that makes endpoints a dead end waits until routes
    /// and policy that avoid them are in force, or were refused: to wait for refused ones gains
    /// nothing.
    fn is_timely(&self, subscription: &Subscription, resource: &Resource) -> bool {
        !Stream::loses_all(subscription, resource)
            || (self.grace_is_over || !self.applies_later())
                && self.has_moved(Subscription::refuses)
    }

    /// Whether an update takes the last healthy endpoints of a cluster from the client.
    pub(super) fn loses_all(subscription: &Subscription, resource: &Resource) -> bool {
        resource.no_healthy_endpoints
            && subscription.held().contains_key(&resource.name)
            && !subscription.has(resource)
    }

    /// Whether the client has acknowledged the present routes and policy, but for those that are `excused`.
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

    /// Sorts out the pending names.
    pub(super) fn due(&mut self, kind: Kind) -> Due {
        let may_update = self.may_update(kind);
        let subscription = &self.kinds[kind.index()];
        let offered = self.view.of(kind);
        // Looked at for the first name that asks, since it may take a look at every route.
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
                        // The client waits for it with its cluster, and routes wait for that. So it is sent the one that it
                        // has; of one from an earlier stream nothing is left but the version.
                        let had = subscription.held().get(name).and_then(Held::resource);
                        due.updates.push(Arc::clone(had.unwrap_or(resource)));
                    }
                }
                None => match subscription.held().get(name).map(Held::version) {
                    // The state of the world cannot say of these kinds that one is gone.
                    _ if self.variant == Variant::StateOfTheWorld && !kind.full_state() => {
                        due.over.push(Arc::clone(name));
                    }
                    Some(Some(_)) if *may_remove => due.removed.push(Arc::clone(name)),
                    Some(Some(_)) => {}
                    _ if self.variant == Variant::StateOfTheWorld => {
                        due.over.push(Arc::clone(name));
                    }
                    Some(None) if !repeat => due.over.push(Arc::clone(name)),
                    // Asked for by name and not there: the client waits to be told so.
                    _ if repeat || subscription.names.contains(name) => {
                        due.removed.push(Arc::clone(name));
                    }
                    _ => due.over.push(Arc::clone(name)),
                },
            }
        }
        due
    }

    /// With a cluster a client drops its endpoints and its interest in them. Not waiting to be told so matters where the
    /// cluster comes back at once: endpoints acknowledged for the old one would let routes pass too early.
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

    /// A cluster that changes is warmed anew, and Envoy does not ask again for endpoints that it has asked for: unless they
    /// are sent again, it waits for them until its time-out of 15 s.
    pub(super) fn repeat_endpoints(&mut self, clusters: &[Arc<str>]) {
        let endpoints = &mut self.kinds[Kind::Endpoints.index()];
        for name in clusters {
            if endpoints.held().contains_key(name) {
                endpoints.say_again(name);
            }
        }
    }
}
