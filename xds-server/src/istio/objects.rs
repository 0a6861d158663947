//! From plans and endpoints to objects of Istio. Pure.
//!
//! For each service of [`Istio`]:
//!
//! - `ServiceEntry`: the host and its healthy instances, unless the host is a Kubernetes Service;
//! - `DestinationRule`: two subsets for each zone. `only-ZONE` has the instances of the zone, for
//!   writes. `first-ZONE` has all instances, in an order of priorities: the zone, its region, all
//!   others. It is for reads, which may fail over inside the proxy before any weight has changed;
//! - `VirtualService`: routes by the stamps of a guest (`x-tidegate-to`), and weights for each zone
//!   of clients, by their label `topology.kubernetes.io/zone`, for proxies without a guest.

use std::{collections::BTreeMap, fmt};

use envoy_types::pb::envoy::config::{
    core::v3::{HealthStatus, address::Address, socket_address::PortSpecifier},
    endpoint::v3::{ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier},
};
use policy::{Class, Plan, Plans, Policy, Rules, Topology, ZoneId, headers, rules};
use prost::Message;
use serde_json::{Value, json};
use xds::resource::Kind as XdsKind;

use crate::{
    config::{Istio, IstioService, OutlierDetection, ServiceConfig, Strategy},
    snapshot::{Role, Snapshot, View, ViewKey},
};

/// The label by which Istio and Kubernetes name the zone of a client or an endpoint.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const REGION_LABEL: &str = "topology.kubernetes.io/region";
/// The label of all objects that Tidegate makes, with [`OWNER`].
pub(super) const OWNER_LABEL: &str = "app.kubernetes.io/managed-by";
pub(super) const OWNER: &str = "tidegate";
/// The API of all three kinds.
pub(super) const GROUP: &str = "networking.istio.io";
pub(super) const VERSION: &str = "v1";

/// Envoy's conditions for another attempt of a read, as in Envoys that Tidegate configures.
const RETRY_READS_ON: &str = "connect-failure,refused-stream,reset";
/// A write is sent again only if nothing of it was sent.
const RETRY_WRITES_ON: &str = "connect-failure,refused-stream";
const SAFE_METHODS: &str = "GET|HEAD|OPTIONS|TRACE";

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    // In the order in which they are applied: a route names subsets, and a subset names a host.
    ServiceEntry,
    DestinationRule,
    VirtualService,
}

impl Kind {
    pub const ALL: [Kind; 3] = [
        Kind::ServiceEntry,
        Kind::DestinationRule,
        Kind::VirtualService,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::ServiceEntry => "ServiceEntry",
            Kind::DestinationRule => "DestinationRule",
            Kind::VirtualService => "VirtualService",
        }
    }

    pub(super) const fn plural(self) -> &'static str {
        match self {
            Kind::ServiceEntry => "serviceentries",
            Kind::DestinationRule => "destinationrules",
            Kind::VirtualService => "virtualservices",
        }
    }
}

/// The name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// An object as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub host: String,
    pub spec: Value,
}

impl Object {
    /// The object as Kubernetes takes it.
    pub fn manifest(&self, key: &Key) -> Value {
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": key.kind.as_str(),
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "labels": { OWNER_LABEL: OWNER },
            },
            "spec": self.spec,
        })
    }
}

/// All objects of a mesh, in the order in which they are applied.
pub type Objects = BTreeMap<Key, Object>;

/// The objects of all services, as they should be with this snapshot. None where the snapshot
/// cannot say it: there is none yet, or the store may have been emptied.
pub fn objects(istio: &Istio, services: &[ServiceConfig], snapshot: &Snapshot) -> Option<Objects> {
    if snapshot.is_bare() {
        return None;
    }
    let zone = snapshot.zones().next()?.into();
    let view = snapshot.view(&ViewKey {
        zone,
        role: Role::Gateway,
    })?;
    let Policy::Serving(rules) = view.policy().as_ref() else {
        return None;
    };
    let mut objects = Objects::new();
    for entry in &istio.services {
        let position = services.iter().position(|it| it.name == entry.service);
        let Some((position, config)) = position.and_then(|at| Some((at, services.get(at)?))) else {
            continue;
        };
        let Some(planned) = rules.services().get(position) else {
            continue;
        };
        Service {
            entry,
            config,
            plans: &planned.plans,
            rules,
            view,
        }
        .add_to(&mut objects);
    }
    Some(objects)
}

/// A service with all that its objects follow from.
struct Service<'a> {
    entry: &'a IstioService,
    config: &'a ServiceConfig,
    plans: &'a Plans,
    rules: &'a Rules,
    view: &'a View,
}

impl Service<'_> {
    fn add_to(&self, objects: &mut Objects) {
        let specs = [
            (Kind::ServiceEntry, self.service_entry()),
            (Kind::DestinationRule, Some(self.destination_rule())),
            (Kind::VirtualService, Some(self.virtual_service())),
        ];
        for (kind, spec) in specs {
            let Some(spec) = spec else { continue };
            let key = Key {
                kind,
                namespace: self.entry.namespace.clone(),
                name: format!("tidegate-{}", self.entry.service.replace('_', "-")),
            };
            let host = self.entry.host.clone();
            objects.insert(key, Object { host, spec });
        }
    }

    fn topology(&self) -> &Topology {
        self.rules.topology()
    }

    fn zones(&self) -> impl Iterator<Item = (ZoneId, &str, &str)> {
        let topology = self.topology();
        topology.zones().map(|zone| {
            let region = topology.region_name(topology.region_of(zone));
            (zone, topology.zone_name(zone), region)
        })
    }

    fn service_entry(&self) -> Option<Value> {
        let entry = self.entry.entry.as_ref()?;
        Some(json!({
            "hosts": [self.entry.host],
            "addresses": entry.addresses,
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [{
                "number": entry.port,
                "name": entry.protocol.as_str().to_ascii_lowercase(),
                "protocol": entry.protocol.as_str(),
            }],
            "endpoints": self.endpoints(&entry.protocol.as_str().to_ascii_lowercase()),
        }))
    }

    /// The healthy instances; without any, all that are not draining, as Envoy does in panic.
    fn endpoints(&self, port_name: &str) -> Vec<Value> {
        let topology = self.topology();
        let places: Vec<&str> = match self.config.resilience.strategy {
            Strategy::Weighted => self.zones().map(|(_, zone, _)| zone).collect(),
            Strategy::RegionFirstHash { .. } => topology
                .regions()
                .map(|region| topology.region_name(region))
                .collect(),
        };
        let mut healthy = vec![];
        let mut unhealthy = vec![];
        for place in places {
            let name = rules::cluster_name(&self.config.name, place);
            let resource = self.view.of(XdsKind::Endpoints).get(name.as_str());
            let Some(resource) = resource else { continue };
            // Encoded by this process.
            let Ok(assignment) = ClusterLoadAssignment::decode(resource.message()) else {
                continue;
            };
            for group in &assignment.endpoints {
                let Some(locality) = &group.locality else {
                    continue;
                };
                let locality = format!("{}/{}", locality.region, locality.zone);
                for endpoint in &group.lb_endpoints {
                    let list = match endpoint.health_status() {
                        HealthStatus::Healthy => &mut healthy,
                        HealthStatus::Unhealthy => &mut unhealthy,
                        _ => continue,
                    };
                    list.extend(workload(endpoint, &locality, port_name));
                }
            }
        }
        match healthy.is_empty() {
            true => unhealthy,
            false => healthy,
        }
    }

    fn destination_rule(&self) -> Value {
        let outliers = outlier_detection(&self.config.resilience.outlier_detection);
        let subsets = self.zones().flat_map(|(_, zone, region)| {
            let only = json!({
                "name": only(zone),
                "labels": { ZONE_LABEL: zone },
                "trafficPolicy": {
                    "loadBalancer": {
                        "simple": "LEAST_REQUEST",
                        "localityLbSetting": { "enabled": false },
                    },
                },
            });
            let first = json!({
                "name": first(zone),
                "trafficPolicy": {
                    "loadBalancer": {
                        "simple": "LEAST_REQUEST",
                        "localityLbSetting": {
                            "enabled": true,
                            "failoverPriority": [
                                format!("{REGION_LABEL}={region}"),
                                format!("{ZONE_LABEL}={zone}"),
                            ],
                        },
                    },
                    "outlierDetection": outliers,
                },
            });
            [only, first]
        });
        let subsets: Vec<Value> = subsets.collect();
        json!({ "host": self.entry.host, "subsets": subsets })
    }

    fn virtual_service(&self) -> Value {
        let mut gateways = vec!["mesh".to_owned()];
        gateways.extend(self.entry.gateways.iter().cloned());
        let stamped = self.zones().flat_map(|(_, zone, _)| self.stamped(zone));
        let mut routes: Vec<Value> = stamped.collect();
        for (home, zone, _) in self.zones() {
            routes.extend(self.weighted(home, Some(zone)));
        }
        // Clients without a zone of the mesh.
        if let Some(first) = self.topology().zones().next() {
            routes.extend(self.weighted(first, None));
        }
        json!({ "hosts": [self.entry.host], "gateways": gateways, "http": routes })
    }

    /// The routes of requests that a guest sends to a zone: writes, then reads.
    fn stamped(&self, zone: &str) -> [Value; 2] {
        let to = rules::cluster_name(&self.config.name, zone);
        let header = |name: &str, value: &str| (name.to_owned(), json!({ "exact": value }));
        let to_zone = header(headers::TO, &to);
        let write = header(headers::CLASS, Class::Write.as_str());
        let write: serde_json::Map<_, _> = [to_zone.clone(), write].into_iter().collect();
        let read: serde_json::Map<_, _> = [to_zone].into_iter().collect();
        [
            json!({
                "name": format!("write-to-{zone}"),
                "match": [{ "headers": write }],
                "route": [self.destination(only(zone), None)],
                "retries": retries(Class::Write),
            }),
            json!({
                "name": format!("read-to-{zone}"),
                "match": [{ "headers": read }],
                "route": [self.destination(first(zone), None)],
                "retries": retries(Class::Read),
            }),
        ]
    }

    /// The weights for clients of a zone, by the safety of the method: reads, then all others.
    fn weighted(&self, home: ZoneId, zone: Option<&str>) -> [Value; 2] {
        let label = zone.map(|zone| json!({ ZONE_LABEL: zone }));
        let from = zone.unwrap_or("elsewhere");
        let matches = |reads: bool| {
            let mut condition = serde_json::Map::new();
            condition.extend(
                label
                    .clone()
                    .map(|label| ("sourceLabels".to_owned(), label)),
            );
            if reads {
                let method = json!({ "regex": SAFE_METHODS });
                condition.insert("method".to_owned(), method);
            }
            condition
        };
        let route = |class: Class| {
            let mut route = serde_json::Map::new();
            let verb = class.as_str();
            route.insert("name".to_owned(), json!(format!("{verb}-from-{from}")));
            let condition = matches(class == Class::Read);
            if !condition.is_empty() {
                route.insert("match".to_owned(), json!([condition]));
            }
            route.insert("route".to_owned(), json!(self.shares(home, class)));
            route.insert("retries".to_owned(), retries(class));
            Value::Object(route)
        };
        [route(Class::Read), route(Class::Write)]
    }

    /// The destinations of a home's requests. Where nothing is left the home's own zone is tried:
    /// a request that fails is no worse than one that is refused.
    fn shares(&self, home: ZoneId, class: Class) -> Vec<Value> {
        let topology = self.topology();
        let subset = |zone: ZoneId| match class {
            Class::Read => first(topology.zone_name(zone)),
            Class::Write => only(topology.zone_name(zone)),
        };
        match self.plans.get(home, class) {
            Plan::Open { targets, .. } => targets
                .iter()
                .map(|target| self.destination(subset(target.zone), Some(target.weight)))
                .collect(),
            Plan::Closed { .. } => vec![self.destination(subset(home), None)],
        }
    }

    fn destination(&self, subset: String, weight: Option<u32>) -> Value {
        let mut destination = json!({
            "destination": { "host": self.entry.host, "subset": subset },
        });
        if let Some(weight) = weight {
            destination["weight"] = json!(weight);
        }
        destination
    }
}

/// The subset with the instances of a zone.
fn only(zone: &str) -> String {
    format!("only-{zone}")
}

/// The subset with all instances, those of a zone first.
fn first(zone: &str) -> String {
    format!("first-{zone}")
}

/// An endpoint as Istio's `WorkloadEntry`.
fn workload(endpoint: &LbEndpoint, locality: &str, port_name: &str) -> Option<Value> {
    let Some(HostIdentifier::Endpoint(at)) = &endpoint.host_identifier else {
        return None;
    };
    let Some(Address::SocketAddress(socket)) = &at.address.as_ref()?.address else {
        return None;
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return None;
    };
    Some(json!({
        "address": socket.address,
        "ports": { port_name: port },
        "locality": locality,
        "weight": endpoint.load_balancing_weight.unwrap_or_default().value.max(1),
    }))
}

fn retries(class: Class) -> Value {
    match class {
        Class::Read => json!({
            "attempts": 3,
            "retryOn": RETRY_READS_ON,
            "retryRemoteLocalities": true,
        }),
        Class::Write => json!({ "attempts": 2, "retryOn": RETRY_WRITES_ON }),
    }
}

/// 0 says that errors of a kind are not counted; without it Istio counts five of them.
fn outlier_detection(detection: &OutlierDetection) -> Value {
    let duration = |ms: u32| format!("{}.{:03}s", ms / 1_000, ms % 1_000);
    json!({
        "consecutiveGatewayErrors": detection.consecutive_gateway_failure,
        "consecutive5xxErrors": detection.consecutive_5xx.unwrap_or(0),
        "interval": duration(detection.interval_ms),
        "baseEjectionTime": duration(detection.base_ejection_time_ms),
        "maxEjectionPercent": 100,
    })
}

#[cfg(test)]
mod tests;
