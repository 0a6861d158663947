//! The allocation of requests to zones: weights, ramps, capacity, and the rest.
//!
//! Every home offers its requests in stages: first to its region by the configured weights, then
//! the rest to any zone of the region that has room, then, reads only, to other regions; then to
//! zones on a ramp beyond their step, for they are healthy. A region whose zones are all on a ramp
//! keeps its requests: a ramp warms a zone up beside others, and is no reason to send reads abroad.
//! Requests that still have no place are shed. Within a stage a zone that is offered more than it
//! bears takes the same part of every offer, and the rest is offered to the others again.

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

/// Shares of a home's requests below this are rounding, not requests.
const NOTHING: f64 = 1e-9;

/// The demand of one home and class, and its allocation so far.
pub(crate) struct Ask {
    pub(crate) home: ZoneId,
    class: Class,
    /// Requests per second; 0 where it is unknown.
    demand: f64,
    /// By zone: parts of this home's requests.
    pub(crate) given: Vec<f64>,
    /// The part that has no place yet.
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

/// The zones of a service, and their free room.
pub(crate) struct Allocation<'t> {
    topology: &'t Topology,
    weighting: Weighting,
    loads: &'t [ZoneLoad],
    /// Requests per second, by zone.
    room: Vec<f64>,
}

/// Which zones a stage offers requests to, and in which parts.
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
    /// The home's region, by score, whatever their step.
    RegionRamp,
    /// Other regions, by score, whatever their step.
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
    /// The largest part of the ask that the zone takes in this stage.
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

    /// Shares the room among the asks; all of them have the same claim.
    pub(crate) fn serve(&mut self, asks: &mut [Ask]) {
        let usable: Vec<ZoneState> = asks.iter().map(|ask| self.usable(ask)).collect();
        for stage in Stage::ALL {
            let mut offers: Vec<Vec<Offer>> = asks
                .iter()
                .zip(&usable)
                .map(|(ask, usable)| self.offers(ask, *usable, stage))
                .collect();
            // Each round ends the stage, fills up a zone for good, or takes the zones on a ramp
            // out.
            for _ in 0..=self.room.len() + 1 {
                if !self.round(asks, &mut offers) {
                    break;
                }
            }
        }
    }

    /// Zones that are down are asked only where none is up in any tier that these requests may use.
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

    /// Whether no zone of the home's region is fully in, of those that are as usable as any.
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
            // The further a zone has come, the more it takes.
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

    /// Offers the rest of each ask once; false when nothing was taken.
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
                // A limit that only rounding has left counts as zero.
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

    /// With the operator's weights load does not count; siblings of a home that is gone share
    /// equally.
    fn score(&self, home: ZoneId, zone: ZoneId) -> f64 {
        let link = self.topology.link(home, zone);
        match (self.weighting, self.topology.tier(home, zone)) {
            (Weighting::Operator { .. }, Tier::Zone | Tier::Region) => 1.0,
            (Weighting::Operator { .. }, Tier::Remote) => score(link, 0.0),
            (Weighting::Computed, _) => score(link, self.load(zone).load1_per_core),
        }
    }

    /// The operator's shares of the candidates, those whose score is above 0. Where all of them
    /// have share 0 they keep their scores: a healthy zone is never refused because of a weight.
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
