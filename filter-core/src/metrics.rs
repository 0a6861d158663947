//! The metrics, their names, and the proxy's ids of them.

use std::cell::Cell;

use policy::{Class, Reason, Tier};

/// A metric. The proxy puts `wasmcustom.` before its name; the bootstraps' `stats_tags` turn the
/// parts of a decision's name into labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Counter: requests decided.
    Decision {
        tier: Option<Tier>,
        class: Class,
        reason: Reason,
    },
    /// Counter: internal headers that came from outside and were removed, each name once per
    /// request.
    SpoofedHeaders,
    /// Counter: configurations that were refused.
    PolicyRejected,
    /// Gauge: the version of the policy applied last; 0 for none.
    PolicyVersion,
    /// Gauge: its generation.
    PolicyGeneration,
    /// Counter: permissions to write that were installed.
    GrantsInstalled,
    /// Counter: permissions to write that were taken back, each as often as that was said.
    FenceRevocations,
    /// Counter: how often a worker gave up what it held, because time had passed that its clock
    /// does not know of.
    ClockAnomalies,
    /// Counter: streams to the control plane that ended or did not answer.
    StreamResets,
    /// Gauge: the cells for which this process may admit writes.
    FenceHolding,
    /// Gauge: 1 while no grants are given because the policy is of other terms than those that are
    /// agreed on.
    FenceWithheld,
}

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

const TIERS: usize = Tier::ALL.len() + 1; // and none
const DECISIONS: usize = TIERS * Class::ALL.len() * Reason::ALL.len();
/// The number of metrics.
pub const METRICS: usize = DECISIONS + 10;

impl Metric {
    pub fn kind(self) -> Kind {
        match self {
            Metric::Decision { .. }
            | Metric::SpoofedHeaders
            | Metric::PolicyRejected
            | Metric::GrantsInstalled
            | Metric::FenceRevocations
            | Metric::ClockAnomalies
            | Metric::StreamResets => Kind::Counter,
            Metric::PolicyVersion
            | Metric::PolicyGeneration
            | Metric::FenceHolding
            | Metric::FenceWithheld => Kind::Gauge,
        }
    }

    pub fn name(self) -> String {
        match self {
            Metric::Decision {
                tier,
                class,
                reason,
            } => format!(
                "tidegate.decisions.tier.{}.class.{}.reason.{}",
                tier.map_or("none", Tier::as_str),
                class.as_str(),
                reason.as_str(),
            ),
            Metric::SpoofedHeaders => "tidegate.spoofed_headers".into(),
            Metric::PolicyRejected => "tidegate.policy_rejected".into(),
            Metric::PolicyVersion => "tidegate.policy_version".into(),
            Metric::PolicyGeneration => "tidegate.policy_generation".into(),
            Metric::GrantsInstalled => "tidegate.grants.installed".into(),
            Metric::FenceRevocations => "tidegate.fence.revocations".into(),
            Metric::ClockAnomalies => "tidegate.fence.clock_anomalies".into(),
            Metric::StreamResets => "tidegate.fence.stream_resets".into(),
            Metric::FenceHolding => "tidegate.fence.holding".into(),
            Metric::FenceWithheld => "tidegate.fence.withheld".into(),
        }
    }

    /// Every metric.
    pub fn all() -> impl Iterator<Item = Metric> {
        let tiers = Tier::ALL.map(Some).into_iter().chain([None]);
        let decisions = tiers.flat_map(|tier| {
            Class::ALL.into_iter().flat_map(move |class| {
                Reason::ALL.map(|reason| Metric::Decision {
                    tier,
                    class,
                    reason,
                })
            })
        });
        decisions.chain([
            Metric::SpoofedHeaders,
            Metric::PolicyRejected,
            Metric::PolicyVersion,
            Metric::PolicyGeneration,
            Metric::GrantsInstalled,
            Metric::FenceRevocations,
            Metric::ClockAnomalies,
            Metric::StreamResets,
            Metric::FenceHolding,
            Metric::FenceWithheld,
        ])
    }

    /// Different for every metric, and below [`METRICS`].
    pub fn index(self) -> usize {
        match self {
            Metric::Decision {
                tier,
                class,
                reason,
            } => {
                let tier = tier.map_or(0, |tier| tier as usize + 1);
                (tier * Class::ALL.len() + class.index()) * Reason::ALL.len() + reason as usize
            }
            Metric::SpoofedHeaders => DECISIONS,
            Metric::PolicyRejected => DECISIONS + 1,
            Metric::PolicyVersion => DECISIONS + 2,
            Metric::PolicyGeneration => DECISIONS + 3,
            Metric::GrantsInstalled => DECISIONS + 4,
            Metric::FenceRevocations => DECISIONS + 5,
            Metric::ClockAnomalies => DECISIONS + 6,
            Metric::StreamResets => DECISIONS + 7,
            Metric::FenceHolding => DECISIONS + 8,
            Metric::FenceWithheld => DECISIONS + 9,
        }
    }
}

/// The ids under which the proxy knows the metrics. One for a whole VM: defining a metric again
/// gives it another id, and the proxy keeps them all for as long as the VM lives.
pub struct MetricIds([Cell<Option<u32>>; METRICS]);

impl MetricIds {
    pub const fn new() -> MetricIds {
        MetricIds([const { Cell::new(None) }; METRICS])
    }

    /// The id of `metric`, which `define` asks the proxy for when it is first needed: most
    /// combinations never occur.
    pub fn get(&self, metric: Metric, define: impl FnOnce(Metric) -> Option<u32>) -> Option<u32> {
        let id = self.0.get(metric.index())?;
        if id.get().is_none() {
            id.set(define(metric));
        }
        id.get()
    }
}

impl Default for MetricIds {
    fn default() -> MetricIds {
        MetricIds::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_has_a_slot_and_a_name_of_its_own() {
        let slots: BTreeSet<_> = Metric::all().map(Metric::index).collect();
        assert_eq!(slots, (0..METRICS).collect());
        let names: BTreeSet<_> = Metric::all().map(Metric::name).collect();
        assert_eq!(names.len(), METRICS);
    }

    #[test]
    fn names_are_what_the_bootstraps_turn_into_labels() {
        let decision = Metric::Decision {
            tier: None,
            class: Class::Write,
            reason: Reason::Fenced,
        };
        assert_eq!(
            decision.name(),
            "tidegate.decisions.tier.none.class.write.reason.fenced"
        );
    }

    #[test]
    fn a_metric_is_defined_once() {
        let ids = MetricIds::new();
        for (id, metric) in (7..).zip(Metric::all()) {
            assert_eq!(ids.get(metric, |_| None), None, "the proxy said no");
            assert_eq!(ids.get(metric, |_| Some(id)), Some(id));
            assert_eq!(ids.get(metric, |_| unreachable!()), Some(id));
        }
    }
}
