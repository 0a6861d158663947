//! The configuration: one YAML file with the topology and the services.
//!
//! [`Config::parse`] is the only door: its result is checked, and its errors name the file, the
//! line and the field.

mod authority;
mod digest;
mod failover;
mod istio;
mod listen;
mod listeners;
mod proxy_tls;
mod resilience;
mod routing;
mod schema;
mod terms;
#[cfg(test)]
mod tests;
mod validate;

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use agent::etcd_access::EtcdAccess;
use policy::{
    Demand, Explain, Failover, KeySource, Plans, RegionRule, Route, Service, Topology, TraceRule,
    Weighting, Writes,
};

use registry::record::{Instance, InvalidRecord};
use serde::Deserialize;

use crate::net::{access::Access, connections::Limits, tls::TlsFiles};
use xds::resource::{Kind, Resource};

pub use agent::yaml::ConfigError;
pub(crate) use authority::CONTROL_PLANE;
pub use authority::{Authority, CellConfig};
pub use istio::{Entry as IstioEntry, Istio, IstioService, Protocol as IstioProtocol};
pub(crate) use listeners::is_any_ipv6;
pub use listeners::{
    EscapedSlashes, HeadersWithUnderscoresAction, ListenerConfig, ListenerLimits, Listeners,
};
pub use proxy_tls::{
    DownstreamTls, SdsSecret, ServerCertificate, TlsCertificate, TrustedCa, UpstreamTls,
};
pub use resilience::{CircuitBreakers, OutlierDetection, Resilience, Sessions, Strategy};
pub use routing::{RouteOptions, RoutesOptions, Upgrades};

/// Everything that the control plane is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub listen: Listen,
    pub store: StoreConfig,
    pub xds: XdsConfig,
    /// The file with the last good state; none keeps none.
    pub state: Option<PathBuf>,
    /// Faults that change nothing today: fields under former names.
    pub warnings: Vec<ConfigError>,
    pub mesh: Mesh,
}

/// Where the control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// gRPC, for proxies.
    pub xds: PortConfig,
    /// HTTP, for people, probes and instances that register.
    pub admin: PortConfig,
    /// `host:port` at which other replicas reach the port for proxies; none: the address that it listens on.
    pub advertise: Option<String>,
    /// The name in the certificates of the replicas that are reached there; none: the host of that address.
    pub advertise_name: Option<String>,
    /// None: no port speaks TLS.
    pub tls: Option<TlsFiles>,
    /// Of each of the two.
    pub limits: Limits,
}

/// A port of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    pub address: SocketAddr,
    /// It speaks TLS with the files of [`Listen::tls`], else plain text.
    pub is_tls: bool,
}

/// How proxies are spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdsConfig {
    /// How often proxies report their load.
    pub load_report_interval: Duration,
}

/// Where instances are registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    Embedded {
        path: PathBuf,
    },
    Etcd {
        access: EtcdAccess,
        /// How long etcd's history is kept before this control plane compacts it; none: it does not.
        keep_history: Option<Duration>,
    },
}

/// The part that may change while the control plane runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    pub topology: Topology,
    /// Where writes are fenced, the gateways are the last one.
    pub services: Vec<ServiceConfig>,
    /// None: no writes are fenced.
    pub authority: Option<Authority>,
    pub filter: FilterConfig,
    pub listeners: Listeners,
    pub ttls: Ttls,
    pub explain: Option<Explain>,
    pub guard: Guard,
    /// None: nothing goes into an Istio mesh.
    pub istio: Option<Istio>,
    pub access: Arc<Access>,
    /// Equal on replicas that serve their proxies the same.
    pub digest: u64,
}

/// The limits of plausible change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Where more than this share of all instances vanishes within a second, they are kept. 100: everything is believed.
    pub vanish_percent: u8,
    /// Instances may have loopback addresses, which lead each proxy to its own machine, its admin interface included.
    pub loopback_instances: bool,
}

impl Guard {
    /// Whether proxies may be sent to the address of this instance.
    pub fn check(&self, instance: &Instance) -> Result<(), InvalidRecord> {
        match instance.address.is_loopback() && !self.loopback_instances {
            true => Err(InvalidRecord::Loopback(instance.address)),
            false => Ok(()),
        }
    }
}

/// The wasm filter as the proxies find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterConfig {
    /// A path on the proxies' machines.
    pub path: String,
    /// Raised by the operator to have a policy or a filter that was refused tried again.
    pub generation: u64,
}

/// How long a proxy may keep its resources without hearing from a control plane, by kind, in
/// seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ttls([Option<NonZeroU32>; Kind::ALL.len()]);

impl Ttls {
    pub fn of(&self, kind: Kind) -> Option<NonZeroU32> {
        self.0[kind.index()]
    }

    /// The resource with its kind's time to live, if there is one.
    pub fn applied(&self, kind: Kind, resource: Arc<Resource>) -> Arc<Resource> {
        match self.of(kind) {
            Some(ttl_s) => Arc::new(resource.lasting(ttl_s)),
            None => resource,
        }
    }
}

/// How proxies speak to a service's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/2 where a route is for gRPC, which needs it, and HTTP/1.1 elsewhere, which every server speaks.
    #[default]
    Auto,
    Http1,
    Http2,
    /// As the client spoke to the proxy: for instances that speak both.
    Downstream,
}

/// A service as it is configured. Its plans follow from its instances, so they are not here.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceConfig {
    pub name: String,
    pub protocol: Protocol,
    pub routes: Vec<Route>,
    pub region_missing: RegionRule,
    pub region_unknown: RegionRule,
    pub trace_missing: TraceRule,
    pub weighting: Weighting,
    /// When it is taken out of a zone, and how it comes back.
    pub failover: Failover,
    /// The expected requests of each zone.
    pub demands: Vec<Demand>,
    pub zone_affinity: Option<KeySource>,
    pub writes: Writes,
    pub resilience: Resilience,
    /// How proxies connect to its instances. None: plain text.
    pub tls: Option<UpstreamTls>,
}

impl Config {
    /// Parses and checks `text`, which stands in `file`.
    pub fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
        let raw = agent::yaml::read(file, text)?;
        let mut config = validate::Validator::of(file).config(raw)?;
        config.mesh.digest = digest::digest(text);
        Ok(config)
    }
}

impl ServiceConfig {
    /// The service as the policy has it, before there are plans: they follow from its instances.
    pub fn unplanned(&self) -> Service {
        Service {
            name: self.name.clone(),
            routes: self.routes.clone(),
            region_missing: self.region_missing,
            region_unknown: self.region_unknown,
            trace_missing: self.trace_missing,
            zone_affinity: self.zone_affinity.clone(),
            writes: self.writes.clone(),
            plans: Plans::default(),
        }
    }
}
