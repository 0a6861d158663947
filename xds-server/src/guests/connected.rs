//! The connected guests, as operators see them, and the promises that they cannot keep.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use policy::{guest::Mode, listed::Lists};
use protos::guest::Hello;
use registry::guest_record::GuestKey;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use xds::clients::Health;

use super::{GuestLists, Guests};
use crate::{
    conditions::{Code, Found, Lasting},
    discovery::conditions::Expected,
    net::access::Caller,
    snapshot::{Role, ViewKey},
};

/// Between two checks.
const INTERVAL: Duration = Duration::from_secs(2);
/// How many problems of a guest are kept: any client of the port can invent some.
const PROBLEMS_MAX: usize = 8;

/// How many rejected guests are remembered: any client of the port can invent node ids.
const REJECTED_MAX: usize = 64;
/// For how long, after the last attempt: guests retry every second.
const REJECTED_FOR: Duration = Duration::from_secs(10);

const CODES: &[Code] = &[
    Code::GuestWithoutGrants,
    Code::GuestOutlivesDrain,
    Code::GuestProblem,
    Code::GuestListsFenced,
];

/// A connected guest.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) node: String,
    pub(super) zone: String,
    mode: Mode,
    drain_ms: Option<u64>,
    unfenced: usize,
    classes: usize,
    problems: Vec<String>,
    caller: Caller,
}

/// A connected guest, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct GuestStatus {
    pub node: String,
    pub zone: String,
    /// The version of the policy that it should have.
    pub wanted: Option<u64>,
    pub guest: Details,
}

/// The part of a guest's state that other proxies do not have.
#[derive(Clone, Debug, Serialize)]
pub struct Details {
    /// `fence` or `route`.
    pub mode: &'static str,
    /// The longest that the host's routes let an admitted write live, in milliseconds; none if its
    /// configuration does not say.
    pub drain_ms: Option<u64>,
    /// The lengths of its lists.
    pub unfenced: usize,
    pub classes: usize,
    /// Why it gets no grants; none if it may have some.
    pub no_grants: Option<String>,
    /// Promises that it cannot keep.
    pub problems: Vec<String>,
}

/// All connected guests, and those that were rejected. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) lists: GuestLists,
    by_number: Arc<Mutex<BTreeMap<u64, Connection>>>,
    last: Arc<AtomicU64>,
    /// By node id: why it was rejected, and when.
    rejected: Arc<Mutex<BTreeMap<String, (String, Instant)>>>,
}

/// A guest is connected for as long as this lives.
pub(super) struct Presence {
    all: Connected,
    number: u64,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
        self.all.lists.leave(self.number);
    }
}

impl Connected {
    pub(super) fn new(lists: GuestLists) -> Connected {
        Connected {
            lists,
            by_number: Arc::default(),
            last: Arc::default(),
            rejected: Arc::default(),
        }
    }

    /// `is_proven`: its zone is. Lists of others count for nothing: anyone could hinder a fence.
    pub(super) fn enter(&self, caller: &Caller, hello: &Hello, is_proven: bool) -> Presence {
        let problems = hello.problems.iter().take(PROBLEMS_MAX);
        let connection = Connection {
            node: hello.node.clone(),
            zone: hello.zone.to_string(),
            mode: hello.mode,
            drain_ms: hello.drain_ms,
            unfenced: hello.unfenced.len(),
            classes: hello.classes.len(),
            problems: problems.cloned().collect(),
            caller: caller.clone(),
        };
        self.rejected_lock().remove(&hello.node);
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        if is_proven {
            let key = GuestKey {
                zone: connection.zone.clone(),
                guest: match caller {
                    Caller::Named(identity) | Caller::Guest(identity) => identity.to_string(),
                    Caller::Plain | Caller::Anonymous => hello.node.clone(),
                },
            };
            let lists = Lists {
                unfenced: hello.unfenced.clone(),
                classes: hello.classes.clone(),
            };
            self.lists.enter(number, key, lists);
        }
        self.lock().insert(number, connection);
        Presence {
            all: self.clone(),
            number,
        }
    }

    /// Records a guest that was rejected, until it is accepted or tries no more.
    pub(super) fn reject(&self, node: &str, why: String, now: Instant) {
        let mut rejected = self.rejected_lock();
        rejected.insert(node.to_owned(), (why, now));
        while rejected.len() > REJECTED_MAX {
            let oldest = rejected.iter().min_by_key(|(_, (_, at))| *at);
            let Some(oldest) = oldest.map(|(node, _)| node.clone()) else {
                return;
            };
            rejected.remove(&oldest);
        }
    }

    /// The guests that were rejected lately, and why.
    fn rejected(&self, now: Instant) -> Vec<(String, String)> {
        let mut rejected = self.rejected_lock();
        rejected.retain(|_, (_, at)| now.saturating_duration_since(*at) < REJECTED_FOR);
        let all = rejected.iter();
        all.map(|(node, (why, _))| (node.clone(), why.clone()))
            .collect()
    }

    fn rejected_lock(&self) -> MutexGuard<'_, BTreeMap<String, (String, Instant)>> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> Vec<Connection> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        // Every change is one insertion or removal: a panic elsewhere cannot leave it half done.
        self.by_number
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guests {
    /// Every connected guest, in the order of arrival.
    pub fn list(&self) -> Vec<GuestStatus> {
        let all = self.connected.list().into_iter();
        all.map(|guest| GuestStatus {
            wanted: self.version_of(&guest.zone),
            guest: Details {
                mode: match guest.mode {
                    Mode::Fence => "fence",
                    Mode::Route => "route",
                },
                drain_ms: guest.drain_ms,
                unfenced: guest.unfenced,
                classes: guest.classes,
                no_grants: self.no_grants(&guest),
                problems: guest.problems,
            },
            node: guest.node,
            zone: guest.zone,
        })
        .collect()
    }

    /// As the proxies of discovery, without resources.
    pub fn expected(&self) -> Vec<Expected> {
        let all = self.connected.list().into_iter();
        all.map(|guest| {
            let version = self.version_of(&guest.zone);
            let health = Health {
                node: guest.node,
                key: ViewKey {
                    zone: guest.zone.into(),
                    role: Role::Guest,
                },
                orphaned: false,
                refusals: vec![],
            };
            (health, version)
        })
        .collect()
    }

    fn no_grants(&self, guest: &Connection) -> Option<String> {
        let refused = self.rules.guest_grants(&guest.caller, &guest.zone).err();
        refused.map(|error| error.to_string())
    }

    /// The present version of a zone's policy for guests.
    fn version_of(&self, zone: &str) -> Option<u64> {
        let zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let published = zones.get(zone)?.borrow().clone();
        Some(published?.version)
    }

    /// Checks the guests periodically, until nothing can change any more.
    pub async fn watch(self) {
        let mut lasting = Lasting::new(self.metrics.conditions.clone(), CODES);
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.snapshots.has_changed().is_ok() {
            ticks.tick().await;
            let now = Instant::now();
            let rejected = self.connected.rejected(now).into_iter();
            let rejected = rejected.map(|(node, why)| Found::new(Code::GuestProblem, node, why));
            lasting.look(self.find().into_iter().chain(rejected).collect(), now);
        }
    }

    fn find(&self) -> Vec<Found> {
        // Without a fence nobody needs grants.
        let authority = self.rules.mesh().and_then(|mesh| mesh.authority.clone());
        let drain_ms = authority.as_ref().map(|it| it.terms.write_drain / 1_000);
        let mut found = vec![];
        if let Some(mesh) = self.rules.mesh() {
            let mut clashes = self.connected.lists.clashes(&mesh);
            // The first of each guest is enough to act on.
            clashes.dedup_by(|a, b| a.guest == b.guest);
            let clashes = clashes.into_iter();
            found.extend(clashes.map(|listing| {
                let detail = listing.to_string();
                Found::new(Code::GuestListsFenced, listing.guest, detail)
            }));
        }
        for guest in self.connected.list() {
            let mut add = |code, detail| found.push(Found::new(code, &guest.node, detail));
            if !guest.problems.is_empty() {
                add(Code::GuestProblem, guest.problems.join("; "));
            }
            let Some(drain_ms) = drain_ms else { continue };
            if let Some(why) = self.no_grants(&guest) {
                add(Code::GuestWithoutGrants, why);
            }
            if let Some(said) = guest.drain_ms.filter(|said| *said > drain_ms) {
                let detail = format!(
                    "drain_ms is {said}, and authority.write_drain_ms is {drain_ms}: no write is admitted"
                );
                add(Code::GuestOutlivesDrain, detail);
            }
        }
        found
    }
}
