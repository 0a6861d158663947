//! Instance records: the JSON under `/tidegate/v1/instances/<service>/<zone>/<instance>`, and the one door to it.

use std::net::IpAddr;

use policy::topology::check_name;
use serde::{Deserialize, Serialize};

/// Below this stands everything that is Tidegate's.
pub const TIDEGATE_PREFIX: &str = "/tidegate/v1/";

/// Where all instances are registered.
pub const INSTANCES_PREFIX: &str = "/tidegate/v1/instances/";

/// The longest record that is read, in bytes.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;

/// Which instance a record is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    pub service: String,
    pub zone: String,
    pub instance: String,
}

/// What an instance says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    #[default]
    Healthy,
    Unhealthy,
    /// Leaving on purpose: no new requests, those in flight end.
    Draining,
}

/// One instance as it is registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// An IP address: EDS takes no names.
    pub address: IpAddr,
    /// From 1.
    pub port: u16,
    #[serde(default)]
    pub health: Health,
    /// Share among the instances of its zone, 1 to 128 (what Envoy takes).
    #[serde(default = "weight_of_one")]
    pub weight: u32,
    /// One-minute load average per core, at least 0.
    #[serde(default)]
    pub load1_per_core: f64,
    /// Requests that it works on.
    #[serde(default)]
    pub in_flight: u32,
    /// What the application says of its own load, on the scale of `load1_per_core` (1: fully used), and better: it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_load: Option<f64>,
    /// Requests per second that it bears; none: nobody has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_rps: Option<f64>,
}

impl Instance {
    /// The load that counts: the application's own word, where it gives one.
    pub fn load(&self) -> f64 {
        self.app_load.unwrap_or(self.load1_per_core)
    }
}

fn weight_of_one() -> u32 {
    1
}

/// Why a record was refused. The text says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    #[error("the key is not {INSTANCES_PREFIX}<service>/<zone>/<instance>")]
    Key,
    #[error(
        "the key is not of this kind: /tidegate/v1/config/intents/<zone>[/<service>], /tidegate/v1/standings/<service>/<zone>"
    )]
    DesiredKey,
    #[error("not a record of this kind: {0}")]
    Desired(String),
    #[error("{0} bytes: at most {RECORD_BYTES_MAX} are read")]
    TooLong(usize),
    #[error("not an instance record: {0}")]
    Json(String),
    #[error("port 0: register the port that the instance listens on")]
    Port,
    #[error("weight {0}: 1 to 128 are possible")]
    Weight(u32),
    #[error("{0}: a number of at least 0")]
    Load(&'static str),
    #[error("the same address and port as {0}, which is newer: deregister one of the two")]
    DuplicateAddress(String),
    #[error("no zone {0:?} is configured")]
    UnknownZone(String),
    #[error("no service {0:?} is configured")]
    UnknownService(String),
}

impl InvalidRecord {
    /// A short stable name, for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            InvalidRecord::Key | InvalidRecord::DesiredKey => "key",
            InvalidRecord::TooLong(_) => "too_long",
            InvalidRecord::Json(_) | InvalidRecord::Desired(_) => "json",
            InvalidRecord::Port => "port",
            InvalidRecord::Weight(_) => "weight",
            InvalidRecord::Load(_) => "load",
            InvalidRecord::DuplicateAddress(_) => "duplicate_address",
            InvalidRecord::UnknownZone(_) => "unknown_zone",
            InvalidRecord::UnknownService(_) => "unknown_service",
        }
    }
}

impl InstanceKey {
    /// Reads a store key.
    pub fn parse(key: &str) -> Result<InstanceKey, InvalidRecord> {
        let rest = key
            .strip_prefix(INSTANCES_PREFIX)
            .ok_or(InvalidRecord::Key)?;
        let mut parts = rest.split('/');
        let (Some(service), Some(zone), Some(instance), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidRecord::Key);
        };
        for name in [service, zone, instance] {
            check_name(name).map_err(|_| InvalidRecord::Key)?;
        }
        Ok(InstanceKey {
            service: service.to_owned(),
            zone: zone.to_owned(),
            instance: instance.to_owned(),
        })
    }

    /// The store key.
    pub fn store_key(&self) -> String {
        format!(
            "{INSTANCES_PREFIX}{}/{}/{}",
            self.service, self.zone, self.instance
        )
    }
}

impl Instance {
    /// Reads the value of a store key.
    pub fn parse(value: &[u8]) -> Result<Instance, InvalidRecord> {
        if value.len() > RECORD_BYTES_MAX {
            return Err(InvalidRecord::TooLong(value.len()));
        }
        let instance: Instance = serde_json::from_slice(value)
            .map_err(|error| InvalidRecord::Json(error.to_string()))?;
        if instance.port == 0 {
            return Err(InvalidRecord::Port);
        }
        if !(1..=128).contains(&instance.weight) {
            return Err(InvalidRecord::Weight(instance.weight));
        }
        let numbers = [
            ("load1_per_core", Some(instance.load1_per_core)),
            ("app_load", instance.app_load),
            ("capacity_rps", instance.capacity_rps),
        ];
        for (field, number) in numbers {
            // `contains` is false for what is no number.
            if number.is_some_and(|n| !(0.0..=f64::MAX).contains(&n)) {
                return Err(InvalidRecord::Load(field));
            }
        }
        Ok(instance)
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of numbers and strings always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(value: &str, code: &str) {
        let error = Instance::parse(value.as_bytes()).expect_err(value);
        assert_eq!(error.code(), code, "{error}");
    }

    #[test]
    fn bad_records_are_refused_by_name() {
        refused("", "json");
        refused("[]", "json");
        refused(r#"{"address":"web-1","port":80}"#, "json");
        refused(r#"{"address":"10.0.0.1"}"#, "json");
        refused(r#"{"address":"10.0.0.1","port":0}"#, "port");
        refused(r#"{"address":"10.0.0.1","port":70000}"#, "json");
        refused(r#"{"address":"10.0.0.1","port":80,"weight":0}"#, "weight");
        refused(
            r#"{"address":"10.0.0.1","port":80,"load1_per_core":-1}"#,
            "load",
        );
        refused(
            r#"{"address":"10.0.0.1","port":80,"capacity_rps":-1}"#,
            "load",
        );
        refused(
            r#"{"address":"10.0.0.1","port":80,"health":"fine"}"#,
            "json",
        );
        refused(&" ".repeat(RECORD_BYTES_MAX + 1), "too_long");
    }

    #[test]
    fn records_and_keys_come_back_as_they_went() {
        let instance = Instance::parse(br#"{"address":"::1","port":80,"future":1}"#)
            .expect("unknown fields are for newer versions");
        assert_eq!(Instance::parse(&instance.to_json()), Ok(instance));
        let key = InstanceKey {
            service: "orders".into(),
            zone: "shanghai-a".into(),
            instance: "o-1".into(),
        };
        assert_eq!(InstanceKey::parse(&key.store_key()), Ok(key));
    }

    #[test]
    fn keys_with_other_shapes_are_refused() {
        for key in ["", "a/b", "a/b/c/d", "a//c", "A/b/c"] {
            let key = format!("{INSTANCES_PREFIX}{key}");
            assert_eq!(InstanceKey::parse(&key), Err(InvalidRecord::Key), "{key}");
        }
        assert_eq!(InstanceKey::parse("/other"), Err(InvalidRecord::Key));
    }
}
