//! A replica with hand-made events of the store: orders of events that were once handled wrongly.

use std::collections::BTreeMap;

use policy::fence::{
    Agreed, Agreement, Authority, AuthorityState, Cause, CellRules, Condition, Effect, Input, Key,
    Layout, Listing, Move, Name, Replica, Revision, SessionId, Terms, Transaction,
    TransactionOutcome, Unsettled, Write,
};

const STORE: u64 = 7;
const CELL: &str = "main";
/// The revision of the agreed terms.
const TERMS: Revision = Revision(1);

fn name(text: &str) -> Name {
    Name::from(text)
}

fn incarnation(zone: &str) -> SessionId {
    SessionId {
        zone: name(zone),
        incarnation: name(&format!("{zone}-1")),
    }
}

fn authority(epoch: u64, owners: &[&str], state: AuthorityState) -> Authority {
    Authority {
        store: STORE,
        epoch,
        owners: owners.iter().map(|zone| name(zone)).collect(),
        standby: vec![name("b")],
        state,
        unsettled: Unsettled::none(),
        hold: 0,
    }
}

fn fencing(epoch: u64, owners: &[&str], to: &[&str]) -> Authority {
    let next = Move {
        id: name("a move"),
        to: to.iter().map(|zone| name(zone)).collect(),
        cause: Cause::Operator,
        reason: name(""),
        epoch_min: 0,
        hold: 0,
    };
    authority(epoch, owners, AuthorityState::Fencing(next))
}

/// The replica of zone a, the time in microseconds, and its open requests to the store.
struct Desk {
    replica: Replica,
    now: u64,
    wanted: Vec<(u64, Transaction)>,
    stopped: bool,
}

impl Desk {
    fn new(listed: Authority) -> Desk {
        let mut desk = Desk::before_session(listed);
        desk.commit(11, |write| matches!(write, Write::Session(_)));
        desk.tell(Input::Session {
            id: incarnation("a"),
            put: Some(Revision(11)),
        });
        desk
    }

    /// It has requested its session.
    fn before_session(listed: Authority) -> Desk {
        let terms = Terms::new(3_000_000, 1_500_000, 1_500_000, 100_000, 10).unwrap();
        let mut desk = Desk {
            replica: Replica::new(incarnation("a"), terms.clone()),
            now: 1_000_000,
            wanted: vec![],
            stopped: false,
        };
        let rules = CellRules {
            owners: vec![name("a")],
            standby: vec![name("b")],
            automatic: true,
            cool_down: 0,
            epoch_min: 1,
        };
        desk.tell(Input::Cells(BTreeMap::from([(name(CELL), rules)])));
        let agreed = Agreed::of(&terms, Layout::default());
        desk.tell(Input::Listed(Listing {
            store: STORE,
            authorities: vec![(name(CELL), Revision(10), listed)],
            sessions: BTreeMap::from([(incarnation("b"), Revision(9))]),
            grantors: BTreeMap::new(),
            terms: Some((TERMS, Agreement::first(agreed))),
            ..Listing::default()
        }));
        desk
    }

    fn tell(&mut self, input: Input) {
        self.now += 1_000;
        let effects = self.replica.handle(input, self.now);
        self.stopped |= effects.contains(&Effect::Stopped);
        let commits = effects.into_iter().filter_map(|effect| match effect {
            Effect::Commit {
                number,
                transaction,
            } => Some((number, transaction)),
            _ => None,
        });
        self.wanted.extend(commits);
    }

    /// Removes the first open transaction with such a write.
    fn take(&mut self, is: impl Fn(&Write) -> bool) -> Option<(u64, Transaction)> {
        let mut all = self.wanted.iter();
        let at = all.position(|(_, transaction)| transaction.writes.iter().any(&is))?;
        Some(self.wanted.remove(at))
    }

    fn answer(&mut self, number: u64, revision: u64) {
        let outcome = TransactionOutcome::Committed(Revision(revision));
        self.tell(Input::Answer { number, outcome });
    }

    /// The store commits the first transaction with such a write.
    #[track_caller]
    fn commit(&mut self, revision: u64, is: impl Fn(&Write) -> bool) -> Transaction {
        let (number, transaction) = self.take(is).expect("a transaction");
        self.answer(number, revision);
        transaction
    }

    fn watch_authority(&mut self, revision: u64, authority: Option<Authority>) {
        self.tell(Input::Authority {
            cell: name(CELL),
            revision: Revision(revision),
            authority,
        });
    }

    fn watch_grantor(&mut self, present: bool) {
        self.tell(Input::Grantor {
            cell: name(CELL),
            id: incarnation("a"),
            registered: present.then_some(TERMS),
        });
    }
}

fn is_registration(write: &Write) -> bool {
    matches!(write, Write::Grantor(..))
}

fn is_leave(write: &Write) -> bool {
    matches!(write, Write::Delete(Key::Grantor(..)))
}

fn names_an_authority(write: &Write) -> bool {
    matches!(write, Write::Authority(..))
}

#[test]
fn a_grantor_that_left_and_came_back_leaves_again() {
    let mut desk = Desk::new(authority(1, &["a"], AuthorityState::Active));
    desk.commit(12, is_registration);
    desk.watch_grantor(true);

    // The zone stays an owner, and the watch reports the deletion of its key before the answer.
    desk.watch_authority(13, Some(fencing(1, &["a"], &["a", "b"])));
    let (leave, _) = desk.take(is_leave).expect("a leave");
    desk.watch_grantor(false);
    let (complete, transaction) = desk.take(names_an_authority).expect("the move's end");
    assert!(
        !transaction.writes.iter().any(is_registration),
        "a put and a delete of the key are under way together"
    );
    desk.answer(leave, 14);
    desk.answer(complete, 15);
    desk.watch_authority(15, Some(authority(2, &["a", "b"], AuthorityState::Active)));
    desk.commit(16, is_registration);
    desk.watch_grantor(true);

    desk.watch_authority(20, Some(fencing(2, &["a", "b"], &["b"])));
    assert!(desk.take(is_leave).is_some(), "the move waits for ever");
}

#[test]
fn a_move_to_the_own_zone_registers_with_it_and_leaves_again() {
    let mut desk = Desk::new(authority(1, &["b"], AuthorityState::Active));
    desk.watch_authority(13, Some(fencing(1, &["b"], &["a"])));
    let transaction = desk.commit(14, names_an_authority);
    assert!(transaction.writes.iter().any(is_registration));
    let granting = |desk: &Desk| desk.replica.cells().next().unwrap().4.granting();
    assert!(granting(&desk).is_some(), "it need not hear of it first");
    desk.watch_authority(14, Some(authority(2, &["a"], AuthorityState::Active)));
    desk.watch_grantor(true);
    assert!(granting(&desk).is_some());
    assert!(desk.take(is_registration).is_none(), "once is enough");

    desk.watch_authority(20, Some(fencing(2, &["a"], &["b"])));
    assert!(granting(&desk).is_none());
    assert!(desk.take(is_leave).is_some(), "the move waits for ever");
}

#[test]
fn an_authority_that_is_deleted_begins_anew_above_every_epoch_that_was_seen() {
    let mut desk = Desk::new(authority(17, &["a"], AuthorityState::Active));
    desk.watch_authority(12, None);
    let (_, transaction) = desk.take(names_an_authority).expect("a new record");
    let epoch = transaction.writes.iter().find_map(|write| match write {
        Write::Authority(_, authority) => Some(authority.epoch),
        _ => None,
    });
    assert_eq!(epoch, Some(18));
}

fn ends_a_session(write: &Write) -> bool {
    matches!(write, Write::Delete(Key::Session(_)))
}

/// Others would wait for its acknowledgements, and then for its possible grants.
#[test]
fn a_replica_that_stops_while_its_session_is_created_leaves_none_behind() {
    let mut desk = Desk::before_session(authority(1, &["b"], AuthorityState::Active));
    let creation = |desk: &mut Desk| desk.take(|write| matches!(write, Write::Session(_)));
    let (number, _) = creation(&mut desk).expect("a session");
    desk.tell(Input::Stop);
    desk.tell(Input::Tick);
    assert!(
        desk.take(ends_a_session).is_none(),
        "it would be created afterwards"
    );
    assert!(!desk.stopped);
    desk.answer(number, 11);
    let end = desk.commit(12, ends_a_session);
    let key = Key::Session(incarnation("a"));
    assert_eq!(end.conditions, [Condition::CreatedAt(key, Revision(11))]);
    assert!(desk.stopped);

    // If its creation is unknown.
    let mut desk = Desk::before_session(authority(1, &["b"], AuthorityState::Active));
    let (number, _) = creation(&mut desk).expect("a session");
    desk.tell(Input::Stop);
    let outcome = TransactionOutcome::Unknown;
    desk.tell(Input::Answer { number, outcome });
    assert!(!desk.stopped);
    assert_eq!(desk.commit(12, ends_a_session).conditions, []);
    assert!(desk.stopped);
}

/// The whole store was unavailable, so no sign of life arrived. The first replica to return must
/// not end the sessions of the others.
#[test]
fn the_first_replica_that_is_back_after_an_outage_ends_no_session_of_others() {
    for confirmed in [false, true] {
        let mut desk = Desk::new(authority(1, &["b"], AuthorityState::Active));
        let over = desk.replica.terms().session_over();
        desk.tell(Input::Tick);
        desk.wanted.clear();
        // The store answers none of its requests.
        desk.now += 5 * over;
        desk.tell(Input::Tick);
        let (number, transaction) = match confirmed {
            false => {
                // The round fails, and the replica puts its key instead.
                desk.now += over;
                desk.tell(Input::Tick);
                desk.take(|write| matches!(write, Write::Session(_)))
            }
            true => {
                let mut all = desk.wanted.iter();
                let at = all.position(|(_, round)| round.writes.is_empty());
                at.map(|at| desk.wanted.remove(at))
            }
        }
        .expect("a renewal");
        assert!(!transaction.conditions.is_empty());
        desk.answer(number, 20);
        if confirmed {
            desk.tell(Input::Heard {
                by: incarnation("b"),
                of: incarnation("a"),
                round: number,
            });
        }
        assert!(desk.replica.session().left(desk.now) > 0);
        let harms = |write: &Write| ends_a_session(write) || names_an_authority(write);
        assert!(desk.take(harms).is_none(), "confirmed: {confirmed}");
        desk.now += over / 2;
        desk.tell(Input::Tick);
        assert!(desk.take(harms).is_none(), "confirmed: {confirmed}");
    }
}
