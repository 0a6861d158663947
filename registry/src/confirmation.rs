//! An operator's word that what the store says is true, for all replicas: a record under `/tidegate/v1/confirmations/<lease>`,
//! which ends with its lease after [`CONFIRMATION_TTL`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::{ClusterId, LeaseId};

/// Where confirmations stand.
pub const CONFIRMATIONS_PREFIX: &str = "/tidegate/v1/confirmations/";

/// How long a confirmation stands: for replicas that follow the store late, or start meanwhile.
pub const CONFIRMATION_TTL: Duration = Duration::from_secs(60);

/// What a confirmation says: everything that the store said up to the record's revision is true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The store that is meant, in hexadecimal. A copy that was restored under another id has the record too.
    store: String,
}

impl Confirmation {
    /// Of what this store says.
    pub fn of(store: ClusterId) -> Confirmation {
        Confirmation {
            store: format!("{:016x}", store.0),
        }
    }

    /// The store key of the confirmation that ends with this lease.
    pub fn store_key(lease: LeaseId) -> String {
        format!("{CONFIRMATIONS_PREFIX}{:x}", lease.0)
    }

    /// Whether the value of a store key confirms what this store says. What cannot be read confirms nothing.
    pub fn is_of(value: &[u8], store: ClusterId) -> bool {
        let said: Option<Confirmation> = serde_json::from_slice(value).ok();
        said == Some(Confirmation::of(store))
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of strings always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_is_of_its_store_alone() {
        let value = Confirmation::of(ClusterId(7)).to_json();
        assert!(Confirmation::is_of(&value, ClusterId(7)));
        assert!(!Confirmation::is_of(&value, ClusterId(8)), "restored");
        for bad in [&b""[..], b"{}", b"[7]", br#"{"store": 7}"#] {
            assert!(!Confirmation::is_of(bad, ClusterId(7)));
        }
        let key = Confirmation::store_key(LeaseId(0xa5));
        assert_eq!(key, "/tidegate/v1/confirmations/a5");
    }
}
