//! The agent's configuration: one YAML file.
//!
//! [`Config::parse`] is the only door: its result is checked, and its errors name the file, the
//! line and the field.

mod schema;
#[cfg(test)]
mod tests;
mod validate;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use registry::record::{Instance, InstanceKey};

use crate::etcd_access::EtcdAccess;
pub use crate::https::Files;
pub use crate::probe::{GrpcOptions, HttpOptions};
use crate::prober::Pace;
use crate::yaml;
pub use crate::yaml::ConfigError;

/// The longest time-out of a probe.
pub const PROBE_TIMEOUT_MAX: Duration = Duration::from_millis(200);

/// Everything that the agent is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where all its instances are.
    pub zone: String,
    /// Metrics and drain.
    pub listen: Listen,
    pub registry: RegistryConfig,
    /// How long records outlive an agent that died.
    pub lease_ttl: Duration,
    /// From the moment that draining was written to the end of the records.
    pub drain: Duration,
    pub report_every: Duration,
    pub instances: Vec<InstanceConfig>,
}

/// Where the agent listens, and in which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub address: SocketAddr,
    /// None: it speaks plain text, on loopback or because the operator says so.
    pub tls: Option<ServerFiles>,
}

/// PEM files of a port that speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// The server's certificate, and the intermediate ones up to a CA that clients know.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Whose certificates clients must show. Probes need none.
    pub client_ca: PathBuf,
}

/// Where to register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryConfig {
    Etcd(EtcdAccess),
    /// Control planes' admin interfaces.
    Http {
        /// `http://host:port`, or `https://host:port` where there is `tls`.
        bases: Vec<String>,
        tls: Option<Files>,
    },
}

/// One instance to probe and register.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceConfig {
    pub key: InstanceKey,
    /// As it is registered, but for health and load.
    pub record: Instance,
    pub role: String,
    pub probe: ProbeKind,
    pub pace: Pace,
    /// Where the application says its load.
    pub load: Option<Uri>,
}

/// The kind of a probe, and its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    Http(HttpOptions),
    Grpc(GrpcOptions),
    Tcp(SocketAddr),
}

impl Config {
    /// Parses and checks `text`, which stands in `file`.
    pub fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
        let raw = yaml::read(file, text)?;
        validate::Validator { file }.config(raw)
    }
}
