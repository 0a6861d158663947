//! The store of desired state, instances, authority and sessions.
//!
//! [`Store`] has two implementations with the same semantics, and one test suite for both:
//! [`EtcdStore`] for a mesh over several zones, and [`EmbeddedStore`], one file and one process,
//! for trials, a single node and the edge.
//!
//! The model is etcd's. Every change of the store has a revision, which rises by one with each
//! transaction that changes something. A [`Listing`] is the state at one revision, and a watch
//! delivers the changes after a revision. So a listing and a watch from its revision together miss
//! nothing and repeat nothing. A lease holds keys: when it ends, all of them are deleted in one
//! revision, as ordinary delete events.

mod embedded;
mod etcd;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use embedded::{EmbeddedOptions, EmbeddedStore};
pub use etcd::{EtcdCredentials, EtcdOptions, EtcdStore, EtcdTls, EtcdUser};

/// The most compares, and the most operations of one branch, in a transaction. etcd rejects more
/// than 128 by default; an operator may have configured less, so the bound leaves room.
pub const TXN_OPERATIONS_MAX: usize = 100;

/// The most bytes of keys and values in one transaction. etcd rejects a request over 1.5 MiB by
/// default.
pub const TXN_BYTES_MAX: usize = 1024 * 1024;

/// The longest time to live of a lease. The bound keeps deadlines on a monotonic clock
/// representable.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A point in the store's history. 0 is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// The name of a lease: a random number above 0, so that no client can guess another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// The identity of a store. A store that was restored or replaced must have another id, because its
/// revisions are unrelated to the old one's. For etcd the operator ensures that by restoring with
/// another cluster token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u64);

/// A key with its value and its revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// The revision that created the key; a key that was deleted and put again has a new one.
    pub create_revision: Revision,
    /// The revision of the last put.
    pub mod_revision: Revision,
    /// The lease of the last put.
    pub lease: Option<LeaseId>,
}

/// All entries under a prefix, sorted by key, as they were at `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub revision: Revision,
    pub entries: Vec<Entry>,
}

/// The store that answers, and its newest revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub cluster: ClusterId,
    /// From a linearizable read. If it is lower than an earlier one, the store was restored from an
    /// older backup.
    pub revision: Revision,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put(Entry),
    Delete { key: String, revision: Revision },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Event::Put(entry) => &entry.key,
            Event::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put(entry) => entry.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
}

/// All changes of one revision under the watched prefix; never empty, never split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// A condition on one key, or on all keys under a prefix. A transaction runs its `then` branch only
/// if all its conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The last put of the key was at this revision; 0: the key is absent.
    ModRevision { key: String, is: Revision },
    /// The key was created at this revision; 0: the key is absent.
    CreateRevision { key: String, is: Revision },
    /// The key exists and has this value.
    Value { key: String, is: Bytes },
    /// No key that starts with `prefix`, which is not empty, was created after this revision.
    NoneCreatedAfter { prefix: String, after: Revision },
}

impl Compare {
    /// The key does not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Compare::CreateRevision {
            key: key.into(),
            is: Revision(0),
        }
    }

    /// The key has not been put, deleted or recreated since `entry` was read.
    pub fn unchanged(entry: &Entry) -> Self {
        Compare::ModRevision {
            key: entry.key.clone(),
            is: entry.mod_revision,
        }
    }

    fn key(&self) -> &str {
        match self {
            Compare::ModRevision { key, .. }
            | Compare::CreateRevision { key, .. }
            | Compare::Value { key, .. }
            | Compare::NoneCreatedAfter { prefix: key, .. } => key,
        }
    }
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets the value and the lease (`None` detaches the key from its lease).
    Put {
        key: String,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    /// Deletes the key; without the key nothing happens, and there is no new revision.
    Delete { key: String },
}

impl Op {
    /// A put without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Op::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    /// A put that is deleted with `lease`.
    pub fn put_leased(key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        Op::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        }
    }

    /// A delete.
    pub fn delete(key: impl Into<String>) -> Self {
        Op::Delete { key: key.into() }
    }

    fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// The outcome of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Whether all compares held, so that `then` ran and not `otherwise`.
    pub succeeded: bool,
    /// The store's revision after the transaction: its own, if it changed something.
    pub revision: Revision,
}

/// Why a request to a store failed.
///
/// After [`Unavailable`](StoreError::Unavailable) and [`Timeout`](StoreError::Timeout) the outcome
/// of a transaction is unknown: it may have been committed, or may still be. Read, or compare,
/// before a retry. After all other errors nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There was no connection to any member, so nothing was sent. Can be retried.
    #[error("the store cannot be reached: {detail}")]
    Unreachable { detail: String },
    /// A connection broke, no member has a leader, or the store has stopped. Can be retried.
    #[error("the store is not available: {detail}")]
    Unavailable { detail: String },
    /// No member answered in time. Can be retried.
    #[error("the store did not answer within {after:?}")]
    Timeout { after: Duration },
    /// The lease has expired, was revoked or never existed. It never comes back.
    #[error("the lease does not exist or has expired")]
    LeaseNotFound,
    /// More than [`TXN_OPERATIONS_MAX`] compares or operations.
    #[error("a transaction of {count} operations; at most {max} are allowed")]
    TooManyOperations { count: usize, max: usize },
    /// More than [`TXN_BYTES_MAX`] bytes of keys and values.
    #[error("a transaction of {bytes} bytes; at most {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
    /// A request that no store accepts: an error of the caller.
    #[error("invalid request: {reason}")]
    Invalid { reason: &'static str },
    /// The store rejects a valid request: no permission, a quota, an alarm. Needs an operator.
    #[error("the store refused: {detail}")]
    Refused { cause: RefusedCause, detail: String },
    /// Another cluster than the trusted one answers: restored, replaced, or a wrong address.
    /// Everything known of the old one is invalid for it; [`Store::trust`] accepts it.
    #[error("another cluster answers: it was {was:?}, now it is {is:?}")]
    ClusterChanged { was: ClusterId, is: ClusterId },
    /// Another process has the file open.
    #[error(
        "{} is open in another process: stop that one, or give this one a file of its own",
        path.display()
    )]
    InUse { path: PathBuf },
    /// The file is damaged, or is not a store of this version.
    #[error(
        "{} cannot be read as a store ({detail}): restore it from a backup, or move it away to begin an empty one",
        path.display()
    )]
    Corrupt { path: PathBuf, detail: String },
}

/// Why a store rejects a valid request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusedCause {
    /// No space: etcd's alarm NOSPACE, or a full disk. Every write is rejected until an operator
    /// acts.
    Full,
    /// etcd's alarm CORRUPT: members disagree about the data.
    CorruptData,
    /// Not authenticated, or no permission.
    Forbidden,
    /// Too many requests at once. Can be retried.
    Busy,
    /// Another fault of this request.
    Other,
}

/// Why a watch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watch needs history from before `compacted`, which is gone: list again, and watch from
    /// that revision.
    #[error("the history before revision {} is compacted: list again", compacted.0)]
    Compacted { compacted: Revision },
    /// The stream broke; unless the cause is final, watch again from the last revision received.
    #[error("the watch was disconnected: {0}")]
    Disconnected(#[from] StoreError),
}

/// A key-value store with history, leases and compare-and-swap. See the module's text for the
/// model.
///
/// # Errors
///
/// Every method may fail with [`Unreachable`](StoreError::Unreachable),
/// [`Unavailable`](StoreError::Unavailable), [`Timeout`](StoreError::Timeout) or
/// [`Refused`](StoreError::Refused), and methods that need a trusted store with
/// [`ClusterChanged`](StoreError::ClusterChanged). Each method's text names only further errors.
///
/// # Deadlines
///
/// Every answer has a deadline, and no method except the watch waits forever. If a method's future
/// is dropped before it is ready, the outcome of its transaction is unknown. Keys are not empty and
/// are UTF-8 (other clients' entries with other keys are skipped).
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// All entries whose key starts with `prefix` ("" for all), at one revision, in a linearizable
    /// read.
    ///
    /// # Errors
    ///
    /// Those of every method: see the trait's text.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// The entry at `key`, in a linearizable read.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] for an empty key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All changes under `prefix` ("" for all) after the revision `after`, past ones included, in
    /// order of revisions. Resuming after the revision of the last batch loses and repeats nothing.
    /// The stream ends after an error, and only then. A slow reader costs no unbounded memory; a
    /// reader that falls behind the kept history gets [`WatchError::Compacted`].
    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, WatchError>>;

    /// Runs `then` if all of `compare` hold, otherwise `otherwise`, in one revision. A branch names
    /// a key at most once.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseNotFound`] if the branch puts with an expired lease;
    /// [`StoreError::TooManyOperations`], [`StoreError::TooLarge`] and [`StoreError::Invalid`] (an
    /// empty key, a key twice in a branch) before anything is sent. Nothing is changed then.
    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Op>,
        otherwise: Option<Vec<Op>>,
    ) -> Result<TxnOutcome, StoreError>;

    /// A new lease that lives at least `ttl` from now (etcd rounds up to seconds, and to about 1.5
    /// election time-outs).
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] for a `ttl` of zero or of more than a year.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Restarts the lease's time to live and returns it; it began no earlier than this call.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseNotFound`] if it has ended.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Ends the lease and deletes its keys, in one revision.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseNotFound`] if it has ended already.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// The store that answers now.
    ///
    /// # Errors
    ///
    /// Those of every method: see the trait's text.
    async fn cluster_id(&self) -> Result<ClusterId, StoreError>;

    /// The store that answers now, trusted or not, and its revision.
    ///
    /// # Errors
    ///
    /// Those of every method but [`StoreError::ClusterChanged`].
    async fn head(&self) -> Result<Head, StoreError>;

    /// The faults that the store reports: [`Full`](RefusedCause::Full),
    /// [`CorruptData`](RefusedCause::CorruptData). Needs no write. Empty for a store that reports
    /// none.
    ///
    /// # Errors
    ///
    /// Those of every method but [`StoreError::ClusterChanged`].
    async fn alarms(&self) -> Result<Vec<RefusedCause>, StoreError> {
        Ok(Vec::new())
    }

    /// As [`list`](Store::list), from any store that answers, trusted or not: to inspect it before
    /// it is trusted.
    ///
    /// # Errors
    ///
    /// Those of every method but [`StoreError::ClusterChanged`].
    async fn survey(&self, prefix: &str) -> Result<(ClusterId, Listing), StoreError>;

    /// From now on only this cluster's answers are accepted. By default the first cluster that
    /// answers is trusted. An embedded store is always the same one and needs no trust.
    fn trust(&self, cluster: ClusterId);

    /// Puts one key unconditionally; returns its new revision.
    ///
    /// # Errors
    ///
    /// As [`txn`](Store::txn).
    async fn put(
        &self,
        key: &str,
        value: Bytes,
        lease: Option<LeaseId>,
    ) -> Result<Revision, StoreError> {
        let put = Op::Put {
            key: key.to_owned(),
            value,
            lease,
        };
        Ok(self.txn(Vec::new(), vec![put], None).await?.revision)
    }

    /// Deletes one key, if it is there; returns the store's revision after that.
    ///
    /// # Errors
    ///
    /// As [`txn`](Store::txn).
    async fn delete(&self, key: &str) -> Result<Revision, StoreError> {
        let delete = Op::delete(key);
        Ok(self.txn(Vec::new(), vec![delete], None).await?.revision)
    }
}

/// A name for a new lease.
fn random_lease() -> LeaseId {
    // Without system randomness, the standard library's seed is the fallback.
    let random = getrandom::u64().unwrap_or_else(|_| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one("lease")
    });
    // Positive, with room for the next number, and never 0.
    LeaseId((random >> 2).max(1).cast_signed())
}

/// Rejects everything that one of the stores would reject, so that both reject the same, before
/// anything is sent.
fn check_txn(compare: &[Compare], then: &[Op], otherwise: &[Op]) -> Result<(), StoreError> {
    for count in [compare.len(), then.len(), otherwise.len()] {
        if count > TXN_OPERATIONS_MAX {
            return Err(StoreError::TooManyOperations {
                count,
                max: TXN_OPERATIONS_MAX,
            });
        }
    }
    let compare_bytes = compare.iter().map(|compare| match compare {
        Compare::Value { key, is } => key.len() + is.len(),
        other => other.key().len(),
    });
    let op_bytes = then.iter().chain(otherwise).map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    });
    let bytes = compare_bytes.chain(op_bytes).sum();
    if bytes > TXN_BYTES_MAX {
        return Err(StoreError::TooLarge {
            bytes,
            max: TXN_BYTES_MAX,
        });
    }
    let op_keys = then.iter().chain(otherwise).map(Op::key);
    for key in compare.iter().map(Compare::key).chain(op_keys) {
        check_key(key)?;
    }
    for branch in [then, otherwise] {
        let mut keys: Vec<&str> = branch.iter().map(Op::key).collect();
        keys.sort_unstable();
        if keys.is_sorted_by(|a, b| a < b) {
            continue;
        }
        return Err(StoreError::Invalid {
            reason: "a branch of a transaction names a key twice",
        });
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::Invalid {
            reason: "a key is empty",
        });
    }
    Ok(())
}

fn check_ttl(ttl: Duration) -> Result<(), StoreError> {
    if ttl.is_zero() || ttl > LEASE_TTL_MAX {
        return Err(StoreError::Invalid {
            reason: "a lease's time to live is zero or longer than a year",
        });
    }
    Ok(())
}
