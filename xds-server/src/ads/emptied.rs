//! Clients that show that the store was emptied.
//!
//! A store without instances, beside which no last good state was kept, may never have had one, or may have been emptied. Clients
//! that come back say which versions they hold, and a version is the hash of the content. So clusters and endpoints that are ours
//! to the byte show nothing, whichever control plane sent them, and others show that there were instances.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    conditions::{Code, Conditions},
    resource::Kind,
};

use super::service::Scope;

/// What a client has of a kind from before, beside what it would be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    Nothing,
    Same,
    Other,
}

/// What becomes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Serve,
    /// Its next requests tell.
    Listen,
    /// It is sent nothing, and its client keeps what it has.
    HoldBack,
}

/// What the requests of a stream have shown so far.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    scope: Scope,
    /// The first request brought nothing: the client is new.
    is_new: bool,
    /// The client has had time to ask for all that it holds, which clients that come back do at once.
    pub(super) is_late: bool,
    clusters: Option<Brought>,
    endpoints: Option<Brought>,
    /// Of the kind that a separate service is about.
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

    /// A request. Only the first one of a kind says what its client brings.
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
            // Its clusters have endpoints of which it says nothing.
            (_, Some(Same), None) if self.is_late => Verdict::HoldBack,
            (_, None, None) if self.is_late => Verdict::Serve,
            _ => Verdict::Listen,
        }
    }
}

/// The streams that are held back: together they are one condition, until the last of them is served or ends. Copies are the
/// same one.
#[derive(Clone)]
pub(super) struct HeldBack {
    count: Arc<Mutex<usize>>,
    conditions: Conditions,
}

/// One of them. Dropped, it is none any more.
pub(super) struct Held(HeldBack);

impl HeldBack {
    /// The subject of the condition.
    const SUBJECT: &str = "instances";

    pub(super) fn new(conditions: Conditions) -> HeldBack {
        HeldBack {
            count: Arc::default(),
            conditions,
        }
    }

    pub(super) fn enter(&self) -> Held {
        self.change(|count| count.saturating_add(1));
        Held(self.clone())
    }

    /// Under the lock, so that the condition never lags behind the count.
    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = change(*count);
        let detail = (*count > 0).then(|| {
            format!(
                "the store has no instance and no last good state was kept, but streams of connected proxies ({count}) hold clusters or endpoints from before that differ: these proxies are sent nothing and keep what they have. If there are really no instances, confirm it: `tidegate confirm`"
            )
        });
        self.conditions
            .set(Code::StoreDoubted, HeldBack::SUBJECT, detail);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.change(|count| count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Brought::{Nothing, Other, Same};
    use Verdict::{HoldBack, Listen, Serve};

    /// What requests bring; the verdict, and the verdict once the stream is late.
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
            // An acknowledgement later on says nothing of what was brought.
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
    fn the_condition_ends_with_the_last_stream_that_is_held_back() {
        let conditions = Conditions::new();
        let held_back = HeldBack::new(conditions.clone());
        let holds = || conditions.holds(Code::StoreDoubted);
        let (one, two) = (held_back.enter(), held_back.clone().enter());
        assert!(conditions.list()[0].detail.contains("(2)"));
        drop(one);
        assert!(holds(), "the other one still waits");
        drop(two);
        assert!(!holds());
    }
}
