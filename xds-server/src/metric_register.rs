//! The metrics as `docs/reference/metrics.md` lists them: table and registry are built by the same
//! calls.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry},
};

use std::sync::atomic::AtomicU64;

/// The names of the labels of a type.
pub(crate) trait Labels {
    const NAMES: &'static [&'static str];
}

macro_rules! labels {
    ($type:ident: $($name:ident),+) => {
        impl $crate::metric_register::Labels for $type {
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),+];
        }
    };
}

pub(crate) use labels;

/// A type of metric that the reference can describe.
pub(crate) trait Told: Metric {
    /// The suffix of the name: OpenMetrics requires one for counters.
    const SUFFIX: &'static str;
    const LABELS: &'static [&'static str];
}

impl Told for Counter {
    const SUFFIX: &'static str = "_total";
    const LABELS: &'static [&'static str] = &[];
}

impl Told for Gauge {
    const SUFFIX: &'static str = "";
    const LABELS: &'static [&'static str] = &[];
}

impl Told for Gauge<f64, AtomicU64> {
    const SUFFIX: &'static str = "";
    const LABELS: &'static [&'static str] = &[];
}

impl<L: Labels, M: Told> Told for Family<L, M>
where
    Family<L, M>: Metric,
{
    const SUFFIX: &'static str = M::SUFFIX;
    const LABELS: &'static [&'static str] = L::NAMES;
}

/// A registry, and a row of the reference for each metric in it.
pub(crate) struct Register {
    pub(crate) registry: Registry,
    pub(crate) rows: Vec<String>,
}

impl Default for Register {
    fn default() -> Register {
        Register {
            registry: Registry::with_prefix("tidegate"),
            rows: Vec::new(),
        }
    }
}

impl Register {
    pub(crate) fn register<M: Told>(&mut self, name: &str, help: &str, metric: M) {
        let labels = match M::LABELS {
            [] => String::new(),
            names => format!("{{{}}}", names.join(", ")),
        };
        let suffix = M::SUFFIX;
        self.rows
            .push(format!("| `tidegate_{name}{suffix}{labels}` | {help} |"));
        self.registry.register(name, help, metric);
    }
}
