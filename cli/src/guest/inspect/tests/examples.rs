//! The two examples and their changes.

use super::*;

fn check(name: &str, changes: &[Change], expected: &[&str]) {
    let document = changed(name, changes);
    let known = mesh_of(name);
    let findings = inspect(&document, &known);
    assert_eq!(names(&document, &known), expected, "{name}: {findings:#?}");
}

#[test]
fn the_examples_have_no_findings() {
    for name in ["fence", "route"] {
        for known in [Known::unknown(), mesh_of(name)] {
            let findings = inspect(&example(name), &known).unwrap();
            assert_eq!(findings, [], "{name}");
        }
    }
}

#[test]
fn filters_must_be_there_and_in_order() {
    let lua = || filter("lua", "lua.v3.Lua");
    let rbac = || {
        example("fence")
            .pointer(&format!("{MANAGER}/http_filters/2"))
            .unwrap()
            .clone()
    };
    let strip = || {
        example("fence")
            .pointer(&format!("{MANAGER}/http_filters/0"))
            .unwrap()
            .clone()
    };
    check("fence", &[Remove("~/http_filters/1")], &["no_guest"]);
    check("fence", &[Remove("~/http_filters/0")], &["strip_missing"]);
    check(
        "fence",
        &[
            Remove("~/http_filters/0"),
            Insert("~/http_filters/2", strip()),
        ],
        &["strip_order"],
    );
    check("fence", &[Remove("~/http_filters/2")], &["net_missing"]);
    check(
        "fence",
        &[
            Remove("~/http_filters/2"),
            Insert("~/http_filters/0", rbac()),
        ],
        &["net_order"],
    );
    check(
        "fence",
        &[Insert("~/http_filters/2", lua())],
        &["filter_between"],
    );
    check(
        "fence",
        &[Insert("~/http_filters/3", lua())],
        &["filter_between"],
    );
    check("fence", &[Insert("~/http_filters/1", lua())], &[]);
    let mut marks = lua();
    marks["typed_config"]["default_source_code"] = json!({ "inline_string": "X-Tidegate-Epoch" });
    check(
        "fence",
        &[Insert("~/http_filters/0", marks)],
        &["mark_before_strip"],
    );
}

#[test]
fn the_net_must_hold() {
    let config = "~/http_filters/2/typed_config";
    let rules = |document: &Value| {
        document
            .pointer(&format!("{MANAGER}/http_filters/2/typed_config/rules"))
            .unwrap()
            .clone()
    };
    let shadow = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "shadow_rules": rules(&example("fence")),
    });
    check("fence", &[Set(config, shadow)], &["net_shadow"]);
    let permitted = "~/http_filters/2/typed_config/rules/policies/tidegate.net/permissions/0\
                     /not_rule/or_rules/rules/0";
    check(
        "fence",
        &[Set(permitted, json!({ "any": true }))],
        &["net_open"],
    );
    let open = json!({ "principals": [{ "any": true }], "permissions": [{ "any": true }] });
    let allows = json!({ "action": "ALLOW", "policies": { "x-tidegate": open } });
    check(
        "fence",
        &[Set("~/http_filters/2/typed_config/rules", allows)],
        &["net_open"],
    );
    let per_route = json!({ "tidegate.net": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
    } });
    let route = "~/route_config/virtual_hosts/0/routes/0/typed_per_filter_config";
    check("fence", &[Set(route, per_route)], &["net_disabled"]);
}

#[test]
fn the_guest_must_come_back_and_be_valid() {
    let plugin = "~/http_filters/1/typed_config/config";
    let failure = "~/http_filters/1/typed_config/config/failure_policy";
    let json = "~/http_filters/1/typed_config/config/configuration/value";
    let told = |config: Value| [Set(json, Value::from(config.to_string()))];
    check("fence", &[Set(failure, json!("FAIL_OPEN"))], &["fail_open"]);
    check(
        "fence",
        &[Set(failure, json!("FAIL_CLOSED"))],
        &["fail_closed"],
    );
    check("fence", &[Remove(failure)], &["fail_closed"]);
    check(
        "fence",
        &[Set("~/http_filters/1/is_optional", json!(true))],
        &["guest_optional"],
    );
    let remote = json!({ "remote": { "http_uri": { "uri": "http://x/tidegate.wasm" } } });
    check(
        "fence",
        &[Set(
            "~/http_filters/1/typed_config/config/vm_config/code",
            remote,
        )],
        &["fetched_module"],
    );
    let base = || json!({ "control_plane": "tidegate", "mode": "fence", "zone": { "from": "locality" }, "drain_ms": 1_500 });
    let with = |name: &str, value: Value| {
        let mut config = base();
        config[name] = value;
        config
    };
    check("fence", &told(base()), &[]);
    check(
        "fence",
        &told(with("mode", json!("watch"))),
        &["guest_configuration"],
    );
    check(
        "fence",
        &told(with("zone", json!("shanghai-z"))),
        &["zone_unknown"],
    );
    check(
        "fence",
        &told(with("zone", json!({ "from": "metadata:zone" }))),
        &["zone_missing"],
    );
    check("fence", &[Remove("/node/locality")], &["zone_missing"]);
    check("fence", &[Remove("/node")], &[]);
    check(
        "fence",
        &told(with("unfenced", json!([{ "prefix": "/" }]))),
        &["unfenced_lists_fenced"],
    );
    check(
        "fence",
        &told(with("unfenced", json!([{ "prefix": "/web" }]))),
        &[],
    );
    check(
        "fence",
        &told(with("classes", json!([{ "prefix": "/", "class": "read" }]))),
        &["classes_list_fenced"],
    );
    check(
        "fence",
        &told(with("drain_ms", json!(null))),
        &["drain_unsaid"],
    );
    check(
        "fence",
        &told(with("drain_ms", json!(1_501))),
        &["drain_above_terms"],
    );
    // Not named in the file: Envoy's Struct instead of a text.
    let configuration =
        json!({ "@type": "type.googleapis.com/google.protobuf.Struct", "value": base() });
    let mut changes = vec![Set(
        "~/http_filters/1/typed_config/config/configuration",
        configuration,
    )];
    check("fence", &changes, &[]);
    changes.push(Remove(
        "~/http_filters/1/typed_config/config/failure_policy",
    ));
    check("fence", &changes, &["fail_closed"]);
    check(
        "fence",
        &[Set(plugin, json!({ "name": "tidegate" }))],
        &["fail_closed", "guest_configuration"],
    );
}

#[test]
fn paths_and_hosts_are_those_of_the_guest() {
    check("fence", &[Remove("~/normalize_path")], &["normalize_path"]);
    check(
        "fence",
        &[Set("~/merge_slashes", json!(false))],
        &["merge_slashes"],
    );
    let action = "~/path_with_escaped_slashes_action";
    check("fence", &[Remove(action)], &["escaped_slashes"]);
    check(
        "fence",
        &[Set(action, json!("KEEP_UNCHANGED"))],
        &["escaped_slashes"],
    );
    check("fence", &[Set(action, json!("UNESCAPE_AND_REDIRECT"))], &[]);
    check(
        "fence",
        &[Remove("~/strip_trailing_host_dot")],
        &["host_dot"],
    );
    let case = "~/route_config/virtual_hosts/0/routes/0/match/case_sensitive";
    check("fence", &[Set(case, json!(false))], &["case_insensitive"]);
}

#[test]
fn the_control_plane_is_reached_by_http2() {
    let missing: &[Change] = &[Remove("/static_resources/clusters/0")];
    check("fence", missing, &["control_plane_missing"]);
    let options = "/static_resources/clusters/0/typed_extension_protocol_options";
    check("fence", &[Remove(options)], &["control_plane_http1"]);
    let http2 = "/static_resources/clusters/0/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/explicit_http_config";
    let http1 = json!({ "http_protocol_options": {} });
    check("fence", &[Set(http2, http1)], &["control_plane_http1"]);
    let silent = json!({ "http2_protocol_options": {} });
    check("fence", &[Set(http2, silent)], &["control_plane_keepalive"]);
    let cds = json!({ "cds_config": { "ads": {} } });
    check(
        "fence",
        &[
            Remove("/static_resources/clusters/0"),
            Set("/dynamic_resources", cds),
        ],
        &["incomplete"],
    );
}

#[test]
fn writes_are_bound_and_sent_once() {
    const ACTION: &str = "~/route_config/virtual_hosts/0/routes/0/route";
    const BOUND: &str = "~/route_config/virtual_hosts/0/routes/0/route/max_stream_duration";
    const RETRY: &str = "~/route_config/virtual_hosts/0/routes/0/route/retry_policy";
    const HOST: &str = "~/route_config/virtual_hosts/0/retry_policy";
    let bound = |text: &str| json!({ "max_stream_duration": text });
    check("fence", &[Remove(BOUND)], &["unbounded_write"]);
    check("fence", &[Set(BOUND, bound("0s"))], &["unbounded_write"]);
    check("fence", &[Set(BOUND, bound("1.501s"))], &["long_write"]);
    check("fence", &[Set(BOUND, bound("1s"))], &[]);
    let options = json!({ "max_stream_duration": "1.5s" });
    check(
        "fence",
        &[
            Remove(BOUND),
            Set("~/common_http_protocol_options", options),
        ],
        &[],
    );
    let retry = |on: &str| json!({ "retry_on": on });
    check(
        "fence",
        &[Set(RETRY, retry("connect-failure, reset"))],
        &["retries"],
    );
    check("fence", &[Remove(RETRY)], &[]);
    // Envoy takes the virtual host's policy where the route has none.
    check(
        "fence",
        &[Remove(RETRY), Set(HOST, retry("5xx"))],
        &["retries"],
    );
    check("fence", &[Set(HOST, retry("5xx"))], &[]);
    let hedging = json!({ "hedge_on_per_try_timeout": true });
    check(
        "fence",
        &[Set("~/route_config/virtual_hosts/0/hedge_policy", hedging)],
        &["hedging"],
    );
    let mirrors = json!([{ "cluster": "orders" }]);
    check(
        "fence",
        &[Set("~/route_config/request_mirror_policies", mirrors)],
        &["mirror"],
    );
    let added = json!([{ "header": { "key": "X-Tidegate-Epoch", "value": "7" } }]);
    let headers = "~/route_config/virtual_hosts/0/request_headers_to_add";
    check("fence", &[Set(headers, added)], &["mark_forged"]);
    // Reads live as long as they like, and so do other services.
    let get = json!({ "name": ":method", "string_match": { "exact": "GET" } });
    let reads = json!({ "match": { "prefix": "/orders", "headers": [get] }, "route": { "cluster": "orders" } });
    check(
        "fence",
        &[Insert("~/route_config/virtual_hosts/0/routes/0", reads)],
        &[],
    );
    let web = json!({ "match": { "prefix": "/web" }, "route": { "cluster": "orders" } });
    check(
        "fence",
        &[Insert("~/route_config/virtual_hosts/0/routes/0", web)],
        &[],
    );
    let rest = || json!({ "match": { "prefix": "/" }, "route": { "cluster": "orders" } });
    check(
        "fence",
        &[Insert("~/route_config/virtual_hosts/0/routes/-", rest())],
        &[],
    );
    check(
        "fence",
        &[Insert("~/route_config/virtual_hosts/0/routes/0", rest())],
        &["unbounded_write"],
    );
    check(
        "fence",
        &[Set(ACTION, json!({ "cluster": "orders", "timeout": "1s" }))],
        &["unbounded_write"],
    );
}

#[test]
fn a_route_of_grpc_takes_all_requests_of_a_grpc_service() {
    let known = mesh_with("  - {name: carts, routes: [{grpc: shop.Carts, reads: [Get]}]}\n");
    let routes = |grpc: Value| {
        let bounded = json!({ "cluster": "orders", "max_stream_duration": { "max_stream_duration": "1.5s" } });
        json!([
            { "match": { "path_separated_prefix": "/orders" }, "route": bounded },
            { "match": grpc, "route": bounded },
            { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
        ])
    };
    for (grpc, expected) in [
        (json!({ "prefix": "/shop.Carts/", "grpc": {} }), &[][..]),
        (json!({ "prefix": "/shop.Carts/" }), &[]),
        (
            json!({ "prefix": "/shop.Carts/Get", "grpc": {} }),
            &["unbounded_write"],
        ),
        (
            json!({ "prefix": "/shop.Carts/", "headers": [{ "name": "x", "present_match": true }] }),
            &["unbounded_write"],
        ),
        (
            json!({ "path": "/shop.Carts/Put", "grpc": {} }),
            &["unbounded_write"],
        ),
    ] {
        let document = changed(
            "fence",
            &[Set(
                "~/route_config/virtual_hosts/0/routes",
                routes(grpc.clone()),
            )],
        );
        assert_eq!(names(&document, &known), expected, "{grpc}");
    }
}

/// The most specific domain takes a host's requests, and in it the first route that matches.
#[test]
fn only_routes_that_can_take_fenced_requests_are_judged() {
    let known = mesh_with(
        "  - {name: carts, routes: [{host: carts.example, prefix: /}]}
  - {name: web, fenced: false, routes: [{host: web.example, prefix: /}]}\n",
    );
    let host = |domain: &str, prefix: &str| {
        let route = json!({ "match": { "prefix": prefix }, "route": { "cluster": "any" } });
        json!({ "name": domain, "domains": [domain], "routes": [route] })
    };
    for (domain, prefix, expected) in [
        ("carts.example", "/x", &["unbounded_write"][..]),
        ("CARTS.example:8080", "/x", &["unbounded_write"]),
        ("*.example", "/x", &["unbounded_write"]),
        ("carts.*", "/x", &["unbounded_write"]),
        ("shop.example", "/x", &[]),
        // The fenced `orders` has any host.
        ("shop.example", "/orders/7", &["unbounded_write"]),
        ("shop.example", "/ord", &["unbounded_write"]),
        ("shop.example", "/", &["unbounded_write"]),
        ("shop.example", "/orders7", &[]),
    ] {
        let change = Insert("~/route_config/virtual_hosts/-", host(domain, prefix));
        let document = changed("fence", &[change]);
        assert_eq!(names(&document, &known), expected, "{domain}{prefix}");
    }
}

#[test]
fn routes_follow_a_guest_that_routes() {
    let routes = "~/route_config/virtual_hosts/0/routes";
    check(
        "route",
        &[Remove("~/route_config/virtual_hosts/0/routes/0")],
        &["routes_ignore_guest"],
    );
    let by_home = json!([{
        "match": { "prefix": "/web", "headers": [{ "name": "x-tidegate-home", "present_match": true }] },
        "route": { "cluster": "orders-shanghai-a" },
    }]);
    check("route", &[Set(routes, by_home)], &[]);
    // As Istio has them: a name that a route matches on is no cluster.
    let exact =
        json!({ "name": "x-tidegate-to", "string_match": { "exact": "orders/shanghai-a" } });
    let by_name = json!([{
        "match": { "prefix": "/web", "headers": [exact] },
        "route": { "cluster": "orders-shanghai-a" },
    }]);
    let unnamed = "{\"control_plane\": \"tidegate\", \"mode\": \"route\", \"zone\": \"shanghai-a\", \"drain_ms\": 1500}";
    let value = "~/http_filters/1/typed_config/config/configuration/value";
    check("route", &[Set(value, json!(unnamed))], &["cluster_unknown"]);
    check(
        "route",
        &[Set(routes, by_name), Set(value, json!(unnamed))],
        &[],
    );
    let mode = Set(
        "~/http_filters/1/typed_config/config/configuration/value",
        json!(
            "{\"control_plane\": \"tidegate\", \"mode\": \"fence\", \"zone\": \"shanghai-a\", \"drain_ms\": 1500}"
        ),
    );
    check("route", &[mode], &["cluster_header_unset"]);
}

#[test]
fn a_guest_names_clusters_that_are_there() {
    let document = changed("route", &[Remove("/static_resources/clusters/3")]);
    assert_eq!(names(&document, &Known::unknown()), [""; 0]);
    assert_eq!(names(&document, &mesh_of("route")), ["cluster_unknown"]);
    // The service `web` has no cluster in the example.
    assert_eq!(names(&example("route"), &mesh()), ["cluster_unknown"]);
    let template = "{\"control_plane\": \"tidegate\", \"mode\": \"route\", \"zone\": \"shanghai-a\", \
                    \"drain_ms\": 1500, \"clusters\": {\"*\": \"x-{service}\"}}";
    let value = "~/http_filters/1/typed_config/config/configuration/value";
    let document = changed("route", &[Set(value, json!(template))]);
    assert_eq!(names(&document, &Known::unknown()), ["cluster_unknown"]);
}

#[test]
fn ways_past_the_guest_are_found() {
    let listener = |filter: Value| {
        Insert(
            "/static_resources/listeners/-",
            json!({ "name": "other", "filter_chains": [{ "filters": [filter] }] }),
        )
    };
    let manager = |prefix: &str, action: Value| {
        let kind = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        json!({ "name": "http", "typed_config": { "@type": kind, "route_config": { "name": "other", "virtual_hosts": [
            { "name": "all", "domains": ["*"], "routes": [{ "match": { "prefix": prefix }, "route": action }] },
        ] } } })
    };
    let tcp = |config: Value| {
        let mut config = config;
        config["@type"] =
            json!("type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy");
        json!({ "name": "tcp", "typed_config": config })
    };
    let orders = || json!({ "cluster": "orders" });
    check(
        "fence",
        &[listener(manager("/web", orders()))],
        &["way_past"],
    );
    check(
        "fence",
        &[listener(manager(
            "/orders",
            json!({ "cluster": "elsewhere" }),
        ))],
        &["way_past"],
    );
    check(
        "fence",
        &[listener(manager("/web", json!({ "cluster": "elsewhere" })))],
        &[],
    );
    check(
        "fence",
        &[listener(manager(
            "/web",
            json!({ "cluster_header": "x-to" }),
        ))],
        &["way_past"],
    );
    let weighted =
        json!({ "weighted_clusters": { "clusters": [{ "name": "a" }, { "name": "orders" }] } });
    check(
        "fence",
        &[listener(manager("/web", weighted.clone()))],
        &["way_past"],
    );
    check("fence", &[listener(tcp(orders()))], &["way_past"]);
    check("fence", &[listener(tcp(weighted))], &["way_past"]);
    check(
        "fence",
        &[listener(tcp(json!({ "cluster": "elsewhere" })))],
        &[],
    );
    // The same instances under another name.
    let cluster = |cluster: Value| Insert("/static_resources/clusters/-", cluster);
    let mut twin = example("fence")
        .pointer("/static_resources/clusters/1")
        .unwrap()
        .clone();
    twin["name"] = json!("twin");
    check(
        "fence",
        &[cluster(twin), listener(tcp(json!({ "cluster": "twin" })))],
        &["way_past"],
    );
    let aggregate = json!({ "name": "both", "cluster_type": { "name": "envoy.clusters.aggregate", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters": ["orders"],
    } } });
    check(
        "fence",
        &[
            cluster(aggregate),
            listener(tcp(json!({ "cluster": "both" }))),
        ],
        &["way_past"],
    );
    let open = json!({ "name": "any", "type": "ORIGINAL_DST" });
    check(
        "fence",
        &[cluster(open), listener(tcp(json!({ "cluster": "any" })))],
        &["open_destination"],
    );
    // The guest is disabled.
    let off = json!({ "tidegate": { "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true } });
    for place in [
        "~/route_config/virtual_hosts/0/routes/0/typed_per_filter_config",
        "~/route_config/virtual_hosts/0/typed_per_filter_config",
        "~/route_config/typed_per_filter_config",
    ] {
        let document = changed("fence", &[Set(place, off.clone())]);
        let findings = inspect(&document, &mesh()).unwrap();
        let [finding] = &findings[..] else {
            panic!("{findings:?}")
        };
        assert!(
            matches!(&finding.problem, Problem::WayPast { way: finding::Way::Disabled, cluster } if cluster == "orders")
        );
        assert_eq!(finding.place, "routes[shop].virtual_hosts[shop].routes[0]");
    }
    // Disabled in the manager, and enabled on the route, as Envoy Gateway does it.
    let on = json!({ "tidegate": { "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {} } });
    let disabled = || Set("~/http_filters/1/disabled", json!(true));
    let route = "~/route_config/virtual_hosts/0/routes/0/typed_per_filter_config";
    check("fence", &[disabled(), Set(route, on)], &[]);
    check("fence", &[disabled()], &["way_past"]);
    let upgrade =
        json!([{ "upgrade_type": "websocket", "filters": [filter("router", "router.v3.Router")] }]);
    check("fence", &[Set("~/upgrade_configs", upgrade)], &["way_past"]);
    check(
        "fence",
        &[Set(
            "~/upgrade_configs",
            json!([{ "upgrade_type": "websocket" }]),
        )],
        &[],
    );
}
