//! The operator's word that a change is right though it looks wrong.
//!
//! It is said to one replica and reaches all: the replica writes it into the store, where it stands
//! for a minute. It confirms the state that the asked replica had [`Seen`] when it was asked, and
//! nothing that happened while it was written. Each replica hears it in the order of revisions; one
//! that lists the store anew, or starts meanwhile, finds it in the listing, and takes it for as
//! long as no more instances are missing than would be believed unasked. One that does not believe
//! the store asks it for a confirmation every two seconds (`reader`). So the restart of the asked
//! replica loses nothing that it has answered.

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

/// How long the store may take until it takes the confirmation: one that was not believed is listed first.
const SHARE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Where questions wait for an operator. Copies are the same one.
#[derive(Clone, Debug, Default)]
pub struct Confirm {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<oneshot::Sender<Seen>>,
    /// Of the store that is believed.
    served: Seen,
    /// Of a store that is not.
    doubted: Option<Seen>,
}

/// Why an operator's word did not reach all replicas.
#[derive(Debug, thiserror::Error)]
pub enum Unconfirmed {
    /// A yes in advance is none.
    #[error("nothing waits for a confirmation here")]
    NotAsked,
    /// The asked replica has taken it.
    #[error(
        "this replica accepts the store's content now, but the confirmation did not reach the others: {0}. Confirm it on each of them"
    )]
    NotShared(String),
}

impl Confirm {
    /// Answers every question that waits here, and tells all other replicas through the store.
    pub async fn everywhere(
        &self,
        store: &dyn Store,
        store_health: &StoreHealth,
    ) -> Result<(), Unconfirmed> {
        if !self.is_asked() {
            return Err(Unconfirmed::NotAsked);
        }
        let seen = self.look(store).await;
        // To a store that is not believed nothing is written before it is.
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

    /// Answers every question that waits here, and tells no other replica. False if none does.
    pub fn confirm(&self) -> bool {
        let seen = self.seen();
        self.answer(seen)
    }

    fn answer(&self, seen: Seen) -> bool {
        let asked = std::mem::take(&mut self.state().asked);
        let answered = (asked.into_iter()).filter_map(|answer| answer.send(seen).ok());
        answered.count() > 0
    }

    /// Asks. Dropping the receiver takes the question back.
    pub fn ask(&self) -> oneshot::Receiver<Seen> {
        let (answer, confirmed) = oneshot::channel();
        let asked = &mut self.state().asked;
        asked.retain(|question| !question.is_closed());
        asked.push(answer);
        confirmed
    }

    /// Notes the state of the store that is followed.
    pub(super) fn follows(&self, seen: Seen) {
        self.state().served = seen;
    }

    /// Notes the state of a store that is not believed; none where the one that answers is.
    pub(super) fn doubts(&self, seen: Option<Seen>) {
        self.state().doubted = seen;
    }

    fn seen(&self) -> Seen {
        let state = self.state();
        state.doubted.unwrap_or(state.served)
    }

    /// A store that is not believed is not followed, so it is looked at again.
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

/// Writes down that the seen state of the store is true.
async fn share(store: &dyn Store, seen: Seen) -> Result<(), StoreError> {
    // Fails where the store is another one than the one that is believed.
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
