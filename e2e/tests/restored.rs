//! etcd returns as another one: from an older backup, or as a new cluster. The known state stays in
//! force until an operator confirms the new one. The control plane's own reader, a real etcd.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use e2e::config::{Config, StoreConfig};
use e2e::etcd::Etcd;
use e2e::paths;
use e2e::registry::{Instance, InstanceName};
use e2e::wait::{PATIENCE, eventually};
use registry::store::{EtcdOptions, EtcdStore, Store};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;
use xds_server::config::{Config as Parsed, Mesh};
use xds_server::feed::{self, Feed, Sources};
use xds_server::last_good::{self, Keeper, LastGood};
use xds_server::metrics::Metrics;
use xds_server::store_health::{Level, StoreHealth};

/// An etcd, and the directories of its data and backups. Dropping it removes it.
struct Site {
    etcd: Etcd,
    directory: TempDir,
}

impl Site {
    async fn start() -> Result<Site> {
        let directory = tempfile::tempdir()?;
        let etcd = Etcd::start(directory.path(), 1).await?;
        Ok(Site { etcd, directory })
    }

    async fn put(&self, instance: &str) -> Result<()> {
        let name = InstanceName::new("orders", "shanghai-a", instance);
        // Two instances at one address would conflict.
        let number = instance.bytes().map(u16::from).sum::<u16>();
        let record = Instance::at(([127, 0, 0, 1], 1000 + number).into());
        let mut client = self.etcd.client().await?;
        let value = serde_json::to_vec(&record)?;
        client.put(name.key(), value, None).await?;
        Ok(())
    }

    /// Ends etcd, and copies its data.
    fn back_up(&self, name: &str) -> Result<()> {
        self.etcd.kill()?;
        copy(
            &self.etcd.members()[0].data(),
            &self.directory.path().join(name),
        )
    }

    /// Starts etcd with the data of a backup, or none.
    async fn restore(&mut self, name: Option<&str>) -> Result<()> {
        self.etcd.kill()?;
        let data = self.etcd.members()[0].data();
        fs::remove_dir_all(&data)?;
        if let Some(name) = name {
            copy(&self.directory.path().join(name), &data)?;
        }
        self.etcd.restart().await
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// The inner parts of a control plane.
struct Follower {
    store: Arc<dyn Store>,
    store_health: StoreHealth,
    feed: Feed,
    metrics: Metrics,
    keeper: Keeper,
    _meshes: watch::Sender<Arc<Mesh>>,
}

impl Follower {
    async fn start(site: &Site) -> Result<Follower> {
        Follower::start_with(site, "state").await
    }

    /// With a state on disk of this name.
    async fn start_with(site: &Site, state: &str) -> Result<Follower> {
        let state = site.directory.path().join(state);
        let store = EtcdStore::new(EtcdOptions::new(site.etcd.endpoints())).await?;
        let service = json!({ "name": "orders", "routes": [{ "prefix": "/" }] });
        let text = Config::new(StoreConfig::Embedded, vec![service]).text(&paths::filter()?);
        let mesh = Parsed::parse("mesh.yaml", &text)?.mesh;
        let (meshes, followed) = watch::channel(Arc::new(mesh));
        let metrics = Metrics::default();
        let store_health = StoreHealth::new(metrics.clone());
        let last_good: Option<LastGood> = last_good::read(&state)?;
        let keeper = Keeper::start(state, last_good.clone(), metrics.clone());
        let store: Arc<dyn Store> = Arc::new(store);
        let feed = feed::start(Sources {
            store: Arc::clone(&store),
            meshes: followed,
            facts: None,
            last_good,
            keeper: keeper.clone(),
            store_health: store_health.clone(),
            metrics: metrics.clone(),
        });
        Ok(Follower {
            store,
            store_health,
            feed,
            metrics,
            keeper,
            _meshes: meshes,
        })
    }

    async fn until(&self, what: &str, holds: impl Fn() -> Result<()>) -> Result<()> {
        eventually(PATIENCE, what, async || holds()).await
    }

    /// Waits until this many instances are served, and all are in the store.
    async fn until_serving(&self, instances: i64) -> Result<()> {
        self.until("the store's instances", || {
            let status = self.store_health.status();
            ensure!(status.level == Level::Normal && !status.stale, "{status:?}");
            ensure!(!status.confirm && status.reason.is_empty(), "{status:?}");
            let served = self.metrics.instances.get();
            ensure!(served == instances, "{served}");
            Ok(())
        })
        .await
    }

    /// Waits until it distrusts the store, with that many instances still served.
    async fn until_doubting(&self, reason: &str, instances: i64) -> Result<()> {
        self.until("doubt", || {
            let status = self.store_health.status();
            ensure!(status.confirm && status.stale, "{status:?}");
            ensure!(status.reason.contains(reason), "{status:?}");
            let served = self.metrics.instances.get();
            ensure!(served == instances, "{served}");
            Ok(())
        })
        .await
    }

    /// Confirms the store at this replica and all others.
    async fn confirm_everywhere(&self) -> Result<()> {
        let confirm = &self.feed.confirm;
        Ok(confirm.everywhere(&*self.store, &self.store_health).await?)
    }

    fn confirm(&self) -> Result<()> {
        ensure!(self.feed.confirm.confirm(), "nothing waits");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_backup_is_believed_when_an_operator_confirms_it() -> Result<()> {
    let mut site = Site::start().await?;
    site.put("a").await?;
    let follower = Follower::start(&site).await?;
    follower.until_serving(1).await?;
    assert!(!follower.feed.confirm.confirm(), "a yes in advance");
    site.back_up("older")?;
    site.etcd.restart().await?;
    site.put("b").await?;
    follower.until_serving(2).await?;
    site.back_up("newer")?;

    site.restore(Some("older")).await?;
    follower.until_doubting("older backup", 2).await?;
    // The original returns: that needs no confirmation.
    site.restore(Some("newer")).await?;
    follower.until_serving(2).await?;
    assert!(
        !follower.feed.confirm.confirm(),
        "the question is taken back"
    );

    site.restore(Some("older")).await?;
    follower.until_doubting("older backup", 2).await?;
    follower.confirm()?;
    follower.until_serving(1).await?;
    site.put("c").await?;
    follower.until_serving(2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_believed_when_an_operator_confirms_it() -> Result<()> {
    let mut site = Site::start().await?;
    for instance in ["a", "b"] {
        site.put(instance).await?;
    }
    let follower = Follower::start(&site).await?;
    follower.until_serving(2).await?;
    site.etcd.set_token("another");
    site.restore(None).await?;
    follower.until_doubting("another store answers", 2).await?;
    site.put("c").await?;
    follower.confirm()?;
    follower.until_serving(1).await?;
    site.put("d").await?;
    follower.until_serving(2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_control_plane_is_told_of_a_restored_store_all_believe() -> Result<()> {
    let mut site = Site::start().await?;
    site.put("a").await?;
    let asked = Follower::start_with(&site, "asked").await?;
    let other = Follower::start_with(&site, "other").await?;
    for follower in [&asked, &other] {
        follower.until_serving(1).await?;
    }
    site.back_up("older")?;
    site.etcd.restart().await?;
    site.put("b").await?;
    for follower in [&asked, &other] {
        follower.until_serving(2).await?;
    }
    other.keeper.stop().await;
    let late = site.directory.path().join("late");
    fs::copy(site.directory.path().join("other"), late)?;

    // From a backup under the same id; and another cluster.
    site.restore(Some("older")).await?;
    for follower in [&asked, &other] {
        follower.until_doubting("older backup", 2).await?;
    }
    asked.confirm_everywhere().await?;
    for follower in [&asked, &other] {
        follower.until_serving(1).await?;
    }
    site.etcd.set_token("another");
    site.restore(None).await?;
    for follower in [&asked, &other] {
        follower.until_doubting("another store answers", 1).await?;
    }
    site.put("c").await?;
    site.put("d").await?;
    asked.confirm_everywhere().await?;
    drop(asked);
    other.until_serving(2).await?;
    // A replica that starts later, with its memory of the first store.
    let late = Follower::start_with(&site, "late").await?;
    late.until_serving(2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_store_is_found_at_the_start_too() -> Result<()> {
    let mut site = Site::start().await?;
    site.put("a").await?;
    site.back_up("older")?;
    site.etcd.restart().await?;
    for instance in ["b", "c"] {
        site.put(instance).await?;
    }
    let follower = Follower::start(&site).await?;
    follower.until_serving(3).await?;
    follower.keeper.stop().await;
    drop(follower);

    site.restore(Some("older")).await?;
    let follower = Follower::start(&site).await?;
    follower.until_doubting("older backup", 3).await?;
    drop(follower);
    // It was written to meanwhile, so it has a higher revision than the known one, but another
    // past.
    for instance in ["d", "e", "f", "g"] {
        site.put(instance).await?;
    }
    let follower = Follower::start(&site).await?;
    follower.until_doubting("written to since", 3).await?;
    follower.confirm()?;
    follower.until_serving(5).await.context("confirmed")?;
    follower.keeper.stop().await;
    drop(follower);
    // The confirmed state is the known one from now on.
    let follower = Follower::start(&site).await?;
    follower.until_serving(5).await
}
