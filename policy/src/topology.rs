//! Regions, zones and the links between them.

use alloc::{borrow::ToOwned, string::String, vec, vec::Vec};

use crate::tier::Tier;

/// The most zones of one topology. Plans hold an entry for each pair of zones, so this bounds a
/// policy's size.
pub const ZONES_MAX: usize = 256;
/// The longest name of a zone, region or service, in bytes: names occur in headers, cluster names
/// and store keys.
pub const NAME_BYTES_MAX: usize = 63;

/// A zone of one [`Topology`]; meaningless in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneId(u16);

/// A region of one [`Topology`]; meaningless in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(u16);

impl ZoneId {
    /// The first zone of every topology.
    pub(crate) const FIRST: ZoneId = ZoneId(0);

    /// The position in [`Topology::zones`], from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl RegionId {
    /// The position in [`Topology::regions`], from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The link between two zones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Round-trip time in milliseconds, 0 to [`Link::RTT_MS_MAX`].
    pub rtt_ms: f64,
    /// Relative cost of a request over this link, [`Link::COST_MIN`] to [`Link::COST_MAX`]. 1 is
    /// the cost of staying in the zone.
    pub cost: f64,
}

impl Link {
    // Within these limits every score is a normal number, and so is the sum of all zones' scores:
    // underflow or overflow cannot remove a healthy zone.
    /// A minute.
    pub const RTT_MS_MAX: f64 = 60_000.0;
    pub const COST_MIN: f64 = 0.001;
    pub const COST_MAX: f64 = 1_000.0;

    /// Within a zone.
    pub const LOCAL: Link = Link {
        rtt_ms: 0.0,
        cost: 1.0,
    };
    /// The default between zones of one region: data centres of one city.
    pub const REGION: Link = Link {
        rtt_ms: 2.0,
        cost: 1.0,
    };
    /// The default between regions: cities a thousand kilometres apart.
    pub const REMOTE: Link = Link {
        rtt_ms: 30.0,
        cost: 1.0,
    };
}

/// The meaning of a name in `X-Region-ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Zone(ZoneId),
    Region(RegionId),
}

#[derive(Clone, Debug, PartialEq)]
struct Zone {
    name: String,
    region: RegionId,
}

#[derive(Clone, Debug, PartialEq)]
struct Region {
    name: String,
    zones: Vec<ZoneId>,
}

/// All zones and regions, in the order of the configuration, and the links between zones.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    zones: Vec<Zone>,
    regions: Vec<Region>,
    /// Row-major, `zones.len()` squared.
    links: Vec<Link>,
}

/// Why a topology was rejected. Every variant names the required change.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidTopology {
    #[error("no zones: at least one is needed")]
    NoZones,
    #[error("{0} zones: at most {ZONES_MAX} are possible")]
    TooManyZones(usize),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("zone {0:?} stands twice")]
    DuplicateZone(String),
    #[error(
        "{0:?} is the name of a zone and of a region: X-Region-ID would be ambiguous, rename one"
    )]
    ZoneIsRegion(String),
    #[error("link {from:?} - {to:?}: there is no zone {missing:?}")]
    UnknownLinkZone {
        from: String,
        to: String,
        missing: String,
    },
    #[error("link {from:?} - {to:?}: a zone has no link to itself")]
    SelfLink { from: String, to: String },
    #[error(
        "link {from:?} - {to:?}: rtt_ms must be 0 to {}, cost {} to {}",
        Link::RTT_MS_MAX,
        Link::COST_MIN,
        Link::COST_MAX
    )]
    LinkOutOfRange { from: String, to: String },
}

/// A name that cannot be used in a header, a cluster name or a store key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "name {0:?}: use 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"
)]
pub struct InvalidName(pub String);

/// Checks a name of a zone, region, service or instance.
///
/// # Errors
///
/// [`InvalidName`] with the name, unless it is 1 to [`NAME_BYTES_MAX`] bytes of the allowed
/// alphabet.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let first_ok = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest_ok = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
    if first_ok && rest_ok && name.len() <= NAME_BYTES_MAX {
        Ok(())
    } else {
        Err(InvalidName(name.to_owned()))
    }
}

impl Topology {
    /// Builds a topology from `(zone, region)` pairs and `(from, to, link)` triples.
    ///
    /// A link counts in both directions; a later one for the same pair replaces an earlier. Pairs
    /// without a link get [`Link::REGION`] or [`Link::REMOTE`].
    ///
    /// # Errors
    ///
    /// [`InvalidTopology`] names the first zone, region or link that is not valid.
    pub fn new<'a>(
        zones: impl IntoIterator<Item = (&'a str, &'a str)>,
        links: impl IntoIterator<Item = (&'a str, &'a str, Link)>,
    ) -> Result<Self, InvalidTopology> {
        let mut topology = Topology {
            zones: Vec::new(),
            regions: Vec::new(),
            links: Vec::new(),
        };
        for (zone, region) in zones {
            topology.add_zone(zone, region)?;
        }
        if topology.zones.is_empty() {
            return Err(InvalidTopology::NoZones);
        }
        if let Some(zone) = topology
            .zones
            .iter()
            .find(|zone| topology.region_named(&zone.name).is_some())
        {
            return Err(InvalidTopology::ZoneIsRegion(zone.name.clone()));
        }
        topology.links = topology.default_links();
        for (from, to, link) in links {
            topology.set_link(from, to, link)?;
        }
        Ok(topology)
    }

    /// One zone, whose name does not matter.
    pub(crate) fn of_one() -> Topology {
        let mut topology = Topology {
            zones: vec![Zone {
                name: "zone".to_owned(),
                region: RegionId(0),
            }],
            regions: vec![Region {
                name: "region".to_owned(),
                zones: vec![ZoneId::FIRST],
            }],
            links: Vec::new(),
        };
        topology.links = topology.default_links();
        topology
    }

    fn add_zone(&mut self, zone: &str, region: &str) -> Result<(), InvalidTopology> {
        check_name(zone)?;
        check_name(region)?;
        if self.zone_named(zone).is_some() {
            return Err(InvalidTopology::DuplicateZone(zone.to_owned()));
        }
        let id = u16::try_from(self.zones.len())
            .ok()
            .filter(|id| usize::from(*id) < ZONES_MAX)
            .map(ZoneId)
            .ok_or(InvalidTopology::TooManyZones(self.zones.len() + 1))?;
        // No more regions than zones, so the position fits as well.
        let region_id = match self.region_named(region) {
            Some(region_id) => region_id,
            None => {
                self.regions.push(Region {
                    name: region.to_owned(),
                    zones: vec![],
                });
                RegionId((self.regions.len() - 1) as u16)
            }
        };
        if let Some(region) = self.regions.get_mut(region_id.index()) {
            region.zones.push(id);
        }
        self.zones.push(Zone {
            name: zone.to_owned(),
            region: region_id,
        });
        Ok(())
    }

    fn default_links(&self) -> Vec<Link> {
        self.zones()
            .flat_map(|a| self.zones().map(move |b| (a, b)))
            .map(|(a, b)| match self.tier(a, b) {
                Tier::Zone => Link::LOCAL,
                Tier::Region => Link::REGION,
                Tier::Remote => Link::REMOTE,
            })
            .collect()
    }

    fn set_link(&mut self, from: &str, to: &str, link: Link) -> Result<(), InvalidTopology> {
        let names = || (from.to_owned(), to.to_owned());
        let find = |name: &str| {
            self.zone_named(name).ok_or_else(|| {
                let (from, to) = names();
                InvalidTopology::UnknownLinkZone {
                    from,
                    to,
                    missing: name.to_owned(),
                }
            })
        };
        let (a, b) = (find(from)?, find(to)?);
        if a == b {
            let (from, to) = names();
            return Err(InvalidTopology::SelfLink { from, to });
        }
        // `contains` is false for NaN.
        if !(0.0..=Link::RTT_MS_MAX).contains(&link.rtt_ms)
            || !(Link::COST_MIN..=Link::COST_MAX).contains(&link.cost)
        {
            let (from, to) = names();
            return Err(InvalidTopology::LinkOutOfRange { from, to });
        }
        for (row, column) in [(a, b), (b, a)] {
            let position = row.index() * self.zones.len() + column.index();
            if let Some(slot) = self.links.get_mut(position) {
                *slot = link;
            }
        }
        Ok(())
    }

    /// All zones, in the order of the configuration.
    pub fn zones(&self) -> impl ExactSizeIterator<Item = ZoneId> + Clone + use<> {
        // At most ZONES_MAX zones exist, so the cast is exact.
        (0..self.zones.len() as u16).map(ZoneId)
    }

    /// All regions, in the order in which the configuration first names them.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = RegionId> + Clone + use<> {
        (0..self.regions.len() as u16).map(RegionId)
    }

    /// The zone with this name.
    pub fn zone_named(&self, name: &str) -> Option<ZoneId> {
        let position = self.zones.iter().position(|zone| zone.name == name)?;
        u16::try_from(position).ok().map(ZoneId)
    }

    fn region_named(&self, name: &str) -> Option<RegionId> {
        let position = self.regions.iter().position(|region| region.name == name)?;
        u16::try_from(position).ok().map(RegionId)
    }

    /// The zone or region named `name`, the bytes of an `X-Region-ID`.
    pub fn place(&self, name: &[u8]) -> Option<Place> {
        let name = core::str::from_utf8(name).ok()?;
        self.zone_named(name)
            .map(Place::Zone)
            .or_else(|| self.region_named(name).map(Place::Region))
    }

    /// The zone's name. Empty for a zone of another topology.
    pub fn zone_name(&self, zone: ZoneId) -> &str {
        self.zones
            .get(zone.index())
            .map_or("", |zone| zone.name.as_str())
    }

    /// The region's name. Empty for a region of another topology.
    pub fn region_name(&self, region: RegionId) -> &str {
        self.regions
            .get(region.index())
            .map_or("", |region| region.name.as_str())
    }

    /// The zone's region.
    pub fn region_of(&self, zone: ZoneId) -> RegionId {
        self.zones
            .get(zone.index())
            .map_or(RegionId(u16::MAX), |zone| zone.region)
    }

    /// The link between two zones; [`Link::LOCAL`] from a zone to itself.
    pub fn link(&self, from: ZoneId, to: ZoneId) -> Link {
        self.links
            .get(from.index() * self.zones.len() + to.index())
            .copied()
            .unwrap_or(Link::REMOTE)
    }

    /// The distance of `zone` from `home`.
    pub fn tier(&self, home: ZoneId, zone: ZoneId) -> Tier {
        if home == zone {
            Tier::Zone
        } else if self.region_of(home) == self.region_of(zone) {
            Tier::Region
        } else {
            Tier::Remote
        }
    }

    /// The home zone of requests that name only `region`, for the proxies of `viewer`: `viewer`
    /// itself if it lies in the region, otherwise the zone with the shortest link; of equals, the
    /// first configured.
    pub fn home_in(&self, region: RegionId, viewer: ZoneId) -> Option<ZoneId> {
        let zones = &self.regions.get(region.index())?.zones;
        if zones.contains(&viewer) {
            return Some(viewer);
        }
        zones.iter().copied().reduce(|best, zone| {
            let nearer = self.link(viewer, zone).rtt_ms < self.link(viewer, best).rtt_ms;
            if nearer { zone } else { best }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(zones: &[(&str, &str)], links: &[(&str, &str, Link)], expected: &str) {
        let error =
            Topology::new(zones.iter().copied(), links.iter().copied()).expect_err(expected);
        assert_eq!(alloc::format!("{error}"), expected);
    }

    #[test]
    fn bad_topologies_are_refused_with_what_to_change() {
        let two = [("a", "x"), ("b", "y")];
        refused(&[], &[], "no zones: at least one is needed");
        refused(&[("a", "x"), ("a", "y")], &[], "zone \"a\" stands twice");
        refused(
            &[("a", "x"), ("x", "y")],
            &[],
            "\"x\" is the name of a zone and of a region: X-Region-ID would be ambiguous, rename one",
        );
        refused(
            &[("A/b", "x")],
            &[],
            "name \"A/b\": use 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit",
        );
        refused(
            &two,
            &[("a", "c", Link::LOCAL)],
            "link \"a\" - \"c\": there is no zone \"c\"",
        );
        refused(
            &two,
            &[("a", "a", Link::LOCAL)],
            "link \"a\" - \"a\": a zone has no link to itself",
        );
        let nan = Link {
            rtt_ms: f64::NAN,
            cost: 1.0,
        };
        refused(
            &two,
            &[("a", "b", nan)],
            "link \"a\" - \"b\": rtt_ms must be 0 to 60000, cost 0.001 to 1000",
        );
    }

    #[test]
    fn a_region_as_home_is_the_viewer_or_its_nearest_zone() {
        let far = Link {
            rtt_ms: 80.0,
            cost: 1.0,
        };
        let topology = Topology::new([("a1", "a"), ("b1", "b"), ("b2", "b")], [("a1", "b1", far)])
            .expect("a valid topology");
        let zone = |name| topology.zone_named(name).expect("a zone");
        let Some(Place::Region(b)) = topology.place(b"b") else {
            panic!("b is a region");
        };
        assert_eq!(topology.home_in(b, zone("b1")), Some(zone("b1")));
        assert_eq!(topology.home_in(b, zone("a1")), Some(zone("b2")));
    }

    #[test]
    fn more_zones_than_a_policy_bears_are_refused() {
        let names: Vec<String> = (0..=ZONES_MAX).map(|n| alloc::format!("z{n}")).collect();
        let zones = names.iter().map(|name| (name.as_str(), "r"));
        assert_eq!(
            Topology::new(zones, []),
            Err(InvalidTopology::TooManyZones(ZONES_MAX + 1))
        );
    }
}
