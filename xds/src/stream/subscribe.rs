//! Subscriptions by requests, in both variants.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Stream,
    subscription::{Held, shared_name},
};
use crate::resource::{Digest, Kind, Resource, Version};

impl Stream {
    /// Delta: changes the subscription. `initial` are the versions that the client has from an
    /// earlier stream.
    pub fn subscribe_delta<'n>(
        &mut self,
        kind: Kind,
        subscribe: impl Iterator<Item = &'n str>,
        unsubscribe: impl Iterator<Item = &'n str>,
        initial: impl Iterator<Item = (&'n str, Version)>,
    ) {
        let view = &self.view;
        let offered = view.of(kind);
        let subscription = &mut self.kinds[kind.index()];
        let first = !subscription.subscribed;
        subscription.subscribed = true;
        if kind == Kind::VirtualHosts {
            subscription.ask_for_hosts(view, subscribe, unsubscribe);
            subscription.awaits_answer |= first && subscription.hosts.len() == 0;
            for (name, version) in initial {
                let name = shared_name(view, kind, name);
                if subscription.brings_host(&name) {
                    subscription.bring(name, version);
                }
            }
            return;
        }
        let mut wants_all = false;
        for name in subscribe {
            subscription.named = true;
            if name == "*" {
                wants_all = true;
            } else {
                let name = shared_name(view, kind, name);
                // A client that requests a resource again gets it again.
                self.warmth.doubt(&name);
                subscription.release(&name);
                subscription.pending.insert(Arc::clone(&name));
                subscription.names.insert(name);
            }
        }
        for name in unsubscribe {
            subscription.named = true;
            if name == "*" {
                subscription.wildcard = false;
                self.warmth.doubt_all();
                let names = std::mem::take(&mut subscription.names);
                subscription.release_unless(|name| names.contains(name));
                subscription.names = names;
            } else if let Some(name) = subscription.names.take(name) {
                if subscription.wildcard {
                    // The client cannot know why it has the resource, so it must be notified.
                    subscription.say_again(&name);
                } else {
                    self.warmth.doubt(&name);
                    subscription.release(&name);
                    subscription.pending.remove(&name);
                    subscription.repeat.remove(&name);
                }
            }
        }
        // The older form of "*".
        wants_all |= first && !subscription.named && kind.full_state();
        subscription.awaits_answer |= first && wants_all;
        for (name, version) in initial {
            subscription.awaits_answer = false;
            subscription.bring(shared_name(view, kind, name), version);
        }
        if wants_all {
            subscription.want_all(offered);
        }
    }

    /// State of the world: replaces the subscription. `version` is the client's claimed version,
    /// empty without one.
    pub fn subscribe_sotw<'n>(
        &mut self,
        kind: Kind,
        names: impl Iterator<Item = &'n str>,
        version: &str,
    ) {
        let view = &self.view;
        let offered = view.of(kind);
        let subscription = &mut self.kinds[kind.index()];
        let first = !subscription.subscribed;
        subscription.subscribed = true;
        let mut wanted: BTreeSet<Arc<str>> =
            names.map(|name| shared_name(view, kind, name)).collect();
        subscription.named |= !wanted.is_empty();
        let all = wanted.remove("*") || !subscription.named && kind.full_state();
        let fresh: Vec<Arc<str>> = wanted.difference(&subscription.names).cloned().collect();
        let drops = subscription.names.difference(&wanted).next().is_some();
        if drops || subscription.wildcard && !all {
            self.warmth.doubt_all();
        }
        subscription.release_unless(|name| all || wanted.contains(name));
        for name in fresh {
            // The client may have forgotten a resource that it got while it was not subscribed to
            // it.
            if subscription.held().contains_key(&name) {
                subscription.repeat.insert(Arc::clone(&name));
            }
            subscription.pending.insert(name);
        }
        subscription.names = wanted;
        if all && !subscription.wildcard {
            subscription.want_all(offered);
        }
        subscription.wildcard = all;
        if !first {
            return;
        }
        subscription.awaits_answer = kind.full_state();
        let wanted = || {
            subscription
                .pending
                .iter()
                .filter_map(|name| offered.get(name))
        };
        let digest = wanted().fold(Digest::default(), |digest, r| digest.plus(r.digest()));
        if digest.version().to_string() == version {
            // It came from another replica, or from before a restart, and has everything.
            let wanted: Vec<Arc<Resource>> = wanted().cloned().collect();
            subscription.awaits_answer = false;
            subscription.pending.clear();
            for resource in wanted {
                subscription.hold(Arc::clone(&resource.name), Held::sent(&resource, true));
            }
        }
    }
}
