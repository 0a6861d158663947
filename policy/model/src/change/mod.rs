//! A state under change: a step, and its immediate consequences.

mod messages;
mod requests;

use std::{collections::VecDeque, sync::Arc};

use policy::fence::{Agreed, Effect, Input, Layout, Name, Replica, SessionId, TermsId};

use crate::{Host, Incarnation, Message, Mutation, Proxy, Scenario, Speed, State};

/// An immediate step.
#[allow(
    clippy::large_enum_variant,
    reason = "most are inputs, and a box each would cost a model of millions of states more"
)]
enum Due {
    Input(usize, Input),
    Asked {
        proxy: usize,
        host: usize,
        nonce: u64,
        terms: Option<TermsId>,
    },
    Effects(usize, Vec<Effect>),
}

/// A state under change.
pub(crate) struct Change<'s> {
    pub(crate) scenario: &'s Scenario,
    pub(crate) state: State,
    due: VecDeque<Due>,
}

impl<'s> Change<'s> {
    pub(crate) fn new(scenario: &'s Scenario, state: State) -> Change<'s> {
        Change {
            scenario,
            state,
            due: VecDeque::new(),
        }
    }

    pub(crate) fn host(&mut self, index: usize) -> &mut Host {
        Arc::make_mut(&mut self.state.hosts[index])
    }

    pub(crate) fn proxy(&mut self, index: usize) -> &mut Proxy {
        Arc::make_mut(&mut self.state.proxies[index])
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.scenario.mutation == Some(mutation)
    }

    pub(crate) fn tell(&mut self, host: usize, input: Input) {
        self.due.push_back(Due::Input(host, input));
    }

    pub(crate) fn tell_effects(&mut self, host: usize, effects: Vec<Effect>) {
        self.due.push_back(Due::Effects(host, effects));
    }

    /// Executes everything that happens immediately.
    pub(crate) fn done(mut self) -> State {
        while let Some(due) = self.due.pop_front() {
            match due {
                Due::Input(host, input) => self.handle(host, input, None),
                Due::Effects(host, effects) => {
                    for effect in effects {
                        self.effect(host, effect, None);
                    }
                }
                Due::Asked {
                    proxy,
                    host,
                    nonce,
                    terms,
                } => {
                    let holder = self.state.proxies[proxy].holder;
                    let asked = Input::Asked {
                        holder,
                        nonce,
                        terms,
                    };
                    self.handle(host, asked, Some(proxy));
                }
            }
        }
        self.state
    }

    fn handle(&mut self, index: usize, input: Input, asking: Option<usize>) {
        let host = self.host(index);
        let now = host.clock;
        let Some(replica) = &mut host.replica else {
            return;
        };
        let effects = replica.handle(input, now);
        self.roll(index);
        self.reroute(index);
        for effect in effects {
            self.effect(index, effect, asking);
        }
    }

    /// A replica that has seen a change of terms is configured with the next terms.
    fn roll(&mut self, index: usize) {
        let Some(replica) = &self.state.hosts[index].replica else {
            return;
        };
        let next = replica
            .agreement()
            .and_then(|(_, agreed)| agreed.next.as_ref());
        if let Some(next) = next.filter(|next| *next != replica.configured()) {
            let next = next.clone();
            self.tell(index, Input::Configured(next));
        }
    }

    fn effect(&mut self, index: usize, effect: Effect, asking: Option<usize>) {
        match effect {
            Effect::Commit {
                number,
                transaction,
            } => self.request(index, number, transaction),
            Effect::Grant { nonce, grants, .. } => {
                let Some(proxy) = asking else { return };
                let cell = self.scenario.cell(self.scenario.cell_of(proxy));
                if let Some((_, grant)) = grants.iter().find(|(of, _)| *of == cell) {
                    let grant = *grant;
                    self.send(Message::Granted {
                        proxy,
                        nonce,
                        grant,
                    });
                }
            }
            Effect::Revoke {
                holder,
                fence,
                cell,
            } => self.revoke(index, holder, &cell, fence),
            Effect::Invite { holder } => {
                for proxy in &self.scenario.eager {
                    if self.state.proxies[*proxy].holder == holder {
                        self.ask(*proxy, index);
                    }
                }
            }
            Effect::Beat { to, round } => {
                if let Some(from) = self.own(index) {
                    let to = Self::incarnation_of(&to);
                    self.send(Message::Beat { from, to, round });
                }
            }
            Effect::Heard { of, round } => {
                if let Some(by) = self.own(index) {
                    let of = Self::incarnation_of(&of);
                    self.send(Message::Heard { by, of, round });
                }
            }
            Effect::Ended => {
                let incarnation = self.incarnation(index);
                let host = self.host(index);
                let now = host.clock;
                host.requests.iter_mut().for_each(|r| r.timed_out = true);
                if let Some(replica) = host.replica.take() {
                    let (replica, effects) = replica.reborn(incarnation, now);
                    host.replica = Some(replica);
                    self.tell_effects(index, effects);
                }
            }
            Effect::Stopped => self.host(index).replica = None,
        }
    }

    fn incarnation(&mut self, index: usize) -> Name {
        let host = self.host(index);
        host.born += 1;
        Arc::from(format!("{index}-{}", host.born))
    }

    fn own(&self, index: usize) -> Option<Incarnation> {
        let replica = self.state.hosts[index].replica.as_ref();
        replica.map(|replica| Self::incarnation_of(replica.id()))
    }

    fn incarnation_of(id: &SessionId) -> Incarnation {
        let parts = id.incarnation.split_once('-');
        let numbers = parts.and_then(|(host, born)| Some((host.parse().ok()?, born.parse().ok()?)));
        numbers.unwrap_or_default()
    }

    fn session_id(&self, (host, born): Incarnation) -> SessionId {
        SessionId {
            zone: Scenario::zone(self.state.hosts[host].zone),
            incarnation: Arc::from(format!("{host}-{born}")),
        }
    }

    /// A process starts on a host: it lists the store, and the proxies of its zone connect.
    pub(crate) fn start(&mut self, index: usize) {
        let zone = self.state.hosts[index].zone;
        let first = Arc::from(format!("{index}-1"));
        let incarnation = match self.incarnation(index) {
            _ if self.mutated(Mutation::IncarnationReused) => first,
            new => new,
        };
        let id = SessionId {
            zone: Scenario::zone(zone),
            incarnation,
        };
        let terms = self.scenario.configured(index).clone();
        let own = Agreed::of(&terms, Layout::default());
        let host = self.host(index);
        host.replica = Some(Replica::new(id, terms));
        self.tell(index, Input::Configured(own));
        self.tell(index, Input::Rolled(true));
        self.tell(index, Input::Cells(self.scenario.rules()));
        self.relist(index);
        for proxy in 0..self.state.proxies.len() {
            if self.state.proxies[proxy].zone == zone {
                let holder = self.state.proxies[proxy].holder;
                self.tell(index, Input::Connected(holder));
            }
        }
    }

    /// A process crashes. Its requests may still reach the store.
    pub(crate) fn crash(&mut self, index: usize) {
        let host = self.host(index);
        host.replica = None;
        host.untold.clear();
        let requests = std::mem::take(&mut host.requests);
        let unmade = requests.into_iter().filter(|r| r.outcome.is_none());
        self.state.orphans.extend(unmade.map(|r| r.transaction));
    }

    /// Time passes for all clocks but one that may miss it.
    pub(crate) fn tick(&mut self, slow: Option<crate::Clock>) {
        use crate::Clock::{Host, Proxy};
        self.state.time += 1;
        for index in 0..self.state.proxies.len() {
            if slow != Some(Proxy(index)) {
                let terms = &self.scenario.terms;
                self.proxy(index).tick(1, terms);
            }
        }
        for index in 0..self.state.hosts.len() {
            if slow != Some(Host(index)) {
                self.host(index).clock += 1;
                self.tell(index, Input::Tick);
            }
        }
        for proxy in 0..self.state.proxies.len() {
            self.hurry(proxy);
        }
        for proxy in &self.scenario.eager {
            if let Some(host) = self.hosts_of(*proxy).first() {
                self.ask(*proxy, *host);
            }
        }
    }

    /// A replica reaches the store again.
    pub(crate) fn mend(&mut self, index: usize) {
        let (_, lines) = self.scenario.hosts[index];
        let host = self.host(index);
        host.cut = false;
        if lines.watch == Speed::AtOnce {
            for input in std::mem::take(&mut host.untold).into_iter().flatten() {
                self.tell(index, input);
            }
        }
        // Late requests are sent by their own action.
        let mut at = 0;
        while let Some(request) = self.state.hosts[index].requests.get(at) {
            let (there, _) = self.speeds(index, &request.transaction);
            let request_open = request.outcome.is_none();
            let before = self.state.hosts[index].requests.len();
            if there == Speed::AtOnce && request_open {
                self.apply(index, at);
            }
            if self.state.hosts[index].requests.len() == before {
                at += 1;
            }
        }
    }
}
