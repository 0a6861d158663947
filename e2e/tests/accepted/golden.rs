//! The configuration of each role, as a real Envoy shows it, in files: a change of the translation
//! becomes a visible change of these files.
//!
//! `TIDEGATE_BLESS=1 cargo test -p e2e --test accepted golden` rewrites the files.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::*;

/// One of each kind of service, and a fence.
const MESH: &str = r#"
listen: {xds: "127.0.0.1:0", admin: "127.0.0.1:0"}
store: {embedded: {path: /nowhere/store}}
filter: {path: FILTER, generation: 1}
listeners:
  gateway: {address: 127.0.0.1, port: 0}
  sidecar: {address: 127.0.0.1, port: 0}
  grpc: true
zones:
  - {name: shanghai-a, region: shanghai}
  - {name: shanghai-b, region: shanghai}
  - {name: beijing-c, region: beijing}
authority:
  forward_token: sixteen-letters-1
services:
  - name: orders
    routes: [{host: shop.example, prefix: /orders}]
    weights: {zone: 80, region: 20}
  - name: catalog
    routes: [{host: shop.example, prefix: /, class: read}]
    fenced: false
    timeout_ms: 2000
  - name: carts
    routes: [{host: "*", prefix: /carts}]
    fenced: false
    strategy: {region_first_hash: {cookie: cart}}
    stateful_session: {cookie: at, ttl_s: 60}
  - name: chat
    routes: [{host: chat.example, grpc: chat.v1.Chat, reads: [Listen]}]
    fenced: false
"#;

const SERVICES: [&str; 5] = ["orders", "catalog", "carts", "chat", "gateway"];
const ZONES: [&str; 3] = ["shanghai-a", "shanghai-b", "beijing-c"];

/// Parts of a config dump that differ from run to run.
const OF_THE_RUN: [&str; 3] = ["last_updated", "version_info", "client_status"];

fn world() -> Result<Arc<Snapshot>> {
    let filter = paths::filter()?;
    let text = MESH.replace("FILTER", &filter.display().to_string());
    let mesh = Config::parse("golden.yaml", &text)?.mesh;
    let places = SERVICES
        .iter()
        .flat_map(|service| ZONES.map(|zone| (service, zone)));
    let entries = places.enumerate().map(|(at, (service, zone))| Entry {
        key: format!("{INSTANCES_PREFIX}{service}/{zone}/i-0"),
        value: json!({ "address": "127.0.0.1", "port": 1_024 + at })
            .to_string()
            .into_bytes()
            .into(),
        create_revision: Revision(1),
        mod_revision: Revision(1),
        lease: None,
    });
    let listed = Change::Listed {
        entries: entries.collect(),
        revision: Revision(1),
        origin: Origin::Store,
    };
    let mut world = World::new(Arc::new(mesh));
    world.apply(listed, 1);
    world.snapshot(1).context("a first snapshot")
}

/// The resources that an Envoy received by discovery, by kind and name, without the parts that
/// differ from run to run.
async fn given(envoy: &Envoy) -> Result<String> {
    let dump = envoy.admin().get("/config_dump?include_eds").await?;
    let dump: Value = serde_json::from_str(&dump)?;
    let mut kinds = Map::new();
    for part in dump["configs"].as_array().context("configs")? {
        for (kind, path) in [
            ("dynamic_active_clusters", "cluster"),
            ("dynamic_listeners", "active_state/listener"),
            ("dynamic_route_configs", "route_config"),
            ("dynamic_endpoint_configs", "endpoint_config"),
            ("ecds_filters", "ecds_filter"),
        ] {
            let Some(entries) = part[kind].as_array() else {
                continue;
            };
            for entry in entries {
                let resource = path.split('/').fold(entry, |value, step| &value[step]);
                let mut resource = resource.clone();
                strip(&mut resource);
                let name = resource["name"]
                    .as_str()
                    .or(resource["cluster_name"].as_str());
                let name = name.context("a name")?.to_owned();
                let by_name = kinds.entry(kind).or_insert_with(|| json!({}));
                by_name[name] = resource;
            }
        }
    }
    ensure!(kinds.len() >= 3, "a dump without resources: {dump:#}");
    let filter = paths::filter()?.display().to_string();
    let text = format!("{:#}\n", Value::Object(kinds));
    Ok(text.replace(&filter, "FILTER"))
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            OF_THE_RUN
                .iter()
                .for_each(|name| drop(fields.remove(*name)));
            fields.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}

fn check(role: &str, given: &str) -> Result<()> {
    let file = format!("tests/accepted/golden/{role}.json");
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    if env::var_os("TIDEGATE_BLESS").is_some() {
        fs::create_dir_all(file.parent().context("a folder")?)?;
        return Ok(fs::write(&file, given)?);
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    let differ = kept.lines().zip(given.lines()).enumerate();
    let first = differ.into_iter().find(|(_, (kept, given))| kept != given);
    if let Some((at, (kept, given))) = first {
        bail!(
            "{role}.json, line {}: {kept:?} is {given:?} now; TIDEGATE_BLESS=1 cargo test -p e2e --test accepted golden",
            at + 1
        );
    }
    ensure!(kept == given, "{role}.json has another length now");
    Ok(())
}

#[tokio::test]
async fn each_role_gets_what_its_golden_file_says() -> Result<()> {
    let workdir = Workdir::kept("golden")?;
    let snapshot = world()?;
    let pulpit = Pulpit::start(Arc::clone(&snapshot)).await?;
    let mut envoys = Vec::new();
    for role in [Role::Gateway, Role::Sidecar] {
        let options = Options {
            id: role.as_str().to_owned(),
            role,
            ..Options::gateway(REGION, ZONE)
        };
        let envoy = Envoy::start(workdir.path(), &options, pulpit.address).await?;
        envoys.push((role.as_str(), envoy));
    }
    let client = grpc_client(pulpit.address)?;
    let client = Envoy::start_with(workdir.path(), "client", &client, 1).await?;
    envoys.push(("grpc", client));
    pulpit.taken(&snapshot, envoys.len()).await?;
    for (role, envoy) in &envoys {
        // Endpoints and clusters arrive one after the other.
        let same = eventually(TAKEN_WITHIN, "all of the golden file", async || {
            check(role, &given(envoy).await?)
        });
        same.await?;
    }
    Ok(())
}
