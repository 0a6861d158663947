//! Ports: connections, their certificates, and what the names in these permit. Nothing here knows the configuration.

pub mod access;
pub mod connections;
pub mod tls;
