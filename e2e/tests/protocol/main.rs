//! The less common parts of the discovery protocol, as used by real Envoys.

#![allow(
    clippy::disallowed_methods,
    reason = "the scenarios are an edge, as the harness is"
)]

mod clusters;
mod services;
mod support;
mod ttl;
mod virtual_hosts;
