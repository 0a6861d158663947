//! LDS: where a role's proxies take requests.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{AccessLog, access_log},
            common::mutation_rules::v3::{
                HeaderMutation, header_mutation::Action, header_mutation::RemoveOnMatch,
            },
            core::v3::{ConfigSource, ExtensionConfigSource, TypedExtensionConfig},
            listener::v3::{
                Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter,
                listener_filter,
            },
        },
        extensions::{
            access_loggers::file::v3::FileAccessLog,
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
                        RouteSpecifier, SetCurrentClientCertDetails,
                    },
                    http_filter,
                },
            },
            http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyMutation,
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{Any, BoolValue},
};
use policy::headers;
use prost::{Message, Name};

use super::{
    FILTER, LISTENER, ROUTES, SESSIONS, cluster::socket, filter::fallback, from_ads, millis,
    place::keeps_sessions, tls,
};
use crate::{
    config::{DownstreamTls, EscapedSlashes, ListenerAddress, Mesh, ServerCertificate},
    resource::{Resource, any},
    snapshot::Role,
};

/// How long a proxy waits for the policy before it serves with the fallback.
const POLICY_TIMEOUT_MS: i32 = 1_000;

/// One JSON object a request, by field. `decision` is the reason code, set by the route or, on a refusal, by the filter.
/// JSON because Envoy escapes values in it: what a client sends cannot pass for another field.
const ACCESS_LOG_FIELDS: &[(&str, &str)] = &[
    ("authority", "%REQ(:AUTHORITY)%"),
    ("cell", "%REQ(X-TIDEGATE-CELL)%"),
    ("class", "%REQ(X-TIDEGATE-CLASS)%"),
    ("cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("decision", "%REQ(X-TIDEGATE-DECISION)%"),
    ("details", "%RESPONSE_CODE_DETAILS%"),
    ("duration_ms", "%DURATION%"),
    ("epoch", "%REQ(X-TIDEGATE-EPOCH)%"),
    ("home", "%REQ(X-TIDEGATE-HOME)%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("status", "%RESPONSE_CODE%"),
    ("tier", "%REQ(X-TIDEGATE-TIER)%"),
    ("time", "%START_TIME%"),
    ("trace_id", "%REQ(X-TRACE-ID)%"),
    ("upstream", "%UPSTREAM_HOST%"),
];

/// The listener of a role's proxies; none for clients, who listen on nothing.
pub fn listener(mesh: &Mesh, role: Role) -> Option<Arc<Resource>> {
    let at = mesh.listeners.of(role)?;
    let manager = connection_manager(mesh, at, role);
    let filters = vec![Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any(&manager))),
    }];
    let listener = Listener {
        name: LISTENER.to_owned(),
        address: Some(socket(&at.address, at.port)),
        listener_filters: listener_filters(at),
        filter_chains: filter_chains(at.tls.as_ref(), filters),
        ..Listener::default()
    };
    Some(Arc::new(Resource::encode(LISTENER, &listener)))
}

/// What is read of a connection before a filter chain is chosen, in this order.
fn listener_filters(at: &ListenerAddress) -> Vec<ListenerFilter> {
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

/// One for each certificate, or one for plain text. A server name (SNI) that no chain has is not served.
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

/// What upstreams are told of a client's certificate. A copy of the header from outside never passes.
fn client_certificate(at: &ListenerAddress) -> ForwardClientCertDetails {
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

fn connection_manager(mesh: &Mesh, at: &ListenerAddress, role: Role) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: LISTENER.to_owned(),
        codec_type: CodecType::Auto.into(),
        http_filters: (at.on_demand.then(on_demand_filter).into_iter())
            .chain([tidegate_filter(mesh)])
            .chain(any_keeps_sessions(mesh).then(sessions_filter))
            .chain([router_filter()])
            .collect(),
        access_log: at.access_log.iter().map(|path| access_log(path)).collect(),
        // At the edge the peer is the client; a sidecar's peer is the application, which may pass a client's address on.
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
        early_header_mutation_extensions: vec![strip_internal_headers()],
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(from_ads()),
            route_config_name: ROUTES.to_owned(),
        })),
        ..HttpConnectionManager::default()
    }
}

/// Routes that switch the filter off would otherwise believe what a client says.
fn strip_internal_headers() -> TypedExtensionConfig {
    let with_prefix = RemoveOnMatch {
        key_matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Prefix(headers::INTERNAL_PREFIX.to_owned())),
            ..StringMatcher::default()
        }),
    };
    let mutations = [
        Action::RemoveOnMatch(with_prefix),
        Action::Remove(headers::ALT_ROUTE.to_owned()),
    ];
    TypedExtensionConfig {
        name: "envoy.http.early_header_mutation.header_mutation".to_owned(),
        typed_config: Some(any(&EarlyMutation {
            mutations: mutations
                .map(|action| HeaderMutation {
                    action: Some(action),
                })
                .into(),
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
        // The policy comes within milliseconds of the listener, so it is worth waiting for: no write is fenced for nothing.
        apply_default_config_without_warming: false,
        type_urls: vec![
            envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm::type_url(),
        ],
    };
    HttpFilter {
        name: FILTER.to_owned(),
        config_type: Some(http_filter::ConfigType::ConfigDiscovery(source)),
        ..HttpFilter::default()
    }
}

/// Before all others: they decide by the route that it fetches.
fn on_demand_filter() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.on_demand".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(
            &OnDemand::default(),
        ))),
        ..HttpFilter::default()
    }
}

/// A filter costs every request something, so it is there only where a service wants it.
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

fn access_log(path: &str) -> AccessLog {
    let log = FileAccessLog {
        path: path.to_owned(),
        ..FileAccessLog::default()
    };
    let mut value = log.encode_to_vec();
    // Encodings of one message type that stand side by side are merged by every reader of protobuf.
    value.extend(ordered::FileAccessLog::with_fields(ACCESS_LOG_FIELDS).encode_to_vec());
    let log = Any {
        type_url: FileAccessLog::type_url(),
        value,
    };
    AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(log)),
        ..AccessLog::default()
    }
}

/// The part of `envoy.extensions.access_loggers.file.v3.FileAccessLog` that holds the fields, with a map that is ordered: the
/// generated type has a hash map, whose encoding differs from process to process, and with it the version.
mod ordered {
    use std::collections::BTreeMap;

    use envoy_types::pb::google::protobuf::{Value, value::Kind};

    #[derive(prost::Message)]
    pub(super) struct FileAccessLog {
        #[prost(message, optional, tag = "5")]
        log_format: Option<SubstitutionFormatString>,
    }

    #[derive(prost::Message)]
    struct SubstitutionFormatString {
        #[prost(message, optional, tag = "2")]
        json_format: Option<Struct>,
    }

    #[derive(prost::Message)]
    struct Struct {
        #[prost(btree_map = "string, message", tag = "1")]
        fields: BTreeMap<String, Value>,
    }

    impl FileAccessLog {
        pub(super) fn with_fields(fields: &[(&str, &str)]) -> FileAccessLog {
            let value = |text: &str| Value {
                kind: Some(Kind::StringValue(text.to_owned())),
            };
            let fields = fields
                .iter()
                .map(|(name, text)| ((*name).to_owned(), value(text)));
            FileAccessLog {
                log_format: Some(SubstitutionFormatString {
                    json_format: Some(Struct {
                        fields: fields.collect(),
                    }),
                }),
            }
        }
    }
}
