//! An operator's confirmation, for all replicas, that the store's content is correct: a record
//! under `/tidegate/v1/confirmations/<lease>`, which expires with its lease after
//! [`CONFIRMATION_TTL`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::{ClusterId, LeaseId, Revision};

/// The prefix of confirmations.
pub const CONFIRMATIONS_PREFIX: &str = "/tidegate/v1/confirmations/";

/// How long a confirmation lasts: long enough for replicas that lag behind the store, or start
/// meanwhile.
pub const CONFIRMATION_TTL: Duration = Duration::from_secs(60);

/// A confirmation that the store's content up to `revision` is correct.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The confirmed store, in hexadecimal. A copy that was restored under another id contains the
    /// record too.
    store: String,
    /// The revision that the operator has seen. The record itself is written later.
    revision: i64,
    /// The number of instances at that revision: a later listing cannot show when an instance
    /// disappeared.
    instances: usize,
}

impl Confirmation {
    /// Confirms the content of this store up to `revision`, with this number of instances.
    pub fn of(store: ClusterId, revision: Revision, instances: usize) -> Confirmation {
        Confirmation {
            store: format!("{:016x}", store.0),
            revision: revision.0,
            instances,
        }
    }

    /// The revision up to which the store is confirmed.
    pub fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    /// The number of instances at that revision.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// The store key of the confirmation that expires with this lease.
    pub fn store_key(lease: LeaseId) -> String {
        format!("{CONFIRMATIONS_PREFIX}{:x}", lease.0)
    }

    /// Reads the value of a store key; none if it is unreadable, or confirms another store.
    pub fn read(value: &[u8], store: ClusterId) -> Option<Confirmation> {
        let said: Confirmation = serde_json::from_slice(value).ok()?;
        (said.store == format!("{:016x}", store.0)).then_some(said)
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and numbers always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_is_of_its_store_alone() {
        let confirmation = Confirmation::of(ClusterId(7), Revision(5), 3);
        let value = confirmation.to_json();
        assert_eq!(Confirmation::read(&value, ClusterId(7)), Some(confirmation));
        let restored = Confirmation::read(&value, ClusterId(8));
        assert_eq!(restored, None);
        let of_no_revision = br#"{"store": "0000000000000007"}"#;
        for bad in [&b""[..], b"{}", b"[7]", br#"{"store": 7}"#, of_no_revision] {
            assert_eq!(Confirmation::read(bad, ClusterId(7)), None);
        }
        let key = Confirmation::store_key(LeaseId(0xa5));
        assert_eq!(key, "/tidegate/v1/confirmations/a5");
    }
}
