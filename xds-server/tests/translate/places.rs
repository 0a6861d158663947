//! Clusters and endpoints: the places that requests may use, in any topology.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{Cluster, cluster::ClusterDiscoveryType},
        core::v3::HealthStatus,
        endpoint::v3::ClusterLoadAssignment,
    },
    extensions::clusters::aggregate::v3::ClusterConfig,
};
use policy::{Class, Tier, Topology, ZoneState};
use proptest::{collection::vec, prelude::*, sample::select};
use prost::Message;
use registry::record::Instance;
use xds::resource::Resource;
use xds_server::{
    config::ServiceConfig,
    testing,
    translate::{ZoneInstances, clusters, endpoints},
};

use crate::any;

fn service(options: &str) -> ServiceConfig {
    let rest = format!("services: [{{name: s, routes: [{{prefix: /}}]{options}}}]");
    testing::mesh("z/r", &rest).services[0].clone()
}

const WEIGHTED: &str = "";
const HASHED: &str = ", strategy: {region_first_hash: {header: x}}";
const SESSIONS: &str =
    ", strategy: {region_first_hash: {header: x}}, stateful_session: {cookie: c}";

fn decode<M: Message + Default>(resource: &Resource) -> M {
    M::decode(resource.message()).expect("what was encoded")
}

/// The members of an aggregate cluster; none for a cluster with endpoints.
fn members(resource: &Resource) -> Option<Vec<String>> {
    let cluster: Cluster = decode(resource);
    match cluster.cluster_discovery_type.expect("a kind of cluster") {
        ClusterDiscoveryType::Type(_) => None,
        ClusterDiscoveryType::ClusterType(custom) => {
            let config = custom.typed_config.expect("members");
            let config = ClusterConfig::decode(&config.value[..]).expect("members");
            Some(config.clusters)
        }
    }
}

/// Zones with one instance each, in these states.
fn zones<'i>(
    topology: &Topology,
    states: &[(ZoneState, bool)],
    instance: &'i Instance,
) -> Vec<ZoneInstances<'i>> {
    let zones = topology.zones().zip(states);
    zones
        .map(|(zone, (state, drained))| ZoneInstances {
            zone,
            state: *state,
            drained: *drained,
            full_from_percent: 30,
            instances: vec![("i", instance)],
            changed: true,
        })
        .collect()
}

proptest! {
    #[test]
    fn writes_never_leave_their_region_and_reads_may_go_anywhere(topology in any::topology()) {
        for options in [WEIGHTED, HASHED, SESSIONS] {
            let service = service(options);
            let all: BTreeMap<String, Option<Vec<String>>> = clusters(&topology, &service)
                .iter()
                .map(|cluster| (cluster.name.to_string(), members(cluster)))
                .collect();
            let own: BTreeSet<&String> =
                all.iter().filter(|(_, members)| members.is_none()).map(|(name, _)| name).collect();
            let instance = Instance::parse(br#"{"address": "10.0.0.1", "port": 1}"#).expect("a record");
            let states = vec![(ZoneState::Up, false); topology.zones().len()];
            let assigned = endpoints(&topology, &service, &zones(&topology, &states, &instance));
            // Each resource that waits for endpoints gets some, and no others are sent.
            let assigned: BTreeMap<String, BTreeSet<String>> = assigned
                .iter()
                .map(|resource| {
                    let assignment: ClusterLoadAssignment = decode(resource);
                    let localities = assignment.endpoints.into_iter();
                    let zones = localities.filter_map(|l| l.locality).map(|l| l.zone).collect();
                    (resource.name.to_string(), zones)
                })
                .collect();
            prop_assert_eq!(own, assigned.keys().collect());
            for (name, members) in &all {
                let Some(members) = members else { continue };
                let (place, class) = name.rsplit_once('/').expect("place and class");
                prop_assert_eq!(&members[0], place, "its own place comes first");
                let reached: BTreeSet<&String> = members.iter().flat_map(|m| &assigned[m]).collect();
                let home = assigned[place].first().expect("a zone");
                let home = topology.zone_named(home).expect("a zone");
                for zone in topology.zones() {
                    let remote = topology.tier(home, zone) == Tier::Remote;
                    let is_reached = reached.contains(&topology.zone_name(zone).to_owned());
                    prop_assert_eq!(is_reached, class == Class::Read.as_str().to_owned() + "s" || !remote);
                }
            }
        }
    }

    #[test]
    fn a_zone_that_is_out_has_no_part_in_its_regions_keys(
        topology in any::topology(),
        states in vec((select(vec![ZoneState::Up, ZoneState::Down, ZoneState::Empty]), any::<bool>()), 5),
    ) {
        let service = service(HASHED);
        let instance = Instance::parse(br#"{"address": "10.0.0.1", "port": 1}"#).expect("a record");
        // A drained zone counts as empty, even with healthy instances.
        let states: Vec<_> = states
            .into_iter()
            .map(|(state, drained)| if drained { (ZoneState::Empty, true) } else { (state, false) })
            .collect();
        for resource in endpoints(&topology, &service, &zones(&topology, &states, &instance)) {
            let assignment: ClusterLoadAssignment = decode(&resource);
            let healthy: BTreeSet<String> = assignment
                .endpoints
                .iter()
                .filter(|l| l.lb_endpoints.iter().all(|e| e.health_status == i32::from(HealthStatus::Healthy)))
                .filter_map(|l| l.locality.as_ref())
                .map(|l| l.zone.clone())
                .collect();
            let region = resource.name.strip_prefix("s/").expect("a region");
            let within = || topology.zones().filter(|z| topology.region_name(topology.region_of(*z)) == region);
            let any_up = within().any(|zone| states[zone.index()].0 == ZoneState::Up);
            for zone in within() {
                let (state, drained) = states[zone.index()];
                let part = !drained && (!any_up || state == ZoneState::Up);
                prop_assert_eq!(healthy.contains(topology.zone_name(zone)), part);
            }
            prop_assert_eq!(resource.no_healthy_endpoints, healthy.is_empty());
        }
    }
}
