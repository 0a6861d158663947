//! Detects a snapshot that is empty by mistake, from the clients that reconnect.
//!
//! A store without instances may never have had one, or may have been emptied. Reconnecting clients
//! send the versions that they hold, and a version is the hash of the content. Clusters and
//! endpoints that equal ours prove nothing, regardless of the server that sent them. Different ones
//! prove that there were instances.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    discovery::{Events, Key},
    resource::Kind,
    server::Scope,
};

/// A client's resources of a kind from an earlier stream, compared with those that it would be
/// sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    Nothing,
    Same,
    Other,
}

/// The decision about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Serve,
    /// Undecided: its next requests decide.
    Listen,
    /// It gets no response, and its client keeps its resources.
    HoldBack,
}

/// The evidence from a stream's requests so far.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    scope: Scope,
    /// The first request brought no resources: the client is new.
    is_new: bool,
    /// The client has had time to subscribe to everything that it holds. Reconnecting clients do so
    /// at once.
    pub(super) is_late: bool,
    clusters: Option<Brought>,
    endpoints: Option<Brought>,
    /// The result for the kind of a separate service.
    own: Option<Brought>,
}

impl Evidence {
    /// None yet.
    pub(super) fn of(scope: Scope) -> Evidence {
        Evidence {
            scope,
            is_new: false,
            is_late: false,
            clusters: None,
            endpoints: None,
            own: None,
        }
    }

    /// The stream's first request.
    pub(super) fn first(&mut self, kind: Option<Kind>, brought: Brought) {
        self.is_new = brought == Brought::Nothing;
        self.add(kind, brought);
    }

    /// Adds a request. Only the first request of a kind lists the resources that the client holds.
    pub(super) fn add(&mut self, kind: Option<Kind>, brought: Brought) {
        let place = match (self.scope, kind) {
            (Scope::Only(_), _) => &mut self.own,
            (Scope::Everything, Some(Kind::Cluster)) => &mut self.clusters,
            (Scope::Everything, Some(Kind::Endpoints)) => &mut self.endpoints,
            (Scope::Everything, _) => return,
        };
        place.get_or_insert(brought);
    }

    pub(super) fn verdict(&self) -> Verdict {
        use Brought::{Nothing, Other, Same};
        match (self.own, self.clusters, self.endpoints) {
            (Some(Other), _, _) | (_, Some(Other), _) | (_, _, Some(Other)) => Verdict::HoldBack,
            (Some(_), _, _) | (_, _, Some(_)) | (_, Some(Nothing), _) => Verdict::Serve,
            _ if self.is_new => Verdict::Serve,
            // The client has not listed its clusters' endpoints.
            (_, Some(Same), None) if self.is_late => Verdict::HoldBack,
            (_, None, None) if self.is_late => Verdict::Serve,
            _ => Verdict::Listen,
        }
    }
}

/// The streams that are held back. Clones share the count.
pub(super) struct HeldBack<K: Key> {
    count: Arc<Mutex<usize>>,
    events: Arc<dyn Events<K>>,
}

/// A stream that is held back, until it is dropped.
pub(super) struct Held<K: Key>(HeldBack<K>);

impl<K: Key> HeldBack<K> {
    pub(super) fn new(events: Arc<dyn Events<K>>) -> HeldBack<K> {
        HeldBack {
            count: Arc::default(),
            events,
        }
    }

    pub(super) fn enter(&self) -> Held<K> {
        self.change(|count| count.saturating_add(1));
        Held(self.clone())
    }

    /// Reports the number under the lock, so that the last report is the final number.
    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = change(*count);
        self.events.held_back_now(*count);
    }
}

impl<K: Key> Clone for HeldBack<K> {
    fn clone(&self) -> HeldBack<K> {
        HeldBack {
            count: Arc::clone(&self.count),
            events: Arc::clone(&self.events),
        }
    }
}

impl<K: Key> Drop for Held<K> {
    fn drop(&mut self) {
        self.0.change(|count| count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Brought::{Nothing, Other, Same};
    use Verdict::{HoldBack, Listen, Serve};

    /// The evidence of the requests; the verdict, and the verdict once the stream is late.
    type Case = (&'static [(Kind, Brought)], Verdict, Verdict);

    #[test]
    fn a_stream_is_judged_by_its_clusters_and_endpoints() {
        use Kind::{Cluster, Endpoints, Listener, Routes};
        let cases: &[Case] = &[
            (&[(Cluster, Nothing)], Serve, Serve),
            (&[(Listener, Nothing)], Serve, Serve),
            (&[(Cluster, Other)], HoldBack, HoldBack),
            (&[(Cluster, Same)], Listen, HoldBack),
            (&[(Cluster, Same), (Endpoints, Same)], Serve, Serve),
            (&[(Cluster, Same), (Endpoints, Nothing)], Serve, Serve),
            (&[(Cluster, Same), (Endpoints, Other)], HoldBack, HoldBack),
            // A later acknowledgement does not list resources from an earlier stream.
            (
                &[(Cluster, Same), (Endpoints, Other), (Endpoints, Same)],
                HoldBack,
                HoldBack,
            ),
            // Listeners and routes change with the configuration.
            (&[(Listener, Other), (Routes, Other)], Listen, Serve),
            (&[(Listener, Other), (Cluster, Nothing)], Serve, Serve),
            (
                &[(Listener, Same), (Cluster, Same), (Endpoints, Other)],
                HoldBack,
                HoldBack,
            ),
        ];
        for (requests, expected, late) in cases {
            let mut evidence = Evidence::of(Scope::Everything);
            let (first, others) = requests.split_first().expect("a request");
            evidence.first(Some(first.0), first.1);
            for (kind, brought) in others {
                evidence.add(Some(*kind), *brought);
            }
            assert_eq!(evidence.verdict(), *expected, "{requests:?}");
            evidence.is_late = true;
            assert_eq!(evidence.verdict(), *late, "late: {requests:?}");
        }
    }

    #[test]
    fn a_stream_about_one_kind_is_judged_by_that() {
        for (brought, expected) in [(Nothing, Serve), (Same, Serve), (Other, HoldBack)] {
            let mut evidence = Evidence::of(Scope::Only(Kind::Routes));
            evidence.first(Some(Kind::Routes), brought);
            assert_eq!(evidence.verdict(), expected, "{brought:?}");
        }
    }

    #[test]
    fn copies_count_the_streams_that_are_held_back_together() {
        #[derive(Default)]
        struct Told(Mutex<Vec<usize>>);
        impl Events<()> for Arc<Told> {
            fn held_back_now(&self, streams: usize) {
                self.0.lock().unwrap().push(streams);
            }
        }
        let told = Arc::new(Told::default());
        let held_back = HeldBack::new(Arc::new(Arc::clone(&told)));
        let (one, two) = (held_back.enter(), held_back.clone().enter());
        drop(one);
        drop(two);
        assert_eq!(*told.0.lock().unwrap(), [1, 2, 1, 0]);
    }
}
