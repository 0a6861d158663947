//! RDS: the route table of one local zone.
//!
//! For each host, and in it for each of the services' routes, longest path first, the table has
//! these routes in this order:
//!
//! 0. upgrades to protocols that other services accept, but not this one: rejected;
//! 1. *plain reads*, which need no decision: the filter is switched off for them, and they are
//!    routed as planned;
//! 2. requests without a stamp: rejected, since they are undecided;
//! 3. reads of the local zone: to the cluster that the filter names in `x-tidegate-to`;
//! 4. writes: the same; without a cluster they are rejected;
//! 5. reads of another zone: the same;
//! 6. reads without a cluster: to the local zone, since their filter has no policy, or is older
//!    than this table.
//!
//! The filter knows the plans, so a plan changes only the routes of plain reads. Policy and table
//! of different ages work together.
//!
//! The writes of a fenced service have other routes in place of 4. *Admitted* writes, which carry
//! `x-tidegate-epoch`, go to the local zone's instances without a fallback. *Forwarded* writes go
//! to the gateways that `x-tidegate-to` names. Every other write is rejected.
//!
//! If a key chooses the instance, clusters are those of regions, which the filter does not know:
//! these services have routes for each home and class, as planned.
//!
//! The first pass of Envoy's routing, before the filter has run, ends at 1 or 2; the filter's stamp
//! makes Envoy route again. Every route that is checked in vain costs each request, so the most
//! common ones come first. The number and size of routes costs memory in a proxy, too: their common
//! parts are at the virtual host or at the table. Stamps from outside never get here, since the
//! listener removes them first.

mod builder;
pub(super) mod clusters;
pub(super) mod fenced;
pub(super) mod matching;
pub(super) mod weighted_clusters;

pub use clusters::{clusters_needed_by, needed_clusters};

use std::sync::Arc;

use envoy_types::pb::envoy::config::{
    core::v3::HeaderValueOption,
    route::v3::{
        DirectResponseAction, Route, RouteConfiguration, RouteMatch, Vhds, VirtualHost,
        route::Action, route_match::PathSpecifier,
    },
};
use envoy_types::pb::google::protobuf::UInt64Value;
use policy::{Explain, Reason, Rules, Service, ServiceId, Tier, headers};
use prost::{Message, Name};

use super::{
    ROUTES, forward, from_ads,
    hosts::{self, Host, Translation, VirtualHosts},
};
use crate::config::Resilience;
use builder::Builder;
use matching::{add_if_absent, set};
use xds::resource::{Piece, Resource};

/// How much of a request's body may be buffered for a retry, if nothing of it was sent: Envoy's own
/// default.
const RETRY_BUFFER_BYTES: u64 = 1 << 20;

/// The configuration of a service without influence on decisions, by its position in the rules.
pub type Resiliences<'r> = &'r dyn Fn(usize) -> Resilience;

/// The route table of `rules`' local zone.
pub fn routes(rules: &Rules, resiliences: Resiliences<'_>) -> Arc<Resource> {
    route_table(&virtual_hosts(rules, resiliences))
}

/// The table of these virtual hosts, whose bytes it shares.
pub fn route_table(hosts: &VirtualHosts) -> Arc<Resource> {
    table(hosts, RouteConfiguration::default())
}

/// The same table for proxies that request its virtual hosts one by one.
pub fn route_table_on_demand() -> Arc<Resource> {
    let on_demand = RouteConfiguration {
        vhds: Some(Vhds {
            config_source: Some(from_ads()),
        }),
        ..RouteConfiguration::default()
    };
    table(&VirtualHosts::new(), on_demand)
}

/// One virtual host of [`route_table_on_demand`], which shares its bytes with [`route_table`].
pub fn virtual_host_on_demand(name: &str, host: &Host) -> Arc<Resource> {
    let name = format!("{ROUTES}/{name}");
    let more = VirtualHost {
        // Envoy uses this name to find the virtual host to remove. If a field is repeated, the last
        // one counts.
        name: name.clone(),
        routes: vec![no_route()],
        ..VirtualHost::default()
    };
    let more = Piece::of(more.encode_to_vec());
    let (first, behind) = host.message();
    let pieces = [&first].into_iter().chain(behind).chain([&more]);
    let type_url = VirtualHost::type_url();
    Arc::new(Resource::of_pieces(&name, &type_url, pieces))
}

/// For requests that no service claims: Envoy requests a virtual host not only without one, but
/// whenever there is no route.
fn no_route() -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::DirectResponse(DirectResponseAction {
            status: 404,
            ..DirectResponseAction::default()
        })),
        ..Route::default()
    }
}

fn table(hosts: &VirtualHosts, options: RouteConfiguration) -> Arc<Resource> {
    let name = RouteConfiguration {
        name: ROUTES.to_owned(),
        ..RouteConfiguration::default()
    };
    let options = RouteConfiguration {
        // Like the policy, or the two would disagree about `shop.example:8080`.
        ignore_port_in_host_matching: true,
        // At each route they would be repeated. Envoy applies the routes' own headers first.
        request_headers_to_add: vec![
            // The filter increments it.
            add_if_absent(headers::VIA, "1"),
            // If a service requires one, the filter has rejected requests without it.
            add_if_absent(headers::TRACE_ID, "%REQ(x-request-id)%"),
            // Usually a request is served by its home zone.
            add_if_absent(headers::TIER, Tier::Zone.as_str()),
            add_if_absent(headers::DECISION, Reason::HomeZone.as_str()),
        ],
        // It is only used between the filter and the route.
        request_headers_to_remove: vec![headers::TO.to_owned()],
        ..options
    };
    // A message equals the concatenation of its fields, and a repeated field that of its entries.
    let [name, options] = [name, options].map(|fields| Piece::of(fields.encode_to_vec()));
    let hosts = hosts.values().flat_map(Host::entry);
    let pieces = [&name].into_iter().chain(hosts).chain([&options]);
    let type_url = RouteConfiguration::type_url();
    Arc::new(Resource::of_pieces(ROUTES, &type_url, pieces))
}

/// All virtual hosts of `rules`' local zone.
pub fn virtual_hosts(rules: &Rules, resiliences: Resiliences<'_>) -> VirtualHosts {
    hosts::of_rules(rules, &ForProxies { rules, resiliences })
}

/// The virtual hosts after new plans of the services in `replanned`; returns the changed hosts.
pub fn replan_virtual_hosts<'h>(
    hosts: &'h mut VirtualHosts,
    rules: &Rules,
    replanned: &[ServiceId],
    resiliences: Resiliences<'_>,
) -> Vec<(&'h str, &'h Host)> {
    let translation = ForProxies { rules, resiliences };
    hosts::replan(hosts, rules, replanned, &translation)
}

struct ForProxies<'r> {
    rules: &'r Rules,
    resiliences: Resiliences<'r>,
}

impl Translation for ForProxies<'_> {
    fn before(&self, host: &str) -> VirtualHost {
        VirtualHost {
            name: host.to_owned(),
            domains: vec![host.to_owned()],
            ..VirtualHost::default()
        }
    }

    fn behind(&self) -> VirtualHost {
        let explain = self.rules.explain();
        VirtualHost {
            // The limit for a body that is buffered for a retry. The listener's limit would suffice
            // for few.
            request_body_buffer_limit: Some(UInt64Value {
                value: RETRY_BUFFER_BYTES,
            }),
            retry_policy: Some(forward::usual_retries()),
            // The token is only for us.
            request_headers_to_remove: explain.map(|e| e.header.clone()).into_iter().collect(),
            response_headers_to_add: explain.map(show_decision).into_iter().collect(),
            ..VirtualHost::default()
        }
    }

    fn routes(&self, id: ServiceId, service: &Service, route: &policy::Route) -> Vec<Route> {
        let builder = Builder {
            rules: self.rules,
            service,
            route,
            resilience: (self.resiliences)(id.index()),
        };
        builder.routes()
    }
}

/// The filter stamps the reason on the request of a caller that may see it; the response carries it
/// back.
fn show_decision(_: &Explain) -> HeaderValueOption {
    set(headers::DECISION, &format!("%REQ({})%", headers::EXPLAIN))
}
