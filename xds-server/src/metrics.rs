//! The control plane's metrics. One value, passed around; there are no globals.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    conditions::Conditions,
    metric_register::{Register, labels},
};

/// Labels of metrics by kind of resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// `cds`, `eds`, `lds`, `rds` or `ecds`.
    pub kind: &'static str,
}

/// Labels of metrics by reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

/// Labels of metrics by service and zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceZoneLabel {
    pub service: String,
    pub zone: String,
}

/// A gauge of a fraction.
type Fraction = Gauge<f64, AtomicU64>;

/// Labels of metrics by outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// `ok`, `error`, or another result.
    pub result: &'static str,
}

/// Labels of metrics by the store's mode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModeLabel {
    /// `normal`, `L1`, `L2` or `L3`.
    pub mode: &'static str,
    /// The mode as a word.
    pub name: &'static str,
}

/// Labels of metrics by zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ZoneLabel {
    pub zone: String,
}

/// Labels of metrics by port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PortLabel {
    /// `xds` or `admin`.
    pub port: &'static str,
}

/// Labels of metrics by port and reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PortReasonLabel {
    /// `xds` or `admin`.
    pub port: &'static str,
    pub reason: &'static str,
}

/// Labels of metrics by one of the files of `listen.tls`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FileLabel {
    /// `cert` or `client_ca`.
    pub file: &'static str,
}

/// Labels of metrics by cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CellLabel {
    pub cell: String,
}

labels!(KindLabel: kind);
labels!(ReasonLabel: reason);
labels!(ServiceZoneLabel: service, zone);
labels!(ResultLabel: result);
labels!(ModeLabel: mode, name);
labels!(ZoneLabel: zone);
labels!(PortLabel: port);
labels!(PortReasonLabel: port, reason);
labels!(FileLabel: file);
labels!(CellLabel: cell);

/// All metrics, and the conditions.
#[derive(Clone, Default)]
pub struct Metrics {
    pub conditions: Conditions,
    pub xds_responses: Family<KindLabel, Counter>,
    pub xds_resources: Family<KindLabel, Counter>,
    pub xds_renewals: Family<KindLabel, Counter>,
    pub xds_nacks: Family<KindLabel, Counter>,
    pub xds_streams: Gauge,
    pub proxies_refusing: Gauge,
    pub proxy_policies: Family<ResultLabel, Gauge>,
    pub config_digest: Gauge,
    pub streams_refused: Family<ReasonLabel, Counter>,
    pub connections: Family<PortLabel, Gauge>,
    pub connections_refused: Family<PortReasonLabel, Counter>,
    pub tls_reloads: Family<ResultLabel, Counter>,
    pub tls_current: Gauge,
    pub tls_not_after: Family<FileLabel, Gauge>,
    pub records_rejected: Family<ReasonLabel, Counter>,
    pub records_unused: Gauge,
    pub instances: Gauge,
    pub instances_kept: Gauge,
    pub implausible: Family<ReasonLabel, Gauge>,
    pub zone_share: Family<ServiceZoneLabel, Fraction>,
    pub standing_writes: Family<ResultLabel, Counter>,
    pub store_connected: Gauge,
    pub store_revision: Gauge,
    pub store_compactions: Counter,
    pub store_lists: Counter,
    pub mode: Family<ModeLabel, Gauge>,
    pub state_stale: Gauge,
    pub state_age_seconds: Gauge,
    pub state_writes: Family<ResultLabel, Counter>,
    pub snapshots: Counter,
    pub istio_applies: Family<ResultLabel, Counter>,
    pub config_reloads: Family<ResultLabel, Counter>,
    pub config_current: Gauge,
    pub policy_version: Family<ZoneLabel, Gauge>,
    pub cell_epoch: Family<CellLabel, Gauge>,
    pub cell_granting: Family<CellLabel, Gauge>,
    pub grants: Counter,
    pub fence_streams: Gauge,
    pub sessions_lost: Counter,
    pub session_puts: Counter,
    pub sessions_put: Gauge,
    pub peer_messages_refused: Family<ReasonLabel, Counter>,
    pub terms_agreed: Gauge,
    pub clock_slew_ppm: Gauge,
    pub authority_writes: Family<ResultLabel, Counter>,
}

impl Metrics {
    /// A registry with these metrics under their names, which begin with `tidegate_`.
    pub fn registry(&self) -> Registry {
        self.register().registry
    }

    fn register(&self) -> Register {
        let mut all = Register::default();
        let m = self.clone();
        m.conditions.register(&mut all);
        all.register(
            "xds_responses",
            "Discovery responses sent, by kind",
            m.xds_responses,
        );
        all.register(
            "xds_resources",
            "Resources sent in discovery responses, by kind",
            m.xds_resources,
        );
        all.register(
            "xds_renewals",
            "Times to live renewed by heartbeats, by kind",
            m.xds_renewals,
        );
        all.register(
            "xds_nacks",
            "Discovery responses that a proxy rejected, by kind",
            m.xds_nacks,
        );
        all.register(
            "proxies_refusing",
            "Connected proxies that reject an offered resource",
            m.proxies_refusing,
        );
        all.register(
            "proxy_policies",
            "Connected proxies by the state of their filter's policy: applied, behind, refused, unknown",
            m.proxy_policies,
        );
        all.register(
            "config_digest",
            "Digest of the configuration in force, without the fields that may differ between replicas: 48 bits",
            m.config_digest,
        );
        all.register("xds_streams", "Open xDS streams", m.xds_streams);
        all.register(
            "xds_streams_refused",
            "xDS streams that were rejected, by reason",
            m.streams_refused,
        );
        all.register("connections", "Open connections", m.connections);
        all.register(
            "connections_refused",
            "Connections that were rejected before their first request, by reason",
            m.connections_refused,
        );
        all.register(
            "tls_reloads",
            "Changes of certificate, key or CA that were accepted or rejected",
            m.tls_reloads,
        );
        all.register(
            "tls_current",
            "0 while certificate, key or CA are rejected and older ones are in force; 0 without TLS, too",
            m.tls_current,
        );
        all.register(
            "tls_not_after_timestamp_seconds",
            "Expiry of the certificate in force, and of the first CA certificate to expire, in seconds since 1970",
            m.tls_not_after,
        );
        all.register(
            "records_rejected",
            "Unusable records found in the store, by reason",
            m.records_rejected,
        );
        all.register(
            "records_unused",
            "Unusable records in the store now",
            m.records_unused,
        );
        all.register("instances", "Readable instance records now", m.instances);
        all.register(
            "instances_kept",
            "Instances that are served although their records disappeared",
            m.instances_kept,
        );
        all.register(
            "implausible",
            "1 while the store's content is in doubt, by reason; an operator can confirm it",
            m.implausible,
        );
        all.register(
            "zone_share",
            "Part of its full share that a service gets in a zone: 0 out, 1 fully in",
            m.zone_share,
        );
        all.register(
            "standing_writes",
            "Standings of zones that this replica proposed, by outcome: ok, overtaken by another replica, error",
            m.standing_writes,
        );
        all.register(
            "store_connected",
            "1 while the store is being watched",
            m.store_connected,
        );
        all.register(
            "store_revision",
            "Last revision of the store that was applied",
            m.store_revision,
        );
        all.register("store_lists", "Full listings of the store", m.store_lists);
        all.register(
            "store_compactions",
            "Compactions of etcd's history by this replica",
            m.store_compactions,
        );
        all.register("mode", "1 for the store's present mode", m.mode);
        all.register(
            "state_stale",
            "1 while the store has not confirmed the served state",
            m.state_stale,
        );
        all.register(
            "state_age_seconds",
            "Time since the store last confirmed the served state",
            m.state_age_seconds,
        );
        all.register(
            "state_writes",
            "Writes of the last good state to disk",
            m.state_writes,
        );
        all.register("snapshots", "Snapshots published", m.snapshots);
        all.register(
            "istio_applies",
            "Istio's objects applied, by result: `ok` or `error`",
            m.istio_applies,
        );
        all.register(
            "config_reloads",
            "Changes of the configuration file that were accepted or rejected",
            m.config_reloads,
        );
        all.register(
            "config_current",
            "0 while the configuration file is rejected and an older one is in force",
            m.config_current,
        );
        all.register(
            "policy_version",
            "Version of the policy for each zone's proxies, as their filters report it",
            m.policy_version,
        );
        all.register("cell_epoch", "Epoch of each cell", m.cell_epoch);
        all.register(
            "cell_granting",
            "1 while this process grants writes for a cell",
            m.cell_granting,
        );
        all.register("grants", "Grants given to proxies", m.grants);
        all.register(
            "fence_streams",
            "Proxies that are connected for grants",
            m.fence_streams,
        );
        all.register(
            "sessions_lost",
            "Sessions of this process that ended before it did",
            m.sessions_lost,
        );
        all.register(
            "session_puts",
            "Writes that created or renewed sessions",
            m.session_puts,
        );
        all.register(
            "sessions_put",
            "Sessions of this process that are renewed by writes, since not all replicas acknowledge",
            m.sessions_put,
        );
        all.register(
            "peer_messages_refused",
            "Messages in the name of another replica without a valid proof, by reason: caller, called (the opening of a stream), unproved, repeated",
            m.peer_messages_refused,
        );
        all.register(
            "clock_slew_ppm",
            "Slew of this machine's clock by the kernel, in parts per million",
            m.clock_slew_ppm,
        );
        all.register(
            "terms_agreed",
            "1 while this process is configured with the agreed terms; at 0 it grants nothing",
            m.terms_agreed,
        );
        all.register(
            "authority_writes",
            "Steps of moves that this process took, by outcome: ok, overtaken by another replica, error",
            m.authority_writes,
        );
        all
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const BEGIN: &str = "<!-- begin: generated from the code; TIDEGATE_BLESS=1 cargo test -p tidegate-xds-server metrics::tests -->\n";
    const END: &str = "<!-- end -->\n";

    #[test]
    fn every_metric_is_in_the_reference() {
        let mut rows = Metrics::default().register().rows;
        rows.sort();
        let table = format!(
            "\n| metric | meaning |\n| --- | --- |\n{}\n\n",
            rows.join("\n")
        );
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
        let page = fs::read_to_string(&file).expect("the page is there");
        let (before, rest) = page.split_once(BEGIN).expect("the page has a beginning");
        let (present, after) = rest.split_once(END).expect("the page has an end");
        if std::env::var_os("TIDEGATE_BLESS").is_some() {
            let blessed = [before, BEGIN, &table, END, after].concat();
            return fs::write(&file, blessed).expect("the page can be written");
        }
        assert!(
            present == table,
            "docs/reference/metrics.md is stale: TIDEGATE_BLESS=1 cargo test -p tidegate-xds-server metrics::tests"
        );
    }
}
