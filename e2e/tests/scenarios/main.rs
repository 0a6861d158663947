//! Scenarios: a whole mesh as its users and operators see it.

#![allow(
    clippy::disallowed_methods,
    reason = "the scenarios are an edge, as the harness is"
)]

mod conditions;
mod control_plane;
mod etcd;
mod failover;
mod fence;
mod fence_http;
mod gateway;
mod grpc;
mod hostile;
mod http1;
mod instances;
mod moves;
mod observing;
mod pushes;
mod reporting;
mod routing;
mod shared;
mod stability;
mod support;
mod zones;
