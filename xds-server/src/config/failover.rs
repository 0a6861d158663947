//! When zones go out and come back, the demands of homes, and the limits of plausible change.

use std::collections::BTreeMap;

use policy::{Demand, Failback, Failover, Thresholds, Topology, standing::RAMP_STEPS_MAX};
use serde::Deserialize;

/// The longest time that may be configured: a year, in seconds.
const SECONDS_MAX: f64 = 31_536_000.0;

/// The most requests per second that may be configured.
const RPS_MAX: f64 = 1e12;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFailover {
    hold_s: f64,
    hold_max_s: f64,
    calm_s: f64,
    failback: RawFailback,
    ramp: RawRamp,
    damping_s: f64,
}

impl Default for RawFailover {
    fn default() -> Self {
        RawFailover {
            hold_s: 30.0,
            hold_max_s: 600.0,
            calm_s: 600.0,
            failback: RawFailback::Ramp,
            ramp: RawRamp::default(),
            damping_s: 10.0,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawFailback {
    Manual,
    Ramp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRamp {
    percent: Vec<f64>,
    over_s: f64,
    /// While all zones of a region come back at once, reads beyond their steps go to other regions.
    leaves_region: bool,
}

impl Default for RawRamp {
    fn default() -> Self {
        RawRamp {
            percent: vec![1.0, 10.0, 50.0, 100.0],
            over_s: 60.0,
            leaves_region: false,
        }
    }
}

impl RawFailover {
    /// The rules, or a field and its fault.
    pub(super) fn read(&self, thresholds: Thresholds) -> Result<Failover, (&'static str, String)> {
        let failover = Failover {
            thresholds,
            hold_ms: millis("hold_s", self.hold_s)?,
            hold_max_ms: millis("hold_max_s", self.hold_max_s)?,
            calm_ms: millis("calm_s", self.calm_s)?,
            failback: match self.failback {
                RawFailback::Manual => Failback::Manual,
                RawFailback::Ramp => self.ramp.read()?,
            },
            ramp_leaves_region: self.ramp.leaves_region,
            damping_ms: millis("damping_s", self.damping_s)?,
        };
        if failover.hold_max_ms < failover.hold_ms {
            let message = format!("{} is less than hold_s {}", self.hold_max_s, self.hold_s);
            return Err(("hold_max_s", message));
        }
        Ok(failover)
    }
}

impl RawRamp {
    fn read(&self) -> Result<Failback, (&'static str, String)> {
        let over_ms = millis("ramp.over_s", self.over_s)?;
        let in_order = self.percent.iter().zip(self.percent.iter().skip(1));
        let rising = in_order.into_iter().all(|(a, b)| a < b);
        let possible = self.percent.iter().all(|p| (0.1..=100.0).contains(p));
        if !rising || !possible || self.percent.len() > RAMP_STEPS_MAX {
            let message = format!(
                "{:?}: at most {RAMP_STEPS_MAX} rising numbers from 0.1 to 100, like [1, 10, 50, 100]",
                self.percent
            );
            return Err(("ramp.percent", message));
        }
        let below_all = self.percent.iter().filter(|percent| **percent < 100.0);
        // At most 1,000, and only the fraction of a per mille is cut.
        let steps: Vec<u16> = below_all.map(|percent| (percent * 10.0) as u16).collect();
        Ok(Failback::Ramp {
            step_ms: over_ms / steps.len().max(1) as u64,
            steps,
        })
    }
}

/// Milliseconds, or the field and its fault.
pub(super) fn millis(field: &'static str, seconds: f64) -> Result<u64, (&'static str, String)> {
    match (0.0..=SECONDS_MAX).contains(&seconds) {
        // In range, so the cast cuts only the fraction of a millisecond.
        true => Ok((seconds * 1_000.0) as u64),
        false => Err((
            field,
            format!("{seconds}: 0 to {SECONDS_MAX} seconds are possible"),
        )),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct RawDemand {
    reads: f64,
    writes: f64,
}

/// The demands by zone of `topology`, or the fault.
pub(super) fn demands(
    raw: &BTreeMap<String, RawDemand>,
    topology: &Topology,
) -> Result<Vec<Demand>, String> {
    let mut demands = vec![Demand::default(); topology.zones().len()];
    for (name, demand) in raw {
        let zone = topology.zone_named(name);
        let slot = zone.and_then(|zone| demands.get_mut(zone.index()));
        let slot = slot.ok_or_else(|| format!("there is no zone {name:?}"))?;
        for rps in [demand.reads, demand.writes] {
            if !(0.0..=RPS_MAX).contains(&rps) {
                return Err(format!("{name}: {rps}: a number of at least 0"));
            }
        }
        *slot = Demand {
            reads: demand.reads,
            writes: demand.writes,
        };
    }
    Ok(demands)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGuard {
    #[serde(default = "half")]
    pub(super) vanish_percent: u8,
    pub(super) loopback_instances: Option<bool>,
}

pub(super) fn half() -> u8 {
    50
}
