//! The proxy-wasm HTTP filter: callbacks -> `Facts` -> `Decision` -> effects.
//!
//! `policy` decides, and this crate applies its decisions. The way through the modules:
//! [`header_map`] reads the request as the proxy encodes it; [`apply`] applies the decision,
//! through the small trait [`Host`](apply::Host); [`plugin_config`] reads the plugin's
//! configuration; [`fence`] holds the permissions to write; [`applied`] reports to the control
//! plane; [`refusals`] wait for a body; [`metrics`] names the metrics. All of that runs and is
//! tested on any machine. Only `adapter` and `host` know the proxy, and exist only in a wasm build.
//!
//! **No trap.** A panic takes the filter down for every request of that worker. So nothing a
//! request or a policy can contain may cause one: every host call that a request leads to goes
//! through `host`, which returns errors where the crate `proxy_wasm` panics, and whatever goes
//! wrong ends in a refusal, never in a request that slips by.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

#[cfg(target_arch = "wasm32")]
mod adapter;
pub mod applied;
pub mod apply;
#[cfg(any(target_arch = "wasm32", test))]
mod draws;

pub mod fence;
pub mod header_map;
#[cfg(target_arch = "wasm32")]
mod host;
pub mod metrics;
pub mod plugin_config;
pub mod refusals;
#[cfg(test)]
mod testing;
