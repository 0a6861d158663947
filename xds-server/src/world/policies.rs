//! From a mesh, plans and owners to the policy of a zone's proxies.

use std::fmt;

use policy::{Plans, Policy, Rules, Service, ZoneId};

use crate::config::Mesh;

/// The policy of `viewer`'s proxies. `plans` gives each service's, by its position; `authorities` a
/// cell's owners and epoch, by its name.
pub fn policy(
    mesh: &Mesh,
    viewer: ZoneId,
    plans: impl Fn(usize) -> Plans,
    authorities: &impl Fn(&str) -> Option<(Vec<String>, u64)>,
) -> Policy {
    let services = (mesh.services.iter().enumerate())
        // The gateways, which stand last, so that all others keep their positions.
        .filter(|(_, service)| service.is_routed())
        .map(|(index, service)| Service {
            plans: plans(index),
            ..service.unplanned()
        })
        .collect();
    let (topology, explain) = (mesh.topology.clone(), mesh.explain.clone());
    match Rules::new(topology, viewer, services, explain) {
        Ok(rules) => fence(mesh, rules, authorities),
        Err(error) => became_invalid(&error),
    }
}

/// These rules as a policy, with the write fence if there is one.
pub(super) fn fence(
    mesh: &Mesh,
    rules: Rules,
    authorities: &impl Fn(&str) -> Option<(Vec<String>, u64)>,
) -> Policy {
    let fencing = (mesh.authority.as_ref())
        .map(|authority| authority.fencing(&mesh.topology, authorities))
        .transpose();
    match fencing {
        Ok(None) => Policy::Serving(Box::new(rules)),
        Ok(Some(fencing)) => Policy::Serving(Box::new(rules.fenced(fencing))),
        Err(error) => became_invalid(&error),
    }
}

/// `Config::parse` has built these once, and neither plans nor owners can make them invalid.
fn became_invalid(error: &dyn fmt::Debug) -> Policy {
    debug_assert!(false, "what was accepted became invalid: {error:?}");
    Policy::Fallback
}
