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
mod mesh;
mod node;
mod proxy;
mod rng;
mod store;
mod world;

use std::time::Duration;

use policy::fence::Cause;
use tokio::time::{Instant, sleep};
use xds_server::conditions::Code;

use mesh::{CELLS, NODES, TERMS, mesh};
use proxy::Order;
use store::Renamed;
use world::{Clocks, Follows, World};

const FAULTS: u64 = 8;

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
