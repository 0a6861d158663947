//! The store in one file of one process: durable, with the same semantics as etcd, and without a
//! second server.
//!
//! `file.rs` is the file (redb), `writer.rs` the one task that changes it, `leases.rs` the expiry
//! of leases. A watch reads the committed history page by page and is woken when it grows. So each
//! slow reader holds one page in memory, regardless of others.

mod file;
mod leases;
mod mark;
mod writer;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};

use self::file::{History, StoreFile};
use self::writer::{Command, Reply};
use super::{
    ClusterId, Compare, Entry, Head, LeaseId, Listing, Op, Revision, Store, StoreError, TxnOutcome,
    WatchBatch, WatchError, check_key, check_ttl, check_txn,
};

/// How long a change may wait for its turn and for the disk. The outcome of a slower change is
/// unknown.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The file of the store, and the length of its history.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The file; created if it does not exist. Its directory must exist.
    pub path: PathBuf,
    /// How many revisions of history are kept so that watches can resume; at least 1.
    pub history_revisions: u64,
}

impl EmbeddedOptions {
    /// The defaults for `path`: a history of 10,000 revisions.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        EmbeddedOptions {
            path: path.into(),
            history_revisions: 10_000,
        }
    }
}

/// A [`Store`] in one file. Another process can open the file once the store and its watches are
/// dropped.
pub struct EmbeddedStore {
    file: Arc<StoreFile>,
    commands: mpsc::Sender<Command>,
    committed: watch::Receiver<Revision>,
}

impl EmbeddedStore {
    /// Opens the file, or creates it. Runs the writer on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if another process has it open, [`StoreError::Corrupt`] if it is not
    /// an intact store of this version, [`StoreError::Unavailable`] if the system denies access.
    pub async fn open(options: EmbeddedOptions) -> Result<Self, StoreError> {
        let file = blocking(move || {
            StoreFile::open(&options.path, options.history_revisions, random_cluster()?)
        });
        let file = Arc::new(file.await?);
        let written = file.clone();
        let (commands, committed) = blocking(move || writer::start(written)).await?;
        Ok(EmbeddedStore {
            file,
            commands,
            committed,
        })
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let command = command(reply);
        let asked = async {
            self.commands.send(command).await.map_err(|_| stopped())?;
            answer.await.map_err(|_| stopped())?
        };
        let answer = tokio::time::timeout(CHANGE_TIMEOUT, asked).await;
        answer.unwrap_or(Err(StoreError::Timeout {
            after: CHANGE_TIMEOUT,
        }))
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let (file, prefix) = (self.file.clone(), prefix.to_owned());
        blocking(move || file.list(&prefix)).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let (file, key) = (self.file.clone(), key.to_owned());
        blocking(move || file.get(&key)).await
    }

    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, WatchError>> {
        let watcher = Watcher {
            file: self.file.clone(),
            committed: self.committed.clone(),
            prefix: prefix.into(),
            read_to: after,
            batches: VecDeque::new(),
            ended: false,
        };
        stream::unfold(watcher, |mut watcher| async move {
            let next = watcher.next().await?;
            Some((next, watcher))
        })
        .boxed()
    }

    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Op>,
        otherwise: Option<Vec<Op>>,
    ) -> Result<TxnOutcome, StoreError> {
        let otherwise = otherwise.unwrap_or_default();
        check_txn(&compare, &then, &otherwise)?;
        self.ask(|reply| Command::Txn {
            compare,
            then,
            otherwise,
            reply,
        })
        .await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        check_ttl(ttl)?;
        self.ask(|reply| Command::Grant { ttl, reply }).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.ask(|reply| Command::KeepAlive { lease, reply }).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Command::Revoke { lease, reply }).await
    }

    async fn cluster_id(&self) -> Result<ClusterId, StoreError> {
        Ok(self.file.cluster)
    }

    async fn head(&self) -> Result<Head, StoreError> {
        let file = self.file.clone();
        let revision = blocking(move || file.revision()).await?;
        let cluster = self.file.cluster;
        Ok(Head { cluster, revision })
    }

    async fn survey(&self, prefix: &str) -> Result<(ClusterId, Listing), StoreError> {
        Ok((self.file.cluster, self.list(prefix).await?))
    }

    fn trust(&self, _cluster: ClusterId) {}
}

/// A watch; `batches` is at most one page of the history.
struct Watcher {
    file: Arc<StoreFile>,
    committed: watch::Receiver<Revision>,
    prefix: Arc<str>,
    read_to: Revision,
    batches: VecDeque<WatchBatch>,
    ended: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchBatch, WatchError>> {
        // Bounded: each turn reads one page, or waits for the history to grow, or returns.
        loop {
            if let Some(batch) = self.batches.pop_front() {
                return Some(Ok(batch));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.advance().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    async fn advance(&mut self) -> Result<(), WatchError> {
        let committed = *self.committed.borrow_and_update();
        if self.read_to >= committed {
            let grown = self.committed.changed().await;
            return grown.map_err(|_| stopped().into());
        }
        let (file, prefix, after) = (self.file.clone(), self.prefix.clone(), self.read_to);
        match blocking(move || file.history(&prefix, after)).await? {
            History::Compacted(compacted) => Err(WatchError::Compacted { compacted }),
            History::Read { batches, read_to } => {
                self.batches.extend(batches);
                self.read_to = read_to;
                Ok(())
            }
        }
    }
}

/// Runs blocking work outside of the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(stopped()))
}

fn stopped() -> StoreError {
    StoreError::Unavailable {
        detail: "the embedded store has stopped; its log says why".to_owned(),
    }
}

/// A unique cluster id; never 0.
fn random_cluster() -> Result<ClusterId, StoreError> {
    let random = getrandom::u64().map_err(|error| StoreError::Unavailable {
        detail: format!("the system returned no random number: {error}"),
    })?;
    Ok(ClusterId(random.max(1)))
}
