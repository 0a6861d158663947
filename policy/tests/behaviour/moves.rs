//! Several replicas and cells with one store, without delays: which cells move, and which stay.

mod mesh;
mod store;

use std::collections::BTreeSet;

use policy::fence::{Cause, Input, Key, Move, MoveRejected, Name};

use mesh::{Mesh, SECOND, STEP, name};

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
