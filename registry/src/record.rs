//! Instance records: the JSON under `/tidegate/v1/instances/<service>/<zone>/<instance>`, and its
//! only parser.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use policy::topology::check_name;
use serde::{Deserialize, Serialize};

/// The prefix of all keys of this version of Tidegate.
pub const TIDEGATE_PREFIX: &str = "/tidegate/v1/";

/// Records of the control plane's replicas about themselves.
pub const REPLICAS_PREFIX: &str = "/tidegate/v1/replicas/";

/// The prefix of all keys of any version of Tidegate.
pub const STORE_PREFIX: &str = "/tidegate/";

/// The key of the replica that compacts etcd's history. The value is for operators.
pub const COMPACTOR_KEY: &str = "/tidegate/v1/compactor";
/// The prefix of all instances.
pub const INSTANCES_PREFIX: &str = "/tidegate/v1/instances/";

/// The longest record that is accepted, in bytes.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;

/// The instance of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    pub service: String,
    pub zone: String,
    pub instance: String,
}

/// The record of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    #[default]
    Healthy,
    Unhealthy,
    /// Leaving on purpose: it gets no new requests and completes those in flight.
    Draining,
}

/// A registered instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// An IP address: EDS accepts no host names.
    pub address: IpAddr,
    /// At least 1.
    pub port: u16,
    #[serde(default)]
    pub health: Health,
    /// Its weight among the instances of its zone, 1 to 128 (Envoy's limit).
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// One-minute load average per core, at least 0.
    #[serde(default)]
    pub load1_per_core: f64,
    /// Requests in flight.
    #[serde(default)]
    pub in_flight: u32,
    /// The load that the application itself reports, on the scale of `load1_per_core` (1: fully
    /// used). It takes precedence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_load: Option<f64>,
    /// Requests per second that it can serve; none: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_rps: Option<f64>,
}

impl Instance {
    /// The effective load: the application's own, if it reports one.
    pub fn load(&self) -> f64 {
        self.app_load.unwrap_or(self.load1_per_core)
    }
}

fn default_weight() -> u32 {
    1
}

/// Why a record was rejected. The text names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    #[error("the key is not {INSTANCES_PREFIX}<service>/<zone>/<instance>")]
    Key,
    #[error(
        "the key is not of this kind: /tidegate/v1/config/intents/<zone>[/<service>], /tidegate/v1/standings/<service>/<zone>"
    )]
    RecordKey,
    #[error("not a record of this kind: {0}")]
    Record(String),
    #[error("{0} bytes: at most {RECORD_BYTES_MAX} are accepted")]
    TooLong(usize),
    #[error("not an instance record: {0}")]
    Json(String),
    #[error("port 0: register the port that the instance listens on")]
    Port,
    #[error("weight {0}: 1 to 128 are possible")]
    Weight(u32),
    #[error("{0}: a number of at least 0")]
    Load(&'static str),
    #[error("address {address}: {why}; register the address that the instance listens on")]
    Address { address: IpAddr, why: &'static str },
    #[error(
        "address {0}: a loopback address leads each proxy to its own machine; register an address that all \
         proxies reach, or permit it with `guard.loopback_instances: true`"
    )]
    Loopback(IpAddr),
    #[error("the same address and port as {0}, which is newer: deregister one of the two")]
    DuplicateAddress(String),
    #[error(
        "the same address and port as {0} of another zone, which is older and keeps it: \
         deregister one of the two"
    )]
    AddressOfAnotherZone(String),
    #[error("zone {0:?} is not configured")]
    UnknownZone(String),
    #[error("service {0:?} is not configured")]
    UnknownService(String),
}

/// An oddity of an accepted record. The text names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    #[error("unknown fields are ignored: {}; known are {}", .0.join(", "), FIELDS.join(", "))]
    UnknownFields(Vec<String>),
    #[error(
        "other zones claim the same address and port, and are ignored since they are newer: {}",
        .0.join(", ")
    )]
    Contested(Vec<String>),
}

/// The fields of an [`Instance`].
const FIELDS: [&str; 8] = [
    "address",
    "port",
    "health",
    "weight",
    "load1_per_core",
    "in_flight",
    "app_load",
    "capacity_rps",
];

/// How many unknown fields, or conflicting registrations, are listed, and how many characters of
/// each name.
pub const NAMED_MAX: usize = 8;
const FIELD_CHARS_MAX: usize = 64;

impl InvalidRecord {
    /// A short stable name, for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            InvalidRecord::Key | InvalidRecord::RecordKey => "key",
            InvalidRecord::TooLong(_) => "too_long",
            InvalidRecord::Json(_) | InvalidRecord::Record(_) => "json",
            InvalidRecord::Port => "port",
            InvalidRecord::Weight(_) => "weight",
            InvalidRecord::Load(_) => "load",
            InvalidRecord::Address { .. } => "address",
            InvalidRecord::Loopback(_) => "loopback",
            InvalidRecord::DuplicateAddress(_) => "duplicate_address",
            InvalidRecord::AddressOfAnotherZone(_) => "address_of_another_zone",
            InvalidRecord::UnknownZone(_) => "unknown_zone",
            InvalidRecord::UnknownService(_) => "unknown_service",
        }
    }
}

impl InstanceKey {
    /// Reads a store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::Key`] if it is not the key of an instance.
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
    /// Reads the value of a store key. Unknown fields are ignored: newer versions may add some.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::TooLong`] and [`InvalidRecord::Json`] if the value is not such JSON;
    /// otherwise the variant of the first field that is out of range: address, port, weight or a
    /// load.
    pub fn parse(value: &[u8]) -> Result<Instance, InvalidRecord> {
        Ok(Instance::parse_warned(value)?.0)
    }

    /// Reads the value of a store key, and warns of its oddities.
    ///
    /// # Errors
    ///
    /// As [`Instance::parse`].
    pub fn parse_warned(value: &[u8]) -> Result<(Instance, Option<Warning>), InvalidRecord> {
        if value.len() > RECORD_BYTES_MAX {
            return Err(InvalidRecord::TooLong(value.len()));
        }
        let json = |error: serde_json::Error| InvalidRecord::Json(error.to_string());
        let mut unknown = BTreeSet::new();
        let mut reader = serde_json::Deserializer::from_slice(value);
        let mut instance: Instance = serde_ignored::deserialize(&mut reader, |path| {
            if unknown.len() < NAMED_MAX {
                unknown.insert(path.to_string().chars().take(FIELD_CHARS_MAX).collect());
            }
        })
        .map_err(json)?;
        reader.end().map_err(json)?;
        // Every address has one canonical form, regardless of how it was written.
        instance.address = instance.address.to_canonical();
        instance.check()?;
        let unknown: Vec<String> = unknown.into_iter().collect();
        let warning = (!unknown.is_empty()).then_some(Warning::UnknownFields(unknown));
        Ok((instance, warning))
    }

    fn check(&self) -> Result<(), InvalidRecord> {
        let instance = self;
        if let Some(why) = no_destination(instance.address) {
            let address = instance.address;
            return Err(InvalidRecord::Address { address, why });
        }
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
            // `contains` is false for NaN.
            if number.is_some_and(|n| !(0.0..=f64::MAX).contains(&n)) {
                return Err(InvalidRecord::Load(field));
            }
        }
        Ok(())
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of numbers and strings always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Why no packet can reach an instance at this address; none if one can. Expects IPv4 addresses in
/// IPv4 form.
fn no_destination(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => no_destination_v4(v4),
        IpAddr::V6(v6) => no_destination_v6(v6),
    }
}

fn no_destination_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        // RFC 1122, 3.2.1.3. Linux treats 0.0.0.0 as the sender's own machine.
        [0, ..] => Some("an address of \"this network\" (0.0.0.0/8) is no destination"),
        _ if address.is_multicast() => Some("a multicast address is no destination"),
        _ if address.is_broadcast() => Some("the broadcast address is no destination"),
        // Metadata services of clouds, among others.
        _ if address.is_link_local() => {
            Some("a link-local address means another host on each link")
        }
        _ => None,
    }
}

fn no_destination_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [a, b, c, d, e, f, ..] = address.segments();
    let is_v4_compatible = [a, b, c, d, e, f] == [0; 6] && !address.is_loopback();
    match () {
        () if address.is_unspecified() => Some("the unspecified address is no destination"),
        () if address.is_multicast() => Some("a multicast address is no destination"),
        () if address.is_unicast_link_local() => {
            Some("a link-local address needs a zone, which endpoints do not have")
        }
        // RFC 4291, 2.5.5.1.
        () if is_v4_compatible => Some("IPv4-compatible IPv6 addresses are deprecated"),
        () => None,
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
    fn addresses_that_are_no_destination_are_rejected() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "169.254.169.254",
            "::",
            "ff02::1",
            "fe80::1",
            "::10.0.0.1",
            "::ffff:0.0.0.0",
            "::ffff:224.0.0.1",
            "::ffff:255.255.255.255",
            "::ffff:169.254.0.1",
        ] {
            refused(
                &format!(r#"{{"address":"{address}","port":80}}"#),
                "address",
            );
        }
        for (written, is) in [
            ("10.0.0.1", "10.0.0.1"),
            ("127.0.0.1", "127.0.0.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::1", "::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            let record = format!(r#"{{"address":"{written}","port":80}}"#);
            let instance = Instance::parse(record.as_bytes()).expect(written);
            assert_eq!(instance.address.to_string(), is);
        }
    }

    #[test]
    fn unknown_fields_are_warned_of_by_name() {
        let parse = |value: &str| Instance::parse_warned(value.as_bytes()).expect(value).1;
        assert_eq!(parse(r#"{"address":"10.0.0.1","port":80}"#), None);
        let warning = parse(r#"{"address":"10.0.0.1","port":80,"helth":"unhealthy","a":{"b":1}}"#);
        let unknown = Warning::UnknownFields(vec!["a".into(), "helth".into()]);
        assert_eq!(warning, Some(unknown));
        let many: String = (0..1000).map(|n| format!(",\"x{n}\":1")).collect();
        match parse(&format!(r#"{{"address":"10.0.0.1","port":80{many}}}"#)) {
            Some(Warning::UnknownFields(named)) => assert_eq!(named.len(), NAMED_MAX),
            other => panic!("{other:?}"),
        }
        let all = serde_json::json!({
            "address": "10.0.0.1", "port": 80, "health": "healthy", "weight": 1, "load1_per_core": 0,
            "in_flight": 0, "app_load": 0, "capacity_rps": 1,
        });
        let named: BTreeSet<&str> = all
            .as_object()
            .expect("fields")
            .keys()
            .map(|k| &**k)
            .collect();
        assert_eq!(named, BTreeSet::from(FIELDS));
        assert_eq!(parse(&all.to_string()), None);
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
