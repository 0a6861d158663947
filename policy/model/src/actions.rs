//! The possible next steps, and the exploration of all of them.

use std::{collections::BTreeMap, sync::Arc};

use policy::fence::{
    Agreed, CellRules, Condition, Input, Key, Layout, Move, MoveRejected, Name, Transaction, Write,
};
use stateright::{Checker as _, HasDiscoveries, Model, Property};

use crate::{
    Budget, Clock, Host, Message, Mutation, Proxy, Scenario, Speed, State, change::Change,
    store::Store,
};

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

const FENCED: &str = "no two zones write";
const WISHED: &str = "no cell moves without cause";
const WRITABLE: &str = "somebody can write at last";

impl Scenario {
    pub(crate) fn rules(&self) -> BTreeMap<Name, CellRules> {
        let zones = |of: &[usize]| of.iter().map(|zone| Scenario::zone(*zone)).collect();
        let rules = |owners: &[usize], standby: &[usize]| CellRules {
            owners: zones(owners),
            standby: zones(standby),
            automatic: self.automatic,
            cool_down: 0,
            epoch_min: 1,
        };
        let first = (self.cell(0), rules(&self.owners, &self.standby));
        let second = self.second.as_ref();
        let second = second.map(|(owners, standby)| (self.cell(1), rules(owners, standby)));
        [first].into_iter().chain(second).collect()
    }

    /// All processes run without faults, and the owner's proxies hold grants.
    fn warmed_up(&self) -> State {
        let calm = Scenario {
            hosts: (self.hosts.iter())
                .map(|(zone, lines)| (*zone, self.lines_before(lines)))
                .collect(),
            net: crate::Net {
                routes: self.net.routes,
                policies: self.net.policies,
                policies_of_others: self.net.policies_of_others,
                ..crate::Net::default()
            },
            eager: Vec::new(),
            ..self.clone()
        };
        let mut state = calm.cold();
        for host in 0..self.hosts.len() {
            let mut change = Change::new(&calm, state);
            change.start(host);
            state = change.done();
        }
        for _ in 0..30 {
            let mut change = Change::new(&calm, state);
            change.tick(None);
            state = change.done();
            let cells = self.rules().into_keys();
            let mut authorities = cells.map(|cell| state.store.authority(&cell));
            if authorities
                .all(|a| a.is_some_and(|a| a.state == policy::fence::AuthorityState::Active))
            {
                break;
            }
        }
        if let Some(ticks) = self.changed_before {
            state = self.changed(&calm, state, ticks);
        }
        let mut change = Change::new(&calm, state);
        for proxy in &self.warm {
            let host = change.hosts_of(*proxy)[0];
            change.ask(*proxy, host);
        }
        state = change.done();
        state.time = 0;
        state
    }

    /// The delays until all processes run.
    fn lines_before(&self, lines: &crate::Lines) -> crate::Lines {
        let steps = match self.changed_before {
            Some(_) => lines.steps,
            None => crate::Speed::AtOnce,
        };
        crate::Lines {
            steps,
            ..crate::Lines::default()
        }
    }

    /// The terms are changed, and time passes.
    fn changed(&self, calm: &Scenario, state: State, ticks: u64) -> State {
        let changing = Scenario {
            hosts: self.hosts.clone(),
            ..calm.clone()
        };
        let told_of_change = Scenario {
            hosts: calm.hosts.clone(),
            ..self.clone()
        };
        let first = match self.hears_change {
            true => &told_of_change,
            false => &changing,
        };
        let mut change = Change::new(first, state);
        self.change_terms(&mut change, 0);
        let mut state = change.done();
        for _ in 0..ticks {
            let mut change = Change::new(&changing, state);
            change.tick(None);
            state = change.done();
        }
        state
    }

    fn cold(&self) -> State {
        let host = |(zone, _): &(usize, _)| {
            Arc::new(Host {
                zone: *zone,
                clock: 0,
                replica: None,
                born: 0,
                untold: Default::default(),
                requests: Vec::new(),
                cut: false,
            })
        };
        let proxies = self.proxies.iter().enumerate();
        let proxy = |(index, (zone, workers)): (usize, &(usize, u64))| {
            Arc::new(Proxy::new(*zone, self.holder(index), *workers))
        };
        State {
            time: 0,
            store: Arc::new(Store::new(1)),
            backup: None,
            hosts: self.hosts.iter().map(host).collect(),
            proxies: proxies.map(proxy).collect(),
            net: Default::default(),
            orphans: Vec::new(),
            left: self.budget,
            wished: 0,
            slowed: 0,
            changed: 0,
            admitted: [0; 2],
            owners: Default::default(),
            broken: None,
        }
    }

    /// An operator's move request, at the replica that receives it.
    fn wish(&self, change: &mut Change<'_>, index: usize) -> Result<(), MoveRejected> {
        let (host, to, cause) = &self.wishes[index];
        let next = Move {
            id: Arc::from("wish"),
            to: to.iter().map(|zone| Scenario::zone(*zone)).collect(),
            cause: *cause,
            reason: Arc::from(""),
            epoch_min: (change.state.owners.keys().map(|(_, epoch)| *epoch).max()).unwrap_or(0),
            hold: 0,
        };
        let cell = self.cell(self.cell_of_wish(index));
        let at = change.host(*host);
        let now = at.clock;
        let replica = at.replica.as_mut().ok_or(MoveRejected::NoSession)?;
        let effects = replica.request_move(&cell, next, true, now)?;
        change.tell_effects(*host, effects);
        Ok(())
    }

    fn change_terms(&self, change: &mut Change<'_>, index: usize) {
        let next = Agreed::of(&self.changes[index], Layout::default());
        let Some((at, agreement)) = change.state.store.terms() else {
            return;
        };
        if agreement.next.is_some() {
            return;
        }
        let transaction = Transaction {
            conditions: vec![Condition::PutAt(Key::Terms, at)],
            writes: vec![Write::Terms(agreement.widened(next))],
        };
        change.commit(&transaction);
        change.state.changed |= 1 << index;
    }

    /// An operator gives a replica a wrong configuration, or corrects it.
    fn reconfigure(&self, change: &mut Change<'_>, index: usize) {
        let Some(replica) = &change.state.hosts[index].replica else {
            return;
        };
        let mut own = Agreed::of(&self.terms, Layout::default());
        own.session_ttl += u64::from(replica.acts());
        change.tell(index, Input::Configured(own));
    }

    fn stop(&self, change: &mut Change<'_>, index: usize) {
        if self.mutation != Some(Mutation::StopUnclean) {
            change.tell(index, Input::Stop);
            return;
        }
        let id = match &change.state.hosts[index].replica {
            Some(replica) => replica.id().clone(),
            None => return,
        };
        change.crash(index);
        let cells = self.rules().into_keys();
        let grantors = cells.map(|cell| Write::Delete(Key::Grantor(cell, id.clone())));
        let session = Write::Delete(Key::Session(id.clone()));
        change.commit(&Transaction {
            conditions: Vec::new(),
            writes: grantors.chain([session]).collect(),
        });
    }

    fn host_actions(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
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

    fn request_actions(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
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

    fn proxy_actions(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
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

    fn perform(&self, change: &mut Change<'_>, action: &Action) {
        let terms = &self.terms;
        match action {
            Action::Tick => change.tick(None),
            Action::TickBut(clock) => {
                let at = self.slow_clocks.iter().position(|slow| slow == clock);
                change.state.slowed |= 1 << at.unwrap_or(0);
                change.tick(Some(*clock));
            }
            Action::Write { proxy, worker } => {
                let before = change.state.admitted_writes();
                change.write(*proxy, *worker);
                if change.state.admitted_writes() > before || change.state.broken.is_some() {
                    change.state.left.writes -= 1;
                }
            }
            Action::End { proxy, write } => change.proxy(*proxy).end(*write, terms),
            Action::Abandon { proxy, write } => change.proxy(*proxy).abandon(*write, terms),
            Action::Look { proxy, worker } => change.proxy(*proxy).look(*worker, terms),
            Action::Acknowledge(proxy) => change.acknowledge(*proxy),
            Action::TakeRoutes(proxy) => change.proxy(*proxy).take_routes(),
            Action::TakePolicy { proxy, worker } => change.proxy(*proxy).take_policy(*worker),
            Action::TakeEarlierPolicy {
                proxy,
                worker,
                earlier,
            } => {
                change.state.left.turns_back -= 1;
                change.proxy(*proxy).take_earlier_policy(*worker, *earlier);
            }
            Action::Ask { proxy, host } => change.ask(*proxy, *host),
            Action::Arrive(message) => {
                change.state.net.remove(message);
                change.arrive(*message);
            }
            Action::Repeat(message) => change.arrive(*message),
            Action::Apply { host, request } => change.apply(*host, *request),
            Action::Answer { host, request } => change.answer(*host, *request),
            Action::TimeOut { host, request } => change.time_out(*host, *request),
            Action::Told(host) => {
                let untold = &mut change.host(*host).untold;
                let told = match self.told_together {
                    true => untold.len(),
                    false => 1,
                };
                let told: Vec<_> = untold.drain(..told).flatten().collect();
                for input in told {
                    change.tell(*host, input);
                }
            }
            Action::Orphan(index) => {
                let transaction = change.state.orphans.remove(*index);
                change.commit(&transaction);
            }
            Action::Crash(host) => change.crash(*host),
            Action::Restart(host) => change.start(*host),
            Action::Cut(host) => change.host(*host).cut = true,
            Action::Mend(host) => change.mend(*host),
            Action::MoveRequest(index) => {
                if self.wish(change, *index).is_ok() {
                    change.state.wished |= 1 << index;
                }
            }
            Action::Change(index) => self.change_terms(change, *index),
            Action::LoseWorker { proxy, worker } => {
                change.proxy(*proxy).lose(*worker, self.mutation);
            }
            Action::Relist(host) => change.relist(*host),
            Action::Backup => change.state.backup = Some(change.state.store.clone()),
            Action::Restore => change.restore(),
            Action::Stop(host) => self.stop(change, *host),
            Action::Reconfigure(host) => self.reconfigure(change, *host),
        }
    }

    fn spend(left: &mut Budget, action: &Action) {
        let of = match action {
            Action::Ask { .. } => &mut left.questions,
            Action::Repeat(_) => &mut left.repeats,
            Action::End { .. } => &mut left.ends,
            Action::TimeOut { .. } => &mut left.timeouts,
            Action::Crash(_) => &mut left.crashes,
            Action::Restart(_) => &mut left.restarts,
            Action::Cut(_) => &mut left.cuts,
            Action::LoseWorker { .. } => &mut left.workers_lost,
            Action::Relist(_) => &mut left.relists,
            Action::Backup => &mut left.backups,
            Action::Restore => &mut left.restores,
            Action::Stop(_) => &mut left.stops,
            Action::Reconfigure(_) => &mut left.reconfigurations,
            _ => return,
        };
        *of -= 1;
    }
}

impl State {
    fn admitted_writes(&self) -> usize {
        self.proxies.iter().map(|proxy| proxy.writes.len()).sum()
    }

    /// Whether each cell has a proxy that would admit a write now.
    fn writable(&self, scenario: &Scenario) -> bool {
        let holds = |proxy: &Arc<Proxy>| {
            let permit = proxy.ledger.permit;
            permit.is_some_and(|permit| permit.until > proxy.clock)
        };
        let mut cells = 0..scenario.rules().len();
        cells.all(|cell| {
            let proxies = self.proxies.iter().enumerate();
            let mut of_cell = proxies.filter(|(at, _)| scenario.cell_of(*at) == cell);
            of_cell.any(|(_, proxy)| holds(proxy))
        })
    }

    /// Whether every cell's epoch is its first one, or one that operators requested.
    fn moved_on_wish_alone(&self, scenario: &Scenario) -> bool {
        let wished = |cell: usize| {
            let wishes = 0..scenario.wishes.len();
            let of_cell = wishes.filter(|wish| scenario.cell_of_wish(*wish) == cell);
            of_cell
                .filter(|wish| self.wished & (1 << wish) != 0)
                .count()
        };
        (0..scenario.rules().len()).all(|cell| {
            let owners = self.owners.keys();
            let epochs = owners.filter(|(of, _)| *of == cell).count();
            epochs <= 1 + wished(cell)
        })
    }
}

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.warmed_up()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        if state.time < self.horizon {
            actions.push(Action::Tick);
            for (bit, clock) in self.slow_clocks.iter().enumerate() {
                if state.slowed & (1 << bit) == 0 {
                    actions.push(Action::TickBut(*clock));
                }
            }
        }
        for index in 0..state.proxies.len() {
            self.proxy_actions(state, index, actions);
        }
        for index in 0..state.hosts.len() {
            self.host_actions(state, index, actions);
            self.request_actions(state, index, actions);
        }
        for message in &state.net {
            actions.push(Action::Arrive(*message));
            if state.left.repeats > 0 {
                actions.push(Action::Repeat(*message));
            }
        }
        actions.extend((0..state.orphans.len()).map(Action::Orphan));
        for wish in 0..self.wishes.len() {
            if state.wished & (1 << wish) == 0 && state.time <= self.faults_until {
                actions.push(Action::MoveRequest(wish));
            }
        }
        for index in 0..self.changes.len() {
            if state.changed & (1 << index) == 0 {
                actions.push(Action::Change(index));
            }
        }
        if state.left.backups > 0 {
            actions.push(Action::Backup);
        }
        if state.left.restores > 0 && state.backup.is_some() {
            actions.push(Action::Restore);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut change = Change::new(self, last.clone());
        self.perform(&mut change, &action);
        let mut next = change.done();
        if next == *last {
            return None;
        }
        Scenario::spend(&mut next.left, &action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always(FENCED, |_, state: &State| {
            state.broken.is_none()
        })];
        if self.writable_at_last {
            properties.push(Property::always(
                WRITABLE,
                |scenario: &Scenario, state: &State| {
                    state.time < scenario.horizon || state.writable(scenario)
                },
            ));
        }
        if self.moves_on_wish_alone {
            properties.push(Property::always(
                WISHED,
                |scenario: &Scenario, state: &State| state.moved_on_wish_alone(scenario),
            ));
        }
        properties
    }
}

/// The result of an exploration.
#[derive(Clone, Debug)]
pub struct Found {
    pub states: usize,
    pub depth: usize,
    /// The whole scope was explored.
    pub exhausted: bool,
    /// The shortest trace to a violation.
    pub violation: Option<Vec<Action>>,
}

/// Explores a scenario until it finds a violation or has explored everything.
pub fn explore(scenario: &Scenario) -> Found {
    let states_max = scenario.states_max.unwrap_or(usize::MAX);
    let builder = scenario.clone().checker().threads(1);
    let builder = builder.finish_when(HasDiscoveries::AnyFailures);
    let checker = match scenario.states_max {
        Some(max) => builder.target_state_count(max),
        None => builder,
    };
    let checker = checker.spawn_bfs().join();
    let violation = checker.discoveries().into_values().next();
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        exhausted: violation.is_none() && checker.state_count() < states_max,
        violation: violation.map(|path| path.into_actions()),
    }
}
