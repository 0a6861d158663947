//! The aggregated discovery service, delta and state of the world.
//!
//! [`stream`] is the protocol memory of one stream, plain data without sockets; [`delta`] and [`sotw`] are the two doors
//! between it and the [`wire`]; [`service`] runs streams on tonic; [`proxies`] is what operators see of them.

mod delta;
mod node;
pub mod proxies;
pub mod service;
mod sotw;
pub mod stream;
mod wire;
