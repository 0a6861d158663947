//! The names of the clusters that routes use.

use std::{collections::BTreeSet, sync::Arc};

use policy::{Class, Rules, ServiceId, ZoneId, rules::cluster_name};

use super::{
    super::place::{Place, keeps_sessions},
    Resiliences, fenced,
};
use crate::config::Strategy;
use xds::resource::Names;

/// The clusters that the table, and a filter with `rules`, may name, and their fallbacks.
pub fn needed_clusters(rules: &Rules, resiliences: Resiliences<'_>) -> Names {
    let services = (0..rules.services().len()).map(ServiceId::new);
    let needed = services.flat_map(|id| clusters_needed_by(rules, id, resiliences));
    needed.map(Arc::from).collect()
}

/// The clusters that one service needs.
pub fn clusters_needed_by(
    rules: &Rules,
    id: ServiceId,
    resiliences: Resiliences<'_>,
) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let Some(service) = rules.service(id) else {
        return needed;
    };
    let topology = rules.topology();
    let strategy = resiliences(id.index()).strategy;
    let fencing = fenced::fencing(rules, service);
    if let Some(fencing) = fencing {
        let own = topology.zone_name(rules.viewer());
        needed.insert(cluster_name(&service.name, own));
        let gateways = fenced::forwarded_to(rules, fencing).into_iter();
        needed.extend(gateways.filter_map(|zone| rules.gateway(zone).map(str::to_owned)));
    }
    for class in planned_classes(fencing.is_some()) {
        let plans = topology.zones().map(|home| service.plans.get(home, class));
        let zones: BTreeSet<ZoneId> = plans
            .flat_map(|plan| plan.targets().iter().map(|target| target.zone))
            // The filter's alternative to a foreign home.
            .chain([rules.viewer()])
            .collect();
        for zone in zones {
            let place = Place::of(topology, &strategy, zone);
            needed.insert(cluster_of(rules, &service.name, &strategy, zone, class));
            let behind = match keeps_sessions(&strategy) {
                true => vec![place],
                false => place.fallback_order(topology, &strategy, class),
            };
            let behind = behind
                .iter()
                .map(|place| place.cluster(topology, &service.name));
            needed.extend(behind);
        }
    }
    needed
}

/// The destination of fenced writes is not planned.
pub(in crate::translate) fn planned_classes(fenced: bool) -> impl Iterator<Item = Class> + Clone {
    let planned = move |class: &Class| !fenced || *class == Class::Read;
    Class::ALL.into_iter().filter(planned)
}

/// The cluster for a service's requests of `class` that should go to `zone`. With weights it is
/// [`Rules::cluster`], which the filter names, too.
pub(super) fn cluster_of(
    rules: &Rules,
    service: &str,
    strategy: &Strategy,
    zone: ZoneId,
    class: Class,
) -> String {
    let topology = rules.topology();
    let place = Place::of(topology, strategy, zone);
    match keeps_sessions(strategy) {
        true => place.cluster(topology, service),
        false => place.route_cluster(topology, service, class),
    }
}
