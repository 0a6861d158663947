//! From counts of instances to the state of a service in a zone.

/// The instances of a service in one zone, by health. Draining instances count in neither: they are leaving on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceCounts {
    pub healthy: u32,
    pub unhealthy: u32,
}

/// When a zone counts as down for a service and when as up again, in percent of healthy instances.
///
/// Between the two the zone stays what it was, so that a share that trembles around one limit moves no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    down_below_percent: u8,
    up_from_percent: u8,
}

/// Thresholds that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "down_below_percent {down} and up_from_percent {up}: both are 1 to 100, and down is at most up"
)]
pub struct InvalidThresholds {
    pub down: u8,
    pub up: u8,
}

impl Default for Thresholds {
    /// Down below 30 %, up from 60 %.
    fn default() -> Self {
        Thresholds {
            down_below_percent: 30,
            up_from_percent: 60,
        }
    }
}

impl Thresholds {
    /// `down` and `up` in percent.
    pub fn new(down: u8, up: u8) -> Result<Self, InvalidThresholds> {
        if down == 0 || down > up || up > 100 {
            return Err(InvalidThresholds { down, up });
        }
        Ok(Thresholds {
            down_below_percent: down,
            up_from_percent: up,
        })
    }
}

/// What a zone can do for a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZoneState {
    /// Enough healthy instances.
    Up,
    /// Some healthy instances, too few: used only where nothing better is left.
    Down,
    /// No healthy instance.
    #[default]
    Empty,
}

impl ZoneState {
    /// The state after `counts`, coming from `self`.
    pub fn next(self, counts: InstanceCounts, thresholds: Thresholds) -> ZoneState {
        let total = u64::from(counts.healthy) + u64::from(counts.unhealthy);
        if counts.healthy == 0 {
            return ZoneState::Empty;
        }
        let share_percent = u64::from(counts.healthy) * 100 / total;
        let limit = match self {
            ZoneState::Up => thresholds.down_below_percent,
            ZoneState::Down => thresholds.up_from_percent,
            // The first instances of a zone come one by one: a new zone is up as soon as it would not go down.
            ZoneState::Empty => thresholds.down_below_percent,
        };
        if share_percent >= u64::from(limit) {
            ZoneState::Up
        } else {
            ZoneState::Down
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(from: ZoneState, healthy: u32, unhealthy: u32, expected: ZoneState) {
        let counts = InstanceCounts { healthy, unhealthy };
        assert_eq!(from.next(counts, Thresholds::default()), expected);
    }

    #[test]
    fn a_zone_goes_down_below_30_percent_and_up_from_60() {
        use ZoneState::{Down, Empty, Up};
        check(Up, 3, 7, Up);
        check(Up, 29, 71, Down);
        check(Down, 59, 41, Down);
        check(Down, 6, 4, Up);
        check(Empty, 3, 7, Up);
        check(Empty, 2, 8, Down);
        check(Up, 0, 5, Empty);
        check(Up, 0, 0, Empty);
        check(Empty, u32::MAX, u32::MAX, Up);
    }

    #[test]
    fn contradicting_thresholds_are_refused() {
        assert!(Thresholds::new(30, 60).is_ok());
        assert!(Thresholds::new(0, 60).is_err());
        assert!(Thresholds::new(61, 60).is_err());
        assert!(Thresholds::new(30, 101).is_err());
    }
}
