//! The simulated mesh: the store, the network, replicas and proxies.

mod faults;
mod terms;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use policy::fence::{Cause, Name};
use tokio::time::{Instant, sleep, timeout};
use xds_server::{authority::MoveRequest, config::Mesh, last_good::LastGood};

use crate::{
    air::Air,
    clock::Drifting,
    history::History,
    mesh::{CELLS, NODES, TERMS, ZONES, mesh},
    node::Node,
    proxy::{self, Levers, Roster},
    rng::Rng,
    store::Cluster,
};

/// The time in which some zone must be able to write again after all faults have ended.
const LIVENESS: Duration = Duration::from_secs(60);

pub(crate) struct World {
    rng: Rng,
    start: Instant,
    mesh: Arc<Mesh>,
    pub(crate) cluster: Cluster,
    pub(crate) air: Air,
    pub(crate) history: History,
    pub(crate) nodes: Vec<Option<Node>>,
    rosters: Vec<Roster>,
    pub(crate) proxies: Vec<Levers>,
    pub(crate) faults: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64, clocks: Clocks) -> World {
        World::with(seed, clocks, Follows::No)
    }

    pub(crate) fn with(seed: u64, clocks: Clocks, follows: Follows) -> World {
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

    pub(crate) fn start_node(&mut self, at: usize, last_good: Option<LastGood>) {
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
    pub(crate) fn enroll(&self) {
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

    fn any_cell(&mut self) -> &'static str {
        CELLS[self.rng.below(CELLS.len() as u64) as usize]
    }

    pub(crate) async fn pass(&mut self, from_ms: u64, to_ms: u64) {
        let span = self.rng.millis(from_ms, to_ms);
        sleep(span).await;
    }

    fn note(&mut self, fault: impl Into<String>) {
        let fault = format!("{:?}: {}", self.start.elapsed(), fault.into());
        self.faults.push(fault);
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

    pub(crate) fn owners(&self) -> Vec<String> {
        CELLS.iter().map(|cell| self.owner(cell)).collect()
    }

    pub(crate) async fn wish(&mut self, cell: &str, to: &str, cause: Cause) {
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

    pub(crate) async fn confirm(&self) {
        for node in self.nodes.iter().flatten() {
            node.feed.confirm.confirm();
        }
    }

    /// Ends all faults, and checks that some zone may write to every cell in the end.
    pub(crate) async fn settle(&mut self) -> Option<String> {
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
pub(crate) enum Follows {
    Yes,
    No,
}

fn drifting(start: Instant, rng: &mut Rng) -> Drifting {
    // Two clocks differ by less than 5 %.
    Drifting::new(start, 977 + rng.below(47), rng.below(1 << 40))
}

/// Whether clocks keep the configured bound of drift.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clocks {
    WithinBounds,
    /// The proxies' clocks do not: a grant lasts three times as long as the others assume.
    SlowProxies,
}
