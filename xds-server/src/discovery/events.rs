//! The counts and log lines of discovery streams.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use tracing::{info, warn};
use xds::{Events, Kind, clients::Client, discovery::warn_of_refusal, stream::Refused};

use crate::{
    conditions::Code,
    metrics::{KindLabel, Metrics},
    snapshot::ViewKey,
};

/// The subject of [`Code::StoreDoubted`] while streams are held back.
const HELD_BACK: &str = "instances";

/// The events on streams, as metrics, conditions and log lines.
pub(super) struct Counted {
    metrics: Arc<Metrics>,
    /// By [`Kind::index`]: kept ready, since a look-up by label would cost as much as everything
    /// else.
    sent: [SentOfKind; Kind::ALL.len()],
}

struct SentOfKind {
    responses: Counter,
    resources: Counter,
    renewals: Counter,
}

impl Counted {
    pub(super) fn new(metrics: Arc<Metrics>) -> Counted {
        let sent = Kind::ALL.map(|kind| {
            let label = KindLabel {
                kind: kind.as_str(),
            };
            SentOfKind {
                responses: metrics.xds_responses.get_or_create_owned(&label),
                resources: metrics.xds_resources.get_or_create_owned(&label),
                renewals: metrics.xds_renewals.get_or_create_owned(&label),
            }
        });
        Counted { metrics, sent }
    }
}

impl Events<ViewKey> for Counted {
    fn connected(&self, proxy: &Client<ViewKey>) {
        self.metrics.xds_streams.inc();
        let zone = &proxy.key.zone;
        info!(node = proxy.node_id, %zone, variant = ?proxy.variant, "proxy connected");
    }

    fn disconnected(&self, proxy: &Client<ViewKey>) {
        self.metrics.xds_streams.dec();
        info!(node = proxy.node_id, "proxy disconnected");
    }

    fn orphaned(&self, proxy: &Client<ViewKey>) {
        warn!(
            node = proxy.node_id,
            zone = %proxy.key.zone,
            "the zone was removed from the configuration, or its gRPC clients are no longer served: this proxy keeps its last state and gets no more updates"
        );
    }

    fn responds(&self, kind: Kind, resources: usize, renewals: usize) {
        let sent = &self.sent[kind.index()];
        sent.responses.inc();
        sent.resources.inc_by(resources as u64);
        sent.renewals.inc_by(renewals as u64);
    }

    fn refused(&self, node_id: &str, kind: Kind, refused: &Refused) {
        let label = KindLabel {
            kind: kind.as_str(),
        };
        self.metrics.xds_nacks.get_or_create(&label).inc();
        warn_of_refusal(node_id, kind, refused);
    }

    fn held_back(&self, node_id: &str) {
        warn!(
            node = node_id,
            "the proxy gets no resources: the store has no instance, and the proxy holds clusters or endpoints that differ from the control plane's"
        );
    }

    fn held_back_now(&self, streams: usize) {
        let detail = (streams > 0).then(|| {
            format!(
                "the store has no instance and no last good state was kept, but streams of connected proxies ({streams}) hold clusters or endpoints from before that differ: these proxies get no resources and keep their configuration. If there are really no instances, confirm it: `tidegate confirm`"
            )
        });
        let conditions = &self.metrics.conditions;
        conditions.set(Code::StoreDoubted, HELD_BACK, detail);
    }
}
