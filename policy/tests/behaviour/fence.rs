//! The machines of the write fence, each by itself. The model checker covers their interaction.

use std::collections::{BTreeMap, BTreeSet};

use policy::fence::{
    Aloud, Asker, Authority, Company, Condition, Grant, Key, Ledger, Name, Revision, Session,
    SessionId, Sessions, Stamp, Terms, TermsId, Worker, WorkerId, moves::better_zone,
};

fn terms() -> Terms {
    Terms::new(100, 50, 20, 10, 100).unwrap()
}

fn stamp(epoch: u64, revision: u64) -> Stamp {
    Stamp {
        epoch,
        revision: Revision(revision),
    }
}

fn grant(epoch: u64, revision: u64) -> Grant {
    Grant {
        stamp: stamp(epoch, revision),
        ttl: 50,
    }
}

fn session_id(incarnation: &str) -> SessionId {
    SessionId {
        zone: Name::from("a"),
        incarnation: Name::from(incarnation),
    }
}

#[test]
fn terms_that_cannot_work_are_refused() {
    let cases = [
        ((100, 50, 20, 10, 1000), "drift by less than 1000"),
        ((100, 0, 20, 10, 0), "longer than 0"),
        ((100, 50, 0, 10, 0), "longer than 0"),
        ((100, 101, 20, 10, 0), "longer than a session"),
        ((100, 50, 20, 100, 0), "uses up"),
    ];
    for ((session, grant, drain, margin, drift), expected) in cases {
        let said = Terms::new(session, grant, drain, margin, drift).unwrap_err();
        assert!(said.to_string().contains(expected), "{said}");
    }
}

#[test]
fn waits_leave_room_for_drift() {
    let terms = terms();
    assert_eq!(terms.stretch(90), 100);
    assert_eq!(terms.stretch(91), 102);
    assert_eq!(terms.session_over(), 112);
    assert_eq!(terms.session_settled(), 134);
}

#[test]
fn a_worker_takes_a_permit_only_once_it_has_the_policy_under_which_that_was_asked_for() {
    let old = terms();
    let new = Terms {
        id: TermsId(7),
        ..terms()
    };
    let mut ledger = Ledger::default();
    assert!(ledger.install(&grant(1, 5), 0, 0, &new));
    assert_eq!(ledger.take(WorkerId(1), false, 10, &old), None);
    assert!(ledger.workers.is_empty());
    assert!(ledger.take(WorkerId(1), false, 10, &new).is_some());
}

#[test]
fn a_grant_counts_from_when_it_was_asked_for() {
    let (mut ledger, terms) = (Ledger::default(), terms());
    assert!(ledger.install(&grant(1, 5), 1_000, 1_030, &terms));
    assert_eq!(ledger.permit.unwrap().until, 1_050);
    assert!(!ledger.install(&grant(1, 5), 1_000, 1_050, &terms));
}

#[test]
fn a_grant_that_a_fence_revoked_is_not_installed_again() {
    let (mut ledger, terms) = (Ledger::default(), terms());
    ledger.revoke(stamp(1, 7));
    assert!(!ledger.install(&grant(1, 5), 0, 0, &terms));
    assert!(ledger.install(&grant(2, 9), 0, 0, &terms));
    assert!(ledger.install(&grant(3, 11), 0, 0, &terms));
    assert!(
        !ledger.install(&grant(2, 13), 0, 0, &terms),
        "a lower epoch"
    );
}

#[test]
fn a_fence_is_acknowledged_when_every_worker_has_let_go() {
    let (mut ledger, terms) = (Ledger::default(), terms());
    assert!(ledger.install(&grant(1, 5), 0, 0, &terms));
    let (id, mut worker) = (WorkerId(1), Worker::default());
    worker.begin();
    assert_eq!(worker.admits(0, &terms), None);
    worker.took(ledger.take(id, worker.busy(0), 0, &terms));
    assert_eq!(worker.admits(0, &terms), Some(1));

    ledger.revoke(stamp(1, 7));
    worker.fenced(&ledger);
    assert!(!worker.can_release(1, &terms), "a write is in flight");
    assert_eq!(worker.admits(1, &terms), None);
    assert_eq!(ledger.drained(1, &terms), None);
    worker.end();
    assert!(worker.can_release(1, &terms));
    ledger.release(id);
    worker.release();
    assert_eq!(ledger.drained(2, &terms), Some(stamp(1, 7)));
}

/// A proxy that connects to a lagging replica gets an older policy, in which a key may belong to
/// another cell.
#[test]
fn a_permit_counts_for_the_terms_that_it_was_taken_under() {
    let (mut ledger, terms) = (Ledger::default(), terms());
    let older = Terms {
        id: TermsId(7),
        ..terms.clone()
    };
    assert!(ledger.install(&grant(1, 5), 0, 0, &terms));
    let (id, mut worker) = (WorkerId(1), Worker::default());
    worker.begin();
    worker.took(ledger.take(id, worker.busy(0), 0, &terms));
    assert_eq!(worker.admits(0, &terms), Some(1));
    assert_eq!(worker.admits(0, &older), None, "what it holds");
    assert_eq!(ledger.take(id, worker.busy(0), 0, &older), None);
    assert_eq!(worker.admits(0, &terms), Some(1));
}

#[test]
fn a_write_that_ended_without_an_answer_is_in_flight_for_as_long_as_it_may_live() {
    let (mut ledger, terms) = (Ledger::default(), terms());
    assert!(ledger.install(&grant(1, 5), 0, 0, &terms));
    let (id, mut worker) = (WorkerId(1), Worker::default());
    for admitted in [3, 5] {
        worker.begin();
        worker.took(ledger.take(id, worker.busy(admitted), admitted, &terms));
    }
    worker.abandon(5, &terms);
    worker.end();
    ledger.revoke(stamp(1, 7));
    worker.fenced(&ledger);
    assert!(
        !worker.can_release(25, &terms),
        "its instance may go on with it"
    );
    assert!(worker.can_release(26, &terms));
    assert_eq!(ledger.drained(25, &terms), None);

    // Another permit does not hide the fence.
    assert!(ledger.install(&grant(2, 9), 10, 10, &terms));
    worker.begin();
    worker.took(ledger.take(id, worker.busy(10), 10, &terms));
    assert_eq!(worker.admits(10, &terms), Some(2));
    assert_eq!(
        ledger.drained(10, &terms),
        None,
        "of the first one something is left"
    );
}

#[test]
fn a_lost_worker_is_waited_for_until_its_last_write_is_over() {
    let (mut ledger, terms) = (Ledger::default(), terms());
    assert!(ledger.install(&grant(1, 5), 0, 0, &terms));
    assert!(ledger.take(WorkerId(1), false, 0, &terms).is_some());
    ledger.revoke(stamp(1, 7));
    assert_eq!(ledger.drained(69, &terms), None);
    assert_eq!(ledger.drained(70, &terms), Some(stamp(1, 7)));
}

#[test]
fn only_the_open_question_is_answered() {
    let (mut asker, terms) = (Asker::default(), terms());
    let first = asker.ask(10);
    let second = asker.ask(20);
    assert_eq!(asker.answered(first, &terms), None);
    assert_eq!(asker.answered(second, &terms), Some(20));
    assert_eq!(asker.answered(second, &terms), None);
}

#[test]
fn a_session_lasts_from_when_its_renewal_was_sent() {
    let (mut session, terms) = (Session::new(session_id("1")), terms());
    assert_eq!(session.due(&terms), Some(0));
    session.renew(1, 1_000, &terms);
    assert_eq!(session.due(&terms), None, "one at a time");
    session.renewed(1, Revision(4), 1_040, &terms);
    assert_eq!(session.created(), Some(Revision(4)));
    assert_eq!(session.left(1_040), 50);
    assert_eq!(session.due(&terms), None, "rounds do without puts");
    assert_eq!(session.round_due(&terms), Some(1_025));

    session.renew(2, 1_050, &terms);
    session.renewed(1, Revision(4), 1_060, &terms);
    assert_eq!(session.left(1_060), 30, "a late answer tells nothing");
    session.refused(2);
    assert!(session.ended());
    assert_eq!(session.left(1_060), 0);
}

/// The sessions that a session has seen when it begins a round.
fn company(others: &[&str]) -> Option<Company> {
    Some(Company {
        others: others.iter().map(|other| session_id(other)).collect(),
        seen: Revision(9),
    })
}

#[test]
fn a_round_that_all_have_heard_renews_a_session_without_a_put() {
    let (mut session, terms) = (Session::new(session_id("1")), terms());
    session.renew(1, 1_000, &terms);
    session.renewed(1, Revision(4), 1_001, &terms);
    assert_eq!(session.left(1_025), 65);
    let confirmation = session.begin_round(2, company(&["2", "3"]), 1_025, &terms);
    let own = Key::Session(session_id("1"));
    let expected = [
        Condition::CreatedAt(own, Revision(4)),
        Condition::NoSessionSince(Revision(9)),
    ];
    let confirmation = confirmation.unwrap();
    assert_eq!(confirmation.conditions, expected);
    assert!(confirmation.writes.is_empty(), "it costs no history");
    assert_eq!(session.confirmed(2).len(), 2, "a beat to each");

    let (own, other) = (session_id("1"), session_id("2"));
    session.heard(&other, &own, 2, &terms);
    assert!(!session.complete_round(1_030, &terms), "one is missing");
    session.heard(&session_id("3"), &session_id("0"), 2, &terms);
    session.heard(&session_id("3"), &own, 1, &terms);
    assert!(!session.complete_round(1_030, &terms), "of another round");
    session.heard(&session_id("3"), &own, 2, &terms);
    assert!(session.complete_round(1_032, &terms));
    assert_eq!(session.left(1_032), 83, "from when the round began");
    assert_eq!(session.due(&terms), None);
    assert_eq!(session.round_due(&terms), Some(1_050));
}

#[test]
fn a_session_that_is_not_heard_is_put_until_it_is() {
    let (mut session, terms) = (Session::new(session_id("1")), terms());
    session.renew(1, 1_000, &terms);
    session.renewed(1, Revision(4), 1_001, &terms);
    session.begin_round(2, company(&["2"]), 1_025, &terms);
    session.confirmed(2);
    assert_eq!(session.due(&terms), None, "it has time until the next");
    session.begin_round(3, company(&["2"]), 1_050, &terms);
    let unheard = Aloud::Unheard([session_id("2")].into());
    assert_eq!(session.aloud(), Some(&unheard));
    assert_eq!(session.due(&terms), Some(1_025), "at once");
    session.renew(4, 1_050, &terms);
    session.renewed(4, Revision(4), 1_051, &terms);
    assert_eq!(session.due(&terms), Some(1_075));

    session.unconfirmed(3);
    assert_eq!(session.aloud(), Some(&Aloud::Unconfirmed));
    session.begin_round(5, company(&["2"]), 1_075, &terms);
    session.confirmed(5);
    session.heard(&session_id("2"), &session_id("1"), 5, &terms);
    assert!(session.complete_round(1_076, &terms));
    assert_eq!(session.due(&terms), None, "quiet again");
}

#[test]
fn a_round_waits_for_no_session_that_is_gone() {
    let (mut session, terms) = (Session::new(session_id("1")), terms());
    session.renew(1, 1_000, &terms);
    session.renewed(1, Revision(4), 1_001, &terms);
    session.begin_round(2, company(&["2", "3"]), 1_025, &terms);
    session.gone(&session_id("2"));
    session.gone(&session_id("3"));
    assert!(
        !session.complete_round(1_026, &terms),
        "the store has not confirmed that the own session is there"
    );
    assert!(session.confirmed(2).is_empty(), "no receiver is left");
    assert!(session.complete_round(1_027, &terms));
    assert_eq!(session.left(1_027), 88, "from when the round began");

    session.begin_round(3, company(&["2", "3"]), 1_050, &terms);
    session.confirmed(3);
    session.gone(&session_id("3"));
    assert!(!session.complete_round(1_051, &terms), "one is still there");
    session.heard(&session_id("2"), &session_id("1"), 3, &terms);
    assert!(session.complete_round(1_052, &terms));
    assert_eq!(session.due(&terms), None, "no put");

    // After a listing without the replica's own key a round does not count, even if the missing
    // session ends.
    session.begin_round(4, company(&["2"]), 1_075, &terms);
    session.confirmed(4);
    session.forget_round();
    session.gone(&session_id("2"));
    assert!(!session.complete_round(1_076, &terms));
}

#[test]
fn the_record_of_a_session_is_put_until_the_store_has_it() {
    let (mut session, terms) = (Session::new(session_id("1")), terms());
    session.renew(1, 1_000, &terms);
    session.renewed(1, Revision(4), 1_001, &terms);
    session.hurry();
    assert_eq!(session.due(&terms), Some(0), "now");
    session.renew(2, 1_010, &terms);
    session.failed(2);
    assert_eq!(session.due(&terms), Some(1_035), "and again");
    session.renew(3, 1_035, &terms);
    session.renewed(3, Revision(4), 1_036, &terms);
    assert_eq!(session.due(&terms), None);
}

#[test]
fn a_beat_is_acknowledged_only_where_silence_is_counted_from_it() {
    let (mut sessions, terms) = (Sessions::default(), terms());
    let id = session_id("1");
    assert!(!sessions.beat(&id, 1_000, &terms), "never seen");
    sessions.put(id.clone(), Revision(4), 1_000);
    assert!(sessions.beat(&id, 1_100, &terms));
    assert!(!sessions.over(&id, 1_211, &terms), "counted from the beat");
    sessions.pass_over(&id);
    assert!(!sessions.beat(&id, 1_200, &terms));
    assert!(sessions.over(&id, 1_212, &terms));
    sessions.put(id.clone(), Revision(6), 1_213);
    assert!(sessions.beat(&id, 1_214, &terms), "it was put since");
    sessions.gone(&id);
    assert!(!sessions.beat(&id, 1_215, &terms));
}

#[test]
fn a_session_whose_creation_is_unknown_is_given_up() {
    let (mut session, terms) = (Session::new(session_id("1")), terms());
    session.renew(1, 0, &terms);
    session.failed(1);
    assert!(session.ended());
}

#[test]
fn silence_is_counted_from_the_last_put_that_was_seen() {
    let (mut sessions, terms) = (Sessions::default(), terms());
    let id = session_id("1");
    sessions.put(id.clone(), Revision(4), 1_000);
    assert!(sessions.alive("a", 1_111, &terms));
    assert!(sessions.over(&id, 1_112, &terms));
    sessions.put(id.clone(), Revision(4), 1_100);
    assert!(sessions.over(&id, 1_112, &terms), "the same put again");
    sessions.put(id.clone(), Revision(6), 1_112);
    assert!(!sessions.over(&id, 1_112, &terms));
    sessions.gone(&id);
    assert!(sessions.over(&id, 1_112, &terms));
    assert_eq!(sessions.settled_at(&id, &terms), 1_246);
    sessions.listed(&BTreeMap::new(), 1_200, &terms);
    assert_eq!(sessions.settled_at(&id, &terms), 1_334, "counted anew");
}

/// The services that cannot be written to, by zone.
type Out<'o> = &'o [(&'o str, &'o [&'o str])];

#[test]
fn a_better_zone_is_out_for_fewer_services_and_for_none_more() {
    let names = |names: &[&str]| -> Vec<Name> { names.iter().map(|n| Name::from(*n)).collect() };
    let mut authority = Authority::first(1, 1, names(&["a"]), names(&["b", "c"]), &terms());
    let out = |out: Out<'_>| -> BTreeMap<Name, BTreeSet<Name>> {
        let zones = out.iter();
        let zone =
            |(zone, of): &(&str, &[&str])| (Name::from(*zone), names(of).into_iter().collect());
        zones.map(zone).collect()
    };
    let cases: [(Out<'_>, Option<&str>); 5] = [
        (&[], None),
        (&[("a", &["x"])], Some("b")),
        (&[("a", &["x"]), ("b", &["x"])], Some("c")),
        (&[("a", &["x"]), ("b", &["y"]), ("c", &["x", "y"])], None),
        (&[("a", &["x", "y"]), ("b", &["y"])], Some("b")),
    ];
    for (is_out, expected) in cases {
        let found = better_zone(&authority, &out(is_out), &BTreeSet::new());
        assert_eq!(found.as_deref(), expected, "{is_out:?}");
    }
    // A zone without a proxy that could hold grants is never better.
    let unheld = BTreeSet::from([Name::from("b")]);
    let found = better_zone(&authority, &out(&[("a", &["x"])]), &unheld);
    assert_eq!(found.as_deref(), Some("c"));
    // A service is served if one of two owners serves it.
    authority.owners = names(&["a", "d"]);
    let found = better_zone(&authority, &out(&[("a", &["x"])]), &BTreeSet::new());
    assert_eq!(found, None);
}
