//! The control plane: health in a store -> weighted clusters per local zone ->
//! LDS/RDS/CDS/EDS/ECDS.

pub mod access_rules;
pub mod admin;
pub mod agent_port;
pub mod applied;
pub mod authority;
pub mod compaction;
pub mod conditions;
pub mod config;
pub mod control_plane;
pub mod discovery;
mod etcd_credentials;
pub mod feed;
mod generated;
pub mod guests;
pub mod istio;
pub mod last_good;
pub mod load_reports;
mod log_budget;
pub mod memory;
mod metric_register;
pub mod metrics;
pub mod net;
pub mod proxy_port;
pub mod reload;
pub mod replicas;
pub mod snapshot;
pub mod start;
pub mod store_event;
pub mod store_health;
pub mod testing;
pub mod translate;
pub mod wall_clock;
pub mod world;
