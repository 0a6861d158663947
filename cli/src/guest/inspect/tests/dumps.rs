//! Answers of `/config_dump`.

use super::*;

/// An example as a live Envoy tells it, some names in camel case.
fn dump(example: &Value) -> Value {
    let of = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}ConfigDump");
    let mut listeners = example["static_resources"]["listeners"].clone();
    let clusters = example["static_resources"]["clusters"].as_array().unwrap();
    let table =
        listeners[0]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"].take();
    let manager = &mut listeners[0]["filter_chains"][0]["filters"][0]["typed_config"];
    manager["rds"] = json!({ "route_config_name": "shop" });
    let filter = manager["http_filters"][1]["typed_config"].take();
    manager["http_filters"][1] =
        json!({ "name": "tidegate", "config_discovery": { "config_source": { "ads": {} } } });
    let clusters = clusters.iter().map(|cluster| json!({ "cluster": cluster }));
    json!({ "configs": [
        { "@type": of("Bootstrap"), "bootstrap": { "node": example["node"] } },
        { "@type": of("Clusters"), "dynamicActiveClusters": Value::from_iter(clusters) },
        { "@type": of("Listeners"), "dynamic_listeners": [{ "name": "ingress", "active_state": { "listener": listeners[0] } }] },
        { "@type": of("Routes"), "dynamic_route_configs": [{ "route_config": table }] },
        { "@type": of("Ecds"), "ecds_filters": [{ "ecds_filter": { "name": "tidegate", "typed_config": filter } }] },
    ] })
}

#[test]
fn a_live_envoy_is_read_as_a_file() {
    for name in ["fence", "route"] {
        let document = dump(&example(name));
        assert_eq!(inspect(&document, &mesh_of(name)).unwrap(), [], "{name}");
    }
    let document = dump(&changed("fence", &[Remove("~/http_filters/2")]));
    assert_eq!(names(&document, &mesh()), ["net_missing"]);
}

#[test]
fn a_filter_that_did_not_come_is_no_guest() {
    let mut document = dump(&example("fence"));
    document["configs"].as_array_mut().unwrap().pop();
    assert_eq!(names(&document, &mesh()), ["no_guest"]);
}

#[test]
fn routes_that_are_not_there_are_told() {
    let mut document = dump(&example("fence"));
    document["configs"].as_array_mut().unwrap().remove(3);
    assert_eq!(names(&document, &mesh()), ["routes_unread"]);
}

#[test]
fn a_file_with_listeners_by_xds_is_incomplete() {
    let document = json!({ "dynamic_resources": { "lds_config": { "ads": {} }, "cds_config": { "ads": {} } } });
    assert_eq!(names(&document, &mesh()), ["incomplete", "incomplete"]);
}

/// A sidecar of Istio with the guest in its outbound listeners.
#[test]
fn a_gateway_that_passes_tls_on_is_a_way_past() {
    let mut example = example("fence");
    let routes = &mut example["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
        ["typed_config"]["route_config"]["virtual_hosts"][0]["routes"];
    routes[0]["route"]["cluster"] = json!("outbound|8080||orders.shop.svc.cluster.local");
    let mut document = dump(&example);
    let proxy = |cluster: &str| {
        json!({ "active_state": { "listener": { "name": "0.0.0.0_15443", "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "cluster": cluster,
            },
        }] }] } } })
    };
    let listeners = |document: &mut Value| {
        document["configs"][2]["dynamic_listeners"]
            .as_array_mut()
            .unwrap()
            .clone()
    };
    let before = listeners(&mut document);
    for (cluster, expected) in [
        (
            "outbound_.8080_._.orders.shop.svc.cluster.local",
            &["way_past"][..],
        ),
        ("outbound_.8080_._.carts.shop.svc.cluster.local", &[]),
        ("inbound|8080||", &[]),
    ] {
        let mut all = before.clone();
        all.push(proxy(cluster));
        document["configs"][2]["dynamic_listeners"] = Value::from(all);
        assert_eq!(names(&document, &mesh()), expected, "{cluster}");
    }
}

#[test]
fn guests_of_one_envoy_agree() {
    let mut example = example("fence");
    let mut second = example["static_resources"]["listeners"][0].clone();
    second["name"] = json!("second");
    let value = "/filter_chains/0/filters/0/typed_config/http_filters/1/typed_config/config/configuration/value";
    let text = "{\"control_plane\": \"tidegate\", \"mode\": \"fence\", \"zone\": \"shanghai-b\", \"drain_ms\": 1500}";
    *second.pointer_mut(value).unwrap() = json!(text);
    example["static_resources"]["listeners"]
        .as_array_mut()
        .unwrap()
        .push(second);
    assert_eq!(names(&example, &mesh()), ["guests_differ"]);
}
