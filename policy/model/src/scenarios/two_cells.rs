//! Two cells in one session, or in the sessions of two zones that end each other's.

use policy::fence::Cause;

use crate::{Scenario, Speed::Late};

/// Both cells are `a`'s. An operator forces the first to `b`, which also ends the session of the
/// second.
pub fn override_of_one() -> Scenario {
    let mut scenario =
        Scenario::new("the first of two cells overridden").with_second(vec![0], vec![1]);
    scenario.wishes = vec![(1, vec![1], Cause::Override)];
    scenario.horizon = 7;
    scenario.moves_on_wish_alone = true;
    scenario
}

/// The same, but `a` learns late that its session was ended, and grants until then.
pub fn override_untold() -> Scenario {
    let mut scenario = override_of_one();
    scenario.name = "the first of two cells overridden, a told late";
    scenario.hosts[0].1.watch = Late;
    scenario.net.revocations = Late;
    scenario.budget.questions = 1;
    scenario.horizon = 5;
    scenario
}

/// The same, but to the present owner: its incarnation is ended, and its zone stays the owner.
pub fn override_of_own() -> Scenario {
    let mut scenario = override_of_one();
    scenario.name = "the first of two cells overridden to where it is";
    scenario.wishes = vec![(1, vec![0], Cause::Override)];
    scenario
}

/// `a` owns the first cell, `b` the second, and each ends the other's session.
pub fn overrides_across() -> Scenario {
    let name = "each overrides the other's cell";
    let mut scenario = Scenario::new(name).with_second(vec![1], vec![0]);
    scenario.wishes = vec![(1, vec![1], Cause::Override), (0, vec![0], Cause::Override)];
    scenario.wishes_of_second = 1;
    scenario.horizon = 5;
    scenario.moves_on_wish_alone = true;
    scenario
}

/// The first of `a`'s cells is forced to `b`. Then an operator moves the second there, and its
/// proxies learn nothing of it.
pub fn moved_after_override() -> Scenario {
    let mut scenario = override_of_one();
    scenario.name = "the first overridden, the second moved, revocations late";
    scenario.wishes.push((1, vec![1], Cause::Operator));
    scenario.wishes_of_second = 1;
    scenario.net.revocations = Late;
    scenario.budget.writes = 2;
    scenario.horizon = 4;
    scenario.moves_on_wish_alone = false;
    scenario
}

/// Both cells are `a`'s, which crashes or is cut off, and `b` takes over both.
pub fn both_lost() -> [Scenario; 2] {
    let mut crashes = Scenario::new("a crashes, with two cells").with_second(vec![0], vec![1]);
    crashes.budget.crashes = 1;
    crashes.budget.restarts = 1;
    crashes.horizon = 6;
    let mut cuts = Scenario {
        name: "a cut off, with two cells",
        ..crashes.clone()
    };
    cuts.budget.crashes = 0;
    cuts.budget.restarts = 0;
    cuts.budget.cuts = 1;
    [crashes, cuts]
}
