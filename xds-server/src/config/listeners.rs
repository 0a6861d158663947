//! The listeners of the proxies of each role, and their limits.
//!
//! The defaults are those that Envoy recommends for a proxy at the edge ("Configuring Envoy as an edge proxy").

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{ConfigError, DownstreamTls, proxy_tls::RawDownstreamTls, validate::Validator};
use crate::snapshot::Role;

/// A day.
const TIME_MS_MAX: u32 = 86_400_000;

/// The listeners of the proxies of each role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    pub gateway: ListenerConfig,
    pub sidecar: ListenerConfig,
    /// Whether gRPC clients that speak xDS by themselves are served, too.
    pub grpc: bool,
}

impl Listeners {
    /// Where the proxies of a role listen; none for clients, which listen on nothing.
    pub fn of(&self, role: Role) -> Option<&ListenerConfig> {
        match role {
            Role::Gateway => Some(&self.gateway),
            Role::Sidecar => Some(&self.sidecar),
            Role::Grpc | Role::Guest => None,
        }
    }
}

/// A listener on the proxies' machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Port 0 is the kernel's choice, which Envoy's admin interface tells.
    pub address: SocketAddr,
    /// It listens on these, too.
    pub additional_addresses: Vec<SocketAddr>,
    /// On `::` it takes IPv4 as well.
    pub ipv4_compat: bool,
    /// A file on the proxies' machines; none writes no access log.
    pub access_log: Option<String>,
    pub escaped_slashes: EscapedSlashes,
    pub headers_with_underscores_action: HeadersWithUnderscoresAction,
    /// Proxies ask for virtual hosts when the first request to each comes, instead of having all of them.
    pub on_demand: bool,
    /// None: plain text.
    pub tls: Option<DownstreamTls>,
    /// How many addresses at the end of `x-forwarded-for` come from proxies in front that are trusted.
    pub xff_num_trusted_hops: u32,
    /// Connections begin with a PROXY protocol header (version 1 or 2), which a load balancer in front writes.
    pub proxy_protocol: bool,
    /// HTTP/1.0 is taken. A request without `Host` is for this one.
    pub default_host_for_http_10: Option<String>,
    pub limits: ListenerLimits,
}

impl ListenerConfig {
    /// All addresses, the listener's own first.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        [self.address]
            .into_iter()
            .chain(self.additional_addresses.iter().copied())
    }

    fn at(address: SocketAddr) -> ListenerConfig {
        ListenerConfig {
            address,
            additional_addresses: Vec::new(),
            ipv4_compat: true,
            access_log: Some(STANDARD_OUTPUT.to_owned()),
            escaped_slashes: EscapedSlashes::default(),
            headers_with_underscores_action: HeadersWithUnderscoresAction::default(),
            on_demand: false,
            tls: None,
            xff_num_trusted_hops: 0,
            proxy_protocol: false,
            default_host_for_http_10: None,
            limits: ListenerLimits::default(),
        }
    }
}

/// How much one client may ask of a listener. Times of 0 are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Of bytes that are read and not passed on yet, and of bytes that are to be written.
    pub per_connection_buffer_limit_bytes: u32,
    /// From the first byte of a request to the end of its headers.
    pub request_headers_timeout_ms: u32,
    /// How long a stream may be silent while it has no route, or one that says nothing: routes of services say by themselves.
    pub stream_idle_timeout_ms: u32,
    pub max_request_headers_kb: u32,
    pub max_headers_count: u32,
    /// How long a connection may be without a request.
    pub idle_timeout_ms: u32,
    pub max_connection_duration_ms: u32,
    pub max_concurrent_streams: u32,
    pub initial_stream_window_size: u32,
    pub initial_connection_window_size: u32,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        ListenerLimits {
            per_connection_buffer_limit_bytes: 32_768,
            request_headers_timeout_ms: 10_000,
            stream_idle_timeout_ms: 300_000,
            max_request_headers_kb: 60,
            max_headers_count: 100,
            idle_timeout_ms: 3_600_000,
            max_connection_duration_ms: 0,
            max_concurrent_streams: 100,
            initial_stream_window_size: 65_536,
            initial_connection_window_size: 1_048_576,
        }
    }
}

/// The action for a path with `%2F` or `%5C` in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EscapedSlashes {
    /// Status 400. A service that decodes them may see another path than the one that was decided about, and take a
    /// write where a read was let through.
    #[default]
    Reject,
    /// For services that carry them in names.
    Keep,
}

/// The action for a request with a header whose name has a `_` in it. Envoy's values, in lower
/// case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadersWithUnderscoresAction {
    Allow,
    /// Status 400. Many servers take `x_user` for `x-user`, and so could be told names that no
    /// proxy has checked.
    #[default]
    RejectRequest,
    DropHeader,
}

const STANDARD_OUTPUT: &str = "/dev/stdout";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawListeners {
    gateway: RawListener,
    sidecar: RawListener,
    grpc: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawListener {
    address: Option<Spanned<String>>,
    port: Option<u16>,
    additional_addresses: Vec<RawAdditionalAddress>,
    ipv4_compat: Option<Spanned<bool>>,
    access_log: Option<Spanned<String>>,
    escaped_slashes: EscapedSlashes,
    on_demand: bool,
    tls: Option<Spanned<RawDownstreamTls>>,
    xff_num_trusted_hops: u32,
    proxy_protocol: bool,
    per_connection_buffer_limit_bytes: Option<Spanned<u32>>,
    request_headers_timeout_ms: Option<Spanned<u32>>,
    stream_idle_timeout_ms: Option<Spanned<u32>>,
    max_request_headers_kb: Option<Spanned<u32>>,
    common_http_protocol_options: RawCommonOptions,
    http_protocol_options: RawHttp1Options,
    http2_protocol_options: RawHttp2Options,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdditionalAddress {
    address: Spanned<String>,
    /// Without it that of the listener.
    port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCommonOptions {
    idle_timeout_ms: Option<Spanned<u32>>,
    max_connection_duration_ms: Option<Spanned<u32>>,
    max_headers_count: Option<Spanned<u32>>,
    headers_with_underscores_action: Option<HeadersWithUnderscoresAction>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHttp1Options {
    default_host_for_http_10: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHttp2Options {
    max_concurrent_streams: Option<Spanned<u32>>,
    initial_stream_window_size: Option<Spanned<u32>>,
    initial_connection_window_size: Option<Spanned<u32>>,
}

impl Validator<'_> {
    pub(super) fn listeners(&self, raw: &RawListeners) -> Result<Listeners, ConfigError> {
        let gateway = ListenerConfig::at(SocketAddr::from(([0, 0, 0, 0], 8080)));
        let sidecar = ListenerConfig {
            // The application on the same machine is no stranger.
            headers_with_underscores_action: HeadersWithUnderscoresAction::Allow,
            ..ListenerConfig::at(SocketAddr::from(([127, 0, 0, 1], 15001)))
        };
        Ok(Listeners {
            gateway: self.listener("listeners.gateway", &raw.gateway, gateway)?,
            sidecar: self.listener("listeners.sidecar", &raw.sidecar, sidecar)?,
            grpc: raw.grpc,
        })
    }

    fn listener(
        &self,
        field: &str,
        raw: &RawListener,
        default: ListenerConfig,
    ) -> Result<ListenerConfig, ConfigError> {
        let ip = match &raw.address {
            None => default.address.ip(),
            Some(at) => self.ip(&format!("{field}.address"), at)?,
        };
        let address = SocketAddr::new(ip, raw.port.unwrap_or(default.address.port()));
        let tls = raw.tls.as_ref();
        let tls = tls.map(|at| self.downstream_tls(&format!("{field}.tls"), at));
        let mut config = ListenerConfig {
            escaped_slashes: raw.escaped_slashes,
            headers_with_underscores_action: (raw.common_http_protocol_options)
                .headers_with_underscores_action
                .unwrap_or(default.headers_with_underscores_action),
            on_demand: raw.on_demand,
            tls: tls.transpose()?,
            xff_num_trusted_hops: raw.xff_num_trusted_hops,
            proxy_protocol: raw.proxy_protocol,
            limits: self.limits_of(field, raw)?,
            ..ListenerConfig::at(address)
        };
        for (index, at) in raw.additional_addresses.iter().enumerate() {
            let field = format!("{field}.additional_addresses[{index}].address");
            let ip = self.ip(&field, &at.address)?;
            let also = SocketAddr::new(ip, at.port.unwrap_or(address.port()));
            if also.port() > 0 && config.addresses().any(|other| other == also) {
                let message = format!("the listener has {also} already");
                return Err(self.error(&at.address, &field, message));
            }
            config.additional_addresses.push(also);
        }
        if let Some(at) = &raw.ipv4_compat {
            if !config.addresses().any(|address| is_any_ipv6(address.ip())) {
                let message = "only the address `::` can take IPv4 as well";
                return Err(self.error(at, &format!("{field}.ipv4_compat"), message));
            }
            config.ipv4_compat = at.value;
        }
        if let Some(at) = &raw.access_log {
            if at.value.ends_with('/') || at.value.contains('\0') {
                let message = format!("{:?} is no file: name one, or \"\" for none", at.value);
                return Err(self.error(at, &format!("{field}.access_log"), message));
            }
            config.access_log = Some(at.value.clone()).filter(|path| !path.is_empty());
        }
        if let Some(at) = &raw.http_protocol_options.default_host_for_http_10 {
            let host = at.value.to_ascii_lowercase();
            if !is_host(&host) {
                let field = format!("{field}.http_protocol_options.default_host_for_http_10");
                let message = format!("{:?}: a host name without a port", at.value);
                return Err(self.error(at, &field, message));
            }
            config.default_host_for_http_10 = Some(host);
        }
        Ok(config)
    }

    /// An address to listen on. Envoy looks up no names, and refuses addresses that it cannot bind
    /// on any machine.
    fn ip(&self, field: &str, at: &Spanned<String>) -> Result<IpAddr, ConfigError> {
        let text = at.value.as_str();
        let refuse = |message: String| Err(self.error(at, field, message));
        let ip = match text.parse::<IpAddr>() {
            Ok(ip) => ip,
            Err(_) if text.is_empty() => {
                return refuse("empty: give an IP address, like 0.0.0.0 or ::".to_owned());
            }
            Err(_) if text.parse::<SocketAddr>().is_ok() => {
                return refuse(format!("{text:?} has a port: that stands in `port`"));
            }
            Err(_) if text.starts_with('[') => {
                return refuse(format!("{text:?}: leave out the brackets"));
            }
            Err(_) => {
                return refuse(format!(
                    "{text:?} is no IP address, and names are not looked up: give one, like 0.0.0.0 or ::"
                ));
            }
        };
        if ip != ip.to_canonical() {
            return refuse(format!("{text:?} is an IPv4 address: write it as one"));
        }
        let (broadcast, link_local) = match ip {
            IpAddr::V4(ip) => (ip.is_broadcast(), false),
            IpAddr::V6(ip) => (false, ip.is_unicast_link_local()),
        };
        if ip.is_multicast() || broadcast {
            return refuse(format!(
                "{text:?}: no listener can accept connections there"
            ));
        }
        if link_local {
            return refuse(format!(
                "{text:?} belongs to a single link, and Envoy's configuration cannot name a link: use `::` or another address"
            ));
        }
        Ok(ip)
    }

    fn limits_of(&self, field: &str, raw: &RawListener) -> Result<ListenerLimits, ConfigError> {
        let mut limits = ListenerLimits::default();
        let common = &raw.common_http_protocol_options;
        let http2 = &raw.http2_protocol_options;
        let window = 65_535..=(i32::MAX as u32);
        let time = 0..=TIME_MS_MAX;
        let of = |part: &str, name: &str| match part {
            "" => format!("{field}.{name}"),
            part => format!("{field}.{part}.{name}"),
        };
        let read =
            |part, name, at: &Option<Spanned<u32>>, range: RangeInclusive<u32>, limit: &mut u32| {
                let Some(at) = at else { return Ok(()) };
                if !range.contains(&at.value) {
                    let (from, to) = (range.start(), range.end());
                    let message = format!("{}: {from} to {to} are possible", at.value);
                    return Err(self.error(at, &of(part, name), message));
                }
                *limit = at.value;
                Ok(())
            };
        read(
            "",
            "per_connection_buffer_limit_bytes",
            &raw.per_connection_buffer_limit_bytes,
            4_096..=(1 << 30),
            &mut limits.per_connection_buffer_limit_bytes,
        )?;
        read(
            "",
            "request_headers_timeout_ms",
            &raw.request_headers_timeout_ms,
            time.clone(),
            &mut limits.request_headers_timeout_ms,
        )?;
        read(
            "",
            "stream_idle_timeout_ms",
            &raw.stream_idle_timeout_ms,
            time.clone(),
            &mut limits.stream_idle_timeout_ms,
        )?;
        read(
            "",
            "max_request_headers_kb",
            &raw.max_request_headers_kb,
            // The most that Envoy can.
            1..=8_192,
            &mut limits.max_request_headers_kb,
        )?;
        let part = "common_http_protocol_options";
        read(
            part,
            "idle_timeout_ms",
            &common.idle_timeout_ms,
            time.clone(),
            &mut limits.idle_timeout_ms,
        )?;
        read(
            part,
            "max_connection_duration_ms",
            &common.max_connection_duration_ms,
            time,
            &mut limits.max_connection_duration_ms,
        )?;
        read(
            part,
            "max_headers_count",
            &common.max_headers_count,
            1..=10_000,
            &mut limits.max_headers_count,
        )?;
        let part = "http2_protocol_options";
        read(
            part,
            "max_concurrent_streams",
            &http2.max_concurrent_streams,
            1..=(i32::MAX as u32),
            &mut limits.max_concurrent_streams,
        )?;
        read(
            part,
            "initial_stream_window_size",
            &http2.initial_stream_window_size,
            window.clone(),
            &mut limits.initial_stream_window_size,
        )?;
        read(
            part,
            "initial_connection_window_size",
            &http2.initial_connection_window_size,
            window,
            &mut limits.initial_connection_window_size,
        )?;
        Ok(limits)
    }
}

/// Every address of IPv6, and where that is wanted of IPv4.
pub(crate) fn is_any_ipv6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unspecified())
}

fn is_host(name: &str) -> bool {
    let edges_ok = !name.starts_with('.') && !name.ends_with('.') && !name.is_empty();
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    edges_ok && name.len() <= 253 && name.bytes().all(letter)
}
