//! The configuration of each replica, published to the others through the store.
//!
//! A replica puts its record once for each change, under its own lease. etcd does not persist lease
//! keepalives, so an idle replica does not grow its history.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use registry::{
    record::REPLICAS_PREFIX,
    store::{LeaseId, Op, Store, StoreError},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::debug;

use crate::{
    conditions::{Code, Found, Lasting},
    config::Mesh,
    metrics::Metrics,
    store_health::StoreHealth,
};

/// Between two reads of the others' records, and between two keepalives.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long the record of a stopped replica remains.
const LEASE_TTL: Duration = Duration::from_secs(30);
/// A difference is reported once the records of replaced replicas have expired.
const DIFFERENT_FOR: Duration = Duration::from_secs(40);
/// How many of the others a detail lists.
const NAMED: usize = 5;

const CODES: &[Code] = &[Code::ConfigDiffers];

/// A replica's record of itself.
#[derive(Debug, Serialize, Deserialize)]
struct ReplicaRecord {
    /// `host:process id`, for operators.
    process: String,
    /// The digest of its configuration, in hexadecimal.
    config: String,
}

/// This replica among the others.
pub struct Replicas {
    store: Arc<dyn Store>,
    /// `host:process id`.
    process: String,
    key: String,
    store_health: StoreHealth,
    lease: Option<LeaseId>,
    /// The digest that was published under that lease.
    published: Option<u64>,
    lasting: Lasting,
}

impl Replicas {
    /// `number` must be unique among replicas.
    pub fn new(
        store: Arc<dyn Store>,
        process: String,
        number: u64,
        store_health: StoreHealth,
        metrics: &Metrics,
    ) -> Replicas {
        Replicas {
            store,
            process,
            key: format!("{REPLICAS_PREFIX}{number:016x}"),
            store_health,
            lease: None,
            published: None,
            lasting: Lasting::new(metrics.conditions.clone(), CODES),
        }
    }

    /// Follows the configuration and the others, until the sender of the configuration is dropped.
    pub async fn run(mut self, mut meshes: watch::Receiver<Arc<Mesh>>) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = meshes.changed() => if changed.is_err() {
                    return;
                },
            }
            let digest = meshes.borrow_and_update().digest;
            if let Err(error) = self.look(digest, Instant::now()).await {
                debug!(%error, "the records of other replicas cannot be read");
            }
        }
    }

    /// Publishes the configuration in force, and reads the others' records.
    async fn look(&mut self, digest: u64, now: Instant) -> Result<(), StoreError> {
        // While the store is unreachable the others' records stay as last seen.
        if self.store_health.writes_refused().is_none() {
            self.publish(digest).await?;
        }
        let listing = self.store.list(REPLICAS_PREFIX).await?;
        let others = listing.entries.iter().filter(|entry| entry.key != self.key);
        let others = others.filter_map(|entry| serde_json::from_slice(&entry.value).ok());
        let found = differing(digest, others)
            .map(|detail| Found::new(Code::ConfigDiffers, "", detail).after(DIFFERENT_FOR));
        self.lasting.look(found.into_iter().collect(), now);
        Ok(())
    }

    async fn publish(&mut self, digest: u64) -> Result<(), StoreError> {
        if let Some(lease) = self.lease {
            match self.store.lease_keep_alive(lease).await {
                Ok(_) => {}
                Err(StoreError::LeaseNotFound) => (self.lease, self.published) = (None, None),
                Err(error) => return Err(error),
            }
        }
        let lease = match self.lease {
            Some(lease) => lease,
            None => *self.lease.insert(self.store.lease_grant(LEASE_TTL).await?),
        };
        if self.published == Some(digest) {
            return Ok(());
        }
        let record = ReplicaRecord {
            process: self.process.clone(),
            config: hex(digest),
        };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        let put = Op::put_leased(self.key.clone(), value, lease);
        let outcome = self.store.txn(vec![], vec![put], None).await;
        self.store_health.wrote(&outcome);
        outcome?;
        self.published = Some(digest);
        Ok(())
    }
}

/// A digest, as operators see it.
pub fn hex(digest: u64) -> String {
    format!("{digest:012x}")
}

/// The replicas of each configuration; none if all have the same.
fn differing(own: u64, others: impl Iterator<Item = ReplicaRecord>) -> Option<String> {
    let own = hex(own);
    let mut by_process: BTreeMap<String, String> = BTreeMap::new();
    for other in others.filter(|other| other.config != own) {
        by_process.insert(other.process, other.config);
    }
    let named = by_process.iter().take(NAMED);
    let named: Vec<String> = named.map(|(who, has)| format!("{who} has {has}")).collect();
    let more = by_process.len().saturating_sub(NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let differ = !by_process.is_empty();
    differ.then(|| format!("this replica has {own}; {}{more}", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use registry::store::{EmbeddedOptions, EmbeddedStore};

    use super::*;

    #[tokio::test]
    async fn replicas_with_other_configurations_are_a_condition_until_they_agree() {
        let directory = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions::new(directory.path().join("store"));
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(options).await.unwrap());
        let metrics = [Metrics::default(), Metrics::default()];
        let mut replicas = [1, 2].map(|number| {
            let metrics = &metrics[number as usize - 1];
            let store_health = StoreHealth::new(metrics.clone());
            Replicas::new(
                Arc::clone(&store),
                format!("host:{number}"),
                number,
                store_health,
                metrics,
            )
        });
        let start = Instant::now();
        let mut look = async |digests: [u64; 2], s: u64| {
            for (replica, digest) in replicas.iter_mut().zip(digests) {
                replica
                    .look(digest, start + Duration::from_secs(s))
                    .await
                    .unwrap();
            }
            let differs = |m: &Metrics| m.conditions.holds(Code::ConfigDiffers);
            [differs(&metrics[0]), differs(&metrics[1])]
        };
        assert_eq!(look([7, 7], 0).await, [false, false]);
        let before = store.head().await.unwrap().revision;
        assert_eq!(look([7, 7], 10).await, [false, false]);
        assert_eq!(
            store.head().await.unwrap().revision,
            before,
            "nothing is put twice"
        );
        // A rollout takes some time.
        assert_eq!(look([8, 7], 20).await, [false, false]);
        assert_eq!(look([8, 7], 70).await, [true, true]);
        let told = &metrics[1].conditions.list()[0].detail;
        assert!(told.contains(&format!("host:1 has {}", hex(8))), "{told}");
        look([8, 8], 80).await;
        assert_eq!(look([8, 8], 90).await, [false, false]);
    }
}
