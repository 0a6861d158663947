//! Virtual hosts on demand: the virtual hosts of a client that asks for hosts.
//!
//! A client asks by *aliases*, `<route table>/<host>`, in which the host stands as in a request:
//! with a port, in any case, and mostly not the name of a virtual host. It is sent the virtual host
//! that takes the request.
//!
//! With a wildcard it gets all more specific hosts: their requests would match the wildcard in its table, so it
//! would never ask for them.
//!
//! An alias that nothing goes by is answered and forgotten. Senders of requests make these up, so
//! to remember them would be a way to fill memory; and Envoy asks again with the next request.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Subscription, shared_name};
use crate::{
    resource::{Kind, Resource, Resources},
    view::View,
};

/// The longest host that there can be. One with thousands of labels would be looked for under as many wildcards.
const HOST_BYTES_MAX: usize = 255;

/// The hosts that a client asked for.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// As the client spells them; all of them lead to a virtual host.
    asked: BTreeSet<Arc<str>>,
    /// Not answered yet, by the virtual host to which they lead.
    awaited: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Not answered yet, and leading nowhere.
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

    /// Notes that a virtual host that was asked for cannot be sent.
    pub(super) fn failed(&mut self, name: &str) {
        let aliases = self.awaited.remove(name).unwrap_or_default();
        self.unresolved.extend(aliases);
    }
}

impl Subscription {
    /// Takes in the hosts that a client asks for and gives up.
    pub(super) fn ask_for_hosts<'n>(
        &mut self,
        view: &View,
        subscribe: impl Iterator<Item = &'n str>,
        unsubscribe: impl Iterator<Item = &'n str>,
    ) {
        let offered = view.of(Kind::VirtualHosts);
        // "*" means everything for other kinds; here a client is served the hosts that it asks for.
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
            // A client that asks again for a host has forgotten it.
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

    /// Whether the client, which says that it has a virtual host from an earlier stream, need not be sent it. It need be where it
    /// waits to hear of an alias.
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

    /// Follows a change of the virtual hosts that there are.
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
        // The client uses the hosts that it has, though its aliases now lead to more specific ones.
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

/// The virtual host that takes the requests for the host in `alias`, as Envoy would choose it.
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

/// The names that virtual hosts with wildcards have which take requests for `host`, most specific first.
fn wildcards(table: &str, host: &str) -> impl Iterator<Item = String> {
    // The star stands for one character at least.
    let dots = host.match_indices('.').filter(|(at, _)| *at > 0);
    let suffixes = dots.map(move |(at, _)| format!("{table}/*{}", &host[at..]));
    suffixes.chain([format!("{table}/*")])
}

/// The more specific virtual hosts below one with a wildcard.
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
