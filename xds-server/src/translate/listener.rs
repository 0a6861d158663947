//! LDS: the listener of a role's proxies.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            common::mutation_rules::v3::{
                HeaderMutation, header_mutation::Action, header_mutation::RemoveOnMatch,
            },
            core::v3::{
                Address, ConfigSource, ExtensionConfigSource, Http1ProtocolOptions,
                Http2ProtocolOptions, HttpProtocolOptions, TcpKeepalive, TypedExtensionConfig,
                address, http_protocol_options::HeadersWithUnderscoresAction as EnvoyUnderscores,
            },
            listener::v3::{
                AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter,
                filter, listener_filter,
            },
        },
        extensions::{
            filters::{
                http::{
                    on_demand::v3::OnDemand, router::v3::Router,
                    stateful_session::v3::StatefulSession,
                },
                listener::{proxy_protocol::v3::ProxyProtocol, tls_inspector::v3::TlsInspector},
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds,
                    http_connection_manager::{
                        CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction,
                        RouteSpecifier, SetCurrentClientCertDetails, UpgradeConfig,
                    },
                    http_filter,
                },
            },
            http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyMutation,
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::BoolValue,
};
use policy::headers;
use prost::Message;

use super::{
    FILTER, LISTENER, ROUTES, SESSIONS,
    access_log::access_log,
    cluster::socket,
    duration_ms,
    filter::{fallback, type_url},
    from_ads, local_reply, millis,
    place::keeps_sessions,
    tls, uint32,
};
use crate::{
    config::{
        DownstreamTls, EscapedSlashes, HeadersWithUnderscoresAction, ListenerConfig, Mesh,
        ServerCertificate, is_any_ipv6,
    },
    snapshot::Role,
};
use xds::resource::{Resource, any};

/// How long a proxy waits for the policy before it serves with the fallback.
const POLICY_TIMEOUT_MS: i32 = 1_000;

/// The listener of a role's proxies; none for gRPC clients, which do not listen.
pub fn listener(mesh: &Mesh, role: Role) -> Option<Arc<Resource>> {
    let at = mesh.listeners.of(role)?;
    let mut manager = any(&connection_manager(mesh, at, role));
    manager.value.extend(local_reply::reasons().encode_to_vec());
    let filters = vec![Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(manager)),
    }];
    // Envoy 1.40 lets an additional address accept both families only if the first one could.
    let mut addresses: Vec<SocketAddr> = at.addresses().collect();
    addresses.sort_by_key(|address| !is_any_ipv6(address.ip()));
    let mut addresses = addresses.into_iter().map(|address| listening(at, address));
    let listener = Listener {
        name: LISTENER.to_owned(),
        address: addresses.next(),
        additional_addresses: addresses
            .map(|also| AdditionalAddress {
                address: Some(also),
                ..AdditionalAddress::default()
            })
            .collect(),
        per_connection_buffer_limit_bytes: uint32(at.limits.per_connection_buffer_limit_bytes),
        // Detects a client that vanished, even on a stream that may be silent for long.
        tcp_keepalive: Some(TcpKeepalive {
            keepalive_time: uint32(60),
            keepalive_interval: uint32(20),
            keepalive_probes: uint32(3),
        }),
        listener_filters: listener_filters(at),
        filter_chains: filter_chains(at.tls.as_ref(), filters),
        ..Listener::default()
    };
    Some(Arc::new(Resource::encode(LISTENER, &listener)))
}

fn listening(at: &ListenerConfig, address: SocketAddr) -> Address {
    let mut listening = socket(&address.ip().to_string(), address.port());
    if let Some(address::Address::SocketAddress(socket)) = &mut listening.address {
        let any_ipv4 = SocketAddr::from(([0, 0, 0, 0], address.port()));
        let apart = at.addresses().any(|other| other == any_ipv4);
        socket.ipv4_compat = at.ipv4_compat && is_any_ipv6(address.ip()) && !apart;
    }
    listening
}

/// The listener filters that run before a filter chain is chosen, in this order.
fn listener_filters(at: &ListenerConfig) -> Vec<ListenerFilter> {
    let filter = |name: &str, config| ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    };
    let proxy_protocol = (at.proxy_protocol).then(|| {
        let config = any(&ProxyProtocol::default());
        filter("envoy.filters.listener.proxy_protocol", config)
    });
    let tls_inspector = (at.tls.as_ref()).map(|_| {
        let config = any(&TlsInspector::default());
        filter("envoy.filters.listener.tls_inspector", config)
    });
    proxy_protocol.into_iter().chain(tls_inspector).collect()
}

/// One for each certificate, or one for plaintext. Connections with a server name (SNI) without a
/// chain are rejected.
fn filter_chains(tls: Option<&DownstreamTls>, filters: Vec<Filter>) -> Vec<FilterChain> {
    let Some(tls) = tls else {
        return vec![FilterChain {
            filters,
            ..FilterChain::default()
        }];
    };
    let chain = |certificate: &ServerCertificate| FilterChain {
        filter_chain_match: (!certificate.hosts.is_empty()).then(|| FilterChainMatch {
            server_names: certificate.hosts.clone(),
            ..FilterChainMatch::default()
        }),
        filters: filters.clone(),
        transport_socket: Some(tls::downstream(tls, certificate)),
        ..FilterChain::default()
    };
    tls.certificates.iter().map(chain).collect()
}

/// The forwarding of a client's certificate to upstreams. A copy of the header from outside is
/// always removed.
fn client_certificate(at: &ListenerConfig) -> ForwardClientCertDetails {
    match at.tls.as_ref().and_then(|tls| tls.trusted_ca.as_ref()) {
        Some(_) => ForwardClientCertDetails::SanitizeSet,
        None => ForwardClientCertDetails::Sanitize,
    }
}

fn certificate_details() -> SetCurrentClientCertDetails {
    SetCurrentClientCertDetails {
        subject: Some(BoolValue { value: true }),
        dns: true,
        uri: true,
        ..SetCurrentClientCertDetails::default()
    }
}

fn connection_manager(mesh: &Mesh, at: &ListenerConfig, role: Role) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: LISTENER.to_owned(),
        codec_type: CodecType::Auto.into(),
        http_filters: (at.on_demand.then(on_demand_filter).into_iter())
            .chain([tidegate_filter(mesh)])
            .chain(any_keeps_sessions(mesh).then(sessions_filter))
            .chain([router_filter()])
            .collect(),
        access_log: at.access_log.iter().map(|path| access_log(path)).collect(),
        upgrade_configs: upgrades(mesh),
        common_http_protocol_options: Some(common_options(at)),
        http_protocol_options: at.default_host_for_http_10.as_ref().map(|host| {
            Http1ProtocolOptions {
                accept_http_10: true,
                default_host_for_http_10: host.clone(),
                ..Http1ProtocolOptions::default()
            }
        }),
        http2_protocol_options: Some(http2_options(mesh, at)),
        max_request_headers_kb: uint32(at.limits.max_request_headers_kb),
        request_headers_timeout: duration_ms(at.limits.request_headers_timeout_ms),
        stream_idle_timeout: duration_ms(at.limits.stream_idle_timeout_ms),
        // A fully qualified name is the same host. The dot is removed here, before routes and
        // filter, so that they agree.
        strip_trailing_host_dot: true,
        // At the edge the peer is the client. A sidecar's peer is the application, which may
        // forward a client's address.
        use_remote_address: Some(BoolValue {
            value: role == Role::Gateway,
        }),
        xff_num_trusted_hops: at.xff_num_trusted_hops,
        forward_client_cert_details: client_certificate(at).into(),
        set_current_client_cert_details: Some(certificate_details()),
        // Routes and filter must see one path, or a write could pass as another route's read.
        normalize_path: Some(BoolValue { value: true }),
        merge_slashes: true,
        path_with_escaped_slashes_action: match at.escaped_slashes {
            EscapedSlashes::Reject => PathWithEscapedSlashesAction::RejectRequest.into(),
            EscapedSlashes::Keep => PathWithEscapedSlashesAction::KeepUnchanged.into(),
        },
        early_header_mutation_extensions: vec![strip_internal_headers(at)],
        // Otherwise Envoy tells a client to send its body before the filter can reject the request.
        proxy_100_continue: true,
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(from_ads()),
            route_config_name: ROUTES.to_owned(),
        })),
        ..HttpConnectionManager::default()
    }
}

fn common_options(at: &ListenerConfig) -> HttpProtocolOptions {
    let limits = &at.limits;
    HttpProtocolOptions {
        idle_timeout: duration_ms(limits.idle_timeout_ms),
        max_headers_count: uint32(limits.max_headers_count),
        headers_with_underscores_action: match at.headers_with_underscores_action {
            HeadersWithUnderscoresAction::Allow => EnvoyUnderscores::Allow,
            HeadersWithUnderscoresAction::RejectRequest => EnvoyUnderscores::RejectRequest,
            HeadersWithUnderscoresAction::DropHeader => EnvoyUnderscores::DropHeader,
        }
        .into(),
        max_connection_duration: (limits.max_connection_duration_ms > 0)
            .then_some(limits.max_connection_duration_ms)
            .and_then(duration_ms),
        ..HttpProtocolOptions::default()
    }
}

fn http2_options(mesh: &Mesh, at: &ListenerConfig) -> Http2ProtocolOptions {
    let limits = &at.limits;
    Http2ProtocolOptions {
        max_concurrent_streams: uint32(limits.max_concurrent_streams),
        initial_stream_window_size: uint32(limits.initial_stream_window_size),
        initial_connection_window_size: uint32(limits.initial_connection_window_size),
        // Upgrades of HTTP/2 are extended CONNECT requests (RFC 8441).
        allow_connect: !upgrades(mesh).is_empty(),
        ..Http2ProtocolOptions::default()
    }
}

/// The upgrades that any service accepts. Envoy checks them before the filter has chosen a route;
/// the routes of other services reject them.
fn upgrades(mesh: &Mesh) -> Vec<UpgradeConfig> {
    let services = mesh.services.iter();
    let taken = services.flat_map(|service| &service.resilience.upgrades.taken);
    let all: BTreeSet<&String> = taken.collect();
    all.into_iter()
        .map(|name| UpgradeConfig {
            upgrade_type: name.clone(),
            ..UpgradeConfig::default()
        })
        .collect()
}

/// Routes that switch the filter off would otherwise trust a client's headers. It also removes
/// names that many servers treat as the same, if the listener can receive them.
fn strip_internal_headers(at: &ListenerConfig) -> TypedExtensionConfig {
    let with_prefix = |prefix: String| {
        Action::RemoveOnMatch(RemoveOnMatch {
            key_matcher: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Prefix(prefix)),
                ..StringMatcher::default()
            }),
        })
    };
    let mut mutations = vec![
        with_prefix(headers::INTERNAL_PREFIX.to_owned()),
        Action::Remove(headers::ALT_ROUTE.to_owned()),
    ];
    if at.headers_with_underscores_action == HeadersWithUnderscoresAction::Allow {
        let folded = |name: &str| name.replace('-', "_");
        mutations.extend([
            with_prefix(folded(headers::INTERNAL_PREFIX)),
            Action::Remove(folded(headers::FORWARDED)),
            Action::Remove(folded(headers::PRESENTED_EPOCH)),
        ]);
    }
    let mutations = mutations.into_iter().map(|action| HeaderMutation {
        action: Some(action),
    });
    TypedExtensionConfig {
        name: "envoy.http.early_header_mutation.header_mutation".to_owned(),
        typed_config: Some(any(&EarlyMutation {
            mutations: mutations.collect(),
        })),
    }
}

fn tidegate_filter(mesh: &Mesh) -> HttpFilter {
    let source = ExtensionConfigSource {
        config_source: Some(ConfigSource {
            initial_fetch_timeout: millis(POLICY_TIMEOUT_MS),
            ..from_ads()
        }),
        default_config: Some(fallback(&mesh.filter)),
        // The policy arrives within milliseconds of the listener, so the listener waits for it: no
        // write is fenced without need.
        apply_default_config_without_warming: false,
        type_urls: vec![type_url(&mesh.filter)],
    };
    HttpFilter {
        name: FILTER.to_owned(),
        config_type: Some(http_filter::ConfigType::ConfigDiscovery(source)),
        ..HttpFilter::default()
    }
}

/// Before all others: they use the route that it fetches.
fn on_demand_filter() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.on_demand".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(
            &OnDemand::default(),
        ))),
        ..HttpFilter::default()
    }
}

/// A filter costs every request something, so it is present only if a service needs it.
fn any_keeps_sessions(mesh: &Mesh) -> bool {
    let mut services = mesh.services.iter();
    services.any(|service| keeps_sessions(&service.resilience.strategy))
}

fn sessions_filter() -> HttpFilter {
    HttpFilter {
        name: SESSIONS.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(
            &StatefulSession::default(),
        ))),
        ..HttpFilter::default()
    }
}

pub(super) fn router_filter() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(
            any(&Router::default()),
        )),
        ..HttpFilter::default()
    }
}
