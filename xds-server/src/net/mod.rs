//! Ports: connections, their certificates, and the access rules for the names in these. Nothing
//! here knows the configuration.

pub mod access;
pub mod connections;
pub mod tls;
