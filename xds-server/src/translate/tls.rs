//! SDS and transport sockets: TLS of the proxies' listeners and of their connections to instances.
//!
//! Certificates are in separate secrets, which the control plane serves by SDS over ADS. A secret
//! only names files on the proxy's machine. Envoy watches the files of such a secret; files that a
//! listener names directly are read only once.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            ApiConfigSource, ApiVersion, ConfigSource, DataSource, GrpcService, TransportSocket,
            WatchedDirectory,
            api_config_source::ApiType,
            config_source::ConfigSourceSpecifier,
            data_source::Specifier,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            transport_socket,
        },
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
            Secret, SubjectAltNameMatcher, TlsCertificate as EnvoyCertificate, TlsParameters,
            UpstreamTlsContext,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            secret,
            subject_alt_name_matcher::SanType,
            tls_parameters::TlsProtocol,
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{Any, BoolValue},
};

use super::from_ads;
use crate::{
    config::{
        DownstreamTls, Mesh, SdsSecret, ServerCertificate, TlsCertificate, TrustedCa, UpstreamTls,
    },
    snapshot::Role,
};
use xds::resource::{Resource, any};

const TLS: &str = "envoy.transport_sockets.tls";

/// Every secret of the mesh that the control plane serves, by name.
pub fn secrets(mesh: &Mesh) -> BTreeMap<Arc<str>, Arc<Resource>> {
    let listeners = Role::PROXIES
        .into_iter()
        .filter_map(|role| mesh.listeners.of(role));
    let downstream = listeners.filter_map(|listener| listener.tls.as_ref());
    let upstream = || {
        mesh.services
            .iter()
            .filter_map(|service| service.tls.as_ref())
    };
    let certificates = (downstream.clone())
        .flat_map(|tls| tls.certificates.iter().map(|with| &with.certificate))
        .chain(upstream().filter_map(|tls| tls.certificate.as_ref()));
    let trusted = downstream
        .filter_map(|tls| tls.trusted_ca.as_ref())
        .chain(upstream().map(|tls| &tls.trusted_ca));
    (certificates.filter_map(certificate_secret))
        .chain(trusted.filter_map(trusted_secret))
        .map(|secret| {
            let resource = Arc::new(Resource::encode(&secret.name, &secret));
            (Arc::clone(&resource.name), resource)
        })
        .collect()
}

fn certificate_secret(certificate: &TlsCertificate) -> Option<Secret> {
    let TlsCertificate::Files { cert, key } = certificate else {
        return None;
    };
    Some(Secret {
        name: certificate_name(cert, key),
        r#type: Some(secret::Type::TlsCertificate(EnvoyCertificate {
            certificate_chain: file(cert),
            private_key: file(key),
            watched_directory: directory_of(cert),
            ..EnvoyCertificate::default()
        })),
    })
}

fn trusted_secret(trusted: &TrustedCa) -> Option<Secret> {
    let TrustedCa::File(path) = trusted else {
        return None;
    };
    Some(Secret {
        name: trusted_name(path),
        r#type: Some(secret::Type::ValidationContext(
            CertificateValidationContext {
                trusted_ca: file(path),
                watched_directory: directory_of(path),
                ..CertificateValidationContext::default()
            },
        )),
    })
}

fn certificate_name(cert: &str, key: &str) -> String {
    format!("certificate {cert} {key}")
}

fn trusted_name(path: &str) -> String {
    format!("trusted_ca {path}")
}

fn file(path: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::Filename(path.to_owned())),
        ..DataSource::default()
    })
}

fn directory_of(path: &str) -> Option<WatchedDirectory> {
    let parent = Path::new(path).parent()?.to_str()?;
    Some(WatchedDirectory {
        path: parent.to_owned(),
        ..WatchedDirectory::default()
    })
}

/// The TLS settings of a listener's filter chain for `certificate`.
pub(super) fn downstream(tls: &DownstreamTls, certificate: &ServerCertificate) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
            tls_params: parameters(),
            tls_certificate_sds_secret_configs: vec![certificate_config(&certificate.certificate)],
            validation_context_type: (tls.trusted_ca.as_ref()).map(|ca| {
                ValidationContextType::ValidationContextSdsSecretConfig(trusted_config(ca))
            }),
            ..CommonTlsContext::default()
        }),
        require_client_certificate: Some(BoolValue {
            value: tls.require_client_certificate,
        }),
        ..DownstreamTlsContext::default()
    };
    socket(any(&context))
}

/// The TLS settings of connections to instances. No ALPN is set: Envoy offers the connection's HTTP
/// version.
pub(super) fn upstream(tls: &UpstreamTls) -> TransportSocket {
    let matcher = |name: &String| SubjectAltNameMatcher {
        san_type: match name.contains("://") {
            true => SanType::Uri.into(),
            false => SanType::Dns.into(),
        },
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(name.clone())),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: tls.subject_alt_names.iter().map(matcher).collect(),
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(trusted_config(&tls.trusted_ca)),
        ..CombinedCertificateValidationContext::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: parameters(),
            tls_certificate_sds_secret_configs: (tls.certificate.iter())
                .map(certificate_config)
                .collect(),
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                validation,
            )),
            ..CommonTlsContext::default()
        }),
        sni: tls.sni.clone().unwrap_or_default(),
        ..UpstreamTlsContext::default()
    };
    socket(any(&context))
}

fn socket(context: Any) -> TransportSocket {
    TransportSocket {
        name: TLS.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(context)),
    }
}

/// Envoy's client side would otherwise stop at TLS 1.2.
fn parameters() -> Option<TlsParameters> {
    Some(TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..TlsParameters::default()
    })
}

fn certificate_config(certificate: &TlsCertificate) -> SdsSecretConfig {
    match certificate {
        TlsCertificate::Files { cert, key } => ours(certificate_name(cert, key)),
        TlsCertificate::Sds(secret) => theirs(secret),
    }
}

fn trusted_config(trusted: &TrustedCa) -> SdsSecretConfig {
    match trusted {
        TrustedCa::File(path) => ours(trusted_name(path)),
        TrustedCa::Sds(secret) => theirs(secret),
    }
}

fn ours(name: String) -> SdsSecretConfig {
    SdsSecretConfig {
        name,
        sds_config: Some(from_ads()),
    }
}

fn theirs(secret: &SdsSecret) -> SdsSecretConfig {
    let service = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: secret.cluster.clone(),
            ..EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    };
    SdsSecretConfig {
        name: secret.name.clone(),
        sds_config: Some(ConfigSource {
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(
                ApiConfigSource {
                    api_type: ApiType::Grpc.into(),
                    transport_api_version: ApiVersion::V3.into(),
                    grpc_services: vec![service],
                    ..ApiConfigSource::default()
                },
            )),
            ..ConfigSource::default()
        }),
    }
}
