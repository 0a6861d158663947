//! Write authority, as far as it is configured: the cells, the spans of the fence, and which
//! services it is for.

use std::{collections::BTreeSet, fmt, num::NonZeroU32, time::Duration};

use policy::{
    Cell, Enforcement, Fencing, Forward, InvalidFencing, Topology, Writes, fence::Terms, hop::Keys,
    rules::GATEWAY_SERVICE,
};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use serde_saphyr::Spanned;

use super::{
    ConfigError, Protocol, Resilience, ServiceConfig, Strategy, UpstreamTls,
    failover::millis,
    proxy_tls::RawUpstreamTls,
    schema::{RawAffinity, RawService},
    validate::Validator,
};

/// The proxies' cluster that leads to the control plane of their zone: every bootstrap names it so.
pub(crate) const CONTROL_PLANE: &str = "tidegate";

/// Taken off every session's deadline, in microseconds: for the delay until a process notices that
/// its time is over.
const MARGIN_US: u64 = 50_000;

/// The most shards of all cells together.
const SHARDS_MAX: u32 = 65_536;

/// Write authority, and its moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Authority {
    /// The zones that this replica speaks for; empty: it is told otherwise.
    pub zones: Vec<String>,
    /// In microseconds.
    pub terms: Terms,
    pub enforcement: Enforcement,
    /// The keys with which gateways sign the writes that they forward; without them none is
    /// forwarded.
    pub hop_keys: Option<Keys>,
    /// How gateways connect to those of other zones, to forward writes. None: plain text.
    pub forward_tls: Option<UpstreamTls>,
    /// In the order of their shards; never empty.
    pub cells: Vec<CellConfig>,
}

/// A cell as it is configured. Its present owners stand in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct CellConfig {
    pub name: String,
    /// How many shards are its own.
    pub shards: NonZeroU32,
    /// Its first owners: one zone, or several of one region.
    pub owners: Vec<String>,
    /// Where authority goes when the owners fail, in this order.
    pub standby: Vec<String>,
    pub forward: Forward,
    /// Whether it moves without an operator.
    pub automatic: bool,
    /// How long it stays where it is after it has moved by itself.
    pub cool_down: Duration,
}

impl Authority {
    /// The fencing of proxies. `authorities` knows the owners and the epoch of a cell; owners that
    /// the topology does not have are left out, and a cell that it does not know has no owner.
    pub fn fencing(
        &self,
        topology: &Topology,
        authorities: &impl Fn(&str) -> Option<(Vec<String>, u64)>,
    ) -> Result<Fencing, InvalidFencing> {
        let mut first_shard = 0;
        let mut cells = Vec::with_capacity(self.cells.len());
        for cell in &self.cells {
            let (owners, epoch) = authorities(&cell.name).unwrap_or_default();
            cells.push(Cell {
                name: cell.name.clone(),
                first_shard,
                owners: (owners.iter())
                    .filter_map(|owner| topology.zone_named(owner))
                    .collect(),
                epoch,
                forward: cell.forward,
            });
            first_shard = cell.shards.get().saturating_add(first_shard);
        }
        Fencing::new(
            cells,
            NonZeroU32::new(first_shard).unwrap_or(NonZeroU32::MIN),
            self.enforcement,
            self.terms.clone(),
            self.hop_keys.is_some(),
            CONTROL_PLANE.to_owned(),
        )
    }
}

impl ServiceConfig {
    /// The gateways themselves, as a service: where forwarded writes go. No route leads to it, so no policy has it.
    pub(super) fn gateways(tls: Option<UpstreamTls>) -> ServiceConfig {
        ServiceConfig {
            name: GATEWAY_SERVICE.to_owned(),
            protocol: Protocol::Downstream,
            routes: Vec::new(),
            region_missing: Default::default(),
            region_unknown: Default::default(),
            trace_missing: Default::default(),
            weighting: Default::default(),
            failover: Default::default(),
            demands: Vec::new(),
            zone_affinity: None,
            writes: Writes::Free,
            resilience: Resilience::default(),
            tls,
        }
    }

    /// Whether requests reach it by routes of its own.
    pub fn is_routed(&self) -> bool {
        !self.routes.is_empty()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuthority {
    #[serde(default)]
    zones: Vec<Spanned<String>>,
    session_ttl_ms: Option<Spanned<u64>>,
    grant_ttl_ms: Option<Spanned<u64>>,
    write_drain_ms: Option<Spanned<u64>>,
    drift_permille: Option<Spanned<u64>>,
    #[serde(default)]
    enforcement: Enforcement,
    forward_token: Option<Spanned<RawSecrets>>,
    forward_tls: Option<Spanned<RawUpstreamTls>>,
    cells: Option<Spanned<Vec<Spanned<RawCell>>>>,
}

/// One secret, or a list of them. By hand, because an untagged enum would lose the fault and its
/// place.
struct RawSecrets(Vec<String>);

impl<'de> Deserialize<'de> for RawSecrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecretsVisitor;
        impl<'de> Visitor<'de> for SecretsVisitor {
            type Value = RawSecrets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret, or a list of two")
            }

            fn visit_str<E: de::Error>(self, secret: &str) -> Result<RawSecrets, E> {
                Ok(RawSecrets(vec![secret.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<RawSecrets, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(RawSecrets)
            }
        }
        deserializer.deserialize_any(SecretsVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCell {
    name: String,
    #[serde(default = "default_shards")]
    shards: u32,
    owners: Option<Spanned<Vec<String>>>,
    standby: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    forward: Forward,
    #[serde(default)]
    failover: RawMoves,
    #[serde(default = "default_cool_down_s")]
    cool_down_s: f64,
}

impl Default for RawCell {
    fn default() -> Self {
        RawCell {
            name: "main".to_owned(),
            shards: default_shards(),
            owners: None,
            standby: None,
            forward: Forward::default(),
            failover: RawMoves::default(),
            cool_down_s: default_cool_down_s(),
        }
    }
}

fn default_shards() -> u32 {
    1_024
}

fn default_cool_down_s() -> f64 {
    5.0
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawMoves {
    #[default]
    Automatic,
    Manual,
}

impl Validator<'_> {
    pub(super) fn authority(
        &self,
        raw: Option<&Spanned<RawAuthority>>,
        topology: &Topology,
    ) -> Result<Option<Authority>, ConfigError> {
        let Some(at) = raw else {
            return Ok(None);
        };
        let raw = &at.value;
        for (index, zone) in raw.zones.iter().enumerate() {
            let twice = || {
                let mut before = raw.zones.iter().take(index);
                before.any(|other| other.value == zone.value)
            };
            self.zones(topology, std::slice::from_ref(&zone.value))
                .and_then(|()| match twice() {
                    true => Err(stands_twice(&zone.value)),
                    false => Ok(()),
                })
                .map_err(|m| self.error(zone, &format!("authority.zones[{index}]"), m))?;
        }
        let hop_keys = raw.forward_token.as_ref().map(|at| {
            let keys = Keys::new(at.value.0.clone());
            keys.map_err(|error| self.error(at, "authority.forward_token", error))
        });
        let authority = Authority {
            zones: raw.zones.iter().map(|zone| zone.value.clone()).collect(),
            terms: self.terms(at)?,
            enforcement: raw.enforcement,
            hop_keys: hop_keys.transpose()?,
            forward_tls: (raw.forward_tls.as_ref())
                .map(|at| self.upstream_tls("authority.forward_tls", at))
                .transpose()?,
            cells: self.cells(at, topology)?,
        };
        authority
            .fencing(topology, &|_| None)
            .map_err(|error| self.error(at, "authority", error))?;
        Ok(Some(authority))
    }

    fn terms(&self, at: &Spanned<RawAuthority>) -> Result<Terms, ConfigError> {
        let raw = &at.value;
        let within = |raw: &Option<Spanned<u64>>, name: &str, default, min, max| match raw {
            None => Ok(default),
            Some(at) if (min..=max).contains(&at.value) => Ok(at.value),
            Some(at) => {
                let message = format!("{}: {min} to {max} are possible", at.value);
                Err(self.error(at, &format!("authority.{name}"), message))
            }
        };
        let session_ms = within(&raw.session_ttl_ms, "session_ttl_ms", 3_000, 2_000, 60_000)?;
        let grant_ms = within(&raw.grant_ttl_ms, "grant_ttl_ms", 1_500, 200, session_ms)?;
        let drain_ms = within(&raw.write_drain_ms, "write_drain_ms", 1_500, 100, 60_000)?;
        let drift = within(&raw.drift_permille, "drift_permille", 100, 0, 200)?;
        Terms::new(
            session_ms * 1_000,
            grant_ms * 1_000,
            drain_ms * 1_000,
            MARGIN_US,
            // At most 200.
            drift as u16,
        )
        .map_err(|error| self.error(at, "authority", error))
    }

    fn cells(
        &self,
        at: &Spanned<RawAuthority>,
        topology: &Topology,
    ) -> Result<Vec<CellConfig>, ConfigError> {
        let Some(raw) = &at.value.cells else {
            let cell = self.cell(at, "authority.cells[0]", &RawCell::default(), topology)?;
            return Ok(vec![cell]);
        };
        if raw.value.is_empty() {
            let message = "empty: leave it out for one cell `main`";
            return Err(self.error(raw, "authority.cells", message));
        }
        let mut cells: Vec<CellConfig> = Vec::with_capacity(raw.value.len());
        let mut shards = 0_u32;
        for (index, at) in raw.value.iter().enumerate() {
            let field = format!("authority.cells[{index}]");
            let cell = self.cell(at, &field, &at.value, topology)?;
            policy::topology::check_name(&cell.name)
                .map_err(|error| self.error(at, &format!("{field}.name"), error))?;
            if cells.iter().any(|other| other.name == cell.name) {
                let message = format!("the cell {:?} stands twice", cell.name);
                return Err(self.error(at, &format!("{field}.name"), message));
            }
            shards = shards.saturating_add(cell.shards.get());
            if shards > SHARDS_MAX {
                let message = format!("the cells have more than {SHARDS_MAX} shards together");
                return Err(self.error(at, &format!("{field}.shards"), message));
            }
            cells.push(cell);
        }
        if cells.len() > policy::cells::CELLS_MAX {
            let message = format!("{}: at most {}", cells.len(), policy::cells::CELLS_MAX);
            return Err(self.error(raw, "authority.cells", message));
        }
        Ok(cells)
    }

    fn cell<T>(
        &self,
        at: &Spanned<T>,
        field: &str,
        raw: &RawCell,
        topology: &Topology,
    ) -> Result<CellConfig, ConfigError> {
        let part = |name: &str| format!("{field}.{name}");
        let shards = NonZeroU32::new(raw.shards).ok_or_else(|| {
            self.error(
                at,
                &part("shards"),
                "0: a cell has at least one, or is not there",
            )
        })?;
        let names = topology.zones().map(|zone| topology.zone_name(zone));
        let owners = match &raw.owners {
            None => names.clone().take(1).map(str::to_owned).collect(),
            Some(at) => {
                self.owners(topology, &at.value)
                    .map_err(|message| self.error(at, &part("owners"), message))?;
                at.value.clone()
            }
        };
        let standby = match &raw.standby {
            None => nearest_others(topology, &owners),
            Some(at) => {
                let both = || at.value.iter().find(|zone| owners.contains(zone));
                let checked = self.zones(topology, &at.value);
                let checked = checked.and_then(|()| match both() {
                    Some(zone) => Err(format!("{zone:?} is an owner: it cannot stand by as well")),
                    None => Ok(()),
                });
                checked.map_err(|message| self.error(at, &part("standby"), message))?;
                at.value.clone()
            }
        };
        let cool_down_ms = millis("cool_down_s", raw.cool_down_s)
            .map_err(|(name, message)| self.error(at, &part(name), message))?;
        Ok(CellConfig {
            name: raw.name.clone(),
            shards,
            owners,
            standby,
            forward: raw.forward,
            automatic: raw.failover == RawMoves::Automatic,
            cool_down: Duration::from_millis(cool_down_ms),
        })
    }

    /// Whether these may own a cell together.
    fn owners(&self, topology: &Topology, owners: &[String]) -> Result<(), String> {
        self.zones(topology, owners)?;
        let zones = owners.iter().filter_map(|name| topology.zone_named(name));
        let regions: BTreeSet<_> = zones.map(|zone| topology.region_of(zone)).collect();
        match regions.len() {
            0 => Err("empty: name the zone that owns it at first".to_owned()),
            1 => Ok(()),
            _ => Err(format!("{owners:?} are not of one region")),
        }
    }

    /// Whether all of these exist, and none stands twice.
    fn zones(&self, topology: &Topology, names: &[String]) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for name in names {
            if topology.zone_named(name).is_none() {
                return Err(format!("there is no zone {name:?}"));
            }
            if !seen.insert(name) {
                return Err(stands_twice(name));
            }
        }
        Ok(())
    }

    /// The admission of a service's writes, with an authority or without one.
    pub(super) fn writes(
        &self,
        raw: &RawService,
        at: &Spanned<RawService>,
        resilience: &Resilience,
        has_authority: bool,
        field: impl Fn(&str) -> String,
    ) -> Result<Writes, ConfigError> {
        if let Some(at) = raw.fenced.as_ref().filter(|at| at.value && !has_authority) {
            let message =
                "nothing can be fenced without `authority`: add that section, or leave this out";
            return Err(self.error(at, &field("fenced"), message));
        }
        if has_authority && raw.name == GATEWAY_SERVICE {
            let message = "with `authority` this name is the gateways' own: choose another";
            return Err(self.error(at, &field("name"), message));
        }
        let fenced = has_authority && raw.fenced.as_ref().is_none_or(|at| at.value);
        match (&raw.cell_key, fenced) {
            (Some(at), false) => {
                let message = "only fenced writes belong to cells: add `authority`, and leave out `fenced: false`";
                Err(self.error(at, &field("cell_key"), message))
            }
            (None, false) => Ok(Writes::Free),
            (key, true) => {
                let hashed = matches!(resilience.strategy, Strategy::RegionFirstHash { .. });
                if let Some(at) = raw.strategy.as_ref().filter(|_| hashed) {
                    let message = "region_first_hash and sessions do not go with fenced writes: set `fenced: false`, or use the weighted strategy";
                    return Err(self.error(at, &field("strategy"), message));
                }
                let key = key.as_ref();
                Ok(Writes::Fenced {
                    key: key.map(|at: &Spanned<RawAffinity>| at.value.source()),
                })
            }
        }
    }
}

fn stands_twice(zone: &str) -> String {
    format!("the zone {zone:?} stands twice")
}

/// All zones but the owners, those first that are nearest to the first owner.
fn nearest_others(topology: &Topology, owners: &[String]) -> Vec<String> {
    let first = owners.first().and_then(|name| topology.zone_named(name));
    let mut others: Vec<_> = topology
        .zones()
        .filter(|zone| !owners.iter().any(|name| name == topology.zone_name(*zone)))
        .collect();
    // Stable: of equals the first configured comes first.
    others.sort_by_key(|zone| {
        first.map(|first| {
            // Links are up to a minute long, so the cast cuts only the fraction.
            let rtt_us = (topology.link(first, *zone).rtt_ms * 1e3) as u64;
            (topology.tier(first, *zone), rtt_us)
        })
    });
    let names = others.into_iter().map(|zone| topology.zone_name(zone));
    names.map(str::to_owned).collect()
}
