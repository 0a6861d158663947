//! One report: from a proxy's message to sums under names of the mesh.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use registry::record::InstanceKey;

use crate::snapshot::{Snapshot, View};
use xds::resource::Kind;

/// A higher count in one report is implausible, and is capped: a proxy must not be able to spoil a
/// counter.
const COUNT_MAX: u64 = 1 << 32;

/// Requests to one zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub succeeded: u64,
    pub failed: u64,
    /// Sent since the last report, with any outcome.
    pub issued: u64,
    /// In progress at the time of the report.
    pub in_progress: u64,
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropKind {
    /// A limit of the circuit breaker: drops without a category.
    Circuit,
    /// The endpoints' drop policy: drops with a category, whose name is foreign.
    Overload,
}

impl DropKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            DropKind::Circuit => "circuit",
            DropKind::Overload => "overload",
        }
    }
}

/// A report, reduced to names of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By service and zone.
    pub flows: BTreeMap<(String, String), Counts>,
    /// By service and the place of the cluster, a zone or a region.
    pub drops: BTreeMap<(String, String, DropKind), u64>,
    /// Entries about clusters or zones outside of the mesh.
    pub foreign: u64,
}

/// A parsed cluster name.
struct ClusterName<'n> {
    service: &'n str,
    place: &'n str,
    /// It only forwards requests to clusters with endpoints, which count them.
    aggregate: bool,
}

impl<'n> ClusterName<'n> {
    /// See [`translate`](crate::translate) for the forms.
    fn parse(name: &'n str) -> Option<ClusterName<'n>> {
        let (service, rest) = name.split_once('/')?;
        let (place, aggregate) = match rest.split_once('/') {
            None => (rest, false),
            Some((place, class)) => {
                ["reads", "writes"].contains(&class).then_some(())?;
                (place, true)
            }
        };
        Some(ClusterName {
            service,
            place,
            aggregate,
        })
    }
}

impl Report {
    /// Reads a report of a proxy with `view`.
    ///
    /// Requests through an aggregate cluster are counted at its members, which have the endpoints.
    /// If a client reports them under both names, the aggregate's are ignored.
    pub fn read(stats: &[ClusterStats], view: &View, snapshot: &Snapshot) -> Report {
        let mut report = Report::default();
        for cluster in stats {
            let known = view.of(Kind::Cluster).contains_key(&*cluster.cluster_name);
            match ClusterName::parse(&cluster.cluster_name).filter(|_| known) {
                Some(name) => report.add(&name, cluster, snapshot),
                // A cluster of the bootstrap, usually the one for the control plane.
                None if !cluster.cluster_name.contains('/') => {}
                None => report.foreign += 1,
            }
        }
        report
    }

    fn add(&mut self, name: &ClusterName<'_>, cluster: &ClusterStats, snapshot: &Snapshot) {
        for stats in (cluster.upstream_locality_stats.iter()).filter(|_| !name.aggregate) {
            let zone = stats.locality.as_ref().map_or("", |l| l.zone.as_str());
            let at = InstanceKey {
                service: name.service.to_owned(),
                zone: zone.to_owned(),
                instance: String::new(),
            };
            if snapshot.knows(&at).is_err() {
                self.foreign += 1;
                continue;
            }
            // The same locality may be listed once for each priority.
            self.flows
                .entry((at.service, at.zone))
                .or_default()
                .add(stats);
        }
        let categories = cluster.dropped_requests.iter();
        let overload = categories.fold(0_u64, |sum, d| sum.saturating_add(d.dropped_count));
        // Envoy's total excludes the drops with a category, gRPC's total includes them.
        let total = cluster.total_dropped_requests;
        let circuit = match total >= overload {
            true => total - overload,
            false => total,
        };
        for (kind, count) in [(DropKind::Circuit, circuit), (DropKind::Overload, overload)] {
            if count > 0 {
                let key = (name.service.to_owned(), name.place.to_owned(), kind);
                let dropped = self.drops.entry(key).or_default();
                *dropped = dropped.saturating_add(count).min(COUNT_MAX);
            }
        }
    }
}

impl Counts {
    fn add(&mut self, stats: &UpstreamLocalityStats) {
        let add = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count).min(COUNT_MAX);
        add(&mut self.succeeded, stats.total_successful_requests);
        add(&mut self.failed, stats.total_error_requests);
        add(&mut self.issued, stats.total_issued_requests);
        add(&mut self.in_progress, stats.total_requests_in_progress);
    }
}
