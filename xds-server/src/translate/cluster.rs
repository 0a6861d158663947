//! CDS: how proxies use instances, and where they turn when none of them answers.

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, OutlierDetection,
                circuit_breakers::Thresholds,
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType,
                    EdsClusterConfig, LbPolicy,
                },
            },
            core::v3::{
                Address, HealthStatus, HealthStatusSet, Http1ProtocolOptions, Http2ProtocolOptions,
                SocketAddress, address, socket_address::PortSpecifier,
            },
        },
        extensions::{
            clusters::aggregate::v3::ClusterConfig,
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::Duration,
};
use policy::{Class, Topology, Writes};

use super::{
    from_ads, millis,
    place::{keeps_sessions, places},
    routes::planned_classes,
    tls, uint32,
};
use crate::{
    config::{Outlier, Protocol, ServiceConfig, Strategy},
    resource::{Resource, any},
};

/// How long a connection to an instance may take to open, beside three round trips over the longest link. The time in which a
/// request waits for a connection is not part of the time after which it is hedged.
const CONNECT_TIMEOUT_MS: f64 = 200.0;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The share of usable instances below which Envoy uses all of them, in percent: only when none is left. What the proxy
/// ejected by itself is suspected, not known, to be dead; what the control plane calls unhealthy is not used before that.
const PANIC_PERCENT: f64 = 1.0;

/// All clusters of a service.
pub fn clusters(topology: &Topology, service: &ServiceConfig) -> Vec<Arc<Resource>> {
    let strategy = &service.resilience.strategy;
    let places = places(topology, strategy);
    let timeout_ms = connect_timeout_ms(topology);
    let mut clusters = Vec::new();
    for place in &places {
        clusters.push(with_endpoints(
            &place.cluster(topology, &service.name),
            service,
            timeout_ms,
        ));
        if service.is_routed() && !keeps_sessions(strategy) {
            let behind = |class: &Class| !place.is_alone(topology, *class);
            for class in planned_classes(service.writes != Writes::Free).filter(behind) {
                let own = place.route_cluster(topology, &service.name, class);
                let members = place.turns_to(topology, strategy, class).into_iter();
                let members = members.map(|place| place.cluster(topology, &service.name));
                clusters.push(aggregate(&own, members.collect(), service, timeout_ms));
            }
        }
    }
    clusters
}

fn connect_timeout_ms(topology: &Topology) -> i32 {
    let pairs = topology
        .zones()
        .flat_map(|a| topology.zones().map(move |b| (a, b)));
    let longest = pairs
        .map(|(a, b)| topology.link(a, b).rtt_ms)
        .fold(0.0, f64::max);
    // At most three minutes.
    (CONNECT_TIMEOUT_MS + 3.0 * longest) as i32
}

/// A cluster with endpoints of its own.
fn with_endpoints(name: &str, service: &ServiceConfig, connect_timeout_ms: i32) -> Arc<Resource> {
    let resilience = &service.resilience;
    let mut cluster = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(from_ads()),
            service_name: String::new(),
        }),
        lb_policy: LbPolicy::LeastRequest.into(),
        outlier_detection: Some(match service.is_routed() {
            true => outlier_detection(&resilience.outlier),
            false => unreachable_gateways(&resilience.outlier),
        }),
        transport_socket: service.tls.as_ref().map(tls::upstream),
        ..common(name, service, connect_timeout_ms)
    };
    if let Strategy::RegionFirstHash { sessions, .. } = &resilience.strategy {
        // Of n instances' keys those of the one that goes move, and less than one in a hundred of the others. A hash ring is
        // worse here: Envoy keeps its size, so the others' points move when one goes (a sixth of all keys at n = 4).
        cluster.lb_policy = LbPolicy::Maglev.into();
        if let (Some(_), Some(lb)) = (sessions, &mut cluster.common_lb_config) {
            // A session stays with its instance while that is draining.
            let statuses = [
                HealthStatus::Unknown,
                HealthStatus::Healthy,
                HealthStatus::Degraded,
                HealthStatus::Draining,
            ];
            lb.override_host_status = Some(HealthStatusSet {
                statuses: statuses.map(i32::from).into(),
            });
        }
    }
    Arc::new(Resource::encode(name, &cluster))
}

/// A cluster that uses the first of its members that has usable instances: Envoy's aggregate cluster. A change of an
/// instance so stays a change of one zone's endpoints.
fn aggregate(
    name: &str,
    members: Vec<String>,
    service: &ServiceConfig,
    connect_timeout_ms: i32,
) -> Arc<Resource> {
    let config = ClusterConfig { clusters: members };
    let cluster = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
            name: "envoy.clusters.aggregate".to_owned(),
            typed_config: Some(any(&config)),
        })),
        lb_policy: LbPolicy::ClusterProvided.into(),
        ..common(name, service, connect_timeout_ms)
    };
    Arc::new(Resource::encode(name, &cluster))
}

fn common(name: &str, service: &ServiceConfig, connect_timeout_ms: i32) -> Cluster {
    let circuit = service.resilience.circuit;
    Cluster {
        name: name.to_owned(),
        connect_timeout: millis(connect_timeout_ms),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: uint32(circuit.connections),
                max_pending_requests: uint32(circuit.pending),
                max_requests: uint32(circuit.requests),
                // A zone that fails makes every request a retry, all at once. Envoy's share of active requests cannot be used:
                // an aggregate cluster counts none as its own. No request is tried more than three times.
                max_retries: uint32(circuit.requests),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent {
                value: PANIC_PERCENT,
            }),
            // Envoy's default of a second would hold back all but the first of several ejections or changes of health.
            update_merge_window: millis(0),
            ..CommonLbConfig::default()
        }),
        typed_extension_protocol_options: HashMap::from([(
            HTTP_OPTIONS.to_owned(),
            any(&HttpProtocolOptions {
                upstream_protocol_options: Some(protocol_options(service.protocol)),
                ..HttpProtocolOptions::default()
            }),
        )]),
        ..Cluster::default()
    }
}

/// Errors of the instance and of the way to it count alike: a hung instance gives no status.
fn outlier_detection(outlier: &Outlier) -> OutlierDetection {
    let seconds = |s: u32| {
        Some(Duration {
            seconds: i64::from(s),
            nanos: 0,
        })
    };
    let always = || uint32(100);
    OutlierDetection {
        consecutive_5xx: uint32(outlier.consecutive_errors),
        enforcing_consecutive_5xx: always(),
        consecutive_gateway_failure: uint32(outlier.consecutive_errors),
        enforcing_consecutive_gateway_failure: always(),
        interval: seconds(outlier.window_s),
        base_ejection_time: seconds(outlier.ejection_s),
        max_ejection_time: seconds(outlier.ejection_max_s),
        // A whole zone may fail.
        max_ejection_percent: always(),
        failure_percentage_threshold: uint32(outlier.error_percent),
        enforcing_failure_percentage: always(),
        failure_percentage_minimum_hosts: uint32(1),
        failure_percentage_request_volume: uint32(20),
        // Compares instances with each other; nobody asked for that.
        enforcing_success_rate: uint32(0),
        ..OutlierDetection::default()
    }
}

/// A gateway passes on what services answer, so an answer says nothing about the gateway; that none came does.
fn unreachable_gateways(outlier: &Outlier) -> OutlierDetection {
    let (never, always) = (|| uint32(0), || uint32(100));
    OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: uint32(outlier.consecutive_errors),
        enforcing_consecutive_local_origin_failure: always(),
        enforcing_local_origin_success_rate: never(),
        enforcing_consecutive_5xx: never(),
        enforcing_consecutive_gateway_failure: never(),
        enforcing_failure_percentage: never(),
        ..outlier_detection(outlier)
    }
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
