//! Write authority: the processes around [`policy::fence`].
//!
//! `policy::fence::Replica` makes all decisions. The `engine` feeds it with the events of the
//! store, the time and the messages of proxies, and executes its transactions. `service` is the
//! stream to the proxies, `peers` the connections to other replicas. `records` converts to and from
//! the store's keys, and `clock` reads the time.

mod clock;
mod conditions;
mod engine;
mod homes;
mod hop_keys;
pub mod peers;
mod presence;
mod records;
mod renewals;
mod service;
pub mod slew;
mod status;
mod terms;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use policy::fence::{Agreed, Cause, CellRules, HolderId, MoveRejected, Name, Terms};
use protos::fence::{GrantorSays, HolderSays};
use registry::{
    authority::{AUTHORITY_PREFIX, AuthorityRecord},
    store::Store,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::{Mesh, ServiceConfig},
    last_good::LastGood,
    metrics::Metrics,
    store_event::StoreEvent,
    store_health::StoreHealth,
    world::Overview,
};

pub use clock::{Boottime, Clock};
pub use homes::Homes;
pub use hop_keys::{HopKeys, watch_guard};
pub use service::{FenceService, service};
pub use status::{CellStatus, Holding, MoveStatus, Operation, Speakers};
pub use terms::{Agreements, ReplicaTerms, TermsStatus, waits_for};

/// The most store events that may wait for the engine.
pub const FACTS_MAX: usize = 1_024;
/// The most proxy messages that may wait for the engine.
const COMMANDS_MAX: usize = 1_024;

/// The configured rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub cells: BTreeMap<Name, CellRules>,
    /// The terms.
    pub agreed: Option<Agreed>,
    /// The services whose writes are fenced.
    pub services: BTreeSet<String>,
}

impl Rules {
    /// The rules of `mesh`. A cell's next epoch is above every epoch in `remembered`.
    pub fn of(mesh: &Mesh, remembered: &BTreeMap<Name, u64>) -> Rules {
        let names = |zones: &[String]| zones.iter().map(|zone| Name::from(zone.as_str())).collect();
        let cells = mesh.authority.iter().flat_map(|authority| &authority.cells);
        let cells = cells.map(|cell| {
            let name = Name::from(cell.name.as_str());
            let cool_down = cell.cool_down.as_micros();
            let rules = CellRules {
                owners: names(&cell.owners),
                standby: names(&cell.standby),
                automatic: cell.automatic,
                cool_down: u64::try_from(cool_down).unwrap_or(u64::MAX),
                epoch_min: remembered
                    .get(&name)
                    .map_or(1, |epoch| epoch.saturating_add(1)),
            };
            (name, rules)
        });
        let fenced = |service: &&ServiceConfig| service.writes != policy::Writes::Free;
        let services = mesh.services.iter().filter(fenced);
        Rules {
            cells: cells.collect(),
            agreed: mesh.agreed(),
            services: services.map(|service| service.name.clone()).collect(),
        }
    }
}

/// The rules of every future mesh.
pub fn follow(
    mut meshes: watch::Receiver<Arc<Mesh>>,
    remembered: BTreeMap<Name, u64>,
) -> watch::Receiver<Arc<Rules>> {
    let now = Rules::of(&meshes.borrow_and_update(), &remembered);
    let (publisher, rules) = watch::channel(Arc::new(now));
    tokio::spawn(async move {
        while meshes.changed().await.is_ok() {
            let now = Rules::of(&meshes.borrow_and_update(), &remembered);
            publisher.send_if_modified(|published| {
                let changed = **published != now;
                *published = Arc::new(now);
                changed
            });
        }
    });
    rules
}

/// The epochs in a state that was kept on disk.
pub fn remembered(state: Option<&LastGood>) -> BTreeMap<Name, u64> {
    let entries = state.into_iter().flat_map(|state| state.entries.iter());
    let epochs = entries.filter_map(|(key, entry)| {
        let cell = key.strip_prefix(AUTHORITY_PREFIX)?;
        let authority = AuthorityRecord::parse(&entry.value).ok()?;
        Some((Name::from(cell), authority.epoch))
    });
    epochs.collect()
}

/// The store with this time limit for each member's answer.
pub type StoreWithin = Box<dyn Fn(Duration) -> Arc<dyn Store> + Send>;

/// A proxy's rejection of its configuration, by its node id.
pub type RefusalOf = Box<dyn Fn(&str) -> Option<String> + Send>;

/// The inputs of the engine.
pub struct Sources {
    pub store: StoreWithin,
    /// The connections to other replicas.
    pub peers: peers::Peers,
    pub facts: mpsc::Receiver<StoreEvent>,
    /// The zones that this process serves.
    pub zones: Vec<Name>,
    /// The terms configured at the start; they apply until others are agreed on.
    pub terms: Terms,
    /// The agreed terms are published here.
    pub agreements: Agreements,
    pub rules: watch::Receiver<Arc<Rules>>,
    /// The states of services.
    pub overviews: watch::Receiver<Arc<Overview>>,
    /// A proxy's rejection of its configuration, by its node id.
    pub refusals: RefusalOf,
    pub clock: Arc<dyn Clock>,
    /// Draws a number that no other incarnation has.
    pub draw: Box<dyn FnMut() -> u64 + Send>,
    /// `host:process id`, for operators.
    pub process: String,
    pub store_health: StoreHealth,
    pub metrics: Metrics,
}

/// The handle of the engine. Clones share the engine.
#[derive(Clone)]
pub struct Authorities {
    commands: mpsc::Sender<Command>,
    cells: watch::Receiver<Arc<Vec<CellStatus>>>,
    operations: watch::Receiver<Arc<Vec<Operation>>>,
    homes: Homes,
}

enum Command {
    Join {
        holder: HolderId,
        zone: Name,
        node: String,
        says: mpsc::Sender<GrantorSays>,
        joined: oneshot::Sender<Result<u64, JoinError>>,
    },
    Said {
        holder: HolderId,
        stream: u64,
        says: HolderSays,
    },
    Left {
        holder: HolderId,
        stream: u64,
    },
    MoveRequest {
        wish: MoveRequest,
        answer: oneshot::Sender<Result<(), MoveRejected>>,
    },
    HandOver {
        begun: oneshot::Sender<BTreeSet<String>>,
    },
    Stop {
        stopped: oneshot::Sender<()>,
    },
}

/// An operator's request for a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveRequest {
    pub cell: Name,
    pub to: Vec<Name>,
    /// [`Cause::Operator`] or [`Cause::Override`].
    pub cause: Cause,
    pub reason: Name,
    /// The lower bound of the new epoch.
    pub epoch_min: u64,
    /// For how long the cell then stays although other zones serve it better, in microseconds.
    pub hold: u64,
    /// The target of an override may be the present owner.
    pub accepted: bool,
}

/// Why a proxy is rejected here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error(
        "this replica serves {zones}, not zone {zone}: proxies hold grants from replicas of their own zone"
    )]
    OtherZone { zone: Name, zones: String },
    #[error("this replica has no session at present, and grants nothing: use another replica")]
    NoSession,
    #[error(
        "this replica's configured terms differ from the agreed terms, so it grants nothing: use another replica"
    )]
    TermsDiffer,
}

/// The engine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process is stopping, or has no fence")]
pub struct Gone;

/// Starts the engine.
pub fn start(sources: Sources) -> Authorities {
    let (commands, commanded) = mpsc::channel(COMMANDS_MAX);
    let (publisher, cells) = watch::channel(Arc::default());
    let (told, operations) = watch::channel(Arc::default());
    let (sighted, since) = watch::channel(Arc::default());
    let homes = Homes::new(sources.zones.clone(), since);
    let (store_health, terms) = (sources.store_health.clone(), sources.terms.clone());
    let (agreements, metrics) = (sources.agreements.clone(), sources.metrics.clone());
    tokio::spawn(engine::Engine::new(sources, commanded, publisher, told, sighted).run());
    let authorities = Authorities {
        commands,
        cells,
        operations,
        homes,
    };
    let watched = conditions::watch(
        authorities.clone(),
        store_health,
        agreements,
        terms,
        metrics,
    );
    tokio::spawn(watched);
    authorities
}

impl Authorities {
    /// For a process that fences nothing.
    pub fn none() -> Authorities {
        Authorities {
            commands: mpsc::channel(1).0,
            cells: watch::channel(Arc::default()).1,
            operations: watch::channel(Arc::default()).1,
            homes: Homes::unknown(),
        }
    }

    /// The zones with a control plane of their own.
    pub fn homes(&self) -> &Homes {
        &self.homes
    }

    /// The states of the cells, as this process knows them.
    pub fn cells(&self) -> Arc<Vec<CellStatus>> {
        Arc::clone(&self.cells.borrow())
    }

    /// Subscribes to changes of the cells' states.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<CellStatus>>> {
        self.cells.clone()
    }

    /// The outcomes of moves, the newest first.
    pub fn operations(&self) -> Arc<Vec<Operation>> {
        Arc::clone(&self.operations.borrow())
    }

    /// Connects a proxy process: messages to it go to `says`. Returns the number of its stream.
    pub async fn join(
        &self,
        holder: HolderId,
        zone: Name,
        node: String,
        says: mpsc::Sender<GrantorSays>,
    ) -> Result<Result<u64, JoinError>, Gone> {
        let (joined, answer) = oneshot::channel();
        let join = Command::Join {
            holder,
            zone,
            node,
            says,
            joined,
        };
        self.commands.send(join).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Handles a message of a proxy process on its stream.
    pub async fn said(&self, holder: HolderId, stream: u64, says: HolderSays) -> Result<(), Gone> {
        let said = Command::Said {
            holder,
            stream,
            says,
        };
        self.commands.send(said).await.map_err(|_| Gone)
    }

    /// A proxy's stream has ended.
    pub async fn left(&self, holder: HolderId, stream: u64) {
        let left = Command::Left { holder, stream };
        // An engine that has ended has no streams.
        let _ = self.commands.send(left).await;
    }

    /// Begins an operator's move. [`cells`](Authorities::cells) shows its outcome.
    pub async fn wish(&self, wish: MoveRequest) -> Result<Result<(), MoveRejected>, Gone> {
        let (answer, answered) = oneshot::channel();
        let wish = Command::MoveRequest { wish, answer };
        self.commands.send(wish).await.map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }

    /// Moves the cells away that no other replica can grant writes for after this process has
    /// ended, as an operator would, and waits until they have moved. The caller has to bound the
    /// wait.
    pub async fn hand_over(&self) {
        let (begun, answer) = oneshot::channel();
        let command = Command::HandOver { begun };
        if self.commands.send(command).await.is_err() {
            return;
        }
        let Ok(moving) = answer.await else { return };
        let mut cells = self.cells.clone();
        let gone = |cells: &Arc<Vec<CellStatus>>| {
            let still_here = |status: &CellStatus| {
                let here = status
                    .here
                    .iter()
                    .any(|here| status.owners.contains(&here.zone));
                moving.contains(&status.cell) && (here || status.moving.is_some())
            };
            !cells.iter().any(still_here)
        };
        // An engine that has ended has nothing to hand over.
        let _ = cells.wait_for(gone).await;
    }

    /// Stops granting, waits until no grant is in use, and ends the session. Without the store it
    /// never returns: the caller has to bound the wait. Exiting without it is safe too, only slower
    /// for others.
    pub async fn stop(&self) {
        let (stopped, ended) = oneshot::channel();
        if self.commands.send(Command::Stop { stopped }).await.is_ok() {
            let _ = ended.await;
        }
    }
}
