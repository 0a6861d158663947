//! CDS: how proxies use instances, and their fallbacks.

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::envoy::{
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
            HttpProtocolOptions as CommonOptions, SocketAddress, address,
            socket_address::PortSpecifier,
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
};
use policy::{Class, Route, RouteMatch, Topology, Writes, rules::route_cluster_name};

use super::{
    duration_ms, from_ads, millis,
    place::{keeps_sessions, places},
    routes::clusters::planned_classes,
    tls, uint32,
};
use crate::config::{OutlierDetection as Ejection, Protocol, ServiceConfig, Strategy};
use xds::resource::{Resource, any};

/// The time-out of a connection to an instance, plus three round trips over the longest link. The
/// time in which a request waits for a connection does not count for hedging.
const CONNECT_TIMEOUT_MS: f64 = 200.0;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Envoy's panic threshold in percent: the share of usable instances below which Envoy uses all of
/// them. At this value only if none is left. An instance that the proxy has ejected itself is
/// suspected, not known, to be dead. An instance that the control plane calls unhealthy is not used
/// before such an instance.
const PANIC_PERCENT: f64 = 1.0;

/// Replaces the place in the names for the statistics of aggregate clusters. No zone has that name.
const EVERY_PLACE: &str = "*";

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
                let members = place.fallback_order(topology, strategy, class).into_iter();
                let members = members.map(|place| place.cluster(topology, &service.name));
                let stats = route_cluster_name(&service.name, EVERY_PLACE, class);
                let members = members.collect();
                clusters.push(aggregate(&own, &stats, members, service, timeout_ms));
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

/// A cluster with its own endpoints.
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
            true => outlier_detection(&resilience.outlier_detection),
            false => unreachable_gateways(&resilience.outlier_detection),
        }),
        transport_socket: service.tls.as_ref().map(tls::upstream),
        ..common(name, service, connect_timeout_ms)
    };
    if let Strategy::RegionFirstHash { sessions, .. } = &resilience.strategy {
        // If one of n instances is removed, its keys move, and less than one in a hundred of the
        // others. A hash ring is worse here: Envoy keeps its size, so the others' points move (a
        // sixth of all keys at n = 4).
        cluster.lb_policy = LbPolicy::Maglev.into();
        if let (Some(_), Some(lb)) = (sessions, &mut cluster.common_lb_config) {
            // A session stays with its instance while the instance drains.
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

/// A cluster that uses the first member with usable instances: Envoy's aggregate cluster. So a
/// change of an instance only changes one zone's endpoints.
///
/// All of a service and class share the statistics name `stats`: a third of an aggregate cluster's
/// memory in a proxy are counters and gauges, and those of one name are allocated once.
fn aggregate(
    name: &str,
    stats: &str,
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
        alt_stat_name: stats.to_owned(),
        ..common(name, service, connect_timeout_ms)
    };
    Arc::new(Resource::encode(name, &cluster))
}

fn common(name: &str, service: &ServiceConfig, connect_timeout_ms: i32) -> Cluster {
    let circuit = service.resilience.circuit_breakers;
    Cluster {
        name: name.to_owned(),
        connect_timeout: millis(connect_timeout_ms),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: uint32(circuit.max_connections),
                max_pending_requests: uint32(circuit.max_pending_requests),
                max_requests: uint32(circuit.max_requests),
                // A zone that fails turns every request into a retry, all at once. Envoy's share of
                // active requests cannot be used: an aggregate cluster counts none as its own.
                // Every request has at most three attempts.
                max_retries: uint32(circuit.max_requests),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent {
                value: PANIC_PERCENT,
            }),
            // Envoy's default of a second would delay all but the first of several ejections or
            // changes of health.
            update_merge_window: millis(0),
            ..CommonLbConfig::default()
        }),
        typed_extension_protocol_options: HashMap::from([(
            HTTP_OPTIONS.to_owned(),
            any(&HttpProtocolOptions {
                common_http_protocol_options: Some(common_options(service)),
                upstream_protocol_options: Some(protocol_options(service)),
                ..HttpProtocolOptions::default()
            }),
        )]),
        ..Cluster::default()
    }
}

/// Errors of the instance and of the network count alike: a hung instance returns no status. They
/// are not split (`split_external_local_origin_errors`): every new connection would then reset the
/// count of an instance that never responds.
fn outlier_detection(ejection: &Ejection) -> OutlierDetection {
    let (never, always) = (|| uint32(0), || uint32(100));
    let if_asked_for = |is: bool| if is { always() } else { never() };
    OutlierDetection {
        consecutive_gateway_failure: uint32(ejection.consecutive_gateway_failure),
        enforcing_consecutive_gateway_failure: always(),
        consecutive_5xx: ejection.consecutive_5xx.and_then(uint32),
        enforcing_consecutive_5xx: if_asked_for(ejection.consecutive_5xx.is_some()),
        interval: duration_ms(ejection.interval_ms),
        base_ejection_time: duration_ms(ejection.base_ejection_time_ms),
        max_ejection_time: duration_ms(ejection.max_ejection_time_ms),
        // A whole zone may fail.
        max_ejection_percent: always(),
        failure_percentage_threshold: ejection.failure_percentage_threshold.and_then(uint32),
        enforcing_failure_percentage: if_asked_for(ejection.failure_percentage_threshold.is_some()),
        failure_percentage_minimum_hosts: uint32(1),
        failure_percentage_request_volume: uint32(ejection.failure_percentage_request_volume),
        // Success-rate ejection compares instances with each other, which is not configured.
        enforcing_success_rate: never(),
        ..OutlierDetection::default()
    }
}

/// A gateway forwards the responses of services, so a response says nothing about the gateway; a
/// missing one does.
fn unreachable_gateways(ejection: &Ejection) -> OutlierDetection {
    let (never, always) = (|| uint32(0), || uint32(100));
    OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: uint32(ejection.consecutive_gateway_failure),
        enforcing_consecutive_local_origin_failure: always(),
        enforcing_local_origin_success_rate: never(),
        enforcing_consecutive_5xx: never(),
        enforcing_consecutive_gateway_failure: never(),
        enforcing_failure_percentage: never(),
        ..outlier_detection(ejection)
    }
}

/// How long a connection to an instance may be idle, in milliseconds. An HTTP/1.1 server does not
/// announce that it closes an idle connection: a request on its way is lost, and a write must not
/// be retried. So the proxy has to close first. Node.js, Apache and uvicorn close after 5 s, others
/// later (gunicorn earlier, after 2 s: configure that).
const HTTP1_IDLE_MS: u32 = 4_000;
/// HTTP/2 identifies the requests that it did not process, and Envoy retries these: Envoy's own
/// default suffices.
const HTTP2_IDLE_MS: u32 = 3_600_000;

fn common_options(service: &ServiceConfig) -> CommonOptions {
    let idle = match upstream_protocol(service) {
        Protocol::Http2 => HTTP2_IDLE_MS,
        Protocol::Http1 | Protocol::Downstream | Protocol::Auto => HTTP1_IDLE_MS,
    };
    let configured = service.resilience.upstream_idle_timeout_ms;
    CommonOptions {
        idle_timeout: duration_ms(configured.unwrap_or(idle)),
        ..CommonOptions::default()
    }
}

/// The meaning of [`Protocol::Auto`] for this service.
fn upstream_protocol(service: &ServiceConfig) -> Protocol {
    let mut routes = service.routes.iter();
    let is_grpc = |route: &Route| matches!(route.matches, RouteMatch::Grpc(_));
    match service.protocol {
        Protocol::Auto if routes.any(is_grpc) => Protocol::Http2,
        Protocol::Auto => Protocol::Http1,
        protocol => protocol,
    }
}

fn protocol_options(service: &ServiceConfig) -> UpstreamProtocolOptions {
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let http2 = || Http2ProtocolOptions {
        // Upgrades of HTTP/2 are extended CONNECT requests (RFC 8441).
        allow_connect: !service.resilience.upgrades.taken.is_empty(),
        ..Http2ProtocolOptions::default()
    };
    match upstream_protocol(service) {
        Protocol::Downstream => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2()),
                ..UseDownstreamHttpConfig::default()
            })
        }
        Protocol::Http1 | Protocol::Auto => explicit(ProtocolConfig::HttpProtocolOptions(
            Http1ProtocolOptions::default(),
        )),
        Protocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2())),
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
