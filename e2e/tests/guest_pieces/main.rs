//! The pieces that `tidegate guest` prints, in a real Envoy: the net alone rejects exactly the
//! requests that it should, a guest without a policy agrees with it, and patches for Istio and Envoy
//! Gateway give an Envoy in whose way `tidegate check --guest` finds nothing.

mod net;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::envoy;
use e2e::paths;
use e2e::workdir::Workdir;
use serde_json::{Value, json};

use net::Host;

const CONFIG: &str = "examples/tidegate.yaml";
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// `tidegate` with these arguments, in the root of the repository.
fn tidegate(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(paths::tidegate()?);
    command.args(arguments).current_dir(paths::workspace());
    command.output().context("tidegate does not start")
}

/// The documents that `tidegate guest` prints.
fn printed(arguments: &str) -> Result<Vec<Value>> {
    let words = ["guest"].into_iter().chain(arguments.split_whitespace());
    let output = tidegate(&words.collect::<Vec<_>>())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments}: {error}");
    let text = String::from_utf8(output.stdout)?;
    let read = |text| serde_saphyr::from_str(text).context("no YAML");
    text.split("\n---\n").map(read).collect()
}

/// An Envoy without a guest: a connection manager with a router, a route and its cluster.
fn foreign(orders: SocketAddr) -> Value {
    let socket = |address: SocketAddr| json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } });
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let endpoint = json!({ "endpoint": { "address": socket(orders) } });
    json!({
        "node": { "id": "foreign", "cluster": "shop", "locality": { "region": "shanghai", "zone": "shanghai-a" } },
        "admin": { "address": socket(any_port) },
        "static_resources": {
            "listeners": [{ "name": "ingress", "address": socket(any_port), "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": format!("{NETWORK}.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": "ingress",
                    "normalize_path": true,
                    "merge_slashes": true,
                    "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
                    "upgrade_configs": [{ "upgrade_type": "websocket" }],
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": { "@type": format!("{HTTP}.router.v3.Router") },
                    }],
                    "route_config": { "name": "shop", "virtual_hosts": [{ "name": "shop", "domains": ["*"], "routes": [
                        { "match": { "prefix": "/" }, "route": { "cluster": "orders" } },
                    ] }] },
                },
            }] }] }],
            "clusters": [{
                "name": "orders",
                "connect_timeout": "1s",
                "load_assignment": { "cluster_name": "orders", "endpoints": [{ "lb_endpoints": [endpoint] }] },
            }],
        },
    })
}

fn manager(document: &mut Value) -> Result<&mut Value> {
    document
        .pointer_mut(MANAGER)
        .context("no connection manager")
}

fn filters(document: &mut Value) -> Result<&mut Vec<Value>> {
    let filters = manager(document)?["http_filters"].as_array_mut();
    filters.context("no filters")
}

/// As protobuf merges messages: objects by field, lists one behind the other.
fn merge(into: &mut Value, value: &Value) {
    match (into, value) {
        (Value::Object(into), Value::Object(value)) => {
            for (name, value) in value {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(value)) => into.extend(value.iter().cloned()),
        (into, value) => *into = value.clone(),
    }
}

/// Puts the pieces for an Envoy of one's own into it.
fn with_pieces(document: &mut Value, pieces: &Value) -> Result<()> {
    let ours = &pieces["http_connection_manager"];
    let all = ours["http_filters"].as_array().context("no filters")?;
    filters(document)?.splice(..0, all.iter().cloned());
    let mut rest = ours.clone();
    rest["http_filters"] = json!([]);
    merge(manager(document)?, &rest);
    clusters(document)?.push(pieces["clusters"][0].clone());
    let mut routes = pieces["routes"].clone();
    for route in routes.as_array_mut().context("no routes")? {
        if route["route"]["cluster"] == "YOURS" {
            route["route"]["cluster"] = json!("orders");
        }
    }
    // The rest goes where it went.
    let hosts = &mut manager(document)?["route_config"]["virtual_hosts"];
    let present = hosts[0]["routes"].as_array_mut().context("no routes")?;
    present.splice(..0, routes.as_array().into_iter().flatten().cloned());
    Ok(())
}

fn clusters(document: &mut Value) -> Result<&mut Vec<Value>> {
    let clusters = document.pointer_mut("/static_resources/clusters");
    clusters
        .and_then(Value::as_array_mut)
        .context("no clusters")
}

/// Applies the patches of an `EnvoyFilter` as istiod does.
fn patched(document: &mut Value, object: &Value) -> Result<()> {
    for patch in object["spec"]["configPatches"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let value = &patch["patch"]["value"];
        let (to, operation) = (&patch["applyTo"], &patch["patch"]["operation"]);
        match (
            to.as_str().unwrap_or_default(),
            operation.as_str().unwrap_or_default(),
        ) {
            ("CLUSTER", "ADD") => clusters(document)?.push(value.clone()),
            ("HTTP_FILTER", "INSERT_FIRST") => filters(document)?.insert(0, value.clone()),
            ("HTTP_FILTER", "INSERT_BEFORE") => before_router(document, value)?,
            ("NETWORK_FILTER", "MERGE") => merge(manager(document)?, &value["typed_config"]),
            ("HTTP_ROUTE", "MERGE") => {
                let hosts = &mut manager(document)?["route_config"]["virtual_hosts"];
                merge(&mut hosts[0]["routes"][0], value);
            }
            other => anyhow::bail!("an unknown patch: {other:?}"),
        }
    }
    Ok(())
}

fn before_router(document: &mut Value, value: &Value) -> Result<()> {
    let filters = filters(document)?;
    filters.insert(filters.len() - 1, value.clone());
    Ok(())
}

/// Applies the patches of an `EnvoyPatchPolicy`, and the policies, as Envoy Gateway does.
fn patched_by_gateway(document: &mut Value, object: &Value) -> Result<()> {
    let spec = &object["spec"];
    if object["kind"] == "BackendTrafficPolicy" {
        let bound = &spec["timeout"]["http"]["maxStreamDuration"];
        ensure!(bound == "1500ms", "{bound}");
        let on: Vec<_> = spec["retry"]["retryOn"]["triggers"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        let on: Vec<_> = on.into_iter().filter_map(Value::as_str).collect();
        let hosts = &mut manager(document)?["route_config"]["virtual_hosts"];
        let route = json!({ "route": {
            "max_stream_duration": { "max_stream_duration": "1.5s" },
            "retry_policy": { "retry_on": on.join(",") },
        } });
        merge(&mut hosts[0]["routes"][0], &route);
    }
    if object["kind"] == "EnvoyExtensionPolicy" {
        let name = "envoy.filters.http.wasm/envoyextensionpolicy/default/tidegate/wasm/0";
        let on = json!({ "typed_per_filter_config": { name: {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {},
        } } });
        merge(
            &mut manager(document)?["route_config"]["virtual_hosts"][0]["routes"][0],
            &on,
        );
        let configuration = json!({
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": spec["wasm"][0]["config"].to_string(),
        });
        let guest = json!({ "name": name, "disabled": true, "typed_config": {
            "@type": format!("{HTTP}.wasm.v3.Wasm"),
            "config": {
                "name": "tidegate",
                "configuration": configuration,
                "vm_config": {
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": { "local": { "filename": "/etc/tidegate/tidegate_filter.wasm" } },
                },
            },
        } });
        before_router(document, &guest)?;
    }
    for patch in spec["jsonPatches"].as_array().into_iter().flatten() {
        let (operation, value) = (&patch["operation"], &patch["operation"]["value"]);
        let (at, path) = (operation["jsonPath"].as_str(), operation["path"].as_str());
        match (at.unwrap_or_default(), path) {
            ("", Some("")) => clusters(document)?.push(value.clone()),
            ("..http_filters[0]", None) => filters(document)?.insert(0, value.clone()),
            (at, None) if at.contains("router") => before_router(document, value)?,
            (at, Some(field)) if at.contains("http_connection_manager") => {
                manager(document)?[field] = value.clone();
            }
            (at, Some(field)) => {
                let named = |filter: &&mut Value| {
                    filter["name"]
                        .as_str()
                        .is_some_and(|name| at.contains(name))
                };
                let filter = filters(document)?
                    .iter_mut()
                    .find(named)
                    .context(at.to_owned())?;
                filter["typed_config"]["config"][field] = value.clone();
            }
            other => anyhow::bail!("an unknown patch: {other:?}"),
        }
    }
    Ok(())
}

/// The real module in place of the printed path, and a control plane that is away.
fn on_this_machine(document: &mut Value) -> Result<()> {
    let module = json!(paths::filter()?);
    for filter in filters(document)? {
        let file = filter.pointer_mut("/typed_config/config/vm_config/code/local/filename");
        if let Some(file) = file {
            *file = module.clone();
        }
    }
    Ok(())
}

/// Envoy takes the document, and `tidegate check` finds nothing.
async fn is_good(directory: &Path, id: &str, document: &Value) -> Result<()> {
    let bootstrap = Bootstrap::of(document.clone());
    envoy::validate(directory, id, &bootstrap).await?;
    let file = directory.join(format!("{id}.checked.json"));
    fs::write(&file, document.to_string())?;
    let file = file.display().to_string();
    let output = tidegate(&["check", "--guest", &file, "--config", CONFIG])?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{id}: {told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test]
async fn envoy_takes_the_pieces_for_each_host() -> Result<()> {
    let workdir = Workdir::kept("guest-pieces")?;
    let orders = SocketAddr::from(([127, 0, 0, 1], 9));
    for (id, arguments) in [
        ("fence", "--kind envoy"),
        (
            "write",
            "--kind envoy --class write=/buy --unfenced /metrics",
        ),
        ("route", "--kind envoy --mode route --cluster *=orders"),
    ] {
        let mut document = foreign(orders);
        let pieces = printed(&format!("{arguments} --config {CONFIG}"))?;
        with_pieces(&mut document, &pieces[0])?;
        on_this_machine(&mut document)?;
        is_good(workdir.path(), id, &document).await?;
    }
    for (id, arguments) in [
        ("gateway", "--kind istio"),
        ("waypoint", "--kind istio --context waypoint"),
        ("sidecar", "--kind istio --context sidecar-outbound"),
    ] {
        let mut document = foreign(orders);
        for object in printed(&format!("{arguments} --config {CONFIG}"))? {
            patched(&mut document, &object)?;
        }
        on_this_machine(&mut document)?;
        if id == "waypoint" {
            // istiod patches no routes there: the guest alone bounds writes.
            let hosts = &mut manager(&mut document)?["route_config"]["virtual_hosts"];
            hosts[0]["routes"][0]["route"]["max_stream_duration"] =
                json!({ "max_stream_duration": "1.5s" });
        }
        is_good(workdir.path(), id, &document).await?;
    }
    let mut document = foreign(orders);
    for object in printed(&format!("--kind envoy-gateway --config {CONFIG}"))? {
        patched_by_gateway(&mut document, &object)?;
    }
    on_this_machine(&mut document)?;
    is_good(workdir.path(), "envoy-gateway", &document).await
}

#[tokio::test]
async fn check_tells_what_is_wrong_with_a_live_envoy() -> Result<()> {
    let arguments = format!("--kind envoy --config {CONFIG}");
    let host = Host::start("guest-check-live", &arguments).await?;
    let url = format!("http://{}/config_dump", host.envoy.admin().address());
    let check =
        |more: &[&str]| tidegate(&[&["check", "--guest", &url, "-o", "name"], more].concat());
    let output = check(&["--config", CONFIG])?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(0) && told.is_empty(), "{told}");
    // Without the services the route for everything else may take their writes.
    let output = check(&[])?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(6), "{output:?}");
    ensure!(told == "unbounded_write\n", "{told}");
    Ok(())
}
