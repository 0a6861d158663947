//! CDS: how proxies use instances, and where they turn when none of them answers.

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
    routes::planned_classes,
    tls, uint32,
};
use crate::config::{OutlierDetection as Ejection, Protocol, ServiceConfig, Strategy};
use xds::resource::{Resource, any};

/// How long a connection to an instance may take to open, beside three round trips over the longest
/// link. The time in which a request waits for a connection is not part of the time after which it
/// is hedged.
const CONNECT_TIMEOUT_MS: f64 = 200.0;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The share of usable instances below which Envoy uses all of them, in percent: only when none is
/// left. An instance that the proxy ejected by itself is suspected, not known, to be dead; one that
/// the control plane calls unhealthy is not used before that.
const PANIC_PERCENT: f64 = 1.0;

/// Stands for the place in the name under which aggregate clusters are counted. No zone has that
/// name.
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
            true => outlier_detection(&resilience.outlier_detection),
            false => unreachable_gateways(&resilience.outlier_detection),
        }),
        transport_socket: service.tls.as_ref().map(tls::upstream),
        ..common(name, service, connect_timeout_ms)
    };
    if let Strategy::RegionFirstHash { sessions, .. } = &resilience.strategy {
        // Of n instances' keys those of the one that goes move, and less than one in a hundred of
        // the others. A hash ring is worse here: Envoy keeps its size, so the others' points move
        // when one goes (a sixth of all keys at n = 4).
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

/// A cluster that uses the first of its members that has usable instances: Envoy's aggregate
/// cluster. A change of an instance so stays a change of one zone's endpoints.
///
/// All of a service and class count as `stats`: a third of an aggregate cluster's memory in a proxy
/// are counters and gauges, and those of the same name are made once.
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
                // A zone that fails makes every request a retry, all at once. Envoy's share of
                // active requests cannot be used: an aggregate cluster counts none as its own. No
                // request is tried more than three times.
                max_retries: uint32(circuit.max_requests),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        }),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent {
                value: PANIC_PERCENT,
            }),
            // Envoy's default of a second would hold back all but the first of several ejections or
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

/// Errors of the instance and of the way to it count alike: a hung instance gives no status. Not
/// apart (`split_external_local_origin_errors`): every connection that opens would forgive an
/// instance that then says nothing.
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
        // Compares instances with each other, which is not configured.
        enforcing_success_rate: never(),
        ..OutlierDetection::default()
    }
}

/// A gateway passes on the answers of services, so an answer says nothing about the gateway; a
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

/// How long a connection to an instance may be idle where nothing is said, in milliseconds. An
/// HTTP/1.1 server that closes an idle connection says so no sooner than it does it: a request that
/// is on its way is lost, and a write may not be sent again. So the proxy has to be first. Node.js,
/// Apache and uvicorn close after 5 s, the others later (gunicorn earlier, after 2 s: say so).
const HTTP1_IDLE_MS: u32 = 4_000;
/// HTTP/2 names the requests that it did not take, and these are sent again: Envoy's own default
/// does.
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

/// [`Protocol::Auto`] as its meaning for this service.
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
