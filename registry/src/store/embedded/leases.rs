//! The expiry of the embedded store's leases.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{LeaseId, StoreError};

/// The live leases, by monotonic time.
#[derive(Default)]
pub(super) struct Leases {
    living: HashMap<LeaseId, Lease>,
    by_deadline: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Clone, Copy)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl Leases {
    pub(super) fn start(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        let deadline = now + ttl; // cannot overflow: ttl is at most a year
        self.end(id);
        self.living.insert(id, Lease { ttl, deadline });
        self.by_deadline.insert((deadline, id));
    }

    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Result<Duration, StoreError> {
        let Lease { ttl, .. } = *self.living.get(&id).ok_or(StoreError::LeaseNotFound)?;
        self.start(id, ttl, now);
        Ok(ttl)
    }

    pub(super) fn is_living(&self, id: LeaseId) -> bool {
        self.living.contains_key(&id)
    }

    /// Whether the lease was live.
    pub(super) fn end(&mut self, id: LeaseId) -> bool {
        let lease = self.living.remove(&id);
        lease.is_some_and(|lease| self.by_deadline.remove(&(lease.deadline, id)))
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|&(deadline, _)| deadline)
    }

    /// Removes the lease that expired first, if any has.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<LeaseId> {
        let &(deadline, id) = self.by_deadline.first()?;
        (deadline <= now && self.end(id)).then_some(id)
    }
}
