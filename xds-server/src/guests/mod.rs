//! Guests: filters in Envoys that somebody else configures. They follow the policy of their zone
//! by a stream of their own, since a host takes no resources of ours.
//!
//! [`published`] makes of each zone's policy the compressed pieces that all guests of the zone
//! share; [`service`] is the stream on tonic; [`connected`] tells operators of the guests, and
//! [`lists`] has the routes that they let pass without a policy. [`confined`] keeps certificates of
//! the guests' CA to the calls of guests.

mod confined;
mod connected;
mod lists;
mod published;
mod service;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use self::{connected::Connected, published::Published};
use crate::{access_rules::AccessRules, authority::Homes, discovery::Snapshots, metrics::Metrics};

pub use confined::confined;
pub use connected::{Details, GuestStatus};
pub use lists::{GuestLists, Listing};
pub use service::service;

/// The policies for guests, by zone. Cheap to clone.
#[derive(Clone)]
pub struct Guests {
    snapshots: Snapshots,
    homes: Homes,
    rules: AccessRules,
    metrics: Metrics,
    /// The zones that a guest has asked for.
    zones: Arc<Mutex<BTreeMap<String, Policies>>>,
    connected: Connected,
}

/// The present policy of a zone; none until there is one.
type Policies = watch::Receiver<Option<Arc<Published>>>;

impl Guests {
    /// `homes` says which zones have a control plane of their own, to which their guests go back.
    pub fn new(
        snapshots: Snapshots,
        homes: Homes,
        rules: AccessRules,
        lists: GuestLists,
        metrics: Metrics,
    ) -> Guests {
        Guests {
            snapshots,
            homes,
            rules,
            metrics,
            zones: Arc::default(),
            connected: Connected::new(lists),
        }
    }

    /// Where the policies of a zone of the mesh appear.
    fn of_zone(&self, zone: &str) -> Policies {
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(policies) = zones.get(zone) {
            return policies.clone();
        }
        let (publisher, policies) = watch::channel(None);
        let snapshots = self.snapshots.clone();
        tokio::spawn(published::publish(zone.into(), snapshots, publisher));
        zones.insert(zone.to_owned(), policies.clone());
        policies
    }

    /// The zones of the mesh; none before the first snapshot.
    fn known_zones(&self) -> Option<Vec<String>> {
        let snapshot = self.snapshots.borrow();
        let zones = snapshot.as_ref()?.zones();
        Some(zones.map(str::to_owned).collect())
    }
}
