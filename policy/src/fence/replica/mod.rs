//! One incarnation of the control plane, which serves one zone: everything that it does about
//! authority.
//!
//! Its inputs are the store's events in the order of revisions, the outcomes of its transactions,
//! the messages of proxies, and the time. Its outputs are transactions and messages. It needs
//! nothing else, here or under a model checker.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

mod granting;
mod learning;
mod messages;
mod move_requests;
mod renewing;
mod steps;
mod terms;
mod transactions;

use super::{
    Authority, AuthorityState, Cause, Clause, Condition, Grantor, HolderId, Key, Move, Name,
    Revision, Session, SessionId, Sessions, Terms, Transaction, Write, moves::View,
};

pub use messages::{CellRules, Effect, Input, Listing, MoveRejected, TransactionOutcome};

/// After this many times the span after which a silent session has ended, its key is removed. Until
/// then rounds wait for it, and all other replicas renew by puts. More than once, so that a
/// takeover, which ends the session as well, comes first.
const SWEEP_AFTER: u64 = 2;

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    /// The terms that it acts by: the agreed ones.
    terms: Terms,
    agreed: terms::Known,
    store: u64,
    session: Session,
    sessions: Sessions,
    cells: BTreeMap<Name, Cell>,
    /// The highest epoch of each cell that was ever seen, in any store.
    epochs: BTreeMap<Name, u64>,
    /// Zones that are poor targets of a move, since they cannot serve writes.
    unfit: BTreeSet<Name>,
    /// Zones without a proxy that could hold grants.
    unheld: BTreeSet<Name>,
    connected: BTreeSet<HolderId>,
    /// Transactions under way, by number.
    pending: BTreeMap<u64, Pending>,
    numbers: u64,
    sweep_after: u64,
    /// The store has been listed and is trusted.
    believes: bool,
    stopping: bool,
    stopped: bool,
    ended_said: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Cell {
    rules: Option<CellRules>,
    revision: Revision,
    authority: Option<Authority>,
    /// When that revision was seen.
    seen_at: u64,
    grantors: BTreeSet<SessionId>,
    /// The revision of the terms under which each of them is registered.
    acting: BTreeMap<SessionId, Revision>,
    /// No registration under newer terms before this.
    again_after: u64,
    grantor: Grantor,
    /// The zone that should own it, and why.
    better: Option<(Name, Name)>,
    /// Since when this replica could take a step that another replica should take first.
    able: Option<(Step, u64)>,
    /// A step under way.
    stepping: bool,
    /// No step before this: the last one was rejected, and the change that caused that is not seen
    /// yet.
    step_after: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Create,
    Begin,
    Complete,
    Abort,
    Settle,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Pending {
    Renewal,
    /// The store's confirmation of a round.
    Round,
    Grantor(Name),
    /// A step of a cell; with the authority that it names, if this replica registers with it.
    Step(Name, Option<Authority>),
    /// A registration under newer terms.
    Again(Name),
    /// A change of the agreed terms.
    Terms,
    Sweep,
    Farewell,
}

impl Replica {
    /// A new incarnation, which knows nothing yet.
    pub fn new(id: SessionId, terms: Terms) -> Replica {
        Replica {
            agreed: terms::Known::new(terms.clone()),
            terms,
            store: 0,
            session: Session::new(id),
            sessions: Sessions::default(),
            cells: BTreeMap::new(),
            epochs: BTreeMap::new(),
            unfit: BTreeSet::new(),
            unheld: BTreeSet::new(),
            connected: BTreeSet::new(),
            pending: BTreeMap::new(),
            numbers: 0,
            sweep_after: 0,
            believes: false,
            stopping: false,
            stopped: false,
            ended_said: false,
        }
    }

    /// The next incarnation of a process whose session has ended. It keeps the knowledge of others,
    /// and none of its own grants: its grantor keys stay behind, and moves wait for them.
    pub fn reborn(mut self, incarnation: Name, now: u64) -> (Replica, Vec<Effect>) {
        let zone = self.session.id().zone.clone();
        self.session = Session::new(SessionId { zone, incarnation });
        // Late answers belong to the last incarnation: numbers are not reused.
        self.pending.clear();
        self.ended_said = false;
        for cell in self.cells.values_mut() {
            cell.grantor = Grantor::default();
            cell.stepping = false;
            cell.able = None;
        }
        let names: Vec<Name> = self.cells.keys().cloned().collect();
        let mut effects = Vec::new();
        if self.believes {
            for name in names {
                self.see(&name, &mut effects);
            }
            self.go_on(now, &mut effects);
        }
        (self, effects)
    }

    pub fn id(&self) -> &SessionId {
        self.session.id()
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }
    /// Whether the store has been listed and is trusted.
    pub fn believes(&self) -> bool {
        self.believes
    }

    /// Whether an authority was written in the store that answers.
    pub fn is_of_store(&self, authority: &Authority) -> bool {
        authority.store == self.store
    }

    /// Every cell that is configured or has an authority: the revision and authority, if there is
    /// one, and its grantors.
    pub fn cells(
        &self,
    ) -> impl Iterator<
        Item = (
            &Name,
            Revision,
            Option<&Authority>,
            &BTreeSet<SessionId>,
            &Grantor,
        ),
    > {
        self.cells.iter().map(|(name, cell)| {
            (
                name,
                cell.revision,
                cell.authority.as_ref(),
                &cell.grantors,
                &cell.grantor,
            )
        })
    }

    /// Handles an input, at `now`.
    pub fn handle(&mut self, input: Input, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Listed(listing) => self.listed(listing, now, &mut effects),
            Input::Authority {
                cell,
                revision,
                authority,
            } => {
                self.learn(&cell, revision, authority, now);
                self.see(&cell, &mut effects);
            }
            Input::Session { id, put } => match put {
                Some(revision) => self.sessions.put(id, revision, now),
                None => self.session_gone(&id, now),
            },
            Input::Beat { from, to, round } => {
                let own = to == *self.session.id();
                if own && self.sessions.beat(&from, now, &self.terms) {
                    effects.push(Effect::Heard { of: from, round });
                }
            }
            Input::Heard { by, of, round } => {
                self.session.heard(&by, &of, round, &self.terms);
                self.complete_round(now);
            }
            Input::Grantor {
                cell,
                id,
                registered,
            } => {
                let own = id == *self.session.id();
                let cell = self.cells.entry(cell).or_default();
                match registered {
                    Some(terms) => {
                        if own {
                            cell.grantor.key_seen();
                        }
                        cell.acting.insert(id.clone(), terms);
                        cell.grantors.insert(id);
                    }
                    None => {
                        cell.acting.remove(&id);
                        cell.grantors.remove(&id);
                    }
                }
            }
            Input::Terms {
                revision,
                agreement,
            } => self.learn_terms(revision, agreement),
            Input::Configured(own) => self.configure(own),
            Input::Rolled(rolled) => self.rolled(rolled),
            Input::Answer { number, outcome } => self.answered(number, outcome, now, &mut effects),
            Input::Connected(holder) => {
                self.connected.insert(holder);
                self.greet(holder, &mut effects);
            }
            Input::Disconnected(holder) => drop(self.connected.remove(&holder)),
            Input::Asked {
                holder,
                nonce,
                terms,
            } => self.asked(holder, nonce, terms, now, &mut effects),
            Input::Drained {
                holder,
                cell,
                fence,
            } => {
                if let Some(cell) = self.cells.get_mut(&cell) {
                    cell.grantor.drained(holder, fence, &self.terms);
                }
            }
            Input::Cells(rules) => {
                for (name, cell) in &mut self.cells {
                    cell.rules = rules.get(name).cloned();
                }
                for (name, rules) in rules {
                    self.cells.entry(name).or_default().rules = Some(rules);
                }
            }
            Input::Better { cell, zone, reason } => {
                if let Some(cell) = self.cells.get_mut(&cell) {
                    cell.better = zone.map(|zone| (zone, reason));
                }
            }
            Input::Unfit(zones) => self.unfit = zones,
            Input::Unheld(zones) => self.unheld = zones,
            Input::Restated => self.session.hurry(),
            Input::Doubted => {
                self.believes = false;
                self.session.end();
                self.stop_granting();
            }
            Input::Stop => {
                self.stopping = true;
                self.stop_granting();
            }
            Input::Tick => {}
        }
        self.go_on(now, &mut effects);
        effects
    }

    /// The latest time for the next [`Input::Tick`] if no other input comes before.
    pub fn wake_at(&self, now: u64) -> u64 {
        let terms = &self.terms;
        // Not more often than this, even if something is due: it may wait for an answer of the
        // store.
        let soonest = now.saturating_add((terms.session_ttl / 64).max(1));
        let mut wake = now.saturating_add((terms.session_ttl / 4).max(1));
        wake = wake.min(self.session.due(terms).unwrap_or(u64::MAX));
        wake = wake.min(self.session.round_due(terms).unwrap_or(u64::MAX));
        for (name, cell) in &self.cells {
            let Some(view) = self.view(name) else {
                continue;
            };
            let settled = view.settled_at(&self.sessions, terms);
            let run_out = cell.grantor.fence().and(cell.grantor.run_out());
            let owners = view.authority.owners.iter();
            let lost = owners.filter_map(|zone| self.sessions.lost_at(zone, terms));
            let patience = [view.seen_at.saturating_add(terms.session_over())];
            let due = settled
                .into_iter()
                .chain(run_out)
                .chain(lost)
                .chain(patience);
            let able = cell
                .able
                .map(|(_, since)| since.saturating_add(self.courtesy()));
            for at in due
                .chain(able)
                .chain([cell.step_after])
                .filter(|at| *at > now)
            {
                wake = wake.min(at);
            }
        }
        wake.max(soonest)
    }

    fn view<'r>(&'r self, name: &'r Name) -> Option<View<'r>> {
        let (cell, at) = self.cells.get_key_value(name)?;
        let authority = at.authority.as_ref()?;
        Some(View {
            cell,
            revision: at.revision,
            seen_at: at.seen_at,
            authority,
            grantors: &at.grantors,
        })
    }

    /// Does everything that is due.
    fn go_on(&mut self, now: u64, effects: &mut Vec<Effect>) {
        self.sessions.tidy(now, &self.terms);
        if self.stopped {
            return;
        }
        // A session whose creation has an unknown outcome may exist, and others would wait for it.
        let unknown = self.session.ended() && self.session.created().is_none();
        if unknown && self.stopping && self.believes {
            self.say_farewell(effects);
            return;
        }
        if self.session.ended() {
            if !self.ended_said && !self.stopping {
                self.ended_said = true;
                effects.push(Effect::Ended);
            } else if self.stopping && !self.ended_said {
                self.ended_said = true;
                self.stopped = true;
                effects.push(Effect::Stopped);
            }
            return;
        }
        if !self.believes {
            return;
        }
        if self.renews() {
            self.renew(now, effects);
        }
        let names: Vec<Name> = self.cells.keys().cloned().collect();
        for name in &names {
            self.resume(name);
            self.grant_or_leave(name, now, effects);
        }
        if self.stopping {
            self.say_farewell(effects);
            return;
        }
        if self.session.left(now) == 0 {
            return;
        }
        self.agree(now, effects);
        if !self.acts() {
            return;
        }
        for name in &names {
            self.step(name, now, effects);
        }
        self.sweep(now, effects);
    }
}

/// The name of the record of the next move.
pub fn move_id(cell: &str, authority: &Authority) -> Name {
    Name::from(alloc::format!(
        "{cell}-{}",
        authority.epoch.saturating_add(1)
    ))
}
