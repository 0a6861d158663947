//! The network between replicas: messages are late or lost, and replicas are partitioned,
//! independently of the connection to the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use registry::authority::Secret;
use tokio::{sync::mpsc, time::sleep};
use xds_server::authority::peers::{Message, Peers, Post, Reach, Roster};

use crate::{rng::Rng, store::Doors};

/// The network between all replicas. Clones share it.
#[derive(Clone)]
pub(crate) struct Air {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    rng: Rng,
    stations: BTreeMap<usize, (mpsc::Sender<Message>, Doors)>,
    /// No message is lost or very late.
    calm: bool,
    /// Partitioned pairs, the lower number first.
    apart: BTreeSet<(usize, usize)>,
}

impl Air {
    pub(crate) fn new(rng: Rng) -> Air {
        let inner = Inner {
            rng,
            stations: BTreeMap::new(),
            calm: false,
            apart: BTreeSet::new(),
        };
        Air {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Registers a replica in place of the previous one with this number.
    pub(crate) fn station(&self, at: usize, doors: Doors) -> Peers {
        let (sender, messages) = mpsc::channel(1_024);
        let mut inner = self.inner.lock().unwrap();
        inner.stations.insert(at, (sender, doors.clone()));
        let mut secrets = inner.rng.fork();
        Peers {
            post: Arc::new(Station {
                at,
                doors,
                air: self.clone(),
            }),
            messages,
            reach: Some(Reach {
                address: format!("replica-{at}:1"),
                server_name: String::new(),
            }),
            secret: Box::new(move || Secret::new([secrets.next() as u8; 32])),
        }
    }

    pub(crate) fn calm_down(&self) {
        self.inner.lock().unwrap().calm = true;
    }

    pub(crate) fn part(&self, one: usize, other: usize, apart: bool) {
        let pair = (one.min(other), one.max(other));
        let mut inner = self.inner.lock().unwrap();
        match apart {
            true => inner.apart.insert(pair),
            false => inner.apart.remove(&pair),
        };
    }
}

struct Station {
    at: usize,
    doors: Doors,
    air: Air,
}

impl Post for Station {
    /// Sent to every node; only the addressed one handles it.
    fn send(&self, message: Message) {
        let mut inner = self.air.inner.lock().unwrap();
        let others = inner.stations.clone();
        for (other, (inbox, doors)) in others {
            let pair = (self.at.min(other), self.at.max(other));
            let (lost, late) = (inner.rng.chance(2), inner.rng.chance(2));
            let (lost, late) = (lost && !inner.calm, late && !inner.calm);
            let delay = inner.rng.millis(0, if late { 2_000 } else { 5 });
            if other == self.at || lost || inner.apart.contains(&pair) {
                continue;
            }
            let (from, message) = (self.doors.clone(), message.clone());
            tokio::spawn(async move {
                from.running().await;
                sleep(delay).await;
                doors.running().await;
                if !*from.dead.borrow() && !*doors.dead.borrow() {
                    let _ = inbox.try_send(message);
                }
            });
        }
    }

    fn follow(&self, _: Roster) {}
}
