//! The fence holds in every scenario, and would not without any one of its rules.

use std::sync::{Mutex, PoisonError};

use model::{Found, Mutation, Scenario, explore, scenarios};
use policy::fence::Clause;

/// The number of states at which an exploration stops; it is then reported as cut short.
const STATES_MAX: usize = 600_000;

/// The largest exploration takes almost four gigabytes, so only one runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn shown(what: &str, scenario: &Scenario, found: &Found) {
    let outcome = match &found.violation {
        Some(actions) => format!("violated after {} steps", actions.len()),
        None if found.exhausted => "exhausted".into(),
        None => "cut short".into(),
    };
    let (name, states, depth) = (scenario.name, found.states, found.depth);
    println!("{what:32} {name:54} {states:8} states, depth {depth:2}: {outcome}");
}

/// Explores, and prints the result.
fn check(what: &str, scenario: Scenario, states_max: Option<usize>) -> Found {
    let scenario = Scenario {
        states_max,
        ..scenario
    };
    let turn = (ONE_AT_A_TIME.lock()).unwrap_or_else(PoisonError::into_inner);
    let found = explore(&scenario);
    drop(turn);
    shown(what, &scenario, &found);
    found
}

fn is_violated(what: &str, scenario: Scenario) -> Result<(), String> {
    match check(what, scenario, Some(4 * STATES_MAX)).violation {
        Some(_) => Ok(()),
        None => Err(what.into()),
    }
}

#[test]
fn no_two_zones_write() {
    let mut exhausted = 0;
    for scenario in scenarios::all() {
        let name = scenario.name;
        let found = check("", scenario, Some(STATES_MAX));
        let trace = found.violation;
        assert!(trace.is_none(), "{name}: {trace:#?}");
        exhausted += usize::from(found.exhausted);
    }
    assert!(exhausted >= 35, "only {exhausted} were exhausted");
}

#[test]
fn no_rule_can_be_left_out() {
    let missed: Vec<String> = (Clause::ALL.into_iter())
        .map(|clause| is_violated(&format!("{clause:?}"), scenarios::of_clause(clause)))
        .filter_map(Result::err)
        .collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

#[test]
fn processes_have_to_do_their_part() {
    let missed: Vec<String> = (Mutation::ALL.into_iter())
        .filter_map(|mutation| Some((mutation, scenarios::of_mutation(mutation)?)))
        .map(|(mutation, scenario)| is_violated(&format!("{mutation:?}"), scenario))
        .filter_map(Result::err)
        .collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

/// Why a hole is closed.
enum Because {
    Of(Clause),
    /// A process must not do this.
    Not(Mutation),
}

/// Faults of an earlier version of the rules, and the clause that closes each now.
#[test]
fn the_holes_of_earlier_rules_are_closed() {
    use Because::{Not, Of};
    let holes = [
        (
            "a: planned move after a session had expired",
            Of(Clause::MoveSettles),
        ),
        (
            "b: a grant has run out, and its write has not",
            Of(Clause::RunOutDrain),
        ),
        ("c: late grant", Of(Clause::GrantNotOlder)),
        (
            "d: a restarted replica comes before a move that knew the one before",
            Of(Clause::FenceFirst),
        ),
        ("e: clean stop at once", Not(Mutation::StopUnclean)),
        (
            "f: a second move while the first settles",
            Of(Clause::UnsettledCarried),
        ),
        (
            "g: owners stay owners without being taken out",
            Of(Clause::MoveWaitsForGrantors),
        ),
        (
            "h: no drift in the wait for a grant",
            Of(Clause::RunOutDrift),
        ),
        (
            "h: no drift in the wait for a session",
            Of(Clause::SettleDrift),
        ),
        ("i: an authority of another store", Of(Clause::BoundToStore)),
        (
            "i: nothing settles after a restore",
            Of(Clause::UnknownPastSettles),
        ),
        (
            "i: the restored store has the old identity",
            Not(Mutation::StoreIdKept),
        ),
        (
            "j: the holder believes in a session that is gone",
            Of(Clause::RenewalCompared),
        ),
        ("k: holder per node", Not(Mutation::HolderPerNode)),
        ("k: admitted before it is listed", Of(Clause::WorkerListed)),
    ];
    let missed: Vec<String> = (holes.into_iter())
        .map(|(hole, because)| match because {
            Of(Clause::MoveWaitsForGrantors) => {
                let extension = scenarios::moves::extension().without(Clause::MoveWaitsForGrantors);
                is_violated(hole, extension)
            }
            Of(clause) => is_violated(hole, scenarios::of_clause(clause)),
            Not(mutation) => match scenarios::of_mutation(mutation) {
                Some(scenario) => is_violated(hole, scenario),
                None => Err(hole.into()),
            },
        })
        .filter_map(Result::err)
        .collect();
    assert!(missed.is_empty(), "open: {missed:?}");
    // l: if the mover crashes after the fence, other replicas complete the move.
    let mut stuck = scenarios::moves::planned("l: the mover crashes after the fence");
    stuck.budget.crashes = 1;
    stuck.faults_until = 4;
    stuck.horizon = 16;
    stuck.eager = vec![0, 1];
    stuck.writable_at_last = true;
    let found = check("l", stuck, Some(STATES_MAX));
    assert!(found.violation.is_none(), "{:#?}", found.violation);
}
