//! The pieces of configuration of a guest, for the host that carries it.

mod envoy;
mod envoy_gateway;
mod higress;
mod istio;
mod pieces;
mod predicate;
mod spec;
#[cfg(test)]
mod tests;
mod yaml;

use clap::ValueEnum;

pub(super) use spec::{Context, Delivery, Place, Spec};

/// What carries a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// An Envoy with a configuration of its own.
    Envoy,
    /// Istio: sidecars, gateways and waypoints.
    Istio,
    /// Envoy Gateway.
    EnvoyGateway,
    /// Higress.
    Higress,
}

/// The configuration as YAML with comments.
pub(super) fn print(kind: Kind, spec: &Spec) -> String {
    match kind {
        Kind::Envoy => envoy::print(spec),
        Kind::Istio => istio::print(spec),
        Kind::EnvoyGateway => envoy_gateway::print(spec),
        Kind::Higress => higress::print(spec),
    }
}
