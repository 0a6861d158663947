//! One cluster, or several with weights.

use envoy_types::pb::envoy::config::route::v3::{
    WeightedCluster, route_action::ClusterSpecifier, weighted_cluster::ClusterWeight,
};
use policy::{Reason, Tier, headers};

use super::{
    super::uint32,
    matching::{replace, set},
};

/// Makes each of the weighted clusters stamp its tier, also for a caller that may see the reason:
/// the filter knew only the nearest.
pub(super) fn label(to: &mut ClusterSpecifier, tiers: impl Iterator<Item = Tier>) {
    let ClusterSpecifier::WeightedClusters(weighted) = to else {
        return;
    };
    for (cluster, tier) in weighted.clusters.iter_mut().zip(tiers) {
        let reason = Reason::of_tier(tier).as_str();
        cluster.request_headers_to_add = vec![
            set(headers::TIER, tier.as_str()),
            set(headers::DECISION, reason),
            replace(headers::EXPLAIN, reason),
        ];
    }
}

pub(in crate::translate) fn specifier(mut shares: Vec<(String, u32)>) -> ClusterSpecifier {
    if shares.len() == 1
        && let Some((name, _)) = shares.pop()
    {
        return ClusterSpecifier::Cluster(name);
    }
    let clusters = shares.into_iter().map(|(name, weight)| ClusterWeight {
        name,
        weight: uint32(weight),
        ..ClusterWeight::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: clusters.collect(),
        ..WeightedCluster::default()
    })
}
