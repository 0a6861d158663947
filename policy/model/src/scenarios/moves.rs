//! Moves by an operator, and their effect on replicas and proxies.

use policy::fence::Cause;

use crate::{
    Clock, Lines, Scenario,
    Speed::{Late, Never},
    terms,
};

/// An operator moves the cell from `a` to `b`.
pub fn planned(name: &'static str) -> Scenario {
    Scenario {
        wishes: vec![(1, vec![1], Cause::Operator)],
        horizon: 6,
        ..Scenario::new(name)
    }
}

/// That move; proxies learn of it late, or never.
pub fn planned_unheard() -> Scenario {
    let mut scenario = planned("planned, revocations late");
    scenario.net.revocations = Late;
    scenario
}

/// That move, while proxy 0 requests a grant and the answer is late.
pub fn planned_late_grant() -> Scenario {
    let mut scenario = planned("planned, grants late");
    scenario.net.grants = Late;
    scenario.budget.questions = 1;
    scenario
}

/// The same, and proxy 0 never learns of the move.
pub fn planned_slow_grant() -> Scenario {
    let mut scenario = planned_late_grant();
    scenario.name = "planned, grants late, revocations lost";
    scenario.net.revocations = Never;
    scenario.horizon = 5;
    scenario
}

/// That move, while requests and answers cross.
pub fn planned_crossing_grants() -> Scenario {
    let mut scenario = planned("planned, questions and grants late, revocations lost");
    scenario.net.questions = Late;
    scenario.net.grants = Late;
    scenario.net.revocations = Never;
    scenario.budget.questions = 2;
    scenario.horizon = 5;
    scenario
}

/// That move, while another replica of `a` is slow to leave.
pub fn planned_slow_leaving() -> Scenario {
    let mut scenario = planned("planned, leaving late");
    scenario.hosts[0].1.steps = Late;
    scenario.budget.questions = 1;
    scenario.net.revocations = Late;
    scenario
}

/// That move, with two workers that read the ledger at any time, and writes that end at any time.
pub fn planned_workers() -> Scenario {
    let mut scenario = planned("planned, workers late");
    scenario.proxies[0].1 = 2;
    scenario.prompt = false;
    scenario.budget.writes = 3;
    scenario.budget.ends = 1;
    scenario
}

/// That move, while clients disconnect from writes that instances continue.
pub fn planned_abandoned() -> Scenario {
    let mut scenario = planned("planned, clients give up");
    scenario.terms = terms(3, 2, 0);
    scenario.proxies[0].1 = 2;
    scenario.budget.writes = 3;
    scenario.budget.ends = 1;
    scenario.budget.abandons = 2;
    scenario
}

/// That move, and a worker that loses its memory.
pub fn planned_lost_worker() -> Scenario {
    let mut scenario = planned("planned, a worker lost");
    scenario.terms = terms(3, 2, 0);
    scenario.proxies[0].1 = 2;
    scenario.prompt = false;
    scenario.budget.writes = 2;
    scenario.budget.workers_lost = 1;
    scenario
}

/// That move, of which proxies learn nothing, and a proxy with a slow clock.
pub fn planned_slow_clock() -> Scenario {
    let mut scenario = planned_unheard();
    scenario.name = "planned, revocations late, proxy's clock slow";
    scenario.terms = terms(3, 1, 166);
    scenario.slow_clocks = vec![Clock::Proxy(0)];
    scenario.horizon = 8;
    scenario
}

/// To `b`, back, and to `b` again, with acknowledgements that arrive late and twice.
pub fn there_and_back() -> Scenario {
    let mut scenario = planned("there and back, acknowledgements late and twice");
    scenario.wishes = vec![
        (1, vec![1], Cause::Operator),
        (1, vec![0], Cause::Operator),
        (0, vec![1], Cause::Operator),
    ];
    scenario.net.revocations = Late;
    scenario.net.acknowledgements = Late;
    scenario.eager = vec![0, 1];
    scenario.eager_late = true;
    scenario.budget.repeats = 1;
    scenario.horizon = 0;
    scenario
}

/// Two processes of one node during a hot restart.
pub fn hot_restart() -> Scenario {
    let mut scenario = planned("planned, hot restart");
    scenario.net.revocations = Late;
    scenario.proxies.push((0, 1));
    scenario.budget.questions = 1;
    scenario.horizon = 4;
    scenario
}

/// The owners become two zones instead of one.
pub fn extension() -> Scenario {
    let mut scenario = planned("extension to two zones");
    scenario.wishes = vec![
        (1, vec![0, 1], Cause::Operator),
        (1, vec![1], Cause::Operator),
    ];
    scenario.net.revocations = Late;
    scenario.eager = vec![0, 1];
    scenario.horizon = 6;
    scenario
}

/// A move to `b`, in which `a` and `b` see each other's changes late.
pub fn deaf_mover() -> Scenario {
    let mut scenario = planned("a told nothing, b told late");
    scenario.hosts[0].1 = Lines {
        renewals: Late,
        watch: Never,
        ..Lines::default()
    };
    scenario.hosts[1].1 = Lines {
        step_answers: Late,
        watch: Late,
        ..Lines::default()
    };
    scenario.told_together = true;
    scenario.eager = vec![0, 1];
    scenario.horizon = 5;
    scenario
}

/// An operator requests another move while a step of the first is under way.
pub fn override_midway() -> Scenario {
    let mut scenario = planned("overridden midway");
    scenario.wishes = vec![(0, vec![1], Cause::Operator), (0, vec![0], Cause::Override)];
    scenario.hosts[1].1.steps = Late;
    scenario.budget.questions = 1;
    scenario.horizon = 4;
    scenario
}

/// `b` owns the cell. A move to `a` is answered late there, and `b` takes the cell back.
pub fn late_registration() -> Scenario {
    let mut scenario = planned("registration late");
    scenario.owners = vec![1];
    scenario.standby = vec![0];
    scenario.warm = Vec::new();
    scenario.wishes = vec![(1, vec![0], Cause::Operator), (1, vec![1], Cause::Operator)];
    scenario.hosts[0].1 = Lines {
        steps: Late,
        watch: Late,
        ..Lines::default()
    };
    scenario.budget.questions = 1;
    scenario.horizon = 1;
    scenario
}
