//! Objects of others for the hosts of our services.
//!
//! Two VirtualServices with one host do not merge in sidecars, and the older one wins; nor do two
//! DestinationRules. `http` is an atomic list, so server-side apply cannot share it either.

use std::collections::BTreeMap;

use kube::{Resource, api::DynamicObject};
use serde_json::Value;

use super::{
    cluster::{Cluster, is_ours, key_of},
    objects::{Key, Kind},
};
use crate::config::IstioService;

/// The Gateway that stands for all sidecars.
const MESH: &str = "mesh";

/// By host: the object of others that has it.
pub(super) fn foreign(cluster: &Cluster, services: &[IstioService]) -> BTreeMap<String, Key> {
    let mut found = BTreeMap::new();
    for kind in Kind::ALL {
        for object in cluster.all(kind) {
            if is_ours(&object) {
                continue;
            }
            for service in services {
                if claims(kind, &object, service) {
                    let key = key_of(kind, &object);
                    found.entry(service.host.clone()).or_insert(key);
                }
            }
        }
    }
    found
}

/// Whether an object of others decides about requests to the host of a service.
fn claims(kind: Kind, object: &DynamicObject, service: &IstioService) -> bool {
    let spec = &object.data["spec"];
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    let is_host = |host: &Value| {
        let host = host.as_str().unwrap_or_default();
        qualified(host, namespace, &service.host) == service.host
    };
    let mut hosts = spec["hosts"].as_array().into_iter().flatten();
    match kind {
        // A selection of workloads does not merge with ours either.
        Kind::DestinationRule => is_host(&spec["host"]),
        Kind::ServiceEntry => service.entry.is_some() && hosts.any(is_host),
        Kind::VirtualService => hosts.any(is_host) && shares_gateway(&spec["gateways"], service),
    }
}

/// Without a list an object is for the mesh alone.
fn shares_gateway(gateways: &Value, service: &IstioService) -> bool {
    let Some(gateways) = gateways.as_array().filter(|list| !list.is_empty()) else {
        return true;
    };
    let ours = |name: &str| name == MESH || service.gateways.iter().any(|it| it == name);
    let mut names = gateways.iter().filter_map(Value::as_str);
    names.any(ours)
}

/// A short name means a Service of the object's own namespace.
fn qualified(host: &str, namespace: &str, ours: &str) -> String {
    match ours.split_once(".svc.") {
        Some((_, domain)) if !host.contains('.') => format!("{host}.{namespace}.svc.{domain}"),
        _ => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(host: &str) -> IstioService {
        IstioService {
            service: "orders".into(),
            host: host.into(),
            namespace: "shop".into(),
            entry: None,
            gateways: vec!["shop/front".into()],
        }
    }

    /// Whether an object in namespace `shop` claims the host of a Kubernetes Service.
    fn claimed(kind: Kind, spec: Value) -> bool {
        let object = json!({ "metadata": { "name": "o", "namespace": "shop" }, "spec": spec });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        claims(kind, &object, &service("orders.shop.svc.cluster.local"))
    }

    #[test]
    fn a_host_is_claimed_by_its_full_and_its_short_name() {
        let by = |host: &str| claimed(Kind::DestinationRule, json!({ "host": host }));
        assert!(by("orders.shop.svc.cluster.local"));
        assert!(by("orders"));
        // Istio reads a name with a dot as a full one.
        assert!(!by("orders.shop"));
        assert!(!by("carts"));
    }

    #[test]
    fn a_virtual_service_claims_a_host_at_common_gateways() {
        let at = |gateways: Value| {
            let spec = json!({ "hosts": ["carts", "orders"], "gateways": gateways });
            claimed(Kind::VirtualService, spec)
        };
        assert!(at(Value::Null));
        assert!(at(json!([])));
        assert!(at(json!(["mesh"])));
        assert!(at(json!(["shop/front"])));
        assert!(!at(json!(["shop/back"])));
    }

    #[test]
    fn malformed_objects_claim_nothing() {
        for kind in Kind::ALL {
            for spec in [Value::Null, json!(7), json!({ "hosts": 7, "host": [] })] {
                assert!(!claimed(kind, spec.clone()), "{kind:?} {spec}");
            }
        }
    }
}
