//! Whether a zone serves a service: out at once, back with care.
//!
//! A zone goes out as soon as too few of its instances are healthy. It comes back when enough of
//! them have been healthy for a hold time, which grows with every flap: then either an operator
//! readmits it, or it returns step by step. All replicas must agree on the [`ZoneStanding`], a
//! small record that they share; the observations and waits of one replica are its [`ZoneMachine`].
//! The replica whose wait ends first proposes the next standing, and all adopt the one that was
//! written.
//!
//! Time is a parameter: milliseconds of any monotonic clock.

use alloc::vec::Vec;

use crate::health::{InstanceCounts, Thresholds, ZoneState};

/// A full share: shares are per mille.
pub const SHARE_FULL: u16 = 1_000;

/// The most steps of a ramp.
pub const RAMP_STEPS_MAX: usize = 32;

/// The number of steps of a zone's overload; finer differences move no weight.
pub const LOAD_STEPS: u8 = 10;

/// How far, in steps, the load must move before another step counts: more than half, so that noise
/// between two steps causes no oscillation.
const LOAD_STEP_SLACK: f64 = 0.75;

/// The agreement of the replicas about a service in a zone. The default is for a zone without a
/// record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneStanding {
    pub phase: Phase,
    /// How many times it went out without a calm period in between.
    pub flaps: u8,
    /// The overload by which weights are computed, 0 to [`LOAD_STEPS`].
    pub load_step: u8,
}

/// The phase of a zone between in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It serves its full share, if it has healthy instances.
    #[default]
    In,
    /// It went down, and has not been healthy for long enough yet, or waits for an operator.
    Out,
    /// On its way back: the position in [`Failback::Ramp`]'s steps.
    Returning { step: u8 },
}

/// How a zone comes back after it was out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failback {
    /// When an operator readmits it.
    Manual,
    /// Automatically: each share (per mille, below [`SHARE_FULL`]) for `step_ms`, then the full
    /// one. Without steps, the full share at once.
    Ramp { steps: Vec<u16>, step_ms: u64 },
}

/// When a zone goes out for a service, and how it comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    pub thresholds: Thresholds,
    /// The first hold: how long enough instances must be healthy before the zone comes back.
    pub hold_ms: u64,
    /// The upper bound of the hold, which doubles with every flap.
    pub hold_max_ms: u64,
    /// After this time in, a zone's flaps are forgotten.
    pub calm_ms: u64,
    pub failback: Failback,
    /// While all zones of a region come back at once, reads beyond their steps go to other regions.
    pub ramp_leaves_region: bool,
    /// How long the load must differ before the weights follow it.
    pub damping_ms: u64,
}

impl Default for Failover {
    /// Back after 30 s, at the most 10 minutes when it flaps; 1 %, 10 % and 50 % for 20 s each.
    fn default() -> Self {
        Failover {
            thresholds: Thresholds::default(),
            hold_ms: 30_000,
            hold_max_ms: 600_000,
            calm_ms: 600_000,
            failback: Failback::Ramp {
                steps: [10, 100, 500].into(),
                step_ms: 20_000,
            },
            ramp_leaves_region: false,
            damping_ms: 10_000,
        }
    }
}

impl Failover {
    /// The hold of a zone that has gone out `flaps` times.
    pub fn hold_ms(&self, flaps: u8) -> u64 {
        let doublings = u32::from(flaps.saturating_sub(1)).min(63);
        self.hold_ms
            .saturating_mul(1 << doublings)
            .min(self.hold_max_ms.max(self.hold_ms))
    }

    /// The next phase of a zone that may come back.
    pub fn first_step(&self) -> Phase {
        match &self.failback {
            Failback::Ramp { steps, .. } if !steps.is_empty() => Phase::Returning { step: 0 },
            _ => Phase::In,
        }
    }
}

/// An operator's directive for a zone, regardless of its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum ZoneDirective {
    /// It gets no requests. When the drain ends, the zone comes back as [`Failback`] says, without
    /// a hold. With a manual failback it comes back at once, since an operator has just ended the
    /// drain.
    Drain,
    /// It serves its full share while it has a healthy instance.
    Pin,
}

/// An observation of a zone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    pub counts: InstanceCounts,
    /// The load to follow; none keeps the standing's load.
    pub load: Option<f64>,
    pub directive: Option<ZoneDirective>,
}

/// The result of an observation: the share that a zone may have now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneAssessment {
    pub state: ZoneState,
    /// Its part of its full share, of [`SHARE_FULL`]; at least 1.
    pub share: u16,
    pub why: Why,
    /// When to observe again even if nothing changes.
    pub again_at_ms: Option<u64>,
}

/// Why a zone has its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Healthy,
    NoHealthyInstance,
    /// Too few of its instances are healthy.
    Unhealthy,
    /// Healthy again, and held until this time.
    Holding {
        until_ms: u64,
    },
    /// Healthy again, and waiting for an operator.
    AwaitingOperator,
    Returning {
        step: u8,
    },
    Drained,
    Pinned,
}

impl Why {
    /// A short stable name, for metrics and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::Healthy => "healthy",
            Why::NoHealthyInstance => "no_healthy_instance",
            Why::Unhealthy => "unhealthy",
            Why::Holding { .. } => "holding",
            Why::AwaitingOperator => "awaiting_operator",
            Why::Returning { .. } => "returning",
            Why::Drained => "drained",
            Why::Pinned => "pinned",
        }
    }
}

/// One replica's view of a service in a zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneMachine {
    standing: ZoneStanding,
    /// When the present phase was first seen here.
    phase_since_ms: u64,
    /// Since when enough instances have been healthy without interruption.
    well_since_ms: Option<u64>,
    /// Since when the load has differed from the standing's step without interruption.
    off_since_ms: Option<u64>,
    /// It was once healthy enough to serve: only such a zone can go out. A new zone, whose
    /// instances start one by one and are not healthy at first, is not held.
    served: bool,
    /// It could not serve at the last observation: a step of its ramp begins when it can.
    stopped: bool,
    /// It was pinned at the last observation, and could not serve: its going out is the operator's
    /// doing, and no flap.
    pinned_down: bool,
}

impl ZoneMachine {
    /// The standing that the replicas agree on, or the one that this replica proposes next.
    pub fn standing(&self) -> ZoneStanding {
        self.standing
    }

    /// Adopts the standing that was written, and discards this replica's own proposal.
    pub fn adopt(&mut self, standing: ZoneStanding, now_ms: u64) {
        if standing.phase != self.standing.phase {
            self.phase_since_ms = now_ms;
        }
        self.standing = standing;
    }

    /// Handles an observation at `now_ms`.
    pub fn observe(&mut self, observed: Observed, rules: &Failover, now_ms: u64) -> ZoneAssessment {
        let counts = observed.counts;
        let well = counts.at_least(rules.thresholds.up_from_percent());
        self.well_since_ms = well.then(|| self.well_since_ms.unwrap_or(now_ms));
        let load_due = self.follow_load(observed.load, rules, now_ms);
        let (mut why, phase_due) = match observed.directive {
            Some(ZoneDirective::Drain) => {
                self.served = false;
                self.stopped = true;
                self.pinned_down = false;
                self.enter(rules.first_step(), now_ms);
                (Why::Drained, None)
            }
            Some(ZoneDirective::Pin) => {
                self.served = true;
                self.pinned_down = !counts.at_least(rules.thresholds.down_below_percent());
                self.enter(Phase::In, now_ms);
                (Why::Pinned, self.forgive(rules, now_ms))
            }
            None => self.advance(counts, rules, now_ms),
        };
        if counts.healthy == 0 && why != Why::Drained {
            why = Why::NoHealthyInstance;
        }
        let (state, share) = match why {
            Why::Drained | Why::NoHealthyInstance => (ZoneState::Empty, SHARE_FULL),
            Why::Unhealthy | Why::Holding { .. } | Why::AwaitingOperator => {
                (ZoneState::Down, SHARE_FULL)
            }
            Why::Healthy | Why::Pinned => (ZoneState::Up, SHARE_FULL),
            Why::Returning { step } => (ZoneState::Up, rules.share_of(step)),
        };
        ZoneAssessment {
            state,
            share,
            why,
            again_at_ms: [load_due, phase_due].into_iter().flatten().min(),
        }
    }

    fn enter(&mut self, phase: Phase, now_ms: u64) {
        if self.standing.phase != phase {
            self.standing.phase = phase;
            self.phase_since_ms = now_ms;
        }
    }

    fn advance(
        &mut self,
        counts: InstanceCounts,
        rules: &Failover,
        now_ms: u64,
    ) -> (Why, Option<u64>) {
        let serves = counts.at_least(rules.thresholds.down_below_percent());
        let pinned_down = core::mem::take(&mut self.pinned_down);
        if self.standing.phase != Phase::Out {
            if !serves && self.served {
                self.served = false;
                if !pinned_down {
                    self.standing.flaps = self.standing.flaps.saturating_add(1);
                }
                self.enter(Phase::Out, now_ms);
            } else if !serves {
                self.stopped = true;
                return (Why::Unhealthy, None);
            }
        }
        if core::mem::take(&mut self.stopped) {
            self.phase_since_ms = now_ms;
        }
        // A phase without a duration ends at once: at most all steps of a ramp in one observation.
        for _ in 0..=RAMP_STEPS_MAX + 1 {
            let since_ms = self.phase_since_ms;
            match self.standing.phase {
                Phase::In => {
                    self.served = true;
                    return (Why::Healthy, self.forgive(rules, now_ms));
                }
                Phase::Out => {
                    let Some(well_since_ms) = self.well_since_ms else {
                        return (Why::Unhealthy, None);
                    };
                    let until_ms = well_since_ms
                        .max(since_ms)
                        .saturating_add(rules.hold_ms(self.standing.flaps));
                    if now_ms < until_ms {
                        return (Why::Holding { until_ms }, Some(until_ms));
                    }
                    if rules.failback == Failback::Manual {
                        return (Why::AwaitingOperator, None);
                    }
                    self.enter(rules.first_step(), now_ms);
                }
                Phase::Returning { step } => {
                    self.served = true;
                    let Failback::Ramp { steps, step_ms } = &rules.failback else {
                        // The failback was changed to manual during the return: an operator, or the
                        // ramp, has readmitted the zone.
                        self.enter(Phase::In, now_ms);
                        continue;
                    };
                    let until_ms = since_ms.saturating_add(*step_ms);
                    if usize::from(step) < steps.len() && now_ms < until_ms {
                        return (Why::Returning { step }, Some(until_ms));
                    }
                    let next = step.saturating_add(1);
                    let next = match usize::from(next) < steps.len() {
                        true => Phase::Returning { step: next },
                        false => Phase::In,
                    };
                    self.enter(next, now_ms);
                }
            }
        }
        // Unreachable with a ramp of at most RAMP_STEPS_MAX steps.
        (Why::Healthy, Some(now_ms))
    }

    fn forgive(&mut self, rules: &Failover, now_ms: u64) -> Option<u64> {
        if self.standing.flaps == 0 {
            return None;
        }
        let calm_at_ms = self.phase_since_ms.saturating_add(rules.calm_ms);
        if now_ms < calm_at_ms {
            return Some(calm_at_ms);
        }
        self.standing.flaps = 0;
        None
    }

    fn follow_load(&mut self, load: Option<f64>, rules: &Failover, now_ms: u64) -> Option<u64> {
        let off = load.map(load_steps).filter(|steps| {
            let step = f64::from(self.standing.load_step);
            (steps - step).max(step - steps) > LOAD_STEP_SLACK
        });
        let Some(steps) = off else {
            self.off_since_ms = None;
            return None;
        };
        let since_ms = *self.off_since_ms.get_or_insert(now_ms);
        let due_ms = since_ms.saturating_add(rules.damping_ms);
        if now_ms < due_ms {
            return Some(due_ms);
        }
        self.off_since_ms = None;
        // Between 0 and LOAD_STEPS, so the cast drops only the fraction.
        self.standing.load_step = (steps + 0.5) as u8;
        None
    }
}

impl Failover {
    fn share_of(&self, step: u8) -> u16 {
        match &self.failback {
            Failback::Ramp { steps, .. } => steps
                .get(usize::from(step))
                .map_or(SHARE_FULL, |share| (*share).clamp(1, SHARE_FULL)),
            Failback::Manual => SHARE_FULL,
        }
    }
}

/// The overload of a load per core (see [`score`](crate::weighting::score)), in steps.
fn load_steps(load: f64) -> f64 {
    let overload = (load - 0.8).clamp(0.0, 1.0);
    // NaN is ignored.
    if overload.is_nan() {
        0.0
    } else {
        overload * f64::from(LOAD_STEPS)
    }
}

impl ZoneStanding {
    /// The load per core from which weights are computed.
    pub fn load(&self) -> f64 {
        match self.load_step {
            0 => 0.0,
            step => 0.8 + f64::from(step) / f64::from(LOAD_STEPS),
        }
    }
}
