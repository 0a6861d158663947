//! The services whose weights and instances go into an Istio mesh, as objects of Istio.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use policy::Topology;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{ConfigError, ServiceConfig, validate::Validator};

/// The part of the configuration about Istio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Istio {
    /// None: the service account of the pod, or `KUBECONFIG`.
    pub kubeconfig: Option<PathBuf>,
    /// Otherwise the objects are shown, and nothing is changed.
    pub apply: bool,
    pub services: Vec<IstioService>,
}

/// A service as Istio knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioService {
    /// The name of the service in this configuration.
    pub service: String,
    /// The host of the requests: a Kubernetes Service's full name, or that of [`Entry`].
    pub host: String,
    /// Of the objects.
    pub namespace: String,
    /// None: the host is a Kubernetes Service, whose instances Istio knows.
    pub entry: Option<Entry>,
    /// The Gateways beside the sidecars (`mesh`), each as `namespace/name`.
    pub gateways: Vec<String>,
}

/// A host that exists in Istio by a `ServiceEntry` of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub port: u16,
    pub protocol: Protocol,
    /// Virtual addresses of the host, for clients that resolve it.
    pub addresses: Vec<IpAddr>,
}

/// The protocol of a port, by Istio's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Http,
    Http2,
    Grpc,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "HTTP",
            Protocol::Http2 => "HTTP2",
            Protocol::Grpc => "GRPC",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIstio {
    kubeconfig: Option<PathBuf>,
    #[serde(default = "yes")]
    apply: bool,
    services: Vec<Spanned<RawIstioService>>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIstioService {
    name: String,
    host: String,
    namespace: Option<String>,
    entry: Option<RawEntry>,
    #[serde(default)]
    gateways: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    port: u16,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    addresses: Vec<IpAddr>,
}

/// The longest name of a label or namespace (RFC 1123).
const LABEL_BYTES_MAX: usize = 63;
/// The longest name of a host or object (RFC 1123).
const NAME_BYTES_MAX: usize = 253;

impl Validator<'_> {
    pub(super) fn istio(
        &self,
        raw: Option<&Spanned<RawIstio>>,
        topology: &Topology,
        services: &[ServiceConfig],
    ) -> Result<Option<Istio>, ConfigError> {
        let Some(at) = raw else {
            return Ok(None);
        };
        let mut zones = topology.zones().map(|zone| topology.zone_name(zone));
        if let Some(zone) = zones.find(|zone| !is_label(zone)) {
            let message = format!(
                "zone {zone:?} cannot name a subset: in an Istio mesh zones have at most 57 letters, digits and `-`"
            );
            return Err(self.error(at, "istio", message));
        }
        let mut hosts = BTreeSet::new();
        let known: BTreeMap<&str, &ServiceConfig> =
            services.iter().map(|it| (it.name.as_str(), it)).collect();
        let read = at.value.services.iter().enumerate().map(|(index, at)| {
            let service = self.istio_service(index, at, &known)?;
            if !hosts.insert(service.host.clone()) {
                let message = format!("{:?} stands here twice: name each host once", service.host);
                return Err(self.error(at, &format!("istio.services[{index}].host"), message));
            }
            Ok(service)
        });
        Ok(Some(Istio {
            kubeconfig: at.value.kubeconfig.clone(),
            apply: at.value.apply,
            services: read.collect::<Result<_, _>>()?,
        }))
    }

    fn istio_service(
        &self,
        index: usize,
        at: &Spanned<RawIstioService>,
        known: &BTreeMap<&str, &ServiceConfig>,
    ) -> Result<IstioService, ConfigError> {
        let raw = &at.value;
        let error = |name: &str, message: String| {
            Err(self.error(at, &format!("istio.services[{index}].{name}"), message))
        };
        if !known.contains_key(raw.name.as_str()) {
            let message = format!(
                "there is no service {:?}: it stands in `services`",
                raw.name
            );
            return error("name", message);
        }
        if !is_name(&raw.host) {
            let message = format!(
                "{:?} is no host: use a DNS name in lower case, without a port",
                raw.host
            );
            return error("host", message);
        }
        let of_host = kubernetes_namespace(&raw.host);
        if raw.entry.is_none() && of_host.is_none() {
            let message = format!(
                "{:?} is no Kubernetes Service (NAME.NAMESPACE.svc.DOMAIN): add an `entry` with its port",
                raw.host
            );
            return error("host", message);
        }
        if raw.entry.is_some() && of_host.is_some() {
            let message = "this host is a Kubernetes Service: remove `entry`".to_owned();
            return error("entry", message);
        }
        if raw.entry.as_ref().is_some_and(|entry| entry.port == 0) {
            return error("entry.port", "0: use 1 to 65535".to_owned());
        }
        let namespace = raw.namespace.as_deref().or(of_host);
        let Some(namespace) = namespace.filter(|it| is_label(it)) else {
            let message = "name the namespace of the objects".to_owned();
            return error("namespace", message);
        };
        let is_gateway = |it: &&String| it.split('/').count() == 2 && it.split('/').all(is_name);
        if let Some(wrong) = raw.gateways.iter().find(|it| !is_gateway(it)) {
            let message = format!("{wrong:?}: use NAMESPACE/NAME of a Gateway");
            return error("gateways", message);
        }
        Ok(IstioService {
            service: raw.name.clone(),
            host: raw.host.clone(),
            namespace: namespace.to_owned(),
            entry: raw.entry.as_ref().map(|entry| Entry {
                port: entry.port,
                protocol: entry.protocol,
                addresses: entry.addresses.clone(),
            }),
            gateways: raw.gateways.clone(),
        })
    }
}

/// The namespace of a Kubernetes Service's full name.
fn kubernetes_namespace(host: &str) -> Option<&str> {
    let mut labels = host.split('.').skip(1);
    let namespace = labels.next()?;
    (labels.next()? == "svc").then_some(namespace)
}

fn is_label(text: &str) -> bool {
    // A subset's name has a prefix of six bytes.
    text.len() <= LABEL_BYTES_MAX - 6 && is_dns_label(text)
}

fn is_dns_label(text: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= LABEL_BYTES_MAX
        && ends.iter().all(|b| b.is_some_and(is_alphanumeric))
        && text.bytes().all(|b| is_alphanumeric(b) || b == b'-')
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX && text.split('.').all(is_dns_label)
}
