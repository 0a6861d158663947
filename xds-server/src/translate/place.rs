//! The grouping of a service's instances: by zone or, with hashing, by region.

use policy::{
    Class, RegionId, Tier, Topology, ZoneId,
    rules::{cluster_name, is_alone, route_cluster_name},
};

use crate::config::Strategy;

/// The subject of a cluster with endpoints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Zone(ZoneId),
    Region(RegionId),
}

/// All places of a service.
pub(super) fn places(topology: &Topology, strategy: &Strategy) -> Vec<Place> {
    match strategy {
        Strategy::Weighted => topology.zones().map(Place::Zone).collect(),
        Strategy::RegionFirstHash { .. } => topology.regions().map(Place::Region).collect(),
    }
}

/// Whether requests are kept on their instances. Envoy's aggregate clusters cannot do that. So
/// routes name the endpoints' own cluster, and requests have no fallback until the control plane
/// changes the plan.
pub(super) fn keeps_sessions(strategy: &Strategy) -> bool {
    matches!(
        strategy,
        Strategy::RegionFirstHash {
            sessions: Some(_),
            ..
        }
    )
}

impl Place {
    /// The place of requests that should go to `zone`.
    pub(super) fn of(topology: &Topology, strategy: &Strategy, zone: ZoneId) -> Place {
        match strategy {
            Strategy::Weighted => Place::Zone(zone),
            Strategy::RegionFirstHash { .. } => Place::Region(topology.region_of(zone)),
        }
    }

    fn name<'t>(&self, topology: &'t Topology) -> &'t str {
        match self {
            Place::Zone(zone) => topology.zone_name(*zone),
            Place::Region(region) => topology.region_name(*region),
        }
    }

    /// The cluster with the endpoints.
    pub(super) fn cluster(&self, topology: &Topology, service: &str) -> String {
        cluster_name(service, self.name(topology))
    }

    /// The cluster that routes name.
    pub(super) fn route_cluster(&self, topology: &Topology, service: &str, class: Class) -> String {
        match self.is_alone(topology, class) {
            true => self.cluster(topology, service),
            false => route_cluster_name(service, self.name(topology), class),
        }
    }

    /// Whether requests of `class` have no other place to fall back to.
    pub(super) fn is_alone(&self, topology: &Topology, class: Class) -> bool {
        match self {
            Place::Zone(zone) => is_alone(topology, *zone, class),
            Place::Region(_) => class == Class::Write || topology.regions().len() == 1,
        }
    }

    /// The fallback order of requests of `class`: this place first, then by distance. Writes stay
    /// in the region.
    pub(super) fn fallback_order(
        &self,
        topology: &Topology,
        strategy: &Strategy,
        class: Class,
    ) -> Vec<Place> {
        let distance = |place: &Place| self.distance(topology, *place);
        let mut places: Vec<Place> = places(topology, strategy)
            .into_iter()
            .filter(|place| class == Class::Read || distance(place).0 != Tier::Remote)
            .collect();
        // Stable: of equals the first configured comes first.
        places.sort_by_key(distance);
        places
    }

    /// The tier, and microseconds of the shortest link.
    fn distance(&self, topology: &Topology, to: Place) -> (Tier, u64) {
        let zones = |place: Place| {
            topology.zones().filter(move |zone| match place {
                Place::Zone(only) => *zone == only,
                Place::Region(region) => topology.region_of(*zone) == region,
            })
        };
        let pairs = zones(*self).flat_map(|a| zones(to).map(move |b| (a, b)));
        let links = pairs.map(|(a, b)| {
            // Links are at most a minute long, so the cast drops only the fraction.
            let rtt_us = (topology.link(a, b).rtt_ms * 1e3) as u64;
            (topology.tier(a, b), rtt_us)
        });
        links.min().unwrap_or((Tier::Remote, u64::MAX))
    }
}
