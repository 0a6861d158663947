//! A process of the control plane: the real reader, world and engine, on a simulated store and clock.

use std::{collections::BTreeMap, sync::Arc};

use policy::fence::Name;
use tokio::sync::{mpsc, watch};
use xds_server::{
    authority::{self, Authorities, peers::Peers},
    config::Mesh,
    feed::{self, Feed},
    last_good::{Keeper, LastGood},
    metrics::Metrics,
    mode::Mode,
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
    _mesh: watch::Sender<Arc<Mesh>>,
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
        let store = Arc::new(cluster.client(doors.clone(), rng.fork()));
        let metrics = Metrics::default();
        let mode = Mode::new(metrics.clone());
        let (sender, meshes) = watch::channel(Arc::clone(mesh));
        let (facts, told) = mpsc::channel(authority::FACTS_MAX);
        let feed = feed::start(feed::Sources {
            store: store.clone(),
            meshes: meshes.clone(),
            facts: Some(facts),
            last_good,
            keeper: Keeper::none(),
            mode: mode.clone(),
            metrics: metrics.clone(),
        });
        tokio::spawn(mode.clone().probe_writes(store.clone()));
        let terms = mesh
            .authority
            .as_ref()
            .map(|authority| authority.terms.clone());
        let mut draws = rng.fork();
        let authorities = authority::start(authority::Sources {
            store,
            peers: peers(doors.clone()),
            facts: told,
            zones: vec![Name::from(zone)],
            terms: terms.expect("an authority"),
            agreements: authority::Agreements::default(),
            rules: authority::follow(meshes, BTreeMap::new()),
            overviews: feed.overviews.clone(),
            clock: Arc::new(clock),
            draw: Box::new(move || draws.next()),
            process: zone.to_owned(),
            mode,
            metrics,
        });
        Node {
            zone,
            doors,
            authorities,
            feed,
            _mesh: sender,
        }
    }
}

impl Drop for Node {
    /// As a crash: whatever of it is still under way reaches nobody.
    fn drop(&mut self) {
        self.doors.cut.send_replace(true);
        self.doors.dead.send_replace(true);
    }
}
