//! An operator's word that the store's content is true, for all replicas: a record under
//! `/tidegate/v1/confirmations/<lease>`, which ends with its lease after [`CONFIRMATION_TTL`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::{ClusterId, LeaseId, Revision};

/// Where confirmations stand.
pub const CONFIRMATIONS_PREFIX: &str = "/tidegate/v1/confirmations/";

/// How long a confirmation stands: for replicas that follow the store late, or start meanwhile.
pub const CONFIRMATION_TTL: Duration = Duration::from_secs(60);

/// A confirmation: everything that the store had said up to `revision` is true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The store that is meant, in hexadecimal. A copy that was restored under another id has the
    /// record too.
    store: String,
    /// Up to where the operator has seen it. The record is written later.
    revision: i64,
    /// How many instances it had there: a later listing cannot tell when an instance disappeared.
    instances: usize,
}

impl Confirmation {
    /// Of what this store had said up to `revision`, with so many instances.
    pub fn of(store: ClusterId, revision: Revision, instances: usize) -> Confirmation {
        Confirmation {
            store: format!("{:016x}", store.0),
            revision: revision.0,
            instances,
        }
    }

    /// Up to where the store is confirmed.
    pub fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    /// How many instances the store had there.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// The store key of the confirmation that ends with this lease.
    pub fn store_key(lease: LeaseId) -> String {
        format!("{CONFIRMATIONS_PREFIX}{:x}", lease.0)
    }

    /// Reads the value of a store key; none where it cannot be read, or confirms another store.
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
