//! The decision about a write to a fenced service.

use crate::{
    cells::{Cell, Enforcement, Fencing},
    class::Class,
    decision::{Decision, FencedWrite, Outcome, Routed},
    explain::Step,
    facts::Facts,
    hop::Signer,
    plan::{Plan, Target},
    reason::Reason,
    refusal::Refusal,
    rules::Rules,
    service::Service,
    tier::Tier,
    topology::ZoneId,
};

/// A write to a cell, with this proxy's knowledge of it.
pub(crate) struct FencedRequest<'p, 'f> {
    pub(crate) rules: &'p Rules,
    pub(crate) fencing: &'p Fencing,
    pub(crate) service: &'p Service,
    pub(crate) cell: &'p Cell,
    pub(crate) home: ZoneId,
    pub(crate) facts: &'f Facts,
    pub(crate) routes: Routes,
}

/// The routes that an admitted write takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routes {
    /// They follow this decision.
    Ours,
    /// Somebody else's: they end where they end, and nothing is forwarded.
    Foreign,
}

impl<'p> FencedRequest<'p, '_> {
    /// A proxy that holds a grant admits the write, regardless of the pushed state. Otherwise the
    /// write is forwarded to an owner, or rejected.
    pub(crate) fn decide(
        &self,
        note: &mut impl FnMut(&dyn Fn() -> Step),
    ) -> Result<Decision<'p>, Refusal> {
        self.note_cell(note);
        self.check_epoch(note)?;
        let observed = self.is_observed();
        if observed {
            note(&|| Step::Observed);
        }
        let here = self.facts.granted.or(observed.then_some(self.cell.epoch));
        match here.filter(|_| self.serves_here()) {
            Some(epoch) => Ok(self.admit(epoch, observed)),
            None => self.send_on(here, note),
        }
    }

    fn note_cell(&self, note: &mut impl FnMut(&dyn Fn() -> Step)) {
        let topology = self.rules.topology();
        note(&|| Step::Cell {
            cell: self.cell.name.clone(),
            owners: (self.cell.owners.iter())
                .map(|zone| topology.zone_name(*zone).into())
                .collect(),
            epoch: self.cell.epoch,
        });
        note(&|| match self.facts.granted {
            Some(epoch) => Step::Granted { epoch },
            None => Step::NotGranted,
        });
    }

    /// A forwarded write is rejected if its epoch is not ours.
    fn check_epoch(&self, note: &mut impl FnMut(&dyn Fn() -> Step)) -> Result<(), Refusal> {
        let ours = self.facts.granted.unwrap_or(self.cell.epoch);
        let presented = self.facts.presented.filter(|_| self.facts.forwarded);
        let Some(presented) = presented.filter(|presented| *presented != ours) else {
            return Ok(());
        };
        note(&|| Step::OtherEpoch { presented, ours });
        Err(match presented < ours {
            true => Refusal::STALE_EPOCH,
            false => Refusal::AHEAD_EPOCH,
        })
    }

    /// An enforced fence would reject the write here.
    fn is_observed(&self) -> bool {
        self.facts.granted.is_none() && self.fencing.enforcement == Enforcement::Observe
    }

    /// The plan of this proxy's zone for writes of the service.
    fn plan_here(&self) -> &'p Plan {
        self.service.plans.get(self.rules.viewer(), Class::Write)
    }

    fn serves_here(&self) -> bool {
        if self.routes == Routes::Foreign {
            return true;
        }
        let serves = |target: &Target| target.zone == self.rules.viewer();
        self.plan_here().targets().iter().any(serves)
    }

    fn admit(&self, epoch: u64, observed: bool) -> Decision<'p> {
        Decision {
            outcome: Outcome::Route(self.routed(None, epoch, Tier::Zone)),
            reason: match observed {
                true => Reason::Observed,
                false => Reason::Admitted,
            },
            owner: None,
        }
    }

    /// Forwards the write to the nearest owner, or rejects it. `here` is the epoch for which this
    /// zone would admit it if an instance here served it.
    fn send_on(
        &self,
        here: Option<u64>,
        note: &mut impl FnMut(&dyn Fn() -> Step),
    ) -> Result<Decision<'p>, Refusal> {
        let topology = self.rules.topology();
        let viewer = self.rules.viewer();
        if here.is_none() && self.cell.owners.contains(&viewer) {
            return Err(Refusal::NO_GRANT);
        }
        let drained = matches!(self.plan_here(), Plan::Closed { drained: true });
        let closed = || match here {
            Some(_) => Refusal::closed(drained),
            None => Refusal::NO_GRANT,
        };
        let owner = Fencing::nearest_owner(topology, self.cell, viewer).ok_or_else(closed)?;
        let owner_name = topology.zone_name(owner);
        if self.may_forward(owner) {
            match (self.facts.signer, self.rules.gateway(owner)) {
                (Signer::Untold, _) => {
                    note(&|| Step::NoHopKey);
                    return Err(closed());
                }
                (Signer::Holds, Some(gateway)) => {
                    note(&|| Step::Forwarded(owner_name.into()));
                    return Ok(self.forward(owner, gateway));
                }
                _ => {}
            }
        }
        match here {
            Some(_) => Err(Refusal::closed(drained)),
            None => Ok(Decision {
                owner: Some(owner_name),
                ..Decision::refuse(Refusal::NOT_OWNER)
            }),
        }
    }

    fn may_forward(&self, owner: ZoneId) -> bool {
        let (topology, viewer) = (self.rules.topology(), self.rules.viewer());
        let is_ours = self.routes == Routes::Ours;
        is_ours && !self.facts.hop && (self.fencing).may_forward(topology, self.cell, viewer, owner)
    }

    fn forward(&self, owner: ZoneId, gateway: &'p str) -> Decision<'p> {
        let topology = self.rules.topology();
        let tier = topology.tier(self.rules.viewer(), owner);
        Decision {
            outcome: Outcome::Route(self.routed(Some(gateway), self.cell.epoch, tier)),
            reason: Reason::Forwarded,
            owner: Some(topology.zone_name(owner)),
        }
    }

    fn routed(&self, pin: Option<&'p str>, epoch: u64, tier: Tier) -> Routed<'p> {
        let terms = &self.fencing.terms;
        Routed {
            class: Class::Write,
            tier: Some(tier),
            home: Some(self.rules.topology().zone_name(self.home)),
            foreign: self.home != self.rules.viewer(),
            pin,
            write: Some(FencedWrite {
                cell: self.cell.name.as_str(),
                several_cells: self.fencing.cells().len() > 1,
                epoch,
                hop: self.facts.forwarded,
                drain_ms: terms.changed.then_some(terms.write_drain / 1_000),
            }),
        }
    }
}
