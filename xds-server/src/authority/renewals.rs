//! Says where sessions are renewed by puts, which fill the store's history, and why.

use std::collections::BTreeMap;

use policy::fence::{Aloud, Name, Replica, Terms};
use tracing::{info, warn};

use crate::metrics::Metrics;

/// What was said about each zone's replica.
pub(super) struct Renewals {
    /// Puts for so long are nothing to speak of: a replica came or went.
    patience_us: u64,
    /// Since when it puts its key, and whether that was said.
    aloud: BTreeMap<Name, (u64, bool)>,
    metrics: Metrics,
}

impl Renewals {
    pub(super) fn new(terms: &Terms, metrics: Metrics) -> Renewals {
        Renewals {
            patience_us: terms.session_settled().saturating_mul(2),
            aloud: BTreeMap::new(),
            metrics,
        }
    }

    pub(super) fn look<'r>(&mut self, replicas: impl Iterator<Item = &'r Replica>, now: u64) {
        for replica in replicas {
            let zone = &replica.id().zone;
            match replica.session().aloud() {
                Some(why) => self.puts(zone, why, now),
                None => self.is_quiet(zone),
            }
        }
        let aloud = i64::try_from(self.aloud.len()).unwrap_or(i64::MAX);
        self.metrics.sessions_put.set(aloud);
    }

    fn puts(&mut self, zone: &Name, why: &Aloud, now: u64) {
        let (since, said) = self.aloud.entry(zone.clone()).or_insert((now, false));
        if *said || now < since.saturating_add(self.patience_us) {
            return;
        }
        *said = true;
        match why {
            Aloud::Unconfirmed => warn!(
                %zone,
                "the session is renewed by writes, which fill the store's history: the store does not confirm that all sessions were seen"
            ),
            Aloud::Unheard(others) => {
                let others: Vec<&str> = others.iter().map(|id| &*id.incarnation).collect();
                let others = others.join(", ");
                warn!(
                    %zone,
                    unheard = others,
                    "the session is renewed by writes, which fill the store's history: these replicas do not acknowledge. Do they reach each other at `listen.advertise`?"
                );
            }
        }
    }

    fn is_quiet(&mut self, zone: &Name) {
        if let Some((_, true)) = self.aloud.remove(zone) {
            info!(%zone, "the session is renewed without writes again");
        }
    }
}
