//! The registrar against real registries: etcd, and the control plane's HTTP interface, while they
//! fail in every way.

use std::sync::Arc;
use std::time::Duration;

use agent::health::ProbeVerdict;
use agent::instances::{Instances, Known};
use agent::metrics::{Metrics, ReasonLabel};
use agent::registrar::{EtcdTarget, HttpTarget, Mode, Registrar, Status, Target};
use anyhow::{Context, Result, ensure};
use e2e::config::{Config, StoreConfig};
use e2e::control_plane::ControlPlane;
use e2e::etcd::Etcd;
use e2e::wait::{PATIENCE, eventually};
use registry::record::{Health, Instance, InstanceKey};
use registry::store::{Entry, EtcdOptions, EtcdStore, LeaseId, Store, StoreError};
use tempfile::TempDir;
use tokio::time::timeout;

/// Long: the lease does not end while a test runs, unless the test ends it.
const LONG: Duration = Duration::from_secs(60);
/// Short: keepalives, due every third of it, come soon.
const SHORT: Duration = Duration::from_secs(3);

fn key(instance: &str) -> InstanceKey {
    InstanceKey {
        service: "orders".to_owned(),
        zone: "shanghai-a".to_owned(),
        instance: instance.to_owned(),
    }
}

fn instance(port: u16) -> Instance {
    let text = format!(r#"{{"address": "127.0.0.1", "port": {port}}}"#);
    Instance::parse(text.as_bytes()).unwrap()
}

/// A registrar with two instances, `o-1` and `o-2`.
struct Agent {
    instances: Instances,
    registrar: Registrar,
    metrics: Metrics,
}

impl Agent {
    fn start(target: impl Target, ttl: Duration) -> Agent {
        let known = |name, port| (key(name), Known::new(instance(port)));
        let instances = Instances::new([known("o-1", 1), known("o-2", 2)].into());
        let metrics = Metrics::default();
        let registrar = Registrar::start(Arc::new(target), &instances, ttl, metrics.clone());
        Agent {
            instances,
            registrar,
            metrics,
        }
    }

    async fn in_etcd(endpoints: Vec<String>, ttl: Duration) -> Agent {
        Agent::start(
            EtcdTarget::new(EtcdOptions::new(endpoints)).await.unwrap(),
            ttl,
        )
    }

    fn say(&self, name: &str, verdict: ProbeVerdict) {
        let found = self
            .instances
            .update(&key(name), |known| known.verdict = Some(verdict));
        assert!(found);
    }

    async fn status(&self, what: &str, is: impl FnMut(&Status) -> bool) {
        let mut status = self.registrar.status();
        let reached = timeout(PATIENCE, status.wait_for(is)).await;
        if reached.is_err() {
            let last = self.registrar.status().borrow().clone();
            panic!("not within {PATIENCE:?}: {what}; last seen: {last:?}");
        }
    }

    async fn registered(&self) {
        self.status("everything is registered", |status| {
            status.matches(&self.instances.snapshot())
        })
        .await;
    }

    fn lost(&self, reason: &'static str) -> u64 {
        let label = ReasonLabel { reason };
        self.metrics.leases_lost.get_or_create(&label).get()
    }
}

/// A real etcd, and a store beside the agent's.
struct Fixture {
    etcd: Etcd,
    store: EtcdStore,
    _directory: TempDir,
}

impl Fixture {
    async fn start(members: usize) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(directory.path(), members).await.unwrap();
        let options = EtcdOptions::new(etcd.endpoints());
        let store = EtcdStore::new(options).await.unwrap();
        Fixture {
            etcd,
            store,
            _directory: directory,
        }
    }

    async fn agent(&self, ttl: Duration) -> Agent {
        Agent::in_etcd(self.etcd.endpoints(), ttl).await
    }

    async fn entry(&self, name: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(&key(name).store_key()).await
    }

    async fn health(&self, name: &str) -> Result<Option<Health>> {
        let Some(entry) = self.entry(name).await? else {
            return Ok(None);
        };
        Ok(Some(Instance::parse(&entry.value)?.health))
    }

    /// Waits until a record says so; `None`: until there is none.
    async fn becomes(&self, name: &str, health: Option<Health>) {
        let what = format!("{name} to be {health:?}");
        let seen = eventually(PATIENCE, &what, async || {
            let is = self.health(name).await?;
            ensure!(is == health, "it is {is:?}");
            Ok(())
        });
        seen.await.unwrap();
    }

    async fn lease(&self, name: &str) -> Result<LeaseId> {
        let entry = self.entry(name).await?.context("no record")?;
        entry.lease.context("no lease")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_follow_the_verdicts_and_go_with_the_lease() {
    let fixture = Fixture::start(1).await;
    let agent = fixture.agent(LONG).await;
    agent.status("a lease", |status| status.has_lease).await;
    assert_eq!(fixture.health("o-1").await.unwrap(), None, "no verdict yet");

    agent.say("o-1", ProbeVerdict::Healthy);
    agent.say("o-2", ProbeVerdict::Unhealthy);
    fixture.becomes("o-1", Some(Health::Healthy)).await;
    fixture.becomes("o-2", Some(Health::Unhealthy)).await;
    let lease = fixture.lease("o-1").await.unwrap();
    assert_eq!(
        fixture.lease("o-2").await.unwrap(),
        lease,
        "one lease for all"
    );

    agent.say("o-1", ProbeVerdict::Unhealthy);
    agent.say("o-2", ProbeVerdict::Healthy);
    fixture.becomes("o-1", Some(Health::Unhealthy)).await;
    fixture.becomes("o-2", Some(Health::Healthy)).await;
    agent
        .instances
        .update(&key("o-2"), |known| known.load.load1_per_core = 0.75);
    agent.registered().await;
    let entry = fixture.entry("o-2").await.unwrap().unwrap();
    assert_eq!(Instance::parse(&entry.value).unwrap().load1_per_core, 0.75);

    agent.instances.drain_all();
    fixture.becomes("o-1", Some(Health::Draining)).await;
    fixture.becomes("o-2", Some(Health::Draining)).await;
    agent.registrar.deregister(PATIENCE).await.unwrap();
    assert_eq!(fixture.health("o-1").await.unwrap(), None);
    assert_eq!(fixture.health("o-2").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_revoked_behind_its_back_is_replaced() {
    let fixture = Fixture::start(1).await;
    let agent = fixture.agent(SHORT).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.say("o-2", ProbeVerdict::Unhealthy);
    agent.registered().await;
    let lease = fixture.lease("o-1").await.unwrap();
    fixture.store.lease_revoke(lease).await.unwrap();
    assert_eq!(fixture.health("o-1").await.unwrap(), None);

    fixture.becomes("o-1", Some(Health::Healthy)).await;
    fixture.becomes("o-2", Some(Health::Unhealthy)).await;
    assert_ne!(fixture.lease("o-1").await.unwrap(), lease);
    assert_eq!(agent.lost("ended"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_notices_the_lost_lease_before_a_keepalive_does() {
    let fixture = Fixture::start(1).await;
    let agent = fixture.agent(LONG).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.registered().await;
    let lease = fixture.lease("o-1").await.unwrap();
    fixture.store.lease_revoke(lease).await.unwrap();
    agent.say("o-2", ProbeVerdict::Healthy);
    fixture.becomes("o-1", Some(Health::Healthy)).await;
    fixture.becomes("o-2", Some(Health::Healthy)).await;
    assert_eq!(agent.lost("ended"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_somebody_changed_or_deleted_are_written_again() {
    let fixture = Fixture::start(1).await;
    let agent = fixture.agent(SHORT).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.say("o-2", ProbeVerdict::Healthy);
    agent.registered().await;
    let lease = fixture.lease("o-1").await.unwrap();
    let deleted = fixture.store.delete(&key("o-1").store_key()).await;
    deleted.unwrap();
    let unreadable = fixture
        .store
        .put(&key("o-2").store_key(), "{".into(), None)
        .await;
    unreadable.unwrap();

    let restored = eventually(PATIENCE, "both records", async || {
        ensure!(fixture.health("o-1").await? == Some(Health::Healthy));
        ensure!(fixture.health("o-2").await? == Some(Health::Healthy));
        Ok(())
    });
    restored.await.unwrap();
    assert_eq!(fixture.lease("o-2").await.unwrap(), lease);
    assert_eq!(agent.metrics.records_replaced.get(), 2);
    assert_eq!(agent.lost("ended"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_another_incarnation_is_not_deleted() {
    let fixture = Fixture::start(1).await;
    let older = fixture.agent(LONG).await;
    older.say("o-1", ProbeVerdict::Healthy);
    older.say("o-2", ProbeVerdict::Healthy);
    older.registered().await;
    let newer = fixture.agent(LONG).await;
    newer.say("o-1", ProbeVerdict::Unhealthy);
    newer.registered().await;
    older.registrar.deregister(PATIENCE).await.unwrap();
    assert_eq!(
        fixture.health("o-1").await.unwrap(),
        Some(Health::Unhealthy)
    );
    assert_eq!(fixture.health("o-2").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_etcd_is_survived_and_what_changed_meanwhile_is_written() {
    let mut fixture = Fixture::start(1).await;
    let agent = fixture.agent(SHORT).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.say("o-2", ProbeVerdict::Healthy);
    agent.registered().await;

    fixture.etcd.members()[0].process().kill().unwrap();
    agent.say("o-1", ProbeVerdict::Unhealthy);
    agent
        .status("the outage is noticed", |status| {
            status.mode == Mode::Retrying
        })
        .await;
    agent
        .status("the lease is given up", |status| !status.has_lease)
        .await;
    fixture.etcd.restart().await.unwrap();
    fixture.becomes("o-1", Some(Health::Unhealthy)).await;
    fixture.becomes("o-2", Some(Health::Healthy)).await;
    agent
        .status("it has recovered", |status| {
            status.mode == Mode::Registering
        })
        .await;
    assert_eq!(agent.lost("unconfirmed"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_of_three_members_hangs_everything_stays_registered_and_changes_arrive() {
    let fixture = Fixture::start(3).await;
    let agent = fixture.agent(SHORT).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.say("o-2", ProbeVerdict::Healthy);
    agent.registered().await;

    // The one that the agent speaks to.
    fixture.etcd.members()[0].process().pause().unwrap();
    agent.say("o-1", ProbeVerdict::Unhealthy);
    fixture.becomes("o-1", Some(Health::Unhealthy)).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    fixture.becomes("o-1", Some(Health::Healthy)).await;
    // Longer than the lease lives without being kept alive: a wait for something that must not
    // happen.
    let gone = eventually(SHORT * 2, "o-2 to vanish", async || {
        ensure!(fixture.health("o-2").await?.is_none());
        Ok(())
    });
    assert!(gone.await.is_err());
    assert_eq!(fixture.health("o-2").await.unwrap(), Some(Health::Healthy));

    // Requests that the member got before it hung, and makes now, are older than the records that
    // others have written since. A member that led before may end leases when it goes on: to etcd
    // 3.5 a member that ticks is active, and one that is active still leads. The agent then
    // registers anew, so the records may be absent for a third of the time to live, but never old.
    fixture.etcd.members()[0].process().resume().unwrap();
    let options = EtcdOptions::new(vec![fixture.etcd.members()[0].endpoint()]);
    let woken = EtcdStore::new(options).await.unwrap();
    eventually(PATIENCE, "the member to answer", async || {
        Ok(woken.get(&key("o-1").store_key()).await?)
    })
    .await
    .unwrap();
    let old = eventually(SHORT, "an old record", async || {
        ensure!(fixture.health("o-1").await? == Some(Health::Unhealthy));
        Ok(())
    });
    assert!(old.await.is_err());
    fixture.becomes("o-1", Some(Health::Healthy)).await;
    fixture.becomes("o-2", Some(Health::Healthy)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_three_time_outs_it_only_probes_and_recovers_by_itself() {
    let fixture = Fixture::start(1).await;
    let agent = fixture.agent(LONG).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.registered().await;

    fixture.etcd.members()[0].process().pause().unwrap();
    // A stop takes its time to reach all threads.
    let hangs = eventually(PATIENCE, "etcd to hang", async || {
        ensure!(fixture.entry("o-1").await.is_err());
        Ok(())
    });
    hangs.await.unwrap();
    agent.say("o-1", ProbeVerdict::Unhealthy);
    agent
        .status("it only probes", |status| status.mode == Mode::ProbeOnly)
        .await;
    agent.say("o-2", ProbeVerdict::Healthy);
    fixture.etcd.members()[0].process().resume().unwrap();
    fixture.becomes("o-1", Some(Health::Unhealthy)).await;
    fixture.becomes("o-2", Some(Health::Healthy)).await;
    agent
        .status("it has recovered", |status| {
            status.mode == Mode::Registering
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_replaced_is_registered_with_anew() {
    let fixture = Fixture::start(1).await;
    let other = Fixture::start(1).await;
    let endpoints = [fixture.etcd.endpoints(), other.etcd.endpoints()].concat();
    let agent = Agent::in_etcd(endpoints, SHORT).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.registered().await;
    fixture.etcd.members()[0].process().kill().unwrap();
    other.becomes("o-1", Some(Health::Healthy)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_registry_it_ends_in_time() {
    let fixture = Fixture::start(1).await;
    let agent = fixture.agent(LONG).await;
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.registered().await;
    fixture.etcd.members()[0].process().kill().unwrap();
    let ended = agent.registrar.deregister(Duration::from_secs(1));
    let ended = timeout(PATIENCE, ended).await.expect("it ends");
    ended.expect_err("nobody answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_planes_interface_is_a_registry_too() {
    let directory = tempfile::tempdir().unwrap();
    let service = serde_json::json!({"name": "orders", "routes": [{"prefix": "/orders"}]});
    let config = Config::new(StoreConfig::Embedded, vec![service]);
    let mut control_plane = ControlPlane::start(directory.path(), config).await.unwrap();
    let base = format!("http://{}", control_plane.admin());
    // The first address is nobody's.
    let target = HttpTarget::new(vec!["http://127.0.0.1:1".to_owned(), base]);
    let agent = Agent::start(target, SHORT);
    agent.say("o-1", ProbeVerdict::Healthy);
    agent.say("o-2", ProbeVerdict::Unhealthy);
    let registry = control_plane.registry().clone();
    let are = async |expected: [Option<&str>; 2]| {
        let seen = eventually(PATIENCE, "the records", async || {
            let listed = registry.instances().await?;
            let listed = listed.as_array().context("a list")?;
            let health = |name: &str| {
                let mut records = listed.iter();
                let record = records.find(|each| each["key"] == key(name).store_key().as_str());
                record.and_then(|record| record["record"]["health"].as_str())
            };
            let is = [health("o-1"), health("o-2")];
            ensure!(is == expected, "{is:?} instead of {expected:?}");
            Ok(())
        });
        seen.await.unwrap();
    };
    are([Some("healthy"), Some("unhealthy")]).await;
    let name = e2e::registry::InstanceName::new("orders", "shanghai-a", "o-1");
    registry.remove(&name).await.unwrap();
    are([Some("healthy"), Some("unhealthy")]).await;
    assert_eq!(agent.metrics.records_replaced.get(), 1);

    control_plane.stop().await.unwrap();
    agent.say("o-1", ProbeVerdict::Unhealthy);
    agent
        .status("the outage is noticed", |status| {
            status.mode == Mode::Retrying
        })
        .await;
    control_plane.restart().await.unwrap();
    are([Some("unhealthy"), Some("unhealthy")]).await;
    agent.instances.drain_all();
    are([Some("draining"), Some("draining")]).await;
    agent.registrar.deregister(PATIENCE).await.unwrap();
    are([None, None]).await;
}
