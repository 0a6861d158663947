//! Follows the store, and never loses its position.
//!
//! It resumes from the last revision if only a member failed. It lists anew if the history was
//! compacted, and after every outage of the store. Then it compares. A store that cannot have
//! developed from the known state (another cluster, a lower revision, another past) is distrusted
//! until an operator confirms it.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use registry::{
    authority::{AUTHORITY_PREFIX, GRANTORS_PREFIX, OPERATIONS_PREFIX, SESSIONS_PREFIX},
    backoff::Backoff,
    confirmation::{CONFIRMATIONS_PREFIX, Confirmation},
    guest_record::GUESTS_PREFIX,
    record::{COMPACTOR_KEY, INSTANCES_PREFIX, REPLICAS_PREFIX, TIDEGATE_PREFIX},
    store::{
        ClusterId, Entry, Event, Head, Listing, Revision, Store, StoreError, WatchBatch, WatchError,
    },
    terms::TERMS_KEY,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, error, info, warn};

use super::Confirm;
use crate::{
    last_good::{self, Keeper, LastGood},
    metrics::Metrics,
    store_event::StoreEvent,
    store_health::StoreHealth,
    world::{Change, Origin, Seen, lost_too_many},
};

/// The first pause after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long the store may take for its first listing if there is a state on disk to serve
/// meanwhile.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How often the store is probed while it is watched, or while a restored one waits.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How often an operator is reminded.
const REMINDER: Duration = Duration::from_secs(60);

pub(super) struct Reader {
    pub(super) store: Arc<dyn Store>,
    pub(super) changes: mpsc::Sender<Change>,
    /// Receives events about authority, if there is a fence.
    pub(super) facts: Option<mpsc::Sender<StoreEvent>>,
    /// Events about authority are withheld until another store is confirmed.
    pub(super) silent: bool,
    /// The revision up to which everything was received.
    pub(super) follows: watch::Sender<Option<Head>>,
    pub(super) metrics: Metrics,
    pub(super) store_health: StoreHealth,
    pub(super) keeper: Keeper,
    pub(super) confirm: Confirm,
    /// The store's last state, in this process or, at first, in an earlier one.
    pub(super) known: Option<LastGood>,
    /// Whether `known` comes from disk and has not been sent yet.
    pub(super) unsent: bool,
    /// The highest revision that the store of `known` has named.
    pub(super) seen: Revision,
    pub(super) doubt: Option<Doubt>,
    /// If at the start a larger share of all instances than this is missing, the guard starts from
    /// the last good state.
    pub(super) vanish_percent: u8,
}

/// A distrusted store.
pub(super) struct Doubt {
    /// The cluster that answers.
    is: ClusterId,
    /// Its revision when it was first distrusted.
    said: Revision,
    reason: String,
    confirmed: oneshot::Receiver<Seen>,
    /// The operator has confirmed this state of it.
    accepted: Option<Seen>,
    reminded: Instant,
}

/// The reader's next step.
enum Next {
    Follow,
    List,
    /// A restored store waits for the operator.
    Wait,
    /// The store failed; retry later.
    Retry(StoreError),
    /// The receiver was dropped.
    Done,
}

impl Reader {
    pub(super) async fn run(mut self) {
        if let Some(known) = &self.known {
            self.store.trust(known.cluster);
            self.seen = known.revision;
        }
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut next = Next::List;
        // Ends when the receiver is dropped; each turn waits for the store or for time.
        loop {
            next = match next {
                Next::Done => return,
                Next::List => self.list().await,
                Next::Wait => self.wait().await,
                Next::Follow => {
                    let next = self.follow(&mut backoff).await;
                    self.metrics.store_connected.set(0);
                    self.follows.send_replace(None);
                    next
                }
                Next::Retry(error) => {
                    let pause = backoff.next_pause();
                    debug!(%error, ?pause, "the store failed");
                    self.store_health.unread(&error);
                    if self.serve_from_disk().await.is_err() {
                        return;
                    }
                    sleep(pause).await;
                    Next::List
                }
            };
        }
    }

    async fn list(&mut self) -> Next {
        let survey = self.store.survey(TIDEGATE_PREFIX);
        let surveyed = if self.unsent {
            let after = START_PATIENCE;
            let in_time = timeout(after, survey).await;
            in_time.unwrap_or(Err(StoreError::Timeout { after }))
        } else {
            survey.await
        };
        let (cluster, listing) = match surveyed {
            Ok(surveyed) => surveyed,
            Err(error) => return Next::Retry(error),
        };
        match self.doubts(cluster, &listing) {
            Some(reason) if self.accepted(cluster).is_none() => {
                match self.begin_doubt(cluster, listing, reason).await {
                    Ok(()) => Next::Wait,
                    Err(Gone) => Next::Done,
                }
            }
            doubted => {
                // So that the guard treats missing instances like those that disappear later.
                if doubted.is_none()
                    && self.has_lost_too_much(&listing)
                    && self.serve_from_disk().await.is_err()
                {
                    return Next::Done;
                }
                if doubted.is_some() {
                    info!("an operator confirmed the store's content: this replica accepts it");
                }
                // A restored store with its old id cannot be distinguished from the previous one,
                // not even by replicas that start later.
                let renamed = self
                    .known
                    .as_ref()
                    .is_none_or(|known| known.cluster != cluster);
                if doubted.is_some() {
                    self.silent = !renamed;
                    if self.silent && self.facts.is_some() {
                        error!(
                            "the store was restored under its old cluster id, so its authority records permit no writes: restore it again, with another cluster token"
                        );
                    }
                }
                let seen = doubted.and_then(|_| self.accepted(cluster));
                let origin = match seen {
                    Some(seen) if self.is_covered(seen, &listing) => Origin::Confirmed,
                    Some(_) => {
                        warn!(
                            "most instances disappeared after the confirmation: the sanity guard keeps them as usual"
                        );
                        Origin::Store
                    }
                    None => Origin::Store,
                };
                match self.accept(cluster, listing, origin).await {
                    Ok(()) => Next::Follow,
                    Err(Gone) => Next::Done,
                }
            }
        }
    }

    /// Why the answering store cannot have developed from the known state; none if it can.
    fn doubts(&self, cluster: ClusterId, listing: &Listing) -> Option<String> {
        let known = self.known.as_ref()?;
        let (was, is) = (self.seen.0, listing.revision.0);
        if known.cluster != cluster {
            let (before, now) = (known.cluster.0, cluster.0);
            return Some(format!(
                "another store answers: cluster {now:016x} in place of {before:016x}"
            ));
        }
        if is < was {
            return Some(format!(
                "the store was restored from an older backup: its revision is {is}, below the known {was}"
            ));
        }
        // A restored store that is written to exceeds the known revision. It is the original only
        // if nothing is missing.
        let restored = self.doubt.as_ref().is_some_and(|doubt| doubt.is == cluster);
        if !known.may_become(listing) || restored && !known.is_covered_by(listing) {
            return Some(format!(
                "the store was restored from an older backup and written to since: its history up to revision {} differs from the known one",
                known.revision.0
            ));
        }
        None
    }

    /// Whether most instances that were known on disk are missing, without others in their place.
    fn has_lost_too_much(&self, listing: &Listing) -> bool {
        let Some(known) = self.known.as_ref().filter(|_| self.unsent) else {
            return false;
        };
        let is_instance = |key: &&String| key.starts_with(INSTANCES_PREFIX);
        let before = known.entries.keys().filter(is_instance).count();
        lost_too_many(before, instances(listing), self.vanish_percent)
    }

    /// Whether the listing is the state that an operator has seen, or may have developed from it.
    fn is_covered(&self, seen: Seen, listing: &Listing) -> bool {
        seen.covers(instances(listing), self.vanish_percent)
    }

    fn accepted(&self, cluster: ClusterId) -> Option<Seen> {
        let doubt = self.doubt.as_ref().filter(|doubt| doubt.is == cluster)?;
        doubt.accepted
    }

    async fn begin_doubt(
        &mut self,
        is: ClusterId,
        listing: Listing,
        reason: String,
    ) -> Result<(), Gone> {
        self.serve_from_disk().await?;
        if let Some(doubt) = &mut self.doubt
            && doubt.is == is
        {
            self.store_health.doubted(&reason);
            doubt.reason = reason;
            return Ok(());
        }
        let was = self.known.as_ref().map(|known| known.cluster);
        error!(
            reason,
            records = listing.entries.len(),
            "the last good state stays in force: put the old store back, or confirm this one (POST /v1/confirm)"
        );
        // The question is open before it is reported, so that a prompt answer finds it.
        let confirmed = self.confirm.ask();
        self.confirm.doubts(Some(Seen {
            revision: listing.revision,
            instances: instances(&listing),
        }));
        self.store_health.doubted(&reason);
        self.doubt = Some(Doubt {
            is,
            said: listing.revision,
            reason,
            confirmed,
            accepted: None,
            reminded: Instant::now(),
        });
        self.tell(StoreEvent::Doubted).await?;
        let restored = Change::Restored {
            revision: listing.revision,
            was: self.seen,
            cluster: was.filter(|was| *was != is).map(|was| (was, is)),
        };
        self.send(restored).await
    }

    /// Waits until an operator confirms, or another store answers.
    async fn wait(&mut self) -> Next {
        let Some(doubt) = &mut self.doubt else {
            return Next::List;
        };
        if self.changes.is_closed() {
            return Next::Done;
        }
        tokio::select! {
            // An error is impossible: only this reader drops the question.
            seen = &mut doubt.confirmed, if doubt.accepted.is_none() => {
                doubt.accepted = seen.ok();
                return Next::List;
            }
            () = sleep(PROBE_INTERVAL) => {}
        }
        if doubt.reminded.elapsed() >= REMINDER {
            doubt.reminded = Instant::now();
            let reason = &doubt.reason;
            warn!(
                reason,
                "the last good state is still in force: put the old store back, or confirm this one (POST /v1/confirm)"
            );
        }
        if let Some(seen) = self.confirmed_elsewhere().await
            && let Some(doubt) = &mut self.doubt
        {
            doubt.accepted = Some(seen);
            return Next::List;
        }
        let Some(doubt) = &self.doubt else {
            return Next::List;
        };
        let was = self.known.as_ref().map(|known| known.cluster);
        match self.store.head().await {
            Err(error) => self.store_health.unread(&error),
            Ok(head) if head.cluster != doubt.is => return Next::List,
            // The original is back, or the store exceeds the known revision: the listing decides.
            Ok(head) if Some(head.cluster) == was && head.revision >= self.seen => {
                return Next::List;
            }
            Ok(_) => self.store_health.doubted(&doubt.reason),
        }
        Next::Wait
    }

    /// The state that an operator has confirmed at another replica. A store that was restored under
    /// its old id contains confirmations from before its backup. There only those count that were
    /// written after it was first distrusted.
    async fn confirmed_elsewhere(&self) -> Option<Seen> {
        let doubt = self.doubt.as_ref()?;
        // A failure is retried at the next check.
        let (cluster, listing) = self.store.survey(CONFIRMATIONS_PREFIX).await.ok()?;
        let known = self.known.as_ref();
        let is_other = known.is_some_and(|known| known.cluster != cluster);
        let since = match is_other {
            true => Revision(0),
            false => doubt.said,
        };
        let seen = newest_confirmation(&listing, cluster, since);
        seen.filter(|_| cluster == doubt.is)
    }

    /// Accepts the listing as the current state.
    async fn accept(
        &mut self,
        cluster: ClusterId,
        listing: Listing,
        origin: Origin,
    ) -> Result<(), Gone> {
        self.store.trust(cluster);
        self.metrics.store_lists.inc();
        let (revision, records) = (listing.revision, listing.entries.len());
        info!(revision = revision.0, records, "store listed");
        let (about_authority, others) = split(listing.entries.clone());
        let fact = StoreEvent::Listed {
            cluster,
            revision,
            entries: about_authority,
        };
        let listed = Change::Listed {
            entries: others,
            revision,
            origin,
        };
        // A confirmation that was not applied yet: it covers the changes that were missed.
        let before = self.known.as_ref().filter(|known| known.cluster == cluster);
        let before = before.map_or(Revision(0), |known| known.revision);
        let confirmed = newest_confirmation(&listing, cluster, before);
        // A listing does not show when something disappeared.
        let confirmed = confirmed
            .filter(|seen| self.is_covered(*seen, &listing))
            .map(|seen| Seen { revision, ..seen });
        let known = LastGood::listed(cluster, listing);
        self.keeper.keep(&known);
        self.known = Some(known);
        self.seen = revision;
        self.unsent = false;
        self.doubt = None;
        self.confirm.doubts(None);
        self.tell(fact).await?;
        self.send(listed).await?;
        if let Some(seen) = confirmed {
            self.send(Change::Confirmed(seen)).await?;
        }
        self.store_health.confirmed();
        Ok(())
    }

    /// Without a listing to trust, the state on disk is sent, once.
    async fn serve_from_disk(&mut self) -> Result<(), Gone> {
        let Some(known) = self.known.as_ref().filter(|_| self.unsent) else {
            return Ok(());
        };
        let age = known.age();
        let records = known.entries.len();
        warn!(
            records,
            revision = known.revision.0,
            ?age,
            "the last good state is served from disk"
        );
        let listed = Change::Listed {
            entries: known.entries.values().cloned().collect(),
            revision: known.revision,
            origin: Origin::Disk,
        };
        self.unsent = false;
        self.store_health.loaded(age);
        self.send(listed).await
    }

    async fn follow(&mut self, backoff: &mut Backoff) -> Next {
        let Some(known) = &self.known else {
            return Next::List;
        };
        let mut batches = self.store.watch(TIDEGATE_PREFIX, known.revision);
        let (cluster, revision) = (known.cluster, known.revision);
        self.follows.send_replace(Some(Head { cluster, revision }));
        self.metrics.store_connected.set(1);
        self.metrics.store_revision.set(known.revision.0);
        let store = Arc::clone(&self.store);
        let probe = || {
            let store = Arc::clone(&store);
            async move {
                sleep(PROBE_INTERVAL).await;
                store.head().await
            }
            .boxed()
        };
        // The lower bound of the probe's revision.
        let mut asked_at = self.seen;
        let mut probed = probe();
        loop {
            let batch = tokio::select! {
                batch = batches.next() => batch,
                head = &mut probed => {
                    match head {
                        _ if self.changes.is_closed() => return Next::Done,
                        Ok(head) if !self.continues(head, asked_at) => return Next::List,
                        Ok(head) => {
                            self.seen = self.seen.max(head.revision);
                            self.store_health.confirmed();
                        }
                        // The watch itself decides whether it still follows.
                        Err(error) => self.store_health.unread(&error),
                    }
                    asked_at = self.seen;
                    probed = probe();
                    continue;
                }
            };
            match batch {
                Some(Ok(batch)) => {
                    backoff.reset();
                    if self.take(batch).await.is_err() {
                        return Next::Done;
                    }
                }
                Some(Err(WatchError::Compacted { .. })) => {
                    info!("history is compacted, listing anew");
                    return Next::List;
                }
                Some(Err(WatchError::Disconnected(error))) => {
                    return self.after_break(error, backoff).await;
                }
                None => {
                    let detail = "the watch ended without a reason".to_owned();
                    return self
                        .after_break(StoreError::Unavailable { detail }, backoff)
                        .await;
                }
            }
        }
    }

    /// If the store itself answers, only a member failed, and the watch continues with another one.
    async fn after_break(&self, error: StoreError, backoff: &mut Backoff) -> Next {
        warn!(%error, "the watch was disconnected; the last state stays in force");
        match self.store.head().await {
            Ok(head) if self.continues(head, self.seen) => {
                sleep(backoff.next_pause()).await;
                Next::Follow
            }
            Ok(_) => Next::List,
            Err(error) => Next::Retry(error),
        }
    }

    /// Whether this can be the store that was followed so far.
    fn continues(&self, head: Head, seen: Revision) -> bool {
        let known = self.known.as_ref();
        known.is_some_and(|known| known.cluster == head.cluster) && head.revision >= seen
    }

    async fn take(&mut self, batch: WatchBatch) -> Result<(), Gone> {
        if let Some(known) = &mut self.known {
            known.take(&batch);
            // Sessions alone would cause a write every second.
            if batch
                .events
                .iter()
                .any(|event| last_good::is_kept(event.key()))
            {
                self.keeper.keep(known);
            }
        }
        let cluster = self.known.as_ref().map(|known| known.cluster);
        for event in batch.events {
            if let Event::Put(entry) = &event
                && let Some(seen) = cluster.and_then(|cluster| confirmation(entry, cluster))
            {
                info!(
                    up_to = seen.revision.0,
                    "an operator confirmed the store's content, on this replica or another"
                );
                self.send(Change::Confirmed(seen)).await?;
            }
            let listeners = Listeners::of(event.key());
            if listeners.authority {
                let fact = match &event {
                    Event::Put(entry) => StoreEvent::Put(entry.clone()),
                    Event::Delete { key, revision } => StoreEvent::Deleted {
                        key: key.clone(),
                        revision: *revision,
                    },
                };
                self.tell(fact).await?;
            }
            if listeners.world {
                let change = match event {
                    Event::Put(entry) => Change::Put(entry),
                    Event::Delete { key, revision } => Change::Deleted { key, revision },
                };
                self.send(change).await?;
            }
        }
        self.seen = self.seen.max(batch.revision);
        self.metrics.store_revision.set(batch.revision.0);
        let revision = batch.revision;
        let head = |known: &LastGood| Head {
            cluster: known.cluster,
            revision,
        };
        self.follows.send_replace(self.known.as_ref().map(head));
        Ok(())
    }

    async fn tell(&self, fact: StoreEvent) -> Result<(), Gone> {
        match self.facts.as_ref().filter(|_| !self.silent) {
            Some(facts) => facts.send(fact).await.map_err(|_| Gone),
            None => Ok(()),
        }
    }

    async fn send(&self, change: Change) -> Result<(), Gone> {
        self.changes.send(change).await.map_err(|_| Gone)
    }
}

/// The receivers of a key's events.
struct Listeners {
    world: bool,
    authority: bool,
}

impl Listeners {
    /// The owners of cells, and the terms, go to both; the world needs no further records about
    /// authority.
    fn of(key: &str) -> Listeners {
        let owners = key.starts_with(AUTHORITY_PREFIX) || key == TERMS_KEY;
        let behind = [SESSIONS_PREFIX, GRANTORS_PREFIX, OPERATIONS_PREFIX];
        let behind = behind.iter().any(|prefix| key.starts_with(prefix));
        // Replicas read each other's records directly; confirmations and the lists of guests are
        // handled separately.
        let elsewhere = [REPLICAS_PREFIX, CONFIRMATIONS_PREFIX, GUESTS_PREFIX];
        let elsewhere =
            elsewhere.iter().any(|prefix| key.starts_with(prefix)) || key == COMPACTOR_KEY;
        Listeners {
            world: !behind && !elsewhere,
            authority: owners || behind,
        }
    }
}

/// Splits the entries: those about authority, and those for the world.
fn split(entries: Vec<Entry>) -> (Vec<Entry>, Vec<Entry>) {
    let of = |entry: &&Entry| Listeners::of(&entry.key);
    let authority = entries.iter().filter(|entry| of(entry).authority).cloned();
    let authority = authority.collect();
    let world = entries
        .into_iter()
        .filter(|entry| Listeners::of(&entry.key).world);
    (authority, world.collect())
}

/// The confirmed state, if the record is a confirmation of this store.
fn confirmation(entry: &Entry, cluster: ClusterId) -> Option<Seen> {
    entry.key.strip_prefix(CONFIRMATIONS_PREFIX)?;
    let said = Confirmation::read(&entry.value, cluster)?;
    Some(Seen {
        revision: said.revision(),
        instances: said.instances(),
    })
}

/// The newest confirmation that was written after `since`.
fn newest_confirmation(listing: &Listing, cluster: ClusterId, since: Revision) -> Option<Seen> {
    let entries = listing.entries.iter();
    let newer = entries.filter(|entry| entry.mod_revision > since);
    let read = newer.filter_map(|entry| Some((entry.mod_revision, confirmation(entry, cluster)?)));
    read.max_by_key(|(at, _)| *at).map(|(_, seen)| seen)
}

fn instances(listing: &Listing) -> usize {
    let keys = listing.entries.iter().map(|entry| &entry.key);
    keys.filter(|key| key.starts_with(INSTANCES_PREFIX)).count()
}

/// The receiver was dropped.
struct Gone;
