//! A policy that the filter rejects. Our own control plane never builds one, so here the test is
//! the control plane: the real discovery service, with a resource in which the policy is garbage.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::{Config, StoreConfig};
use e2e::envoy::{Envoy, Options};
use e2e::paths;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use xds::resource::{Kind, Resources};
use xds::transport::Services;
use xds_server::applied::{Applied, AppliedStatus};
use xds_server::config::{Config as Parsed, Mesh};
use xds_server::discovery::ZoneViews;
use xds_server::discovery::proxies::Proxies;
use xds_server::metrics::Metrics;
use xds_server::net::connections::Listener;
use xds_server::net::tls::Port;
use xds_server::proxy_port;
use xds_server::snapshot::{Snapshot, View};
use xds_server::translate;
use xds_server::world::World;

/// A control plane whose snapshots the test builds.
struct Pulpit {
    publisher: watch::Sender<Option<Arc<Snapshot>>>,
    proxies: Proxies,
    applied: Applied,
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
        let applied = Applied::default();
        let others = Routes::new(xds_server::applied::service(applied.clone()));
        let server = tokio::spawn(proxy_port::serve(
            Listener::plain(listener, Port::Xds),
            Services::new(views.into_server(), others),
        ));
        Ok(Pulpit {
            publisher,
            proxies,
            applied,
            address,
            server,
        })
    }

    /// The message of the rejection in force for a kind.
    fn refusal(&self, kind: Kind) -> Result<String> {
        let proxies = self.proxies.list();
        let status = proxies.iter().find_map(|p| p.kinds.get(kind.as_str()));
        let nack = status.and_then(|status| status.nack.as_ref());
        Ok(nack.context("nothing is refused")?.message.clone())
    }

    /// The filter's last report of its applied configuration.
    fn applied(&self, gateway: &Options) -> Result<AppliedStatus> {
        let status = self.applied.of(&gateway.id, tokio::time::Instant::now());
        status.context("the filter has said nothing")
    }
}

impl Drop for Pulpit {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn mesh(unknown_region: &str) -> Result<Mesh> {
    let service = json!({
        "name": "orders",
        "routes": [{ "prefix": "/" }],
        "region": { "unknown": unknown_region },
    });
    let text = Config::new(StoreConfig::Embedded, vec![service]).text(&paths::filter()?);
    Ok(Parsed::parse("mesh.yaml", &text)?.mesh)
}

fn snapshot(mesh: &Mesh) -> Result<Arc<Snapshot>> {
    let mut world = World::new(Arc::new(mesh.clone()));
    world.snapshot(0).context("a first snapshot")
}

/// The same, except for the bytes of the policy.
fn with_garbage(snapshot: &Snapshot, mesh: &Mesh) -> Arc<Snapshot> {
    let garbage = translate::filter_config_of_bytes(&mesh.filter, &[b"no policy at all"]);
    let views: BTreeMap<_, _> = snapshot
        .views()
        .map(|(key, view)| {
            let resources = Kind::ALL.map(|kind| match kind {
                Kind::FilterConfig => {
                    Resources::unit(Arc::clone(&garbage.name), Arc::clone(&garbage))
                }
                _ => view.of(kind).clone(),
            });
            let needed = view.needed().clone();
            let view = View::new(resources, needed, Arc::clone(view.policy()), 0);
            (key.clone(), Arc::new(view))
        })
        .collect();
    Arc::new(Snapshot::new(snapshot.sequence + 1, views, Arc::default()))
}

/// The version of the gateways' policy.
fn version_of(snapshot: &Snapshot) -> Result<u64> {
    let mut views = snapshot.views();
    let view = views.find(|(key, _)| &*key.zone == "shanghai-a");
    Ok(view.context("no view")?.1.policy_version())
}

fn reason(reply: &Reply) -> Result<String> {
    let problem: serde_json::Value = serde_json::from_slice(&reply.body)?;
    Ok(problem["reason"].as_str().context("a reason")?.to_owned())
}

#[tokio::test]
async fn a_refused_policy_changes_nothing_and_a_mended_one_is_taken() -> Result<()> {
    let workdir = Workdir::kept("refused-policy")?;
    let (strict, lenient) = (mesh("reject")?, mesh("local")?);
    let (good, mended) = (snapshot(&strict)?, snapshot(&lenient)?);
    let pulpit = Pulpit::start(Arc::clone(&good)).await?;
    let options = Options::gateway("shanghai", "shanghai-a");
    let envoy = Envoy::start(workdir.path(), &options, pulpit.address).await?;
    let ingress = envoy.ingress().await?;
    let client = Client::new(Version::Http1);
    let lost = Request::get("/orders").header("x-region-id", "atlantis");

    // The service has no instance: a request that the filter accepts ends in `no_capacity`.
    let decided = async |expected: &str| {
        let what = format!("the reason {expected}");
        let looks = eventually(PATIENCE, &what, async || {
            let reason = reason(&client.send(ingress, &lost).await?)?;
            ensure!(reason == expected, "{reason}");
            Ok(())
        });
        looks.await.with_context(|| envoy.process().tail())
    };
    decided("region_unknown").await?;

    let broken = with_garbage(&good, &strict);
    pulpit.publisher.send_replace(Some(Arc::clone(&broken)));
    let refused = eventually(PATIENCE, "the refusal", async || {
        pulpit.refusal(Kind::FilterConfig)
    });
    let message = refused.await?;
    assert!(message.contains("tidegate"), "{message}");
    decided("region_unknown").await?;
    let log = std::fs::read_to_string(envoy.process().log())?;
    assert!(log.contains("not a tidegate.v1.Policy"), "{log}");
    // The filter itself reports the cause, and the policy that it continues with.
    let told = eventually(PATIENCE, "the filter's report", async || {
        let status = pulpit.applied(&options)?;
        let refused = status.refused.clone().context("nothing is refused")?;
        ensure!(status.is_at(version_of(&good)?), "{status:?}");
        Ok(refused)
    });
    let told = told.await?;
    assert!(
        told.message.contains("not a tidegate.v1.Policy"),
        "{told:?}"
    );

    // The proxy has the good one, so nothing is sent. It would acknowledge the rejected one now,
    // without applying it.
    pulpit.publisher.send_replace(Some(Arc::clone(&good)));
    eventually(PATIENCE, "no refusal of the good one", async || {
        ensure!(pulpit.refusal(Kind::FilterConfig).is_err(), "still refused");
        Ok(())
    })
    .await?;
    pulpit.publisher.send_replace(Some(Arc::clone(&broken)));
    eventually(PATIENCE, "the refusal to be in force again", async || {
        pulpit.refusal(Kind::FilterConfig)
    })
    .await?;
    decided("region_unknown").await?;
    assert!(
        pulpit.refusal(Kind::FilterConfig).is_ok(),
        "until another is applied"
    );

    let refusals = pulpit
        .proxies
        .clients()
        .health()
        .flat_map(|proxy| proxy.refusals);
    let mut refusals = refusals.map(|(resource, _)| resource);
    assert!(refusals.any(|resource| resource.starts_with("ecds ")));

    pulpit.publisher.send_replace(Some(Arc::clone(&mended)));
    decided("no_capacity").await?;
    eventually(PATIENCE, "the filter's next report", async || {
        let status = pulpit.applied(&options)?;
        ensure!(status.is_at(version_of(&mended)?), "{status:?}");
        ensure!(status.refused.is_none(), "{status:?}");
        Ok(())
    })
    .await?;
    eventually(PATIENCE, "no refusal in force", async || {
        ensure!(pulpit.refusal(Kind::FilterConfig).is_err(), "still refused");
        Ok(())
    })
    .await?;

    // A rejected policy that comes back is tried and rejected again; afterwards a good one is
    // accepted.
    pulpit.publisher.send_replace(Some(broken));
    eventually(PATIENCE, "the second refusal", async || {
        pulpit.refusal(Kind::FilterConfig)
    })
    .await?;
    decided("no_capacity").await?;
    pulpit.publisher.send_replace(Some(good));
    decided("region_unknown").await
}
