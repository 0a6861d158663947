//! A registry in a [`Store`], which to an agent means etcd: the embedded store belongs to one
//! process.
//!
//! No write is blind: each compares the record's revision. So a write that was given up because a
//! member hung, and that the member makes when it wakes, changes nothing any more.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use registry::record::{Health, INSTANCES_PREFIX, Instance, InstanceKey};
use registry::store::{
    Compare, Entry, EtcdOptions, EtcdStore, LeaseId, Op, Revision, Store, StoreError,
    TXN_OPERATIONS_MAX,
};
use tokio::sync::RwLock;
use tracing::warn;

use super::target::{Lease, Stored, Target, TargetError, Version};

/// How long one member has for one answer. Shorter than the store's default: while a member hangs,
/// this is what the change of a verdict waits before it goes to the next one.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1000);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a put begins anew because another client wrote the same record in between.
const PUT_ATTEMPTS: usize = 5;

/// etcd.
pub struct EtcdTarget {
    options: EtcdOptions,
    /// Opened anew when another cluster answers.
    store: RwLock<Arc<dyn Store>>,
}

impl EtcdTarget {
    /// Connects at the first call, with time-outs of its own. Errors only on addresses that are none.
    pub async fn new(options: EtcdOptions) -> Result<EtcdTarget, StoreError> {
        let options = EtcdOptions {
            request_timeout: REQUEST_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            ..options
        };
        let store = EtcdStore::new(options.clone()).await?;
        Ok(EtcdTarget {
            options,
            store: RwLock::new(Arc::new(store)),
        })
    }

    async fn store(&self) -> Arc<dyn Store> {
        self.store.read().await.clone()
    }

    /// Says what an answer means. A store that was replaced or restored is final for the object
    /// that spoke to the old one, so there is a new object, and the lease that it never gave is
    /// gone.
    async fn checked<T>(
        &self,
        asked: &Arc<dyn Store>,
        answer: Result<T, StoreError>,
    ) -> Result<T, TargetError> {
        if let Err(error @ StoreError::ClusterChanged { .. }) = &answer {
            let mut store = self.store.write().await;
            // Of several that saw it, the first has opened the new one.
            if Arc::ptr_eq(&store, asked) {
                warn!(%error, "registering anew");
                let fresh = EtcdStore::new(self.options.clone()).await;
                *store = Arc::new(fresh.map_err(TargetError::from)?);
            }
        }
        answer.map_err(TargetError::from)
    }
}

#[async_trait]
impl Target for EtcdTarget {
    async fn grant(&self, ttl: Duration) -> Result<Lease, TargetError> {
        let store = self.store().await;
        let granted = store.lease_grant(ttl).await;
        let LeaseId(id) = self.checked(&store, granted).await?;
        Ok(Lease(format!("{id:x}")))
    }

    async fn keep_alive(&self, lease: &Lease) -> Result<(), TargetError> {
        let store = self.store().await;
        let kept = store.lease_keep_alive(id(lease)?).await;
        self.checked(&store, kept).await.map(drop)
    }

    async fn revoke(&self, lease: &Lease) -> Result<(), TargetError> {
        let store = self.store().await;
        let revoked = store.lease_revoke(id(lease)?).await;
        self.checked(&store, revoked).await
    }

    async fn put(
        &self,
        lease: &Lease,
        key: &InstanceKey,
        record: &Instance,
        known: Option<Version>,
    ) -> Result<Version, TargetError> {
        let store = self.store().await;
        let key = key.store_key();
        let put = Op::put_leased(&key, record.to_json(), id(lease)?);
        let mut known = known.map(|Version(revision)| Revision(revision));
        for _ in 0..PUT_ATTEMPTS {
            let is = match known {
                Some(revision) => revision,
                None => {
                    let read = store.get(&key).await;
                    let entry = self.checked(&store, read).await?;
                    match entry {
                        // The older record keeps an address, so a record is as old as its claim.
                        Some(entry) if !has_address(&entry, record) => {
                            let (compare, delete) = (Compare::unchanged(&entry), Op::delete(&key));
                            let made = store.txn(vec![compare], vec![delete], None).await;
                            self.checked(&store, made).await?;
                            continue;
                        }
                        Some(entry) => entry.mod_revision,
                        None => Revision(0),
                    }
                }
            };
            let compare = Compare::ModRevision {
                key: key.clone(),
                is,
            };
            let made = store.txn(vec![compare], vec![put.clone()], None).await;
            let made = self.checked(&store, made).await?;
            if made.succeeded {
                return Ok(Version(made.revision.0));
            }
            known = None;
        }
        Err(TargetError::Unavailable(format!(
            "another client changes {key} all the time"
        )))
    }

    async fn audit(&self, records: &[Stored]) -> Result<Vec<InstanceKey>, TargetError> {
        let store = self.store().await;
        let mut differing = Vec::new();
        for chunk in records.chunks(TXN_OPERATIONS_MAX) {
            let compare = |stored: &Stored| Compare::ModRevision {
                key: stored.key.store_key(),
                is: Revision(stored.version.0),
            };
            // One request says that all is well, which is the rule.
            let compared = store.txn(chunk.iter().map(compare).collect(), vec![], None);
            if self.checked(&store, compared.await).await?.succeeded {
                continue;
            }
            for stored in chunk {
                let read = store.get(&stored.key.store_key()).await;
                let entry = self.checked(&store, read).await?;
                let revision = entry.map_or(0, |entry| entry.mod_revision.0);
                if revision != stored.version.0 {
                    differing.push(stored.key.clone());
                }
            }
        }
        Ok(differing)
    }

    async fn healthy(&self, service: &str, zone: &str) -> Result<Vec<InstanceKey>, TargetError> {
        let store = self.store().await;
        let prefix = format!("{INSTANCES_PREFIX}{service}/{zone}/");
        let listed = store.list(&prefix).await;
        let entries = self.checked(&store, listed).await?.entries.into_iter();
        let healthy = entries.filter(|entry| {
            Instance::parse(&entry.value).is_ok_and(|instance| instance.health == Health::Healthy)
        });
        Ok(healthy
            .filter_map(|entry| InstanceKey::parse(&entry.key).ok())
            .collect())
    }

    async fn look(&self) -> Result<(), TargetError> {
        let store = self.store().await;
        let looked = store.cluster_id().await;
        self.checked(&store, looked).await.map(drop)
    }
}

fn has_address(entry: &Entry, record: &Instance) -> bool {
    let stored = Instance::parse(&entry.value);
    stored.is_ok_and(|stored| (stored.address, stored.port) == (record.address, record.port))
}

fn id(lease: &Lease) -> Result<LeaseId, TargetError> {
    i64::from_str_radix(&lease.0, 16)
        .map(LeaseId)
        .map_err(|_| TargetError::LeaseNotFound)
}

impl From<StoreError> for TargetError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { detail } | StoreError::Unreachable { detail } => {
                TargetError::Unavailable(detail)
            }
            StoreError::Timeout { after } => TargetError::Timeout(after),
            StoreError::LeaseNotFound | StoreError::ClusterChanged { .. } => {
                TargetError::LeaseNotFound
            }
            StoreError::TooManyOperations { .. }
            | StoreError::TooLarge { .. }
            | StoreError::Invalid { .. }
            | StoreError::Refused { .. }
            | StoreError::InUse { .. }
            | StoreError::Corrupt { .. } => TargetError::Refused(error.to_string()),
        }
    }
}
