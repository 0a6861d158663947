//! The scenarios: small ones, each for one kind of fault.
//!
//! By default, zone `a` owns the cell and its proxy 0 holds a grant, zone `b` is the standby, and
//! the proxy 1 of `b` requests grants whenever it may.

pub mod changes;
pub mod moves;
pub mod outages;
pub mod restores;
pub mod rounds;
pub mod two_cells;

use policy::fence::Clause;

use crate::{Mutation, Scenario};

/// Every scenario that holds.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        moves::planned("planned"),
        moves::planned_unheard(),
        moves::planned_late_grant(),
        moves::planned_slow_grant(),
        moves::planned_crossing_grants(),
        moves::planned_slow_leaving(),
        moves::planned_workers(),
        moves::planned_lost_worker(),
        moves::planned_abandoned(),
        moves::planned_slow_clock(),
        moves::there_and_back(),
        moves::hot_restart(),
        moves::extension(),
        outages::cut_off(),
        outages::cut_off_late_answers(),
        outages::cut_off_slow_clocks(),
        outages::crash(),
        outages::silent(),
        outages::silent_late_answers(),
        outages::silent_timeouts(),
        moves::deaf_mover(),
        moves::override_midway(),
        moves::late_registration(),
        outages::moved_on(),
        outages::missed(),
        outages::stop(),
        outages::stopped_and_resumed(),
        restores::restore(),
        restores::restore_old_owner(),
        restores::restore_restarted(),
        changes::other_terms(),
        changes::terms_shortened(),
        changes::terms_unheard(),
        changes::terms_granted_before(),
        changes::terms_heard_late(),
        changes::terms_registered_late(),
        changes::terms_longer_drain(),
        changes::terms_longer_drain().but(Mutation::LongerRouteTaken),
        changes::terms_shorter_drain(),
        changes::terms_unsaid(),
        changes::terms_heard_by_one_worker(),
        changes::terms_shorter_drain_old_routes(),
        changes::terms_drain_changes(),
        changes::terms_policy_goes_back(),
        changes::terms_policies_go_back(),
        // Views that never go back make up for the reused identity of the store, as long as no
        // process restarts.
        restores::restore_old_owner().but(Mutation::StoreIdKept),
        // The creation of a session compares that none of that name exists.
        outages::crash().but(Mutation::IncarnationReused),
    ];
    all.extend([
        two_cells::override_of_one(),
        two_cells::override_untold(),
        two_cells::override_of_own(),
        two_cells::overrides_across(),
        two_cells::moved_after_override(),
        outages::lagging(),
    ]);
    all.extend(two_cells::both_lost());
    all.extend(outages::recovers());
    all.extend(rounds::all());
    all
}

/// The scenario that shows the need for a rule.
pub fn of_clause(clause: Clause) -> Scenario {
    let scenario = match clause {
        Clause::DeadlineFromSend => outages::silent_late_answers(),
        Clause::RenewalMatched => outages::silent_timeouts(),
        Clause::RenewalCompared | Clause::MoveEndsSessions => outages::silent(),
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
        | Clause::MoveWaitsForGrantors => moves::planned_unheard(),
        Clause::RegistrationComparesAuthority => moves::late_registration(),
        Clause::ViewNeverBack => restores::restore_old_owner().but(Mutation::StoreIdKept),
        Clause::GrantWithinSession | Clause::MoveSettles | Clause::SettleTtl => outages::cut_off(),
        Clause::SettleDrain => outages::cut_off(),
        Clause::SettleDrift => outages::cut_off_slow_clocks(),
        Clause::StopAtFence => moves::planned_slow_leaving(),
        Clause::RunOutDrift => moves::planned_slow_clock(),
        Clause::AcknowledgementNamesFence => moves::there_and_back(),
        Clause::ResumedAsAnother => outages::stopped_and_resumed(),
        Clause::GrantFromAsk => moves::planned_slow_grant(),
        Clause::GrantMatched => moves::planned_crossing_grants(),
        Clause::GrantNotOlder => moves::planned_late_grant(),
        Clause::WorkerListed | Clause::InFlightCounted => moves::planned_workers(),
        Clause::LostWorkerCounted => moves::planned_lost_worker(),
        Clause::AbandonedCounted => moves::planned_abandoned(),
        Clause::FenceFirst => outages::crash(),
        Clause::MoveComparesAuthority => moves::override_midway(),
        Clause::MoveComparesSessions => moves::deaf_mover(),
        Clause::UnsettledCarried => outages::moved_on(),
        Clause::SilenceAnewAfterListing => outages::missed(),
        Clause::UnknownPastSettles => restores::restore(),
        Clause::BoundToStore => restores::restore_old_owner(),
        Clause::KeyOutlivesSession => two_cells::moved_after_override(),
        Clause::TakeoverComparesSessions => outages::lagging(),
        Clause::DeletedIsAwaited => two_cells::override_of_one(),
        Clause::TermsAgreed => changes::other_terms(),
        Clause::RegistrationComparesTerms => changes::terms_registered_late(),
        Clause::SessionShortened => changes::terms_heard_late(),
        Clause::WidenedPromise => changes::terms_shortened(),
        Clause::WidenedWait => changes::terms_longer_drain().but(Mutation::LongerRouteTaken),
        Clause::NarrowWaitsForGrantors => changes::terms_unheard(),
        Clause::NarrowSettles => changes::terms_granted_before(),
        Clause::HolderUnderTerms => changes::terms_shorter_drain(),
        Clause::UnsaidBeforeChange => changes::terms_unsaid(),
        Clause::PermitUnderTerms => changes::terms_heard_by_one_worker(),
    };
    scenario.without(clause)
}

/// The scenario that detects a mistake of a process; none if the machines compensate for it.
pub fn of_mutation(mutation: Mutation) -> Option<Scenario> {
    let scenario = match mutation {
        Mutation::IncarnationReused => return None,
        Mutation::HolderPerNode => moves::hot_restart(),
        Mutation::StopUnclean => outages::stop(),
        Mutation::RestoreUnnoticed | Mutation::StoreIdKept => restores::restore_restarted(),
        Mutation::AcknowledgesOnReceipt | Mutation::WriteNotCounted => moves::planned_workers(),
        Mutation::LostWorkerLetsGo => moves::planned_lost_worker(),
        Mutation::LongerRouteTaken => changes::terms_shorter_drain_old_routes(),
        Mutation::AnswerForAnyPolicy => changes::terms_policy_goes_back(),
    };
    Some(scenario.but(mutation))
}
