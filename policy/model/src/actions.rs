//! The possible next steps.

use crate::{Clock, Message, Scenario, Speed, State};

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    /// Time passes, and this clock misses it.
    TickBut(Clock),
    Write {
        proxy: usize,
        worker: usize,
    },
    /// A write ends before its longest lifetime.
    End {
        proxy: usize,
        write: usize,
    },
    /// A write's client disconnects, and its instance continues.
    Abandon {
        proxy: usize,
        write: usize,
    },
    /// A worker reads the ledger.
    Look {
        proxy: usize,
        worker: usize,
    },
    Acknowledge(usize),
    /// A proxy applies the routes that it is offered, or a worker the policy.
    TakeRoutes(usize),
    TakePolicy {
        proxy: usize,
        worker: usize,
    },
    /// A worker applies a policy that the proxy was offered earlier.
    TakeEarlierPolicy {
        proxy: usize,
        worker: usize,
        earlier: usize,
    },
    Ask {
        proxy: usize,
        host: usize,
    },
    Arrive(Message),
    /// The message arrives, and will arrive again.
    Repeat(Message),
    /// The store receives a request.
    Apply {
        host: usize,
        request: usize,
    },
    Answer {
        host: usize,
        request: usize,
    },
    /// The sender abandons the request.
    TimeOut {
        host: usize,
        request: usize,
    },
    /// A replica receives the next event of its watch.
    Told(usize),
    /// The store receives a request of a sender that has crashed.
    Orphan(usize),
    Crash(usize),
    Restart(usize),
    Cut(usize),
    Mend(usize),
    MoveRequest(usize),
    /// An operator changes the agreed terms.
    Change(usize),
    LoseWorker {
        proxy: usize,
        worker: usize,
    },
    Relist(usize),
    Backup,
    Restore,
    Stop(usize),
    Reconfigure(usize),
}

impl Scenario {
    pub(crate) fn host_actions(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let host = &state.hosts[index];
        let left = &state.left;
        let waits = |budget: u8| budget > 0;
        if host.replica.is_none() {
            if waits(left.restarts) && !host.cut {
                actions.push(Action::Restart(index));
            }
            return;
        }
        if !host.untold.is_empty() && !host.cut {
            actions.push(Action::Told(index));
        }
        let calm = state.time > self.faults_until;
        if waits(left.crashes) && !calm {
            actions.push(Action::Crash(index));
        }
        if waits(left.relists) && !host.cut {
            actions.push(Action::Relist(index));
        }
        if waits(left.stops) {
            actions.push(Action::Stop(index));
        }
        if waits(left.reconfigurations) {
            actions.push(Action::Reconfigure(index));
        }
        match host.cut {
            true => actions.push(Action::Mend(index)),
            false if waits(left.cuts) && !calm => actions.push(Action::Cut(index)),
            false => {}
        }
    }

    pub(crate) fn request_actions(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let host = &state.hosts[index];
        if host.cut {
            return;
        }
        for (at, request) in host.requests.iter().enumerate() {
            let (host, request_at) = (index, at);
            actions.push(match request.outcome.is_none() {
                true => Action::Apply {
                    host,
                    request: request_at,
                },
                false => Action::Answer {
                    host,
                    request: request_at,
                },
            });
            if state.left.timeouts > 0 && !request.timed_out {
                actions.push(Action::TimeOut {
                    host,
                    request: request_at,
                });
            }
        }
    }

    pub(crate) fn proxy_actions(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let proxy = &state.proxies[index];
        for worker in 0..proxy.workers.len() {
            let (_, machine) = &proxy.workers[worker];
            if state.left.writes > 0 {
                actions.push(Action::Write {
                    proxy: index,
                    worker,
                });
            }
            if !self.prompt {
                actions.push(Action::Look {
                    proxy: index,
                    worker,
                });
            }
            if state.left.workers_lost > 0 && machine.listed() {
                actions.push(Action::LoseWorker {
                    proxy: index,
                    worker,
                });
            }
        }
        if state.left.ends > 0 {
            let ends = 0..proxy.writes.len();
            let proxy = index;
            actions.extend(ends.map(|write| Action::End { proxy, write }));
        }
        if state.left.abandons > 0 {
            let counted = |write: &usize| proxy.writes[*write].worker.is_some();
            let open = (0..proxy.writes.len()).filter(counted);
            let proxy = index;
            actions.extend(open.map(|write| Action::Abandon { proxy, write }));
        }
        if !self.prompt {
            actions.push(Action::Acknowledge(index));
        }
        if self.speed_of_routes(index) == Speed::Late && proxy.drain != proxy.offered.drain {
            actions.push(Action::TakeRoutes(index));
        }
        for worker in 0..proxy.policies.len() {
            let late = self.speed_of_policy(index, worker) == Speed::Late;
            if late && proxy.policies[worker] != proxy.offered.policy {
                let proxy = index;
                actions.push(Action::TakePolicy { proxy, worker });
            }
            if state.left.turns_back > 0 && self.left_behind.contains(&index) {
                for (earlier, policy) in proxy.earlier.iter().enumerate() {
                    if proxy.policies[worker] != *policy {
                        actions.push(Action::TakeEarlierPolicy {
                            proxy: index,
                            worker,
                            earlier,
                        });
                    }
                }
            }
        }
        if state.left.questions > 0 && !self.eager.contains(&index) {
            let hosts = state.hosts.iter().enumerate();
            let near = hosts.filter(|(_, h)| h.zone == proxy.zone && h.replica.is_some());
            actions.extend(near.map(|(host, _)| Action::Ask { proxy: index, host }));
        }
    }
}
