//! The resources that a real control plane pushes to a real Envoy, read back from that Envoy.

use anyhow::{Context, Result, bail, ensure};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::envoy::{Envoy, Options};
use e2e::registry::{Instance, InstanceName};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

/// The zone of the measured gateway.
pub(super) const VIEWER: &str = "shanghai-a";
pub(super) const SERVICE: &str = "orders";

/// The resources of one gateway, as Envoy's JSON.
pub(super) struct Pushed {
    pub(super) listener: Value,
    pub(super) routes: Value,
    /// The filter in the form of ECDS.
    pub(super) filter: Value,
    pub(super) clusters: Vec<Value>,
}

/// A control plane that goes on to serve guests.
pub(super) struct Source {
    pub(super) control_plane: ControlPlane,
    _workdir: Workdir,
}

impl Pushed {
    /// Runs a control plane and an Envoy for this purpose.
    pub(super) async fn get() -> Result<(Pushed, Source)> {
        let workdir = Workdir::temporary()?;
        let service = json!({ "name": SERVICE, "routes": [{ "prefix": "/orders" }] });
        let config = Config {
            bare: true,
            ..Config::new(StoreConfig::Embedded, vec![service])
        };
        let control_plane = ControlPlane::start(workdir.path(), config).await?;
        for (port, (zone, _)) in (1..).zip(ZONES) {
            let name = InstanceName::new(SERVICE, zone, "one");
            // It gets no requests, but without instances requests would be rejected. Each has its
            // own address: two at one address would count as one.
            let instance = Instance::at(([127, 0, 0, 1], port).into());
            let reply = control_plane.registry().put(&name, &instance, None).await?;
            ensure!(reply.status.is_success(), "{}", reply.text());
        }
        let region = e2e::config::region_of(VIEWER);
        let options = Options::gateway(region, VIEWER);
        let envoy = Envoy::start(workdir.path(), &options, control_plane.xds()).await?;
        let pushed = eventually(PATIENCE, "the configuration to arrive", async || {
            let registry = control_plane.registry();
            let known = registry.metric("tidegate_instances").await?;
            ensure!(known >= ZONES.len() as f64, "{known} instances");
            // The filter knows the destinations of requests.
            let wanted = registry.view(VIEWER).await?["policy_version"].clone();
            let applied = envoy.admin().stat("wasmcustom.tidegate.policy_version");
            let applied = json!(applied.await?);
            ensure!(applied == wanted, "policy {applied} instead of {wanted}");
            Pushed::read(&envoy.admin().config_dump().await?)
        });
        let pushed = envoy.process().unless_it_ends(pushed).await?;
        let source = Source {
            control_plane,
            _workdir: workdir,
        };
        Ok((pushed, source))
    }

    fn read(dump: &Value) -> Result<Pushed> {
        let clusters = section(dump, "ClustersConfigDump", "dynamic_active_clusters")?;
        Ok(Pushed {
            listener: untyped(only(
                dump,
                "ListenersConfigDump",
                "dynamic_listeners",
                "/active_state/listener",
            )?),
            routes: untyped(only(
                dump,
                "RoutesConfigDump",
                "dynamic_route_configs",
                "/route_config",
            )?),
            filter: only(dump, "EcdsConfigDump", "ecds_filters", "/ecds_filter")?,
            clusters: clusters
                .iter()
                .map(|entry| untyped(entry["cluster"].clone()))
                .collect(),
        })
    }
}

fn only(dump: &Value, kind: &str, field: &str, pointer: &str) -> Result<Value> {
    match section(dump, kind, field)? {
        [entry] => entry
            .pointer(pointer)
            .cloned()
            .with_context(|| format!("{field} has no {pointer}")),
        several => bail!("{} of {field}", several.len()),
    }
}

/// In the form of a bootstrap, whose context determines the type.
fn untyped(mut resource: Value) -> Value {
    if let Some(fields) = resource.as_object_mut() {
        fields.remove("@type");
    }
    resource
}

fn section<'d>(dump: &'d Value, kind: &str, field: &str) -> Result<&'d [Value]> {
    let configs = dump["configs"].as_array().context("no configs")?;
    let section = configs.iter().find(|config| {
        config["@type"]
            .as_str()
            .is_some_and(|name| name.ends_with(&format!(".{kind}")))
    });
    section
        .and_then(|section| section[field].as_array())
        .map(Vec::as_slice)
        .with_context(|| format!("no {kind}.{field}"))
}
