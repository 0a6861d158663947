//! The control plane: health in a store -> weighted clusters per viewing zone -> LDS/RDS/CDS/EDS/ECDS.

pub mod access;
pub mod admin;
pub mod ads;
pub mod agent_port;
pub mod applied;
pub mod authority;
pub mod compaction;
pub mod conditions;
pub mod config;
pub mod connections;
pub mod feed;
mod generated;
pub mod last_good;
pub mod load_reports;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod mode;
pub mod operate;
pub mod reload;
pub mod replicas;
pub mod resource;
#[cfg(any(test, feature = "fuzzing"))]
mod script;
pub mod snapshot;
pub mod start;
pub mod store_event;
pub mod tls;
pub mod translate;
pub mod transport;
pub mod world;
