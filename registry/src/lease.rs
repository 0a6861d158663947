//! The owners of leases. A lease that the control plane grants by its admin interface belongs to
//! the client that requested it: a record under `/tidegate/v1/leases/<id>`, which expires with the
//! lease, names that client.

use serde::{Deserialize, Serialize};

use crate::{record::InvalidRecord, store::LeaseId};

/// The prefix of lease owners.
pub const LEASES_PREFIX: &str = "/tidegate/v1/leases/";

/// The client that a lease was granted to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseOwner {
    /// A client without TLS, like all clients of a plaintext port.
    Plaintext,
    /// A client whose certificate has these names, sorted.
    Certificate { uris: Vec<String>, dns: Vec<String> },
}

impl LeaseOwner {
    /// The owner with the names of a certificate, in any order.
    pub fn certificate(uris: &[String], dns: &[String]) -> LeaseOwner {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names.dedup();
            names
        };
        LeaseOwner::Certificate {
            uris: sorted(uris),
            dns: sorted(dns),
        }
    }

    /// The store key of a lease's owner.
    pub fn store_key(lease: LeaseId) -> String {
        format!("{LEASES_PREFIX}{:x}", lease.0)
    }

    /// Reads the value of a store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::Record`] if the value is not such JSON.
    pub fn parse(value: &[u8]) -> Result<LeaseOwner, InvalidRecord> {
        serde_json::from_slice(value).map_err(|error| InvalidRecord::Record(error.to_string()))
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        // An enum of strings always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_come_back_as_they_went_and_the_order_of_names_does_not_matter() {
        let names = |names: [&str; 2]| names.map(str::to_owned);
        let (one, other) = (names(["a", "b"]), names(["b", "a"]));
        let owner = LeaseOwner::certificate(&one, &[]);
        assert_eq!(owner, LeaseOwner::certificate(&other, &[]));
        assert_ne!(owner, LeaseOwner::certificate(&[], &one));
        for owner in [owner, LeaseOwner::Plaintext] {
            assert_eq!(LeaseOwner::parse(&owner.to_json()), Ok(owner));
        }
        for bad in [&b""[..], b"{}", b"\"other\"", b"\xff"] {
            assert!(LeaseOwner::parse(bad).is_err());
        }
    }
}
