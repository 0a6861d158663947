//! A moment of the whole mesh.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use policy::fence::{
    Agreed, Clause, Effect, Grant, HolderId, Input, Layout, Name, Outcome, Replica, Revision,
    SessionId, Stamp, Terms, Transaction, Write,
};

use crate::{Budget, Mutation, Scenario, Speed, proxy::Proxy, store::Store};

/// A moment. What is far away is shared with the moments before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub time: u64,
    pub store: Arc<Store>,
    pub backup: Option<Arc<Store>>,
    pub hosts: Vec<Arc<Host>>,
    pub proxies: Vec<Arc<Proxy>>,
    /// Messages under way between replicas and proxies.
    pub net: BTreeSet<Message>,
    /// Requests to the store whose senders are gone.
    pub orphans: Vec<Transaction>,
    pub left: Budget,
    /// The wishes and the slow clocks that were used, by bit.
    pub wished: u32,
    pub slowed: u32,
    pub changed: u32,
    /// The highest epoch of each cell for which a write was admitted.
    pub admitted: [u64; 2],
    /// Who may write to a cell in an epoch, as the store said first.
    pub owners: Arc<BTreeMap<(usize, u64), Vec<Name>>>,
    /// What must not be.
    pub broken: Option<Broken>,
}

/// What must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// A write was admitted while one of another epoch was in flight.
    TwoEpochs,
    /// A write was admitted for an epoch below another's.
    EpochWentBack,
    /// A zone admitted a write that does not own the cell in that epoch.
    NotOwner,
}

/// The machine of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    pub zone: usize,
    pub clock: u64,
    pub replica: Option<Replica>,
    /// How many incarnations there were.
    pub born: u32,
    /// What it has not been told, by revision.
    pub untold: VecDeque<Vec<Input>>,
    pub requests: Vec<Request>,
    /// It does not reach the store.
    pub cut: bool,
}

/// A request to the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    pub number: u64,
    pub transaction: Transaction,
    /// Once the store has it.
    pub outcome: Option<Outcome>,
    /// The replica does not wait for it any more.
    pub timed_out: bool,
}

/// An incarnation: the host, and its number there.
pub type Incarnation = (usize, u32);

/// Between a replica and a proxy, or another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    Asked {
        proxy: usize,
        host: usize,
        nonce: u64,
    },
    Granted {
        proxy: usize,
        nonce: u64,
        grant: Grant,
    },
    Revoked {
        proxy: usize,
        fence: Stamp,
    },
    Drained {
        proxy: usize,
        host: usize,
        fence: Stamp,
    },
    Beat {
        from: Incarnation,
        to: Incarnation,
        round: u64,
    },
    Heard {
        by: Incarnation,
        of: Incarnation,
        round: u64,
    },
}

impl Message {
    /// Whether it is of the same kind, and between the same replicas.
    fn is_like(&self, other: &Message) -> bool {
        match (self, other) {
            (Message::Beat { from, to, .. }, Message::Beat { from: f, to: t, .. }) => {
                from == f && to == t
            }
            (Message::Heard { by, of, .. }, Message::Heard { by: b, of: o, .. }) => {
                by == b && of == o
            }
            _ => false,
        }
    }
}

/// What is to happen at once.
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
    },
    Effects(usize, Vec<Effect>),
}

/// A state that is being changed.
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

    /// Lets happen whatever happens at once.
    pub(crate) fn done(mut self) -> State {
        while let Some(due) = self.due.pop_front() {
            match due {
                Due::Input(host, input) => self.handle(host, input, None),
                Due::Effects(host, effects) => {
                    for effect in effects {
                        self.effect(host, effect, None);
                    }
                }
                Due::Asked { proxy, host, nonce } => {
                    let holder = self.state.proxies[proxy].holder;
                    self.handle(host, Input::Asked { holder, nonce }, Some(proxy));
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

    /// A replica that has heard of a change of terms is configured with what comes next.
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

    /// The proxies of a zone have the routes of one of its replicas, and the policy of one: here those that are least fit.
    fn reroute(&mut self, index: usize) {
        let zone = self.state.hosts[index].zone;
        let of_zone = self.state.hosts.iter().filter(|host| host.zone == zone);
        let replicas = of_zone.filter_map(|host| host.replica.as_ref());
        let terms: Vec<&Terms> = replicas.map(Replica::terms).collect();
        let drain = terms.iter().map(|terms| terms.write_drain).max();
        let waited = terms.iter().map(|terms| terms.write_drain_waited).min();
        let (Some(drain), Some(waited)) = (drain, waited) else {
            return;
        };
        for proxy in 0..self.state.proxies.len() {
            let of_zone = &self.state.proxies[proxy];
            let now = (of_zone.drain, of_zone.drain_waited);
            if of_zone.zone == zone && now != (drain, waited) {
                let proxy = self.proxy(proxy);
                (proxy.drain, proxy.drain_waited) = (drain, waited);
            }
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

    fn revoke(&mut self, index: usize, holder: HolderId, cell: &Name, fence: Stamp) {
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

    fn request(&mut self, index: usize, number: u64, transaction: Transaction) {
        let (there, _) = self.speeds(index, &transaction);
        let host = self.host(index);
        host.requests.push(Request {
            number,
            transaction,
            outcome: None,
            timed_out: false,
        });
        let last = host.requests.len() - 1;
        match there {
            Speed::AtOnce if !host.cut => self.apply(index, last),
            Speed::AtOnce | Speed::Late => {}
            Speed::Never => drop(host.requests.remove(last)),
        }
    }

    /// How fast a request is, and its answer.
    fn speeds(&self, index: usize, transaction: &Transaction) -> (Speed, Speed) {
        let (_, lines) = self.scenario.hosts[index];
        match transaction.writes[..] {
            [] if !self.scenario.rounds => (Speed::Never, Speed::Never),
            [] => (lines.confirmations, Speed::AtOnce),
            [Write::Session(_)] => (lines.renewals, lines.renewal_answers),
            [Write::Terms(_)] => (Speed::AtOnce, Speed::AtOnce),
            _ => (lines.steps, lines.step_answers),
        }
    }

    /// The store has a request of a replica.
    pub(crate) fn apply(&mut self, index: usize, request: usize) {
        let host = self.host(index);
        let transaction = host.requests[request].transaction.clone();
        let outcome = match self.commit(&transaction) {
            Some(revision) => Outcome::Committed(revision),
            None => Outcome::Refused,
        };
        let (_, back) = self.speeds(index, &transaction);
        let late = self.late_answers_count();
        let host = self.host(index);
        host.requests[request].outcome = Some(outcome);
        if host.requests[request].timed_out && !late {
            host.requests.remove(request);
        } else if back == Speed::AtOnce && !host.cut {
            self.answer(index, request);
        }
    }

    /// A replica gets the answer to a request.
    pub(crate) fn answer(&mut self, index: usize, request: usize) {
        let request = self.host(index).requests.remove(request);
        let number = request.number;
        if let Some(outcome) = request.outcome {
            self.tell(index, Input::Answer { number, outcome });
        }
    }

    /// A replica does not wait for an answer any more.
    pub(crate) fn time_out(&mut self, index: usize, request: usize) {
        let request = &mut self.host(index).requests[request];
        request.timed_out = true;
        let number = request.number;
        let outcome = Outcome::Unknown;
        self.tell(index, Input::Answer { number, outcome });
    }

    /// The store makes a transaction, and tells everybody.
    pub(crate) fn commit(&mut self, transaction: &Transaction) -> Option<Revision> {
        let store = Arc::make_mut(&mut self.state.store);
        let (revision, told) = store.apply(transaction)?;
        // The cells are in the order of their names.
        for (at, (_, authority)) in store.authorities().enumerate() {
            let epoch = (at, authority.epoch);
            if !self.state.owners.contains_key(&epoch) {
                let owners = Arc::make_mut(&mut self.state.owners);
                owners.insert(epoch, authority.owners.clone());
            }
        }
        for index in 0..self.state.hosts.len() {
            if self.state.hosts[index].replica.is_none() || told.is_empty() {
                continue;
            }
            match self.scenario.hosts[index].1.watch {
                Speed::AtOnce if !self.state.hosts[index].cut => {
                    for input in &told {
                        self.tell(index, input.clone());
                    }
                }
                Speed::AtOnce | Speed::Late => {
                    self.host(index).untold.push_back(told.clone());
                }
                Speed::Never => {}
            }
        }
        Some(revision)
    }

    /// A process begins on a host: it lists the store, and the proxies of its zone connect.
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

    /// A replica lists the store. What it was not told until now, it is never told.
    pub(crate) fn relist(&mut self, index: usize) {
        let mut listing = self.state.store.list();
        if self.mutated(Mutation::StoreIdKept) || self.mutated(Mutation::RestoreUnnoticed) {
            listing.store = 1;
        }
        self.host(index).untold.clear();
        self.tell(index, Input::Listed(listing));
    }

    /// A process is gone. What it sent may still reach the store.
    pub(crate) fn crash(&mut self, index: usize) {
        let host = self.host(index);
        host.replica = None;
        host.untold.clear();
        let requests = std::mem::take(&mut host.requests);
        let unmade = requests.into_iter().filter(|r| r.outcome.is_none());
        self.state.orphans.extend(unmade.map(|r| r.transaction));
    }

    pub(crate) fn ask(&mut self, proxy: usize, host: usize) {
        let nonce = self.proxy(proxy).ask();
        self.send(Message::Asked { proxy, host, nonce });
    }

    /// Sends between replicas. Of what is late between two of them, the oldest and the newest are under way.
    fn send_to_replica(&mut self, message: Message, speed: Speed) {
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

    fn send(&mut self, message: Message) {
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
        let terms = &self.scenario.terms;
        match message {
            Message::Asked { proxy, host, nonce } => {
                self.due.push_back(Due::Asked { proxy, host, nonce });
            }
            Message::Granted {
                proxy,
                nonce,
                grant,
            } => self.proxy(proxy).granted(nonce, &grant, terms),
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

    /// A prompt proxy does what it can.
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

    /// A proxy acknowledges what it can, to every replica of its zone.
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

    /// A write comes to a worker of a proxy.
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

    /// Another store answers, with what was put aside.
    pub(crate) fn restore(&mut self) {
        let Some(backup) = self.state.backup.take() else {
            return;
        };
        let mut store = Store::clone(&backup);
        store.id = self.state.store.id + 1;
        self.state.store = Arc::new(store);
        self.state.orphans.clear();
        for index in 0..self.state.hosts.len() {
            let host = self.host(index);
            host.untold.clear();
            host.requests.clear();
            if host.replica.is_some() && !self.mutated(Mutation::RestoreUnnoticed) {
                self.tell(index, Input::Doubted);
            }
        }
    }

    /// Time passes for everybody, but for a clock that misses it.
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
        // Those that can wait longer are made when they are made.
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

    /// Whether a rule was taken away by which late answers count.
    pub(crate) fn late_answers_count(&self) -> bool {
        !self.scenario.terms.keeps(Clause::RenewalMatched)
    }
}
