use model::*;
use policy::fence::Clause;
fn p(what: &str, mut s: Scenario, max: usize) {
        s.states_max = Some(max);
        #[allow(clippy::disallowed_methods)]
        let t = std::time::Instant::now();
        let f = explore(&s);
        println!("{what} -> {}: {} states, depth {}, exhausted {}, {:?} {:?}", s.name, f.states, f.depth, f.exhausted, f.violation.as_ref().map(|v| v.len()), t.elapsed());
        if what == "holds" && let Some(v) = f.violation { println!("{v:#?}"); }
}
#[test]
fn clauses() {
    for clause in [Clause::MoveComparesSessions, Clause::BoundToStore, Clause::ViewNeverBack] {
        p(&format!("{clause:?}"), scenarios::of_clause(clause), 1500_000);
    }
    use scenarios::*;
    use Mutation::*;
    for (m, s) in [(HolderPerNode, hot_restart()), (StopUnclean, stop()), (RestoreUnnoticed, restore_restarted()), (StoreIdKept, restore_restarted()), (AcknowledgesOnReceipt, planned_workers()), (WriteNotCounted, planned_workers()), (LostWorkerLetsGo, planned_lost_worker()), (IncarnationReused, crash())] {
        p(&format!("{m:?}"), s.but(m), 1000_000);
    }
}
