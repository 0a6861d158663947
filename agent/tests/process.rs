//! The real `tidegate agent`: from its configuration file to the records, and how it ends.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent::{http, https};
use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::routing::get;
use e2e::certificates::{self, Ca};
use e2e::client::{Client, Reply, Request, Version};
use e2e::etcd::Etcd;
use e2e::paths;
use e2e::process::Process;
use e2e::wait::{PATIENCE, eventually};
use hyper::{Method, StatusCode};
use nix::sys::signal::Signal;
use registry::record::{Health, Instance, InstanceKey};
use registry::store::{Entry, EtcdOptions, EtcdStore, Store, StoreError};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// An application: healthy while it runs, with a load that the test sets.
struct Application {
    address: SocketAddr,
    in_flight: Arc<AtomicU32>,
    serving: JoinHandle<()>,
}

impl Application {
    async fn start() -> Application {
        let in_flight = Arc::new(AtomicU32::new(3));
        let shown = Arc::clone(&in_flight);
        let router = Router::new().route("/healthz", get(async || "fine")).route(
            "/load",
            get(async move || {
                let in_flight = shown.load(Ordering::Relaxed);
                json!({"load": 0.7, "in_flight": in_flight}).to_string()
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Application {
            address,
            in_flight,
            serving,
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// An etcd, two applications `o-1` and `o-2`, and an agent beside them.
struct Fixture {
    applications: [Application; 2],
    agent: Process,
    http: SocketAddr,
    store: EtcdStore,
    etcd: Etcd,
    config: Value,
    directory: TempDir,
}

impl Fixture {
    async fn start(lease_ttl_s: u64, drain_s: u64) -> Fixture {
        Fixture::start_with(lease_ttl_s, drain_s, &[]).await
    }

    async fn start_with(lease_ttl_s: u64, drain_s: u64, more: &[&str]) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(directory.path(), 1).await.unwrap();
        let applications = [Application::start().await, Application::start().await];
        let instances = applications.iter().enumerate().map(|(index, application)| {
            let address = application.address;
            json!({
                "service": "orders",
                "instance": format!("o-{}", index + 1),
                "address": address.ip(),
                "port": address.port(),
                "probe": {"http": {"path": "/healthz"}, "interval_ms": 100},
                "load": {"url": format!("http://{address}/load")},
            })
        });
        let config = json!({
            "zone": "shanghai-a",
            "store": {"etcd": {"endpoints": etcd.endpoints()}},
            "listen": "127.0.0.1:0",
            "lease_ttl_s": lease_ttl_s,
            "drain_s": drain_s,
            "report_every_s": 1,
            "instances": instances.collect::<Vec<_>>(),
        });
        let (agent, http) = start(directory.path(), &config, more).await.unwrap();
        let options = EtcdOptions::new(etcd.endpoints());
        Fixture {
            applications,
            agent,
            http,
            store: EtcdStore::new(options).await.unwrap(),
            etcd,
            config,
            directory,
        }
    }

    async fn entry(&self, name: &str) -> Result<Option<Entry>> {
        let key = InstanceKey {
            service: "orders".to_owned(),
            zone: "shanghai-a".to_owned(),
            instance: name.to_owned(),
        };
        Ok(self.store.get(&key.store_key()).await?)
    }

    async fn record(&self, name: &str) -> Result<Option<Instance>> {
        let entry = self.entry(name).await?;
        let record = entry.map(|entry| Instance::parse(&entry.value));
        Ok(record.transpose()?)
    }

    /// Waits until both records say so.
    async fn are(&self, expected: [Option<Health>; 2]) {
        let what = format!("the records to be {expected:?}");
        let seen = eventually(PATIENCE, &what, async || {
            let health = |record: Option<Instance>| record.map(|record| record.health);
            let is = [
                health(self.record("o-1").await?),
                health(self.record("o-2").await?),
            ];
            ensure!(is == expected, "they are {is:?}");
            Ok(())
        });
        self.agent_runs(seen).await;
    }

    async fn agent_runs<T>(&self, future: impl Future<Output = Result<T>>) -> T {
        self.agent.unless_it_ends(future).await.unwrap()
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Reply> {
        let request = Request::new(method, path).json(&json!({}));
        Client::new(Version::Http1).send(self.http, &request).await
    }

    async fn metric(&self, line: &str) {
        let shown = eventually(PATIENCE, line, async || {
            let text = self.ask(Method::GET, "/metrics").await?.text();
            ensure!(text.lines().any(|each| each == line), "{text}");
            Ok(())
        });
        self.agent_runs(shown).await;
    }
}

async fn start(directory: &Path, config: &Value, more: &[&str]) -> Result<(Process, SocketAddr)> {
    let file = directory.join("agent.yaml");
    fs::write(&file, config.to_string())?;
    let addresses = directory.join("addresses.json");
    // Of an agent before this one.
    let _ = fs::remove_file(&addresses);
    let arguments = [
        "agent",
        "--config",
        &file.display().to_string(),
        "--addresses-file",
        &addresses.display().to_string(),
    ];
    let arguments: Vec<String> = arguments
        .iter()
        .chain(more)
        .map(|a| a.to_string())
        .collect();
    let process = Process::start(directory, "agent", &paths::tidegate()?, &arguments)?;
    let listening = eventually(PATIENCE, "the agent to listen", async || {
        let text = fs::read_to_string(&addresses).context("no addresses file")?;
        let addresses: Value = serde_json::from_str(&text)?;
        let address = addresses["http"].as_str().context("an address")?;
        Ok(address.parse()?)
    });
    let address = process.unless_it_ends(listening).await?;
    Ok((process, address))
}

const HEALTHY: [Option<Health>; 2] = [Some(Health::Healthy), Some(Health::Healthy)];
const DRAINING: [Option<Health>; 2] = [Some(Health::Draining), Some(Health::Draining)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_registered_and_one_that_dies_becomes_unhealthy() {
    let mut fixture = Fixture::start(5, 1).await;
    fixture.are(HEALTHY).await;
    let ready = eventually(PATIENCE, "ready", async || {
        let reply = fixture.ask(Method::GET, "/readyz").await?;
        ensure!(reply.status == StatusCode::OK, "{}", reply.text());
        Ok(())
    });
    fixture.agent_runs(ready).await;
    let loaded = eventually(PATIENCE, "the load", async || {
        let record = fixture.record("o-1").await?.context("no record")?;
        ensure!(
            record.app_load == Some(0.7) && record.in_flight == 3,
            "{record:?}"
        );
        Ok(())
    });
    fixture.agent_runs(loaded).await;

    fixture.applications[0] = Application::start().await;
    fixture
        .are([Some(Health::Unhealthy), Some(Health::Healthy)])
        .await;
    let labels = r#"az="shanghai-a",role="instance",probe="http",service="orders""#;
    fixture
        .metric(&format!(
            "health_probe_status{{{labels},instance=\"o-1\"}} 0"
        ))
        .await;
    fixture
        .metric(&format!(
            "health_probe_status{{{labels},instance=\"o-2\"}} 1"
        ))
        .await;
    fixture.metric("agent_registered 2").await;
    fixture.metric("agent_mode{mode=\"registering\"} 1").await;
    let listed = fixture
        .ask(Method::GET, "/v1/instances")
        .await
        .unwrap()
        .text();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["verdict"], "unhealthy", "{listed}");
    assert_eq!(listed[0]["reason"], "connection refused", "{listed}");
    assert_eq!(listed[1]["registered"]["health"], "healthy", "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_instance_can_be_drained_and_taken_back() {
    let fixture = Fixture::start(5, 1).await;
    fixture.are(HEALTHY).await;
    let reply = fixture
        .ask(Method::POST, "/v1/drain/orders/o-1")
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    // Answered when it is written.
    let health = fixture.record("o-1").await.unwrap().unwrap().health;
    assert_eq!(health, Health::Draining);
    fixture
        .are([Some(Health::Draining), Some(Health::Healthy)])
        .await;
    assert!(!reply.text().contains("warnings"), "{}", reply.text());
    // The other one is its zone's last.
    let last = fixture
        .ask(Method::POST, "/v1/drain/orders/o-2")
        .await
        .unwrap();
    assert_eq!(last.status, StatusCode::OK, "{}", last.text());
    let warning = "shanghai-a has no other healthy instance of orders";
    assert!(last.text().contains(warning), "{}", last.text());
    fixture
        .ask(Method::DELETE, "/v1/drain/orders/o-2")
        .await
        .unwrap();
    let reply = fixture
        .ask(Method::DELETE, "/v1/drain/orders/o-1")
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    fixture.are(HEALTHY).await;
    let reply = fixture
        .ask(Method::POST, "/v1/drain/orders/o-3")
        .await
        .unwrap();
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    assert!(
        reply.text().contains("no instance orders/o-3"),
        "{}",
        reply.text()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sigterm_everything_drains_first_and_goes_when_nothing_is_in_flight() {
    // The time to drain is longer than anybody waits here: it ends because nothing is in flight.
    let fixture = Fixture::start(5, 600).await;
    fixture.are(HEALTHY).await;
    fixture.agent.signal(Signal::SIGTERM).unwrap();
    fixture.are(DRAINING).await;
    fixture.applications[0]
        .in_flight
        .store(0, Ordering::Relaxed);
    let idle = eventually(PATIENCE, "in_flight 0", async || {
        let record = fixture.record("o-1").await?.context("no record")?;
        ensure!(record.in_flight == 0, "{record:?}");
        Ok(())
    });
    fixture.agent_runs(idle).await;
    // The other one still works, for longer than any drain takes at least: a wait for what must not
    // happen.
    let ended = fixture.agent.ended(Duration::from_secs(3)).await;
    assert!(ended.is_err(), "it does not wait for o-2: {ended:?}");
    fixture.are(DRAINING).await;
    fixture.applications[1]
        .in_flight
        .store(0, Ordering::Relaxed);
    let status = fixture.agent.ended(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}\n{}", fixture.agent.tail());
    assert_eq!(fixture.record("o-1").await.unwrap(), None);
    assert_eq!(fixture.record("o-2").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_to_drain_is_bounded_and_a_second_signal_ends_at_once() {
    let fixture = Fixture::start(5, 2).await;
    fixture.are(HEALTHY).await;
    let status = fixture.agent.terminate(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}\n{}", fixture.agent.tail());
    assert_eq!(fixture.record("o-1").await.unwrap(), None);

    let fixture = Fixture::start(60, 600).await;
    fixture.are(HEALTHY).await;
    fixture.agent.signal(Signal::SIGINT).unwrap();
    fixture.are(DRAINING).await;
    let status = fixture.agent.terminate(PATIENCE).await.unwrap();
    assert!(!status.success());
    assert!(
        fixture.record("o-1").await.unwrap().is_some(),
        "the lease lives on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_etcd_away_it_ends_in_time_all_the_same() {
    let fixture = Fixture::start(5, 600).await;
    fixture.are(HEALTHY).await;
    fixture.etcd.members()[0].process().pause().unwrap();
    let unready = eventually(PATIENCE, "not ready", async || {
        let reply = fixture.ask(Method::GET, "/readyz").await?;
        let noticed = reply.status == StatusCode::SERVICE_UNAVAILABLE;
        ensure!(noticed, "{}", reply.text());
        Ok(())
    });
    fixture.agent_runs(unready).await;
    let status = fixture.agent.terminate(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}\n{}", fixture.agent.tail());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_for_longer_than_its_lease_lives_it_registers_anew() {
    let fixture = Fixture::start(2, 1).await;
    fixture.are(HEALTHY).await;
    fixture.agent.pause().unwrap();
    fixture.are([None, None]).await;
    fixture.agent.resume().unwrap();
    fixture.are(HEALTHY).await;
    let text = fixture.ask(Method::GET, "/metrics").await.unwrap().text();
    let lost = text
        .lines()
        .filter(|line| line.starts_with("agent_leases_lost_total{"));
    let lost: Vec<&str> = lost.collect();
    assert!(
        matches!(lost[..], [line] if line.ends_with(" 1")),
        "{lost:?}"
    );
    assert!(fixture.agent.tail().contains("the lease is lost"));
}

#[tokio::test]
async fn a_configuration_can_be_checked_and_a_bad_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.yaml");
    let text = "zone: a\nregistry: {http: ['http://127.0.0.1:1']}\ninstances:\n  - {service: s, instance: i, address: 127.0.0.1, port: 80, probe: {tcp: {}, timeout_ms: 500}}\n";
    for (text, good, expected) in [
        (text.replace("500", "100"), true, "good: 1 instances"),
        (
            text.to_owned(),
            false,
            "agent.yaml:4: instances[0].probe.timeout_ms: 500",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let arguments = ["agent", "--config", &file.display().to_string(), "--check"];
        let arguments = arguments.map(str::to_owned);
        let tidegate = paths::tidegate().unwrap();
        let process = Process::start(directory.path(), "check", &tidegate, &arguments).unwrap();
        let status = process.ended(PATIENCE).await.unwrap();
        assert_eq!(status.success(), good, "{}", process.tail());
        assert!(process.tail().contains(expected), "{}", process.tail());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_etcd_leaves_everything_registered() {
    let mut fixture = Fixture::start(5, 1).await;
    fixture.are(HEALTHY).await;
    fixture.etcd.restart().await.unwrap();
    fixture.are(HEALTHY).await;
    // Longer than the lease lives without being kept alive: a wait for something that must not
    // happen.
    let gone = eventually(Duration::from_secs(7), "a record to vanish", async || {
        ensure!(fixture.record("o-1").await?.is_none());
        Ok(())
    });
    assert!(gone.await.is_err());
    fixture.are(HEALTHY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_with_keep_hands_the_records_over_without_a_gap() {
    let mut fixture = Fixture::start_with(5, 600, &["--keep"]).await;
    fixture.are(HEALTHY).await;
    let before = fixture.entry("o-1").await.unwrap().unwrap();
    let status = fixture.agent.terminate(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}\n{}", fixture.agent.tail());
    // No record is drained, and none is gone.
    let left = fixture.entry("o-1").await.unwrap().unwrap();
    assert_eq!(left.lease, before.lease);
    let health = Instance::parse(&left.value).unwrap().health;
    assert_eq!(health, Health::Healthy);

    let (agent, http) = start(fixture.directory.path(), &fixture.config, &["--keep"])
        .await
        .unwrap();
    (fixture.agent, fixture.http) = (agent, http);
    let taken = eventually(PATIENCE, "the next agent's lease", async || {
        let entry = fixture.entry("o-1").await?.context("the record is gone")?;
        ensure!(entry.lease != before.lease, "{entry:?}");
        Ok(entry)
    });
    let taken = fixture.agent_runs(taken).await;
    assert_eq!(
        taken.create_revision, before.create_revision,
        "it was never gone"
    );
    fixture.are(HEALTHY).await;
    // The lease of the first one ends, which takes nothing with it.
    let first = before.lease.unwrap();
    let ended = eventually(PATIENCE, "the first lease to end", async || {
        let kept = fixture.store.lease_revoke(first).await;
        ensure!(
            kept == Err(StoreError::LeaseNotFound) || kept.is_ok(),
            "{kept:?}"
        );
        Ok(())
    });
    fixture.agent_runs(ended).await;
    fixture.are(HEALTHY).await;
    let entry = fixture.entry("o-1").await.unwrap().unwrap();
    assert_eq!(entry.create_revision, before.create_revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_takes_no_changes_from_web_pages() {
    let fixture = Fixture::start(5, 1).await;
    fixture.are(HEALTHY).await;
    let json = "application/json";
    for (content_type, origin, expected) in [
        ("text/plain", None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (json, Some("https://evil.example"), StatusCode::FORBIDDEN),
        (json, None, StatusCode::OK),
    ] {
        let mut request = Request::new(Method::POST, "/v1/drain/orders/o-1");
        request = request.header("content-type", content_type);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let client = Client::new(Version::Http1);
        let reply = client.send(fixture.http, &request).await.unwrap();
        assert_eq!(reply.status, expected, "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_speaks_tls_and_asks_for_a_certificate_except_of_probes() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new("the mesh").unwrap();
    let files = directory.path().join("server");
    ca.issue(&files, "localhost", &[&ca]).unwrap();
    let own = directory.path().join("client");
    ca.issue(&own, "spiffe://mesh/operator", &[&ca]).unwrap();
    let mut listen = certificates::listen(&files, &[]);
    listen.as_object_mut().unwrap().remove("plaintext");
    listen["address"] = "127.0.0.1:0".into();
    let config = json!({
        "zone": "shanghai-a",
        // No store is there, and the agent listens all the same.
        "store": {"etcd": {"endpoints": ["http://127.0.0.1:9"]}},
        "listen": listen,
        "instances": [{"service": "orders", "instance": "o-1", "address": "127.0.0.1", "port": 9, "probe": {"tcp": {}}}],
    });
    let (agent, address) = start(directory.path(), &config, &[]).await.unwrap();
    let client = |own: Option<&Path>| {
        http::Client::with_tls(&https::Files {
            ca: files.join(certificates::TRUSTED),
            own: own.map(|own| {
                (
                    own.join(certificates::CERTIFICATE),
                    own.join(certificates::KEY),
                )
            }),
        })
        .unwrap()
    };
    for (own, method, path, expected) in [
        (None, Method::GET, "/healthz", 200),
        (None, Method::GET, "/metrics", 403),
        (None, Method::POST, "/v1/drain/orders/o-2", 403),
        (Some(own.as_path()), Method::GET, "/metrics", 200),
        (
            Some(own.as_path()),
            Method::POST,
            "/v1/drain/orders/o-2",
            404,
        ),
    ] {
        let url = format!("https://localhost:{}{path}", address.port());
        let client = client(own);
        let asked = async {
            Ok(client
                .send(method.clone(), &url, "", PATIENCE, 1 << 20)
                .await?)
        };
        let (status, _) = agent.unless_it_ends(asked).await.unwrap();
        assert_eq!(status.as_u16(), expected, "{method} {path}");
    }
    // Plain text gets no answer.
    let plain = Client::new(Version::Http1);
    let plain = plain.send(address, &Request::get("/healthz")).await;
    assert!(plain.is_err());
}
