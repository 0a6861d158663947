//! Reports sessions that are renewed by puts, which fill the store's history, and the cause.

use std::collections::BTreeMap;

use policy::fence::{Aloud, Name, Replica};

use crate::{conditions::Code, metrics::Metrics};

/// The reports about each zone's replica.
pub(super) struct Renewals {
    /// Since when each zone's replica puts its key.
    aloud: BTreeMap<Name, u64>,
    metrics: Metrics,
}

impl Renewals {
    pub(super) fn new(metrics: Metrics) -> Renewals {
        Renewals {
            aloud: BTreeMap::new(),
            metrics,
        }
    }

    pub(super) fn look<'r>(&mut self, replicas: impl Iterator<Item = &'r Replica>, now: u64) {
        for replica in replicas {
            let zone = &replica.id().zone;
            let Some(why) = replica.session().aloud() else {
                if self.aloud.remove(zone).is_some() {
                    self.metrics
                        .conditions
                        .clear(Code::SessionRenewedAloud, zone);
                }
                continue;
            };
            let since = *self.aloud.entry(zone.clone()).or_insert(now);
            // Shorter periods of puts are normal: a replica came or went.
            let patience = replica.terms().session_settled().saturating_mul(2);
            if now >= since.saturating_add(patience) {
                self.metrics
                    .conditions
                    .raise(Code::SessionRenewedAloud, zone, detail(why));
            }
        }
        let aloud = i64::try_from(self.aloud.len()).unwrap_or(i64::MAX);
        self.metrics.sessions_put.set(aloud);
    }
}

fn detail(why: &Aloud) -> String {
    match why {
        Aloud::Unconfirmed => {
            "the store does not confirm that this replica has seen all sessions".to_owned()
        }
        Aloud::Unheard(others) => {
            let others: Vec<&str> = others.iter().map(|id| &*id.incarnation).collect();
            let others = others.join(", ");
            format!(
                "no acknowledgement from {others}: this replica must reach the `listen.advertise` of each, and each must know its secret"
            )
        }
    }
}
