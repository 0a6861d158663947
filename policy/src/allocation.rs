//! Allocates requests to zones by weights, ramps and capacity, and sheds the remainder.
//!
//! Every home offers its requests in stages:
//!
//! 1. its region, by the configured weights;
//! 2. any zone of the region that has room;
//! 3. reads only: other regions;
//! 4. healthy zones on a ramp, beyond their step.
//!
//! A region whose zones are all on a ramp keeps its requests: a ramp warms a zone up beside others,
//! and is no reason to send reads abroad. Requests without a place after the last stage are shed.
//! Within a stage, a zone that is offered more than its capacity accepts the same part of every
//! offer. The remainder is offered to the other zones again.

use alloc::{vec, vec::Vec};

use crate::{
    class::Class,
    health::ZoneState,
    load::ZoneLoad,
    standing::SHARE_FULL,
    tier::Tier,
    topology::{Topology, ZoneId},
    weighting::{Weighting, score},
};

/// Shares of a home's requests below this are rounding errors.
const NOTHING: f64 = 1e-9;

/// The demand of one home and class, and its allocation so far.
pub(crate) struct Ask {
    pub(crate) home: ZoneId,
    class: Class,
    /// Requests per second; 0 if unknown.
    demand: f64,
    /// By zone: the parts of this home's requests that are allocated.
    pub(crate) given: Vec<f64>,
    /// The part that is not allocated yet.
    pub(crate) rest: f64,
}

impl Ask {
    pub(crate) fn new(topology: &Topology, home: ZoneId, class: Class, demand: f64) -> Ask {
        Ask {
            home,
            class,
            demand: if demand > 0.0 { demand } else { 0.0 },
            given: vec![0.0; topology.zones().len()],
            rest: 1.0,
        }
    }

    /// Whether these requests may go to `zone`: writes never leave their home's region.
    pub(crate) fn may(&self, topology: &Topology, zone: ZoneId) -> bool {
        self.class == Class::Read || topology.tier(self.home, zone) != Tier::Remote
    }
}

/// The zones of a service, and their free capacity.
pub(crate) struct Allocation<'t> {
    topology: &'t Topology,
    weighting: Weighting,
    loads: &'t [ZoneLoad],
    /// Requests per second, by zone.
    room: Vec<f64>,
}

/// The zones that a stage offers requests to, and the weights of the offers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The home's region, by the configured weights; a zone on a ramp only up to its step.
    Region,
    /// The home's region, by score, without those on a ramp.
    RegionSpill,
    /// The home's region where all of its zones are on a ramp, by the configured weights and their
    /// steps.
    RegionReturning,
    /// Other regions, by score; a zone on a ramp only up to its step.
    Remote,
    /// The home's region, by score, regardless of ramp steps.
    RegionRamp,
    /// Other regions, by score, regardless of ramp steps.
    RemoteRamp,
}

impl Stage {
    const ALL: [Stage; 6] = [
        Stage::Region,
        Stage::RegionSpill,
        Stage::RegionReturning,
        Stage::Remote,
        Stage::RegionRamp,
        Stage::RemoteRamp,
    ];

    fn is_remote(self) -> bool {
        matches!(self, Stage::Remote | Stage::RemoteRamp)
    }
}

/// The offer of one ask to one zone in a stage.
#[derive(Clone, Copy, Default)]
struct Offer {
    weight: f64,
    /// The largest part of the ask that the zone accepts in this stage.
    limit: f64,
}

impl<'t> Allocation<'t> {
    pub(crate) fn new(topology: &'t Topology, weighting: Weighting, loads: &'t [ZoneLoad]) -> Self {
        let capacity = |zone: ZoneId| loads.get(zone.index()).map_or(0.0, |load| load.capacity);
        Allocation {
            topology,
            weighting,
            loads,
            room: topology.zones().map(capacity).collect(),
        }
    }

    /// Shares the capacity among the asks. All asks have the same priority.
    pub(crate) fn serve(&mut self, asks: &mut [Ask]) {
        let usable: Vec<ZoneState> = asks.iter().map(|ask| self.usable(ask)).collect();
        for stage in Stage::ALL {
            let mut offers: Vec<Vec<Offer>> = asks
                .iter()
                .zip(&usable)
                .map(|(ask, usable)| self.offers(ask, *usable, stage))
                .collect();
            // Each round ends the stage, fills up a zone, or removes the zones on a ramp.
            for _ in 0..=self.room.len() + 1 {
                if !self.round(asks, &mut offers) {
                    break;
                }
            }
        }
    }

    /// `Down` zones are used only if no tier that these requests may use has a zone that is `Up`.
    fn usable(&self, ask: &Ask) -> ZoneState {
        let mut zones = self.topology.zones();
        let any_up = zones
            .any(|zone| ask.may(self.topology, zone) && self.load(zone).state == ZoneState::Up);
        if any_up {
            ZoneState::Up
        } else {
            ZoneState::Down
        }
    }

    fn load(&self, zone: ZoneId) -> ZoneLoad {
        self.loads.get(zone.index()).copied().unwrap_or_default()
    }

    /// Whether every usable zone of the home's region is still on its ramp.
    fn is_region_returning(&self, ask: &Ask, usable: ZoneState) -> bool {
        let mut zones = self.topology.zones();
        !zones.any(|zone| {
            let load = self.load(zone);
            let is_remote = self.topology.tier(ask.home, zone) == Tier::Remote;
            !is_remote && load.state == usable && load.share >= SHARE_FULL
        })
    }

    fn offers(&self, ask: &Ask, usable: ZoneState, stage: Stage) -> Vec<Offer> {
        let is_returning = stage == Stage::RegionReturning && self.is_region_returning(ask, usable);
        let candidate = |zone: ZoneId| {
            let load = self.load(zone);
            let is_remote = self.topology.tier(ask.home, zone) == Tier::Remote;
            load.state == usable
                && ask.may(self.topology, zone)
                && is_remote == stage.is_remote()
                && (stage != Stage::RegionSpill || load.share >= SHARE_FULL)
                && (stage != Stage::RegionReturning || (is_returning && !load.leaves_region))
        };
        let scores: Vec<f64> = self
            .topology
            .zones()
            .map(|zone| match candidate(zone) {
                true => self.score(ask.home, zone),
                false => 0.0,
            })
            .collect();
        let weights = match (stage, self.weighting) {
            (Stage::Region | Stage::RegionReturning, Weighting::Operator { zone, region }) => {
                self.operator_weights(ask.home, zone, region, &scores)
            }
            _ => scores,
        };
        let weights: Vec<f64> = match stage {
            // A zone further along its ramp receives more.
            Stage::RegionReturning => {
                let share = |zone| f64::from(self.load(zone).share);
                let zones = self.topology.zones();
                zones
                    .zip(weights)
                    .map(|(zone, weight)| weight * share(zone))
                    .collect()
            }
            _ => weights,
        };
        let sum: f64 = weights.iter().sum();
        let ramps = matches!(stage, Stage::Region | Stage::Remote);
        self.topology
            .zones()
            .zip(weights)
            .map(|(zone, weight)| {
                let share = self.load(zone).share;
                let step = ask.rest * weight / sum * f64::from(share) / f64::from(SHARE_FULL);
                let limit = if ramps && share < SHARE_FULL {
                    step
                } else {
                    f64::INFINITY
                };
                Offer { weight, limit }
            })
            .collect()
    }

    /// Offers the remainder of each ask once; false if no zone accepted any of it.
    fn round(&mut self, asks: &mut [Ask], offers: &mut [Vec<Offer>]) -> bool {
        let mut parts: Vec<Vec<f64>> = Vec::with_capacity(asks.len());
        let mut wanted = vec![0.0; self.room.len()];
        for (ask, offers) in asks.iter().zip(offers.iter()) {
            let open = |(offer, room): (&Offer, &f64)| match *room > 0.0 && offer.limit > 0.0 {
                true => offer.weight,
                false => 0.0,
            };
            let weights: Vec<f64> = offers.iter().zip(&self.room).map(open).collect();
            let sum: f64 = weights.iter().sum();
            let part = |(weight, offer): (&f64, &Offer)| match *weight > 0.0 && ask.rest > NOTHING {
                true => (ask.rest * weight / sum).min(offer.limit),
                false => 0.0,
            };
            let part: Vec<f64> = weights.iter().zip(offers).map(part).collect();
            for (wanted, part) in wanted.iter_mut().zip(&part) {
                *wanted += part * ask.demand;
            }
            parts.push(part);
        }
        let taken: Vec<f64> = wanted
            .iter()
            .zip(&self.room)
            .map(|(wanted, room)| if wanted > room { room / wanted } else { 1.0 })
            .collect();
        let mut any = false;
        for ((ask, offers), parts) in asks.iter_mut().zip(offers).zip(parts) {
            let places = ask
                .given
                .iter_mut()
                .zip(offers)
                .zip(parts.iter().zip(&taken));
            for ((given, offer), (part, taken)) in places {
                let part = part * taken;
                any |= part > 0.0;
                *given += part;
                ask.rest -= part;
                // A limit left over by rounding counts as zero.
                offer.limit = if offer.limit - part > NOTHING {
                    offer.limit - part
                } else {
                    0.0
                };
            }
        }
        for ((room, wanted), taken) in self.room.iter_mut().zip(wanted).zip(taken) {
            *room = if taken < 1.0 { 0.0 } else { *room - wanted };
        }
        any
    }

    /// With the operator's weights, load does not count. The siblings of an unusable home share
    /// equally.
    fn score(&self, home: ZoneId, zone: ZoneId) -> f64 {
        let link = self.topology.link(home, zone);
        match (self.weighting, self.topology.tier(home, zone)) {
            (Weighting::Operator { .. }, Tier::Zone | Tier::Region) => 1.0,
            (Weighting::Operator { .. }, Tier::Remote) => score(link, 0.0),
            (Weighting::Computed, _) => score(link, self.load(zone).load1_per_core),
        }
    }

    /// The operator's shares of the candidates, which are the zones with a score above 0. If all
    /// their shares are 0 they keep their scores: a weight never makes a healthy zone unusable.
    fn operator_weights(&self, home: ZoneId, zone: u32, region: u32, scores: &[f64]) -> Vec<f64> {
        let is_sibling = |at: ZoneId| self.topology.tier(home, at) == Tier::Region;
        let candidates = || {
            self.topology
                .zones()
                .zip(scores)
                .filter(|(_, score)| **score > 0.0)
        };
        let siblings = candidates().filter(|(at, _)| is_sibling(*at)).count();
        let mut weights = vec![0.0; scores.len()];
        for (at, _) in candidates() {
            if let Some(weight) = weights.get_mut(at.index()) {
                *weight = match is_sibling(at) {
                    true => f64::from(region) / siblings as f64,
                    false => f64::from(zone),
                };
            }
        }
        if weights.iter().all(|weight| *weight <= 0.0) {
            scores.to_vec()
        } else {
            weights
        }
    }
}
