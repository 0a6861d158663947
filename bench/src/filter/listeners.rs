//! One Envoy with a listener for every variant, all built from the resources that the control plane
//! pushed.
//!
//! *Ours* is the pushed listener with the pushed routes and the pushed filter, found through ECDS
//! as usual. Only two things differ: the resources come from files instead of ADS, and the routes
//! answer directly with the name of their cluster, or all clusters lead to one upstream. The other
//! variants remove or replace parts.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::{Bootstrap, native_filter};
use e2e::paths;
use serde_json::{Value, json};

use super::pushed::{Pushed, VIEWER};

const MANAGER: &str = "/filter_chains/0/filters/0/typed_config";
const FILTER: &str = "tidegate";
const STAMP_HOME: &str = "x-tidegate-home";
const STAMP_CLASS: &str = "x-tidegate-class";
const STAMP_TO: &str = "x-tidegate-to";

/// The filters and routes between the client and the cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// No filter: the routes match the client's request, and add nothing.
    None,
    /// As `None`, and Envoy removes internal headers.
    Strip,
    /// As `Strip`, and the routes add the headers of our routes.
    Headers,
    /// As `None`, and a wasm filter that does nothing.
    Noop,
    /// As `Ours`, with a Lua filter in place of ours.
    Lua,
    /// As pushed.
    Ours,
    /// As `Ours`, with the configuration of a guest, which gets the same policy by its stream.
    Guest,
    /// As `Ours`, as a dynamic module.
    Native,
}

impl Chain {
    pub(super) const ALL: [Chain; 8] = [
        Chain::None,
        Chain::Strip,
        Chain::Headers,
        Chain::Noop,
        Chain::Lua,
        Chain::Ours,
        Chain::Guest,
        Chain::Native,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Chain::None => "none",
            Chain::Strip => "strip",
            Chain::Headers => "headers",
            Chain::Noop => "noop",
            Chain::Lua => "lua",
            Chain::Ours => "ours",
            Chain::Guest => "guest",
            Chain::Native => "native",
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Chain::None => "no filter",
            Chain::Strip => "internal headers removed",
            Chain::Headers => "and headers added by the route",
            Chain::Noop => "a wasm filter that does nothing",
            Chain::Lua => "a Lua filter that does the same",
            Chain::Ours => "ours",
            Chain::Guest => "ours, as a guest",
            Chain::Native => "ours, as a dynamic module",
        }
    }

    /// A flavour of our filter.
    pub(super) const fn is_ours(self) -> bool {
        matches!(self, Chain::Ours | Chain::Guest | Chain::Native)
    }

    fn has_stamps(self) -> bool {
        use Chain::{Guest, Lua, Native, Ours};
        matches!(self, Lua | Ours | Guest | Native)
    }
}

/// The destination of requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// In Envoy, so that nothing else costs.
    Direct,
    /// At an upstream.
    Proxied,
}

impl End {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            End::Direct => "answered by Envoy",
            End::Proxied => "proxied to an upstream",
        }
    }
}

pub(super) fn listener_name(chain: Chain, end: End) -> String {
    format!("{}, {}", chain.as_str(), end.as_str())
}

/// The bootstrap of the measured Envoy; its files are written to `directory`.
pub(super) fn measured(
    directory: &Path,
    pushed: &Pushed,
    upstream: SocketAddr,
    control_plane: SocketAddr,
) -> Result<Bootstrap> {
    let ecds = directory.join("ecds.json");
    let resources = json!({ "version_info": "1", "resources": [pushed.filter] });
    fs::write(&ecds, resources.to_string()).with_context(|| ecds.display().to_string())?;
    let mut listeners = vec![];
    for chain in Chain::ALL {
        for end in [End::Direct, End::Proxied] {
            listeners.push(listener(pushed, chain, end, &ecds)?);
        }
    }
    let clusters = pushed.clusters.iter();
    let clusters = clusters.map(|cluster| leading_to(cluster, upstream));
    let mut clusters: Vec<Value> = clusters.collect::<Result<_>>()?;
    clusters.push(way_to(control_plane));
    bootstrap("measured", listeners, clusters)
}

/// An Envoy that answers everything: the cheapest available upstream.
pub(super) fn upstream(pushed: &Pushed) -> Result<Bootstrap> {
    let mut listener = pushed.listener.clone();
    let manager = listener.pointer_mut(MANAGER).context("no manager")?;
    let routes = json!([answering(json!({ "prefix": "/" }), "upstream")]);
    let table = json!({
        "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
    });
    set_routes(manager, table)?;
    remove(manager, "early_header_mutation_extensions")?;
    filters(manager)?.retain(|filter| filter["name"] != FILTER);
    bootstrap("upstream", vec![listener], vec![])
}

fn bootstrap(id: &str, listeners: Vec<Value>, clusters: Vec<Value>) -> Result<Bootstrap> {
    let resources = json!({ "listeners": listeners, "clusters": clusters });
    Bootstrap::read("gateway.yaml")?
        .node(id, e2e::config::region_of(VIEWER), VIEWER)?
        .with("/dynamic_resources", json!({}))?
        // There is no control plane for reports.
        .with("/cluster_manager", json!({}))?
        .with("/static_resources", resources)
}

fn listener(pushed: &Pushed, chain: Chain, end: End, ecds: &Path) -> Result<Value> {
    let mut listener = pushed.listener.clone();
    listener["name"] = json!(listener_name(chain, end));
    let manager = listener.pointer_mut(MANAGER).context("no manager")?;
    set_routes(manager, routes(pushed, chain, end)?)?;
    if matches!(chain, Chain::None | Chain::Noop) {
        remove(manager, "early_header_mutation_extensions")?;
    }
    let filters = filters(manager)?;
    let at = filters.iter().position(|filter| filter["name"] == FILTER);
    let at = at.context("the listener has no filter of ours")?;
    match chain {
        Chain::None | Chain::Strip | Chain::Headers => drop(filters.remove(at)),
        Chain::Noop => filters[at] = noop(&pushed.filter)?,
        Chain::Lua => filters[at] = lua(),
        Chain::Ours => {
            // Without the timeout of one second: at the start of many listeners a busy machine
            // takes longer.
            filters[at]["config_discovery"]["config_source"] = json!({
                "path_config_source": { "path": ecds },
                "resource_api_version": "V3",
            });
        }
        Chain::Guest => filters[at] = guest(&pushed.filter)?,
        Chain::Native => filters[at] = native(&pushed.filter)?,
    }
    Ok(listener)
}

/// The pushed filter with the configuration of a guest.
fn guest(ours: &Value) -> Result<Value> {
    let mut config = ours["typed_config"].clone();
    let configuration = json!({ "control_plane": "tidegate", "mode": "route", "zone": VIEWER });
    let plugin = config["config"].as_object_mut().context("no plugin")?;
    plugin.insert(
        "configuration".to_owned(),
        json!({
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": configuration.to_string(),
        }),
    );
    // Workers of its own.
    plugin["name"] = json!("guest");
    plugin["root_id"] = json!("guest");
    plugin["vm_config"]["vm_id"] = json!("guest");
    Ok(json!({ "name": FILTER, "typed_config": config }))
}

/// The dynamic module with the pushed policy.
fn native(ours: &Value) -> Result<Value> {
    let policy = ours.pointer("/typed_config/config/configuration");
    let policy = policy.context("no policy")?.clone();
    let filter = native_filter(&paths::module()?, policy);
    Ok(json!({ "name": FILTER, "typed_config": filter }))
}

/// The cluster by which guests follow their policy.
fn way_to(control_plane: SocketAddr) -> Value {
    let address = json!({ "address": control_plane.ip(), "port_value": control_plane.port() });
    let endpoint = json!({ "endpoint": { "address": { "socket_address": address } } });
    json!({
        "name": "tidegate",
        "type": "STATIC",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": {
            "cluster_name": "tidegate",
            "endpoints": [{ "lb_endpoints": [endpoint] }],
        },
    })
}

/// The plugin with our configuration, but other code.
fn noop(ours: &Value) -> Result<Value> {
    let file = paths::filter()?.with_file_name("noop_filter.wasm");
    ensure!(
        file.exists(),
        "{} does not exist: run this through `cargo xtask bench`",
        file.display()
    );
    let mut config = ours["typed_config"].clone();
    let plugin = config["config"].as_object_mut().context("no plugin")?;
    plugin.remove("configuration");
    plugin["name"] = json!("noop");
    plugin["root_id"] = json!("noop");
    plugin["vm_config"]["vm_id"] = json!("noop");
    plugin["vm_config"]["code"]["local"]["filename"] = json!(file);
    Ok(json!({ "name": "noop", "typed_config": config }))
}

fn lua() -> Value {
    json!({
        "name": FILTER,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": { "inline_string": include_str!("equivalent.lua") },
        },
    })
}

/// The pushed table, or the one of a user without Tidegate.
fn routes(pushed: &Pushed, chain: Chain, end: End) -> Result<Value> {
    let mut table = pushed.routes.clone();
    let hosts = table["virtual_hosts"].as_array_mut();
    let host = hosts
        .and_then(|hosts| hosts.first_mut())
        .context("no host")?;
    let routes = host["routes"].as_array_mut().context("no routes")?;
    // A route cannot answer with the name of a cluster from a header, and a guest names clusters
    // of its host.
    if !chain.has_stamps() || end == End::Direct || chain == Chain::Guest {
        let expanded = routes
            .iter()
            .flat_map(|route| by_cluster(route, pushed, chain));
        *routes = expanded.collect();
    }
    if !chain.has_stamps() {
        routes.retain_mut(without_stamps);
    }
    for route in routes.iter_mut() {
        let route = route.as_object_mut().context("not a route")?;
        if !chain.has_stamps() && chain != Chain::Headers {
            route.remove("request_headers_to_add");
        }
        if end == End::Direct
            && let Some(action) = route.remove("route")
        {
            let to = action["cluster"].as_str().unwrap_or("one of several");
            route.insert("direct_response".to_owned(), answer(to));
        }
    }
    // For requests without a service.
    routes.push(answering(json!({ "prefix": "/" }), "elsewhere"));
    Ok(table)
}

/// Replaces a route whose cluster the filter names by one for each cluster; that of the local zone
/// is last.
fn by_cluster(route: &Value, pushed: &Pushed, chain: Chain) -> Vec<Value> {
    let matchers = route["match"]["headers"].as_array();
    let is_write = |matcher: &Value| {
        matcher["name"] == STAMP_CLASS && matcher["string_match"]["exact"] == "write"
    };
    let is_write = matchers.is_some_and(|all| all.iter().any(is_write));
    if route["route"]["cluster_header"].is_null() {
        return vec![route.clone()];
    }
    let class = if is_write { "/writes" } else { "/reads" };
    let names = pushed.clusters.iter();
    let names = names.filter_map(|cluster| cluster["name"].as_str());
    let mut names: Vec<&str> = names.filter(|name| name.ends_with(class)).collect();
    names.sort_by_key(|name| zone_of(name) == Some(VIEWER));
    let to = |name: &str| {
        let mut route = route.clone();
        let stamp = match chain {
            Chain::Guest => name.trim_end_matches(class),
            _ => name,
        };
        for matcher in route["match"]["headers"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            if matcher["name"] == STAMP_TO {
                *matcher = json!({ "name": STAMP_TO, "string_match": { "exact": stamp } });
            }
        }
        if let Some(action) = route["route"].as_object_mut() {
            action.remove("cluster_header");
            action.insert("cluster".to_owned(), json!(name));
        }
        route
    };
    names.into_iter().map(to).collect()
}

fn zone_of(cluster: &str) -> Option<&str> {
    cluster.split('/').nth(1)
}

/// Makes a route match the client's request instead of the filter's stamps; false if that makes no
/// sense.
fn without_stamps(route: &mut Value) -> bool {
    let Some(route) = route.as_object_mut() else {
        return false;
    };
    route.remove("typed_per_filter_config");
    if !route.contains_key("route") {
        return false;
    }
    let mut matchers = route["match"]["headers"].as_array_mut();
    if let Some(matchers) = &mut matchers {
        // The local zone has no stamp.
        let is_here = |to: &Value| to.as_str().and_then(zone_of) == Some(VIEWER);
        matchers.retain(|matcher| {
            matcher["name"] != STAMP_TO || !is_here(&matcher["string_match"]["exact"])
        });
    }
    matchers.into_iter().flatten().all(|matcher| {
        let exact = &matcher["string_match"]["exact"];
        let fresh = match matcher["name"].as_str().unwrap_or_default() {
            ":method" | "x-region-id" => return true,
            STAMP_HOME if exact.is_string() => {
                json!({ "name": "x-region-id", "string_match": { "exact": exact } })
            }
            STAMP_HOME if matcher["invert_match"] == true => {
                json!({ "name": "x-region-id", "present_match": true, "invert_match": true })
            }
            STAMP_TO => {
                let zone = exact.as_str().and_then(zone_of);
                json!({ "name": "x-region-id", "string_match": { "exact": zone } })
            }
            STAMP_CLASS => {
                // A stamped request without a class is a read.
                let method = if exact == "write" { "POST" } else { "GET" };
                json!({ "name": ":method", "string_match": { "exact": method } })
            }
            _ => return false,
        };
        *matcher = fresh;
        true
    })
}

fn answering(matching: Value, body: &str) -> Value {
    json!({ "match": matching, "direct_response": answer(body) })
}

fn answer(body: &str) -> Value {
    json!({ "status": 200, "body": { "inline_string": body } })
}

fn leading_to(cluster: &Value, upstream: SocketAddr) -> Result<Value> {
    let mut cluster = cluster.clone();
    // Routes name aggregates, and other clusters have their own endpoints.
    if remove(&mut cluster, "eds_cluster_config").is_err() {
        remove(&mut cluster, "cluster_type")?;
        remove(&mut cluster, "lb_policy")?;
    }
    let address = json!({ "address": upstream.ip(), "port_value": upstream.port() });
    let endpoint = json!({ "endpoint": { "address": { "socket_address": address } } });
    cluster["type"] = json!("STATIC");
    cluster["load_assignment"] = json!({
        "cluster_name": cluster["name"],
        "endpoints": [{ "lb_endpoints": [endpoint] }],
    });
    Ok(cluster)
}

fn set_routes(manager: &mut Value, table: Value) -> Result<()> {
    remove(manager, "rds")?;
    manager["route_config"] = table;
    Ok(())
}

fn filters(manager: &mut Value) -> Result<&mut Vec<Value>> {
    manager["http_filters"].as_array_mut().context("no filters")
}

/// If the field is missing, the benchmark would no longer measure its subject.
fn remove(from: &mut Value, field: &str) -> Result<()> {
    let removed = from.as_object_mut().and_then(|all| all.remove(field));
    removed
        .map(drop)
        .with_context(|| format!("there is no {field}"))
}
