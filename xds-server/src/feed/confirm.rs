//! The operator's word that what looks wrong is right.
//!
//! It is said to one replica and reaches all: the replica writes it into the store, where it stands for a minute. It confirms
//! what the store said up to its own revision. Each replica hears it in the order of revisions, after what is meant and before
//! what comes later; one that lists the store anew, or starts meanwhile, finds it in the listing. One that does not believe
//! the store asks it for a confirmation every two seconds (`reader`). So the restart of the asked replica loses nothing that it
//! has answered.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use registry::{
    confirmation::{CONFIRMATION_TTL, Confirmation},
    store::{Op, Store, StoreError},
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::mode::Mode;

/// How long the store may take until it takes the confirmation: one that was not believed is listed first.
const SHARE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Where questions wait for an operator. Copies are the same one.
#[derive(Clone, Debug, Default)]
pub struct Confirm {
    asked: Arc<Mutex<Vec<oneshot::Sender<()>>>>,
}

/// Why an operator's word did not reach all replicas.
#[derive(Debug, thiserror::Error)]
pub enum Unconfirmed {
    /// A yes in advance is none.
    #[error("nothing waits for a confirmation here")]
    NotAsked,
    /// The asked replica has taken it.
    #[error(
        "this replica believes it now, and the others were not told: {0}. Confirm it on each of them"
    )]
    NotShared(String),
}

impl Confirm {
    /// Answers every question that waits here, and tells all other replicas through the store.
    pub async fn everywhere(&self, store: &dyn Store, mode: &Mode) -> Result<(), Unconfirmed> {
        if !self.is_asked() {
            return Err(Unconfirmed::NotAsked);
        }
        // First, so that it is about nothing that happens meanwhile. To a store that is not believed nothing is written before
        // it is.
        let mut shared = match mode.writes_refused() {
            None => share(store).await.map_err(|error| error.to_string()),
            Some(refused) => Err(refused),
        };
        self.confirm();
        if shared.is_err() {
            let again = async {
                loop {
                    if mode.writes_refused().is_none() && share(store).await.is_ok() {
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

    /// Answers every question that waits here. False if none does.
    pub fn confirm(&self) -> bool {
        let asked = std::mem::take(&mut *self.asked());
        let answered = asked.into_iter().filter_map(|answer| answer.send(()).ok());
        answered.count() > 0
    }

    /// Asks. Dropping the receiver takes the question back.
    pub fn ask(&self) -> oneshot::Receiver<()> {
        let (answer, confirmed) = oneshot::channel();
        let mut asked = self.asked();
        asked.retain(|question| !question.is_closed());
        asked.push(answer);
        confirmed
    }

    fn is_asked(&self) -> bool {
        self.asked().iter().any(|question| !question.is_closed())
    }

    fn asked(&self) -> MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes down that what the store says up to now is true.
async fn share(store: &dyn Store) -> Result<(), StoreError> {
    // Fails where the store is another one than the one that is believed.
    let cluster = store.cluster_id().await?;
    let lease = store.lease_grant(CONFIRMATION_TTL).await?;
    let value = Confirmation::of(cluster).to_json();
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
        assert_eq!(one.try_recv(), Ok(()));
        drop(confirm.ask());
        assert!(!confirm.is_asked());
        assert!(!confirm.confirm());
    }
}
