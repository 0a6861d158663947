//! Reports by the sessions' records, status and metrics, and the reason why this replica does not
//! act.

use std::{collections::BTreeSet, sync::Arc};

use policy::fence::{Input, Name, SessionId};
use tokio::time::Instant;
use tracing::{error, info};

use super::Engine;
use crate::{
    authority::{status, terms},
    conditions::Code,
    metrics::CellLabel,
};

/// How long a session's record may have a wrong number of proxies, in microseconds.
const COUNT_PATIENCE_US: u64 = 60_000_000;

impl Engine {
    /// Whether the session's record is out of date: about its terms, or for long about its proxies.
    pub(super) fn is_outdated(&self, zone: &Name) -> bool {
        let stated = self.stated.get(zone).zip(self.replicas.get(zone));
        stated.is_some_and(|(stated, replica)| {
            let settled = self.now() >= stated.at.saturating_add(COUNT_PATIENCE_US);
            let count = Some(self.connected(zone));
            stated.terms != terms::own(replica) || settled && stated.proxies != count
        })
    }

    /// Puts sessions again whose record is wrong about the terms, or about whether there are
    /// proxies.
    pub(super) fn restate(&mut self) {
        let zones: Vec<Name> = self.replicas.keys().cloned().collect();
        for zone in zones {
            let any = self.connected(&zone) > 0;
            let patience = self.terms().session_ttl / 4;
            let now = self.now();
            let presence = self.presence.is_to_be_restated(&zone, any, now, patience);
            if presence || self.is_outdated(&zone) {
                self.handle(&zone, Input::Restated);
            }
        }
    }

    /// Publishes the agreed terms, and this replica's relation to them.
    pub(super) fn judge_terms(&mut self) {
        if !std::mem::take(&mut self.terms_dirty) {
            return;
        }
        let now = self.now();
        let Some(replica) = self.replicas.values().next() else {
            return;
        };
        let status = terms::status(replica, &self.said, now);
        let agreement = replica.agreement().map(|(_, agreement)| agreement.clone());
        let differs = match status.agrees || agreement.is_none() {
            true => None,
            false => Some(status.differences.join("; ")),
        };
        let rolled = terms::rolled(&status);
        let agrees = i64::from(status.agrees);
        self.sources.metrics.terms_agreed.set(agrees);
        self.sources.agreements.set(agreement.as_ref(), status);
        if differs != self.differs {
            match &differs {
                Some(differences) => error!(
                    differences,
                    "this replica's configured terms differ from the agreed terms: it grants nothing and moves nothing. Give it the configuration of the others, or change the terms: `tidegate terms change --config FILE`"
                ),
                None => info!("this replica's configured terms are the agreed ones"),
            }
            let conditions = &self.sources.metrics.conditions;
            conditions.set(Code::TermsDiffer, "", differs.as_deref());
            self.differs = differs;
        }
        self.broadcast(&Input::Rolled(rolled));
    }

    pub(super) fn publish(&mut self) {
        let cells = status::of(
            self.replicas.values(),
            &self.presence,
            &self.out,
            self.now(),
        );
        let metrics = &self.sources.metrics;
        for cell in &cells {
            let label = CellLabel {
                cell: cell.cell.clone(),
            };
            let epoch = i64::try_from(cell.epoch).unwrap_or(i64::MAX);
            metrics.cell_epoch.get_or_create(&label).set(epoch);
            let writable = cell.here.iter().any(|here| here.granting && here.session);
            metrics
                .cell_granting
                .get_or_create(&label)
                .set(i64::from(writable));
        }
        self.publisher.send_if_modified(|published| {
            let changed = **published != cells;
            if changed {
                *published = Arc::new(cells);
            }
            changed
        });
    }

    /// Informs streams which zones have a control plane of their own.
    pub(super) fn sight(&mut self) {
        // All replicas of this process have the same view.
        let Some(replica) = self.replicas.values().next() else {
            return;
        };
        let (now, terms, sessions) = (self.now(), replica.terms(), replica.sessions());
        let present = sessions.present().map(|(id, _)| id);
        let alive = present.filter(|id| !sessions.over(id, now, terms));
        let alive: BTreeSet<SessionId> = alive.cloned().collect();
        if self.sightings.look(alive, Instant::now()) {
            self.sighted
                .send_replace(Arc::new(self.sightings.since().clone()));
        }
    }
}
