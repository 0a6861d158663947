//! Probes of the store's health: test writes while writes fail, and its alarms.

use std::{sync::Arc, time::Duration};

use registry::{
    record::TIDEGATE_PREFIX,
    store::{Compare, Op, RefusedCause, Revision, Store, StoreError},
};
use tokio::time::Instant;

use super::{Level, PROBE_INTERVAL, Status, StoreHealth};

/// Between two reads of the store's alarms.
const ALARMS_INTERVAL: Duration = Duration::from_secs(10);

impl StoreHealth {
    /// While writes are stopped, rejected or slow, sends test writes until one succeeds. Without
    /// other writes only a test write shows the recovery. Never ends.
    ///
    /// The test write takes the way of every write, through consensus, quota and disk, but creates
    /// no revision and wakes no watch. It is a put under a condition that never holds, or else a
    /// delete of a key that is never put. A read would prove nothing: etcd answers linearizable
    /// reads from memory while its disk hangs. A delete alone would not do either: a full etcd
    /// accepts it.
    pub async fn probe_writes(self, store: Arc<dyn Store>) {
        let key = format!("{TIDEGATE_PREFIX}probe");
        let mut status = self.subscribe();
        loop {
            // No error is possible: this task itself keeps the sender.
            let is_bad =
                |status: &Status| status.level == Level::L3 || status.slow || status.refused;
            let _ = status.wait_for(is_bad).await;
            let never = Compare::CreateRevision {
                key: key.clone(),
                is: Revision(i64::MAX),
            };
            let (put, delete) = (Op::put(key.clone(), ""), Op::delete(key.clone()));
            let sent = Instant::now();
            let outcome = store.txn(vec![never], vec![put], Some(vec![delete])).await;
            self.wrote_in(&outcome, sent.elapsed());
            if outcome.is_err() || self.status().slow {
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        }
    }

    /// Reads the store's alarms from time to time, so that a full store is detected even without
    /// writes. Never ends.
    pub async fn watch_alarms(self, store: Arc<dyn Store>) {
        let mut ticks = tokio::time::interval(ALARMS_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Other faults of the store are reported elsewhere.
            let alarms = store.alarms().await.unwrap_or_default();
            for cause in alarms {
                let detail = match cause {
                    RefusedCause::Full => "etcd's alarm NOSPACE is on",
                    _ => "etcd's alarm CORRUPT is on",
                };
                let detail = detail.to_owned();
                self.write_failed(&StoreError::Refused { cause, detail });
            }
        }
    }
}
