//! The inputs of a plan: zone loads and demands.

use crate::{class::Class, health::ZoneState, standing::SHARE_FULL};

/// The state of a service in one zone, as a plan needs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZoneLoad {
    pub state: ZoneState,
    /// Its part of its full share, of [`SHARE_FULL`]: less while it is on a ramp.
    pub share: u16,
    /// Mean of the instances' load per core; 0 if none reports it.
    pub load1_per_core: f64,
    /// The requests per second that it can serve; infinite if unknown.
    pub capacity: f64,
    /// An operator has drained it, so it is [`ZoneState::Empty`].
    pub drained: bool,
    /// While its whole region is on a ramp, reads beyond its share go to other regions first.
    pub leaves_region: bool,
}

impl Default for ZoneLoad {
    /// A zone without instances.
    fn default() -> Self {
        ZoneLoad {
            state: ZoneState::Empty,
            share: SHARE_FULL,
            load1_per_core: 0.0,
            capacity: f64::INFINITY,
            drained: false,
            leaves_region: false,
        }
    }
}

/// Requests per second whose home is a zone; 0 if unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    pub reads: f64,
    pub writes: f64,
}

impl Demand {
    pub(crate) fn of(self, class: Class) -> f64 {
        match class {
            Class::Read => self.reads,
            Class::Write => self.writes,
        }
    }
}
