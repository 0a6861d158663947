//! An operator's confirmation of a change that a sanity guard rejects.
//!
//! The operator confirms it at one replica, and it reaches all: the replica writes it into the
//! store, where it lasts for a minute. It confirms the state that this replica had [`Seen`] at that
//! moment, and no later change. Each replica receives it in the order of revisions. A replica that
//! lists the store anew, or starts meanwhile, finds it in the listing; it applies it only while no
//! more instances are missing than the guard permits. A replica that distrusts the store reads the
//! confirmations every two seconds (`reader`). So a restart of the first replica loses no
//! confirmation that it has answered.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use registry::{
    confirmation::{CONFIRMATION_TTL, Confirmation},
    record::INSTANCES_PREFIX,
    store::{Op, Store, StoreError},
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{store_health::StoreHealth, world::Seen};

/// How long the store may take to accept the confirmation: a distrusted store is listed first.
const SHARE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The open questions to an operator. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Confirm {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<oneshot::Sender<Seen>>,
    /// The state of the trusted store.
    served: Seen,
    /// The state of a distrusted store.
    doubted: Option<Seen>,
}

/// Why a confirmation did not reach all replicas.
#[derive(Debug, thiserror::Error)]
pub enum Unconfirmed {
    /// A confirmation in advance does not count.
    #[error("this replica waits for no confirmation")]
    NotAsked,
    /// This replica has accepted it.
    #[error(
        "this replica accepts the store's content now, but the confirmation did not reach the other replicas: {0}. Confirm it on each of them"
    )]
    NotShared(String),
}

impl Confirm {
    /// Answers every open question of this replica, and informs all other replicas through the
    /// store.
    pub async fn everywhere(
        &self,
        store: &dyn Store,
        store_health: &StoreHealth,
    ) -> Result<(), Unconfirmed> {
        if !self.is_asked() {
            return Err(Unconfirmed::NotAsked);
        }
        let seen = self.look(store).await;
        // A distrusted store is not written to.
        let mut shared = match store_health.writes_refused() {
            None => share(store, seen).await.map_err(|error| error.to_string()),
            Some(refused) => Err(refused),
        };
        self.answer(seen);
        if shared.is_err() {
            let again = async {
                loop {
                    if store_health.writes_refused().is_none() && share(store, seen).await.is_ok() {
                        return;
                    }
                    sleep(RETRY_AFTER).await;
                }
            };
            if timeout(SHARE_TIMEOUT, again).await.is_ok() {
                shared = Ok(());
            }
        }
        shared.map_err(Unconfirmed::NotShared)
    }

    /// Answers every open question of this replica only. False if there is none.
    pub fn confirm(&self) -> bool {
        let seen = self.seen();
        self.answer(seen)
    }

    fn answer(&self, seen: Seen) -> bool {
        let asked = std::mem::take(&mut self.state().asked);
        let answered = (asked.into_iter()).filter_map(|answer| answer.send(seen).ok());
        answered.count() > 0
    }

    /// Opens a question. Dropping the receiver withdraws it.
    pub fn ask(&self) -> oneshot::Receiver<Seen> {
        let (answer, confirmed) = oneshot::channel();
        let asked = &mut self.state().asked;
        asked.retain(|question| !question.is_closed());
        asked.push(answer);
        confirmed
    }

    /// Records the state of the followed store.
    pub(super) fn follows(&self, seen: Seen) {
        self.state().served = seen;
    }

    /// Records the state of a distrusted store; none if the answering store is trusted.
    pub(super) fn doubts(&self, seen: Option<Seen>) {
        self.state().doubted = seen;
    }

    fn seen(&self) -> Seen {
        let state = self.state();
        state.doubted.unwrap_or(state.served)
    }

    /// A distrusted store is not followed, so it is read again.
    async fn look(&self, store: &dyn Store) -> Seen {
        let seen = self.seen();
        let is_doubted = self.state().doubted.is_some();
        match is_doubted {
            true => (store.survey(INSTANCES_PREFIX).await).map_or(seen, |(_, listing)| Seen {
                revision: listing.revision,
                instances: listing.entries.len(),
            }),
            false => seen,
        }
    }

    fn is_asked(&self) -> bool {
        let asked = &self.state().asked;
        asked.iter().any(|question| !question.is_closed())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the confirmation of the seen state.
async fn share(store: &dyn Store, seen: Seen) -> Result<(), StoreError> {
    // Fails if the store is another one than the trusted one.
    let cluster = store.cluster_id().await?;
    let lease = store.lease_grant(CONFIRMATION_TTL).await?;
    let value = Confirmation::of(cluster, seen.revision, seen.instances).to_json();
    let put = Op::put_leased(Confirmation::store_key(lease), value, lease);
    store.txn(vec![], vec![put], None).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yes_answers_what_waits_and_nothing_else() {
        let confirm = Confirm::default();
        assert!(!confirm.confirm() && !confirm.is_asked());
        let mut one = confirm.ask();
        assert!(one.try_recv().is_err());
        drop(confirm.ask());
        assert!(confirm.is_asked());
        assert!(confirm.confirm());
        assert_eq!(one.try_recv(), Ok(Seen::default()));
        drop(confirm.ask());
        assert!(!confirm.is_asked());
        assert!(!confirm.confirm());
    }
}
