//! The agent: runs beside instances, probes them, keeps them registered, reports their load, and
//! drains them.
//!
//! ```text
//! probe (http, grpc, tcp) -> prober: health -> instances -> registrar -> target (etcd, http)
//!                                     load ------^   ^------ drain (HTTP, SIGTERM)
//! ```
//!
//! [`prober`], [`health`], [`instances`] and [`registrar`] are the core, a library of its own: they
//! know a probe only as [`probe::Probe`] and a registry only as [`registrar::Target`]. A later kind
//! of either is a module, and its part of [`config`].
//!
//! All durations are measured on the monotonic clock (`tokio::time::Instant`). No module reads the
//! wall clock, so a step of it changes nothing.

pub mod config;
pub mod cross_origin;
pub mod etcd_access;
pub mod file_watcher;
pub mod health;
pub mod http;
pub mod https;
pub mod instances;
pub mod load;
pub mod metrics;
pub mod probe;
pub mod prober;
pub mod registrar;
mod run;
mod server;
pub mod yaml;

pub use run::{Options, Serve, Serving, check, run};
