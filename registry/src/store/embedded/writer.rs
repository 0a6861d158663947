//! The one task that changes the embedded store. It puts changes in order, and owns the leases.
//!
//! Waiting commands are committed together in one durable transaction, each with its own revision:
//! they share one sync of the disk. No client receives an answer, and no watch an event, before it
//! is on the disk.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::file::{StoreFile, Tables};
use super::leases::Leases;
use crate::store::{Compare, LeaseId, Op, Revision, StoreError, TxnOutcome};

/// The most waiting commands; further callers wait for a place in the queue.
const QUEUE_MAX: usize = 256;

/// How far the mark may lag.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Command {
    Txn {
        compare: Vec<Compare>,
        then: Vec<Op>,
        otherwise: Vec<Op>,
        reply: Reply<TxnOutcome>,
    },
    Grant {
        ttl: Duration,
        reply: Reply<LeaseId>,
    },
    KeepAlive {
        lease: LeaseId,
        reply: Reply<Duration>,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply<()>,
    },
}

/// An answer to send after the sync of the disk.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

fn answer<T: Send + 'static>(reply: Reply<T>, result: Result<T, StoreError>) -> Answer {
    Box::new(move |durable| {
        // A caller that has gone away is not an error.
        let _ = reply.send(durable.and(result));
    })
}

/// Starts the writer; it ends when all senders of commands are dropped, or when the file fails.
pub(super) fn start(
    file: Arc<StoreFile>,
) -> Result<(mpsc::Sender<Command>, watch::Receiver<Revision>), StoreError> {
    let (commands, queue) = mpsc::channel(QUEUE_MAX);
    let (committed, revision) = watch::channel(file.revision()?);
    let mut leases = Leases::default();
    // After a start every lease has its whole time to live again, as in etcd after a change of
    // leader. No client could keep a lease alive while the store was down, so the downtime must not
    // count; and a monotonic clock of another boot cannot measure it. A lease may live too long,
    // which is safe, but never expires too early.
    let now = Instant::now();
    for (lease, ttl) in file.leases()? {
        leases.start(lease, ttl, now);
    }
    // The file has its generation: from now on the mark must have the same one.
    let at = file.revision()?;
    if let Err(error) = file.mark(at) {
        let detail = format!("the mark beside the embedded store: {error}");
        return Err(StoreError::Unavailable { detail });
    }
    let writer = Writer {
        file,
        leases,
        committed,
        marked: at,
        mark_after: now + MARK_INTERVAL,
    };
    tokio::spawn(writer.run(queue));
    Ok((commands, revision))
}

struct Writer {
    file: Arc<StoreFile>,
    leases: Leases,
    committed: watch::Sender<Revision>,
    /// The revision of the mark.
    marked: Revision,
    mark_after: Instant,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        // Ends when the queue is closed and empty.
        loop {
            let mut commands = Vec::new();
            let expiry = self.leases.next_deadline();
            let mark = (self.marked != *self.committed.borrow()).then_some(self.mark_after);
            let mut ended = false;
            tokio::select! {
                count = queue.recv_many(&mut commands, QUEUE_MAX) => ended = count == 0,
                () = sleep_until(expiry) => {}
                () = sleep_until(mark) => {}
            }
            let turn = tokio::task::spawn_blocking(move || {
                let now = Instant::now();
                let result = self.turn(commands, now);
                self.mark(now, ended);
                (self, result)
            });
            match turn.await {
                Ok((_, Ok(()))) if ended => return,
                Ok((writer, Ok(()))) => self = writer,
                // Memory may be ahead of the disk now, and redb rejects further changes. So the
                // writer stops: callers get `Unavailable`, and a restart reads the state of the
                // disk.
                Ok((_, Err(error))) => {
                    tracing::error!(%error, "the embedded store stops: its file failed");
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "the embedded store stops: its writer was ended");
                    return;
                }
            }
        }
    }

    /// Updates the mark from time to time.
    fn mark(&mut self, now: Instant, ended: bool) {
        let committed = *self.committed.borrow();
        if committed == self.marked || now < self.mark_after && !ended {
            return;
        }
        self.mark_after = now + MARK_INTERVAL;
        match self.file.mark(committed) {
            Ok(()) => self.marked = committed,
            // The older mark remains: an older copy of the file is detected up to its revision.
            Err(error) => {
                tracing::warn!(%error, "the mark beside the embedded store cannot be written")
            }
        }
    }

    /// Ends expired leases, then executes the commands, so that a lease is never kept alive after
    /// its expiry.
    fn turn(&mut self, commands: Vec<Command>, now: Instant) -> Result<(), StoreError> {
        let Writer { file, leases, .. } = self;
        let mut answers = Vec::with_capacity(commands.len());
        let mut unmade = commands.into_iter();
        let changed = file.change(|tables| {
            while let Some(lease) = leases.pop_expired(now) {
                tables.end_lease(lease)?;
            }
            for command in unmade.by_ref() {
                answers.push(obey(command, tables, leases, now)?);
            }
            Ok(tables.revision)
        });
        let durable = match changed {
            Ok(revision) => {
                self.committed.send_if_modified(|committed| {
                    let moved = *committed != revision;
                    *committed = revision;
                    moved
                });
                Ok(())
            }
            Err(error) => Err(error),
        };
        // The remaining commands are dropped, and their callers notice.
        for answer in answers {
            answer(durable.clone());
        }
        durable
    }
}

/// Executes one command; an error comes from the file and ends the whole turn.
fn obey(
    command: Command,
    tables: &mut Tables<'_>,
    leases: &mut Leases,
    now: Instant,
) -> Result<Answer, redb::Error> {
    Ok(match command {
        Command::Txn {
            compare,
            then,
            otherwise,
            reply,
        } => {
            let mut succeeded = true;
            for compare in &compare {
                succeeded = succeeded && tables.holds(compare)?;
            }
            let ops = if succeeded { then } else { otherwise };
            let lease_gone = |op: &Op| matches!(op, Op::Put { lease: Some(lease), .. } if !leases.is_living(*lease));
            if ops.iter().any(lease_gone) {
                return Ok(answer(reply, Err(StoreError::LeaseNotFound)));
            }
            tables.apply(&ops)?;
            let revision = tables.revision;
            answer(
                reply,
                Ok(TxnOutcome {
                    succeeded,
                    revision,
                }),
            )
        }
        Command::Grant { ttl, reply } => {
            let lease = tables.grant(ttl)?;
            leases.start(lease, ttl, now);
            answer(reply, Ok(lease))
        }
        Command::KeepAlive { lease, reply } => answer(reply, leases.keep_alive(lease, now)),
        Command::Revoke { lease, reply } => {
            if leases.end(lease) {
                tables.end_lease(lease)?;
                answer(reply, Ok(()))
            } else {
                answer(reply, Err(StoreError::LeaseNotFound))
            }
        }
    })
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
