//! A process of the control plane: the real reader, world and engine, on a simulated store and
//! clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use policy::fence::Name;
use tokio::sync::{mpsc, watch};
use xds_server::{
    authority::{self, Agreements, Authorities, peers::Peers},
    config::Mesh,
    feed::{self, Feed},
    last_good::{Keeper, LastGood},
    metrics::Metrics,
    store_health::StoreHealth,
};

use crate::{
    clock::Drifting,
    rng::Rng,
    store::{Cluster, Doors},
};

pub(crate) struct Node {
    pub(crate) zone: &'static str,
    pub(crate) doors: Doors,
    pub(crate) authorities: Authorities,
    pub(crate) feed: Feed,
    pub(crate) agreements: Agreements,
    /// The store's time limit for the last transaction about authority.
    pub(crate) patience: Arc<Mutex<Duration>>,
    pub(crate) mesh: watch::Sender<Arc<Mesh>>,
    pub(crate) metrics: Metrics,
}

impl Node {
    pub(crate) fn start(
        cluster: &Cluster,
        peers: impl FnOnce(Doors) -> Peers,
        mesh: &Arc<Mesh>,
        zone: &'static str,
        clock: Drifting,
        last_good: Option<LastGood>,
        rng: &mut Rng,
    ) -> Node {
        let doors = Doors::open();
        let client = cluster.client(doors.clone(), rng.fork());
        let store = Arc::new(client.clone());
        let agreements = Agreements::default();
        let patience = Arc::new(Mutex::new(Duration::ZERO));
        let last = Arc::clone(&patience);
        let metrics = Metrics::default();
        let told_of = metrics.clone();
        let store_health = StoreHealth::new(metrics.clone());
        let (sender, meshes) = watch::channel(Arc::clone(mesh));
        let (facts, told) = mpsc::channel(authority::FACTS_MAX);
        let feed = feed::start(feed::Sources {
            store: store.clone(),
            meshes: meshes.clone(),
            facts: Some(facts),
            last_good,
            keeper: Keeper::none(),
            store_health: store_health.clone(),
            metrics: metrics.clone(),
        });
        tokio::spawn(store_health.clone().probe_writes(store.clone()));
        let terms = mesh
            .authority
            .as_ref()
            .map(|authority| authority.terms.clone());
        let mut draws = rng.fork();
        let authorities = authority::start(authority::Sources {
            store: Box::new(move |within| {
                *last.lock().unwrap() = within;
                Arc::new(client.within(within))
            }),
            peers: peers(doors.clone()),
            facts: told,
            zones: vec![Name::from(zone)],
            terms: terms.expect("an authority"),
            agreements: agreements.clone(),
            rules: authority::follow(meshes, BTreeMap::new()),
            overviews: feed.overviews.clone(),
            refusals: Box::new(|_| None),
            clock: Arc::new(clock),
            draw: Box::new(move || draws.next()),
            process: zone.to_owned(),
            store_health,
            metrics,
        });
        Node {
            zone,
            doors,
            authorities,
            feed,
            agreements,
            patience,
            mesh: sender,
            metrics: told_of,
        }
    }
}

impl Drop for Node {
    /// Like a crash: its messages under way reach no node.
    fn drop(&mut self) {
        self.doors.cut.send_replace(true);
        self.doors.dead.send_replace(true);
    }
}
