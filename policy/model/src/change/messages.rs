//! Messages between replicas and proxies, and the actions of a proxy.

use std::collections::BTreeSet;

use policy::fence::{HolderId, Input, Name, Replica, Stamp, Terms};

use super::{Change, Due};
use crate::{
    Broken, Message, Scenario, Speed,
    proxy::{Offered, Policy},
};

impl Change<'_> {
    /// The proxies of a zone get the routes of one of its replicas, and the policy of one: here the
    /// least suitable of each.
    pub(super) fn reroute(&mut self, index: usize) {
        let zone = self.state.hosts[index].zone;
        let of_zone = self.state.hosts.iter().filter(|host| host.zone == zone);
        let replicas = of_zone.filter_map(|host| host.replica.as_ref());
        let terms: Vec<&Terms> = replicas.map(Replica::terms).collect();
        let drain = terms.iter().map(|terms| terms.write_drain).max();
        let policy = terms.iter().min_by_key(|terms| terms.write_drain_waited);
        let (Some(drain), Some(policy)) = (drain, policy) else {
            return;
        };
        let offered = Offered {
            drain,
            policy: Policy {
                terms: policy.id,
                drain: policy.write_drain,
                drain_waited: policy.write_drain_waited,
            },
        };
        for proxy in 0..self.state.proxies.len() {
            let of_zone = &self.state.proxies[proxy];
            if of_zone.zone != zone || of_zone.offered == offered {
                continue;
            }
            let first = !of_zone.is_given();
            let at_once = |speed| speed == Speed::AtOnce || first;
            let scenario = self.scenario;
            let at = proxy;
            let proxy = self.proxy(proxy);
            if !first && scenario.budget.turns_back > 0 {
                let before = proxy.offered.policy;
                if before != offered.policy && !proxy.earlier.contains(&before) {
                    proxy.earlier.push(before);
                }
            }
            proxy.offered = offered;
            if at_once(scenario.speed_of_routes(at)) {
                proxy.take_routes();
            }
            for worker in 0..proxy.workers.len() {
                if at_once(scenario.speed_of_policy(at, worker)) {
                    proxy.take_policy(worker);
                }
            }
        }
    }

    pub(super) fn revoke(&mut self, index: usize, holder: HolderId, cell: &Name, fence: Stamp) {
        for proxy in 0..self.state.proxies.len() {
            if self.state.proxies[proxy].holder != holder {
                continue;
            }
            if *cell == self.scenario.cell(self.scenario.cell_of(proxy)) {
                self.send(Message::Revoked { proxy, fence });
                continue;
            }
            // It never writes to that cell, so it has nothing in flight.
            let drained = Input::Drained {
                holder,
                cell: cell.clone(),
                fence,
            };
            self.tell(index, drained);
        }
    }

    pub(crate) fn ask(&mut self, proxy: usize, host: usize) {
        let (nonce, terms) = self.proxy(proxy).ask();
        let terms = Some(terms).filter(|_| !self.scenario.older_filter);
        self.send(Message::Asked {
            proxy,
            host,
            nonce,
            terms,
        });
    }

    /// Sends between replicas. Of the late messages between two of them, the oldest and the newest
    /// stay under way.
    pub(super) fn send_to_replica(&mut self, message: Message, speed: Speed) {
        match speed {
            Speed::AtOnce => self.arrive(message),
            Speed::Never => {}
            Speed::Late => {
                let like = self
                    .state
                    .net
                    .iter()
                    .filter(|other| other.is_like(&message));
                let newer = like.copied().nth(1);
                if let Some(newer) = newer {
                    self.state.net.remove(&newer);
                }
                self.state.net.insert(message);
            }
        }
    }

    pub(super) fn send(&mut self, message: Message) {
        let net = self.scenario.net;
        let lines = |host: usize| self.scenario.hosts[host].1;
        let (proxy, speed) = match message {
            Message::Asked { proxy, .. } => (proxy, net.questions),
            Message::Granted { proxy, .. } => (proxy, net.grants),
            Message::Revoked { proxy, .. } => (proxy, net.revocations),
            Message::Drained { proxy, .. } => (proxy, net.acknowledgements),
            Message::Beat { from, .. } => {
                return self.send_to_replica(message, lines(from.0).beats);
            }
            Message::Heard { by, .. } => {
                return self.send_to_replica(message, lines(by.0).heard);
            }
        };
        let eager = self.scenario.eager.contains(&proxy);
        match speed {
            Speed::Late if !eager || self.scenario.eager_late => {
                self.state.net.insert(message);
            }
            Speed::Never if !eager || self.scenario.eager_late => {}
            _ => self.arrive(message),
        }
    }

    pub(crate) fn arrive(&mut self, message: Message) {
        let Scenario {
            terms, mutation, ..
        } = self.scenario;
        match message {
            Message::Asked {
                proxy,
                host,
                nonce,
                terms,
            } => {
                self.due.push_back(Due::Asked {
                    proxy,
                    host,
                    nonce,
                    terms,
                });
            }
            Message::Granted {
                proxy,
                nonce,
                grant,
            } => self.proxy(proxy).granted(nonce, &grant, terms, *mutation),
            Message::Revoked { proxy, fence } => {
                self.proxy(proxy).revoked(fence);
                self.hurry(proxy);
            }
            Message::Beat { from, to, round } => {
                let (host, from) = (to.0, self.session_id(from));
                let to = self.session_id(to);
                self.tell(host, Input::Beat { from, to, round });
            }
            Message::Heard { by, of, round } => {
                let (host, by) = (of.0, self.session_id(by));
                let of = self.session_id(of);
                self.tell(host, Input::Heard { by, of, round });
            }
            Message::Drained { proxy, host, fence } => {
                let holder = self.state.proxies[proxy].holder;
                let cell = self.scenario.cell(self.scenario.cell_of(proxy));
                self.tell(
                    host,
                    Input::Drained {
                        holder,
                        cell,
                        fence,
                    },
                );
            }
        }
    }

    /// A prompt proxy acts at once.
    pub(crate) fn hurry(&mut self, proxy: usize) {
        if !self.scenario.prompt {
            return;
        }
        let terms = &self.scenario.terms;
        for worker in 0..self.state.proxies[proxy].workers.len() {
            self.proxy(proxy).look(worker, terms);
        }
        self.acknowledge(proxy);
    }

    /// A proxy acknowledges as much as it can, to every replica of its zone.
    pub(crate) fn acknowledge(&mut self, proxy: usize) {
        let (terms, mutation) = (&self.scenario.terms, self.scenario.mutation);
        let Some(fence) = self.proxy(proxy).acknowledge(terms, mutation) else {
            return;
        };
        for host in self.hosts_of(proxy) {
            self.send(Message::Drained { proxy, host, fence });
        }
    }

    pub(crate) fn hosts_of(&self, proxy: usize) -> Vec<usize> {
        let zone = self.state.proxies[proxy].zone;
        let hosts = self.state.hosts.iter().enumerate();
        let of_zone = hosts.filter(|(_, host)| host.zone == zone && host.replica.is_some());
        of_zone.map(|(index, _)| index).collect()
    }

    /// A write arrives at a worker of a proxy.
    pub(crate) fn write(&mut self, proxy: usize, worker: usize) {
        let cell = self.scenario.cell_of(proxy);
        let proxies = self.state.proxies.iter().enumerate();
        let of_cell = proxies.filter(|(at, _)| self.scenario.cell_of(*at) == cell);
        let in_flight = of_cell.flat_map(|(_, proxy)| &proxy.writes);
        let epochs: BTreeSet<u64> = in_flight.map(|write| write.epoch).collect();
        let (terms, mutation) = (&self.scenario.terms, self.scenario.mutation);
        let Some(epoch) = self.proxy(proxy).write(worker, terms, mutation) else {
            return;
        };
        let zone = Scenario::zone(self.state.proxies[proxy].zone);
        let owners = self.state.owners.get(&(cell, epoch));
        self.state.broken = if epochs.iter().any(|other| *other != epoch) {
            Some(Broken::TwoEpochs)
        } else if epoch < self.state.admitted[cell] {
            Some(Broken::EpochWentBack)
        } else if !owners.is_some_and(|owners| owners.contains(&zone)) {
            Some(Broken::NotOwner)
        } else {
            None
        };
        self.state.admitted[cell] = self.state.admitted[cell].max(epoch);
    }
}
