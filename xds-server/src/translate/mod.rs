//! From the mesh to Envoy's resources. Pure: the same input gives the same bytes.
//!
//! Names are contracts:
//!
//! - clusters with endpoints are `<service>/<zone>`;
//! - routes use the clusters `<service>/<place>/reads` and `<service>/<place>/writes`, or the
//!   former if there is no fallback;
//! - the listener is [`LISTENER`], its route table [`ROUTES`], the filter and its ECDS resource
//!   [`FILTER`];
//! - virtual hosts on demand are `<route table>/<host>`.

mod access_log;
mod cluster;
mod endpoints;
mod filter;
mod forward;
pub mod grpc;
mod hosts;
mod listener;
mod local_reply;
mod ordered;
mod place;
mod routes;
mod tls;

pub use cluster::clusters;
pub use endpoints::{ZoneInstances, endpoints};
pub use filter::{filter_config, filter_config_of_bytes};
pub use hosts::{Host, VirtualHosts};
pub use listener::listener;
pub use routes::{
    Resiliences, clusters_needed_by, needed_clusters, replan_virtual_hosts, route_table,
    route_table_on_demand, routes, virtual_host_on_demand, virtual_hosts,
};

pub use tls::secrets;

use envoy_types::pb::{
    envoy::config::core::v3::{
        AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier,
    },
    google::protobuf::{Duration, UInt32Value},
};

/// The listener for requests.
pub const LISTENER: &str = "ingress";
/// The route table of [`LISTENER`].
pub const ROUTES: &str = "tidegate";
/// The name of the filter, in the listener and as an ECDS resource.
pub const FILTER: &str = "tidegate";
/// The filter that keeps sessions on their instances; it only works on routes that enable it.
const SESSIONS: &str = "envoy.filters.http.stateful_session";

/// Resources arrive on the proxy's one ADS stream.
fn from_ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

fn millis(ms: i32) -> Option<Duration> {
    Some(Duration {
        seconds: i64::from(ms / 1000),
        nanos: ms % 1000 * 1_000_000,
    })
}

/// In milliseconds. 0 stays 0, which means "never" to Envoy.
fn duration_ms(ms: u32) -> Option<Duration> {
    Some(Duration {
        seconds: i64::from(ms / 1_000),
        nanos: (ms % 1_000 * 1_000_000) as i32,
    })
}

fn uint32(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}
