//! The agent's metrics. One value, handed around; nothing is global.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of an instance's probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProbeLabels {
    /// The zone.
    pub az: String,
    pub role: String,
    /// `http`, `grpc` or `tcp`.
    pub probe: &'static str,
    pub service: String,
    pub instance: String,
}

/// The same, with the reason of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailureLabels {
    #[prometheus(flatten)]
    pub probe: ProbeLabels,
    pub reason: &'static str,
}

/// Labels of metrics by reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

/// Labels of metrics by kind of error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    pub kind: &'static str,
}

/// Labels of the mode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModeLabel {
    pub mode: &'static str,
}

/// All metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub probe_status: Family<ProbeLabels, Gauge>,
    pub probe_duration: Family<ProbeLabels, Histogram, fn() -> Histogram>,
    pub probe_failures: Family<FailureLabels, Counter>,
    pub instances: Gauge,
    pub registered: Gauge,
    pub mode: Family<ModeLabel, Gauge>,
    pub leases_granted: Counter,
    pub leases_lost: Family<ReasonLabel, Counter>,
    pub records_replaced: Counter,
    pub store_errors: Family<KindLabel, Counter>,
    pub store_write_duration: Histogram,
    pub load_errors: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            probe_status: Family::default(),
            // 0.25 ms to 256 ms: a look takes at most 200 ms.
            probe_duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_25, 2.0, 11))
            }),
            probe_failures: Family::default(),
            instances: Gauge::default(),
            registered: Gauge::default(),
            mode: Family::default(),
            leases_granted: Counter::default(),
            leases_lost: Family::default(),
            records_replaced: Counter::default(),
            store_errors: Family::default(),
            // 0.5 ms to 4 s.
            store_write_duration: Histogram::new(exponential_buckets(0.000_5, 2.0, 14)),
            load_errors: Counter::default(),
        }
    }
}

impl Metrics {
    /// A registry that shows these metrics under their names.
    pub fn registry(&self) -> Registry {
        let mut all = Registry::default();
        let m = self.clone();
        all.register(
            "health_probe_status",
            "1 while the instance is healthy, 0 while it is unhealthy or not yet known",
            m.probe_status,
        );
        all.register_with_unit(
            "health_probe_duration",
            "Duration of a probe",
            Unit::Seconds,
            m.probe_duration,
        );
        all.register(
            "health_probe_failures",
            "Probes that failed, by reason",
            m.probe_failures,
        );
        all.register("agent_instances", "Instances configured", m.instances);
        all.register(
            "agent_registered",
            "Instances whose record is in the registry on this agent's lease",
            m.registered,
        );
        all.register(
            "agent_mode",
            "1 for the mode that the registrar is in",
            m.mode,
        );
        all.register("agent_leases_granted", "Leases obtained", m.leases_granted);
        all.register(
            "agent_leases_lost",
            "Leases that ended, or had to be given up, while they were needed",
            m.leases_lost,
        );
        all.register(
            "agent_records_replaced",
            "Records that another client had changed or deleted, and that were written again",
            m.records_replaced,
        );
        all.register(
            "agent_store_errors",
            "Requests to the registry that failed, by kind",
            m.store_errors,
        );
        all.register_with_unit(
            "agent_store_write_duration",
            "Duration of a write of a record",
            Unit::Seconds,
            m.store_write_duration,
        );
        all.register(
            "agent_load_errors",
            "Answers about load that were missing or unreadable",
            m.load_errors,
        );
        all
    }
}
