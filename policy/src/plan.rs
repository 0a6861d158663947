//! Plans: the zones that requests of one home may use, and their shares.

use alloc::vec::Vec;

use crate::{
    allocation::{Allocation, Ask},
    class::Class,
    health::ZoneState,
    load::{Demand, ZoneLoad},
    shard,
    tier::Tier,
    topology::{Topology, ZoneId},
    weighting::Weighting,
};

/// The sum of an open plan's weights: shares in per mille.
pub const WEIGHT_TOTAL: u32 = 1_000;

/// One zone's share of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub zone: ZoneId,
    /// Above 0; of [`WEIGHT_TOTAL`].
    pub weight: u32,
}

/// The zones that requests of one home and class may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Open {
        /// The nearest tier among the targets.
        tier: Tier,
        /// Not empty; the weights add up to [`WEIGHT_TOTAL`]; in the topology's order.
        targets: Vec<Target>,
        /// How many of [`WEIGHT_TOTAL`] requests are rejected because they exceed the capacity; the
        /// targets share the others. Below [`WEIGHT_TOTAL`].
        shed: u32,
    },
    /// No tier that these requests may use has a healthy instance.
    Closed {
        /// An operator has drained a zone that these requests could have used.
        drained: bool,
    },
}

impl Plan {
    /// Closed, but not by an operator.
    pub const CLOSED: Plan = Plan::Closed { drained: false };

    /// Computes the plan for requests of `class` with the home `home`, as if no other home had any.
    /// `loads` is indexed by zone; a missing entry counts as [`ZoneState::Empty`].
    ///
    /// Tiers are tried from near to far, first among the zones that are up, then among those that
    /// are down but still have a healthy instance: better a weak zone than an error. Writes never
    /// leave the home's region.
    pub fn compute(
        topology: &Topology,
        weighting: Weighting,
        home: ZoneId,
        class: Class,
        loads: &[ZoneLoad],
    ) -> Plan {
        let mut asks = [Ask::new(topology, home, class, 0.0)];
        Allocation::new(topology, weighting, loads).serve(&mut asks);
        let [ask] = &asks;
        Plan::of_ask(topology, ask, loads)
    }

    fn of_ask(topology: &Topology, ask: &Ask, loads: &[ZoneLoad]) -> Plan {
        let given: Vec<(ZoneId, f64)> = topology.zones().zip(ask.given.iter().copied()).collect();
        // At most WEIGHT_TOTAL, so the cast drops only the fraction.
        let shed = (ask.rest.clamp(0.0, 1.0) * f64::from(WEIGHT_TOTAL) + 0.5) as u32;
        let plan = Plan::of_targets(topology, ask.home, apportion(&given), shed);
        let is_drained =
            |(zone, load): (ZoneId, &ZoneLoad)| load.drained && ask.may(topology, zone);
        match plan {
            Plan::Closed { .. } => Plan::Closed {
                drained: topology.zones().zip(loads).any(is_drained),
            },
            open => open,
        }
    }

    /// A plan of these targets for requests of `home`; closed without any, and if all are shed.
    pub fn of_targets(topology: &Topology, home: ZoneId, targets: Vec<Target>, shed: u32) -> Plan {
        match targets.iter().map(|t| topology.tier(home, t.zone)).min() {
            Some(tier) if shed < WEIGHT_TOTAL => Plan::Open {
                tier,
                targets,
                shed,
            },
            _ => Plan::CLOSED,
        }
    }

    /// The targets; empty when closed.
    pub fn targets(&self) -> &[Target] {
        match self {
            Plan::Open { targets, .. } => targets,
            Plan::Closed { .. } => &[],
        }
    }

    /// The tier label of a request that goes to `zone`; none if closed. Within the home's region it
    /// is the plan's tier, whose shares the operator configures. A request that leaves the region
    /// is always labelled so, regardless of the plan's tier.
    pub fn tier_of(&self, topology: &Topology, home: ZoneId, zone: ZoneId) -> Option<Tier> {
        match self {
            Plan::Open { tier, .. } if topology.tier(home, zone) != Tier::Remote => Some(*tier),
            Plan::Open { .. } => Some(Tier::Remote),
            Plan::Closed { .. } => None,
        }
    }

    /// How many of [`WEIGHT_TOTAL`] requests are rejected although the plan is open.
    pub fn shed(&self) -> u32 {
        match self {
            Plan::Open { shed, .. } => *shed,
            Plan::Closed { .. } => 0,
        }
    }

    /// Whether a request with this `draw` is rejected.
    pub fn sheds(&self, draw: u64) -> bool {
        // Uses other bits than the choice of the target, so that the accepted requests stay evenly
        // spread.
        (draw >> 32) % u64::from(WEIGHT_TOTAL) < u64::from(self.shed())
    }

    /// The target of a request with this `draw`; none if closed.
    pub fn zone_of_draw(&self, draw: u64) -> Option<ZoneId> {
        let at = (draw & 0xffff_ffff) % u64::from(WEIGHT_TOTAL);
        let mut end = 0;
        let mut targets = self.targets().iter();
        let drawn = targets.find(|target| {
            end += u64::from(target.weight);
            at < end
        });
        // Weights add up to [`WEIGHT_TOTAL`], so there always is one.
        drawn.or(self.targets().last()).map(|target| target.zone)
    }

    /// The target that owns the key with this digest; none if closed. Keys are spread by the
    /// weights. While the ratio of two zones' weights stays the same, no key moves between them:
    /// when a zone leaves and its siblings' weights grow in proportion, only the keys of that zone
    /// move.
    pub fn zone_of_key(&self, topology: &Topology, key_digest: u64) -> Option<ZoneId> {
        let distance = |target: &&Target| {
            let name = topology.zone_name(target.zone).as_bytes();
            shard::rendezvous_distance(key_digest, name, target.weight)
        };
        let owner = self.targets().iter().min_by_key(distance)?;
        Some(owner.zone)
    }
}

/// Turns scores into weights that add up to [`WEIGHT_TOTAL`] exactly: the largest-remainder method
/// (Hamilton). A score above 0 gets at least 1; a score of 0 gets nothing.
fn apportion(scores: &[(ZoneId, f64)]) -> Vec<Target> {
    let sum: f64 = scores.iter().map(|(_, score)| score).sum();
    if !(f64::MIN_POSITIVE..=f64::MAX).contains(&sum) {
        return Vec::new();
    }
    let mut shares: Vec<(Target, f64)> = scores
        .iter()
        .filter(|(_, score)| *score > 0.0)
        .map(|(zone, score)| {
            let exact = score / sum * f64::from(WEIGHT_TOTAL);
            // At most WEIGHT_TOTAL, so the cast drops only the fraction.
            let weight = (exact as u32).max(1);
            let target = Target {
                zone: *zone,
                weight,
            };
            (target, exact - f64::from(weight))
        })
        .collect();
    let mut given: u32 = shares.iter().map(|(target, _)| target.weight).sum();
    // Each turn changes the sum by one. It begins within one per target: at most ZONES_MAX turns.
    while given != WEIGHT_TOTAL {
        let short = given < WEIGHT_TOTAL;
        let next = shares
            .iter_mut()
            .filter(|(target, _)| short || target.weight > 1)
            // The one furthest below (or above) its exact share; of equals, the first.
            .reduce(|best, other| {
                let further = if short {
                    other.1 > best.1
                } else {
                    other.1 < best.1
                };
                if further { other } else { best }
            });
        let Some((target, remainder)) = next else {
            break;
        };
        if short {
            target.weight += 1;
            *remainder -= 1.0;
            given += 1;
        } else {
            target.weight -= 1;
            *remainder += 1.0;
            given -= 1;
        }
    }
    shares.into_iter().map(|(target, _)| target).collect()
}

/// The plans of one service: one for every home zone and class.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plans {
    /// `[home * 2 + class]`
    plans: Vec<Plan>,
}

impl Plans {
    /// Computes the plans of every home zone and class. `loads` and `demands` are indexed by zone;
    /// a missing demand counts as none. If the demand of all homes exceeds a zone's capacity,
    /// writes are allocated first: they have no alternative.
    pub fn compute(
        topology: &Topology,
        weighting: Weighting,
        loads: &[ZoneLoad],
        demands: &[Demand],
    ) -> Plans {
        let mut allocation = Allocation::new(topology, weighting, loads);
        let mut serve = |class: Class| {
            let ask = |home: ZoneId| {
                let demand = demands.get(home.index()).copied().unwrap_or_default();
                Ask::new(topology, home, class, demand.of(class))
            };
            let mut asks: Vec<Ask> = topology.zones().map(ask).collect();
            allocation.serve(&mut asks);
            asks
        };
        let writes = serve(Class::Write);
        let reads = serve(Class::Read);
        Plans::from_fn(topology, |home, class| {
            let asks = match class {
                Class::Read => &reads,
                Class::Write => &writes,
            };
            asks.get(home.index())
                .map_or(Plan::CLOSED, |ask| Plan::of_ask(topology, ask, loads))
        })
    }

    /// The plans of a service whose writes are fenced. All writes stay in the zone that admits them
    /// while it has a healthy instance: no weight, capacity, demand, hold or ramp moves them
    /// elsewhere. Reads are planned as before.
    pub fn fenced(self, topology: &Topology, loads: &[ZoneLoad]) -> Plans {
        let serves = |zone: ZoneId| {
            let load = loads.get(zone.index());
            load.is_some_and(|load| load.state != ZoneState::Empty)
        };
        Plans::from_fn(topology, |home, class| match class {
            Class::Read => self.get(home, class).clone(),
            Class::Write if serves(home) => {
                let all = Target {
                    zone: home,
                    weight: WEIGHT_TOTAL,
                };
                Plan::of_targets(topology, home, Vec::from([all]), 0)
            }
            Class::Write => Plan::Closed {
                drained: loads.get(home.index()).is_some_and(|load| load.drained),
            },
        })
    }

    /// Calls `plan` for every home zone and class.
    pub fn from_fn(topology: &Topology, mut plan: impl FnMut(ZoneId, Class) -> Plan) -> Plans {
        let plans = topology
            .zones()
            .flat_map(|home| Class::ALL.map(|class| (home, class)))
            .map(|(home, class)| plan(home, class))
            .collect();
        Plans { plans }
    }

    /// The plan for `home` and `class`; closed for a zone of another topology.
    pub fn get(&self, home: ZoneId, class: Class) -> &Plan {
        self.plans
            .get(home.index() * Class::ALL.len() + class.index())
            .unwrap_or(&Plan::CLOSED)
    }
}
