//! The harness of the end-to-end tests and the demo: real Envoys, a real etcd, the real control
//! plane.
//!
//! [`mesh::Mesh`] starts a whole mesh on loopback in one call; the other modules are its parts and
//! can be used alone. Three rules hold everywhere:
//!
//! - The kernel chooses ports.
//! - No code sleeps for a fixed time if it can wait for a condition ([`wait::eventually`]).
//! - No child outlives the process that started it ([`process`]).

#![allow(
    clippy::disallowed_methods,
    reason = "the harness is an edge: it reads the clock and the environment for all others"
)]

pub mod bootstrap;
pub mod cells;
pub mod certificates;
pub mod client;
pub mod clock;
pub mod config;
pub mod control_plane;
pub mod dice;
pub mod envoy;
pub mod etcd;
pub mod figures;
pub mod grpc_client;
pub mod history;
pub mod idle;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod paths;
pub mod peers;
pub mod process;
pub mod registry;
pub mod relay;
pub mod stage;
pub mod tls;
pub mod upstream;
pub mod wait;
pub mod workdir;
pub mod write_log;

/// The sample service, generated from `proto/orders.proto`.
#[allow(
    unreachable_pub,
    clippy::all,
    reason = "generated code keeps its own style"
)]
pub mod orders {
    tonic::include_proto!("shop.v1");
}
