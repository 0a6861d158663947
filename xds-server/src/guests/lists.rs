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
use tokio::{sync::Notify, time::sleep};
use tracing::info;

use crate::{
    conditions::{Code, Conditions},
    config::Mesh,
};

/// Before the store is asked again.
const RETRY: Duration = Duration::from_secs(5);
/// How many guests may have lists in the store, and how many lists may wait for it.
const GUESTS_MAX: usize = 4_096;

/// The lists of all guests, connected or not. Cheap to clone.
#[derive(Clone, Default)]
pub struct GuestLists(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Called when a list waits.
    heard: Notify,
}

#[derive(Default)]
struct State {
    /// As any replica heard them last.
    stored: BTreeMap<GuestKey, Lists>,
    /// Of the guests that are connected to this replica and have some, by the numbers of their
    /// streams.
    connected: BTreeMap<u64, (GuestKey, Lists)>,
    /// As they were heard, until the store has them. They count as the stored ones do.
    waiting: BTreeMap<GuestKey, Lists>,
    /// More than [`GUESTS_MAX`] would wait.
    is_full: bool,
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
        let known = state.waiting.get(&key).or(state.stored.get(&key));
        if known.cloned().unwrap_or_default() != lists {
            state.is_full |= state.waiting.len() >= GUESTS_MAX;
            if state.waiting.len() < GUESTS_MAX || state.waiting.contains_key(&key) {
                state.waiting.insert(key.clone(), lists.clone());
                state.found = None;
            }
            self.0.heard.notify_one();
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

    /// The entries of lists that clash with the fences of a mesh, by guest.
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
    /// lives. Those that the store does not have are a condition.
    pub fn keep(&self, store: Arc<dyn Store>, conditions: Conditions) {
        tokio::spawn(write(self.clone(), Arc::clone(&store), conditions));
        tokio::spawn(follow(self.clone(), store));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between the parts of a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The list of a guest waits no more once the store is known to have it.
    fn settle(&mut self, key: &GuestKey) {
        let stored = self.stored.get(key).cloned().unwrap_or_default();
        if self.waiting.get(key) == Some(&stored) {
            self.waiting.remove(key);
        }
    }

    fn find(&self, mesh: &Mesh) -> Vec<Listing> {
        let all = routes(mesh);
        let connected = self.connected.values().map(|(key, lists)| (key, lists));
        // Most guests have the same lists as others.
        let mut known: Vec<(&Lists, Arc<[Clash<'_>]>)> = vec![];
        let mut found = vec![];
        let is_newer = |key: &GuestKey| self.waiting.contains_key(key);
        let stored = self.stored.iter().filter(|(key, _)| !is_newer(key));
        for (key, lists) in stored.chain(&self.waiting).chain(connected) {
            let clashes = match known.iter().find(|(same, _)| *same == lists) {
                Some((_, clashes)) => Arc::clone(clashes),
                None => {
                    let clashes: Arc<[Clash<'_>]> = lists.clashes(&all).collect();
                    known.push((lists, Arc::clone(&clashes)));
                    clashes
                }
            };
            found.extend(clashes.iter().map(|clash| Listing {
                guest: key.guest.clone(),
                listed: text(clash.listed),
                fenced: text(clash.fenced),
            }));
        }
        found.sort();
        found.dedup();
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

/// Writes what waits; what cannot be written now is tried again.
async fn write(lists: GuestLists, store: Arc<dyn Store>, conditions: Conditions) {
    loop {
        let (waiting, is_full) = {
            let mut state = lists.lock();
            (state.waiting.clone(), std::mem::take(&mut state.is_full))
        };
        let mut missing = BTreeMap::new();
        for (key, fresh) in waiting {
            match write_one(&lists, &store, &key, &fresh).await {
                // Others are settled by the watch.
                Ok(()) => lists.lock().settle(&key),
                Err(why) => drop(missing.insert(key.guest, why)),
            }
        }
        if is_full {
            let why = format!("more than {GUESTS_MAX} guests have lists");
            missing.insert("others".to_owned(), why);
        }
        let retry = !missing.is_empty();
        conditions.replace(Code::GuestListsNotKept, missing);
        tokio::select! {
            () = lists.0.heard.notified() => {}
            () = sleep(RETRY), if retry => {}
        }
    }
}

async fn write_one(
    lists: &GuestLists,
    store: &Arc<dyn Store>,
    key: &GuestKey,
    fresh: &Lists,
) -> Result<(), String> {
    let is_another = {
        let state = lists.lock();
        !state.stored.contains_key(key) && state.stored.len() >= GUESTS_MAX
    };
    let at = key.store_key();
    let written = match fresh.is_empty() {
        true => store.delete(&at).await,
        false if is_another => return Err(format!("{GUESTS_MAX} guests have lists")),
        false => {
            let value = GuestRecord::new(fresh).to_json();
            store.put(&at, value.into(), None).await
        }
    };
    let revision = written.map_err(|error| error.to_string())?;
    let (guest, zone) = (&key.guest, &key.zone);
    info!(guest, zone, ?revision, "stored the lists of a guest");
    Ok(())
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
        let waiting: Vec<_> = state.waiting.keys().cloned().collect();
        waiting.iter().for_each(|key| state.settle(key));
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
                Some(fresh) => drop(state.stored.insert(key.clone(), fresh)),
                None => drop(state.stored.remove(&key)),
            }
            state.settle(&key);
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

    fn fenced_both() -> Mesh {
        let services = "{name: carts, routes: [{prefix: /carts}]}, {name: orders, routes: [{prefix: /orders}]}";
        let rest = format!("authority: {{}}\nservices: [{services}]");
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
        // One that is away counts as it was heard last.
        lists.leave(1);
        assert_eq!(lists.clashes(&mesh("carts")).len(), 1);
        lists.enter(2, key("front"), Lists::default());
        assert_eq!(lists.clashes(&mesh("carts")), []);
    }

    #[test]
    fn a_second_clash_of_a_guest_is_told_too() {
        let lists = GuestLists::default();
        let mut both = unfenced("/carts");
        both.unfenced.extend(unfenced("/orders").unfenced);
        lists.enter(1, key("front"), both);
        let told = lists.added_by(&fenced_both(), &mesh("carts")).unwrap();
        assert_eq!(told.fenced, "*/orders");
    }

    #[tokio::test]
    async fn lists_that_the_store_does_not_have_are_a_condition_and_count() {
        let directory = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions::new(directory.path().join("store"));
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(options).await.unwrap());
        let (lists, conditions) = (GuestLists::default(), Conditions::new());
        for number in 0..GUESTS_MAX {
            lists
                .lock()
                .stored
                .insert(key(&format!("front-{number}")), unfenced("/web"));
        }
        lists.enter(1, key("one more"), unfenced("/carts"));
        lists.leave(1);
        // The guest has gone, and nothing of it is stored.
        assert_eq!(lists.clashes(&mesh("carts")).len(), 1);
        let kept = Arc::clone(&store);
        tokio::spawn(write(lists.clone(), store, conditions.clone()));
        let until = async |holds: bool| {
            let reached = async {
                while conditions.list().is_empty() == holds {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            timeout(PATIENCE, reached).await.expect("the condition");
        };
        until(true).await;
        assert_eq!(conditions.list()[0].subject, "one more");
        lists.lock().stored.remove(&key("front-0"));
        lists.0.heard.notify_one();
        until(false).await;
        let at = key("one more").store_key();
        assert!(kept.get(&at).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn every_replica_knows_the_lists_that_were_heard_last() {
        let directory = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions::new(directory.path().join("store"));
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(options).await.unwrap());
        let (one, other) = (GuestLists::default(), GuestLists::default());
        for lists in [&one, &other] {
            lists.keep(Arc::clone(&store), Conditions::new());
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
