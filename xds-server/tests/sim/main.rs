//! Three zones on a virtual clock: the control plane's own code (reader, world, engine) and the
//! filter's own code (workers, control stream) against a simulated store and network. A seed
//! chooses the faults. Under any faults, no two epochs may write at once. After all faults have
//! ended, some zone must be able to write again.
//!
//! `TIDEGATE_SIM_SEED=7` runs one seed, `TIDEGATE_SIM_SEEDS=1000` that many from 0; `cargo xtask
//! sim --seeds N` is the short form.

#![allow(clippy::disallowed_methods, reason = "a program of the harness")]

mod air;
mod clock;
mod history;
mod node;
mod proxy;
mod rng;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use policy::fence::{Cause, Name};
use tokio::time::{Instant, sleep, timeout};
use xds_server::{
    authority::MoveRequest,
    conditions::Code,
    config::{Config, Mesh},
    last_good::LastGood,
};

use air::Air;
use clock::Drifting;
use history::History;
use node::Node;
use proxy::{Levers, Order, Roster};
use rng::Rng;
use store::{Cluster, Renamed};

const ZONES: [&str; 3] = ["sh-a", "sh-b", "bj-c"];
/// Two of the first zone, one of the second; the third is a standby.
pub(crate) const CELLS: [&str; 3] = ["one", "two", "three"];
/// Two replicas in the first zone, so that one can take over from the other.
const NODES: [&str; 4] = ["sh-a", "sh-a", "sh-b", "bj-c"];
const FAULTS: u64 = 8;
/// The time in which some zone must be able to write again after all faults have ended.
const LIVENESS: Duration = Duration::from_secs(60);

/// The first terms, and their changes: a session's time to live, the drain of writes, and the
/// number of shards of the first cell.
const TERMS: [(u64, u64, u64); 3] = [(3_000, 1_000, 400), (6_000, 2_500, 400), (3_000, 500, 100)];

fn mesh((session_ttl_ms, drain_ms, shards): (u64, u64, u64)) -> Arc<Mesh> {
    let rest = 624 - shards;
    let text = format!(
        r#"
store: {{embedded: {{path: unused}}}}
filter: {{path: unused}}
zones:
  - {{name: sh-a, region: shanghai}}
  - {{name: sh-b, region: shanghai}}
  - {{name: bj-c, region: beijing}}
authority:
  session_ttl_ms: {session_ttl_ms}
  grant_ttl_ms: 1500
  write_drain_ms: {drain_ms}
  drift_permille: 50
  cells:
    - {{name: one, owners: [sh-a], cool_down_s: 1, shards: {shards}}}
    - {{name: two, owners: [sh-a], cool_down_s: 1, shards: 400}}
    - {{name: three, owners: [sh-b], cool_down_s: 1, shards: {rest}}}
services:
  - {{name: orders, routes: [{{prefix: /orders}}], cell_key: {{header: x-user-id}}}}
"#
    );
    Arc::new(Config::parse("sim.yaml", &text).unwrap().mesh)
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    admitted: u64,
    refused: u64,
    epochs: u64,
    faults: Vec<String>,
    violations: Vec<String>,
    /// Why no zone could write in the end.
    stuck: Option<String>,
}

struct World {
    rng: Rng,
    start: Instant,
    mesh: Arc<Mesh>,
    cluster: Cluster,
    air: Air,
    history: History,
    nodes: Vec<Option<Node>>,
    rosters: Vec<Roster>,
    proxies: Vec<Levers>,
    faults: Vec<String>,
}

impl World {
    fn new(seed: u64, clocks: Clocks) -> World {
        World::with(seed, clocks, Follows::No)
    }

    fn with(seed: u64, clocks: Clocks, follows: Follows) -> World {
        let mut rng = Rng::new(seed);
        // Pauses between retries are drawn from it.
        fastrand::seed(seed);
        let start = Instant::now();
        let mesh = mesh(TERMS[0]);
        let history = History::default();
        let cluster = Cluster::new(history.clone());
        let mut world = World {
            start,
            mesh: Arc::clone(&mesh),
            cluster,
            air: Air::new(rng.fork()),
            history: history.clone(),
            nodes: NODES.iter().map(|_| None).collect(),
            rosters: ZONES.iter().map(|_| Arc::new(Mutex::new(vec![]))).collect(),
            proxies: vec![],
            faults: vec![],
            rng: rng.fork(),
        };
        for at in 0..NODES.len() {
            world.start_node(at, None);
        }
        for (zone, roster) in ZONES.iter().zip(&world.rosters) {
            let clock = match clocks {
                Clocks::WithinBounds => drifting(start, &mut rng),
                Clocks::SlowProxies => Drifting::new(start, 300, 0),
            };
            let levers = proxy::start(
                zone,
                Arc::clone(&mesh),
                follows == Follows::Yes,
                Arc::clone(roster),
                clock,
                history.clone(),
                rng.fork(),
            );
            world.proxies.push(levers);
        }
        world
    }

    fn start_node(&mut self, at: usize, last_good: Option<LastGood>) {
        let clock = drifting(self.start, &mut self.rng);
        let air = self.air.clone();
        let node = Node::start(
            &self.cluster,
            |doors| air.station(at, doors),
            &self.mesh,
            NODES[at],
            clock,
            last_good,
            &mut self.rng,
        );
        self.nodes[at] = Some(node);
        self.enroll();
    }

    /// Updates the proxies' lists of replicas.
    fn enroll(&self) {
        for (zone, roster) in ZONES.iter().zip(&self.rosters) {
            let nodes = self
                .nodes
                .iter()
                .flatten()
                .filter(|node| node.zone == *zone);
            let nodes = nodes.map(|node| proxy::Seat {
                authorities: node.authorities.clone(),
                agreements: node.agreements.clone(),
                doors: node.doors.clone(),
            });
            *roster.lock().unwrap() = nodes.collect();
        }
    }

    fn any_node(&mut self) -> usize {
        self.rng.below(NODES.len() as u64) as usize
    }

    fn any_proxy(&mut self) -> usize {
        self.rng.below(ZONES.len() as u64) as usize
    }

    async fn pass(&mut self, from_ms: u64, to_ms: u64) {
        let span = self.rng.millis(from_ms, to_ms);
        sleep(span).await;
    }

    fn note(&mut self, fault: impl Into<String>) {
        let fault = format!("{:?}: {}", self.start.elapsed(), fault.into());
        self.faults.push(fault);
    }

    async fn fault(&mut self) {
        match self.rng.below(20) {
            0 | 1 => {
                let at = self.any_node();
                self.note(format!("replica {at} cut off from the store"));
                let Some(doors) = self.nodes[at].as_ref().map(|node| node.doors.clone()) else {
                    return;
                };
                doors.cut.send_replace(true);
                self.pass(200, 9_000).await;
                doors.cut.send_replace(false);
            }
            2 | 3 => {
                let at = self.any_node();
                self.note(format!("replica {at} stopped for a while"));
                let Some(doors) = self.nodes[at].as_ref().map(|node| node.doors.clone()) else {
                    return;
                };
                doors.paused.send_replace(true);
                self.pass(200, 9_000).await;
                doors.paused.send_replace(false);
            }
            4 => {
                let at = self.any_node();
                self.note(format!("replica {at} dies, and is started again"));
                self.nodes[at] = None;
                self.enroll();
                self.pass(10, 6_000).await;
                self.start_node(at, None);
            }
            5 => {
                let zone = self.any_proxy();
                let name = ZONES[zone];
                self.note(format!("zone {name} is cut off"));
                let of_zone = |node: &&Node| node.zone == name;
                let doors = self.nodes.iter().flatten().filter(of_zone);
                let doors: Vec<_> = doors.map(|node| node.doors.clone()).collect();
                doors.iter().for_each(|doors| {
                    doors.cut.send_replace(true);
                });
                self.split(name, true);
                self.pass(1_000, 9_000).await;
                self.split(name, false);
                doors.iter().for_each(|doors| {
                    doors.cut.send_replace(false);
                });
            }
            6 => {
                let at = self.any_proxy();
                self.note(format!("proxy {at} cut off from its control plane"));
                self.proxies[at].cut.send_replace(true);
                self.pass(200, 5_000).await;
                self.proxies[at].cut.send_replace(false);
            }
            7 => {
                let at = self.any_proxy();
                self.note(format!("proxy {at} stopped for a while"));
                self.proxies[at].paused.send_replace(true);
                self.pass(50, 5_000).await;
                self.proxies[at].paused.send_replace(false);
            }
            8 => {
                let at = self.any_proxy();
                let (order, what) = match self.rng.below(4) {
                    0 => (Order::Crash, "dies, and is started again"),
                    1 => (Order::HotRestart, "hot restart"),
                    2 => (Order::LoseWorker, "a worker loses its memory"),
                    _ => (Order::StepClock, "the wall clock is set forward"),
                };
                self.note(format!("proxy {at}: {what}"));
                self.proxies[at].order(order);
            }
            9 => {
                self.note("no quorum");
                self.cluster.quorum.send_replace(false);
                self.pass(200, 7_000).await;
                self.cluster.quorum.send_replace(true);
            }
            10 => self.restore().await,
            15 | 16 => {
                let (one, other) = (self.any_node(), self.any_node());
                self.note(format!("replicas {one} and {other} do not hear each other"));
                self.air.part(one, other, true);
                self.pass(200, 9_000).await;
                self.air.part(one, other, false);
            }
            11 => {
                let at = self.any_node();
                self.note(format!(
                    "replica {at} is stopped in order, and is started again"
                ));
                if let Some(node) = &self.nodes[at] {
                    // A caller that stops waiting ends it, like the second signal of an operator.
                    let _ = timeout(Duration::from_secs(5), node.authorities.stop()).await;
                }
                self.nodes[at] = None;
                self.enroll();
                self.pass(10, 6_000).await;
                self.start_node(at, None);
            }
            12 => {
                let at = self.any_node();
                self.note(format!("replica {at} hears late of changes"));
                let Some(doors) = self.nodes[at].as_ref().map(|node| node.doors.clone()) else {
                    return;
                };
                doors.lag.send_replace(self.rng.millis(500, 5_000));
                self.pass(3_000, 12_000).await;
                doors.lag.send_replace(Duration::ZERO);
            }
            13 => {
                let cell = self.any_cell();
                let owner = self.owner(cell);
                self.note(format!("{cell} is overridden to where it is, {owner}"));
                self.wish(cell, &owner, Cause::Override).await;
            }
            14 => {
                self.note("all cells are overridden at once");
                for cell in CELLS {
                    let to = ZONES[self.any_proxy()];
                    self.wish(cell, to, Cause::Override).await;
                }
            }
            _ => self.shift().await,
        }
    }

    /// Partitions a zone's replicas from all others.
    fn split(&self, zone: &str, apart: bool) {
        let of = |inside: bool| (0..NODES.len()).filter(move |at| (NODES[*at] == zone) == inside);
        for one in of(true) {
            of(false).for_each(|other| self.air.part(one, other, apart));
        }
    }

    fn any_cell(&mut self) -> &'static str {
        CELLS[self.rng.below(CELLS.len() as u64) as usize]
    }

    /// The owner of a cell, in the view of any replica.
    fn owner(&self, cell: &str) -> String {
        let mut nodes = self.nodes.iter().flatten();
        let owner = nodes.find_map(|node| {
            let cells = node.authorities.cells();
            let of_cell = cells.iter().find(|status| status.cell == cell);
            of_cell.and_then(|status| status.owners.first().cloned())
        });
        owner.unwrap_or_else(|| ZONES[0].to_owned())
    }

    /// An operator moves a cell, sometimes by force.
    async fn shift(&mut self) {
        let cell = self.any_cell();
        let to = ZONES[self.any_proxy()];
        let cause = match self.rng.chance(25) {
            true => Cause::Override,
            false => Cause::Operator,
        };
        self.note(format!("{cause:?} moves {cell} to {to}"));
        self.wish(cell, to, cause).await;
    }

    async fn wish(&mut self, cell: &str, to: &str, cause: Cause) {
        let at = self.any_node();
        let Some(node) = &self.nodes[at] else {
            return;
        };
        let wish = MoveRequest {
            cell: Name::from(cell),
            to: vec![Name::from(to)],
            cause,
            reason: Name::from("a test"),
            epoch_min: self.history.epoch_seen() + 1,
            hold: 0,
            accepted: true,
        };
        // The replica may reject the move.
        let _ = timeout(Duration::from_secs(5), node.authorities.wish(wish)).await;
    }

    /// The store is restored from a backup that is some seconds old; operators trust it, and
    /// recover the cells.
    async fn restore(&mut self) {
        self.note("the store is restored from a backup");
        let restore = self.cluster.backup();
        self.pass(500, 6_000).await;
        if self.rng.chance(50) {
            self.shift().await;
            self.pass(100, 3_000).await;
        }
        restore(&self.cluster, Renamed::Yes);
        self.pass(0, 4_000).await;
        self.confirm().await;
        self.pass(500, 5_000).await;
        for cell in CELLS {
            let to = ZONES[self.any_proxy()];
            self.wish(cell, to, Cause::Override).await;
        }
    }

    async fn confirm(&self) {
        for node in self.nodes.iter().flatten() {
            node.feed.confirm.confirm();
        }
    }

    /// Ends all faults, and checks that some zone may write to every cell in the end.
    async fn settle(&mut self) -> Option<String> {
        let deadline = Instant::now() + LIVENESS;
        let before = self.history.admitted_by_cell();
        while Instant::now() < deadline {
            sleep(Duration::from_millis(500)).await;
            self.confirm().await;
            let now = self.history.admitted_by_cell();
            let count = |of: &BTreeMap<String, u64>, cell| of.get(cell).copied().unwrap_or(0);
            if (CELLS.iter()).all(|cell| count(&now, *cell) > count(&before, *cell) + 3) {
                return None;
            }
            // A restored store waits for an operator.
            let nodes = self.nodes.iter().flatten();
            let stale: BTreeSet<String> = nodes
                .flat_map(|node| node.authorities.cells().to_vec())
                .filter(|cell| cell.revision > 0 && cell.state.is_none())
                .map(|cell| cell.cell)
                .collect();
            for cell in stale {
                self.wish(&cell, "sh-b", Cause::Override).await;
            }
        }
        let cells = self
            .nodes
            .iter()
            .flatten()
            .map(|node| node.authorities.cells());
        Some(format!("{:#?}", cells.collect::<Vec<_>>()))
    }
}

/// Whether proxies apply changes of terms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    Yes,
    No,
}

impl World {
    /// The configuration that replicas should get, by the record.
    fn target(&self) -> Option<Arc<Mesh>> {
        let (_, agreement) = self.cluster.terms()?;
        let target = agreement.next.unwrap_or(agreement.current);
        let mut meshes = TERMS.into_iter().map(mesh);
        meshes.find(|mesh| target.is_kept_by(&mesh.agreed().unwrap()))
    }

    /// An operator begins a change of terms, or aborts one, or gives replicas the configuration
    /// that it waits for. Sometimes replicas that start later get another configuration.
    fn change_terms(&mut self) {
        let Some((seen, agreement)) = self.cluster.terms() else {
            return;
        };
        let to = TERMS[self.rng.below(TERMS.len() as u64) as usize];
        let after = match &agreement.next {
            Some(_) if self.rng.chance(20) => Some(agreement.back()),
            Some(_) => None,
            None => {
                let next = mesh(to).agreed().unwrap();
                let other = !agreement.current.is_kept_by(&next);
                other.then(|| agreement.widened(next))
            }
        };
        if let Some(after) = after {
            self.note(format!("terms: {:?}", after.next.as_ref().map(|_| to)));
            self.cluster.put_terms(seen, &after);
        }
        let Some(target) = self.target() else { return };
        for at in 0..NODES.len() {
            let gets = self.rng.chance(60);
            if let Some(node) = self.nodes[at].as_ref().filter(|_| gets) {
                node.mesh.send_replace(Arc::clone(&target));
            }
        }
        self.mesh = match self.rng.chance(20) {
            true => mesh(TERMS[self.rng.below(TERMS.len() as u64) as usize]),
            false => target,
        };
    }

    /// All replicas are configured as the record requires, and the change under way ends.
    async fn agree(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + LIVENESS;
        while Instant::now() < deadline {
            let Some(target) = self.target() else {
                return Err("there are no terms".to_owned());
            };
            for node in self.nodes.iter().flatten() {
                node.mesh.send_replace(Arc::clone(&target));
            }
            self.mesh = target;
            self.confirm().await;
            sleep(Duration::from_millis(500)).await;
            let terms = self.cluster.terms();
            if terms.is_some_and(|(_, agreement)| agreement.next.is_none()) {
                return Ok(());
            }
        }
        let terms = self.cluster.terms();
        Err(format!("the change does not end: {terms:#?}"))
    }
}

fn drifting(start: Instant, rng: &mut Rng) -> Drifting {
    // Two clocks differ by less than 5 %.
    Drifting::new(start, 977 + rng.below(47), rng.below(1 << 40))
}

/// Whether clocks keep the configured bound of drift.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clocks {
    WithinBounds,
    /// The proxies' clocks do not: a grant lasts three times as long as the others assume.
    SlowProxies,
}

/// Runs it on a virtual clock.
fn on_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

fn run(seed: u64, clocks: Clocks) -> Outcome {
    on_virtual_time(async {
        let mut world = World::new(seed, clocks);
        sleep(Duration::from_secs(8)).await;
        for _ in 0..FAULTS {
            world.fault().await;
            world.pass(0, 4_000).await;
        }
        let stuck = world.settle().await;
        Outcome {
            admitted: world.history.admitted(),
            refused: world.history.refusals(),
            epochs: world.history.epoch_max(),
            faults: world.faults.clone(),
            violations: world.history.violations(),
            stuck,
        }
    })
}

/// Logs all nodes if `RUST_LOG` is set.
fn log_if_wanted() {
    if std::env::var("RUST_LOG").is_ok() {
        // Another test of the same process may have been first.
        let _ = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .try_init();
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The requested seed, or this many from 0.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match number("TIDEGATE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDEGATE_SIM_SEEDS").unwrap_or(count),
    }
}

impl Outcome {
    /// Checks that no two epochs wrote at once, and that writes came back.
    fn sound(self, seed: u64) -> Outcome {
        assert!(
            self.violations.is_empty() && self.stuck.is_none(),
            "seed {seed} (TIDEGATE_SIM_SEED={seed} runs it alone):\n{self:#?}"
        );
        self
    }
}

#[test]
fn no_two_epochs_write_at_once_whatever_fails() {
    log_if_wanted();
    let seeds = seeds(200);
    let count = seeds.end - seeds.start;
    let (mut admitted, mut refused, mut faults, mut epochs) = (0, 0, 0, 0);
    for seed in seeds {
        let outcome = run(seed, Clocks::WithinBounds).sound(seed);
        admitted += outcome.admitted;
        refused += outcome.refused;
        faults += outcome.faults.len();
        epochs += outcome.epochs.min(1_000);
    }
    println!(
        "{count} seeds, {faults} faults, {admitted} writes admitted, {refused} refused, {epochs} epochs: no violation"
    );
    assert!(admitted > 100 * count, "too few writes to say anything");
}

fn run_with_changes(seed: u64) -> Outcome {
    on_virtual_time(async {
        let mut world = World::with(seed, Clocks::WithinBounds, Follows::Yes);
        sleep(Duration::from_secs(8)).await;
        for _ in 0..FAULTS {
            world.change_terms();
            world.pass(0, 3_000).await;
            world.fault().await;
            world.change_terms();
            world.pass(0, 8_000).await;
        }
        let stuck = match world.agree().await {
            Ok(()) => world.settle().await,
            Err(stuck) => Some(stuck),
        };
        Outcome {
            admitted: world.history.admitted(),
            refused: world.history.refusals(),
            epochs: world.history.epoch_max(),
            faults: world.faults.clone(),
            violations: world.history.violations(),
            stuck,
        }
    })
}

#[test]
fn terms_that_change_while_things_fail_let_no_two_zones_write_and_writes_come_back() {
    log_if_wanted();
    let seeds = seeds(60);
    let count = seeds.end - seeds.start;
    let (mut admitted, mut changes) = (0, 0);
    for seed in seeds {
        let outcome = run_with_changes(seed).sound(seed);
        admitted += outcome.admitted;
        let faults = outcome.faults.iter();
        changes += faults.filter(|fault| fault.contains("terms: Some")).count();
    }
    println!("{count} seeds, {changes} changes of terms, {admitted} writes admitted: no violation");
    assert!(admitted > 100 * count, "too few writes to say anything");
}

#[test]
fn proxies_that_do_not_follow_the_terms_write_nothing_and_are_named() {
    on_virtual_time(async {
        let mut world = World::new(1, Clocks::WithinBounds);
        world.air.calm_down();
        sleep(Duration::from_secs(8)).await;
        let named = |world: &World| {
            let mut nodes = world.nodes.iter().flatten();
            nodes.any(|node| {
                let conditions = &node.metrics.conditions;
                conditions.holds(Code::ProxyOfOtherTerms)
            })
        };
        assert!(!named(&world));
        let (seen, agreement) = world.cluster.terms().unwrap();
        let longer = agreement.widened(mesh(TERMS[1]).agreed().unwrap());
        assert!(world.cluster.put_terms(seen, &longer));
        assert_eq!(world.agree().await, Ok(()));
        let before = world.history.admitted();
        sleep(Duration::from_secs(20)).await;
        assert_eq!(world.history.admitted(), before);
        assert!(named(&world));
    });
}

#[test]
fn the_store_has_as_long_as_the_present_terms_say() {
    on_virtual_time(async {
        let mut world = World::with(1, Clocks::WithinBounds, Follows::Yes);
        world.air.calm_down();
        sleep(Duration::from_secs(8)).await;
        let patience = |world: &World| *world.nodes[0].as_ref().unwrap().patience.lock().unwrap();
        assert_eq!(patience(&world), Duration::from_millis(500));
        let (seen, agreement) = world.cluster.terms().unwrap();
        let longer = agreement.widened(mesh(TERMS[1]).agreed().unwrap());
        assert!(world.cluster.put_terms(seen, &longer));
        assert_eq!(world.agree().await, Ok(()));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(patience(&world), Duration::from_millis(1_000));
    });
}

#[test]
fn where_clocks_break_their_promise_two_epochs_write_and_it_is_seen() {
    let violated = |seed: &u64| !run(*seed, Clocks::SlowProxies).violations.is_empty();
    assert!(
        (0..40).any(|seed| violated(&seed)),
        "the check of the history cannot fail"
    );
}

#[test]
fn an_idle_mesh_writes_nothing_and_a_takeover_comes_as_soon_as_ever() {
    on_virtual_time(async {
        for seed in 0..12 {
            let mut world = World::new(seed, Clocks::WithinBounds);
            world.air.calm_down();
            sleep(Duration::from_secs(12)).await;
            let before = world.cluster.revision();
            sleep(Duration::from_secs(20)).await;
            let puts = world.cluster.revision() - before;
            // The store loses an answer sometimes, which costs a put; four replicas that renew by
            // puts make 106.
            assert!(puts < 12, "seed {seed}: {puts} puts in 20 s");
            let (epoch, died) = (world.history.epoch_max(), Instant::now());
            world.nodes[0] = None;
            world.nodes[1] = None;
            world.enroll();
            while world.history.epoch_max() == epoch {
                sleep(Duration::from_millis(10)).await;
                let waited = died.elapsed();
                // (session_ttl + write_drain) / (1 - drift) by a clock with up to 5 % drift, a
                // step's courtesy, and messages.
                let bound = Duration::from_millis(5_200);
                assert!(waited < bound, "seed {seed}: no write after {waited:?}");
            }
            assert_eq!(world.history.violations(), Vec::<String>::new());
        }
    });
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let run = || run(3, Clocks::WithinBounds);
    assert_eq!(run(), run());
}

#[test]
fn a_store_that_is_restored_under_its_old_name_lets_nobody_write() {
    on_virtual_time(async {
        let mut world = World::new(5, Clocks::WithinBounds);
        sleep(Duration::from_secs(8)).await;
        let restore = world.cluster.backup();
        for cell in CELLS {
            world.wish(cell, "sh-b", Cause::Operator).await;
        }
        sleep(Duration::from_secs(10)).await;
        assert!(world.history.admitted() > 0);
        // The old owner's replicas are restarted with their files from disk, and its proxy too,
        // since it would remember.
        world.proxies[0].order(Order::Crash);
        let known = world.cluster.last_good();
        restore(&world.cluster, Renamed::No);
        for at in 0..2 {
            world.nodes[at] = None;
            world.start_node(at, Some(known.clone()));
        }
        for _ in 0..10 {
            sleep(Duration::from_secs(2)).await;
            world.confirm().await;
        }
        let before = world.history.admitted();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.history.admitted(), before);
        assert_eq!(world.history.violations(), Vec::<String>::new());

        // The same without the fault.
        let restore = world.cluster.backup();
        restore(&world.cluster, Renamed::Yes);
        assert_eq!(world.settle().await, None);
    });
}

/// A mesh whose cells are all active.
async fn calm(seed: u64) -> World {
    let world = World::new(seed, Clocks::WithinBounds);
    sleep(Duration::from_secs(8)).await;
    world.history.mark();
    world
}

impl World {
    fn owners(&self) -> Vec<String> {
        CELLS.iter().map(|cell| self.owner(cell)).collect()
    }
}

#[test]
fn an_override_moves_its_cell_and_the_others_write_on() {
    for seed in 0..5 {
        on_virtual_time(async {
            let mut world = calm(seed).await;
            world.wish("one", "sh-b", Cause::Override).await;
            sleep(Duration::from_secs(20)).await;
            assert_eq!(world.owners(), ["sh-b", "sh-a", "sh-b"], "seed {seed}");
            for other in ["two", "three"] {
                let gap = world.history.gap(other);
                assert!(
                    gap < Duration::from_millis(900),
                    "seed {seed}: {other} for {gap:?}"
                );
            }
            // The target is the present owner: every session of sh-b is ended, which takes the
            // third cell no longer than the first.
            world.wish("three", "sh-b", Cause::Override).await;
            sleep(Duration::from_secs(20)).await;
            assert_eq!(world.owners(), ["sh-b", "sh-a", "sh-b"], "seed {seed}");
            assert_eq!(world.history.violations(), Vec::<String>::new());
        });
    }
}

#[test]
fn a_standby_that_hears_late_takes_nothing_from_a_healthy_owner() {
    on_virtual_time(async {
        let world = calm(7).await;
        for at in 2..NODES.len() {
            let doors = world.nodes[at].as_ref().unwrap().doors.clone();
            doors.lag.send_replace(Duration::from_secs(5));
        }
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.owners(), ["sh-a", "sh-a", "sh-b"]);
        let gap = world.history.gap("one").max(world.history.gap("two"));
        assert!(gap < Duration::from_millis(900), "{gap:?}");
    });
}

#[test]
fn replicas_that_are_stopped_in_order_have_time_to_come_back() {
    on_virtual_time(async {
        let mut world = calm(9).await;
        // The only replica of sh-b, and both of sh-a.
        for at in 0..3 {
            world.nodes[at].as_ref().unwrap().authorities.stop().await;
            world.nodes[at] = None;
            world.enroll();
            sleep(Duration::from_millis(1_500)).await;
            world.start_node(at, None);
            sleep(Duration::from_secs(10)).await;
        }
        assert_eq!(world.owners(), ["sh-a", "sh-a", "sh-b"]);
        assert_eq!(world.settle().await, None);
        assert_eq!(world.owners(), ["sh-a", "sh-a", "sh-b"]);
    });
}
