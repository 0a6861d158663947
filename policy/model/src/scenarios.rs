//! The scenarios: small ones, each for one kind of fault.
//!
//! By default, zone `a` owns the cell and its proxy 0 holds a grant, zone `b` is the standby, and
//! the proxy 1 of `b` requests grants whenever it may.

pub mod rounds;

use policy::fence::{Cause, Clause};

use crate::{
    Clock, Lines, Mutation, Scenario,
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

/// The store is restored, and an operator recovers the cell at `b`.
pub fn restore() -> Scenario {
    let mut scenario = Scenario::new("restored, recovered at b");
    scenario.budget.backups = 1;
    scenario.budget.restores = 1;
    scenario.budget.relists = 2;
    scenario.wishes = vec![(1, vec![1], Cause::Override)];
    scenario.automatic = false;
    scenario.horizon = 5;
    scenario
}

/// The cell moves to `b`, and the store is restored to a backup from before that.
pub fn restore_old_owner() -> Scenario {
    let mut scenario = planned("moved to b, restored from before");
    scenario.warm = Vec::new();
    scenario.net.revocations = Never;
    scenario.budget.questions = 1;
    scenario.budget.backups = 1;
    scenario.budget.restores = 1;
    scenario.budget.relists = 2;
    scenario.automatic = false;
    scenario.horizon = 2;
    scenario
}

/// The same, and a replica that starts again.
pub fn restore_restarted() -> Scenario {
    let mut scenario = restore_old_owner();
    scenario.name = "moved to b, restored from before, a restarted";
    scenario.budget.relists = 1;
    scenario.horizon = 1;
    scenario.budget.crashes = 1;
    scenario.budget.restarts = 1;
    scenario
}

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

/// Every scenario that holds.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        planned("planned"),
        planned_unheard(),
        planned_late_grant(),
        planned_slow_grant(),
        planned_crossing_grants(),
        planned_slow_leaving(),
        planned_workers(),
        planned_lost_worker(),
        planned_abandoned(),
        planned_slow_clock(),
        there_and_back(),
        hot_restart(),
        extension(),
        cut_off(),
        cut_off_late_answers(),
        cut_off_slow_clocks(),
        crash(),
        silent(),
        silent_late_answers(),
        silent_timeouts(),
        deaf_mover(),
        override_midway(),
        late_registration(),
        moved_on(),
        missed(),
        stop(),
        stopped_and_resumed(),
        restore(),
        restore_old_owner(),
        restore_restarted(),
        other_terms(),
        terms_shortened(),
        terms_unheard(),
        terms_granted_before(),
        terms_heard_late(),
        terms_registered_late(),
        terms_longer_drain(),
        terms_longer_drain().but(Mutation::LongerRouteTaken),
        terms_shorter_drain(),
        terms_unsaid(),
        terms_heard_by_one_worker(),
        terms_shorter_drain_old_routes(),
        terms_drain_changes(),
        terms_policy_goes_back(),
        terms_policies_go_back(),
        // Views that never go back make up for the reused identity of the store, as long as no
        // process restarts.
        restore_old_owner().but(Mutation::StoreIdKept),
        // The creation of a session compares that none of that name exists.
        crash().but(Mutation::IncarnationReused),
    ];
    all.extend([
        override_of_one(),
        override_untold(),
        override_of_own(),
        overrides_across(),
        moved_after_override(),
        lagging(),
    ]);
    all.extend(both_lost());
    all.extend(recovers());
    all.extend(rounds::all());
    all
}

/// The scenario that shows the need for a rule.
pub fn of_clause(clause: Clause) -> Scenario {
    let scenario = match clause {
        Clause::DeadlineFromSend => silent_late_answers(),
        Clause::RenewalMatched => silent_timeouts(),
        Clause::RenewalCompared | Clause::MoveEndsSessions => silent(),
        Clause::RoundAcknowledged => rounds::unheard(),
        Clause::RoundComparesSessions => rounds::newcomer(),
        Clause::RoundComparesOwn => rounds::newcomer_gone(),
        Clause::RoundFromBegin => rounds::longer(),
        Clause::HeardMatched => rounds::acknowledged_late(),
        Clause::HeardWhilePresent | Clause::PassedOverUnheard => rounds::passed_over(),
        Clause::SilenceAnewAfterCreation => rounds::late_creation(),
        Clause::Registered
        | Clause::HolderRecorded
        | Clause::WaitForHolders
        | Clause::RunOutDrain
        | Clause::MoveWaitsForGrantors => planned_unheard(),
        Clause::RegistrationComparesAuthority => late_registration(),
        Clause::ViewNeverBack => restore_old_owner().but(Mutation::StoreIdKept),
        Clause::GrantWithinSession | Clause::MoveSettles | Clause::SettleTtl => cut_off(),
        Clause::SettleDrain => cut_off(),
        Clause::SettleDrift => cut_off_slow_clocks(),
        Clause::StopAtFence => planned_slow_leaving(),
        Clause::RunOutDrift => planned_slow_clock(),
        Clause::AcknowledgementNamesFence => there_and_back(),
        Clause::ResumedAsAnother => stopped_and_resumed(),
        Clause::GrantFromAsk => planned_slow_grant(),
        Clause::GrantMatched => planned_crossing_grants(),
        Clause::GrantNotOlder => planned_late_grant(),
        Clause::WorkerListed | Clause::InFlightCounted => planned_workers(),
        Clause::LostWorkerCounted => planned_lost_worker(),
        Clause::AbandonedCounted => planned_abandoned(),
        Clause::FenceFirst => crash(),
        Clause::MoveComparesAuthority => override_midway(),
        Clause::MoveComparesSessions => deaf_mover(),
        Clause::UnsettledCarried => moved_on(),
        Clause::SilenceAnewAfterListing => missed(),
        Clause::UnknownPastSettles => restore(),
        Clause::BoundToStore => restore_old_owner(),
        Clause::KeyOutlivesSession => moved_after_override(),
        Clause::TakeoverComparesSessions => lagging(),
        Clause::DeletedIsAwaited => override_of_one(),
        Clause::TermsAgreed => other_terms(),
        Clause::RegistrationComparesTerms => terms_registered_late(),
        Clause::SessionShortened => terms_heard_late(),
        Clause::WidenedPromise => terms_shortened(),
        Clause::WidenedWait => terms_longer_drain().but(Mutation::LongerRouteTaken),
        Clause::NarrowWaitsForGrantors => terms_unheard(),
        Clause::NarrowSettles => terms_granted_before(),
        Clause::HolderUnderTerms => terms_shorter_drain(),
        Clause::UnsaidBeforeChange => terms_unsaid(),
        Clause::PermitUnderTerms => terms_heard_by_one_worker(),
    };
    scenario.without(clause)
}

/// The scenario that detects a mistake of a process; none if the machines compensate for it.
pub fn of_mutation(mutation: Mutation) -> Option<Scenario> {
    let scenario = match mutation {
        Mutation::IncarnationReused => return None,
        Mutation::HolderPerNode => hot_restart(),
        Mutation::StopUnclean => stop(),
        Mutation::RestoreUnnoticed | Mutation::StoreIdKept => restore_restarted(),
        Mutation::AcknowledgesOnReceipt | Mutation::WriteNotCounted => planned_workers(),
        Mutation::LostWorkerLetsGo => planned_lost_worker(),
        Mutation::LongerRouteTaken => terms_shorter_drain_old_routes(),
        Mutation::AnswerForAnyPolicy => terms_policy_goes_back(),
    };
    Some(scenario.but(mutation))
}
