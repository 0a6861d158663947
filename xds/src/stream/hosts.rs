//! Virtual hosts on demand: the virtual hosts of a client that requests them by host.
//!
//! A client requests *aliases*, `<route table>/<host>`, with the host as in a request: with a port,
//! in any case, and mostly not the name of a virtual host. It gets the virtual host that serves the
//! request.
//!
//! With a wildcard it also gets all more specific hosts: their requests would match the wildcard in
//! its table, so it would never request them.
//!
//! An alias without a virtual host is answered and forgotten. Senders of requests can invent
//! aliases, so remembering them would let senders fill the memory. Envoy requests an alias again
//! with the next request.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Subscription, shared_name};
use crate::{
    resource::{Kind, Resource, Resources},
    view::View,
};

/// The longest possible host. A host with thousands of labels would cost as many wildcard look-ups.
const HOST_BYTES_MAX: usize = 255;

/// The hosts that a client requested.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// As the client spells them; each has a virtual host.
    asked: BTreeSet<Arc<str>>,
    /// Not answered yet, by their virtual host.
    awaited: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Not answered yet, and without a virtual host.
    pub(super) unresolved: BTreeSet<Arc<str>>,
}

impl Hosts {
    /// How many names it remembers.
    pub(super) fn len(&self) -> usize {
        self.asked.len() + self.unresolved.len()
    }

    /// The client's aliases of a virtual host that is now sent, beside its name.
    pub(super) fn answered(&mut self, name: &str) -> Vec<Arc<str>> {
        let aliases = self.awaited.remove(name).unwrap_or_default();
        aliases
            .into_iter()
            .filter(|alias| **alias != *name)
            .collect()
    }

    /// Records that a requested virtual host cannot be sent.
    pub(super) fn failed(&mut self, name: &str) {
        let aliases = self.awaited.remove(name).unwrap_or_default();
        self.unresolved.extend(aliases);
    }
}

impl Subscription {
    /// Applies the hosts that a client subscribes to and unsubscribes from.
    pub(super) fn ask_for_hosts<'n>(
        &mut self,
        view: &View,
        subscribe: impl Iterator<Item = &'n str>,
        unsubscribe: impl Iterator<Item = &'n str>,
    ) {
        let offered = view.of(Kind::VirtualHosts);
        // "*" means everything for other kinds; here a client only gets the hosts that it requests.
        for alias in subscribe.filter(|name| *name != "*") {
            let spelling = shared_name(view, Kind::VirtualHosts, alias);
            let Some(host) = resolve(alias, offered) else {
                self.hosts.unresolved.insert(spelling);
                continue;
            };
            let name = Arc::clone(&host.name);
            self.hosts.asked.insert(Arc::clone(&spelling));
            let awaited = self.hosts.awaited.entry(Arc::clone(&name)).or_default();
            awaited.insert(spelling);
            // A client that requests a host again has forgotten it.
            self.release(&name);
            self.pending.insert(Arc::clone(&name));
            if !self.names.insert(Arc::clone(&name)) {
                continue;
            }
            for covered in covered(&name, offered) {
                if self.names.insert(Arc::clone(covered)) {
                    self.pending.insert(Arc::clone(covered));
                }
            }
        }
        let mut gave_up = false;
        for alias in unsubscribe {
            gave_up |= self.hosts.asked.remove(alias);
        }
        if gave_up {
            let wanted = wanted(&self.hosts.asked, offered);
            self.release_unless(|name| wanted.contains(name));
            self.hosts.awaited.retain(|name, _| wanted.contains(name));
            self.names = wanted;
        }
    }

    /// Whether a virtual host that the client reports from an earlier stream need not be sent. It
    /// must be sent if the client waits for the answer to an alias.
    pub(super) fn brings_host(&mut self, name: &Arc<str>) -> bool {
        let Some(aliases) = self.hosts.awaited.get(name) else {
            return !self.hosts.unresolved.contains(name);
        };
        let only_by_name = aliases.iter().all(|alias| alias == name);
        if only_by_name {
            self.hosts.awaited.remove(name);
        }
        only_by_name
    }

    /// Updates after a change of the offered virtual hosts.
    pub(super) fn review_hosts(&mut self, offered: &Resources) {
        self.hosts
            .asked
            .retain(|alias| resolve(alias, offered).is_some());
        let awaited = std::mem::take(&mut self.hosts.awaited).into_values();
        let unresolved = std::mem::take(&mut self.hosts.unresolved);
        for alias in awaited.flatten().chain(unresolved) {
            match resolve(&alias, offered) {
                Some(host) => {
                    let name = Arc::clone(&host.name);
                    self.hosts.asked.insert(Arc::clone(&alias));
                    self.release(&name);
                    self.pending.insert(Arc::clone(&name));
                    self.hosts.awaited.entry(name).or_default().insert(alias);
                }
                None => {
                    self.hosts.unresolved.insert(alias);
                }
            }
        }
        let mut wanted = wanted(&self.hosts.asked, offered);
        // The client keeps using the hosts that it has, even if its aliases now match more specific
        // ones.
        let held = self.names.iter().filter(|name| offered.contains_key(*name));
        wanted.extend(held.cloned());
        let fresh = wanted.difference(&self.names).cloned();
        self.pending.extend(fresh.collect::<Vec<_>>());
        self.names = wanted;
    }
}

fn wanted(asked: &BTreeSet<Arc<str>>, offered: &Resources) -> BTreeSet<Arc<str>> {
    let mut wanted = BTreeSet::new();
    for host in asked.iter().filter_map(|alias| resolve(alias, offered)) {
        if wanted.insert(Arc::clone(&host.name)) {
            wanted.extend(covered(&host.name, offered).cloned());
        }
    }
    wanted
}

/// The virtual host for requests to the host in `alias`, as Envoy would choose it.
fn resolve<'r>(alias: &str, offered: &'r Resources) -> Option<&'r Arc<Resource>> {
    let (table, host) = alias.rsplit_once('/')?;
    let host = without_port(host).to_ascii_lowercase();
    if host.len() > HOST_BYTES_MAX {
        return None;
    }
    let exact = [format!("{table}/{host}")];
    let mut candidates = exact.into_iter().chain(wildcards(table, &host));
    candidates.find_map(|name| offered.get(name.as_str()))
}

/// The possible names of virtual hosts with wildcards that match `host`, most specific first.
fn wildcards(table: &str, host: &str) -> impl Iterator<Item = String> {
    // The star matches at least one character.
    let dots = host.match_indices('.').filter(|(at, _)| *at > 0);
    let suffixes = dots.map(move |(at, _)| format!("{table}/*{}", &host[at..]));
    suffixes.chain([format!("{table}/*")])
}

/// The more specific virtual hosts that a wildcard covers.
fn covered<'r>(name: &str, offered: &'r Resources) -> impl Iterator<Item = &'r Arc<str>> {
    let wildcard = name.rsplit_once("/*");
    let names = wildcard.map(|_| offered.keys()).into_iter().flatten();
    names.filter(move |other| {
        wildcard.is_some_and(|(table, suffix)| {
            let host = other
                .strip_prefix(table)
                .and_then(|rest| rest.strip_prefix('/'));
            ***other != *name && host.is_some_and(|host| host.ends_with(suffix))
        })
    })
}

/// A host without its port, as Envoy and the policy cut it; an IPv6 address keeps its brackets.
fn without_port(host: &str) -> &str {
    match host.rfind([':', ']']) {
        Some(at) if host[at..].starts_with(':') => &host[..at],
        _ => host,
    }
}
