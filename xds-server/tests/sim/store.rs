//! A store of several members, as its clients see it over a network: slow, cut off, restored from a
//! backup. Its semantics are those of `registry::store`; it replaces etcd here because etcd cannot
//! run on a virtual clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use policy::fence::Agreement;
use registry::terms::{TERMS_KEY, TermsRecord};
use registry::{
    authority::{AUTHORITY_PREFIX, AuthorityRecord},
    store::{
        ClusterId, Compare, Entry, Event, Head, LeaseId, Listing, Op, Revision, Store, StoreError,
        TxnOutcome, WatchBatch, WatchError,
    },
};
use tokio::{sync::watch, time::sleep};
use xds_server::last_good::LastGood;

use crate::{history::History, rng::Rng};

/// How long a request waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Default)]
struct State {
    cluster: u64,
    revision: i64,
    entries: BTreeMap<String, Entry>,
    batches: Vec<WatchBatch>,
}

/// Whether a restored store has another cluster id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renamed {
    Yes,
    No,
}

/// All members together. Clones share them.
#[derive(Clone)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    /// The cluster and revision, to wait for.
    head: watch::Sender<(u64, i64)>,
    /// Whether there is a quorum.
    pub(crate) quorum: watch::Sender<bool>,
    history: History,
}

impl Cluster {
    pub(crate) fn new(history: History) -> Cluster {
        Cluster {
            state: Arc::new(Mutex::new(State {
                cluster: 1,
                ..State::default()
            })),
            head: watch::Sender::new((1, 0)),
            quorum: watch::Sender::new(true),
            history,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Takes a backup. The returned function restores it, under another id or, by an operator's
    /// mistake, under the old one.
    pub(crate) fn backup(&self) -> impl FnOnce(&Cluster, Renamed) + use<> {
        let backup = self.state().clone();
        move |cluster, renamed| {
            let mut state = cluster.state();
            let next = match renamed {
                Renamed::Yes => state.cluster + 1,
                Renamed::No => state.cluster,
            };
            *state = backup;
            state.cluster = next;
            // A restored store keeps its history of revisions, but ends all watches.
            cluster.head.send_replace((next, state.revision));
        }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.state().revision
    }

    /// The connection of one client.
    pub(crate) fn client(&self, doors: Doors, rng: Rng) -> Client {
        Client {
            cluster: self.clone(),
            doors,
            rng: Arc::new(Mutex::new(rng)),
            trusted: Arc::default(),
            timeout: TIMEOUT,
        }
    }

    /// The agreed terms, and their revision.
    pub(crate) fn terms(&self) -> Option<(Revision, Agreement)> {
        let state = self.state();
        let entry = state.entries.get(TERMS_KEY)?;
        Some((
            entry.mod_revision,
            TermsRecord::parse(&entry.value).unwrap(),
        ))
    }

    /// An operator replaces the terms of that revision.
    pub(crate) fn put_terms(&self, seen: Revision, agreement: &Agreement) -> bool {
        let key = TERMS_KEY.to_owned();
        let unchanged = Compare::ModRevision { key, is: seen };
        let put = Op::put(TERMS_KEY, TermsRecord::from(agreement).to_json());
        self.apply(&[unchanged], vec![put]).succeeded
    }

    /// The last good state on the disk of a process that has followed the store until now.
    pub(crate) fn last_good(&self) -> LastGood {
        let state = self.state();
        let listing = Listing {
            revision: Revision(state.revision),
            entries: state.entries.values().cloned().collect(),
        };
        LastGood::listed(ClusterId(state.cluster), listing)
    }

    fn choose(&self, compare: &[Compare], then: Vec<Op>, otherwise: Option<Vec<Op>>) -> TxnOutcome {
        let outcome = self.apply(compare, then);
        match otherwise.filter(|_| !outcome.succeeded) {
            None => outcome,
            Some(otherwise) => TxnOutcome {
                succeeded: false,
                ..self.apply(&[], otherwise)
            },
        }
    }

    fn apply(&self, compare: &[Compare], then: Vec<Op>) -> TxnOutcome {
        let mut state = self.state();
        let holds = |compare: &Compare| match compare {
            Compare::ModRevision { key, is } => {
                state
                    .entries
                    .get(key)
                    .map_or(Revision(0), |e| e.mod_revision)
                    == *is
            }
            Compare::CreateRevision { key, is } => {
                state
                    .entries
                    .get(key)
                    .map_or(Revision(0), |e| e.create_revision)
                    == *is
            }
            Compare::NoneCreatedAfter { prefix, after } => (state.entries.iter())
                .filter(|(key, _)| key.starts_with(prefix))
                .all(|(_, entry)| entry.create_revision <= *after),
            Compare::Value { key, is } => state.entries.get(key).is_some_and(|e| e.value == *is),
        };
        if !compare.iter().all(holds) {
            return TxnOutcome {
                succeeded: false,
                revision: Revision(state.revision),
            };
        }
        let revision = Revision(state.revision + 1);
        let mut events = Vec::new();
        for op in then {
            match op {
                Op::Put { key, value, lease } => {
                    let old = state.entries.get(&key);
                    let entry = Entry {
                        create_revision: old.map_or(revision, |old| old.create_revision),
                        mod_revision: revision,
                        key: key.clone(),
                        value,
                        lease,
                    };
                    if let Some(cell) = key.strip_prefix(AUTHORITY_PREFIX) {
                        let authority = AuthorityRecord::parse(&entry.value).unwrap();
                        self.history.authority(cell, &authority);
                    }
                    events.push(Event::Put(entry.clone()));
                    state.entries.insert(key, entry);
                }
                Op::Delete { key } => {
                    if state.entries.remove(&key).is_some() {
                        events.push(Event::Delete { key, revision });
                    }
                }
            }
        }
        if !events.is_empty() {
            state.revision = revision.0;
            state.batches.push(WatchBatch { revision, events });
            self.head.send_replace((state.cluster, state.revision));
        }
        TxnOutcome {
            succeeded: true,
            revision: Revision(state.revision),
        }
    }
}

/// The controls between a process and its surroundings.
#[derive(Clone)]
pub(crate) struct Doors {
    /// The connection to the store is cut.
    pub(crate) cut: watch::Sender<bool>,
    /// The process is suspended: messages from and to it wait.
    pub(crate) paused: watch::Sender<bool>,
    /// The delay of the store's events.
    pub(crate) lag: watch::Sender<Duration>,
    /// The process has crashed.
    pub(crate) dead: watch::Sender<bool>,
}

impl Doors {
    pub(crate) fn open() -> Doors {
        Doors {
            cut: watch::Sender::new(false),
            paused: watch::Sender::new(false),
            lag: watch::Sender::new(Duration::ZERO),
            dead: watch::Sender::new(false),
        }
    }

    /// Waits while the process is suspended.
    pub(crate) async fn running(&self) {
        let mut paused = self.paused.subscribe();
        // An error is impossible: the sender exists.
        let _ = paused.wait_for(|paused| !paused).await;
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    cluster: Cluster,
    doors: Doors,
    rng: Arc<Mutex<Rng>>,
    trusted: Arc<Mutex<Option<ClusterId>>>,
    timeout: Duration,
}

impl Client {
    /// The same client with this time limit for each answer.
    pub(crate) fn within(&self, timeout: Duration) -> Client {
        Client {
            timeout,
            ..self.clone()
        }
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    fn reachable(&self) -> bool {
        !*self.doors.cut.borrow() && *self.cluster.quorum.borrow()
    }

    /// One request and its answer, each of which may be lost.
    async fn ask<T>(&self, request: impl FnOnce(&Cluster) -> T) -> Result<T, StoreError> {
        let after = self.timeout;
        let lost = || async {
            sleep(after).await;
            self.doors.running().await;
            Err(StoreError::Timeout { after })
        };
        self.doors.running().await;
        sleep(self.draw(|rng| rng.millis(0, 4))).await;
        if !self.reachable() {
            return lost().await;
        }
        let answer = request(&self.cluster);
        sleep(self.draw(|rng| rng.millis(0, 4))).await;
        let answer_lost = self.draw(|rng| rng.chance(1)) || !self.reachable();
        if answer_lost {
            return lost().await;
        }
        self.doors.running().await;
        Ok(answer)
    }

    fn check(&self, is: ClusterId) -> Result<(), StoreError> {
        let was = *self.trusted.lock().unwrap().get_or_insert(is);
        match was == is {
            true => Ok(()),
            false => Err(StoreError::ClusterChanged { was, is }),
        }
    }

    async fn batches_after(&self, cluster: u64, after: i64) -> Result<Vec<WatchBatch>, WatchError> {
        let mut head = self.cluster.head.subscribe();
        let broken = |detail: &str| {
            let detail = detail.to_owned();
            WatchError::Disconnected(StoreError::Unavailable { detail })
        };
        loop {
            if !self.reachable() {
                // The client notices after some silence.
                sleep(TIMEOUT).await;
                self.doors.running().await;
                return Err(broken("no answer"));
            }
            let (is, revision) = *head.borrow_and_update();
            if is != cluster {
                return Err(broken("another cluster"));
            }
            if revision > after {
                sleep(self.draw(|rng| rng.millis(0, 5))).await;
                let lag = *self.doors.lag.borrow();
                sleep(lag).await;
                self.doors.running().await;
                if !self.reachable() {
                    continue;
                }
                let state = self.cluster.state();
                if state.cluster != cluster {
                    return Err(broken("another cluster"));
                }
                let new = |batch: &&WatchBatch| batch.revision.0 > after;
                return Ok(state.batches.iter().filter(new).cloned().collect());
            }
            let mut cut = self.doors.cut.subscribe();
            let mut quorum = self.cluster.quorum.subscribe();
            tokio::select! {
                biased;
                _ = head.changed() => {}
                _ = cut.changed() => {}
                _ = quorum.changed() => {}
            }
        }
    }
}

fn under(batches: Vec<WatchBatch>, prefix: &str) -> Vec<WatchBatch> {
    let of_prefix = |batch: WatchBatch| WatchBatch {
        revision: batch.revision,
        events: (batch.events.into_iter())
            .filter(|event| event.key().starts_with(prefix))
            .collect(),
    };
    batches
        .into_iter()
        .map(of_prefix)
        .filter(|batch| !batch.events.is_empty())
        .collect()
}

#[async_trait]
impl Store for Client {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let (cluster, listing) = self.survey(prefix).await?;
        self.check(cluster)?;
        Ok(listing)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let listing = self.list(key).await?;
        Ok(listing.entries.into_iter().find(|entry| entry.key == key))
    }

    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, WatchError>> {
        let client = self.clone();
        let cluster = client
            .trusted
            .lock()
            .unwrap()
            .map_or(0, |cluster| cluster.0);
        let prefix = prefix.to_owned();
        let batches = stream::unfold(Some(after.0), move |after| {
            let client = client.clone();
            let prefix = prefix.clone();
            async move {
                match client.batches_after(cluster, after?).await {
                    Ok(batches) => {
                        let last = batches.last().map(|batch| batch.revision.0);
                        let batches = under(batches, &prefix).into_iter().map(Ok).collect();
                        Some((batches, last.or(after)))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        });
        batches.flat_map(stream::iter).boxed()
    }

    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Op>,
        otherwise: Option<Vec<Op>>,
    ) -> Result<TxnOutcome, StoreError> {
        let trusted = *self.trusted.lock().unwrap();
        self.ask(move |cluster| {
            // The header of the answer shows it. For the trusted cluster, a transaction on another
            // one was never sent.
            let is = ClusterId(cluster.state().cluster);
            match trusted.is_none_or(|was| was == is) {
                true => Ok(cluster.choose(&compare, then, otherwise)),
                false => {
                    cluster.choose(&compare, then, otherwise);
                    Err(StoreError::ClusterChanged {
                        was: trusted.unwrap(),
                        is,
                    })
                }
            }
        })
        .await?
    }

    async fn lease_grant(&self, _: Duration) -> Result<LeaseId, StoreError> {
        Err(StoreError::LeaseNotFound)
    }

    async fn lease_keep_alive(&self, _: LeaseId) -> Result<Duration, StoreError> {
        Err(StoreError::LeaseNotFound)
    }

    async fn lease_revoke(&self, _: LeaseId) -> Result<(), StoreError> {
        Err(StoreError::LeaseNotFound)
    }

    async fn cluster_id(&self) -> Result<ClusterId, StoreError> {
        Ok(self.head().await?.cluster)
    }

    async fn head(&self) -> Result<Head, StoreError> {
        self.ask(|cluster| {
            let state = cluster.state();
            Head {
                cluster: ClusterId(state.cluster),
                revision: Revision(state.revision),
            }
        })
        .await
    }

    async fn survey(&self, prefix: &str) -> Result<(ClusterId, Listing), StoreError> {
        let prefix = prefix.to_owned();
        self.ask(move |cluster| {
            let state = cluster.state();
            let entries = state.entries.values();
            let entries = entries.filter(|entry| entry.key.starts_with(&prefix));
            let listing = Listing {
                revision: Revision(state.revision),
                entries: entries.cloned().collect(),
            };
            (ClusterId(state.cluster), listing)
        })
        .await
    }

    fn trust(&self, cluster: ClusterId) {
        *self.trusted.lock().unwrap() = Some(cluster);
    }
}
