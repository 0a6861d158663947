//! The lists of guests: routes whose writes a guest without a policy lets pass. A configuration
//! that fences such a route is rejected until the list is gone.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use policy::{
    Route, RouteMatch, Writes,
    listed::{Clash, Lists},
};
use registry::{
    guest_record::{GUESTS_PREFIX, GuestKey, GuestRecord},
    store::{Event, Store, StoreError},
};
use tokio::{sync::mpsc, time::sleep};
use tracing::{info, warn};

use crate::config::Mesh;

/// Before the store is asked again.
const RETRY: Duration = Duration::from_secs(5);
/// How many guests may have lists. Those beyond are told in the log.
const GUESTS_MAX: usize = 4_096;
/// How many lists may wait for the store; more are dropped, and come with the next stream.
const HEARD_MAX: usize = 256;

/// The lists of all guests, connected or not. Cheap to clone.
#[derive(Clone, Default)]
pub struct GuestLists(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// As any replica heard them last.
    stored: BTreeMap<GuestKey, Lists>,
    /// Of the guests that are connected to this replica and have some, by the numbers of their
    /// streams.
    connected: BTreeMap<u64, (GuestKey, Lists)>,
    heard: Option<mpsc::Sender<(GuestKey, Lists)>>,
    /// The last answer of [`GuestLists::clashes`], and the digest of its mesh; none once a list has
    /// changed. The question comes every few seconds.
    found: Option<(u64, Vec<Listing>)>,
}

/// A guest that lets writes of a fenced service pass while it has no policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listing {
    pub guest: String,
    listed: String,
    fenced: String,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listing {
            guest,
            listed,
            fenced,
        } = self;
        write!(
            f,
            "the guest {guest} lists {listed}, so without a policy it lets writes of {fenced} pass"
        )
    }
}

impl GuestLists {
    /// A guest has connected, with its lists, which may be empty.
    pub(super) fn enter(&self, number: u64, key: GuestKey, lists: Lists) {
        let mut state = self.lock();
        let stored = state.stored.get(&key).cloned().unwrap_or_default();
        if stored != lists
            && let Some(heard) = &state.heard
            && heard.try_send((key.clone(), lists.clone())).is_err()
        {
            warn!(
                guest = key.guest,
                "too many lists of guests at a time: this one is not stored"
            );
        }
        if !lists.is_empty() {
            state.connected.insert(number, (key, lists));
            state.found = None;
        }
    }

    pub(super) fn leave(&self, number: u64) {
        let mut state = self.lock();
        if state.connected.remove(&number).is_some() {
            state.found = None;
        }
    }

    /// The lists that clash with the fences of a mesh, one for each guest.
    pub fn clashes(&self, mesh: &Mesh) -> Vec<Listing> {
        let mut state = self.lock();
        if let Some((digest, found)) = &state.found
            && *digest == mesh.digest
        {
            return found.clone();
        }
        let found = state.find(mesh);
        state.found = Some((mesh.digest, found.clone()));
        found
    }

    /// The first clash of `next` that `present` does not have.
    pub fn added_by(&self, next: &Mesh, present: &Mesh) -> Option<Listing> {
        let present = self.clashes(present);
        let mut next = self.clashes(next).into_iter();
        next.find(|listing| !present.contains(listing))
    }

    /// Keeps them in the store, and follows what other replicas hear, for as long as this process
    /// lives.
    pub fn keep(&self, store: Arc<dyn Store>) {
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        self.lock().heard = Some(sender);
        tokio::spawn(write(self.clone(), Arc::clone(&store), heard));
        tokio::spawn(follow(self.clone(), store));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between the parts of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, mesh: &Mesh) -> Vec<Listing> {
        let all = routes(mesh);
        let connected = self.connected.values().map(|(key, lists)| (key, lists));
        // Most guests have the same lists as others.
        let mut known: Vec<(&Lists, Option<Clash<'_>>)> = vec![];
        let mut found = vec![];
        for (key, lists) in self.stored.iter().chain(connected) {
            let clash = match known.iter().find(|(same, _)| *same == lists) {
                Some((_, clash)) => *clash,
                None => {
                    let clash = lists.clash(&all);
                    known.push((lists, clash));
                    clash
                }
            };
            found.extend(clash.map(|clash| Listing {
                guest: key.guest.clone(),
                listed: text(clash.listed),
                fenced: text(clash.fenced),
            }));
        }
        found.sort();
        found.dedup_by(|a, b| a.guest == b.guest);
        found
    }
}

/// Each route of a mesh, and whether its service is fenced.
fn routes(mesh: &Mesh) -> Vec<(Route, bool)> {
    let has_fence = mesh.authority.is_some();
    let of_all = mesh.services.iter().flat_map(|service| {
        let is_fenced = has_fence && matches!(service.writes, Writes::Fenced { .. });
        service
            .routes
            .iter()
            .map(move |route| (route.clone(), is_fenced))
    });
    of_all.collect()
}

fn text(route: &Route) -> String {
    match &route.matches {
        RouteMatch::Prefix(prefix) => format!("{}{prefix}", route.host),
        RouteMatch::Grpc(name) => format!("{}/grpc:{name}", route.host),
    }
}

async fn write(
    lists: GuestLists,
    store: Arc<dyn Store>,
    mut heard: mpsc::Receiver<(GuestKey, Lists)>,
) {
    while let Some((key, fresh)) = heard.recv().await {
        let count = lists.lock().stored.len();
        let is_known = lists.lock().stored.contains_key(&key);
        if !is_known && count >= GUESTS_MAX {
            warn!(
                guest = key.guest,
                "{GUESTS_MAX} guests have lists: this one's are not stored"
            );
            continue;
        }
        let at = key.store_key();
        let written = match fresh.is_empty() {
            true => store.delete(&at).await,
            false => {
                let value = GuestRecord::new(&fresh).to_json();
                store.put(&at, value.into(), None).await
            }
        };
        match written {
            Ok(_) => info!(
                guest = key.guest,
                zone = key.zone,
                "stored the lists of a guest"
            ),
            // The guest's next stream brings them again.
            Err(error) => warn!(guest = key.guest, %error, "cannot store the lists of a guest"),
        }
    }
}

async fn follow(lists: GuestLists, store: Arc<dyn Store>) {
    loop {
        // The control plane reports a store that is away by conditions of its own.
        let _ = follow_once(&lists, &store).await;
        sleep(RETRY).await;
    }
}

async fn follow_once(lists: &GuestLists, store: &Arc<dyn Store>) -> Result<(), StoreError> {
    let listing = store.list(GUESTS_PREFIX).await?;
    let mut changes = store.watch(GUESTS_PREFIX, listing.revision);
    let read = |value: &[u8]| GuestRecord::read(value).map(|record| record.lists());
    let entries = listing.entries.into_iter();
    let stored =
        entries.filter_map(|entry| Some((GuestKey::parse(&entry.key)?, read(&entry.value)?)));
    {
        let mut state = lists.lock();
        state.stored = stored.collect();
        state.found = None;
    }
    while let Some(Ok(batch)) = changes.next().await {
        for event in batch.events {
            let Some(key) = GuestKey::parse(event.key()) else {
                continue;
            };
            let fresh = match &event {
                Event::Put(entry) => read(&entry.value),
                Event::Delete { .. } => None,
            };
            let mut state = lists.lock();
            state.found = None;
            match fresh {
                Some(fresh) => drop(state.stored.insert(key, fresh)),
                None => drop(state.stored.remove(&key)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use policy::ClassRule;
    use registry::store::{EmbeddedOptions, EmbeddedStore};
    use tokio::time::timeout;

    use super::*;
    use crate::testing;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn key(guest: &str) -> GuestKey {
        GuestKey {
            zone: "a".to_owned(),
            guest: guest.to_owned(),
        }
    }

    fn unfenced(prefix: &str) -> Lists {
        Lists {
            unfenced: vec![Route {
                host: "*".to_owned(),
                matches: RouteMatch::Prefix(prefix.to_owned()),
                class: ClassRule::ByMethod,
            }],
            classes: vec![],
        }
    }

    fn mesh(fenced: &str) -> Mesh {
        let service = |name: &str| {
            format!(
                "{{name: {name}, routes: [{{prefix: /{name}}}], fenced: {}}}",
                name == fenced
            )
        };
        let rest = format!(
            "authority: {{}}\nservices: [{}, {}]",
            service("carts"),
            service("orders")
        );
        testing::mesh("a/r b/r", &rest)
    }

    #[test]
    fn a_fence_that_a_list_opens_is_told_when_it_is_added() {
        let lists = GuestLists::default();
        lists.enter(1, key("front"), unfenced("/carts"));
        assert_eq!(lists.clashes(&mesh("orders")), []);
        let told = lists.added_by(&mesh("carts"), &mesh("orders")).unwrap();
        assert_eq!(
            told.to_string(),
            "the guest front lists */carts, so without a policy it lets writes of */carts pass"
        );
        // Where it is so already, no other change is hindered.
        assert_eq!(lists.added_by(&mesh("carts"), &mesh("carts")), None);
        lists.leave(1);
        assert_eq!(lists.clashes(&mesh("carts")), []);
    }

    #[tokio::test]
    async fn every_replica_knows_the_lists_that_were_heard_last() {
        let directory = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions::new(directory.path().join("store"));
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(options).await.unwrap());
        let (one, other) = (GuestLists::default(), GuestLists::default());
        for lists in [&one, &other] {
            lists.keep(Arc::clone(&store));
        }
        let known = async |count: usize| {
            let reached = async {
                while other.clashes(&mesh("carts")).len() != count {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(PATIENCE, reached)
                .await
                .expect("the other replica knows");
        };
        one.enter(1, key("front"), unfenced("/carts"));
        one.enter(2, key("spiffe://shop/back"), unfenced("/carts"));
        known(2).await;
        // It is away.
        one.leave(1);
        one.leave(2);
        assert_eq!(one.clashes(&mesh("carts")).len(), 2);
        // It comes back without a list.
        one.enter(3, key("front"), Lists::default());
        known(1).await;
        // Somebody has written nonsense.
        let at = key("spiffe://shop/back").store_key();
        store.put(&at, "nonsense".into(), None).await.unwrap();
        known(0).await;
    }
}
