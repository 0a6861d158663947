//! The record of the terms that all replicas have agreed on: [`policy::fence::agreement`] explains
//! them.
//!
//! `/tidegate/v1/config/terms` -> [`TermsRecord`]. Spans are in milliseconds.

use std::{collections::BTreeMap, sync::Arc};

use policy::{
    KeySource,
    fence::{Agreed, Agreement, Layout, Name, Terms},
    topology::check_name,
};
use serde::{Deserialize, Serialize};

use crate::record::InvalidRecord;

/// The key of the record.
pub const TERMS_KEY: &str = "/tidegate/v1/config/terms";

/// The entry in [`AgreedRecord::keys`] of a service without a `cell_key`.
const NO_KEY: &str = "none";

/// [`Agreement`] as JSON. An unknown field may change the meaning of the others, and would be lost
/// with the next change of the record. So a record with an unknown field is rejected, and no
/// replica acts by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermsRecord {
    pub current: AgreedRecord,
    /// The target of the change under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<AgreedRecord>,
    /// A digest of all changes that were begun or ended, in hexadecimal digits; none before the
    /// first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<String>,
    /// [`Agreement::drains_said`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drains_said: bool,
}

/// [`Agreed`] as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgreedRecord {
    pub session_ttl_ms: u64,
    pub grant_ttl_ms: u64,
    pub write_drain_ms: u64,
    pub drift_permille: u16,
    /// Ordered by their shards.
    pub cells: Vec<CellShards>,
    /// By service: `header:NAME`, `cookie:NAME`, `path_segment:NUMBER` or `none`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
}

/// The number of shards of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellShards {
    pub name: String,
    pub shards: u32,
}

impl From<&Agreement> for TermsRecord {
    fn from(agreement: &Agreement) -> Self {
        TermsRecord {
            current: AgreedRecord::from(&agreement.current),
            next: agreement.next.as_ref().map(AgreedRecord::from),
            history: (agreement.history != 0).then(|| format!("{:016x}", agreement.history)),
            drains_said: agreement.drains_said,
        }
    }
}

impl From<&Agreed> for AgreedRecord {
    fn from(agreed: &Agreed) -> Self {
        let Layout { cells, keys } = &agreed.layout;
        AgreedRecord {
            session_ttl_ms: agreed.session_ttl / 1_000,
            grant_ttl_ms: agreed.grant_ttl / 1_000,
            write_drain_ms: agreed.write_drain / 1_000,
            drift_permille: agreed.drift_permille,
            cells: (cells.iter())
                .map(|(name, shards)| CellShards {
                    name: name.to_string(),
                    shards: *shards,
                })
                .collect(),
            keys: (keys.iter())
                .map(|(service, key)| (service.to_string(), key.to_string()))
                .collect(),
        }
    }
}

impl TermsRecord {
    /// Reads the value of the store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::Record`] if the value is not such JSON, or its terms are not valid.
    pub fn parse(value: &[u8]) -> Result<Agreement, InvalidRecord> {
        let record: TermsRecord = serde_json::from_slice(value)
            .map_err(|error| InvalidRecord::Record(error.to_string()))?;
        Ok(Agreement {
            current: record.current.read()?,
            next: record.next.map(|next| next.read()).transpose()?,
            history: match record.history {
                Some(digits) => u64::from_str_radix(&digits, 16)
                    .map_err(|_| InvalidRecord::Record(format!("history {digits:?}")))?,
                None => 0,
            },
            drains_said: record.drains_said,
        })
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and numbers always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl AgreedRecord {
    /// Checks the record, and converts it.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::Record`] if its terms, or a name or key in it, are not valid.
    pub fn read(self) -> Result<Agreed, InvalidRecord> {
        let wrong = |what: String| InvalidRecord::Record(what);
        let us = |ms: u64| ms.saturating_mul(1_000);
        let agreed = Agreed {
            session_ttl: us(self.session_ttl_ms),
            grant_ttl: us(self.grant_ttl_ms),
            write_drain: us(self.write_drain_ms),
            drift_permille: self.drift_permille,
            layout: Layout {
                cells: (self.cells.iter())
                    .map(|cell| (Name::from(cell.name.as_str()), cell.shards))
                    .collect(),
                keys: (self.keys.iter())
                    .map(|(service, key)| (Arc::from(service.as_str()), Arc::from(key.as_str())))
                    .collect(),
            },
        };
        Terms::new(
            agreed.session_ttl,
            agreed.grant_ttl,
            agreed.write_drain,
            0,
            agreed.drift_permille,
        )
        .map_err(|error| wrong(error.to_string()))?;
        for cell in &self.cells {
            let named = check_name(&cell.name).is_ok();
            if !named || cell.shards == 0 {
                return Err(wrong(format!("cell {:?}", cell.name)));
            }
        }
        if self.cells.is_empty() {
            return Err(wrong("no cell".to_owned()));
        }
        for (service, key) in &self.keys {
            parse_key(key).map_err(|()| wrong(format!("the key of {service:?}: {key:?}")))?;
        }
        Ok(agreed)
    }
}

/// The text of a service's `cell_key`.
pub fn key_text(key: Option<&KeySource>) -> Name {
    Name::from(match key {
        None => NO_KEY.to_owned(),
        Some(KeySource::Header(name)) => format!("header:{name}"),
        Some(KeySource::Cookie(name)) => format!("cookie:{name}"),
        Some(KeySource::PathSegment(index)) => format!("path_segment:{index}"),
    })
}

/// Reads the text of a key source.
///
/// # Errors
///
/// `()` if the text is not a key source.
#[allow(
    clippy::result_unit_err,
    reason = "there is one way in which a text is none"
)]
pub fn parse_key(text: &str) -> Result<Option<KeySource>, ()> {
    if text == NO_KEY {
        return Ok(None);
    }
    let (kind, of) = text.split_once(':').ok_or(())?;
    let named = || match of.is_empty() {
        true => Err(()),
        false => Ok(of.to_owned()),
    };
    Ok(Some(match kind {
        "header" => KeySource::Header(named()?),
        "cookie" => KeySource::Cookie(named()?),
        "path_segment" => KeySource::PathSegment(of.parse().map_err(|_| ())?),
        _ => return Err(()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> TermsRecord {
        let current = AgreedRecord {
            session_ttl_ms: 3_000,
            grant_ttl_ms: 1_500,
            write_drain_ms: 1_000,
            drift_permille: 100,
            cells: vec![
                CellShards {
                    name: "one".into(),
                    shards: 512,
                },
                CellShards {
                    name: "two".into(),
                    shards: 512,
                },
            ],
            keys: [("orders", "none"), ("users", "path_segment:1")]
                .map(|(service, key)| (service.to_owned(), key.to_owned()))
                .into(),
        };
        let next = AgreedRecord {
            session_ttl_ms: 10_000,
            ..current.clone()
        };
        TermsRecord {
            current,
            next: Some(next),
            history: Some("00c0ffee00c0ffee".into()),
            drains_said: true,
        }
    }

    #[test]
    fn terms_come_back_as_they_went_and_bad_ones_are_refused() {
        let record = record();
        let agreement = TermsRecord::parse(&record.to_json()).unwrap();
        assert_eq!(agreement.current.session_ttl, 3_000_000);
        assert_eq!(TermsRecord::from(&agreement), record);
        let json = String::from_utf8(record.to_json()).unwrap();
        for (from, to) in [
            ("3000", "0"),
            ("1500", "9000"),
            ("\"two\"", "\"T W O\""),
            ("512", "0"),
            ("path_segment:1", "path_segment:x"),
            ("path_segment:1", "header:"),
            ("path_segment:1", "query:q"),
            ("\"drift_permille\":100", "\"drift_permille\":1000"),
            ("00c0ffee", "coffee"),
            // A field of a later version.
            ("{\"current\"", "{\"later\":1,\"current\""),
            ("{\"name\"", "{\"later\":1,\"name\""),
            ("{\"session_ttl_ms\"", "{\"later\":1,\"session_ttl_ms\""),
        ] {
            let bad = json.replacen(from, to, 1);
            assert_ne!(bad, json, "{from}");
            assert!(TermsRecord::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(TermsRecord::parse(b"").is_err());
    }
}
