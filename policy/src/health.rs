//! From counts of instances to the state of a service in a zone.

/// The instances of a service in one zone, by health. Draining instances are not counted: they
/// leave on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceCounts {
    pub healthy: u32,
    pub unhealthy: u32,
}

impl InstanceCounts {
    /// Whether at least `percent` (from 1) of the instances are healthy; false without a healthy
    /// instance.
    pub fn at_least(self, percent: u8) -> bool {
        let healthy = u64::from(self.healthy);
        let total = healthy + u64::from(self.unhealthy);
        healthy > 0 && healthy * 100 >= total * u64::from(percent)
    }
}

/// When a zone counts as down for a service and when as up again, in percent of healthy instances.
///
/// Between the two limits the zone keeps its state, so that a share that oscillates around one
/// limit moves no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    down_below_percent: u8,
    up_from_percent: u8,
}

/// Thresholds that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "down_below_percent {down} and up_from_percent {up}: both must be 1 to 100, and down at most up"
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
    ///
    /// # Errors
    ///
    /// [`InvalidThresholds`] unless both are 1 to 100 and `down` is at most `up`.
    pub fn new(down: u8, up: u8) -> Result<Self, InvalidThresholds> {
        if down == 0 || down > up || up > 100 {
            return Err(InvalidThresholds { down, up });
        }
        Ok(Thresholds {
            down_below_percent: down,
            up_from_percent: up,
        })
    }

    pub fn down_below_percent(self) -> u8 {
        self.down_below_percent
    }

    pub fn up_from_percent(self) -> u8 {
        self.up_from_percent
    }
}

/// The ability of a zone to serve a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZoneState {
    /// Serves requests.
    Up,
    /// Has some healthy instances, but too few, or not for long enough: used only as a last resort.
    Down,
    /// No healthy instance, or drained: never used.
    #[default]
    Empty,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(healthy: u32, unhealthy: u32, percent: u8, expected: bool) {
        let counts = InstanceCounts { healthy, unhealthy };
        assert_eq!(counts.at_least(percent), expected, "{counts:?}");
    }

    #[test]
    fn shares_are_exact_at_their_limits() {
        check(3, 7, 30, true);
        check(29, 71, 30, false);
        check(2, 4, 33, true);
        check(2, 4, 34, false);
        check(0, 0, 1, false);
        check(0, 5, 1, false);
        check(1, 0, 100, true);
        check(u32::MAX, u32::MAX, 50, true);
        check(u32::MAX, u32::MAX, 51, false);
    }

    #[test]
    fn contradicting_thresholds_are_refused() {
        assert!(Thresholds::new(30, 60).is_ok());
        assert!(Thresholds::new(0, 60).is_err());
        assert!(Thresholds::new(61, 60).is_err());
        assert!(Thresholds::new(30, 101).is_err());
    }
}
