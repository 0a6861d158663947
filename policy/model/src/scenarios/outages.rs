//! A replica is cut off, crashes, stops, or learns nothing.

use policy::fence::Cause;

use super::moves::planned;
use crate::{
    Clock, Lines, Scenario,
    Speed::{Late, Never},
    terms,
};

/// `a` cannot reach the store for a while: `b` takes over.
pub fn cut_off() -> Scenario {
    let mut scenario = Scenario::new("a cut off");
    scenario.budget.cuts = 1;
    scenario.budget.questions = 1;
    scenario.budget.writes = 3;
    scenario
}

/// The same, and answers are late before.
pub fn cut_off_late_answers() -> Scenario {
    let mut scenario = cut_off();
    scenario.name = "a cut off, answers late";
    scenario.horizon = 6;
    scenario.hosts[0].1.renewal_answers = Late;
    scenario
}

/// The same, and clocks are slow.
pub fn cut_off_slow_clocks() -> Scenario {
    let mut scenario = cut_off();
    scenario.name = "a cut off, clocks slow";
    scenario.terms = terms(3, 2, 285);
    scenario.slow_clocks = vec![Clock::Proxy(0), Clock::Host(0)];
    scenario.budget.writes = 2;
    scenario.horizon = 10;
    scenario
}

/// `a` crashes, and may come back.
pub fn crash() -> Scenario {
    let mut scenario = Scenario::new("a crashes and comes back");
    scenario.budget.crashes = 1;
    scenario.budget.restarts = 1;
    scenario.budget.questions = 1;
    scenario.horizon = 6;
    scenario.net.revocations = Late;
    scenario.hosts[1].1.steps = Late;
    scenario
}

/// `a`'s renewals are late, and so is its watch.
pub fn silent() -> Scenario {
    let mut scenario = Scenario::new("a silent, told nothing");
    scenario.hosts[0].1 = Lines {
        renewals: Late,
        watch: Never,
        ..Lines::default()
    };
    scenario.eager = vec![0, 1];
    scenario.horizon = 6;
    scenario
}

/// The same, and answers are late.
pub fn silent_late_answers() -> Scenario {
    let mut scenario = silent();
    scenario.name = "a silent, told nothing, answers late";
    scenario.hosts[0].1.renewal_answers = Late;
    scenario
}

/// The same, and `a` abandons requests whose answers arrive later.
pub fn silent_timeouts() -> Scenario {
    let mut scenario = silent_late_answers();
    scenario.name = "a silent, told nothing, answers after it gave up";
    scenario.budget.timeouts = 1;
    scenario
}

/// `a` is cut off, `b` takes over, and an operator moves the cell again before that has settled.
pub fn moved_on() -> Scenario {
    let mut scenario = cut_off();
    scenario.name = "a cut off, moved on while settling";
    scenario.horizon = 5;
    scenario.wishes = vec![(1, vec![1], Cause::Override)];
    scenario
}

/// A replica of `b` misses events, lists the store anew, and may let `b` write.
pub fn missed() -> Scenario {
    let mut scenario = Scenario::new("b misses changes and lists anew");
    scenario.hosts = vec![
        (
            0,
            Lines {
                watch: Never,
                ..Lines::default()
            },
        ),
        (
            1,
            Lines {
                watch: Never,
                ..Lines::default()
            },
        ),
        (1, Lines::default()),
    ];
    scenario.eager = vec![0, 1];
    scenario.automatic = false;
    scenario.wishes = vec![(2, vec![1], Cause::Override)];
    scenario.budget.relists = 1;
    scenario.horizon = 6;
    scenario
}

/// `a` is asked to shut down.
pub fn stop() -> Scenario {
    let mut scenario = Scenario::new("a ends");
    scenario.budget.stops = 1;
    scenario.budget.questions = 1;
    scenario.net.revocations = Late;
    scenario
}

/// `a` stops because of a wrong configuration, and continues with the right one, under one
/// authority. Its requests to the store are late, and it may abandon them. Then the cell moves to
/// `b`.
pub fn stopped_and_resumed() -> Scenario {
    let mut scenario = planned("a stopped and resumed, steps late, answers unknown");
    scenario.hosts[0].1.steps = Late;
    scenario.net.revocations = Never;
    scenario.warm = Vec::new();
    scenario.eager = vec![0, 1];
    scenario.automatic = false;
    scenario.budget.reconfigurations = 2;
    scenario.budget.timeouts = 2;
    scenario.horizon = 1;
    scenario
}

/// The watch of `b` lags, and `a` is healthy.
pub fn lagging() -> Scenario {
    let mut scenario = Scenario::new("b told late, a well");
    scenario.hosts[1].1.watch = Late;
    scenario.budget.writes = 1;
    scenario.horizon = 6;
    scenario.moves_on_wish_alone = true;
    scenario
}

/// One replica crashes, or loses the store, without another fault: in the end some zone can write.
pub fn recovers() -> [Scenario; 2] {
    let mut crashes = Scenario::new("one crashes, and the cell recovers");
    crashes.eager = vec![0, 1];
    crashes.budget.crashes = 1;
    crashes.budget.writes = 1;
    crashes.faults_until = 4;
    crashes.horizon = 16;
    crashes.writable_at_last = true;
    let mut cuts = Scenario {
        name: "one is cut off, and the cell recovers",
        ..crashes.clone()
    };
    cuts.budget.crashes = 0;
    cuts.budget.cuts = 1;
    [crashes, cuts]
}
