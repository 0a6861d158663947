//! Faults, drawn from the seed.

use std::time::Duration;

use policy::fence::Cause;
use tokio::time::timeout;

use super::World;
use crate::{
    mesh::{CELLS, NODES, ZONES},
    node::Node,
    proxy::Order,
    store::Renamed,
};

impl World {
    pub(crate) async fn fault(&mut self) {
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
}
