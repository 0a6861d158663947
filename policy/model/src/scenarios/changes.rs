//! Terms that replicas and proxies do not agree on, and changes of terms.

use policy::fence::Cause;

use super::{moves::planned, outages::cut_off};
use crate::{
    Lines, Scenario,
    Speed::{Late, Never},
    terms,
};

/// The replica of `b` is configured with a shorter session than agreed, and `a` is cut off.
pub fn other_terms() -> Scenario {
    let mut scenario = cut_off();
    scenario.name = "b configured otherwise, a cut off";
    scenario.configured = vec![terms(3, 1, 0), terms(1, 1, 0)];
    scenario.horizon = 6;
    scenario
}

/// Terms that are changed from a long session to a short one, while `a` is cut off.
fn shortened(name: &'static str) -> Scenario {
    let mut scenario = Scenario::new(name);
    scenario.terms = terms(3, 1, 0);
    scenario.changes = vec![terms(1, 1, 0)];
    scenario.budget.cuts = 1;
    scenario.horizon = 8;
    scenario
}

/// The same, and `a` is eager.
pub fn terms_shortened() -> Scenario {
    let mut scenario = shortened("session shortened, a cut off");
    scenario.eager = vec![0, 1];
    scenario
}

/// The same, and `a` never learns of the change.
pub fn terms_unheard() -> Scenario {
    let mut scenario = shortened("session shortened, a cut off, told nothing");
    scenario.eager = vec![0, 1];
    scenario.hosts[0].1.watch = Never;
    scenario
}

/// The same, and proxies send no more requests.
pub fn terms_granted_before() -> Scenario {
    let mut scenario = shortened("session shortened, a cut off, granted before");
    scenario.horizon = 5;
    scenario
}

/// The session was shortened, and `a`, which owns nothing, does not know it. The cell moves there,
/// and `a` is cut off.
pub fn terms_heard_late() -> Scenario {
    let mut scenario = shortened("session was shortened, a told late, moved to a, a cut off");
    scenario.owners = vec![1];
    scenario.standby = vec![0];
    scenario.warm = Vec::new();
    scenario.wishes = vec![(1, vec![0], Cause::Operator)];
    scenario.hosts[0].1.watch = Late;
    scenario.told_together = true;
    scenario.eager = vec![0, 1];
    scenario.changed_before = Some(4);
    scenario.horizon = 3;
    scenario
}

/// The session was shortened, and `a`'s registration from before that is late.
pub fn terms_registered_late() -> Scenario {
    let mut scenario = shortened("session was shortened, registration late, a cut off");
    scenario.warm = Vec::new();
    scenario.hosts[0].1.watch = Late;
    scenario.hosts[0].1.steps = Late;
    scenario.told_together = true;
    scenario.eager = vec![0, 1];
    scenario.changed_before = Some(4);
    scenario.horizon = 3;
    scenario
}

/// The drain was lengthened. One replica of `a` learns late that this change has ended; proxies
/// have the routes of the other. The cell moves to `b`.
pub fn terms_longer_drain() -> Scenario {
    let mut scenario = planned("drain was made longer, told late, moved unheard");
    scenario.terms = terms(1, 1, 0);
    scenario.changes = vec![terms(1, 3, 0)];
    let late = Lines {
        watch: Late,
        ..Lines::default()
    };
    scenario.hosts.insert(0, (0, late));
    scenario.wishes = vec![(2, vec![1], Cause::Operator)];
    scenario.net.revocations = Never;
    scenario.eager = vec![0, 1];
    scenario.automatic = false;
    scenario.told_together = true;
    scenario.changed_before = Some(4);
    scenario.hears_change = true;
    scenario.horizon = 3;
    scenario
}

/// The drain was shortened, and the proxies of `a` do not know it; then `a` is cut off.
pub fn terms_shorter_drain() -> Scenario {
    let mut scenario = Scenario::new("drain was made shorter, a's proxy unheard, a cut off");
    scenario.terms = terms(2, 3, 0);
    scenario.changes = vec![terms(2, 1, 0)];
    scenario.left_behind = vec![0];
    scenario.net.routes = Never;
    scenario.net.policies = Never;
    scenario.net.policies_of_others = Never;
    scenario.eager = vec![0, 1];
    scenario.budget.cuts = 1;
    scenario.changed_before = Some(8);
    scenario.horizon = 6;
    scenario
}

/// The same, with a filter that does not report terms.
pub fn terms_unsaid() -> Scenario {
    let mut scenario = terms_shorter_drain();
    scenario.name = "drain was made shorter, an older filter, a cut off";
    scenario.older_filter = true;
    scenario
}

/// The same, but one worker of two knows it.
pub fn terms_heard_by_one_worker() -> Scenario {
    let mut scenario = terms_shorter_drain();
    scenario.name = "drain was made shorter, one worker unheard, a cut off";
    scenario.net.policies = Default::default();
    scenario.proxies[0].1 = 2;
    scenario
}

/// The same, but all workers know it, and the routes are unchanged.
pub fn terms_shorter_drain_old_routes() -> Scenario {
    let mut scenario = terms_heard_by_one_worker();
    scenario.name = "drain was made shorter, routes unheard, a cut off";
    scenario.net.policies_of_others = Default::default();
    scenario
}

/// The drain is shortened at any time. Routes and workers learn of it at any time.
pub fn terms_drain_changes() -> Scenario {
    let mut scenario = Scenario::new("drain made shorter, routes and policies late, a cut off");
    scenario.terms = terms(1, 2, 0);
    scenario.changes = vec![terms(1, 1, 0)];
    scenario.left_behind = vec![0];
    scenario.net.routes = Late;
    scenario.net.policies = Late;
    scenario.eager = vec![0, 1];
    scenario.budget.cuts = 1;
    scenario.horizon = 8;
    scenario
}

/// The drain was shortened. The proxy of `a` connects to a replica that does not know it, possibly
/// between a request and its answer; then `a` is cut off.
pub fn terms_policy_goes_back() -> Scenario {
    let mut scenario = Scenario::new("drain was made shorter, policy goes back, a cut off");
    scenario.terms = terms(2, 3, 0);
    scenario.changes = vec![terms(2, 1, 0)];
    scenario.left_behind = vec![0];
    scenario.warm = Vec::new();
    scenario.net.routes = Never;
    scenario.net.grants = Late;
    scenario.budget.questions = 1;
    scenario.budget.turns_back = 1;
    scenario.budget.cuts = 1;
    scenario.changed_before = Some(8);
    scenario.horizon = 6;
    scenario
}

/// The same, with two workers that go back to the old policy one by one, and forward again.
pub fn terms_policies_go_back() -> Scenario {
    let mut scenario = terms_policy_goes_back();
    scenario.name = "drain was made shorter, policies go back and forth, a cut off";
    scenario.net.policies = Late;
    scenario.net.policies_of_others = Late;
    scenario.proxies[0].1 = 2;
    scenario.budget.turns_back = 2;
    scenario
}
