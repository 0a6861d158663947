//! The store in etcd.
//!
//! etcd-client's own balancer continues to send to a dead or hung member, and its streams do not
//! detect a hung member at all. So this module has one client per member and chooses between them
//! itself (`members.rs`). Every answer has a deadline, and a watch sends progress requests to its
//! member (`watch.rs`).

mod credentials;
mod link;
mod members;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Compare as EtcdCompare, CompareOp, DeleteOptions, GetOptions, KeyValue,
    LeaseGrantOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use futures::stream::BoxStream;
use tokio::sync::watch as latest;

pub use self::credentials::{EtcdCredentials, EtcdTls, EtcdUser};
use self::members::{Failure, Members, Repeat, read_header};
use crate::record::INSTANCES_PREFIX;

use super::{
    ClusterId, Compare, Entry, Head, LeaseId, Listing, Op, RefusedCause, Revision, Store,
    StoreError, TxnOutcome, WatchBatch, WatchError, check_key, check_ttl, check_txn, random_lease,
};

/// The number of keys of a listing's first pages. 1,000 entries of 400 bytes are a tenth of the
/// client's decoding limit.
const PAGE_KEYS: i64 = 1000;

/// A key that nobody puts, for reads of which the header alone counts. A user with rights to
/// instances alone, as an agent's, may read it.
const NO_KEY: &str = INSTANCES_PREFIX;

/// How often a listing restarts because its revision was compacted meanwhile.
const LISTING_ATTEMPTS: usize = 3;

/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// `http://host:port` of each member, or `https://host:port` with [`EtcdCredentials::tls`]; the
    /// preferred (nearest) first.
    pub endpoints: Vec<String>,
    /// The newest ones are used from the next request on, and by watches when they open again.
    pub credentials: latest::Receiver<Arc<EtcdCredentials>>,
    /// The time limit of one member for one answer. A call may try every member once, so it ends
    /// after `endpoints` times this.
    pub request_timeout: Duration,
    /// How long a TCP connection may take to open.
    pub connect_timeout: Duration,
    /// A member is pinged after this much silence.
    pub keepalive_interval: Duration,
    /// The time limit of a ping. A hung member is abandoned after interval + timeout.
    pub keepalive_timeout: Duration,
}

impl EtcdOptions {
    /// The defaults for `endpoints`: no credentials; a hung member is abandoned after 2 s.
    pub fn new(endpoints: Vec<String>) -> Self {
        let (_, credentials) = latest::channel(Arc::default());
        EtcdOptions {
            endpoints,
            credentials,
            request_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(1),
            keepalive_timeout: Duration::from_secs(1),
        }
    }
}

/// A [`Store`] in an etcd cluster.
#[derive(Clone)]
pub struct EtcdStore {
    members: Arc<Members>,
    /// The time limit of one member for one answer.
    request_timeout: Duration,
}

impl EtcdStore {
    /// Connects at the first call, so it works while no member is up.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] for an endpoint that is not an address.
    pub async fn new(options: EtcdOptions) -> Result<Self, StoreError> {
        let request_timeout = options.request_timeout;
        let members = Arc::new(Members::new(options).await?);
        Ok(EtcdStore {
            members,
            request_timeout,
        })
    }

    /// The same store with a shorter time limit for its members' answers. Both share the trusted
    /// cluster and the preferred member.
    pub fn within(&self, request_timeout: Duration) -> EtcdStore {
        EtcdStore {
            members: Arc::clone(&self.members),
            request_timeout,
        }
    }

    async fn call<T, R, F>(&self, repeat: Repeat, request: R) -> Result<T, Failure>
    where
        R: Fn(Client) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        let after = self.request_timeout;
        self.members.call(after, repeat, request).await
    }

    /// Reads all pages at one revision. etcd returns `OutOfRange` in two cases: the page exceeds
    /// the client's decoding limit, or the revision is compacted. So the page is retried with half
    /// the keys; a failing page of one key means that the revision is compacted.
    async fn survey_once(&self, prefix: &str) -> Result<(ClusterId, Listing), Failure> {
        let end = range_end(prefix);
        let mut start = if prefix.is_empty() {
            vec![0]
        } else {
            prefix.as_bytes().to_vec()
        };
        let mut page_keys = PAGE_KEYS;
        let mut head: Option<Head> = None;
        let mut entries = Vec::new();
        // Terminates: every turn either advances `start` in a fixed revision, or halves
        // `page_keys`.
        loop {
            let mut options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(page_keys);
            if let Some(head) = head {
                options = options.with_revision(head.revision.0);
            }
            let page = self
                .call(Repeat::Safe, |mut client| {
                    let (start, options) = (start.clone(), options.clone());
                    async move { Ok(client.get(start, Some(options)).await?) }
                })
                .await;
            let mut page = match page {
                Err(Failure::OutOfRange { .. }) if page_keys > 1 => {
                    page_keys /= 2;
                    continue;
                }
                page => page?,
            };
            let at = read_header(page.header())?;
            let first = *head.get_or_insert(at);
            if at.cluster != first.cluster {
                // Halves of two clusters' listings are not a listing.
                let (was, is) = (first.cluster, at.cluster);
                return Err(StoreError::ClusterChanged { was, is }.into());
            }
            let more = page.more();
            let kvs = page.take_kvs();
            if let Some(last) = kvs.last() {
                start = [last.key(), &[0]].concat();
            }
            let last_page = !more || kvs.is_empty();
            entries.extend(kvs.into_iter().filter_map(entry));
            if last_page {
                let revision = first.revision;
                return Ok((first.cluster, Listing { revision, entries }));
            }
        }
    }

    /// Compacts etcd's history up to `revision`, for all keys, including those of others; entries
    /// at that revision stay. A watch that resumes from an earlier revision ends with
    /// [`WatchError::Compacted`]. Succeeds if the history was compacted already.
    ///
    /// # Errors
    ///
    /// As [`Store::get`], and [`StoreError::Unavailable`] for a revision that etcd has not reached
    /// yet.
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let compacted = self
            .call(Repeat::Safe, |mut client| async move {
                Ok(client.compact(revision.0, None).await?)
            })
            .await;
        match compacted {
            Ok(answer) => self.members.check_header(answer.header()).map(drop),
            // etcd's text (api/v3/v3rpc/rpctypes/error.go). Its code alone is ambiguous: a future
            // revision has the same.
            Err(Failure::OutOfRange { detail }) if detail.contains("has been compacted") => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// The first key that does not start with `prefix`, in a linearizable read; none if all do.
    ///
    /// # Errors
    ///
    /// As [`Store::get`].
    pub async fn key_outside(&self, prefix: &str) -> Result<Option<String>, StoreError> {
        let first = |from: Vec<u8>, to: Vec<u8>| {
            let options = GetOptions::new()
                .with_range(to)
                .with_limit(1)
                .with_keys_only();
            TxnOp::get(from, Some(options))
        };
        // The keys behind the prefix, up to the last key.
        let mut looks = vec![first(vec![0], prefix.as_bytes().to_vec())];
        let behind = range_end(prefix);
        if behind != [0] {
            looks.push(first(behind, vec![0]));
        }
        let looks = Txn::new().and_then(looks);
        let answer = self
            .call(Repeat::Safe, |mut client| {
                let looks = looks.clone();
                async move { Ok(client.txn(looks).await?) }
            })
            .await?;
        self.members.check_header(answer.header())?;
        let found = answer
            .op_responses()
            .into_iter()
            .find_map(|look| match look {
                TxnOpResponse::Get(mut look) => look.take_kvs().pop(),
                _ => None,
            });
        Ok(found.map(|kv| String::from_utf8_lossy(kv.key()).into_owned()))
    }

    /// The answer to the cheapest linearizable read.
    async fn ask_head(&self) -> Result<Head, StoreError> {
        let answer = self
            .call(Repeat::Safe, |mut client| async move {
                let options = GetOptions::new().with_count_only();
                Ok(client.get(NO_KEY, Some(options)).await?)
            })
            .await?;
        read_header(answer.header())
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let (cluster, listing) = self.survey(prefix).await?;
        self.members.check_cluster(cluster)?;
        Ok(listing)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let mut answer = self
            .call(Repeat::Safe, |mut client| async move {
                Ok(client.get(key, None).await?)
            })
            .await?;
        self.members.check_header(answer.header())?;
        Ok(answer.take_kvs().pop().and_then(entry))
    }

    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, WatchError>> {
        watch::watch(self.members.clone(), prefix.to_owned(), after)
    }

    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Op>,
        otherwise: Option<Vec<Op>>,
    ) -> Result<TxnOutcome, StoreError> {
        let otherwise = otherwise.unwrap_or_default();
        check_txn(&compare, &then, &otherwise)?;
        let changes_nothing = then.is_empty() && otherwise.is_empty();
        let mut then: Vec<TxnOp> = then.into_iter().map(txn_op).collect();
        if changes_nothing {
            // etcd answers a transaction without operations from the member's own state, possibly
            // stale. One linearizable read in it makes the compares linearizable too.
            then.push(TxnOp::get(
                NO_KEY,
                Some(GetOptions::new().with_count_only()),
            ));
        }
        let txn = Txn::new()
            .when(
                compare
                    .into_iter()
                    .map(txn_compare)
                    .collect::<Vec<EtcdCompare>>(),
            )
            .and_then(then)
            .or_else(otherwise.into_iter().map(txn_op).collect::<Vec<TxnOp>>());
        let repeat = if changes_nothing {
            Repeat::Safe
        } else {
            Repeat::OnlyUnsent
        };
        let answer = self
            .call(repeat, |mut client| {
                let txn = txn.clone();
                async move { Ok(client.txn(txn).await?) }
            })
            .await?;
        Ok(TxnOutcome {
            succeeded: answer.succeeded(),
            revision: self.members.check_header(answer.header())?,
        })
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        check_ttl(ttl)?;
        let ttl_s = ttl.as_nanos().div_ceil(1_000_000_000) as i64; // fits: LEASE_TTL_MAX
        // Safe to repeat: a lease whose answer was lost holds no key and expires on its own. Each
        // attempt has its own id; etcd would choose consecutive ids.
        let answer = self
            .call(Repeat::Safe, |mut client| async move {
                let options = LeaseGrantOptions::new().with_id(random_lease().0);
                Ok(client.lease_grant(ttl_s, Some(options)).await?)
            })
            .await?;
        self.members.check_header(answer.header())?;
        Ok(LeaseId(answer.id()))
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let answer = self
            .call(Repeat::Safe, |mut client| async move {
                // Each call has its own stream, so that an answer to an earlier request cannot be
                // mistaken for the answer to this one. Opening the stream makes one exchange, but
                // does not return the ttl; the second one does.
                let (mut keeper, mut answers) = match client.lease_keep_alive(lease.0).await {
                    Err(etcd_client::Error::LeaseKeepAliveError(_)) => {
                        return Err(Failure::Answer(StoreError::LeaseNotFound));
                    }
                    opened => opened?,
                };
                let asked = keeper.keep_alive().await;
                asked.map_err(|_| Failure::broken_stream())?;
                let answer = answers.message().await?;
                answer.ok_or_else(Failure::broken_stream)
            })
            .await;
        let answer = answer?;
        self.members.check_header(answer.header())?;
        // An expired lease is not an error in etcd: it answers with a ttl of 0.
        match u64::try_from(answer.ttl()) {
            Ok(ttl_s) if ttl_s > 0 => Ok(Duration::from_secs(ttl_s)),
            _ => Err(StoreError::LeaseNotFound),
        }
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let answer = self
            .call(Repeat::Safe, |mut client| async move {
                Ok(client.lease_revoke(lease.0).await?)
            })
            .await?;
        self.members.check_header(answer.header())?;
        Ok(())
    }

    async fn cluster_id(&self) -> Result<ClusterId, StoreError> {
        let head = self.ask_head().await?;
        self.members.check_cluster(head.cluster)?;
        Ok(head.cluster)
    }

    async fn head(&self) -> Result<Head, StoreError> {
        self.ask_head().await
    }

    async fn alarms(&self) -> Result<Vec<RefusedCause>, StoreError> {
        // etcd logs every request of the alarm API, even reads; the status request of a member is
        // not logged.
        let status = self
            .call(Repeat::Safe, |mut client| async move {
                Ok(client.status().await?)
            })
            .await?;
        let of = |text: &str, cause| {
            let mut errors = status.errors().iter();
            errors.any(|error| error.contains(text)).then_some(cause)
        };
        let full = of("NOSPACE", RefusedCause::Full);
        let corrupt = of("CORRUPT", RefusedCause::CorruptData);
        Ok(full.into_iter().chain(corrupt).collect())
    }

    async fn survey(&self, prefix: &str) -> Result<(ClusterId, Listing), StoreError> {
        let mut outcome = self.survey_once(prefix).await;
        for _ in 1..LISTING_ATTEMPTS {
            if !matches!(outcome, Err(Failure::OutOfRange { .. })) {
                break;
            }
            outcome = self.survey_once(prefix).await;
        }
        Ok(outcome?)
    }

    fn trust(&self, cluster: ClusterId) {
        self.members.trust(cluster);
    }
}

fn txn_compare(compare: Compare) -> EtcdCompare {
    match compare {
        Compare::ModRevision { key, is } => EtcdCompare::mod_revision(key, CompareOp::Equal, is.0),
        Compare::CreateRevision { key, is } => {
            EtcdCompare::create_revision(key, CompareOp::Equal, is.0)
        }
        Compare::Value { key, is } => EtcdCompare::value(key, CompareOp::Equal, is),
        // If there is no key under the prefix, etcd compares with a key created at 0.
        Compare::NoneCreatedAfter { prefix, after } => {
            let end = range_end(&prefix);
            let next = after.0.saturating_add(1);
            EtcdCompare::create_revision(prefix, CompareOp::Less, next).with_range(end)
        }
    }
}

fn txn_op(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key, value, options)
        }
        Op::Delete { key } => TxnOp::delete(key, None::<DeleteOptions>),
    }
}

/// `None` for a key that is not UTF-8: it is not ours.
fn entry(kv: KeyValue) -> Option<Entry> {
    let create_revision = Revision(kv.create_revision());
    let mod_revision = Revision(kv.mod_revision());
    let lease = Some(kv.lease()).filter(|&id| id != 0).map(LeaseId);
    let (key, value) = kv.into_key_value();
    let key = utf8_key(key)?;
    Some(Entry {
        key,
        value: Bytes::from(value),
        create_revision,
        mod_revision,
        lease,
    })
}

fn utf8_key(key: Vec<u8>) -> Option<String> {
    String::from_utf8(key)
        .inspect_err(|error| {
            let key = String::from_utf8_lossy(error.as_bytes());
            tracing::warn!(%key, "skipped an entry in etcd whose key is not UTF-8");
        })
        .ok()
}

/// The first key after all keys with `prefix`, in etcd's notation: "\0" means no end.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}
