//! The filter without its host: headers -> `Facts` -> `Decision` -> effects.
//!
//! `policy` decides, and this crate applies its decisions. The way through the modules: [`plugin`]
//! is the life of a configuration, [`request`] that of a request, and [`memory`] the state of a
//! worker that outlives both. [`header_map`] reads the request as the proxy encodes it; [`apply`]
//! applies the decision, through the small trait [`Host`](apply::Host); [`plugin_config`] reads
//! the plugin's configuration; [`fence`] holds the permissions to write; [`applied`] reports to
//! the control plane; [`stream`] is the life of a stream to it; [`guest`] is the filter in an Envoy
//! that somebody else configures;
//! [`refusals`] wait for a body; [`metrics`] names the metrics; [`draws`] share requests out;
//! [`deadlines`] end writes that live too long.
//!
//! All of that runs and is tested on any machine. A host, such as `filter-wasm`, translates its
//! callbacks and calls: it implements [`PluginHost`](plugin::PluginHost) and
//! [`RequestHost`](request::RequestHost).
//!
//! **No trap.** A panic takes the filter down for every request of that worker. So nothing a
//! request or a policy can contain may cause one: whatever goes wrong ends in a refusal, never in
//! a request that slips by.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod applied;
pub mod apply;
pub mod deadlines;
pub mod draws;
pub mod fence;
pub mod guest;
pub mod header_map;
pub mod memory;
pub mod metrics;
pub mod plugin;
pub mod plugin_config;
pub mod refusals;
pub mod request;
pub mod stream;
#[cfg(test)]
mod testing;
