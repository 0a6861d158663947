//! The one task that owns this process's replicas. It handles one input at a time, and outputs
//! transactions and messages.

mod commands;
mod judging;
mod others;
mod store_events;
mod streams;
mod telling;
mod transactions;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use policy::fence::{Effect, HolderId, Input, Name, Replica, SessionId, Terms, TransactionOutcome};
use protos::fence::GrantorSays;
use registry::authority::{PeerRecord, Secret, SessionTerms, incarnation};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::warn;

use streams::Stream;

use super::{
    CellStatus, Command, Operation, Sources, StoreEvent,
    homes::{Sightings, Since},
    peers::{Message, Says},
    presence::Presence,
    records::Operations,
    renewals::Renewals,
    terms::Said,
};
use crate::conditions::{Code, Lasting};

pub(super) struct Engine {
    sources: Sources,
    /// By zone.
    replicas: BTreeMap<Name, Replica>,
    streams: BTreeMap<HolderId, Stream>,
    streams_opened: u64,
    operations: Operations,
    /// By zone, the fenced services that cannot be written to there.
    out: BTreeMap<Name, BTreeSet<Name>>,
    /// The zone that should have a cell, as last sent to the replicas.
    better: BTreeMap<Name, Option<Name>>,
    presence: Presence,
    /// By zone, until when proxies stay connected although the session of an incarnation is only
    /// about to begin.
    reborn_until: BTreeMap<Name, u64>,
    commands: mpsc::Receiver<Command>,
    publisher: watch::Sender<Arc<Vec<CellStatus>>>,
    told: watch::Sender<Arc<Vec<Operation>>>,
    sightings: Sightings,
    sighted: watch::Sender<Arc<Since>>,
    /// The outcomes of transactions.
    answer: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
    /// The secret that authenticates each zone's replica.
    secrets: BTreeMap<Name, Secret>,
    /// The addresses of all sessions.
    reached: BTreeMap<SessionId, PeerRecord>,
    renewals: Renewals,
    /// The last published statement of a zone's own session.
    stated: BTreeMap<Name, Stated>,
    /// Callers that wait for the shutdown.
    stopping: Vec<oneshot::Sender<()>>,
    stopped: BTreeSet<Name>,
    /// The statements of sessions about their processes.
    said: Said,
    /// Something may have changed about the agreed terms.
    terms_dirty: bool,
    /// Why this replica disagrees, as last reported.
    differs: Option<String>,
    /// The proxies whose policy has other terms.
    withheld: Lasting,
    /// They are not checked again before that.
    withheld_after: Instant,
}

struct Answer {
    id: SessionId,
    number: u64,
    outcome: TransactionOutcome,
}

/// The content of a session's record when it was put.
struct Stated {
    proxies: Option<u32>,
    terms: Option<SessionTerms>,
    at: u64,
}

enum Woken {
    StoreEvent(Option<StoreEvent>),
    Peer(Message),
    Command(Option<Command>),
    Answer(Option<Answer>),
    Rules,
    Overview,
    Time,
}

impl Engine {
    pub(super) fn new(
        mut sources: Sources,
        commands: mpsc::Receiver<Command>,
        publisher: watch::Sender<Arc<Vec<CellStatus>>>,
        told: watch::Sender<Arc<Vec<Operation>>>,
        sighted: watch::Sender<Arc<Since>>,
    ) -> Engine {
        let draw = &mut sources.draw;
        let replicas = sources.zones.iter().map(|zone| {
            let incarnation = incarnation(zone, draw());
            let id = SessionId {
                zone: zone.clone(),
                incarnation,
            };
            (zone.clone(), Replica::new(id, sources.terms.clone()))
        });
        let replicas = replicas.collect();
        let zones = sources.zones.iter().cloned();
        let secrets = zones.map(|zone| (zone, (sources.peers.secret)())).collect();
        let conditions = sources.metrics.conditions.clone();
        let withheld = Lasting::new(conditions, &[Code::ProxyOfOtherTerms]);
        let renewals = Renewals::new(sources.metrics.clone());
        // Bounded by the transactions under way: each replica has a few.
        let (answer, answers) = mpsc::unbounded_channel();
        Engine {
            sources,
            replicas,
            streams: BTreeMap::new(),
            streams_opened: 0,
            operations: Operations::new(),
            out: BTreeMap::new(),
            better: BTreeMap::new(),
            presence: Presence::default(),
            reborn_until: BTreeMap::new(),
            commands,
            publisher,
            told,
            sightings: Sightings::default(),
            sighted,
            answer,
            answers,
            secrets,
            reached: BTreeMap::new(),
            renewals,
            stated: BTreeMap::new(),
            stopping: Vec::new(),
            stopped: BTreeSet::new(),
            said: Said::default(),
            terms_dirty: true,
            differs: None,
            withheld,
            withheld_after: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        self.take_rules();
        self.tell_roster();
        loop {
            let until_wake = self.until_wake();
            let woken = tokio::select! {
                biased;
                fact = self.sources.facts.recv() => Woken::StoreEvent(fact),
                answer = self.answers.recv() => Woken::Answer(answer),
                Some(message) = self.sources.peers.messages.recv() => Woken::Peer(message),
                command = self.commands.recv() => Woken::Command(command),
                Ok(()) = self.sources.rules.changed() => Woken::Rules,
                Ok(()) = self.sources.overviews.changed() => Woken::Overview,
                () = tokio::time::sleep(until_wake) => Woken::Time,
            };
            match woken {
                // The process shuts down.
                Woken::StoreEvent(None) | Woken::Command(None) | Woken::Answer(None) => return,
                Woken::StoreEvent(Some(fact)) => self.take_event(fact),
                Woken::Peer(message) => self.hear(message),
                Woken::Command(Some(command)) => self.handle_command(command),
                Woken::Answer(Some(answer)) => self.answered(&answer),
                Woken::Rules => self.take_rules(),
                Woken::Overview => self.refresh_overview(),
                Woken::Time => {
                    self.terms_dirty = true;
                    self.broadcast(&Input::Tick);
                }
            }
            self.judge_terms();
            self.reevaluate();
            self.renewals.look(self.replicas.values(), self.now());
            self.send_away();
            self.look_at_withheld();
            self.restate();
            self.publish();
            self.sight();
        }
    }

    /// The terms to act by. All replicas of this process have the same.
    fn terms(&self) -> &Terms {
        let mut replicas = self.replicas.values();
        replicas.next().map_or(&self.sources.terms, Replica::terms)
    }

    fn now(&self) -> u64 {
        self.sources.clock.now_us()
    }

    fn until_wake(&self) -> Duration {
        let now = self.now();
        let wakes = self.replicas.values().map(|replica| replica.wake_at(now));
        let wake = wakes.min().unwrap_or(now.saturating_add(1_000_000));
        Duration::from_micros(wake.saturating_sub(now))
    }

    fn take_rules(&mut self) {
        let rules = Arc::clone(&self.sources.rules.borrow_and_update());
        if let Some(agreed) = &rules.agreed {
            self.broadcast(&Input::Configured(agreed.clone()));
        }
        self.broadcast(&Input::Cells(rules.cells.clone()));
        self.terms_dirty = true;
        self.refresh_overview();
    }

    fn broadcast(&mut self, input: &Input) {
        let zones: Vec<Name> = self.replicas.keys().cloned().collect();
        for zone in zones {
            self.handle(&zone, input.clone());
        }
    }

    fn handle(&mut self, zone: &Name, input: Input) {
        let now = self.now();
        let Some(replica) = self.replicas.get_mut(zone) else {
            return;
        };
        let effects = replica.handle(input, now);
        self.carry_out(zone, effects);
    }

    fn carry_out(&mut self, zone: &Name, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Commit {
                    number,
                    transaction,
                } => self.commit(zone, number, &transaction),
                Effect::Beat { to, round } => self.tell_peer(zone, to, Says::Beat(round)),
                Effect::Heard { of, round } => self.tell_peer(zone, of, Says::Heard(round)),
                Effect::Grant {
                    holder,
                    nonce,
                    grants,
                    withheld,
                } => {
                    self.sources.metrics.grants.inc_by(grants.len() as u64);
                    self.note_withheld(holder, withheld);
                    let says = GrantorSays::Grants {
                        nonce,
                        grants,
                        withheld,
                    };
                    self.say(holder, says);
                }
                Effect::Revoke {
                    holder,
                    cell,
                    fence,
                } => self.say(holder, GrantorSays::Revoke { cell, fence }),
                Effect::Invite { holder } => self.say(holder, GrantorSays::Invite),
                Effect::Ended => self.reincarnate(zone),
                Effect::Stopped => drop(self.stopped.insert(zone.clone())),
            }
        }
        if !self.stopping.is_empty() && self.stopped.len() == self.replicas.len() {
            for waiting in self.stopping.drain(..) {
                // A caller that stopped waiting needs no answer.
                let _ = waiting.send(());
            }
        }
    }

    fn reincarnate(&mut self, zone: &Name) {
        let Some(replica) = self.replicas.remove(zone) else {
            return;
        };
        let incarnation = incarnation(zone, (self.sources.draw)());
        warn!(was = %replica.id().incarnation, now = %incarnation, "the session has ended: this replica grants nothing until its next session begins");
        self.sources.metrics.sessions_lost.inc();
        // Its proxies stay for a moment: the next session begins as soon as the store answers.
        let until = self.now().saturating_add(replica.terms().session_ttl / 8);
        self.reborn_until.insert(zone.clone(), until);
        let (replica, effects) = replica.reborn(incarnation, self.now());
        self.replicas.insert(zone.clone(), replica);
        let secret = (self.sources.peers.secret)();
        self.secrets.insert(zone.clone(), secret);
        self.tell_roster();
        self.carry_out(zone, effects);
    }
}
