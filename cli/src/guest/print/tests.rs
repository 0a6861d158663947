//! The printed pieces: YAML, the same as in the hand-written examples, and without findings.

use serde_json::{Value, json};

use crate::guest::{
    examples::output,
    inspect::{Known, inspect},
};

/// The documents of an output.
fn documents(arguments: &str) -> Vec<Value> {
    let text = output(arguments).unwrap();
    let documents = text.split("\n---\n");
    documents
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect()
}

/// The pieces for an Envoy.
fn pieces(arguments: &str) -> Value {
    documents(&format!("--kind envoy {arguments}")).remove(0)
}

fn example(name: &str) -> Value {
    let path = format!(
        "{}/../examples/envoy/{name}.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

/// JSON in a text is compared as JSON.
fn parsed(mut filter: Value) -> Value {
    let value = filter.pointer_mut("/typed_config/config/configuration/value");
    if let Some(value) = value {
        *value = serde_json::from_str(value.as_str().unwrap()).unwrap();
    }
    filter
}

#[test]
fn the_pieces_are_those_of_the_examples() {
    for (name, arguments) in [
        ("fence", "--drain-ms 1500"),
        ("route", "--mode route --cluster *={service}-{zone}"),
    ] {
        let (pieces, example) = (pieces(arguments), example(name));
        let manager = example.pointer(MANAGER).unwrap();
        let printed = &pieces["http_connection_manager"];
        for at in 0..3 {
            let (ours, theirs) = (&printed["http_filters"][at], &manager["http_filters"][at]);
            assert_eq!(parsed(ours.clone()), parsed(theirs.clone()), "{name}");
        }
        for field in [
            "local_reply_config",
            "normalize_path",
            "merge_slashes",
            "strip_trailing_host_dot",
        ] {
            assert_eq!(printed[field], manager[field], "{name}");
        }
        assert_eq!(
            pieces["clusters"][0], example["static_resources"]["clusters"][0],
            "{name}"
        );
        let routes = &manager["route_config"]["virtual_hosts"][0]["routes"];
        for at in 0..routes.as_array().unwrap().len() {
            let mut ours = pieces["routes"][at]["route"].clone();
            let mut theirs = routes[at]["route"].clone();
            for route in [&mut ours, &mut theirs] {
                route.as_object_mut().unwrap().remove("cluster");
            }
            assert_eq!(ours, theirs, "{name}");
        }
    }
}

/// The example's Envoy with other pieces in it.
fn with_pieces(pieces: &Value) -> Value {
    let mut document = example("fence");
    let mut routes = pieces["routes"].clone();
    for route in routes.as_array_mut().unwrap() {
        let action = route["route"].as_object_mut().unwrap();
        if action.contains_key("cluster") {
            action.insert("cluster".to_owned(), json!("orders"));
        }
    }
    let manager = document.pointer_mut(MANAGER).unwrap();
    let router = manager["http_filters"][3].take();
    let mut filters = pieces["http_connection_manager"]["http_filters"].clone();
    filters.as_array_mut().unwrap().push(router);
    manager["http_filters"] = filters;
    manager["route_config"]["virtual_hosts"][0]["routes"] = routes;
    document["static_resources"]["clusters"][0] = pieces["clusters"][0].clone();
    document
}

#[test]
fn an_envoy_with_the_printed_pieces_has_no_findings() {
    let known = || Known::read(Some("../examples/tidegate.yaml".as_ref())).unwrap();
    for arguments in [
        "--config examples/tidegate.yaml",
        "--config examples/tidegate.yaml --unfenced /metrics --class write=/buy",
        "--config examples/tidegate.yaml --mode route --cluster *=orders",
        "--config examples/tidegate.yaml --zone shanghai-b",
    ] {
        let document = with_pieces(&pieces(arguments));
        assert_eq!(inspect(&document, &known()).unwrap(), [], "{arguments}");
    }
}

#[test]
fn the_net_is_a_shadow_under_observe() {
    let text = std::fs::read_to_string("../examples/tidegate.yaml").unwrap();
    let text = text.replace(
        "  write_drain_ms",
        "  enforcement: observe\n  write_drain_ms",
    );
    let file = tempfile::NamedTempFile::new_in("../target").unwrap();
    std::fs::write(file.path(), text).unwrap();
    let name = file.path().file_name().unwrap().to_str().unwrap();
    let pieces = pieces(&format!("--config target/{name}"));
    let net = &pieces["http_connection_manager"]["http_filters"][2]["typed_config"];
    assert_eq!(
        (net.get("rules"), net["shadow_rules"]["action"].as_str()),
        (None, Some("DENY"))
    );
}

#[test]
fn the_net_lists_reads_by_other_methods_and_no_fenced_service() {
    let permitted = |arguments: &str| {
        let pieces = pieces(arguments);
        let net = &pieces["http_connection_manager"]["http_filters"][2]["typed_config"];
        let permission = &net["rules"]["policies"]["tidegate.net"]["permissions"][0];
        let permitted = &permission["not_rule"]["or_rules"]["rules"];
        permitted.as_array().unwrap().clone()
    };
    let all = permitted("--config examples/tidegate.yaml");
    let host = json!({ "header": { "name": ":authority", "string_match": { "safe_regex": { "regex": r"(?i)shop\.example(:[^:\]]*)?" } } } });
    let path = |how: &str, path: &str| json!({ "url_path": { "path": { how: path } } });
    let any = |rules: Value| json!({ "or_rules": { "rules": rules } });
    let grpc = json!({ "header": { "name": "content-type", "string_match": { "safe_regex": { "regex": r"application/grpc(\+.*)?" } } } });
    let search = any(json!([
        path("exact", "/orders/search"),
        path("prefix", "/orders/search/")
    ]));
    let methods = any(json!([
        path("exact", "/shop.v1.Orders/GetOrder"),
        path("exact", "/shop.v1.Orders/ListOrders")
    ]));
    let reads = [
        json!({ "and_rules": { "rules": [host, search] } }),
        json!({ "and_rules": { "rules": [host, methods, grpc] } }),
    ];
    // Behind three marks and the safe methods.
    assert_eq!(all[4..], reads);
    let safe = &all[3]["and_rules"]["rules"];
    assert_eq!(safe.as_array().unwrap().len(), 2);
    let none = permitted("--class write=/buy");
    assert_eq!(none.len(), 4);
    let not = json!({ "not_rule": any(json!([path("exact", "/buy"), path("prefix", "/buy/")])) });
    assert_eq!(none[3]["and_rules"]["rules"][2], not);
}

#[test]
fn an_error_says_what_to_change() {
    for (arguments, told) in [
        (
            "--kind envoy --config examples/tidegate.yaml --unfenced shop.example/orders",
            "--unfenced",
        ),
        (
            "--kind envoy --config examples/tidegate.yaml --drain-ms 1501",
            "above authority.write_drain_ms",
        ),
        (
            "--kind envoy --cluster orders=a",
            "only mode \"route\" uses clusters",
        ),
        (
            "--kind envoy --mode route --cluster orders={cell}",
            "no placeholder",
        ),
        ("--kind envoy --address tidegate", "no HOST:PORT"),
        ("--kind envoy --drain-ms 0", "drain_ms: 0"),
        (
            "--kind istio --delivery inline --module /nowhere",
            "cannot read /nowhere",
        ),
        ("--kind envoy --class read=orders", "use HOST/PREFIX"),
    ] {
        let error = format!("{:#}", output(arguments).unwrap_err());
        assert!(error.contains(told), "{arguments}: {error}");
    }
}

#[test]
fn an_inline_module_stands_in_the_object() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"\0asm").unwrap();
    let all = documents(&format!(
        "--kind istio --delivery inline --module {}",
        file.path().display()
    ));
    let value = &all[1]["spec"]["configPatches"][0]["patch"]["value"];
    let code = &value["typed_config"]["config"]["vm_config"]["code"];
    assert_eq!(code["local"]["inline_bytes"], "AGFzbQ==");
}

#[test]
fn a_plugin_fails_open_only_where_it_is_fetched() {
    for (module, strategy) in [
        ("oci://registry/filter", "FAIL_OPEN"),
        ("file:///etc/tidegate/filter.wasm", "FAIL_RELOAD"),
    ] {
        for (delivery, spec) in [("plugin", "/spec"), ("traffic-extension", "/spec/wasm")] {
            let all = documents(&format!(
                "--kind istio --delivery {delivery} --module {module}"
            ));
            let spec = all[1].pointer(spec).unwrap();
            assert_eq!(spec["failStrategy"], strategy, "{module} {delivery}");
            assert_eq!(spec["pluginConfig"]["control_plane"], "tidegate");
        }
    }
}

#[test]
fn a_waypoints_own_tunnel_has_no_net() {
    let all = documents("--kind istio --context waypoint");
    for object in [&all[0], &all[1], &all[2]] {
        assert_eq!(object["spec"]["targetRefs"][0]["kind"], "Gateway");
        for patch in object["spec"]["configPatches"].as_array().unwrap() {
            let name = &patch["match"]["listener"]["name"];
            assert!(
                patch["applyTo"] == "CLUSTER" || name == "main_internal",
                "{patch}"
            );
        }
    }
}

#[test]
fn comments_stay_within_a_line() {
    for arguments in [
        "--kind envoy --config examples/tidegate.yaml",
        "--kind istio --config examples/tidegate.yaml --delivery plugin",
        "--kind istio --config examples/tidegate.yaml --context waypoint --mode route",
        "--kind envoy-gateway --config examples/tidegate.yaml --mode route",
        "--kind higress --config examples/tidegate.yaml",
        "--kind istio --remove",
    ] {
        let text = output(arguments).unwrap();
        let comments = text
            .lines()
            .filter(|line| line.trim_start_matches([' ', '-']).starts_with('#'));
        let long: Vec<_> = comments
            .filter(|line| line.trim_start().len() > 100)
            .collect();
        assert_eq!(long, [""; 0], "{arguments}");
    }
}
