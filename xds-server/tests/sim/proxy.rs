//! A proxy process: the filter's own code for holding grants, in several workers, with writes.

mod connection;
mod host;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use filter_core::{
    fence::{
        permits::Permits,
        worker::{Worker, terms_of},
    },
    stream::{ContextId, Token},
};
use policy::{
    Policy,
    fence::{Terms, TermsId, WorkerId},
    shard::key_digest,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use xds_server::{
    authority::{Agreements, Authorities},
    config::Mesh,
    world,
};

use crate::{clock::Drifting, history::History, mesh::CELLS, rng::Rng, store::Doors};
use host::Host;

const TICK: Duration = Duration::from_millis(10);
const CONTEXT: ContextId = ContextId(1);
const WORKERS: usize = 2;
/// The number of keys that writes use.
const KEYS: u64 = 12;
/// For a write that is no longer counted.
const NOBODY: WorkerId = WorkerId(0);

/// The control planes of a zone that a proxy can connect to now.
pub(crate) type Roster = Arc<Mutex<Vec<Seat>>>;

/// One of these control planes.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) authorities: Authorities,
    pub(crate) agreements: Agreements,
    pub(crate) doors: Doors,
}

/// The test's controls of a proxy.
#[derive(Clone)]
pub(crate) struct Levers {
    /// The connection to the control plane is cut.
    pub(crate) cut: watch::Sender<bool>,
    pub(crate) paused: watch::Sender<bool>,
    orders: mpsc::UnboundedSender<Order>,
}

pub(crate) enum Order {
    /// The process crashes, and another starts in its place.
    Crash,
    /// Another process starts, and this one ends a little later.
    HotRestart,
    /// A worker loses its memory.
    LoseWorker,
    /// The wall clock is set forward.
    StepClock,
}

impl Levers {
    pub(crate) fn order(&self, order: Order) {
        // A proxy that has ended ignores orders.
        let _ = self.orders.send(order);
    }
}

/// The common parts of all processes of one proxy.
#[derive(Clone)]
struct Site {
    zone: &'static str,
    mesh: Arc<Mesh>,
    /// Routes and policy follow the agreed terms, late, separately for each worker.
    follows: bool,
    roster: Roster,
    cut: watch::Sender<bool>,
    paused: watch::Sender<bool>,
    clock: Drifting,
    history: History,
    start: Instant,
}

/// Starts a proxy; it ends with the runtime.
pub(crate) fn start(
    zone: &'static str,
    mesh: Arc<Mesh>,
    follows: bool,
    roster: Roster,
    clock: Drifting,
    history: History,
    mut rng: Rng,
) -> Levers {
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let levers = Levers {
        cut: watch::Sender::new(false),
        paused: watch::Sender::new(false),
        orders,
    };
    let site = Site {
        zone,
        mesh,
        follows,
        roster,
        cut: levers.cut.clone(),
        paused: levers.paused.clone(),
        clock,
        history,
        start: Instant::now(),
    };
    tokio::task::spawn_local(async move {
        let mut present = run_process(&site, &mut rng);
        while let Some(order) = ordered.recv().await {
            match order {
                Order::Crash => {
                    present.task.abort();
                    present.end_writes(&site.history);
                    present = run_process(&site, &mut rng);
                }
                Order::HotRestart => {
                    let old = std::mem::replace(&mut present, run_process(&site, &mut rng));
                    let history = site.history.clone();
                    tokio::task::spawn_local(async move {
                        sleep(Duration::from_millis(700)).await;
                        old.task.abort();
                        old.end_writes(&history);
                    });
                }
                Order::LoseWorker => drop(present.orders.send(Order::LoseWorker)),
                Order::StepClock => drop(present.orders.send(Order::StepClock)),
            }
        }
    });
    levers
}

struct Running {
    task: tokio::task::JoinHandle<()>,
    orders: mpsc::UnboundedSender<Order>,
    in_flight: Rc<RefCell<Vec<InFlight>>>,
}

impl Running {
    /// The process has ended, and its writes in flight with it.
    fn end_writes(&self, history: &History) {
        for write in self.in_flight.borrow_mut().drain(..) {
            history.end(write.number);
        }
    }
}

/// A write in flight.
struct InFlight {
    number: u64,
    worker: WorkerId,
    cell: &'static str,
    /// The policy that admitted it.
    policy: Arc<Policy>,
    ends: Instant,
    /// When its client disconnects, if it does; and, by the proxy's clock, when the write was
    /// admitted.
    given_up: Option<(Instant, u64)>,
}

fn run_process(site: &Site, rng: &mut Rng) -> Running {
    let (orders, ordered) = mpsc::unbounded_channel();
    let in_flight = Rc::new(RefCell::new(Vec::new()));
    let (heard, hears) = mpsc::unbounded_channel();
    let mut rng = rng.fork();
    let policy = Arc::new(site.policy(&site.mesh));
    let given = || Given {
        policy: Arc::clone(&policy),
        context: CONTEXT,
    };
    let process = ProxyProcess {
        workers: (0..WORKERS).map(|_| worker(&given(), &mut rng)).collect(),
        given: (0..WORKERS).map(|_| given()).collect(),
        drain_us: terms(&policy).write_drain,
        host: Host {
            site: site.clone(),
            rng,
            shared: BTreeMap::new(),
            wall_lead_us: 0,
            streams: BTreeMap::new(),
            tokens: 0,
            heard,
            worker: 0,
        },
        in_flight: Rc::clone(&in_flight),
    };
    let task = tokio::task::spawn_local(process.run(hears, ordered));
    Running {
        task,
        orders,
        in_flight,
    }
}

impl Site {
    fn policy(&self, mesh: &Mesh) -> Policy {
        let viewer = mesh.topology.zone_named(self.zone).unwrap();
        world::policy(mesh, viewer, |_| Default::default(), &|_| None)
    }

    /// The mesh of a replica of the zone now, under other terms than these.
    fn offered(&self, rng: &mut Rng, but: TermsId) -> Option<Mesh> {
        let roster = self.roster.lock().unwrap();
        let seat = roster.get(rng.below(roster.len() as u64) as usize)?;
        let agreement = seat.agreements.known()?;
        let other = agreement.id() != but;
        self.mesh.under(&agreement).filter(|_| other)
    }
}

/// The cell that a key belongs to.
fn cell_of(policy: &Policy, key: u64) -> &'static str {
    let Policy::Serving(rules) = policy else {
        unreachable!("a policy with a fence");
    };
    let fencing = rules.fencing().unwrap();
    let cell = fencing.cell_of(Some(key_digest(&key.to_le_bytes())));
    let name = &fencing.cell(cell).unwrap().name;
    CELLS.into_iter().find(|cell| cell == name).unwrap()
}

/// The policy of a worker.
struct Given {
    policy: Arc<Policy>,
    context: ContextId,
}

fn terms(policy: &Policy) -> &Terms {
    terms_of(policy).unwrap()
}

fn worker(given: &Given, rng: &mut Rng) -> Worker {
    let mut worker = Worker::new(Permits::new(WorkerId(rng.next())));
    worker.configured(given.context, &given.policy);
    worker
}

struct ProxyProcess {
    workers: Vec<Worker>,
    /// By worker.
    given: Vec<Given>,
    /// The longest that routes let a write live.
    drain_us: u64,
    host: Host,
    in_flight: Rc<RefCell<Vec<InFlight>>>,
}

/// A message of a stream, for the worker that opened it.
enum Heard {
    Message(usize, Token, Vec<u8>),
    Closed(usize, Token),
}

impl ProxyProcess {
    async fn run(
        mut self,
        mut hears: mpsc::UnboundedReceiver<Heard>,
        mut ordered: mpsc::UnboundedReceiver<Order>,
    ) {
        let mut paused = self.host.site.paused.subscribe();
        let mut next_tick = Instant::now();
        loop {
            // An error is impossible: the levers exist.
            let _ = paused.wait_for(|paused| !paused).await;
            let ends = self.in_flight.borrow().iter().map(|write| write.ends).min();
            let wake = ends.map_or(next_tick, |ends| ends.min(next_tick));
            tokio::select! {
                biased;
                Ok(()) = paused.changed() => continue,
                Some(order) = ordered.recv() => self.obey(&order),
                Some(heard) = hears.recv() => self.hear(heard),
                () = tokio::time::sleep_until(wake) => {}
            }
            self.end_writes();
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                for at in 0..self.workers.len() {
                    self.host.worker = at;
                    let context = self.given[at].context;
                    self.workers[at].tick(context, &mut self.host);
                }
                self.follow();
            }
            for _ in CELLS {
                if self.host.rng.chance(30) {
                    self.write();
                }
            }
        }
    }

    /// Applies the routes and policies of the agreed terms, as far as a control plane knows them
    /// and they have arrived.
    fn follow(&mut self) {
        let site = self.host.site.clone();
        if !site.follows || *site.cut.borrow() {
            return;
        }
        if self.host.rng.chance(2)
            && let Some(mesh) = site.offered(&mut self.host.rng, TermsId::NONE)
        {
            self.drain_us = terms(&site.policy(&mesh)).write_drain;
        }
        for at in 0..self.workers.len() {
            if !self.host.rng.chance(2) {
                continue;
            }
            let present = terms(&self.given[at].policy).id;
            if let Some(mesh) = site.offered(&mut self.host.rng, present) {
                self.take(at, Arc::new(site.policy(&mesh)));
            }
        }
    }

    /// A worker uses another version of the policy from now on.
    fn take(&mut self, at: usize, policy: Arc<Policy>) {
        self.host.worker = at;
        let old = self.given[at].context;
        let context = ContextId(old.0 + 1);
        let worker = &mut self.workers[at];
        worker.configured(context, &policy);
        worker.tick(old, &mut self.host);
        worker.removed(old);
        self.given[at] = Given { policy, context };
    }

    fn obey(&mut self, order: &Order) {
        let at = self.host.rng.below(self.workers.len() as u64) as usize;
        match order {
            Order::LoseWorker => {
                self.workers[at] = worker(&self.given[at], &mut self.host.rng);
                self.host.streams.retain(|_, stream| stream.worker != at);
            }
            Order::StepClock => self.host.wall_lead_us += 2_000_000,
            Order::Crash | Order::HotRestart => {}
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Message(at, token, bytes) => {
                if self.host.streams.contains_key(&token.0) {
                    self.host.worker = at;
                    let context = self.given[at].context;
                    self.workers[at].on_message(context, token, &bytes, &mut self.host);
                }
            }
            Heard::Closed(at, token) => {
                if self.host.streams.remove(&token.0).is_some() {
                    self.host.worker = at;
                    self.workers[at].closed(token, &mut self.host);
                }
            }
        }
    }

    /// One request: a write, short or as long as permitted.
    fn write(&mut self) {
        let site = self.host.site.clone();
        let at = self.host.rng.below(self.workers.len() as u64) as usize;
        let policy = Arc::clone(&self.given[at].policy);
        let key = self.host.rng.below(KEYS);
        let cell = match site.follows {
            true => cell_of(&policy, key),
            false => CELLS[self.host.rng.below(CELLS.len() as u64) as usize],
        };
        let terms = terms(&policy);
        self.host.worker = at;
        let permits = &mut self.workers[at].permits;
        let worker = permits.me();
        let admitted = permits.admit(cell, terms, &mut self.host);
        // The table has no row for a write whose time-out there exceeds the policy's drain.
        let has_route = self.drain_us <= terms.write_drain;
        let Some(admitted) = admitted.filter(|_| has_route) else {
            permits.end(cell, terms, &mut self.host);
            site.history.refused();
            return;
        };
        let drain = Duration::from_micros(self.drain_us);
        let long = match self.host.rng.chance(20) {
            true => drain,
            false => self.host.rng.millis(1, 60).min(drain),
        };
        let ends = Instant::now() + site.clock.real(long);
        // Its instance continues to the end.
        let given_up = self.host.rng.chance(10).then(|| {
            let after = self.host.rng.millis(0, 60).min(long);
            (Instant::now() + site.clock.real(after), admitted.at_us)
        });
        let (at, over) = (site.start.elapsed(), ends - site.start);
        let history = &site.history;
        let number = history.begin(at, over, site.zone, cell, admitted.epoch);
        if site.follows {
            history.about(number, at, over, key, cell);
        }
        self.in_flight.borrow_mut().push(InFlight {
            number,
            worker,
            cell,
            policy,
            ends,
            given_up,
        });
    }

    fn end_writes(&mut self) {
        let now = Instant::now();
        let mut in_flight = self.in_flight.borrow_mut();
        let mut at = 0;
        while at < in_flight.len() {
            let write = &mut in_flight[at];
            let policy = Arc::clone(&write.policy);
            let terms = terms(&policy);
            // A worker that has lost its memory since gets no event.
            let mut workers = self.workers.iter_mut().enumerate();
            let mut of = workers.find(|(_, worker)| worker.permits.me() == write.worker);
            self.host.worker = of.as_ref().map_or(0, |(index, _)| *index);
            if let Some((given_up, admitted_us)) = write.given_up
                && given_up <= now.min(write.ends)
                && let Some((_, worker)) = of.take()
            {
                write.worker = NOBODY;
                let permits = &mut worker.permits;
                permits.abandon(write.cell, admitted_us, terms, &mut self.host);
            }
            if write.ends > now {
                at += 1;
                continue;
            }
            let write = in_flight.swap_remove(at);
            self.host.site.history.end(write.number);
            if let Some((_, worker)) = of {
                worker.permits.end(write.cell, terms, &mut self.host);
            }
        }
    }
}
