//! The writes of a fenced service. Their destination is not planned: the zone that owns a write's
//! cell receives all of them, and the writes that a proxy admits stay in its zone.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, Route, route::Action, route_action::ClusterSpecifier,
};
use policy::{
    Class, Fencing, Reason, Rules, Service, Tier, Writes, ZoneId, headers, rules::cluster_name,
};

use super::{
    super::forward,
    builder::Builder,
    matching::{absent, add_if_absent, at_least, is, present, set},
};

/// The fence, if it applies to this service.
pub(in crate::translate) fn fencing<'r>(
    rules: &'r Rules,
    service: &Service,
) -> Option<&'r Fencing> {
    match service.writes {
        Writes::Fenced { .. } => rules.fencing(),
        Writes::Free => None,
    }
}

/// The zones to which writes may be forwarded from here, under any owners: so a change of owners
/// changes no route.
pub(super) fn forwarded_to(rules: &Rules, fencing: &Fencing) -> Vec<ZoneId> {
    let (topology, viewer) = (rules.topology(), rules.viewer());
    let zones = topology.zones().filter(|zone| *zone != viewer);
    let may = |zone: &ZoneId| {
        let mut cells = fencing.cells().iter();
        cells.any(|cell| fencing.may_forward(topology, cell, viewer, *zone))
    };
    zones.filter(may).collect()
}

/// Matches requests that the filter has not decided, besides the stamps of other requests.
pub(super) fn undecided() -> [HeaderMatcher; 2] {
    [absent(headers::EPOCH), absent(headers::TO)]
}

impl Builder<'_> {
    /// Admitted writes, and those that go to another zone's gateways.
    pub(super) fn fenced_writes(&self, fencing: &Fencing) -> Vec<Route> {
        let zones = forwarded_to(self.rules, fencing).into_iter();
        let forwarded = zones.filter_map(|zone| self.forwarded_write(fencing, zone));
        // A write without a lifetime was admitted before the terms were ever changed. Once a change
        // is completed, a filter that would not stamp the lifetime gets no grants any more.
        let unsaid = (!fencing.terms.drains_said).then(|| absent(headers::WRITE_DRAIN));
        let drain_ms = fencing.terms.write_drain.div_ceil(1_000);
        let drain_ms = i64::try_from(drain_ms).unwrap_or(i64::MAX);
        let said = (fencing.terms.changed).then(|| at_least(headers::WRITE_DRAIN, drain_ms));
        let admitted = unsaid.into_iter().chain(said);
        let admitted = admitted.map(|drain| self.admitted(fencing, drain));
        admitted.chain(forwarded).collect()
    }

    /// A write is not accepted if it was admitted by a policy of other terms, under which it may
    /// live less long than here. Routes and policy arrive one after the other, and one of them may
    /// not arrive at all.
    fn admitted(&self, fencing: &Fencing, drain: HeaderMatcher) -> Route {
        let zone = self.rules.topology().zone_name(self.rules.viewer());
        let to = cluster_name(&self.service.name, zone);
        let matchers = vec![present(headers::EPOCH), drain];
        let mut route = self.fenced_write(fencing, matchers, to, Tier::Zone, Reason::Admitted);
        route.request_headers_to_remove = vec![headers::WRITE_DRAIN.to_owned()];
        if let [only] = fencing.cells() {
            let cell = set(headers::CELL, &only.name);
            route.request_headers_to_add.push(cell);
        }
        route
    }

    /// The filter signs it.
    fn forwarded_write(&self, fencing: &Fencing, zone: ZoneId) -> Option<Route> {
        let to = self.rules.gateway(zone)?;
        let tier = self.rules.topology().tier(self.rules.viewer(), zone);
        let matchers = vec![is(headers::TO, to)];
        Some(self.fenced_write(fencing, matchers, to.to_owned(), tier, Reason::Forwarded))
    }

    fn fenced_write(
        &self,
        fencing: &Fencing,
        matchers: Vec<HeaderMatcher>,
        to: String,
        tier: Tier,
        reason: Reason,
    ) -> Route {
        let viewer = self.rules.topology().zone_name(self.rules.viewer());
        let drain = Duration::from_micros(fencing.terms.write_drain);
        let to = ClusterSpecifier::Cluster(to);
        let added = vec![
            set(headers::CLASS, Class::Write.as_str()),
            add_if_absent(headers::HOME, viewer),
            set(headers::TIER, tier.as_str()),
            set(headers::DECISION, reason.as_str()),
        ];
        Route {
            r#match: Some(self.matching(matchers)),
            request_headers_to_add: added,
            action: Some(Action::Route(forward::fenced_write(
                to,
                drain,
                self.resilience.routes.of(self.route),
                self.is_grpc(),
            ))),
            ..Route::default()
        }
    }
}
