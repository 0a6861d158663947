//! Sends the replicas' transactions to the store, and their outcomes to the replicas.

use std::time::Duration;

use policy::fence::{Input, Name, Replica, Terms, Transaction, TransactionOutcome, Write};
use registry::{
    authority::{PeerRecord, SessionRecord},
    store::{Compare, Op, Store, StoreError, TxnOutcome},
};
use tracing::debug;

use super::{Answer, Engine, Stated};
use crate::{
    authority::{records, terms},
    metrics::ResultLabel,
    wall_clock::unix_ms,
};

/// The pause after a failed transaction.
const RETRY_AFTER: Duration = Duration::from_millis(50);

impl Engine {
    pub(super) fn commit(&mut self, zone: &Name, number: u64, transaction: &Transaction) {
        let Some(replica) = self.replicas.get(zone) else {
            return;
        };
        let id = replica.id().clone();
        let authority = transaction.writes.iter().find_map(|write| match write {
            Write::Authority(cell, authority) => Some((cell, authority)),
            _ => None,
        });
        let operation = authority.map(|(cell, after)| {
            let mut cells = replica.cells();
            let before = cells.find(|(name, ..)| *name == cell);
            let before = before.and_then(|(_, _, authority, ..)| authority);
            records::operation(&self.operations, cell, before, after, &id, unix_ms())
        });
        let changes_authority = authority.is_some();
        let said = self.session_record(zone, replica);
        if let [Write::Session(_)] = transaction.writes[..] {
            self.sources.metrics.session_puts.inc();
            self.presence.stated(zone, self.connected(zone) > 0);
            let stated = Stated {
                proxies: said.proxies,
                terms: said.terms,
                at: self.now(),
            };
            self.stated.insert(zone.clone(), stated);
        }
        let (compares, ops) =
            records::transaction(transaction, &said, operation.unwrap_or_default());
        let asks = ops.is_empty();
        let store = (self.sources.store)(patience(self.terms()));
        let store_health = self.sources.store_health.clone();
        let answer = self.answer.clone();
        let writes = self.sources.metrics.authority_writes.clone();
        tokio::spawn(async move {
            let begun = tokio::time::Instant::now();
            let outcome = make(
                &*store,
                compares,
                ops,
                store_health.writes_refused().is_some(),
            )
            .await;
            // A read proves nothing about writes.
            if let Some(outcome) = outcome.as_ref().filter(|_| !asks) {
                store_health.wrote_in(outcome, begun.elapsed());
            }
            let outcome = match outcome {
                Some(Ok(TxnOutcome {
                    succeeded: true,
                    revision,
                })) => TransactionOutcome::Committed(records::revision(revision)),
                Some(Ok(_)) => TransactionOutcome::Refused,
                Some(Err(error)) => {
                    debug!(%error, "a transaction about authority has failed");
                    TransactionOutcome::Unknown
                }
                None => TransactionOutcome::Unknown,
            };
            if changes_authority {
                let result = match outcome {
                    TransactionOutcome::Committed(_) => "ok",
                    TransactionOutcome::Refused => "overtaken",
                    TransactionOutcome::Unknown => "error",
                };
                writes.get_or_create(&ResultLabel { result }).inc();
            }
            if outcome == TransactionOutcome::Unknown && !asks {
                // It is retried at once, and a store that is unreachable or read-only fails fast.
                tokio::time::sleep(RETRY_AFTER).await;
            }
            // An engine that has ended needs no answer.
            let _ = answer.send(Answer {
                id,
                number,
                outcome,
            });
        });
    }

    pub(super) fn session_record(&self, zone: &Name, replica: &Replica) -> SessionRecord {
        let reach = self.sources.peers.reach.as_ref();
        let peer = reach
            .zip(self.secrets.get(zone))
            .map(|(reach, secret)| PeerRecord {
                address: reach.address.clone(),
                server_name: reach.server_name.clone(),
                secret: secret.clone(),
            });
        SessionRecord {
            process: self.sources.process.clone(),
            proxies: Some(self.connected(zone)),
            terms: terms::own(replica),
            peer,
        }
    }

    pub(super) fn answered(&mut self, answer: &Answer) {
        let zone = answer.id.zone.clone();
        // Numbers continue from one incarnation to the next, which does not know its predecessor's.
        let input = Input::Answer {
            number: answer.number,
            outcome: answer.outcome,
        };
        self.handle(&zone, input);
    }
}

/// The time limit of one member of the store for a transaction about authority. A session survives
/// a hung member: a round runs in each quarter of a session's time to live, and has time to try
/// another member.
fn patience(terms: &Terms) -> Duration {
    Duration::from_micros(terms.session_ttl / 6)
}

/// None if nothing was sent, since writes have ended.
async fn make(
    store: &dyn Store,
    compares: Vec<Compare>,
    ops: Vec<Op>,
    refused: bool,
) -> Option<Result<TxnOutcome, StoreError>> {
    match refused {
        true => None,
        false => Some(store.txn(compares, ops, None).await),
    }
}
