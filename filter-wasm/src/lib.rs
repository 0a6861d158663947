//! The proxy-wasm HTTP filter: the host of [`filter_core`] in an Envoy with wasm.
//!
//! `adapter` translates the proxy's callbacks, `host` the calls into it. Both exist only in a wasm
//! build.
//!
//! **No trap.** A panic takes the filter down for every request of that worker. So every host call
//! that a request leads to goes through `host`, which returns errors where the crate `proxy_wasm`
//! panics.

#![cfg(target_arch = "wasm32")]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod adapter;
mod host;
