//! The certificates of listeners and clusters, and their secrets.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::{
    config::{cluster::v3::Cluster, core::v3::TransportSocket, listener::v3::Listener},
    extensions::transport_sockets::tls::v3::{
        DownstreamTlsContext, Secret, UpstreamTlsContext,
        common_tls_context::ValidationContextType, secret,
    },
};
use prost::Message;
use xds_server::{
    config::{Config, Mesh},
    snapshot::Role,
    translate,
};

const MESH: &str = "\
store: {embedded: {path: t.redb}}
filter: {path: /f.wasm}
zones: [{name: sh-a, region: sh}, {name: sh-b, region: sh}]
listeners:
  gateway:
    address: 0.0.0.0
    port: 8443
    proxy_protocol: true
    xff_num_trusted_hops: 2
    tls:
      trusted_ca: {file: /certs/clients.crt}
      certificates:
        - {hosts: [shop.example], cert: /certs/shop.crt, key: /certs/shop.key}
        - {cert: /certs/tls.crt, key: /certs/tls.key}
authority:
  forward_token: 0123456789abcdef
  forward_tls: {trusted_ca: {file: /certs/mesh.crt}, subject_alt_names: [gateway.internal]}
services:
  - name: orders
    routes: [{prefix: /}]
    tls:
      trusted_ca: {file: /certs/mesh.crt}
      subject_alt_names: [spiffe://mesh/orders]
      certificate: {sds: {cluster: spire, name: gateway}}
";

fn mesh() -> Mesh {
    Config::parse("mesh.yaml", MESH).expect("a good one").mesh
}

fn context<M: Message + Default>(socket: &Option<TransportSocket>) -> M {
    let socket = socket.as_ref().expect("a transport socket");
    let Some(envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig(
        any,
    )) = &socket.config_type
    else {
        panic!("a configuration");
    };
    M::decode(&any.value[..]).expect("a context")
}

#[test]
fn a_filter_chain_presents_the_certificate_of_its_server_names() {
    let listener = translate::listener(&mesh(), Role::Gateway).expect("a listener");
    let listener = Listener::decode(&listener.message()[..]).expect("a listener");
    let chains: Vec<_> = (listener.filter_chains.iter())
        .map(|chain| {
            let tls: DownstreamTlsContext = context(&chain.transport_socket);
            assert_eq!(tls.require_client_certificate.map(|v| v.value), Some(true));
            let common = tls.common_tls_context.expect("common");
            assert_eq!(common.alpn_protocols, ["h2", "http/1.1"]);
            let names = chain.filter_chain_match.clone().unwrap_or_default();
            let secret = common.tls_certificate_sds_secret_configs[0].name.clone();
            (names.server_names.join(" "), secret)
        })
        .collect();
    let chain = |names: &str, secret: &str| (names.to_owned(), secret.to_owned());
    assert_eq!(
        chains,
        [
            chain(
                "shop.example",
                "certificate /certs/shop.crt /certs/shop.key"
            ),
            chain("", "certificate /certs/tls.crt /certs/tls.key"),
        ]
    );
    // The PROXY header comes first on the connection.
    let filters = listener.listener_filters.iter().map(|f| f.name.as_str());
    assert_eq!(
        filters.collect::<Vec<_>>(),
        [
            "envoy.filters.listener.proxy_protocol",
            "envoy.filters.listener.tls_inspector"
        ]
    );
    let sidecar = translate::listener(&mesh(), Role::Sidecar).expect("a listener");
    let sidecar = Listener::decode(&sidecar.message()[..]).expect("a listener");
    assert!(sidecar.listener_filters.is_empty());
    assert_eq!(sidecar.filter_chains[0].transport_socket, None);
}

#[test]
fn clusters_with_endpoints_speak_tls_and_aggregates_leave_it_to_them() {
    let mesh = mesh();
    for service in &mesh.services {
        for cluster in translate::clusters(&mesh.topology, service) {
            let cluster = Cluster::decode(&cluster.message()[..]).expect("a cluster");
            if cluster.eds_cluster_config.is_none() {
                assert_eq!(cluster.transport_socket, None, "{}", cluster.name);
                continue;
            }
            let tls: UpstreamTlsContext = context(&cluster.transport_socket);
            let common = tls.common_tls_context.expect("common");
            let Some(ValidationContextType::CombinedValidationContext(validation)) =
                common.validation_context_type
            else {
                panic!("{}: a combined validation context", cluster.name);
            };
            let sds = validation.validation_context_sds_secret_config;
            assert_eq!(sds.expect("SDS").name, "trusted_ca /certs/mesh.crt");
            let own = validation.default_validation_context.expect("names");
            assert_eq!(own.match_typed_subject_alt_names.len(), 1);
        }
    }
}

#[test]
fn every_secret_of_files_is_served_once_and_names_files_alone() {
    let secrets = translate::secrets(&mesh());
    let names: BTreeSet<&str> = secrets.keys().map(|name| &**name).collect();
    assert_eq!(
        names,
        BTreeSet::from([
            "certificate /certs/shop.crt /certs/shop.key",
            "certificate /certs/tls.crt /certs/tls.key",
            "trusted_ca /certs/clients.crt",
            "trusted_ca /certs/mesh.crt",
        ])
    );
    for resource in secrets.values() {
        let secret = Secret::decode(&resource.message()[..]).expect("a secret");
        let watched = match secret.r#type.expect("a type") {
            secret::Type::TlsCertificate(certificate) => certificate.watched_directory,
            secret::Type::ValidationContext(context) => context.watched_directory,
            other => panic!("{other:?}"),
        };
        assert_eq!(watched.expect("a directory").path, "/certs");
    }
}
