//! Envoy accepts every configuration that `tidegate check` accepts: random configurations, rendered
//! for every role, and real Envoys.
//!
//! The generator knows possible values of each field, valid and invalid ones, without knowing which
//! are valid: the check decides. A failure prints the seed of its configuration;
//! `ACCEPTED_SEED=SEED,SEED cargo test -p e2e --test accepted` repeats it, after the preceding one.

#![allow(
    clippy::disallowed_methods,
    reason = "the test is an edge, as the harness is: it draws a seed"
)]

mod any;
mod golden;

use std::collections::BTreeMap;
use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::dice::Dice;
use e2e::envoy::{Envoy, Options, Role};
use e2e::paths;
use e2e::wait::eventually;
use e2e::workdir::Workdir;
use registry::record::INSTANCES_PREFIX;
use registry::store::{Entry, Revision};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use xds::resource::Kind;
use xds::transport::Services;
use xds_server::applied::{self, Applied};
use xds_server::config::{Config, Mesh};
use xds_server::discovery::ZoneViews;
use xds_server::discovery::proxies::{Proxies, ProxyStatus};
use xds_server::metrics::Metrics;
use xds_server::net::connections::Listener;
use xds_server::net::tls::Port;
use xds_server::proxy_port;
use xds_server::snapshot::Snapshot;
use xds_server::world::{Change, Origin, World};

use any::{Files, REGION, ZONE};

/// The most valid configurations that are tried, ...
const ROUNDS: usize = 60;
/// ... and for how long; on a busy machine these are fewer.
const BUDGET: Duration = Duration::from_secs(15);
/// Envoy waits for 15 s for a missing resource, and then continues without a message: no
/// configuration may come to that.
const TAKEN_WITHIN: Duration = Duration::from_secs(12);
/// A lower share of valid configurations would mean that the generator hardly builds any.
const GOOD_PERCENT_MIN: usize = 15;

/// A control plane whose snapshots the test builds.
struct Pulpit {
    publisher: watch::Sender<Option<Arc<Snapshot>>>,
    proxies: Proxies,
    address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl Pulpit {
    async fn start(first: Arc<Snapshot>) -> Result<Pulpit> {
        let (publisher, snapshots) = watch::channel(Some(first));
        let proxies = Proxies::default();
        let views = ZoneViews::new(snapshots, proxies.clone(), Metrics::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let others = Routes::new(applied::service(Applied::default()));
        let server = tokio::spawn(proxy_port::serve(
            Listener::plain(listener, Port::Xds),
            Services::new(views.into_server(), others),
        ));
        Ok(Pulpit {
            publisher,
            proxies,
            address,
            server,
        })
    }

    /// Waits until every proxy has acknowledged its part of `snapshot`.
    async fn taken(&self, snapshot: &Snapshot, proxies: usize) -> Result<()> {
        let all = eventually(TAKEN_WITHIN, "all proxies to take it", async || {
            let list = self.proxies.list();
            if let Some(refusal) = list.iter().find_map(refusal) {
                return Ok(Err(refusal));
            }
            ensure!(list.len() == proxies, "{} proxies", list.len());
            for proxy in &list {
                has_all(proxy, snapshot)?;
            }
            Ok(Ok(()))
        });
        all.await?.map_err(|refusal| anyhow!(refusal))
    }
}

impl Drop for Pulpit {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn refusal(proxy: &ProxyStatus) -> Option<String> {
    let mut kinds = proxy.kinds.iter();
    kinds.find_map(|(kind, status)| {
        let nack = status.nack.as_ref()?;
        Some(format!("{} refuses {kind}: {}", proxy.node, nack.message))
    })
}

fn has_all(proxy: &ProxyStatus, snapshot: &Snapshot) -> Result<()> {
    let view = snapshot.view(&proxy.view).context("no view")?;
    for kind in [
        Kind::Cluster,
        Kind::Listener,
        Kind::Routes,
        Kind::FilterConfig,
    ] {
        let Some(status) = proxy.kinds.get(kind.as_str()) else {
            // A proxy with its own listener requests no other, nor a policy.
            ensure!(proxy.role == "grpc", "{} has not asked", proxy.node);
            continue;
        };
        for (name, resource) in view.of(kind) {
            // A client requests one of its tables.
            if proxy.role == "grpc" && kind == Kind::Routes && **name != *any::TABLE {
                continue;
            }
            let held = status.versions.get(&**name);
            let offered = resource.version.to_string();
            ensure!(held == Some(&offered), "{}: {name} {held:?}", proxy.node);
        }
    }
    Ok(())
}

/// The next configuration that the check accepts, its seed, and the number of attempts.
fn next_good(
    seeds: &mut Dice,
    fixed: Option<u64>,
    generation: u64,
    files: &Files,
) -> Result<(u64, Mesh, usize)> {
    for made in 1..=1_000 {
        let seed = fixed.unwrap_or_else(|| seeds.roll());
        let mut dice = Dice::new(seed);
        let mut config = any::config(&mut dice, files);
        config["filter"] = json!({ "path": paths::filter()?, "generation": generation });
        let text = format!("{config:#}");
        match Config::parse("mesh.yaml", &text) {
            Ok(config) => return Ok((seed, config.mesh, made)),
            Err(error) if fixed.is_some() => bail!("seed {seed} is refused: {error}"),
            Err(error) => ensure!(
                error.line > 0 && !error.field.is_empty(),
                "seed {seed}: a refusal without a place: {error}"
            ),
        }
    }
    bail!("a thousand configurations, and the check takes none")
}

/// The mesh with healthy instances in some places.
fn snapshot(mesh: Mesh, dice: &mut Dice) -> Result<Arc<Snapshot>> {
    let mut entries = Vec::new();
    for service in &mesh.services {
        for zone in mesh.topology.zones() {
            for instance in 0..dice.between(0, 3) {
                let (service, zone) = (&service.name, mesh.topology.zone_name(zone));
                let port = 1_024 + entries.len();
                let value = json!({ "address": "127.0.0.1", "port": port });
                entries.push(Entry {
                    key: format!("{INSTANCES_PREFIX}{service}/{zone}/i-{instance}"),
                    value: value.to_string().into_bytes().into(),
                    create_revision: Revision(1),
                    mod_revision: Revision(1),
                    lease: None,
                });
            }
        }
    }
    let mut world = World::new(Arc::new(mesh));
    let listed = Change::Listed {
        entries,
        revision: Revision(1),
        origin: Origin::Store,
    };
    world.apply(listed, 1);
    world.snapshot(1).context("a first snapshot")
}

/// An Envoy that requests the resources of gRPC clients: all clusters, and a route table for its
/// own listener.
fn grpc_client(control_plane: SocketAddr) -> Result<Bootstrap> {
    let manager =
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "envoy.extensions.filters.http.router.v3.Router";
    let typed = |name: &str| format!("type.googleapis.com/{name}");
    let from_ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let listener = json!({
        "name": "client",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{ "name": "manager", "typed_config": {
            "@type": typed(manager),
            "stat_prefix": "client",
            "rds": { "route_config_name": any::TABLE, "config_source": from_ads },
            "http_filters": [{ "name": "router", "typed_config": { "@type": typed(router) } }],
        } }] }],
    });
    Bootstrap::read("gateway.yaml")?
        .node("client", REGION, ZONE)?
        .cluster_at("tidegate", control_plane)?
        .with("/node/metadata/tidegate", json!({ "role": "grpc" }))?
        .with("/dynamic_resources/lds_config", Value::Null)?
        .insert("/static_resources", "listeners", json!([listener]))
}

/// Resources that a proxy rejected or could not create, by its own count.
async fn failures(envoy: &Envoy) -> Result<BTreeMap<String, u64>> {
    let stats = envoy.admin().stats("rejected|create_failure").await?;
    Ok(stats.into_iter().filter(|(_, count)| *count > 0).collect())
}

#[tokio::test]
async fn envoy_takes_all_that_the_check_calls_good() -> Result<()> {
    let fixed = env::var("ACCEPTED_SEED").unwrap_or_default();
    let fixed = fixed.split(',').filter(|seed| !seed.is_empty());
    let fixed = fixed.map(|seed| seed.parse().context("ACCEPTED_SEED"));
    let fixed: Vec<u64> = fixed.collect::<Result<_>>()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut seeds = Dice::new(now.as_nanos() as u64);
    let workdir = Workdir::kept("accepted")?;
    let files = Files::make(&workdir.path().join("certificates"))?;

    let (mut seed, mesh, mut made) = next_good(&mut seeds, fixed.first().copied(), 1, &files)?;
    let mut current = snapshot(mesh, &mut Dice::new(seed))?;
    let pulpit = Pulpit::start(Arc::clone(&current)).await?;
    let mut envoys = vec![];
    for role in [Role::Gateway, Role::Sidecar] {
        let options = Options {
            id: role.as_str().to_owned(),
            role,
            ..Options::gateway(REGION, ZONE)
        };
        envoys.push(Envoy::start(workdir.path(), &options, pulpit.address).await?);
    }
    let client = grpc_client(pulpit.address)?;
    envoys.push(Envoy::start_with(workdir.path(), "client", &client, 1).await?);

    let rounds = if fixed.is_empty() {
        ROUNDS
    } else {
        fixed.len()
    };
    // The result of a configuration in a proxy depends on the preceding one.
    let mut before = String::new();
    let begun = Instant::now();
    let mut tried = 0;
    for round in 1..=rounds {
        let taken = pulpit.taken(&current, envoys.len()).await;
        taken.with_context(|| {
            let config = any::config(&mut Dice::new(seed), &files);
            format!("ACCEPTED_SEED={before}{seed} (round {round}):\n{config:#}")
        })?;
        tried = round;
        if begun.elapsed() > BUDGET {
            break;
        }
        if round < rounds {
            let chosen = fixed.get(round).copied();
            let (next, mesh, tries) = next_good(&mut seeds, chosen, round as u64 + 1, &files)?;
            before = format!("{seed},");
            (seed, made) = (next, made + tries);
            current = snapshot(mesh, &mut Dice::new(seed))?;
            pulpit.publisher.send_replace(Some(Arc::clone(&current)));
        }
    }
    for envoy in &envoys {
        let failures = failures(envoy).await?;
        ensure!(
            failures.is_empty(),
            "{failures:?}\n{}",
            envoy.process().tail()
        );
    }
    let good_percent = tried * 100 / made;
    ensure!(
        !fixed.is_empty() || good_percent >= GOOD_PERCENT_MIN,
        "only {good_percent} % of the configurations are valid"
    );
    Ok(())
}
