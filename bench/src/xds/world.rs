//! The cost of one change of an instance before anything is sent, and of the first snapshot of
//! everything: worlds of three sizes, each in its own process, without store or proxies.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::figures::{Figure, median, quantile};
use registry::record::INSTANCES_PREFIX;
use registry::store::{Entry, Revision};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::process::Command;
use xds_server::config::{Config, Mesh};
use xds_server::snapshot::Snapshot;
use xds_server::world::{Change, Origin, World};

use crate::usage::{Usage, thread_cpu};

/// The number of instances, and its name in figures.
const SIZES: [(usize, &str); 3] = [(1_000, "1k"), (10_000, "10k"), (100_000, "100k")];
const INSTANCES_PER_SERVICE: usize = 5;
const CHANGES: usize = 300;
/// A change of plan may take long in a large world. No more of them begin when all together have
/// taken this much time.
const REPLANNING_MAX: Duration = Duration::from_secs(20);
/// The largest is built in seconds; a busy machine needs the rest.
const TIME_MAX: Duration = Duration::from_secs(300);

/// Zone and region; instances are assigned to them in turn.
const ZONES: [(&str, &str); 3] = [
    ("shanghai-a", "shanghai"),
    ("shanghai-b", "shanghai"),
    ("beijing-c", "beijing"),
];
/// The position of a service's instance that is alone in its zone: the last zone gets one in five.
const ALONE_IN_ITS_ZONE: usize = 2;

/// The figures of one process.
#[derive(Serialize, Deserialize)]
struct Findings {
    configuration_s: f64,
    first_snapshot_s: f64,
    rss_mb: f64,
    /// CPU time of changes that move an instance to another address.
    moved_us: Vec<f64>,
    /// CPU time of changes that move requests: a zone's only instance becomes unhealthy, or healthy
    /// again.
    replanned_us: Vec<f64>,
}

pub(super) async fn run(instances_max: usize) -> Result<Vec<Figure>> {
    println!(
        "\nworlds of {INSTANCES_PER_SERVICE} instances a service in {} zones; CPU time of one change, p50 / p99 of up to {CHANGES}",
        ZONES.len()
    );
    println!(
        "{:>10} {:>10} {:>12} {:>10} {:>10} {:>20} {:>20}",
        "instances",
        "services",
        "configured s",
        "first s",
        "RSS MB",
        "instance moves us",
        "zone fails us"
    );
    let mut figures = Vec::new();
    for (instances, label) in SIZES {
        if instances > instances_max {
            break;
        }
        let found = in_own_process(instances).await?;
        let cost = |us: &[f64]| format!("{:.0} / {:.0}", median(us), quantile(us, 0.99));
        println!(
            "{instances:10} {:10} {:12.2} {:10.2} {:10.0} {:>20} {:>20}",
            instances / INSTANCES_PER_SERVICE,
            found.configuration_s,
            found.first_snapshot_s,
            found.rss_mb,
            cost(&found.moved_us),
            cost(&found.replanned_us),
        );
        let name = |what: &str| format!("world_{label}_{what}");
        figures.extend([
            Figure::quantile(name("change_cpu_us"), "us", &found.moved_us, 0.5),
            Figure::quantile(name("change_cpu_us_p99"), "us", &found.moved_us, 0.99),
            Figure::quantile(name("plan_change_cpu_us"), "us", &found.replanned_us, 0.5),
            Figure::quantile(
                name("first_snapshot_s"),
                "s",
                &[found.first_snapshot_s],
                0.5,
            ),
            Figure::quantile(name("rss_mb"), "MB", &[found.rss_mb], 0.5),
        ]);
    }
    Ok(figures)
}

/// In a separate process: memory that an earlier world freed would hide the memory of a later one.
async fn in_own_process(instances: usize) -> Result<Findings> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["xds", "--world-of", &instances.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let output = tokio::time::timeout(TIME_MAX, command.output())
        .await
        .with_context(|| format!("a world of {instances} instances"))??;
    ensure!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| text.clone())
}

/// Builds one world in this process and prints its figures.
pub(crate) fn measure(instances: usize) -> Result<()> {
    let begin = Instant::now();
    let mesh = mesh(instances / INSTANCES_PER_SERVICE)?;
    let configuration_s = begin.elapsed().as_secs_f64();
    let mut subject = Subject {
        world: World::new(mesh),
        now_ms: 1,
        snapshot: None,
    };
    let entries = (0..instances).map(|index| entry(index, 8080, "healthy", 1));
    let listed = Change::Listed {
        entries: entries.collect(),
        revision: Revision(1),
        origin: Origin::Store,
    };
    let begin = Instant::now();
    subject.apply(listed)?;
    let first_snapshot_s = begin.elapsed().as_secs_f64();
    let rss_mb = Usage::of(std::process::id()).rss_mb()?;
    // Spread over all services, and never twice the same record in a row.
    let pick = |turn: usize| turn * (instances / CHANGES).max(1) % instances;
    let (mut moved_us, mut replanned_us) = (Vec::new(), Vec::new());
    for turn in 0..CHANGES {
        let revision = 2 + turn as i64;
        let put = entry(pick(turn), 9090, "healthy", revision);
        moved_us.push(subject.apply(Change::Put(put))?);
    }
    for turn in 0..CHANGES {
        if replanned_us.iter().sum::<f64>() > REPLANNING_MAX.as_secs_f64() * 1e6 {
            break;
        }
        // Each one goes down, and the next turn it returns.
        let health = ["unhealthy", "healthy"][turn % 2];
        let revision = (2 + CHANGES + turn) as i64;
        let service = pick(turn / 2) / INSTANCES_PER_SERVICE;
        let alone = service * INSTANCES_PER_SERVICE + ALONE_IN_ITS_ZONE;
        let put = entry(alone, 9090, health, revision);
        replanned_us.push(subject.apply(Change::Put(put))?);
    }
    let findings = Findings {
        configuration_s,
        first_snapshot_s,
        rss_mb,
        moved_us,
        replanned_us,
    };
    println!("{}", serde_json::to_string(&findings)?);
    Ok(())
}

/// A world, its clock, and the snapshot that streams hold meanwhile: a change has to copy the parts
/// that both share.
struct Subject {
    world: World,
    now_ms: u64,
    snapshot: Option<Arc<Snapshot>>,
}

impl Subject {
    /// The CPU time, in microseconds, from a change to the resulting snapshot.
    fn apply(&mut self, change: Change) -> Result<f64> {
        self.now_ms += 1;
        let begin = thread_cpu()?;
        let rejected = self.world.apply(change, self.now_ms);
        let snapshot = self.world.snapshot(self.now_ms);
        let cost = thread_cpu()? - begin;
        ensure!(rejected.is_empty(), "{rejected:?}");
        ensure!(snapshot.is_some(), "a change that changes nothing");
        self.snapshot = snapshot;
        Ok(cost.as_secs_f64() * 1e6)
    }
}

fn service(index: usize) -> String {
    format!("service-{index:05}")
}

fn mesh(services: usize) -> Result<Arc<Mesh>> {
    let service = |index| {
        let name = service(index);
        json!({
            "name": name,
            "routes": [{ "host": format!("{name}.example"), "prefix": "/" }],
            // A zone comes back at once: each change of health changes the plan.
            "failover": { "hold_s": 0, "ramp": { "percent": [], "over_s": 0 }, "damping_s": 0 },
        })
    };
    let config = json!({
        "store": { "embedded": { "path": "unused.redb" } },
        "filter": { "path": "unused.wasm" },
        "zones": ZONES.map(|(name, region)| json!({ "name": name, "region": region })),
        "services": (0..services).map(service).collect::<Vec<_>>(),
    });
    Ok(Config::parse("world.yaml", &config.to_string())?
        .mesh
        .into())
}

fn entry(index: usize, port: u16, health: &str, revision: i64) -> Entry {
    let service = service(index / INSTANCES_PER_SERVICE);
    let (zone, _) = ZONES[index % INSTANCES_PER_SERVICE % ZONES.len()];
    let address = format!(
        "10.{}.{}.{}",
        index / 62_500,
        index / 250 % 250,
        index % 250
    );
    let value = json!({ "address": address, "port": port, "health": health });
    Entry {
        key: format!("{INSTANCES_PREFIX}{service}/{zone}/instance-{index}"),
        value: value.to_string().into_bytes().into(),
        create_revision: Revision(1),
        mod_revision: Revision(revision),
        lease: None,
    }
}
