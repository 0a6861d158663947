//! CDS and EDS.

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, Cluster,
            circuit_breakers::{Thresholds, thresholds::RetryBudget},
            cluster::{
                ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy,
            },
        },
        core::v3::{
            Address, HealthStatus, Http1ProtocolOptions, Http2ProtocolOptions, Locality,
            SocketAddress, address, socket_address::PortSpecifier,
        },
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
            explicit_http_config::ProtocolConfig,
        },
    },
    r#type::v3::Percent,
};

use super::{from_ads, millis, uint32};
use crate::{
    config::Protocol,
    resource::{Resource, any},
};
use registry::record::{Health, Instance};

/// How long a connection to an instance may take to open.
const CONNECT_TIMEOUT_MS: i32 = 500;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The cluster of a service's instances in one zone.
pub fn cluster(name: &str, protocol: Protocol) -> Arc<Resource> {
    let cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(from_ads()),
            service_name: String::new(),
        }),
        connect_timeout: millis(CONNECT_TIMEOUT_MS),
        lb_policy: LbPolicy::LeastRequest.into(),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                // Envoy's default of three retries at a time gives up on the rest. A request is tried three times at
                // the most, so that as many retries as requests are no storm.
                retry_budget: Some(RetryBudget {
                    budget_percent: Some(Percent { value: 100.0 }),
                    min_retry_concurrency: uint32(100),
                    ..RetryBudget::default()
                }),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        common_lb_config: Some(CommonLbConfig {
            // The control plane knows better than Envoy's panic mode, which would send requests to unhealthy instances.
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..CommonLbConfig::default()
        }),
        typed_extension_protocol_options: HashMap::from([(
            HTTP_OPTIONS.to_owned(),
            any(&HttpProtocolOptions {
                upstream_protocol_options: Some(protocol_options(protocol)),
                ..HttpProtocolOptions::default()
            }),
        )]),
        ..Cluster::default()
    };
    Arc::new(Resource::encode(name, &cluster))
}

fn protocol_options(protocol: Protocol) -> UpstreamProtocolOptions {
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    match protocol {
        Protocol::Auto => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
                ..UseDownstreamHttpConfig::default()
            })
        }
        Protocol::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(
            Http1ProtocolOptions::default(),
        )),
        Protocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(
            Http2ProtocolOptions::default(),
        )),
    }
}

/// The endpoints of `cluster`: the instances of one zone, in the order given. Without instances the assignment is empty,
/// but it is there: a cluster that waits for it would hold up every route. Without a healthy one it is a dead end.
pub fn endpoints<'i>(
    cluster: &str,
    region: &str,
    zone: &str,
    instances: impl Iterator<Item = &'i Instance>,
) -> Arc<Resource> {
    let mut usable = false;
    let lb_endpoints: Vec<LbEndpoint> = instances
        .inspect(|instance| usable |= instance.health == Health::Healthy)
        .map(endpoint)
        .collect();
    let localities = if lb_endpoints.is_empty() {
        Vec::new()
    } else {
        vec![LocalityLbEndpoints {
            locality: Some(Locality {
                region: region.to_owned(),
                zone: zone.to_owned(),
                sub_zone: String::new(),
            }),
            lb_endpoints,
            // gRPC clients drop a locality without a weight.
            load_balancing_weight: uint32(1),
            ..LocalityLbEndpoints::default()
        }]
    };
    let assignment = ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: localities,
        ..ClusterLoadAssignment::default()
    };
    let resource = Resource::encode(cluster, &assignment);
    Arc::new(match usable {
        true => resource,
        false => resource.into_dead_end(),
    })
}

fn endpoint(instance: &Instance) -> LbEndpoint {
    let health = match instance.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Draining => HealthStatus::Draining,
    };
    LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: uint32(instance.weight),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(&instance.address.to_string(), instance.port)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    }
}

/// An Envoy address.
pub(super) fn socket(address: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
            ..SocketAddress::default()
        })),
    }
}
