//! The services of an Istio mesh: every object that the API server would refuse is refused here.

use super::*;

fn services(services: &str) -> Result<Vec<IstioService>, ConfigError> {
    let config = with(&format!("istio: {{services: [{services}]}}"));
    config.map(|config| config.mesh.istio.expect("a part about Istio").services)
}

#[test]
fn a_kubernetes_service_says_its_namespace_itself() {
    let all = services("{name: orders, host: orders.shop.svc.cluster.local}").unwrap();
    assert_eq!(all[0].namespace, "shop");
    assert_eq!(all[0].entry, None);
    let all = services("{name: orders, host: o.shop.svc.c.local, namespace: mesh}").unwrap();
    assert_eq!(all[0].namespace, "mesh");
}

#[test]
fn services_that_cannot_become_objects_are_refused() {
    for (entry, why) in [
        (
            "{name: nothing, host: a.b.svc.c}",
            "name: there is no service \"nothing\": it stands in `services`",
        ),
        (
            "{name: orders, host: 'Orders:80'}",
            "host: \"Orders:80\" is no host: use a DNS name in lower case, without a port",
        ),
        (
            "{name: orders, host: orders.example}",
            "host: \"orders.example\" is no Kubernetes Service (NAME.NAMESPACE.svc.DOMAIN): \
             add an `entry` with its port",
        ),
        (
            "{name: orders, host: a.b.svc.c, entry: {port: 80}}",
            "entry: this host is a Kubernetes Service: remove `entry`",
        ),
        (
            "{name: orders, host: orders.example, entry: {port: 0}}",
            "entry.port: 0: use 1 to 65535",
        ),
        (
            "{name: orders, host: orders.example, entry: {port: 80}}",
            "namespace: name the namespace of the objects",
        ),
        (
            "{name: orders, host: a.b.svc.c, gateways: [front]}",
            "gateways: \"front\": use NAMESPACE/NAME of a Gateway",
        ),
    ] {
        let error = services(entry).expect_err(why).to_string();
        assert_eq!(error, format!("mesh.yaml:1: istio.services[0].{why}"));
    }
    let twice = "{name: orders, host: a.b.svc.c}, {name: web, host: a.b.svc.c}";
    let error = services(twice).expect_err("twice").to_string();
    assert!(error.contains("stands here twice"), "{error}");
}
