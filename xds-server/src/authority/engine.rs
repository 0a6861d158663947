//! The one task that owns this process's replicas: everything in, one at a time; transactions and messages out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use policy::{
    ZoneState,
    fence::{
        Authority, Cause, Effect, HolderId, Input, Move, Name, Outcome, Replica, SessionId,
        Transaction, Unwilling, Write, move_id, moves::better_zone,
    },
};
use protos::fence::{GrantorSays, HolderSays};
use registry::{
    authority::{OPERATIONS_PREFIX, PeerRecord, Secret, SessionRecord, SessionTerms, incarnation},
    store::{Compare, Op, Store, StoreError, TxnOutcome},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{debug, error, info, warn};

use super::{
    CellStatus, Command, Fact, Operation, Sources, Unseated, Wish,
    homes::{Sightings, Since},
    peers::{Message, Roster, Says},
    presence::Presence,
    records::{self, Operations},
    renewals::Renewals,
    status,
    terms::{self, Said},
};
use crate::{
    conditions::Code,
    metrics::{CellLabel, ResultLabel},
};

/// How long a transaction that has failed rests.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How long a session may say another number of proxies than there are, in microseconds.
const COUNT_PATIENCE_US: u64 = 60_000_000;

pub(super) struct Engine {
    sources: Sources,
    /// By zone.
    replicas: BTreeMap<Name, Replica>,
    streams: BTreeMap<HolderId, Stream>,
    streams_opened: u64,
    operations: Operations,
    /// By zone, the fenced services that cannot be written to there.
    out: BTreeMap<Name, BTreeSet<Name>>,
    /// The zone that should have a cell, as it was said last.
    better: BTreeMap<Name, Option<Name>>,
    presence: Presence,
    /// By zone, until when proxies are kept though the session of an incarnation is only about to begin.
    reborn_until: BTreeMap<Name, u64>,
    commands: mpsc::Receiver<Command>,
    publisher: watch::Sender<Arc<Vec<CellStatus>>>,
    told: watch::Sender<Arc<Vec<Operation>>>,
    sightings: Sightings,
    sighted: watch::Sender<Arc<Since>>,
    /// What became of transactions.
    answer: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
    /// Who proves to be which zone's replica.
    secrets: BTreeMap<Name, Secret>,
    /// How every session is reached.
    reached: BTreeMap<SessionId, PeerRecord>,
    renewals: Renewals,
    /// What the own session of a zone last said.
    stated: BTreeMap<Name, Stated>,
    /// Who waits for the end.
    stopping: Vec<oneshot::Sender<()>>,
    stopped: BTreeSet<Name>,
    /// What sessions say of their processes.
    said: Said,
    /// Something may have changed about the agreed terms.
    terms_dirty: bool,
    /// Why this replica does not agree, as it was said last.
    differs: Option<String>,
}

struct Answer {
    id: SessionId,
    number: u64,
    outcome: Outcome,
}

/// What a session's record said when it was put.
struct Stated {
    proxies: Option<u32>,
    terms: Option<SessionTerms>,
    at: u64,
}

/// A proxy process that is connected.
struct Stream {
    number: u64,
    zone: Name,
    node: String,
    says: mpsc::Sender<GrantorSays>,
}

enum Woken {
    Fact(Option<Fact>),
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
        let renewals = Renewals::new(&sources.terms, sources.metrics.clone());
        // As many as there are transactions under way: each replica has a handful.
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
        }
    }

    pub(super) async fn run(mut self) {
        self.take_rules();
        self.tell_roster();
        loop {
            let until_wake = self.until_wake();
            let woken = tokio::select! {
                biased;
                fact = self.sources.facts.recv() => Woken::Fact(fact),
                answer = self.answers.recv() => Woken::Answer(answer),
                Some(message) = self.sources.peers.messages.recv() => Woken::Peer(message),
                command = self.commands.recv() => Woken::Command(command),
                Ok(()) = self.sources.rules.changed() => Woken::Rules,
                Ok(()) = self.sources.overviews.changed() => Woken::Overview,
                () = tokio::time::sleep(until_wake) => Woken::Time,
            };
            match woken {
                // The process is ending.
                Woken::Fact(None) | Woken::Command(None) | Woken::Answer(None) => return,
                Woken::Fact(Some(fact)) => self.take_fact(fact),
                Woken::Peer(message) => self.hear(message),
                Woken::Command(Some(command)) => self.obey(command),
                Woken::Answer(Some(answer)) => self.answered(&answer),
                Woken::Rules => self.take_rules(),
                Woken::Overview => self.look_around(),
                Woken::Time => {
                    self.terms_dirty = true;
                    self.everybody(&Input::Tick);
                }
            }
            self.judge_terms();
            self.judge();
            self.renewals.look(self.replicas.values(), self.now());
            self.send_away();
            self.restate();
            self.publish();
            self.sight();
        }
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
            self.everybody(&Input::Configured(agreed.clone()));
        }
        self.everybody(&Input::Cells(rules.cells.clone()));
        self.terms_dirty = true;
        self.look_around();
    }

    /// Takes in how services are doing.
    fn look_around(&mut self) {
        let rules = Arc::clone(&self.sources.rules.borrow());
        let overview = Arc::clone(&self.sources.overviews.borrow_and_update());
        let unfit: BTreeSet<Name> = self.out.keys().cloned().collect();
        self.out.clear();
        for ((service, zone), status) in &overview.statuses {
            let down = status.verdict.state != ZoneState::Up;
            if down && rules.services.contains(&**service) {
                let out = self.out.entry(Name::clone(zone)).or_default();
                out.insert(Name::clone(service));
            }
        }
        let now: BTreeSet<Name> = self.out.keys().cloned().collect();
        if now != unfit {
            self.everybody(&Input::Unfit(now));
        }
    }

    fn take_fact(&mut self, fact: Fact) {
        self.take_peer(&fact);
        self.presence.hear(&fact);
        self.said.take(&fact);
        self.terms_dirty = true;
        let input = match fact {
            Fact::Listed {
                cluster,
                revision,
                entries,
            } => {
                let (listing, operations) = records::listing(cluster, revision, &entries);
                self.operations = operations;
                self.tell_operations();
                Some(Input::Listed(listing))
            }
            Fact::Put(entry) => match entry.key.strip_prefix(OPERATIONS_PREFIX) {
                Some(id) => {
                    records::take_operation(&mut self.operations, id, &entry.value);
                    self.tell_operations();
                    None
                }
                None => records::put(&entry),
            },
            Fact::Deleted { key, revision } => match key.strip_prefix(OPERATIONS_PREFIX) {
                Some(id) => {
                    self.operations.remove(id);
                    self.tell_operations();
                    None
                }
                None => records::deleted(&key, revision),
            },
            Fact::Doubted => {
                warn!("the store is not believed: nothing is granted or moved");
                Some(Input::Doubted)
            }
        };
        if let Some(input) = input {
            if let Input::Authority {
                cell,
                authority: Some(authority),
                ..
            } = &input
            {
                log_authority(cell, authority);
            }
            self.everybody(&input);
        }
    }

    /// Takes in how a session is reached.
    fn take_peer(&mut self, fact: &Fact) {
        let before = self.reached.len();
        let changed = match fact {
            Fact::Listed { entries, .. } => {
                self.reached = entries.iter().filter_map(records::peer).collect();
                true
            }
            Fact::Put(entry) => match records::peer(entry) {
                Some((id, peer)) => self.reached.insert(id, peer.clone()) != Some(peer),
                None => false,
            },
            Fact::Deleted { key, .. } => {
                let id = records::session_of(key);
                id.is_some_and(|id| self.reached.remove(&id).is_some())
            }
            Fact::Doubted => false,
        };
        if changed || self.reached.len() != before {
            self.tell_roster();
        }
    }

    /// Tells the way to other replicas which sessions there are.
    fn tell_roster(&self) {
        let own = self.replicas.iter().filter_map(|(zone, replica)| {
            let secret = self.secrets.get(zone)?;
            Some((replica.id().clone(), secret.clone()))
        });
        let own: BTreeMap<_, _> = own.collect();
        let others = self.reached.iter().filter(|(id, _)| !own.contains_key(*id));
        let others = others
            .map(|(id, peer)| (id.clone(), peer.clone()))
            .collect();
        self.sources.peers.post.follow(Roster { own, others });
    }

    fn session_record(&self, zone: &Name, replica: &Replica) -> SessionRecord {
        let reach = self.sources.peers.reach.as_ref();
        let peer = reach
            .zip(self.secrets.get(zone))
            .map(|(reach, secret)| PeerRecord {
                address: reach.address.clone(),
                server_name: reach.server_name.clone(),
                secret: secret.clone(),
            });
        SessionRecord {
            process: self.sources.process.clone(),
            proxies: Some(self.connected(zone)),
            terms: terms::own(replica),
            peer,
        }
    }

    /// Speaks to another replica, in this process or elsewhere.
    fn tell_peer(&mut self, zone: &Name, to: SessionId, says: Says) {
        let Some(replica) = self.replicas.get(zone) else {
            return;
        };
        let from = replica.id().clone();
        let message = Message { from, to, says };
        match self.is_own(&message.to) {
            true => self.hear(message),
            false => self.sources.peers.post.send(message),
        }
    }

    fn is_own(&self, id: &SessionId) -> bool {
        let replica = self.replicas.get(&id.zone);
        replica.is_some_and(|replica| replica.id() == id)
    }

    /// Another replica speaks.
    fn hear(&mut self, message: Message) {
        let Message { from, to, says } = message;
        // To an incarnation that is over.
        if !self.is_own(&to) {
            return;
        }
        let zone = to.zone.clone();
        let input = match says {
            Says::Beat(round) => Input::Beat { from, to, round },
            Says::Heard(round) => Input::Heard {
                by: from,
                of: to,
                round,
            },
        };
        self.handle(&zone, input);
    }

    fn everybody(&mut self, input: &Input) {
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
                } => {
                    self.sources.metrics.grants.inc_by(grants.len() as u64);
                    self.say(holder, GrantorSays::Grants { nonce, grants });
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
                // Who does not wait any more need not know.
                let _ = waiting.send(());
            }
        }
    }

    /// A slow proxy loses its stream, and says everything again on the next.
    fn say(&mut self, holder: HolderId, says: GrantorSays) {
        let Some(stream) = self.streams.get(&holder) else {
            return;
        };
        let Err(error) = stream.says.try_send(says) else {
            return;
        };
        // One that has closed has ended its stream, which is about to be noticed.
        if matches!(error, mpsc::error::TrySendError::Full(_)) {
            warn!(
                node = stream.node,
                "a proxy does not read what it is told: its stream is ended"
            );
            self.leave(holder);
        }
    }

    fn leave(&mut self, holder: HolderId) {
        if let Some(stream) = self.streams.remove(&holder) {
            self.sources
                .metrics
                .fence_streams
                .set(self.streams.len() as i64);
            self.handle(&stream.zone, Input::Disconnected(holder));
        }
    }

    /// Whether proxies get from this replica what there is to be had.
    fn serves(&self, zone: &Name) -> bool {
        let replica = self.replicas.get(zone);
        let now = self.now();
        let reborn = || {
            self.reborn_until
                .get(zone)
                .is_some_and(|until| now < *until)
        };
        let alive = |replica: &Replica| {
            replica.acts() && (replica.session().left(now) > 0 || replica.believes() && reborn())
        };
        self.stopping.is_empty() && replica.is_some_and(alive)
    }

    /// A replica without a session grants nothing, so its proxies are to find another one of their zone.
    fn send_away(&mut self) {
        let zones = self.replicas.keys().cloned();
        let idle: BTreeSet<Name> = zones.filter(|zone| !self.serves(zone)).collect();
        let streams = self.streams.iter();
        let away = streams.filter(|(_, stream)| idle.contains(&stream.zone));
        let away: Vec<HolderId> = away.map(|(holder, _)| *holder).collect();
        for holder in away {
            self.leave(holder);
        }
    }

    fn reincarnate(&mut self, zone: &Name) {
        let Some(replica) = self.replicas.remove(zone) else {
            return;
        };
        let incarnation = incarnation(zone, (self.sources.draw)());
        warn!(was = %replica.id().incarnation, now = %incarnation, "the session is over: nothing is granted before another has begun");
        self.sources.metrics.sessions_lost.inc();
        // Its proxies stay for a moment: the next session begins as soon as the store answers.
        let until = self
            .now()
            .saturating_add(self.sources.terms.session_ttl / 8);
        self.reborn_until.insert(zone.clone(), until);
        let (replica, effects) = replica.reborn(incarnation, self.now());
        self.replicas.insert(zone.clone(), replica);
        let secret = (self.sources.peers.secret)();
        self.secrets.insert(zone.clone(), secret);
        self.tell_roster();
        self.carry_out(zone, effects);
    }

    fn commit(&mut self, zone: &Name, number: u64, transaction: &Transaction) {
        let Some(replica) = self.replicas.get(zone) else {
            return;
        };
        let id = replica.id().clone();
        let authority = transaction.writes.iter().find_map(|write| match write {
            Write::Authority(cell, authority) => Some((cell, authority)),
            _ => None,
        });
        let operation = authority.map(|(cell, after)| {
            let mut cells = replica.cells();
            let before = cells.find(|(name, ..)| *name == cell);
            let before = before.and_then(|(_, _, authority, ..)| authority);
            records::operation(&self.operations, cell, before, after, &id, unix_ms())
        });
        let changes_authority = authority.is_some();
        let said = self.session_record(zone, replica);
        if let [Write::Session(_)] = transaction.writes[..] {
            self.sources.metrics.session_puts.inc();
            self.presence.stated(zone, self.connected(zone) > 0);
            let stated = Stated {
                proxies: said.proxies,
                terms: said.terms,
                at: self.now(),
            };
            self.stated.insert(zone.clone(), stated);
        }
        let (compares, ops) =
            records::transaction(transaction, &said, operation.unwrap_or_default());
        let asks = ops.is_empty();
        let store = Arc::clone(&self.sources.store);
        let mode = self.sources.mode.clone();
        let answer = self.answer.clone();
        let writes = self.sources.metrics.authority_writes.clone();
        tokio::spawn(async move {
            let begun = tokio::time::Instant::now();
            let outcome = make(&*store, compares, ops, mode.writes_refused().is_some()).await;
            // A read proves nothing about writes, neither way.
            if let Some(outcome) = outcome.as_ref().filter(|_| !asks) {
                mode.wrote_in(outcome, begun.elapsed());
            }
            let outcome = match outcome {
                Some(Ok(TxnOutcome {
                    succeeded: true,
                    revision,
                })) => Outcome::Committed(records::revision(revision)),
                Some(Ok(_)) => Outcome::Refused,
                Some(Err(error)) => {
                    debug!(%error, "a transaction about authority has failed");
                    Outcome::Unknown
                }
                None => Outcome::Unknown,
            };
            if changes_authority {
                let result = match outcome {
                    Outcome::Committed(_) => "ok",
                    Outcome::Refused => "overtaken",
                    Outcome::Unknown => "error",
                };
                writes.get_or_create(&ResultLabel { result }).inc();
            }
            if outcome == Outcome::Unknown && !asks {
                // It is tried again at once, and a store that is away, or not written to, fails fast.
                tokio::time::sleep(RETRY_AFTER).await;
            }
            // An engine that is gone waits for nothing.
            let _ = answer.send(Answer {
                id,
                number,
                outcome,
            });
        });
    }

    fn answered(&mut self, answer: &Answer) {
        let zone = answer.id.zone.clone();
        // Numbers go on from one incarnation to the next, which does not know its predecessor's.
        let input = Input::Answer {
            number: answer.number,
            outcome: answer.outcome,
        };
        self.handle(&zone, input);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Join {
                holder,
                zone,
                node,
                says,
                joined,
            } => {
                if !self.replicas.contains_key(&zone) {
                    let zones: Vec<&str> = self.replicas.keys().map(|zone| &**zone).collect();
                    let zones = zones.join(", ");
                    let _ = joined.send(Err(Unseated::OtherZone { zone, zones }));
                    return;
                }
                if !self.serves(&zone) {
                    let replica = self.replicas.get(&zone);
                    let unseated = match replica.is_some_and(|replica| !replica.acts()) {
                        true => Unseated::TermsDiffer,
                        false => Unseated::NoSession,
                    };
                    let _ = joined.send(Err(unseated));
                    return;
                }
                self.leave(holder);
                self.streams_opened += 1;
                let number = self.streams_opened;
                let stream = Stream {
                    number,
                    zone: zone.clone(),
                    node,
                    says,
                };
                self.streams.insert(holder, stream);
                self.sources
                    .metrics
                    .fence_streams
                    .set(self.streams.len() as i64);
                // Before the first message of the stream, so that nothing is said into the void.
                let _ = joined.send(Ok(number));
                self.handle(&zone, Input::Connected(holder));
            }
            Command::Said {
                holder,
                stream,
                says,
            } => {
                let open = self
                    .streams
                    .get(&holder)
                    .filter(|open| open.number == stream);
                let Some(zone) = open.map(|open| open.zone.clone()) else {
                    return;
                };
                match says {
                    HolderSays::Ask { nonce } => self.handle(&zone, Input::Asked { holder, nonce }),
                    HolderSays::Drained { cell, fence } => {
                        self.handle(
                            &zone,
                            Input::Drained {
                                holder,
                                cell,
                                fence,
                            },
                        );
                    }
                    HolderSays::Hello { .. } => {}
                }
            }
            Command::Left { holder, stream } => {
                let open = self.streams.get(&holder);
                if open.is_some_and(|open| open.number == stream) {
                    self.leave(holder);
                }
            }
            Command::Wish { wish, answer } => {
                let _ = answer.send(self.wish(&wish));
            }
            Command::HandOver { begun } => {
                let _ = begun.send(self.hand_over());
            }
            Command::Stop { stopped } => {
                self.stopping.push(stopped);
                self.everybody(&Input::Stop);
            }
        }
    }

    /// Begins to move every cell that nobody else grants writes for in its zone: their names.
    fn hand_over(&mut self) -> BTreeSet<String> {
        let now = self.now();
        let mut moves = Vec::new();
        for replica in self.replicas.values() {
            for (cell, _, authority, ..) in replica.cells() {
                let next = replica.successor(cell, now);
                let next = next.filter(|zone| !self.replicas.contains_key(zone));
                if let (Some(to), Some(authority)) = (next, authority) {
                    let next = Move {
                        id: move_id(cell, authority),
                        to: vec![to],
                        cause: Cause::Operator,
                        reason: Name::from("the only replica of its zone stops, and hands over"),
                        epoch_min: 0,
                        hold: 0,
                    };
                    moves.push((replica.id().zone.clone(), cell.clone(), next));
                }
            }
        }
        let mut begun = BTreeSet::new();
        for (zone, cell, next) in moves {
            let Some(replica) = self.replicas.get_mut(&zone) else {
                continue;
            };
            match replica.wish(&cell, next, false, now) {
                Ok(effects) => {
                    begun.insert(cell.to_string());
                    self.carry_out(&zone, effects);
                }
                Err(error) => warn!(%cell, %error, "the cell is not handed over"),
            }
        }
        begun
    }

    fn wish(&mut self, wish: &Wish) -> Result<(), Unwilling> {
        let now = self.now();
        let mut unwilling = Unwilling::NoSession;
        let zones: Vec<Name> = self.replicas.keys().cloned().collect();
        for zone in zones {
            let Some(replica) = self.replicas.get_mut(&zone) else {
                continue;
            };
            let cells = replica.cells();
            let mut of_cell = cells.filter(|(name, ..)| **name == wish.cell);
            let authority = of_cell.next().and_then(|(_, _, authority, ..)| authority);
            let id = authority.map_or_else(
                || wish.cell.clone(),
                |authority| move_id(&wish.cell, authority),
            );
            drop(of_cell);
            let next = Move {
                id,
                to: wish.to.clone(),
                cause: wish.cause,
                reason: wish.reason.clone(),
                epoch_min: wish.epoch_min,
                hold: wish.hold,
            };
            match replica.wish(&wish.cell, next, wish.accepted, now) {
                Ok(effects) => {
                    self.carry_out(&zone, effects);
                    return Ok(());
                }
                Err(error) => unwilling = error,
            }
        }
        Err(unwilling)
    }

    /// Tells the replicas which zone should have each cell, where its owners cannot serve writes.
    fn judge(&mut self) {
        let Some(replica) = self.replicas.values().next() else {
            return;
        };
        let unheld = (self.presence).unheld(replica.sessions(), self.now(), &self.sources.terms);
        let mut changed = Vec::new();
        for (cell, _, authority, ..) in replica.cells() {
            let better = authority.and_then(|a| better_zone(a, &self.out, &unheld));
            if self.better.get(cell) != Some(&better) {
                let owners = authority.map_or(&[][..], |authority| &authority.owners);
                let reason = match &better {
                    Some(better) => self.reason(owners, better),
                    None => Name::from(""),
                };
                changed.push((cell.clone(), better, reason));
            }
        }
        if self.presence.unheld_changes(&unheld) {
            self.everybody(&Input::Unheld(unheld));
        }
        for (cell, zone, reason) in changed {
            if let Some(zone) = &zone {
                warn!(%cell, to = %zone, %reason, "a cell's owners cannot serve its writes: it moves, unless its failover is manual or an operator's move holds it");
            }
            self.better.insert(cell.clone(), zone.clone());
            self.everybody(&Input::Better { cell, zone, reason });
        }
    }

    /// Why a cell should leave its owners for `better`.
    fn reason(&self, owners: &[Name], better: &Name) -> Name {
        let none = BTreeSet::new();
        let out = |zone: &Name| self.out.get(zone).unwrap_or(&none);
        let missing = owners
            .iter()
            .flat_map(|owner| out(owner).difference(out(better)));
        let missing: BTreeSet<&str> = missing.map(|service| &**service).collect();
        let missing = missing.into_iter().collect::<Vec<_>>().join(", ");
        Name::from(format!("{} cannot serve {missing}", owners.join(", ")))
    }

    /// How many proxies of a zone are connected.
    fn connected(&self, zone: &Name) -> u32 {
        let of_zone = self.streams.values().filter(|stream| stream.zone == *zone);
        u32::try_from(of_zone.count()).unwrap_or(u32::MAX)
    }

    /// Whether what the own session said is no longer so: of its terms, or for long of its proxies.
    fn is_outdated(&self, zone: &Name) -> bool {
        let stated = self.stated.get(zone).zip(self.replicas.get(zone));
        stated.is_some_and(|(stated, replica)| {
            let settled = self.now() >= stated.at.saturating_add(COUNT_PATIENCE_US);
            let count = Some(self.connected(zone));
            stated.terms != terms::own(replica) || settled && stated.proxies != count
        })
    }

    /// Has sessions put anew whose record is wrong about whether there are proxies, or about terms.
    fn restate(&mut self) {
        let zones: Vec<Name> = self.replicas.keys().cloned().collect();
        for zone in zones {
            let any = self.connected(&zone) > 0;
            let patience = self.sources.terms.session_ttl / 4;
            let now = self.now();
            let presence = self.presence.is_to_be_restated(&zone, any, now, patience);
            if presence || self.is_outdated(&zone) {
                self.handle(&zone, Input::Restated);
            }
        }
    }

    /// Says what is agreed on, and how this replica stands to that.
    fn judge_terms(&mut self) {
        if !std::mem::take(&mut self.terms_dirty) {
            return;
        }
        let now = self.now();
        let Some(replica) = self.replicas.values().next() else {
            return;
        };
        let status = terms::status(replica, &self.said, now);
        let agreement = replica.agreement().map(|(_, agreement)| agreement.clone());
        let differs = match status.agrees || agreement.is_none() {
            true => None,
            false => Some(status.differences.join("; ")),
        };
        let rolled = terms::rolled(&status);
        let agrees = i64::from(status.agrees);
        self.sources.metrics.terms_agreed.set(agrees);
        self.sources.agreements.set(agreement.as_ref(), status);
        if differs != self.differs {
            match &differs {
                Some(differences) => error!(
                    differences,
                    "this replica is configured with other terms than those that are agreed on: it grants nothing and moves nothing. Give it the configuration of the others, or change the terms: `tidegate terms change --config FILE`"
                ),
                None => info!("this replica's terms are agreed on"),
            }
            let conditions = &self.sources.metrics.conditions;
            conditions.set(Code::TermsDiffer, "", differs.as_deref());
            self.differs = differs;
        }
        self.everybody(&Input::Rolled(rolled));
    }

    fn publish(&mut self) {
        let cells = status::of(self.replicas.values(), &self.presence, self.now());
        let metrics = &self.sources.metrics;
        for cell in &cells {
            let label = CellLabel {
                cell: cell.cell.clone(),
            };
            let epoch = i64::try_from(cell.epoch).unwrap_or(i64::MAX);
            metrics.cell_epoch.get_or_create(&label).set(epoch);
            let writable = cell.here.iter().any(|here| here.granting && here.session);
            metrics
                .cell_granting
                .get_or_create(&label)
                .set(i64::from(writable));
        }
        self.publisher.send_if_modified(|published| {
            let changed = **published != cells;
            if changed {
                *published = Arc::new(cells);
            }
            changed
        });
    }

    /// Tells streams which zones have a control plane of their own.
    fn sight(&mut self) {
        // All replicas of this process see the same.
        let Some(replica) = self.replicas.values().next() else {
            return;
        };
        let (now, terms, sessions) = (self.now(), &self.sources.terms, replica.sessions());
        let present = sessions.present().map(|(id, _)| id);
        let alive = present.filter(|id| !sessions.over(id, now, terms));
        let alive: BTreeSet<SessionId> = alive.cloned().collect();
        if self.sightings.look(alive, Instant::now()) {
            self.sighted
                .send_replace(Arc::new(self.sightings.since().clone()));
        }
    }

    fn tell_operations(&self) {
        let all = self.operations.iter().map(|(id, record)| Operation {
            id: id.clone(),
            record: record.clone(),
        });
        let mut all: Vec<Operation> = all.collect();
        let last = |o: &Operation| o.record.steps.last().map_or(0, |step| step.at_unix_ms);
        all.sort_by_key(|operation| std::cmp::Reverse(last(operation)));
        self.told.send_replace(Arc::new(all));
    }
}

/// None where nothing was sent, since writes have ended.
async fn make(
    store: &dyn Store,
    compares: Vec<Compare>,
    ops: Vec<Op>,
    refused: bool,
) -> Option<Result<TxnOutcome, StoreError>> {
    match refused {
        true => None,
        false => Some(store.txn(compares, ops, None).await),
    }
}

/// Milliseconds since 1970 by the wall clock: for people, and for numbers that only have to be higher than before.
pub fn unix_ms() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "nothing is decided by it")]
    let now = SystemTime::now();
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn log_authority(cell: &Name, authority: &Authority) {
    let Authority { epoch, owners, .. } = authority;
    match &authority.state {
        policy::fence::State::Active => info!(%cell, epoch, ?owners, "authority: active"),
        policy::fence::State::Settling => {
            info!(%cell, epoch, ?owners, unsettled = ?authority.unsettled, "authority: settling")
        }
        policy::fence::State::Fencing(next) => {
            let (to, cause, reason) = (&next.to, next.cause, &next.reason);
            match cause {
                Cause::Operator | Cause::Override => {
                    info!(%cell, epoch, from = ?owners, ?to, ?cause, %reason, "authority: fencing");
                }
                Cause::SessionLost | Cause::Unfit => {
                    warn!(%cell, epoch, from = ?owners, ?to, ?cause, %reason, "authority: fencing, by itself");
                }
            }
        }
    }
}
