//! Writes the standings that this replica proposes, each only if no other replica has written one
//! meanwhile.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use policy::ZoneStanding;
use registry::backoff::Backoff;
use registry::store::{Compare, Op, Store, StoreError, TxnOutcome};
use registry::zone_records::StandingRecord;
use tokio::sync::watch;
use tracing::warn;

use crate::{
    metrics::{Metrics, ResultLabel},
    store_health::StoreHealth,
    world::{Proposal, Proposals},
};

/// The first pause after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The most concurrent transactions: a zone that goes down changes all its services at once.
const CONCURRENT: usize = 16;

/// Writes the proposals in `proposed` until the sender is dropped. If another replica was faster, a
/// proposal is not retried: the watch delivers the other's standing, and the world proposes anew
/// from there.
pub(super) async fn run(
    store: Arc<dyn Store>,
    mut proposed: watch::Receiver<Proposals>,
    store_health: StoreHealth,
    metrics: Metrics,
) {
    let mut decided: BTreeMap<String, Proposal> = BTreeMap::new();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut pause = Duration::ZERO;
    loop {
        if pause.is_zero() {
            if proposed.changed().await.is_err() {
                return;
            }
        } else {
            tokio::time::sleep(pause).await;
        }
        if store_health.writes_refused().is_some() {
            pause = BACKOFF.1;
            continue;
        }
        let wanted = proposed.borrow_and_update().clone();
        decided.retain(|key, proposal| wanted.get(key) == Some(proposal));
        let open: Vec<(String, Proposal)> = wanted
            .into_iter()
            .filter(|(key, proposal)| decided.get(key) != Some(proposal))
            .collect();
        let outcomes: Vec<_> = stream::iter(open)
            .map(|(key, proposal)| {
                let store = Arc::clone(&store);
                async move {
                    let outcome = write(&*store, &key, proposal).await;
                    (key, proposal, outcome)
                }
            })
            .buffer_unordered(CONCURRENT)
            .collect()
            .await;
        let mut failure = None;
        for (key, proposal, outcome) in outcomes {
            store_health.wrote(&outcome);
            let result = match outcome {
                Ok(outcome) => {
                    decided.insert(key, proposal);
                    match outcome.succeeded {
                        true => "ok",
                        false => "overtaken",
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    "error"
                }
            };
            metrics
                .standing_writes
                .get_or_create(&ResultLabel { result })
                .inc();
        }
        pause = match failure {
            None => {
                backoff.reset();
                Duration::ZERO
            }
            Some(error) => {
                if pause.is_zero() {
                    warn!(%error, "standings cannot be written; this replica continues with its own");
                }
                backoff.next_pause()
            }
        };
    }
}

async fn write(store: &dyn Store, key: &str, proposal: Proposal) -> Result<TxnOutcome, StoreError> {
    let unchanged = Compare::ModRevision {
        key: key.to_owned(),
        is: proposal.replaces,
    };
    // A default standing need not be stored.
    let op = match proposal.standing == ZoneStanding::default() {
        true => Op::delete(key),
        false => Op::put(key, StandingRecord::to_json(proposal.standing)),
    };
    store.txn(vec![unchanged], vec![op], None).await
}
