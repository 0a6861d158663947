//! Where the control plane listens, in which way, and the access rules there.

use std::{net::SocketAddr, path::PathBuf};

use policy::Topology;
use serde::Deserialize;
use serde_saphyr::Spanned;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{ConfigError, Listen, PortConfig, validate::Validator};
use crate::{
    net::access::{Access, Pattern, Rule},
    net::connections::Limits,
    net::tls::TlsFiles,
    snapshot::Role,
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawListen {
    xds: Option<Spanned<SocketAddr>>,
    admin: Option<Spanned<SocketAddr>>,
    advertise: Option<Spanned<String>>,
    advertise_name: Option<Spanned<String>>,
    tls: Option<Spanned<RawTls>>,
    plaintext: Option<Spanned<Vec<RawPort>>>,
    limits: Option<Spanned<RawLimits>>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawPort {
    Xds,
    Admin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    guest_ca: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    connections: usize,
    per_client: usize,
}

impl Default for RawLimits {
    fn default() -> Self {
        let Limits {
            connections,
            per_client,
        } = Limits::default();
        RawLimits {
            connections,
            per_client,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAccess {
    proxies: Option<Spanned<Vec<Spanned<RawRule>>>>,
    registrars: Option<Spanned<Vec<Spanned<RawRule>>>>,
    operators: Option<Spanned<Vec<Spanned<RawRule>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    #[serde(rename = "match")]
    pattern: String,
    zones: Option<Vec<String>>,
    roles: Option<Vec<Role>>,
}

/// The scope of a list of `access`: its port, and whether its rules name zones and roles.
struct ListOf {
    field: &'static str,
    port: RawPort,
    zones: bool,
    roles: bool,
}

impl Validator<'_> {
    pub(super) fn listen(&self, raw: &RawListen) -> Result<Listen, ConfigError> {
        let plaintext = raw.plaintext.as_ref().map_or(&[][..], |at| &at.value);
        let tls = raw.tls.as_ref().map(|at| TlsFiles {
            cert: at.value.cert.clone(),
            key: at.value.key.clone(),
            client_ca: at.value.client_ca.clone(),
            guest_ca: at.value.guest_ca.clone(),
        });
        let port = |port, name: &str, at: &Option<Spanned<SocketAddr>>, default_port| {
            let is_plain = plaintext.contains(&port);
            let loopback = SocketAddr::from(([127, 0, 0, 1], default_port));
            let address = at.as_ref().map_or(loopback, |at| at.value);
            let is_public = !address.ip().to_canonical().is_loopback();
            if let Some(at) = at
                .as_ref()
                .filter(|_| is_public && tls.is_none() && !is_plain)
            {
                let message = format!(
                    "{address} is not loopback, and would speak plain text with every client that reaches it: add `listen.tls`, or permit that with `listen.plaintext: [{name}]`"
                );
                return Err(self.error(at, &format!("listen.{name}"), message));
            }
            Ok(PortConfig {
                address,
                is_tls: tls.is_some() && !is_plain,
            })
        };
        let listen = Listen {
            xds: port(RawPort::Xds, "xds", &raw.xds, 18_000)?,
            admin: port(RawPort::Admin, "admin", &raw.admin, 18_001)?,
            advertise: self.advertise(raw)?,
            advertise_name: self.advertise_name(raw)?,
            limits: self.limits(raw)?,
            tls,
        };
        match &raw.tls {
            Some(at) if !listen.xds.is_tls && !listen.admin.is_tls => {
                let message =
                    "no port uses it: take one out of `listen.plaintext`, or leave `tls` out";
                Err(self.error(at, "listen.tls", message))
            }
            _ => Ok(listen),
        }
    }

    fn advertise(&self, raw: &RawListen) -> Result<Option<String>, ConfigError> {
        let Some(at) = &raw.advertise else {
            return Ok(None);
        };
        let parts = at.value.rsplit_once(':');
        let reachable = parts.is_some_and(|(host, port)| {
            let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            let somewhere = !address.is_ok_and(|address| address.is_unspecified());
            let port = port.parse::<u16>().is_ok_and(|port| port > 0);
            let uri = format!("http://{}", at.value).parse::<http::Uri>();
            let plain = uri.is_ok_and(|uri| uri.path() == "/" && uri.query().is_none());
            !host.is_empty() && somewhere && port && plain
        });
        match reachable {
            true => Ok(Some(at.value.clone())),
            false => {
                let message = "not `host:port` of one host: other replicas connect to it";
                Err(self.error(at, "listen.advertise", message))
            }
        }
    }

    fn advertise_name(&self, raw: &RawListen) -> Result<Option<String>, ConfigError> {
        let Some(at) = &raw.advertise_name else {
            return Ok(None);
        };
        match ServerName::try_from(at.value.clone()) {
            Ok(_) => Ok(Some(at.value.clone())),
            Err(_) => {
                let message = "neither a DNS name nor an IP address: a certificate cannot have it";
                Err(self.error(at, "listen.advertise_name", message))
            }
        }
    }

    fn limits(&self, raw: &RawListen) -> Result<Limits, ConfigError> {
        let Some(at) = &raw.limits else {
            return Ok(Limits::default());
        };
        let RawLimits {
            connections,
            per_client,
        } = at.value;
        if connections == 0 || per_client == 0 {
            let message = "numbers from 1: 0 would reject every client";
            return Err(self.error(at, "listen.limits", message));
        }
        Ok(Limits {
            connections,
            per_client,
        })
    }

    pub(super) fn access(
        &self,
        raw: Option<&Spanned<RawAccess>>,
        topology: &Topology,
        listen: &Listen,
    ) -> Result<Access, ConfigError> {
        let Some(raw) = raw.map(|at| &at.value) else {
            return Ok(Access::default());
        };
        let read = |list: &Option<Spanned<Vec<Spanned<RawRule>>>>, about: ListOf| {
            let list = list.as_ref();
            list.map(|list| self.rules(list, &about, topology, listen))
                .transpose()
        };
        Ok(Access {
            proxies: read(
                &raw.proxies,
                ListOf {
                    field: "access.proxies",
                    port: RawPort::Xds,
                    zones: true,
                    roles: true,
                },
            )?,
            registrars: read(
                &raw.registrars,
                ListOf {
                    field: "access.registrars",
                    port: RawPort::Admin,
                    zones: true,
                    roles: false,
                },
            )?,
            operators: read(
                &raw.operators,
                ListOf {
                    field: "access.operators",
                    port: RawPort::Admin,
                    zones: false,
                    roles: false,
                },
            )?,
        })
    }

    fn rules(
        &self,
        list: &Spanned<Vec<Spanned<RawRule>>>,
        about: &ListOf,
        topology: &Topology,
        listen: &Listen,
    ) -> Result<Vec<Rule>, ConfigError> {
        let (is_tls, port) = match about.port {
            RawPort::Xds => (listen.xds.is_tls, "listen.xds"),
            RawPort::Admin => (listen.admin.is_tls, "listen.admin"),
        };
        if !is_tls {
            let message = format!(
                "{port} speaks plain text, where no client presents a certificate: configure `listen.tls` for it, or leave this out"
            );
            return Err(self.error(list, about.field, message));
        }
        if list.value.is_empty() {
            let message = "empty, which permits no client: add a rule, or leave it out to permit every client with a certificate";
            return Err(self.error(list, about.field, message));
        }
        (list.value.iter().enumerate())
            .map(|(index, at)| {
                let field = format!("{}[{index}]", about.field);
                self.rule(&field, at, about, topology)
            })
            .collect()
    }

    fn rule(
        &self,
        field: &str,
        at: &Spanned<RawRule>,
        about: &ListOf,
        topology: &Topology,
    ) -> Result<Rule, ConfigError> {
        let raw = &at.value;
        let error =
            |name: &str, message: &str| Err(self.error(at, &format!("{field}.{name}"), message));
        let pattern = Pattern::parse(&raw.pattern)
            .map_err(|error| self.error(at, &format!("{field}.match"), error))?;
        if !about.roles && (pattern.has_role() || raw.roles.is_some()) {
            return error("match", "roles are for proxies: leave them out here");
        }
        if !about.zones && (pattern.has_placeholders() || raw.zones.is_some()) {
            return error("match", "operators belong to no zone: leave zones out here");
        }
        if raw.zones.as_ref().is_some_and(Vec::is_empty)
            || raw.roles.as_ref().is_some_and(Vec::is_empty)
        {
            return error(
                "match",
                "empty `zones` or `roles` permit nothing: leave them out for all",
            );
        }
        let mut zones = raw.zones.iter().flatten();
        if let Some(zone) = zones.find(|zone| topology.zone_named(zone).is_none()) {
            return error("zones", &format!("there is no zone {zone:?}"));
        }
        Ok(Rule {
            pattern,
            zones: raw.zones.clone(),
            roles: raw.roles.clone(),
        })
    }
}
