//! Sessions that are renewed in rounds. By default `a` cannot put its key, and its watch delivers
//! nothing.

use crate::{
    Lines, Scenario,
    Speed::{Late, Never},
    terms,
};

fn rounds(name: &'static str) -> Scenario {
    let mut scenario = Scenario::new(name);
    scenario.rounds = true;
    scenario.hosts[0].1 = Lines {
        renewals: Never,
        watch: Never,
        ..Lines::default()
    };
    scenario.eager = vec![0, 1];
    scenario.horizon = 6;
    scenario
}

/// The beats of `a` are late.
pub fn unheard() -> Scenario {
    let mut scenario = rounds("rounds, beats late");
    scenario.hosts[0].1.beats = Late;
    scenario
}

/// The acknowledgements of `b` are late too.
pub fn acknowledged_late() -> Scenario {
    let mut scenario = unheard();
    scenario.name = "rounds, beats and acknowledgements late";
    scenario.hosts[1].1.heard = Late;
    scenario
}

/// The acknowledgements of `b` are late, a round lasts two ticks, and `a` loses the store.
pub fn longer() -> Scenario {
    let mut scenario = rounds("rounds of two ticks, acknowledgements late, a cut off");
    scenario.terms = terms(8, 1, 0);
    scenario.hosts[1].1.heard = Late;
    scenario.budget.cuts = 1;
    scenario.horizon = 11;
    scenario
}

/// The beats of `a` are late, and so are the steps of `b`.
pub fn passed_over() -> Scenario {
    let mut scenario = unheard();
    scenario.name = "rounds, beats late, b's steps late";
    scenario.hosts[1].1.steps = Late;
    scenario
}

/// `b` stops and comes back, and `a` learns of it late.
pub fn newcomer() -> Scenario {
    let mut scenario = rounds("rounds, b ends and comes back, a told late");
    scenario.hosts[0].1.watch = Late;
    scenario.budget.stops = 1;
    scenario.budget.restarts = 1;
    scenario
}

/// The same, and `b` stops once more.
pub fn newcomer_gone() -> Scenario {
    let mut scenario = newcomer();
    scenario.name = "rounds, b ends, comes back, and ends";
    scenario.budget.stops = 2;
    scenario.told_together = true;
    // So that the grant expires soon.
    scenario.terms.grant_ttl = 1;
    scenario.horizon = 8;
    scenario
}

/// `b` stops and comes back, and its session is created late.
pub fn late_creation() -> Scenario {
    let mut scenario = newcomer();
    scenario.name = "rounds, b ends and comes back, created late";
    scenario.hosts[0].1.watch = Default::default();
    scenario.hosts[0].1.beats = Never;
    scenario.hosts[1].1.renewals = Late;
    scenario
}

/// `b` crashes and comes back; the session that it leaves behind is removed.
pub fn orphan() -> Scenario {
    let mut scenario = rounds("rounds, b crashes and comes back");
    scenario.hosts[0].1.watch = Late;
    scenario.budget.crashes = 1;
    scenario.budget.restarts = 1;
    scenario.faults_until = 2;
    scenario.horizon = 10;
    scenario
}

/// One replica loses the other, or the store, for a while, without another fault: in the end some
/// zone can write.
pub fn recovers() -> Scenario {
    let mut scenario = Scenario::new("rounds, one is cut off, and the cell recovers");
    scenario.rounds = true;
    scenario.eager = vec![0, 1];
    scenario.budget.cuts = 1;
    scenario.budget.writes = 0;
    scenario.hosts[0].1.beats = Late;
    scenario.faults_until = 3;
    scenario.horizon = 11;
    scenario.writable_at_last = true;
    scenario
}

/// Every scenario that holds.
pub fn all() -> [Scenario; 9] {
    [
        unheard(),
        acknowledged_late(),
        longer(),
        passed_over(),
        newcomer(),
        newcomer_gone(),
        late_creation(),
        orphan(),
        recovers(),
    ]
}
