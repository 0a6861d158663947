//! EDS: the addresses of instances.

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::{
    envoy::config::{
        core::v3::{HealthStatus, Locality, Metadata},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
        },
    },
    google::protobuf::{Struct, Value, value},
};
use policy::{Topology, ZoneId, ZoneState, rules};
use registry::record::{Health, Instance};

use super::{cluster::socket, uint32};
use crate::config::{ServiceConfig, Strategy};
use xds::resource::Resource;

/// A service's instances in a zone.
pub struct ZoneInstances<'i> {
    pub zone: ZoneId,
    pub state: ZoneState,
    /// An operator has drained the zone: its instances get no new requests, even healthy ones.
    pub drained: bool,
    /// The share of healthy instances, in percent, from which the zone accepts all its requests.
    /// Below it, a proxy sends a part of them to the next place.
    pub full_from_percent: u8,
    /// Ordered by name.
    pub instances: Vec<(&'i str, &'i Instance)>,
    /// Whether any of this has changed.
    pub changed: bool,
}

impl ZoneInstances<'_> {
    fn health(&self, instance: &Instance) -> HealthStatus {
        match instance.health {
            _ if self.drained => HealthStatus::Draining,
            Health::Healthy => HealthStatus::Healthy,
            Health::Unhealthy => HealthStatus::Unhealthy,
            Health::Draining => HealthStatus::Draining,
        }
    }

    fn has_healthy(&self) -> bool {
        let mut instances = self.instances.iter();
        instances.any(|(_, instance)| self.health(instance) == HealthStatus::Healthy)
    }
}

/// The changed endpoints of a service; `zones` are those of the topology, in its order. Without
/// instances an assignment is empty, but exists: a cluster that waits for it would hold up every
/// route. Without a healthy instance it is marked as such.
pub fn endpoints(
    topology: &Topology,
    service: &ServiceConfig,
    zones: &[ZoneInstances<'_>],
) -> Vec<Arc<Resource>> {
    match service.resilience.strategy {
        Strategy::Weighted => zones
            .iter()
            .filter(|zone| zone.changed)
            .map(|zone| {
                let name = rules::cluster_name(&service.name, topology.zone_name(zone.zone));
                assignment(topology, &name, &[zone], false)
            })
            .collect(),
        Strategy::RegionFirstHash { .. } => topology
            .regions()
            .filter(|region| {
                let mut changed = zones.iter().filter(|zone| zone.changed);
                changed.any(|zone| topology.region_of(zone.zone) == *region)
            })
            .map(|region| {
                let name = rules::cluster_name(&service.name, topology.region_name(region));
                let within = || (zones.iter()).filter(|z| topology.region_of(z.zone) == region);
                // A zone that is out has no part in the ring, unless no other zone is left; a
                // drained zone keeps its sessions.
                let any_up = within().any(|zone| zone.state == ZoneState::Up);
                let part = |zone: &&ZoneInstances<'_>| {
                    !any_up || zone.state == ZoneState::Up || zone.drained
                };
                let zones: Vec<_> = within().filter(part).collect();
                assignment(topology, &name, &zones, true)
            })
            .collect(),
    }
}

fn assignment(
    topology: &Topology,
    name: &str,
    zones: &[&ZoneInstances<'_>],
    keyed: bool,
) -> Arc<Resource> {
    let full_from_percent = zones.iter().map(|zone| zone.full_from_percent).min();
    let full_from_percent = full_from_percent.unwrap_or(100);
    let localities = zones
        .iter()
        .filter(|zone| !zone.instances.is_empty())
        .map(|zone| LocalityLbEndpoints {
            locality: Some(Locality {
                region: topology
                    .region_name(topology.region_of(zone.zone))
                    .to_owned(),
                zone: topology.zone_name(zone.zone).to_owned(),
                sub_zone: String::new(),
            }),
            lb_endpoints: zone
                .instances
                .iter()
                .map(|(name, instance)| {
                    // With hashing, the name determines an instance's place on the ring: it keeps
                    // its keys at another address.
                    let key = || format!("{}/{name}", topology.zone_name(zone.zone));
                    endpoint(instance, zone.health(instance), keyed.then(key))
                })
                .collect(),
            // gRPC clients ignore a locality without a weight.
            load_balancing_weight: uint32(1),
            ..LocalityLbEndpoints::default()
        });
    let assignment = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities.collect(),
        policy: Some(Policy {
            // In percent: with 140, Envoy's default, the zone accepts everything from 71.4 % on.
            overprovisioning_factor: uint32(10_000 / u32::from(full_from_percent.max(1))),
            ..Policy::default()
        }),
        ..ClusterLoadAssignment::default()
    };
    let resource = Resource::encode(name, &assignment);
    Arc::new(match zones.iter().any(|zone| zone.has_healthy()) {
        true => resource,
        false => resource.without_healthy_endpoints(),
    })
}

fn endpoint(instance: &Instance, health: HealthStatus, hash_by: Option<String>) -> LbEndpoint {
    LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: uint32(instance.weight),
        metadata: hash_by.map(hash_key),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(&instance.address.to_string(), instance.port)),
            ..Endpoint::default()
        })),
    }
}

/// One entry in the map, so that the encoding is always the same.
fn hash_key(key: String) -> Metadata {
    let value = Value {
        kind: Some(value::Kind::StringValue(key)),
    };
    let fields = HashMap::from([("hash_key".to_owned(), value)]);
    Metadata {
        filter_metadata: HashMap::from([("envoy.lb".to_owned(), Struct { fields })]),
        ..Metadata::default()
    }
}
