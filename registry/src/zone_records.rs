//! Zone directives of operators, and zone standings of the control plane's replicas: records beside
//! the instances.
//!
//! | key | value |
//! | --- | --- |
//! | `/tidegate/v1/config/intents/<zone>` | [`DirectiveRecord`]: for every service |
//! | `/tidegate/v1/config/intents/<zone>/<service>` | [`DirectiveRecord`]: for one; first choice |
//! | `/tidegate/v1/standings/<service>/<zone>` | [`StandingRecord`] |

use policy::{Phase, ZoneDirective, ZoneStanding, standing, topology::check_name};
use serde::{Deserialize, Serialize};

use crate::record::InvalidRecord;

/// Directives of operators for zones.
pub const DIRECTIVES_PREFIX: &str = "/tidegate/v1/config/intents/";
/// Standings of zones.
pub const STANDINGS_PREFIX: &str = "/tidegate/v1/standings/";

/// The zone and service of a directive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectiveKey {
    pub zone: String,
    /// None: every service.
    pub service: Option<String>,
}

impl DirectiveKey {
    /// Reads a store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::RecordKey`] if it is not the key of a directive.
    pub fn parse(key: &str) -> Result<DirectiveKey, InvalidRecord> {
        let names = names(key, DIRECTIVES_PREFIX, 1, 2)?;
        let mut names = names.into_iter();
        Ok(DirectiveKey {
            zone: names.next().ok_or(InvalidRecord::RecordKey)?,
            service: names.next(),
        })
    }

    /// The store key.
    pub fn store_key(&self) -> String {
        let service = self.service.iter().map(|service| format!("/{service}"));
        format!(
            "{DIRECTIVES_PREFIX}{}{}",
            self.zone,
            service.collect::<String>()
        )
    }
}

/// A directive of an operator for a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectiveRecord {
    #[serde(rename = "intent")]
    pub directive: ZoneDirective,
    /// An explanation for operators.
    #[serde(default)]
    pub reason: String,
}

impl DirectiveRecord {
    /// Reads the value of a store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::Record`] if the value is not such JSON.
    pub fn parse(value: &[u8]) -> Result<DirectiveRecord, InvalidRecord> {
        serde_json::from_slice(value).map_err(|error| InvalidRecord::Record(error.to_string()))
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of strings always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The service and zone of a standing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StandingKey {
    pub service: String,
    pub zone: String,
}

impl StandingKey {
    /// Reads a store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::RecordKey`] if it is not the key of a standing.
    pub fn parse(key: &str) -> Result<StandingKey, InvalidRecord> {
        let mut names = names(key, STANDINGS_PREFIX, 2, 2)?.into_iter();
        match (names.next(), names.next()) {
            (Some(service), Some(zone)) => Ok(StandingKey { service, zone }),
            _ => Err(InvalidRecord::RecordKey),
        }
    }

    /// The store key.
    pub fn store_key(&self) -> String {
        format!("{STANDINGS_PREFIX}{}/{}", self.service, self.zone)
    }
}

/// [`ZoneStanding`] as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingRecord {
    pub phase: PhaseName,
    /// While it is on a ramp: the position in the ramp, from 0.
    #[serde(default)]
    pub step: u8,
    #[serde(default)]
    pub flaps: u8,
    #[serde(default)]
    pub load_step: u8,
}

/// [`Phase`] by name; the step stands in a field of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseName {
    In,
    Out,
    Returning,
}

impl StandingRecord {
    /// Reads the value of a store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::Record`] if the value is not such JSON.
    pub fn parse(value: &[u8]) -> Result<ZoneStanding, InvalidRecord> {
        let record: StandingRecord = serde_json::from_slice(value)
            .map_err(|error| InvalidRecord::Record(error.to_string()))?;
        Ok(ZoneStanding {
            phase: match record.phase {
                PhaseName::In => Phase::In,
                PhaseName::Out => Phase::Out,
                PhaseName::Returning => Phase::Returning { step: record.step },
            },
            flaps: record.flaps,
            load_step: record.load_step.min(standing::LOAD_STEPS),
        })
    }

    /// The value to store.
    pub fn to_json(standing: ZoneStanding) -> Vec<u8> {
        let (phase, step) = match standing.phase {
            Phase::In => (PhaseName::In, 0),
            Phase::Out => (PhaseName::Out, 0),
            Phase::Returning { step } => (PhaseName::Returning, step),
        };
        let record = StandingRecord {
            phase,
            step,
            flaps: standing.flaps,
            load_step: standing.load_step,
        };
        // A struct of numbers and names always serialises.
        serde_json::to_vec(&record).unwrap_or_default()
    }
}

/// The names after `prefix`, at least `min` and at most `max` of them.
fn names(key: &str, prefix: &str, min: usize, max: usize) -> Result<Vec<String>, InvalidRecord> {
    let rest = key.strip_prefix(prefix).ok_or(InvalidRecord::RecordKey)?;
    let names: Vec<&str> = rest.split('/').take(max + 1).collect();
    let good = (min..=max).contains(&names.len()) && names.iter().all(|n| check_name(n).is_ok());
    match good {
        true => Ok(names.into_iter().map(str::to_owned).collect()),
        false => Err(InvalidRecord::RecordKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_as_they_went() {
        for service in [None, Some("orders".to_owned())] {
            let zone = "shanghai-a".to_owned();
            let key = DirectiveKey { zone, service };
            assert_eq!(DirectiveKey::parse(&key.store_key()), Ok(key));
        }
        for (key, good) in [
            ("orders/sh-a", true),
            ("orders", false),
            ("orders/sh-a/x", false),
            ("orders/", false),
            ("Orders/sh-a", false),
        ] {
            let key = format!("{STANDINGS_PREFIX}{key}");
            let parsed = StandingKey::parse(&key);
            assert_eq!(parsed.is_ok(), good, "{key}");
            if let Ok(parsed) = parsed {
                assert_eq!(parsed.store_key(), key);
            }
        }
        assert_eq!(DirectiveKey::parse("/other"), Err(InvalidRecord::RecordKey));
    }

    #[test]
    fn records_come_back_as_they_went_and_bad_ones_are_refused() {
        for phase in [Phase::In, Phase::Out, Phase::Returning { step: 2 }] {
            let standing = ZoneStanding {
                phase,
                flaps: 3,
                load_step: 4,
            };
            let json = StandingRecord::to_json(standing);
            assert_eq!(StandingRecord::parse(&json), Ok(standing));
        }
        let wild = br#"{"phase": "in", "load_step": 200, "future": 1}"#;
        let read = StandingRecord::parse(wild).expect("unknown fields are for newer versions");
        assert_eq!(read.load_step, standing::LOAD_STEPS);
        for bad in [&b""[..], b"[]", br#"{"phase": "up"}"#, b"\xff"] {
            assert!(StandingRecord::parse(bad).is_err());
            assert!(DirectiveRecord::parse(bad).is_err());
        }
        let drain =
            DirectiveRecord::parse(br#"{"intent": "drain"}"#).expect("a reason is not needed");
        assert_eq!(DirectiveRecord::parse(&drain.to_json()), Ok(drain));
    }
}
