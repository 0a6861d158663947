//! Several replicas and cells with one store, without delays: which cells move, and which stay.

use std::collections::{BTreeMap, BTreeSet};

use policy::fence::{
    Agreement, Authority, AuthorityState, Cause, CellRules, Condition, Effect, HolderId, Input,
    Key, Listing, Move, MoveRejected, Name, Replica, Revision, SessionId, Terms,
    TransactionOutcome, Write,
};

const STORE: u64 = 7;
/// Microseconds.
const SECOND: u64 = 1_000_000;
const STEP: u64 = SECOND / 20;

fn name(text: &str) -> Name {
    Name::from(text)
}

/// A store that answers at once.
#[derive(Default)]
struct Shelf {
    revision: u64,
    /// When each key was created and last put.
    stands: BTreeMap<Key, (Revision, Revision)>,
    authorities: BTreeMap<Name, Authority>,
    /// With the revision of the terms that each registered under.
    grantors: BTreeMap<(Name, SessionId), Revision>,
    terms: Option<Agreement>,
}

impl Shelf {
    fn holds(&self, condition: &Condition) -> bool {
        let stands = |key| self.stands.get(key).copied().unwrap_or_default();
        match condition {
            Condition::CreatedAt(key, at) => stands(key).0 == *at,
            Condition::PutAt(key, at) => stands(key).1 == *at,
            Condition::NoSessionSince(seen) => {
                let mut all = self.stands.iter();
                all.all(|(key, stands)| !matches!(key, Key::Session(_)) || stands.0 <= *seen)
            }
        }
    }

    fn put(&mut self, key: Key) {
        let at = Revision(self.revision);
        self.stands.entry(key).or_insert((at, at)).1 = at;
    }

    fn list(&self) -> Listing {
        let mut listing = Listing {
            store: STORE,
            revision: Revision(self.revision),
            ..Listing::default()
        };
        for (key, (_, put)) in &self.stands {
            match key {
                Key::Authority(cell) => {
                    let authority = self.authorities[cell].clone();
                    listing.authorities.push((cell.clone(), *put, authority));
                }
                Key::Session(id) => drop(listing.sessions.insert(id.clone(), *put)),
                Key::Grantor(cell, id) => {
                    let key = (cell.clone(), id.clone());
                    listing.grantors.insert(key.clone(), self.grantors[&key]);
                }
                Key::Terms => {
                    let terms = self.terms.clone();
                    listing.terms = terms.map(|agreement| (*put, agreement));
                }
            }
        }
        listing
    }
}

/// A process that serves a zone.
struct Process {
    zone: &'static str,
    replica: Replica,
    /// Its events wait.
    deaf: bool,
    untold: Vec<Input>,
    /// It does not run.
    hung: bool,
    stopped: bool,
}

/// Zones `a`, `b` and `c` with a process each.
struct Mesh {
    now: u64,
    shelf: Shelf,
    processes: Vec<Process>,
    rules: BTreeMap<Name, CellRules>,
    born: u64,
    /// Processes receive each other's beats.
    hears: bool,
    /// How often sessions were put.
    puts: u64,
}

impl Mesh {
    /// With these cells: name, owner, standby.
    fn new(cells: &[(&str, &str, &[&str])]) -> Mesh {
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

    fn terms() -> Terms {
        Terms::new(3 * SECOND, 3 * SECOND / 2, SECOND, SECOND / 10, 10).unwrap()
    }

    fn incarnation(&mut self, zone: &str) -> Name {
        self.born += 1;
        name(&format!("{zone}-{}", self.born))
    }

    fn start(&mut self, zone: &'static str) {
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

    fn at(&mut self, zone: &str) -> &mut Process {
        let mut processes = self.processes.iter_mut().filter(|p| !p.stopped);
        processes.find(|p| p.zone == zone).expect("a process")
    }

    fn index(&self, zone: &str) -> usize {
        let mut processes = self.processes.iter();
        processes
            .position(|p| p.zone == zone && !p.stopped)
            .unwrap()
    }

    fn tell(&mut self, at: usize, input: Input) {
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

    fn carry_out(&mut self, at: usize, effects: Vec<Effect>) {
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
    fn pass(&mut self, span: u64) {
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

    fn request_move(
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
    fn cells(&self) -> Vec<(&str, &str, u64, bool)> {
        let cells = self.shelf.authorities.iter();
        let shown = cells.map(|(cell, authority)| {
            let active = authority.state == AuthorityState::Active;
            (&**cell, &*authority.owners[0], authority.epoch, active)
        });
        shown.collect()
    }

    /// Whether a live process of the owner grants for the cell.
    fn granting(&self, cell: &str) -> bool {
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

const TWO: &[(&str, &str, &[&str])] = &[("one", "a", &["b"]), ("two", "a", &["b"])];

#[test]
fn an_override_leaves_the_other_cells_of_the_zone_alone() {
    let mut mesh = Mesh::new(TWO);
    assert_eq!(mesh.cells(), [("one", "a", 1, true), ("two", "a", 1, true)]);
    mesh.request_move("b", "one", "b", Cause::Override, false)
        .unwrap();
    mesh.pass(2 * STEP);
    assert!(mesh.granting("two"), "reborn at once");
    mesh.pass(60 * SECOND);
    assert_eq!(mesh.cells(), [("one", "b", 2, true), ("two", "a", 1, true)]);
    assert!(mesh.granting("one") && mesh.granting("two"));
}

#[test]
fn an_override_of_a_zones_own_cell_stays_there() {
    for by in ["a", "b", "c"] {
        let mut mesh = Mesh::new(TWO);
        let refused = mesh.request_move(by, "one", "a", Cause::Override, false);
        assert_eq!(
            refused,
            Err(MoveRejected::SameOwners),
            "twice is no more than once"
        );
        mesh.request_move(by, "one", "a", Cause::Override, true)
            .unwrap();
        mesh.pass(60 * SECOND);
        let expected = [("one", "a", 2, true), ("two", "a", 1, true)];
        assert_eq!(mesh.cells(), expected, "by {by}");
        assert!(mesh.granting("one") && mesh.granting("two"));
    }
}

#[test]
fn overrides_of_several_cells_at_once_act_on_these_alone() {
    let cells: &[(&str, &str, &[&str])] = &[
        ("one", "a", &["b", "c"]),
        ("two", "a", &["b", "c"]),
        ("three", "b", &["a", "c"]),
        ("four", "b", &["a", "c"]),
        ("five", "c", &["a", "b"]),
    ];
    let mut mesh = Mesh::new(cells);
    mesh.request_move("c", "one", "b", Cause::Override, false)
        .unwrap();
    mesh.request_move("b", "three", "a", Cause::Override, false)
        .unwrap();
    mesh.request_move("a", "two", "c", Cause::Override, false)
        .unwrap();
    mesh.pass(60 * SECOND);
    let expected = [
        ("five", "c", 1, true),
        ("four", "b", 1, true),
        ("one", "b", 2, true),
        ("three", "a", 2, true),
        ("two", "c", 2, true),
    ];
    assert_eq!(mesh.cells(), expected);
    for (cell, ..) in cells {
        assert!(mesh.granting(cell), "{cell}");
    }
}

#[test]
fn an_override_of_a_hung_zones_cell_acts_at_once_and_its_other_cells_follow_in_time() {
    let mut mesh = Mesh::new(TWO);
    mesh.at("a").hung = true;
    mesh.pass(SECOND);
    mesh.request_move("b", "one", "b", Cause::Override, false)
        .unwrap();
    mesh.pass(STEP);
    let owners = |mesh: &Mesh| [mesh.cells()[0].1.to_owned(), mesh.cells()[1].1.to_owned()];
    assert_eq!(owners(&mesh), ["b", "a"]);
    // Silent for a second: the patience counts from its last sign of life, not from the deletion of
    // its session.
    mesh.pass(3 * SECOND);
    assert_eq!(owners(&mesh), ["b", "b"]);
    mesh.pass(10 * SECOND);
    assert_eq!(mesh.cells(), [("one", "b", 2, true), ("two", "b", 2, true)]);
    assert!(mesh.granting("one") && mesh.granting("two"));
}

#[test]
fn all_cells_of_a_lost_zone_are_taken_over_in_the_time_of_one() {
    let cells: &[(&str, &str, &[&str])] = &[
        ("one", "a", &["b"]),
        ("two", "a", &["b"]),
        ("three", "a", &["b"]),
        ("four", "a", &["b"]),
    ];
    let mut mesh = Mesh::new(cells);
    let renewed = mesh.now;
    mesh.at("a").hung = true;
    let settled = Mesh::terms().session_settled();
    while !mesh
        .cells()
        .iter()
        .all(|(_, owner, _, active)| *owner == "b" && *active)
    {
        mesh.pass(STEP);
        let took = mesh.now - renewed;
        assert!(
            took < settled + 3 * STEP,
            "{:?} after {took} us",
            mesh.cells()
        );
    }
}

#[test]
fn a_process_that_dies_costs_the_others_few_puts() {
    // `c` owns nothing that could be taken over.
    let mut mesh = Mesh::new(&[("one", "a", &["b"])]);
    mesh.hears = true;
    mesh.pass(10 * SECOND);
    let before = mesh.puts;
    mesh.pass(60 * SECOND);
    assert_eq!(mesh.puts, before, "all hear each other");

    mesh.at("c").hung = true;
    mesh.pass(60 * SECOND);
    // Two processes, four times in a session's three seconds, for twice as long as a session lasts.
    let puts = mesh.puts - before;
    assert!((2..=2 * 10).contains(&puts), "{puts} puts");
    let sessions = |key: &&Key| matches!(key, Key::Session(_));
    assert_eq!(mesh.shelf.stands.keys().filter(sessions).count(), 2);
    let orphaned = mesh.puts;
    mesh.pass(60 * SECOND);
    assert_eq!(mesh.puts, orphaned, "no replica waits for it any more");

    // It was only slow, and begins another session.
    mesh.at("c").hung = false;
    let at = mesh.index("c");
    let listing = Input::Listed(mesh.shelf.list());
    mesh.tell(at, listing);
    mesh.pass(10 * SECOND);
    assert_eq!(mesh.shelf.stands.keys().filter(sessions).count(), 3);
    let back = mesh.puts;
    mesh.pass(60 * SECOND);
    assert_eq!(mesh.puts, back);
}

#[test]
fn a_standby_that_hears_late_takes_nothing_from_a_healthy_owner() {
    let mut mesh = Mesh::new(TWO);
    let owners = ["one", "two"];
    mesh.at("b").deaf = true;
    mesh.at("c").deaf = true;
    mesh.pass(10 * SECOND);
    let expected = [("one", "a", 1, true), ("two", "a", 1, true)];
    assert_eq!(mesh.cells(), expected);
    assert!(owners.iter().all(|cell| mesh.granting(cell)));
    // Later events change nothing either.
    for zone in ["b", "c"] {
        let at = mesh.index(zone);
        mesh.processes[at].deaf = false;
        for input in std::mem::take(&mut mesh.processes[at].untold) {
            mesh.tell(at, input);
        }
    }
    mesh.pass(10 * SECOND);
    assert_eq!(mesh.cells(), expected);
}

#[test]
fn a_process_that_stops_has_time_to_come_back() {
    let ttl = Mesh::terms().session_ttl;
    for away in [STEP, SECOND, ttl / 4 * 3 - 2 * STEP] {
        let mut mesh = Mesh::new(TWO);
        let at = mesh.index("a");
        mesh.tell(at, Input::Stop);
        let begun = mesh.now;
        while !mesh.processes[at].stopped {
            mesh.pass(STEP);
            assert!(mesh.now - begun < 5 * SECOND, "it does not end");
        }
        mesh.pass(away);
        mesh.start("a");
        mesh.pass(20 * SECOND);
        let expected = [("one", "a", 1, true), ("two", "a", 1, true)];
        assert_eq!(mesh.cells(), expected, "away for {away} us");
        assert!(mesh.granting("one") && mesh.granting("two"));
    }
}

#[test]
fn a_process_that_stops_for_good_loses_its_cells_and_nothing_has_to_settle() {
    let mut mesh = Mesh::new(TWO);
    let at = mesh.index("a");
    mesh.tell(at, Input::Stop);
    while !mesh.processes[at].stopped {
        mesh.pass(STEP);
    }
    mesh.pass(Mesh::terms().session_over() + 2 * STEP);
    assert_eq!(mesh.cells(), [("one", "b", 2, true), ("two", "b", 2, true)]);
}

#[test]
fn a_lost_cell_goes_to_a_zone_with_proxies_before_one_without() {
    let cells: &[(&str, &str, &[&str])] = &[("one", "a", &["b", "c"])];
    for (unheld, heir) in [(&["b"][..], "c"), (&["b", "c"], "b"), (&["a", "c"], "b")] {
        let mut mesh = Mesh::new(cells);
        let unheld: BTreeSet<Name> = unheld.iter().map(|zone| name(zone)).collect();
        for zone in ["b", "c"] {
            let at = mesh.index(zone);
            mesh.tell(at, Input::Unheld(unheld.clone()));
        }
        mesh.at("a").hung = true;
        mesh.pass(20 * SECOND);
        assert_eq!(
            mesh.cells(),
            [("one", heir, 2, true)],
            "without proxies: {unheld:?}"
        );
    }
}

#[test]
fn an_operators_move_holds_for_its_time_though_another_zone_is_better() {
    let mut mesh = Mesh::new(&[("one", "a", &["b"])]);
    let at = mesh.index("a");
    let next = Move {
        id: name("a move request"),
        to: vec![name("b")],
        cause: Cause::Operator,
        reason: name("a test"),
        epoch_min: 0,
        hold: 60 * SECOND,
    };
    let now = mesh.now;
    let effects = mesh.processes[at]
        .replica
        .request_move(&name("one"), next, false, now)
        .unwrap();
    mesh.carry_out(at, effects);
    for zone in ["a", "b", "c"] {
        let at = mesh.index(zone);
        let better = Input::Better {
            cell: name("one"),
            zone: Some(name("a")),
            reason: name("b cannot serve orders"),
        };
        mesh.tell(at, better);
    }
    mesh.pass(59 * SECOND);
    assert_eq!(mesh.cells(), [("one", "b", 2, true)]);
    mesh.pass(2 * SECOND);
    assert_eq!(mesh.cells(), [("one", "a", 3, true)], "after that it moves");
    // A move without an operator has no hold.
    assert_eq!(mesh.shelf.authorities["one"].hold, 0);
}

#[test]
fn a_successor_is_named_only_where_nobody_else_speaks_for_the_zone() {
    let mut mesh = Mesh::new(TWO);
    let now = mesh.now;
    let successor = |mesh: &mut Mesh| mesh.at("a").replica.successor("one", now);
    assert_eq!(successor(&mut mesh), Some(name("b")));
    mesh.start("a");
    mesh.pass(2 * STEP);
    assert_eq!(successor(&mut mesh), None);
}
