//! The discovery protocol's less common parts, as real Envoys use them.

#![allow(
    clippy::disallowed_methods,
    reason = "the scenarios are an edge, as the harness is"
)]

mod clusters;
mod services;
mod support;
mod ttl;
mod virtual_hosts;
