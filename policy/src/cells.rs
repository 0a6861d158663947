//! Cells as the proxies of one local zone know them: the cell of a write, its owners, and the
//! treatment of writes elsewhere.
//!
//! This state was pushed to the proxy and may be stale. Only a grant ([`fence`](crate::fence))
//! permits a zone to write. The state here says where to forward a write, and explains rejections.

use alloc::{string::String, vec::Vec};
use core::num::NonZeroU32;

use crate::{
    fence::{EPOCH_MAX, Terms},
    shard,
    tier::Tier,
    topology::{Topology, ZoneId, check_name},
};

/// A cell of one [`Fencing`]; meaningless in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId(u32);

impl CellId {
    /// The position in [`Fencing::cells`], from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The unit of write authority: a range of shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub name: String,
    /// The first shard. The range ends before the first shard of the next cell.
    pub first_shard: u32,
    /// The zones that may write; empty while they are unknown.
    pub owners: Vec<ZoneId>,
    pub epoch: u64,
    /// The treatment of a write that arrives in another zone.
    pub forward: Forward,
}

/// How far a write may be forwarded to the zone that owns its cell. The owner's gateway always
/// checks the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Forward {
    Never,
    /// Within the region.
    #[default]
    Region,
    Any,
}

/// Whether writes without permission are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Enforcement {
    #[default]
    Enforce,
    /// Violations are counted and admitted, to show the rejections of an enforced fence. This mode
    /// does not fence.
    Observe,
}

/// The write fence of one local zone: valid by construction.
#[derive(Clone, Debug, PartialEq)]
pub struct Fencing {
    cells: Vec<Cell>,
    shards: NonZeroU32,
    pub enforcement: Enforcement,
    /// In microseconds.
    pub terms: Terms,
    /// Whether gateways sign hops, so that other gateways accept them; if not, no write is
    /// forwarded. The keys are not part of the policy: proxies show their policy to everyone who
    /// may read their configuration.
    pub forwarding: bool,
    /// The proxy's cluster for the control plane of its zone.
    pub control_plane: String,
}

/// Why cells were rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFencing {
    #[error("there is no cell")]
    NoCell,
    #[error(
        "cell {0:?}: use up to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit"
    )]
    Name(String),
    #[error("cell {0:?} stands twice")]
    Duplicate(String),
    #[error(
        "the cells' shards have gaps, or are out of order: cell {0:?} does not begin where the previous one ends"
    )]
    Gap(String),
    #[error("cell {cell:?} begins at shard {first}, and there are {shards}")]
    BeyondShards {
        cell: String,
        first: u32,
        shards: u32,
    },
    #[error("cell {cell:?} has epoch {epoch}: the highest one is {EPOCH_MAX}")]
    Epoch { cell: String, epoch: u64 },
    #[error("no cluster leads to the control plane")]
    ControlPlane,
}

/// The most cells of a mesh: every worker of every proxy polls each of them.
pub const CELLS_MAX: usize = 64;

impl Fencing {
    /// Checks cells, which must be in the order of their shards.
    ///
    /// # Errors
    ///
    /// [`InvalidFencing`] names the first fault: no cell, a bad or repeated name, an epoch or a
    /// first shard that is too high, shards with a gap or out of order, or no cluster of the
    /// control plane.
    pub fn new(
        cells: Vec<Cell>,
        shards: NonZeroU32,
        enforcement: Enforcement,
        terms: Terms,
        forwarding: bool,
        control_plane: String,
    ) -> Result<Fencing, InvalidFencing> {
        let first = cells.first().ok_or(InvalidFencing::NoCell)?;
        if first.first_shard != 0 {
            return Err(InvalidFencing::Gap(first.name.clone()));
        }
        let mut names = alloc::collections::BTreeSet::new();
        for cell in &cells {
            check_name(&cell.name).map_err(|_| InvalidFencing::Name(cell.name.clone()))?;
            if !names.insert(&cell.name) {
                return Err(InvalidFencing::Duplicate(cell.name.clone()));
            }
            if cell.epoch > EPOCH_MAX {
                return Err(InvalidFencing::Epoch {
                    cell: cell.name.clone(),
                    epoch: cell.epoch,
                });
            }
            if cell.first_shard >= shards.get() {
                return Err(InvalidFencing::BeyondShards {
                    cell: cell.name.clone(),
                    first: cell.first_shard,
                    shards: shards.get(),
                });
            }
        }
        let in_order = |(a, b): (&Cell, &Cell)| a.first_shard < b.first_shard;
        let mut pairs = cells.iter().zip(cells.iter().skip(1));
        if let Some((_, b)) = pairs.find(|pair| !in_order(*pair)) {
            return Err(InvalidFencing::Gap(b.name.clone()));
        }
        if control_plane.is_empty() {
            return Err(InvalidFencing::ControlPlane);
        }
        Ok(Fencing {
            cells,
            shards,
            enforcement,
            terms,
            forwarding,
            control_plane,
        })
    }

    /// In the order of their shards; never empty.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    pub fn shards(&self) -> NonZeroU32 {
        self.shards
    }

    /// None for a cell of another fencing.
    pub fn cell(&self, id: CellId) -> Option<&Cell> {
        self.cells.get(id.index())
    }

    /// The cell of a write with this key, by jump hash of the key's digest. A write without a key
    /// belongs to the cell of the empty key.
    pub fn cell_of(&self, key_digest: Option<u64>) -> CellId {
        if self.cells.len() <= 1 {
            return CellId(0);
        }
        let digest = key_digest.unwrap_or_else(|| shard::key_digest(b""));
        let shard = shard::jump_hash(digest, self.shards.get());
        let after = self.cells.partition_point(|cell| cell.first_shard <= shard);
        // The first cell begins at shard 0, so there always is one.
        CellId(after.saturating_sub(1) as u32)
    }

    /// The nearest owner: the target of a write that `viewer` may not admit.
    pub fn nearest_owner(topology: &Topology, cell: &Cell, viewer: ZoneId) -> Option<ZoneId> {
        let others = cell.owners.iter().copied().filter(|zone| *zone != viewer);
        others.min_by_key(|zone| {
            let rtt_us = (topology.link(viewer, *zone).rtt_ms * 1e3) as u64;
            (topology.tier(viewer, *zone), rtt_us)
        })
    }

    /// Whether a write of this cell may be forwarded from `viewer` to `owner`.
    pub fn may_forward(
        &self,
        topology: &Topology,
        cell: &Cell,
        viewer: ZoneId,
        owner: ZoneId,
    ) -> bool {
        self.forwarding
            && match cell.forward {
                Forward::Never => false,
                Forward::Region => topology.tier(viewer, owner) != Tier::Remote,
                Forward::Any => true,
            }
    }
}
