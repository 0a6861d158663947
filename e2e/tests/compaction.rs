//! etcd's history: compacted if configured, and left alone otherwise.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::etcd::Etcd;
use e2e::registry::{Instance, InstanceName};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use etcd_client::GetOptions;
use serde_json::{Value, json};

/// How long history is kept: the shortest possible time.
const KEEP_S: u64 = 10;

async fn replica(directory: &Path, etcd: &Etcd, compaction: Option<Value>) -> Result<ControlPlane> {
    std::fs::create_dir_all(directory)?;
    let store = StoreConfig::Etcd {
        endpoints: etcd.endpoints(),
    };
    let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
    let mut config = Config::new(store, vec![service]);
    config.compaction = compaction;
    ControlPlane::start(directory, config).await
}

/// Registers an instance again, which grows the history.
async fn register(plane: &ControlPlane, port: u16) -> Result<()> {
    let name = InstanceName::new("orders", ZONES[0].0, "one");
    let record = Instance::at(([127, 0, 0, 1], port).into());
    let reply = plane.registry().put(&name, &record, None).await?;
    ensure!(reply.status.is_success(), "{}", reply.text());
    Ok(())
}

/// etcd's current revision.
async fn revision(etcd: &Etcd) -> Result<i64> {
    let answer = etcd.client().await?.get("/", None).await?;
    Ok(answer.header().map_or(0, |header| header.revision()))
}

/// Whether the state at `revision` can still be read.
async fn has_history(etcd: &Etcd, revision: i64) -> Result<bool> {
    let at = GetOptions::new().with_revision(revision);
    match etcd.client().await?.get("/", Some(at)).await {
        Ok(_) => Ok(true),
        Err(error) if error.to_string().contains("compacted") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn compactions(planes: &[ControlPlane]) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for plane in planes {
        let count = plane.registry().metric("tidegate_store_compactions_total");
        all.push(count.await?);
    }
    Ok(all)
}

async fn is_refused(plane: &ControlPlane, key: &str) -> Result<()> {
    let log = std::fs::read_to_string(plane.process().log())?;
    ensure!(log.contains("TG2012") && log.contains(key), "no line");
    let (_, ready) = plane.registry().readiness().await?;
    ensure!(ready.to_string().contains("TG2012"), "{ready:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_compacted_where_all_keys_are_tidegates() -> Result<()> {
    let workdir = Workdir::kept("compaction")?;
    let directory = |name: &str| workdir.path().join(name);
    let keep = json!({ "keep_s": KEEP_S });
    let mut etcds = Vec::new();
    for name in ["ours", "shared", "by-default"] {
        std::fs::create_dir_all(directory(name))?;
        etcds.push(Etcd::start(&directory(name), 1).await?);
    }
    let [ours, shared, by_default] = &etcds[..] else {
        anyhow::bail!("three etcds");
    };
    let foreign = "/somebody/else";
    shared.client().await?.put(foreign, "1", None).await?;

    let both = [
        replica(&directory("one"), ours, Some(keep.clone())).await?,
        replica(&directory("two"), ours, Some(keep.clone())).await?,
    ];
    let refusing = replica(&directory("three"), shared, Some(keep)).await?;
    let silent = replica(&directory("four"), by_default, None).await?;
    let mut revisions = Vec::new();
    for (plane, etcd) in [(&both[0], ours), (&refusing, shared), (&silent, by_default)] {
        register(plane, 1).await?;
        revisions.push(revision(etcd).await?);
        register(plane, 2).await?;
    }
    eventually(PATIENCE, "the refusal", async || {
        is_refused(&refusing, foreign).await
    })
    .await?;
    let patience = PATIENCE + Duration::from_secs(2 * KEEP_S);
    eventually(patience, "the compaction", async || {
        ensure!(!has_history(ours, revisions[0]).await?, "not yet");
        Ok(())
    })
    .await?;
    // One replica compacts, and no watch is lost by it.
    let mut counts = compactions(&both).await?;
    counts.sort_by(f64::total_cmp);
    ensure!(counts[0] == 0.0 && counts[1] >= 1.0, "{counts:?}");
    register(&both[0], 3).await?;
    for plane in &both {
        eventually(PATIENCE, "the last change", async || {
            let seen = plane.registry().metric("tidegate_store_revision").await?;
            let is = revision(ours).await? as f64;
            ensure!(seen == is, "{seen} of {is}");
            Ok(())
        })
        .await?;
        let lists = plane
            .registry()
            .metric("tidegate_store_lists_total")
            .await?;
        ensure!(lists == 1.0, "listed {lists} times");
    }
    // The same time has passed for these.
    ensure!(has_history(shared, revisions[1]).await?, "of others");
    ensure!(has_history(by_default, revisions[2]).await?, "by default");

    // Its foreign key is removed, and another one is put into the first.
    shared.client().await?.delete(foreign, None).await?;
    ours.client().await?.put(foreign, "1", None).await?;
    let chosen = usize::from(compactions(&both).await?[1] > 0.0);
    eventually(PATIENCE, "the refusal", async || {
        is_refused(&both[chosen], foreign).await
    })
    .await?;
    eventually(patience, "the compaction", async || {
        ensure!(!has_history(shared, revisions[1]).await?, "not yet");
        let (_, ready) = refusing.registry().readiness().await?;
        ensure!(!ready.to_string().contains("TG2012"), "{ready:#}");
        Ok(())
    })
    .await
}
