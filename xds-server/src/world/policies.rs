//! From a mesh, plans and owners to the policy of a zone's proxies.

use std::fmt;

use policy::{Policy, Rules, Service, ZoneId};

use crate::config::{Mesh, ServiceConfig};

impl ServiceConfig {
    /// The service with the plans that follow from its instances.
    pub fn with_plans(&self, plans: policy::Plans) -> Service {
        Service {
            name: self.name.clone(),
            routes: self.routes.clone(),
            region_missing: self.region_missing,
            region_unknown: self.region_unknown,
            trace_missing: self.trace_missing,
            zone_affinity: self.zone_affinity.clone(),
            writes: self.writes.clone(),
            plans,
        }
    }
}

impl Mesh {
    /// The policy of `viewer`'s proxies. `plans` gives each service's, by its position; `authorities` a cell's owners and epoch, by its
    /// name.
    pub fn policy(
        &self,
        viewer: ZoneId,
        plans: impl Fn(usize) -> policy::Plans,
        authorities: &impl Fn(&str) -> Option<(Vec<String>, u64)>,
    ) -> Policy {
        let services = (self.services.iter().enumerate())
            // The gateways, which stand last, so that all others keep their positions.
            .filter(|(_, service)| service.is_routed())
            .map(|(index, service)| service.with_plans(plans(index)))
            .collect();
        let rules = Rules::new(
            self.topology.clone(),
            viewer,
            services,
            self.explain.clone(),
        );
        match rules {
            Ok(rules) => self.fence(rules, authorities),
            Err(error) => became_invalid(&error),
        }
    }

    /// These rules as a policy, with the write fence if there is one.
    pub fn fence(
        &self,
        rules: Rules,
        authorities: &impl Fn(&str) -> Option<(Vec<String>, u64)>,
    ) -> Policy {
        let fencing = (self.authority.as_ref())
            .map(|authority| authority.fencing(&self.topology, authorities))
            .transpose();
        match fencing {
            Ok(None) => Policy::Serving(Box::new(rules)),
            Ok(Some(fencing)) => Policy::Serving(Box::new(rules.fenced(fencing))),
            Err(error) => became_invalid(&error),
        }
    }
}

/// `Config::parse` has built these once, and neither plans nor owners can make them invalid.
fn became_invalid(error: &dyn fmt::Debug) -> Policy {
    debug_assert!(false, "what was accepted became invalid: {error:?}");
    Policy::Fallback
}
