//! Zones with a control plane of their own, for the streams of proxies from other zones.
//!
//! A proxy whose own control plane was down has connected to this one, and would stay: Envoy does
//! not close a stream because a better server is back. So its streams end when its zone has a
//! control plane again. The proxy may still be unable to reach that one (an ejection lasts for
//! seconds, a network may be partitioned). So the interval between two attempts grows.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use policy::fence::{Name, SessionId};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tonic::Status;
use tracing::info;

/// How long after the return of its zone a proxy is first sent back.
const FIRST: Duration = Duration::from_millis(300);
/// The longest interval between two attempts.
const LONGEST: Duration = Duration::from_secs(60);

/// By zone with a live session: since when the newest one exists.
pub(super) type Since = BTreeMap<Name, Instant>;

/// The sessions that the engine sees, and since when.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    alive: BTreeSet<SessionId>,
    since: Since,
}

impl Sightings {
    /// Applies the live sessions; true if the times of zones change.
    pub(super) fn look(&mut self, alive: BTreeSet<SessionId>, now: Instant) -> bool {
        if self.alive == alive {
            return false;
        }
        let zones: BTreeSet<&Name> = alive.iter().map(|id| &id.zone).collect();
        let mut since = self.since.clone();
        since.retain(|zone, _| zones.contains(zone));
        for fresh in alive.difference(&self.alive) {
            since.insert(fresh.zone.clone(), now);
        }
        self.alive = alive;
        let changed = self.since != since;
        self.since = since;
        changed
    }

    pub(super) fn since(&self) -> &Since {
        &self.since
    }
}

/// The view of streams. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Homes {
    /// The zones that this process serves; empty if nothing is fenced.
    own: Arc<BTreeSet<Name>>,
    since: watch::Receiver<Arc<Since>>,
}

impl Homes {
    pub(super) fn new(
        own: impl IntoIterator<Item = Name>,
        since: watch::Receiver<Arc<Since>>,
    ) -> Homes {
        Homes {
            own: Arc::new(own.into_iter().collect()),
            since,
        }
    }

    /// For a process without zones: every stream stays.
    pub fn unknown() -> Homes {
        Homes::new([], watch::channel(Arc::default()).1)
    }

    /// Waits until a proxy's stream should move to another control plane; the proxy gets the
    /// status. Most proxies are in their own zone, and cost nothing.
    pub(crate) fn sent_home(&self, zone: &str, node: &str) -> BoxFuture<'static, Status> {
        if self.own.is_empty() || self.own.contains(zone) {
            // Costs no memory: its future has no size.
            return Box::pin(std::future::pending());
        }
        Box::pin(self.clone().visit(zone.to_owned(), node.to_owned()))
    }

    async fn visit(mut self, zone: String, node: String) -> Status {
        let opened = Instant::now();
        loop {
            let since = self.since.borrow_and_update().get(&*zone).copied();
            let over = async {
                match since {
                    Some(since) => sleep_until(next_after(since, opened, &node)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => {
                    info!(node, zone, "the zone's own control plane is back: the stream is closed, so that the proxy reconnects there");
                    return Status::unavailable(format!(
                        "the control plane of zone {zone:?} is back: connect to it"
                    ));
                }
                changed = self.since.changed() => if changed.is_err() {
                    // The process ends, and its streams with it.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// The first attempt to send a proxy back that is not before `opened`. The intervals double from
/// [`FIRST`] to [`LONGEST`], with a jitter for each proxy.
fn next_after(since: Instant, opened: Instant, node: &str) -> Instant {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    let quarter = (hasher.finish() % 256) as u32;
    let mut at = since;
    let mut span = FIRST;
    loop {
        if span == LONGEST {
            // A zone may have been there for months.
            let passed = opened.saturating_duration_since(at + LONGEST * 2);
            at += Duration::from_secs(passed.as_secs() / LONGEST.as_secs() * LONGEST.as_secs());
        }
        let late = at + span + span * quarter / 1_024;
        if late > opened {
            return late;
        }
        at += span;
        span = (span * 2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(zone: &str, incarnation: &str) -> SessionId {
        SessionId {
            zone: zone.into(),
            incarnation: incarnation.into(),
        }
    }

    #[test]
    fn a_zone_is_back_with_a_new_session_and_with_one_that_was_silent() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut sightings = Sightings::default();
        let (first, second) = (session("a", "1"), session("a", "2"));
        assert!(sightings.look([first.clone()].into(), at(0)));
        assert!(!sightings.look([first.clone()].into(), at(1)));
        assert!(sightings.look([first.clone(), second.clone()].into(), at(2)));
        assert_eq!(sightings.since().get("a"), Some(&at(2)));
        // If one goes while another stays, nothing changes.
        assert!(!sightings.look([second.clone()].into(), at(3)));
        assert!(sightings.look([].into(), at(4)));
        assert_eq!(sightings.since().get("a"), None);
        assert!(sightings.look([second].into(), at(5)));
        assert_eq!(sightings.since().get("a"), Some(&at(5)));
    }

    #[test]
    fn a_proxy_is_given_longer_from_one_time_to_the_next() {
        let since = Instant::now();
        let mut opened = since;
        let mut spans = vec![];
        for _ in 0..12 {
            let next = next_after(since, opened, "node");
            assert!(next > opened);
            spans.push(next - opened);
            opened = next;
        }
        assert!(spans[0] >= FIRST && spans[0] < FIRST * 2, "{spans:?}");
        // The jitter between proxies grows with the interval, up to a quarter of it.
        assert!(spans[..8].is_sorted(), "{spans:?}");
        let most = LONGEST + LONGEST / 4;
        assert!(spans.iter().all(|span| *span <= most), "{spans:?}");
        let last = spans.last().copied().unwrap_or_default();
        assert!(last <= LONGEST && last > LONGEST / 2, "{spans:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_stays_until_its_zone_is_back() {
        let (told, since) = watch::channel(Arc::new(Since::new()));
        let homes = Homes::new([Name::from("b")], since);
        let sent = tokio::spawn(homes.sent_home("a", "node"));
        let own = tokio::spawn(homes.sent_home("b", "node"));
        tokio::time::sleep(LONGEST * 10).await;
        assert!(!sent.is_finished());
        let now = Instant::now();
        told.send_replace(Arc::new([("a".into(), now), ("b".into(), now)].into()));
        let status = tokio::time::timeout(FIRST * 2, sent).await;
        let status = status.expect("sent home in time").expect("no panic");
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(status.message().contains("\"a\""), "{status}");
        tokio::time::sleep(LONGEST * 10).await;
        assert!(!own.is_finished());
    }
}
