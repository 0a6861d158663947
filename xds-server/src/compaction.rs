//! Compacts etcd's history, if `store.etcd.compaction` configures it.
//!
//! etcd keeps all history until a client compacts it, and compaction covers the whole of etcd, not
//! a prefix. So nothing is compacted while etcd holds a foreign key, whose watches could lose
//! events.
//!
//! Our own watches lose nothing: history is kept up to the revision that this replica's watch had
//! received `keep` ago, and a watch resumes from the last revision that it has received. A replica
//! that was disconnected for longer lists anew, as after any compaction.

use std::{collections::VecDeque, time::Duration};

use registry::{
    record::{COMPACTOR_KEY, STORE_PREFIX},
    store::{Compare, EtcdStore, Head, LeaseId, Op, Store, StoreError},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{debug, info};

use crate::{conditions::Code, metrics::Metrics, store_health::StoreHealth};

/// How many checks are made within the time that history is kept.
const LOOKS: u32 = 8;
/// The shortest time between two checks.
const LOOK_MIN: Duration = Duration::from_secs(1);
/// How many checks may fail before another replica compacts.
const LEASE_LOOKS: u32 = 3;
/// The shortest time to live of that lease.
const LEASE_TTL_MIN: Duration = Duration::from_secs(5);

/// Why nothing is compacted.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(
        "etcd holds keys that are not Tidegate's, the first is {0:?}: compaction would delete history that other clients may need. Give Tidegate a separate etcd, or remove `store.etcd.compaction` from the configuration"
    )]
    ForeignKey(String),
    #[error(
        "the check for keys that are not Tidegate's failed ({0}): give the replica's etcd user read access to all keys, or remove `store.etcd.compaction` from the configuration"
    )]
    NotSeen(StoreError),
    #[error("etcd does not compact its history: {0}")]
    NotDone(StoreError),
}

/// A replica that compacts, or waits to become the one that does.
pub struct Compactor {
    store: EtcdStore,
    /// How long history is kept.
    keep: Duration,
    process: String,
    store_health: StoreHealth,
    metrics: Metrics,
    past: Past,
    lease: Option<LeaseId>,
    /// The store and revision up to which history was compacted.
    compacted: Option<Head>,
}

impl Compactor {
    /// `process` is this replica's name for operators.
    pub fn new(
        store: EtcdStore,
        keep: Duration,
        process: String,
        store_health: StoreHealth,
        metrics: Metrics,
    ) -> Compactor {
        Compactor {
            store,
            keep,
            process,
            store_health,
            metrics,
            past: Past::default(),
            lease: None,
            compacted: None,
        }
    }

    /// Compacts until the store is no longer followed. `followed` is the head that this replica's
    /// watch has received.
    pub async fn run(mut self, mut followed: watch::Receiver<Option<Head>>) {
        let mut ticks = interval(self.look_interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if followed.has_changed().is_err() {
                return;
            }
            let followed = *followed.borrow_and_update();
            if let Err(error) = self.look(followed, Instant::now()).await {
                debug!(%error, "history is not compacted now");
            }
        }
    }

    fn look_interval(&self) -> Duration {
        (self.keep / LOOKS).max(LOOK_MIN)
    }

    /// Compacts history that is old enough, if this replica is the elected one.
    async fn look(&mut self, followed: Option<Head>, now: Instant) -> Result<(), StoreError> {
        let Some(followed) = followed else {
            return Ok(());
        };
        self.past.note(followed, now);
        let due = self.past.before(now, self.keep);
        if !self.is_chosen().await? {
            // The elected replica reports its own faults.
            self.metrics.conditions.clear(Code::CompactionRefused, "");
            return Ok(());
        }
        let refused = match self.compact(uncompacted(due, self.compacted)).await {
            Ok(()) => None,
            Err(Refused::NotSeen(error) | Refused::NotDone(error)) if passes(&error) => {
                return Err(error);
            }
            Err(refused) => Some(refused.to_string()),
        };
        self.metrics
            .conditions
            .set(Code::CompactionRefused, "", refused);
        Ok(())
    }

    async fn compact(&mut self, due: Option<Head>) -> Result<(), Refused> {
        // Checked before any compaction is due, so that operators learn of it early.
        let foreign = self.store.key_outside(STORE_PREFIX).await;
        if let Some(key) = foreign.map_err(Refused::NotSeen)? {
            return Err(Refused::ForeignKey(key));
        }
        let Some(due) = due else {
            return Ok(());
        };
        let revision = due.revision;
        (self.store.compact(revision).await).map_err(Refused::NotDone)?;
        self.compacted = Some(due);
        self.metrics.store_compactions.inc();
        info!(revision = revision.0, keep = ?self.keep, "etcd's history is compacted");
        Ok(())
    }

    /// Whether this replica is elected to compact: it holds the lease of [`COMPACTOR_KEY`].
    async fn is_chosen(&mut self) -> Result<bool, StoreError> {
        if let Some(lease) = self.lease {
            match self.store.lease_keep_alive(lease).await {
                Ok(_) => return Ok(true),
                Err(StoreError::LeaseNotFound) => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        if self.store.get(COMPACTOR_KEY).await?.is_some() {
            return Ok(false);
        }
        let ttl = (self.look_interval() * LEASE_LOOKS).max(LEASE_TTL_MIN);
        let lease = self.store.lease_grant(ttl).await?;
        let put = Op::put_leased(COMPACTOR_KEY, self.process.clone(), lease);
        let absent = Compare::absent(COMPACTOR_KEY);
        let outcome = self.store.txn(vec![absent], vec![put], None).await;
        self.store_health.wrote(&outcome);
        if outcome?.succeeded {
            self.lease = Some(lease);
            info!(
                process = self.process,
                "this replica compacts etcd's history"
            );
        }
        Ok(self.lease.is_some())
    }
}

/// Due, and not done yet. Revisions of one store mean nothing in another.
fn uncompacted(due: Option<Head>, done: Option<Head>) -> Option<Head> {
    due.filter(|due| {
        let done = done.filter(|done| done.cluster == due.cluster);
        done.is_none_or(|done| due.revision > done.revision)
    })
}

/// Whether the next check may succeed: etcd is unreachable, which is a separate condition.
fn passes(error: &StoreError) -> bool {
    use StoreError::{ClusterChanged, Timeout, Unavailable, Unreachable};
    matches!(
        error,
        Unreachable { .. } | Unavailable { .. } | Timeout { .. } | ClusterChanged { .. }
    )
}

/// The time at which each revision was received. Bounded: one for each check, for as long as
/// history is kept.
#[derive(Debug, Default)]
struct Past {
    seen: VecDeque<(Instant, Head)>,
}

impl Past {
    fn note(&mut self, head: Head, now: Instant) {
        // The past of another store, or of an older copy of it, is useless here.
        let follows = |(_, last): &(Instant, Head)| {
            last.cluster == head.cluster && last.revision <= head.revision
        };
        if !self.seen.back().is_none_or(follows) {
            self.seen.clear();
        }
        self.seen.push_back((now, head));
    }

    /// The newest head that was received this long before `now`; none if unknown.
    fn before(&mut self, now: Instant, keep: Duration) -> Option<Head> {
        let is_old = |(at, _): &(Instant, Head)| now.duration_since(*at) >= keep;
        // Of those that are old enough only the last one is useful.
        while self.seen.get(1).is_some_and(is_old) {
            self.seen.pop_front();
        }
        let oldest = self.seen.front().filter(|seen| is_old(seen))?;
        Some(oldest.1)
    }
}

#[cfg(test)]
mod tests {
    use registry::store::{ClusterId, Revision};

    use super::*;

    fn head(cluster: u64, revision: i64) -> Head {
        Head {
            cluster: ClusterId(cluster),
            revision: Revision(revision),
        }
    }

    #[test]
    fn history_is_kept_for_as_long_as_it_is_asked_for() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let keep = Duration::from_secs(60);
        let mut past = Past::default();
        let mut look = |s: u64, head: Head| {
            past.note(head, at(s));
            past.before(at(s), keep).map(|head| head.revision.0)
        };
        assert_eq!(look(0, head(1, 10)), None);
        assert_eq!(look(30, head(1, 20)), None);
        assert_eq!(look(59, head(1, 20)), None);
        assert_eq!(look(60, head(1, 30)), Some(10));
        assert_eq!(look(89, head(1, 40)), Some(10));
        assert_eq!(look(90, head(1, 50)), Some(20));
        // After a gap in the checks, more is kept than configured.
        assert_eq!(look(1_000, head(1, 60)), Some(50));
        // Another store, and one that went back.
        assert_eq!(look(1_100, head(2, 70)), None);
        assert_eq!(look(1_160, head(2, 70)), Some(70));
        assert_eq!(look(1_170, head(2, 60)), None);
    }

    /// etcd was replaced by a store whose revisions start anew: its history is compacted from the
    /// first revision that is due.
    #[test]
    fn another_store_is_compacted_whatever_was_compacted_of_the_one_before() {
        let at = |cluster, revision| Some(head(cluster, revision));
        assert_eq!(uncompacted(at(1, 10), None), at(1, 10));
        assert_eq!(uncompacted(at(1, 10), at(1, 10)), None);
        assert_eq!(uncompacted(at(1, 11), at(1, 10)), at(1, 11));
        assert_eq!(uncompacted(at(2, 5), at(1, 10)), at(2, 5));
        assert_eq!(uncompacted(None, at(1, 10)), None);
    }
}
