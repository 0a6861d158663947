//! The store is restored from a backup.

use policy::fence::Cause;

use super::moves::planned;
use crate::{Scenario, Speed::Never};

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
