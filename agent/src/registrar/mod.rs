//! Keeps the table in a registry: one lease for all instances, and a record for each on it.
//!
//! - The change of a verdict is written at once, whatever else is under way; changes of several
//!   instances in parallel. A newer record takes the place of an older one that is still being
//!   written. Load alone waits until nothing else is due.
//! - The lease is kept alive every third of its time to live. When it is gone, or unconfirmed
//!   for that long, a new one is obtained and everything is registered anew. With each
//!   confirmation the records are compared with what was written: records that another client
//!   changed or deleted are written again.
//! - While the registry fails it is asked again after 50 ms at first, every second at last. Three
//!   time-outs of writes with no success between them end the writing ([`Mode::ProbeOnly`]); reads
//!   then find out when it works again.
//! - Records are never deleted by name: the own lease is revoked, which takes exactly what is on
//!   it.

mod etcd;
mod http;
mod keeper;
mod outage;
mod records;
mod renewing;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use registry::record::{Instance, InstanceKey};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinHandle};

pub use etcd::EtcdTarget;
pub use http::HttpTarget;
pub use target::{Lease, Stored, Target, TargetError, Version};

use crate::instances::{Instances, Table};
use crate::metrics::Metrics;

/// The state of the registrar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It has a lease, and writes are taken. Also before the first answer.
    #[default]
    Registering,
    /// The last request failed; it is tried again.
    Retrying,
    /// Three writes timed out and none succeeded: it writes nothing until the registry answers a
    /// read.
    ProbeOnly,
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::Registering, Mode::Retrying, Mode::ProbeOnly];

    /// A short stable name, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Registering => "registering",
            Mode::Retrying => "retrying",
            Mode::ProbeOnly => "probe_only",
        }
    }
}

/// How far the registrar is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub mode: Mode,
    pub has_lease: bool,
    /// The records on the lease, as far as they were acknowledged.
    pub registered: BTreeMap<InstanceKey, Instance>,
    /// Why the last request failed, while they do.
    pub error: Option<String>,
}

impl Status {
    /// Whether the registry matches the table, as far as that has records.
    pub fn matches(&self, table: &Table) -> bool {
        table.iter().all(|(key, known)| {
            let record = known.record();
            record.is_none() || record.as_ref() == self.registered.get(key)
        })
    }
}

/// How it ends.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Deregister { within: Duration },
    HandOver { within: Duration },
}

/// A running registrar.
pub struct Registrar {
    status: watch::Receiver<Status>,
    stop: oneshot::Sender<Stop>,
    task: JoinHandle<Result<(), TargetError>>,
}

impl Registrar {
    /// Begins to register `instances` at `target`, with leases of `ttl`.
    pub fn start(
        target: Arc<dyn Target>,
        instances: &Instances,
        ttl: Duration,
        metrics: Metrics,
    ) -> Registrar {
        let (tell, status) = watch::channel(Status::default());
        let (stop, stopped) = oneshot::channel();
        let keeper = keeper::Keeper::new(target, instances.subscribe(), ttl, tell, metrics);
        Registrar {
            status,
            stop,
            task: tokio::spawn(keeper.run(stopped)),
        }
    }

    /// How far it is, now and later.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Waits until it has ended, which it does by itself only through a fault of its own.
    pub async fn ended(&mut self) -> Result<Result<(), TargetError>, JoinError> {
        (&mut self.task).await
    }

    /// Revokes the lease, which takes the records with it. Gives up after `within`; then the lease
    /// ends by itself.
    pub async fn deregister(self, within: Duration) -> Result<(), TargetError> {
        self.end(Stop::Deregister { within }).await
    }

    /// Leaves the records to another agent, with as much time as the lease gives. An error says
    /// that it could not be kept alive a last time within `within`.
    pub async fn hand_over(self, within: Duration) -> Result<(), TargetError> {
        self.end(Stop::HandOver { within }).await
    }

    async fn end(self, stop: Stop) -> Result<(), TargetError> {
        // An error: the task has ended, and says how below.
        let _ = self.stop.send(stop);
        match self.task.await {
            Ok(outcome) => outcome,
            Err(error) => Err(TargetError::Unavailable(error.to_string())),
        }
    }
}
