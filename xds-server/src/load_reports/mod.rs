//! Load reports of proxies about the requests that they sent (LRS), summed by service, by the zone
//! of the proxy, and by the zone that served.
//!
//! [`report`] reads one report, [`Loads`] sums them and exports them as metrics, [`service`] is the
//! tonic service.
//!
//! **Only names of the mesh become labels.** Reports about other names are counted together, so
//! that no bytes of a proxy can create a series. Counters of names that have left the mesh are
//! removed when the number of counters has doubled.

mod report;
mod service;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use registry::record::InstanceKey;

pub use report::{Counts, DropKind, Report};
pub use service::LoadReports;

use crate::snapshot::Snapshot;

/// With fewer rows no clean-up happens.
const ROWS_MIN: usize = 256;

/// The source and destination of requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct FlowLabel {
    pub service: String,
    /// The zone of the proxies that sent them.
    pub viewer: String,
    /// The zone of the instances that received them.
    pub zone: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    service: String,
    viewer: String,
    zone: String,
    /// `success` or `error`.
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct DropLabel {
    service: String,
    viewer: String,
    /// The intended zone of the requests; the region, if instances are grouped by region.
    place: String,
    category: &'static str,
}

/// The sums of all reports. Cheap to clone.
#[derive(Clone, Default)]
pub struct Loads {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    flows: BTreeMap<FlowLabel, Totals>,
    drops: BTreeMap<DropLabel, u64>,
    /// By stream. When a stream ends, its requests in progress are removed.
    in_progress: BTreeMap<u64, BTreeMap<FlowLabel, u64>>,
    last_stream: u64,
    reports: u64,
    foreign: u64,
    /// The number of rows at which rows of names that have left the mesh are removed.
    rows_max: usize,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    succeeded: u64,
    failed: u64,
    issued: u64,
}

impl Loads {
    /// Registers a stream of a proxy in the zone `viewer`.
    pub fn enter(&self, viewer: &str) -> Reporter {
        let mut state = self.lock();
        state.last_stream += 1;
        let stream = state.last_stream;
        state.in_progress.insert(stream, BTreeMap::new());
        Reporter {
            loads: self.clone(),
            stream,
            viewer: viewer.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // If a panic elsewhere interrupts an update, sums are off by one report at most.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registration of a stream. Its requests in progress are removed when it is dropped.
pub struct Reporter {
    loads: Loads,
    stream: u64,
    viewer: String,
}

impl Reporter {
    /// Adds a report. Requests that it does not list are not in progress any more: a report lists
    /// all that are.
    pub fn take(&self, report: Report, snapshot: &Snapshot) {
        let mut state = self.loads.lock();
        state.reports += 1;
        state.foreign = state.foreign.saturating_add(report.foreign);
        let mut in_progress = BTreeMap::new();
        for ((service, zone), counts) in report.flows {
            let label = FlowLabel {
                service,
                viewer: self.viewer.clone(),
                zone,
            };
            if counts.in_progress > 0 {
                in_progress.insert(label.clone(), counts.in_progress);
            }
            let totals = state.flows.entry(label).or_default();
            totals.succeeded = totals.succeeded.saturating_add(counts.succeeded);
            totals.failed = totals.failed.saturating_add(counts.failed);
            totals.issued = totals.issued.saturating_add(counts.issued);
        }
        for ((service, place, kind), count) in report.drops {
            let label = DropLabel {
                service,
                viewer: self.viewer.clone(),
                place,
                category: kind.as_str(),
            };
            let dropped = state.drops.entry(label).or_default();
            *dropped = dropped.saturating_add(count);
        }
        state.in_progress.insert(self.stream, in_progress);
        state.forget_strangers(snapshot);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.loads.lock().in_progress.remove(&self.stream);
    }
}

impl State {
    /// Removes names that have left the mesh, once there are enough rows.
    fn forget_strangers(&mut self, snapshot: &Snapshot) {
        if self.flows.len() + self.drops.len() <= self.rows_max.max(ROWS_MIN) {
            return;
        }
        let knows = |service: &str, zone: &str| {
            let at = InstanceKey {
                service: service.to_owned(),
                zone: zone.to_owned(),
                instance: String::new(),
            };
            snapshot.knows(&at).is_ok()
        };
        self.flows.retain(|label, _| {
            knows(&label.service, &label.zone) && knows(&label.service, &label.viewer)
        });
        // A place may be a region.
        self.drops
            .retain(|label, _| knows(&label.service, &label.viewer));
        self.rows_max = 2 * (self.flows.len() + self.drops.len());
    }

    /// Summed over all streams. A removed row only comes back with traffic.
    fn in_progress(&self) -> BTreeMap<&FlowLabel, u64> {
        let mut sums: BTreeMap<&FlowLabel, u64> = self.flows.keys().map(|l| (l, 0)).collect();
        for (label, count) in self.in_progress.values().flatten() {
            if let Some(sum) = sums.get_mut(label) {
                *sum = sum.saturating_add(*count);
            }
        }
        sums
    }
}

impl fmt::Debug for Loads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loads").finish_non_exhaustive()
    }
}

impl Collector for Loads {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let state = self.lock();
        let streams = i64::try_from(state.in_progress.len()).unwrap_or(i64::MAX);
        ConstGauge::new(streams).encode(encoder.encode_descriptor(
            "load_streams",
            "Proxies that report their load",
            None,
            MetricType::Gauge,
        )?)?;
        ConstCounter::new(state.reports).encode(encoder.encode_descriptor(
            "load_reports",
            "Load reports accepted",
            None,
            MetricType::Counter,
        )?)?;
        ConstCounter::new(state.foreign).encode(encoder.encode_descriptor(
            "load_reports_foreign",
            "Entries of load reports about clusters or zones outside of the mesh",
            None,
            MetricType::Counter,
        )?)?;
        let mut family = encoder.encode_descriptor(
            "load_requests",
            "Requests that proxies reported as ended, by service, proxy's zone, serving zone, and result",
            None,
            MetricType::Counter,
        )?;
        for (label, totals) in &state.flows {
            for (result, count) in [("success", totals.succeeded), ("error", totals.failed)] {
                let label = OutcomeLabel {
                    service: label.service.clone(),
                    viewer: label.viewer.clone(),
                    zone: label.zone.clone(),
                    result,
                };
                ConstCounter::new(count).encode(family.encode_family(&label)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "load_requests_issued",
            "Requests that proxies reported as sent, retries included",
            None,
            MetricType::Counter,
        )?;
        for (label, totals) in &state.flows {
            ConstCounter::new(totals.issued).encode(family.encode_family(label)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "load_requests_in_progress",
            "Requests that connected proxies last reported as under way",
            None,
            MetricType::Gauge,
        )?;
        for (label, count) in state.in_progress() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(family.encode_family(label)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "load_requests_dropped",
            "Requests that proxies rejected at a limit of a circuit breaker (circuit) or by a configured drop rate (overload)",
            None,
            MetricType::Counter,
        )?;
        for (label, count) in &state.drops {
            ConstCounter::new(*count).encode(family.encode_family(label)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
