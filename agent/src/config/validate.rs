//! From [`RawConfig`] to [`Config`]: its meaning, and its validity.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::http::uri::{PathAndQuery, Scheme};
use policy::topology::check_name;
use registry::record::{Health, Instance, InstanceKey};
use serde_saphyr::Spanned;

use super::schema::{
    RawConfig, RawExpect, RawHttp, RawInstance, RawListen, RawProbe, RawRegistry, RawStore,
};
use super::{
    Config, ConfigError, Files, GrpcOptions, HttpOptions, InstanceConfig, Listen,
    PROBE_TIMEOUT_MAX, ProbeKind, RegistryConfig, ServerFiles,
};
use crate::etcd_access::EtcdAccess;
use crate::health::Thresholds;
use crate::prober::Pace;

const DEFAULT_PORT: u16 = 18_010;
const LEASE_TTL_S: u64 = 5;
const DRAIN_S: u64 = 5;
const REPORT_EVERY_S: u64 = 5;
const INTERVAL_MS: u64 = 200;
const RETRY_MS: u64 = 50;
const FAILURES: u32 = 3;
const SUCCESSES: u32 = 2;

/// Turns the read document into the domain's types, and knows the file for its errors.
pub(super) struct Validator<'f> {
    pub(super) file: &'f str,
}

impl Validator<'_> {
    fn error<T>(&self, at: &Spanned<T>, field: &str, message: impl fmt::Display) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: at.referenced.line(),
            field: field.to_owned(),
            message: message.to_string(),
        }
    }

    pub(super) fn config(&self, raw: RawConfig) -> Result<Config, ConfigError> {
        let seconds = |field, at: &Option<_>, default, range| {
            self.number(field, at.as_ref(), default, range)
                .map(Duration::from_secs)
        };
        check_name(&raw.zone.value).map_err(|error| self.error(&raw.zone, "zone", error))?;
        // etcd gives no lease shorter than about 2 s.
        let lease_ttl = seconds("lease_ttl_s", &raw.lease_ttl_s, LEASE_TTL_S, 2..=3600)?;
        let drain = seconds("drain_s", &raw.drain_s, DRAIN_S, 0..=3600)?;
        let every = seconds(
            "report_every_s",
            &raw.report_every_s,
            REPORT_EVERY_S,
            1..=3600,
        )?;
        if raw.instances.value.is_empty() {
            let message = "empty: name at least one instance to probe and register";
            return Err(self.error(&raw.instances, "instances", message));
        }
        let instances = raw.instances.value.iter().enumerate();
        let instances = instances
            .map(|(index, at)| self.instance(&raw.zone.value, &format!("instances[{index}]"), at))
            .collect::<Result<Vec<_>, _>>()?;
        self.check_distinct(&raw.instances.value, &instances)?;
        Ok(Config {
            zone: raw.zone.value,
            listen: self.listen(raw.listen.as_ref())?,
            registry: self.registry(raw.store, raw.registry)?,
            lease_ttl,
            drain,
            report_every: every,
            instances,
        })
    }

    /// As the control plane's ports: TLS, or loopback, or plain text that the operator asks for.
    fn listen(&self, raw: Option<&Spanned<RawListen>>) -> Result<Listen, ConfigError> {
        let default = SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT));
        let Some(at) = raw else {
            return Ok(Listen {
                address: default,
                tls: None,
            });
        };
        let address = at.value.address.unwrap_or(default);
        let is_public = !address.ip().to_canonical().is_loopback();
        let message = match (&at.value.tls, at.value.plaintext) {
            (None, false) if is_public => format!(
                "{address} is not loopback, and would accept drains in plain text from every client that reaches it: add `tls: {{cert, key, client_ca}}`, or permit that with `plaintext: true`"
            ),
            (Some(_), true) => "`tls` and `plaintext: true` exclude each other".to_owned(),
            (tls, _) => {
                let tls = tls.as_ref().map(|raw| ServerFiles {
                    cert: raw.cert.clone(),
                    key: raw.key.clone(),
                    client_ca: raw.client_ca.clone(),
                });
                return Ok(Listen { address, tls });
            }
        };
        Err(self.error(at, "listen", message))
    }

    fn registry(
        &self,
        store: Option<RawStore>,
        registry: Option<RawRegistry>,
    ) -> Result<RegistryConfig, ConfigError> {
        match (store, registry) {
            (
                Some(RawStore::Etcd {
                    endpoints: at,
                    tls,
                    user,
                }),
                None,
            ) => {
                let endpoints = at.value.clone();
                let access = EtcdAccess {
                    endpoints,
                    tls,
                    user,
                };
                let checked = access.check();
                checked.map_err(|(field, message)| {
                    self.error(&at, &format!("store.etcd.{field}"), message)
                })?;
                Ok(RegistryConfig::Etcd(access))
            }
            (None, Some(RawRegistry { http, tls })) => {
                let example = match tls {
                    None => "http://127.0.0.1:18001",
                    Some(_) => "https://tidegate:18001",
                };
                self.check_addresses("registry.http", &http, example)?;
                let bases = http.value.iter();
                let bases = bases.map(|base| base.trim_end_matches('/').to_owned());
                Ok(RegistryConfig::Http {
                    bases: bases.collect(),
                    tls: tls.map(|Spanned { value: raw, .. }| Files {
                        ca: raw.ca,
                        own: Some((raw.cert, raw.key)),
                    }),
                })
            }
            _ => Err(ConfigError {
                file: self.file.to_owned(),
                line: 0,
                field: String::new(),
                message: "name one of the two: `store: {etcd: {endpoints: [...]}}` to register in etcd, or \
                          `registry: {http: [...]}` to register with control planes"
                    .to_owned(),
            }),
        }
    }

    fn check_addresses(
        &self,
        field: &str,
        at: &Spanned<Vec<String>>,
        example: &str,
    ) -> Result<(), ConfigError> {
        let scheme = example.split(':').next();
        if at.value.is_empty() {
            let message = format!("empty: name at least one address, like {example}");
            return Err(self.error(at, field, message));
        }
        for address in &at.value {
            let uri = (address.parse::<Uri>().ok())
                .filter(|uri| {
                    uri.scheme_str() == scheme && uri.host().is_some_and(|h| !h.is_empty())
                })
                .filter(|uri| matches!(uri.path(), "" | "/"));
            if uri.is_none() {
                let message = format!("{address:?}: an address is like {example}");
                return Err(self.error(at, field, message));
            }
        }
        Ok(())
    }

    fn check_distinct(
        &self,
        raw: &[Spanned<RawInstance>],
        instances: &[InstanceConfig],
    ) -> Result<(), ConfigError> {
        let mut names = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for (index, (at, instance)) in raw.iter().zip(instances).enumerate() {
            let line = at.referenced.line();
            let field = format!("instances[{index}]");
            if let Some(first) = names.insert(&instance.key, line) {
                let InstanceKey {
                    service, instance, ..
                } = &instance.key;
                let message = format!("{service}/{instance} stands in line {first} already");
                return Err(self.error(at, &field, message));
            }
            let address = SocketAddr::new(instance.record.address, instance.record.port);
            if let Some(first) = addresses.insert(address, line) {
                let message =
                    format!("{address} is the address of the instance in line {first} already");
                return Err(self.error(at, &field, message));
            }
        }
        Ok(())
    }

    fn instance(
        &self,
        zone: &str,
        field: &str,
        at: &Spanned<RawInstance>,
    ) -> Result<InstanceConfig, ConfigError> {
        let raw = &at.value;
        for (name, value) in [("service", &raw.service), ("instance", &raw.instance)] {
            check_name(value).map_err(|error| self.error(at, &format!("{field}.{name}"), error))?;
        }
        let record = Instance {
            address: raw.address,
            port: raw.port,
            health: Health::Healthy,
            weight: raw.weight,
            load1_per_core: 0.0,
            in_flight: 0,
            app_load: None,
            capacity_rps: raw.capacity_rps,
        };
        // By the reader's own parser: a record that is accepted here is accepted there. JSON has no
        // word for NaN and infinity, so they are rejected before.
        let number = raw.capacity_rps.unwrap_or(0.0);
        if !number.is_finite() {
            let message = "capacity_rps: a number of at least 0";
            return Err(self.error(at, field, message));
        }
        let parsed = Instance::parse(&record.to_json());
        let record = parsed.map_err(|error| self.error(at, field, error))?;
        let address = SocketAddr::new(record.address, record.port);
        let probe = format!("{field}.probe");
        Ok(InstanceConfig {
            key: InstanceKey {
                service: raw.service.clone(),
                zone: zone.to_owned(),
                instance: raw.instance.clone(),
            },
            record,
            role: raw.role.clone(),
            probe: self.probe(&probe, address, &raw.probe)?,
            pace: self.pace(&probe, &raw.probe.value)?,
            load: match &raw.load {
                None => None,
                Some(load) => Some(self.url(&format!("{field}.load.url"), &load.url)?),
            },
        })
    }

    fn url(&self, field: &str, at: &Spanned<String>) -> Result<Uri, ConfigError> {
        http_uri(&at.value).ok_or_else(|| {
            let message = format!("{:?}: a URL is like http://127.0.0.1:8080/load", at.value);
            self.error(at, field, message)
        })
    }

    fn pace(&self, field: &str, raw: &RawProbe) -> Result<Pace, ConfigError> {
        let ms = |name, at: &Option<_>, default, range| {
            self.number(&format!("{field}.{name}"), at.as_ref(), default, range)
                .map(Duration::from_millis)
        };
        let count = |name, at: &Option<_>, default| {
            self.number(&format!("{field}.{name}"), at.as_ref(), default, 1..=1000)
        };
        let timeout_max = PROBE_TIMEOUT_MAX.as_millis() as u64; // fits: 200
        let interval = ms("interval_ms", &raw.interval_ms, INTERVAL_MS, 10..=3_600_000)?;
        let retry_default = RETRY_MS.min(interval.as_millis() as u64); // fits: bounded above
        Ok(Pace {
            interval,
            retry: ms("retry_ms", &raw.retry_ms, retry_default, 10..=3_600_000)?,
            timeout: ms("timeout_ms", &raw.timeout_ms, timeout_max, 1..=timeout_max)?,
            thresholds: Thresholds {
                failures: count("failures", &raw.failures, FAILURES)?,
                successes: count("successes", &raw.successes, SUCCESSES)?,
            },
        })
    }

    fn number<T: Copy + PartialOrd + fmt::Display>(
        &self,
        field: &str,
        at: Option<&Spanned<T>>,
        default: T,
        range: RangeInclusive<T>,
    ) -> Result<T, ConfigError> {
        match at {
            None => Ok(default),
            Some(at) if range.contains(&at.value) => Ok(at.value),
            Some(at) => {
                let (min, max) = (range.start(), range.end());
                let message = format!("{}: {min} to {max} are possible", at.value);
                Err(self.error(at, field, message))
            }
        }
    }

    fn probe(
        &self,
        field: &str,
        instance: SocketAddr,
        at: &Spanned<RawProbe>,
    ) -> Result<ProbeKind, ConfigError> {
        let port = |kind: &str, port: &Option<Spanned<u16>>| match port {
            None => Ok(instance),
            Some(at) if at.value == 0 => {
                let message = "0: name the port to look at";
                Err(self.error(at, &format!("{field}.{kind}.port"), message))
            }
            Some(at) => Ok(SocketAddr::new(instance.ip(), at.value)),
        };
        match (&at.value.http, &at.value.grpc, &at.value.tcp) {
            (Some(raw), None, None) => {
                let address = port("http", &raw.port)?;
                self.http(&format!("{field}.http"), address, raw)
            }
            (None, Some(raw), None) => Ok(ProbeKind::Grpc(GrpcOptions {
                address: port("grpc", &raw.port)?,
                service: raw.service.clone(),
            })),
            (None, None, Some(raw)) => Ok(ProbeKind::Tcp(port("tcp", &raw.port)?)),
            _ => Err(self.error(at, field, "name one of `http`, `grpc` and `tcp`")),
        }
    }

    fn http(
        &self,
        field: &str,
        address: SocketAddr,
        raw: &RawHttp,
    ) -> Result<ProbeKind, ConfigError> {
        let path = match &raw.path {
            None => PathAndQuery::from_static("/"),
            Some(at) => {
                let path = Some(&at.value).filter(|path| path.starts_with('/'));
                let path = path.and_then(|path| path.parse::<PathAndQuery>().ok());
                path.ok_or_else(|| {
                    let message = format!("{:?}: a path is like /healthz", at.value);
                    self.error(at, &format!("{field}.path"), message)
                })?
            }
        };
        let host = match &raw.host {
            None => HeaderValue::from_str(&address.to_string()),
            Some(at) => HeaderValue::from_str(&at.value),
        };
        let host = host.map_err(|_| match &raw.host {
            Some(at) => self.error(at, &format!("{field}.host"), "not a host name"),
            None => unreachable!("an address consists of digits, colons, dots and brackets"),
        })?;
        let expect = match &raw.expect {
            None => vec![200..=399],
            Some(at) => expect(&at.value).ok_or_else(|| {
                let RawExpect(text) = &at.value;
                let message = format!(
                    "{text:?}: a status from 100 to 599 like 200, or ranges like 200-399, 404"
                );
                self.error(at, &format!("{field}.expect"), message)
            })?,
        };
        Ok(ProbeKind::Http(HttpOptions {
            address,
            path,
            host,
            expect,
        }))
    }
}

fn http_uri(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let plain = uri.scheme() == Some(&Scheme::HTTP) && uri.host().is_some_and(|h| !h.is_empty());
    plain.then_some(uri)
}

fn expect(RawExpect(text): &RawExpect) -> Option<Vec<RangeInclusive<u16>>> {
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
            let possible = 100 <= *range.start() && *range.end() <= 599 && !range.is_empty();
            possible.then_some(range)
        })
        .collect()
}
