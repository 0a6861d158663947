//! A process in each of three zones, with one store.

use std::collections::BTreeMap;

use policy::fence::{
    AuthorityState, Cause, CellRules, Effect, HolderId, Input, Key, Move, MoveRejected, Name,
    Replica, Revision, SessionId, Terms, TransactionOutcome, Write,
};

use super::store::Shelf;

/// Microseconds.
pub(super) const SECOND: u64 = 1_000_000;
pub(super) const STEP: u64 = SECOND / 20;

pub(super) fn name(text: &str) -> Name {
    Name::from(text)
}

/// A process that serves a zone.
pub(super) struct Process {
    zone: &'static str,
    pub(super) replica: Replica,
    /// Its events wait.
    pub(super) deaf: bool,
    pub(super) untold: Vec<Input>,
    /// It does not run.
    pub(super) hung: bool,
    pub(super) stopped: bool,
}

/// Zones `a`, `b` and `c` with a process each.
pub(super) struct Mesh {
    pub(super) now: u64,
    pub(super) shelf: Shelf,
    pub(super) processes: Vec<Process>,
    rules: BTreeMap<Name, CellRules>,
    born: u64,
    /// Processes receive each other's beats.
    pub(super) hears: bool,
    /// How often sessions were put.
    pub(super) puts: u64,
}

impl Mesh {
    /// With these cells: name, owner, standby.
    pub(super) fn new(cells: &[(&str, &str, &[&str])]) -> Mesh {
        let names = |zones: &[&str]| zones.iter().map(|zone| name(zone)).collect();
        let rules = cells.iter().map(|(cell, owner, standby)| {
            let rules = CellRules {
                owners: vec![name(owner)],
                standby: names(standby),
                automatic: true,
                cool_down: 5 * SECOND,
                epoch_min: 1,
            };
            (name(cell), rules)
        });
        let mut mesh = Mesh {
            now: SECOND,
            shelf: Shelf::default(),
            processes: Vec::new(),
            rules: rules.collect(),
            born: 0,
            hears: false,
            puts: 0,
        };
        for zone in ["a", "b", "c"] {
            mesh.start(zone);
        }
        mesh.pass(20 * SECOND);
        mesh
    }

    pub(super) fn terms() -> Terms {
        Terms::new(3 * SECOND, 3 * SECOND / 2, SECOND, SECOND / 10, 10).unwrap()
    }

    fn incarnation(&mut self, zone: &str) -> Name {
        self.born += 1;
        name(&format!("{zone}-{}", self.born))
    }

    pub(super) fn start(&mut self, zone: &'static str) {
        let incarnation = self.incarnation(zone);
        let id = SessionId {
            zone: name(zone),
            incarnation,
        };
        self.processes.push(Process {
            zone,
            replica: Replica::new(id, Mesh::terms()),
            deaf: false,
            untold: Vec::new(),
            hung: false,
            stopped: false,
        });
        let at = self.processes.len() - 1;
        self.tell(at, Input::Cells(self.rules.clone()));
        self.tell(at, Input::Listed(self.shelf.list()));
        self.tell(at, Input::Connected(HolderId(at as u128)));
    }

    pub(super) fn at(&mut self, zone: &str) -> &mut Process {
        let mut processes = self.processes.iter_mut().filter(|p| !p.stopped);
        processes.find(|p| p.zone == zone).expect("a process")
    }

    pub(super) fn index(&self, zone: &str) -> usize {
        let mut processes = self.processes.iter();
        processes
            .position(|p| p.zone == zone && !p.stopped)
            .unwrap()
    }

    pub(super) fn tell(&mut self, at: usize, input: Input) {
        let process = &mut self.processes[at];
        if process.stopped {
            return;
        }
        let watched = matches!(
            input,
            Input::Authority { .. } | Input::Session { .. } | Input::Grantor { .. }
        );
        // It always sees its own changes: otherwise a lagging zone would count itself as silent.
        let own = matches!(&input, Input::Session { id, .. } if *id.zone == *process.zone);
        if process.deaf && watched && !own {
            process.untold.push(input);
            return;
        }
        if process.hung {
            return;
        }
        let effects = process.replica.handle(input, self.now);
        self.carry_out(at, effects);
    }

    pub(super) fn carry_out(&mut self, at: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Commit {
                    number,
                    transaction,
                } => {
                    let good = transaction.conditions.iter().all(|c| self.shelf.holds(c));
                    if !good {
                        let outcome = TransactionOutcome::Refused;
                        self.tell(at, Input::Answer { number, outcome });
                        continue;
                    }
                    self.shelf.revision += 1;
                    let revision = Revision(self.shelf.revision);
                    let mut told = Vec::new();
                    for write in &transaction.writes {
                        told.extend(self.write(write, revision));
                    }
                    let outcome = TransactionOutcome::Committed(revision);
                    self.tell(at, Input::Answer { number, outcome });
                    for input in told {
                        for other in 0..self.processes.len() {
                            self.tell(other, input.clone());
                        }
                    }
                }
                Effect::Beat { to, round } => {
                    let from = self.processes[at].replica.id().clone();
                    let (to, says) = (to.clone(), Input::Beat { from, to, round });
                    self.say(&to, says);
                }
                Effect::Heard { of, round } => {
                    let by = self.processes[at].replica.id().clone();
                    let (of, says) = (of.clone(), Input::Heard { by, of, round });
                    self.say(&of, says);
                }
                Effect::Ended => {
                    let zone = self.processes[at].zone;
                    let incarnation = self.incarnation(zone);
                    let (replica, effects) =
                        (self.processes[at].replica.clone()).reborn(incarnation, self.now);
                    self.processes[at].replica = replica;
                    self.carry_out(at, effects);
                }
                Effect::Stopped => self.processes[at].stopped = true,
                Effect::Revoke {
                    holder,
                    cell,
                    fence,
                } => {
                    let drained = Input::Drained {
                        holder,
                        cell,
                        fence,
                    };
                    self.tell(at, drained);
                }
                Effect::Grant { .. } | Effect::Invite { .. } => {}
            }
        }
    }

    /// Sends directly to the process of this session. If processes do not receive each other's
    /// beats, sessions are renewed by puts.
    fn say(&mut self, to: &SessionId, says: Input) {
        let mut processes = self.processes.iter();
        let to = processes.position(|process| process.replica.id() == to);
        if let Some(to) = to.filter(|_| self.hears) {
            self.tell(to, says);
        }
    }

    fn write(&mut self, write: &Write, revision: Revision) -> Option<Input> {
        Some(match write {
            Write::Authority(cell, authority) => {
                self.shelf.put(Key::Authority(cell.clone()));
                let authority = authority.clone();
                (self.shelf.authorities).insert(cell.clone(), authority.clone());
                Input::Authority {
                    cell: cell.clone(),
                    revision,
                    authority: Some(authority),
                }
            }
            Write::Session(id) => {
                self.puts += 1;
                self.shelf.put(Key::Session(id.clone()));
                Input::Session {
                    id: id.clone(),
                    put: Some(revision),
                }
            }
            Write::Terms(agreement) => {
                self.shelf.put(Key::Terms);
                self.shelf.terms = Some(agreement.clone());
                Input::Terms {
                    revision,
                    agreement: Some(agreement.clone()),
                }
            }
            Write::Grantor(cell, id, terms) => {
                let key = (cell.clone(), id.clone());
                self.shelf.grantors.insert(key, *terms);
                self.shelf.put(Key::Grantor(cell.clone(), id.clone()));
                Input::Grantor {
                    cell: cell.clone(),
                    id: id.clone(),
                    registered: Some(*terms),
                }
            }
            Write::Delete(key) => {
                self.shelf.stands.remove(key)?;
                match key.clone() {
                    Key::Session(id) => Input::Session { id, put: None },
                    Key::Grantor(cell, id) => Input::Grantor {
                        cell,
                        id,
                        registered: None,
                    },
                    Key::Terms => Input::Terms {
                        revision,
                        agreement: None,
                    },
                    Key::Authority(cell) => Input::Authority {
                        cell,
                        revision,
                        authority: None,
                    },
                }
            }
        })
    }

    /// Time passes; proxies request grants as usual.
    pub(super) fn pass(&mut self, span: u64) {
        let until = self.now + span;
        while self.now < until {
            self.now += STEP;
            for at in 0..self.processes.len() {
                self.tell(at, Input::Tick);
                let nonce = self.now;
                let holder = HolderId(at as u128);
                let terms = Some(self.processes[at].replica.terms().id);
                let asked = Input::Asked {
                    holder,
                    nonce,
                    terms,
                };
                self.tell(at, asked);
            }
        }
    }

    pub(super) fn request_move(
        &mut self,
        by: &str,
        cell: &str,
        to: &str,
        cause: Cause,
        accepted: bool,
    ) -> Result<(), MoveRejected> {
        let at = self.index(by);
        let next = Move {
            id: name("a move request"),
            to: vec![name(to)],
            cause,
            reason: name("a test"),
            epoch_min: 0,
            hold: 0,
        };
        let now = self.now;
        let effects = self.processes[at]
            .replica
            .request_move(&name(cell), next, accepted, now)?;
        self.carry_out(at, effects);
        Ok(())
    }

    /// Each cell's owner, epoch and whether it is active.
    pub(super) fn cells(&self) -> Vec<(&str, &str, u64, bool)> {
        let cells = self.shelf.authorities.iter();
        let shown = cells.map(|(cell, authority)| {
            let active = authority.state == AuthorityState::Active;
            (&**cell, &*authority.owners[0], authority.epoch, active)
        });
        shown.collect()
    }

    /// Whether a live process of the owner grants for the cell.
    pub(super) fn granting(&self, cell: &str) -> bool {
        let owner = &self.shelf.authorities[cell].owners[0];
        let processes = self
            .processes
            .iter()
            .filter(|p| !p.stopped && p.zone == &**owner);
        let mut replicas = processes.map(|process| &process.replica);
        replicas.any(|replica| {
            let alive = replica.session().left(self.now) > 0;
            let mut cells = replica.cells().filter(|(of, ..)| &***of == cell);
            alive && cells.any(|(.., grantor)| grantor.granting().is_some())
        })
    }
}
