//! [`Target`]: the registry as the registrar needs it. A later kind of registry is an
//! implementation of it.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use registry::record::{Instance, InstanceKey};

/// A lease's name, as the registry writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease(pub String);

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which write of a record the registry holds; it is changed by every write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub i64);

/// A record as the registrar last knew it to be in the registry.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub key: InstanceKey,
    pub record: Instance,
    pub version: Version,
}

/// Why a request to a registry failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not reachable, or without a leader. The outcome of a write is unknown. Worth trying again.
    #[error("the registry is not available: {0}")]
    Unavailable(String),
    /// No answer in time. The outcome of a write is unknown. Worth trying again.
    #[error("the registry did not answer within {0:?}")]
    Timeout(Duration),
    /// The lease has ended, or belongs to a registry that was replaced. It never comes back.
    #[error("the lease does not exist or has ended")]
    LeaseNotFound,
    /// Understood and refused: an operator has to see to it.
    #[error("the registry refused: {0}")]
    Refused(String),
}

impl TargetError {
    /// A short stable name, for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            TargetError::Unavailable(_) => "unavailable",
            TargetError::Timeout(_) => "timeout",
            TargetError::LeaseNotFound => "lease_not_found",
            TargetError::Refused(_) => "refused",
        }
    }
}

/// A registry. Every answer has a deadline. Methods may be called at the same time, but at most one
/// [`put`](Target::put) of a key is awaited at once. A dropped put may still be made, but never
/// *after* a later put of the same key was answered, where the registry can promise that; where it
/// cannot, [`audit`](Target::audit) finds it.
#[async_trait]
pub trait Target: Send + Sync + 'static {
    /// A new lease that lives at least `ttl` from now. One whose answer is lost ends by itself.
    async fn grant(&self, ttl: Duration) -> Result<Lease, TargetError>;

    /// Starts the lease's time to live again, no earlier than the call.
    async fn keep_alive(&self, lease: &Lease) -> Result<(), TargetError>;

    /// Ends the lease and with it exactly the records that were last written on it.
    async fn revoke(&self, lease: &Lease) -> Result<(), TargetError>;

    /// Writes a record on the lease, in place of whatever is there. `known` is the version that the
    /// registry is believed to hold, which saves looking.
    async fn put(
        &self,
        lease: &Lease,
        key: &InstanceKey,
        record: &Instance,
        known: Option<Version>,
    ) -> Result<Version, TargetError>;

    /// Those of `records` that the registry holds no more as they were written.
    async fn audit(&self, records: &[Stored]) -> Result<Vec<InstanceKey>, TargetError>;

    /// The healthy instances of a service in a zone, of this agent and of others.
    async fn healthy(&self, service: &str, zone: &str) -> Result<Vec<InstanceKey>, TargetError>;

    /// Whether the registry works, at the cost of a read.
    async fn look(&self) -> Result<(), TargetError>;
}
