//! The source of zones' shares: the operator's weights or computed scores.

use crate::topology::Link;

/// The source of the shares inside a region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighting {
    /// The operator's shares, for example 80 for the home zone and 20 for the rest of its region,
    /// which the other zones that are up share equally. Any scale.
    Operator { zone: u32, region: u32 },
    /// Computed scores: see [`score`].
    Computed,
}

impl Default for Weighting {
    /// Everything stays in the home zone while it can serve.
    fn default() -> Self {
        Weighting::Operator { zone: 1, region: 0 }
    }
}

/// The computed score of a zone: `1/(rtt_ms+1) * (1-overload) / cost` with `overload =
/// clamp(load1_per_core - 0.8, 0, 1)`.
///
/// An overloaded zone keeps a hundredth of its score: it is healthy, and a score of 0 would starve
/// it forever.
pub fn score(link: Link, load1_per_core: f64) -> f64 {
    let overload = (load1_per_core - 0.8).clamp(0.0, 1.0);
    // NaN is ignored.
    let headroom = if overload.is_nan() {
        1.0
    } else {
        (1.0 - overload).max(0.01)
    };
    headroom / (link.rtt_ms + 1.0) / link.cost
}
