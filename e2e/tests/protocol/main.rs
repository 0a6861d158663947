//! What real Envoys make of the discovery protocol's less common parts.

#![allow(
    clippy::disallowed_methods,
    reason = "the scenarios are an edge, as the harness is"
)]

mod clusters;
mod services;
mod support;
mod ttl;
mod virtual_hosts;
