//! Zone states: those that the replicas agreed on, the directives of operators, and the next
//! proposals.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::{
    Failover, InstanceCounts, Observed, Why, ZoneAssessment, ZoneLoad, ZoneMachine, ZoneStanding,
};
use registry::{
    record::{Health, Instance},
    store::Revision,
    zone_records::{DirectiveKey, DirectiveRecord, StandingKey},
};

/// A standing to write, unless another writer is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub standing: ZoneStanding,
    /// The revision of the record that it replaces; 0: there is none.
    pub replaces: Revision,
}

/// The state of a service in a zone.
#[derive(Clone, Debug, PartialEq)]
pub struct ZoneStatus {
    pub counts: InstanceCounts,
    pub draining: u32,
    pub standing: ZoneStanding,
    pub verdict: ZoneAssessment,
    pub intent: Option<DirectiveRecord>,
    /// The revision of its standing's record; 0: there is none.
    pub revision: Revision,
}

/// Proposals by store key. Cheap to clone, and to compare with a copy.
pub type Proposals = imbl::OrdMap<String, Proposal>;

/// Statuses by service and zone. Cheap to clone.
pub type Statuses = imbl::OrdMap<(Arc<str>, Arc<str>), Arc<ZoneStatus>>;

#[derive(Default)]
struct Seat {
    machine: ZoneMachine,
    /// The written standing, and its revision; the default without a record.
    written: (ZoneStanding, Revision),
}

#[derive(Default)]
pub(super) struct Zones {
    seats: BTreeMap<StandingKey, Seat>,
    intents: BTreeMap<DirectiveKey, DirectiveRecord>,
    proposals: Proposals,
    statuses: Statuses,
}

/// The counts of a service's instances in a zone.
#[derive(Default)]
struct Tally {
    counts: InstanceCounts,
    draining: u32,
    load: f64,
    /// The capacity of the healthy instances; infinite if one of them does not report it.
    capacity: f64,
}

impl Tally {
    fn of<'i>(instances: impl Iterator<Item = &'i Instance>) -> Tally {
        let mut tally = Tally::default();
        for instance in instances {
            match instance.health {
                Health::Healthy => {
                    tally.counts.healthy += 1;
                    tally.capacity += instance.capacity_rps.unwrap_or(f64::INFINITY);
                }
                Health::Unhealthy => tally.counts.unhealthy += 1,
                Health::Draining => {
                    tally.draining += 1;
                    continue;
                }
            }
            tally.load += instance.load();
        }
        let serving = tally.counts.healthy + tally.counts.unhealthy;
        tally.load /= f64::from(serving.max(1));
        tally
    }
}

impl Zones {
    /// A standing was written.
    pub(super) fn adopt(
        &mut self,
        at: StandingKey,
        standing: ZoneStanding,
        revision: Revision,
        now_ms: u64,
    ) {
        let seat = self.seats.entry(at).or_default();
        seat.written = (standing, revision);
        seat.machine.adopt(standing, now_ms);
    }

    /// A standing's record is gone: the standing is the default again.
    pub(super) fn forget(&mut self, at: &StandingKey, now_ms: u64) {
        if let Some(seat) = self.seats.get_mut(at) {
            seat.written = Default::default();
            seat.machine.adopt(ZoneStanding::default(), now_ms);
        }
    }

    /// The keys of all standings that were written.
    pub(super) fn written(&self) -> Vec<StandingKey> {
        let written = self.seats.iter().filter(|(_, seat)| seat.written.1.0 > 0);
        written.map(|(at, _)| at.clone()).collect()
    }

    pub(super) fn want(&mut self, at: DirectiveKey, intent: Option<DirectiveRecord>) {
        match intent {
            Some(intent) => self.intents.insert(at, intent),
            None => self.intents.remove(&at),
        };
    }

    pub(super) fn wanted(&self) -> Vec<DirectiveKey> {
        self.intents.keys().cloned().collect()
    }

    pub(super) fn proposals(&self) -> &Proposals {
        &self.proposals
    }

    pub(super) fn statuses(&self) -> &Statuses {
        &self.statuses
    }

    /// Removes the statuses of services and zones that are no longer configured.
    pub(super) fn retain(&mut self, known: impl Fn(&str, &str) -> bool) {
        let statuses = std::mem::take(&mut self.statuses).into_iter();
        let kept = statuses.filter(|((service, zone), _)| known(service, zone));
        self.statuses = kept.collect();
        let proposals = std::mem::take(&mut self.proposals).into_iter();
        let kept = proposals.filter(|(key, _)| {
            StandingKey::parse(key).is_ok_and(|at| known(&at.service, &at.zone))
        });
        self.proposals = kept.collect();
    }

    /// The share of a service in a zone, and the reason. With `follow_load` the standing follows
    /// the load.
    pub(super) fn observe<'i>(
        &mut self,
        at: &StandingKey,
        instances: impl Iterator<Item = &'i Instance>,
        rules: &Failover,
        follow_load: bool,
        now_ms: u64,
    ) -> (ZoneLoad, ZoneAssessment) {
        let tally = Tally::of(instances);
        let intent = self.intent(at).cloned();
        let seat = self.seats.entry(at.clone()).or_default();
        let observed = Observed {
            counts: tally.counts,
            load: follow_load.then_some(tally.load),
            directive: intent.as_ref().map(|record| record.directive),
        };
        let verdict = seat.machine.observe(observed, rules, now_ms);
        let standing = seat.machine.standing();
        let (written, revision) = seat.written;
        let proposal = (standing != written).then_some(Proposal {
            standing,
            replaces: revision,
        });
        let key = at.store_key();
        // Even a change to an equal value would create a different map.
        if self.proposals.get(&key) != proposal.as_ref() {
            match proposal {
                Some(proposal) => self.proposals.insert(key, proposal),
                None => self.proposals.remove(&key),
            };
        }
        let load = ZoneLoad {
            state: verdict.state,
            share: verdict.share,
            load1_per_core: standing.load(),
            capacity: tally.capacity,
            drained: verdict.why == Why::Drained,
            leaves_region: rules.ramp_leaves_region,
        };
        let status = ZoneStatus {
            counts: tally.counts,
            draining: tally.draining,
            standing,
            verdict,
            intent,
            revision,
        };
        let names = (Arc::from(at.service.as_str()), Arc::from(at.zone.as_str()));
        if self.statuses.get(&names).is_none_or(|old| **old != status) {
            self.statuses.insert(names, Arc::new(status));
        }
        (load, verdict)
    }

    fn intent(&self, at: &StandingKey) -> Option<&DirectiveRecord> {
        let everywhere = DirectiveKey {
            zone: at.zone.clone(),
            service: None,
        };
        let here = DirectiveKey {
            service: Some(at.service.clone()),
            ..everywhere.clone()
        };
        self.intents
            .get(&here)
            .or_else(|| self.intents.get(&everywhere))
    }
}
