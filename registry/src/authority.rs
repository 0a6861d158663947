//! The records of write authority. [`policy::fence`] defines their meaning.
//!
//! | key | value |
//! | --- | --- |
//! | `/tidegate/v1/authority/<cell>` | [`AuthorityRecord`] |
//! | `/tidegate/v1/sessions/<zone>/<incarnation>` | [`SessionRecord`] |
//! | `/tidegate/v1/grantors/<cell>/<incarnation>` | [`GrantorRecord`] |
//! | `/tidegate/v1/operations/<id>` | [`OperationRecord`]: the outcome of a move |
//!
//! An incarnation is `<zone>-<16 hexadecimal digits>`.

use policy::{
    fence::{Authority, AuthorityState, Cause, Key, Move, Name, SessionId, Unsettled},
    topology::check_name,
};
use serde::{Deserialize, Serialize};

use crate::{record::InvalidRecord, terms::TERMS_KEY};

/// The authority to write, by cell.
pub const AUTHORITY_PREFIX: &str = "/tidegate/v1/authority/";
/// The live incarnations of the control plane.
pub const SESSIONS_PREFIX: &str = "/tidegate/v1/sessions/";
/// The incarnations that grant.
pub const GRANTORS_PREFIX: &str = "/tidegate/v1/grantors/";
/// The outcomes of moves.
pub const OPERATIONS_PREFIX: &str = "/tidegate/v1/operations/";

/// Represents an unknown past in [`AuthorityRecord::unsettled`].
const UNKNOWN_PAST: &str = "*";

/// The fence counts microseconds.
const US_PER_MS: u64 = 1_000;

pub use policy::fence::EPOCH_MAX;

/// The store key of a key of the fence.
pub fn store_key(key: &Key) -> String {
    match key {
        Key::Authority(cell) => format!("{AUTHORITY_PREFIX}{cell}"),
        Key::Session(id) => format!("{SESSIONS_PREFIX}{}/{}", id.zone, id.incarnation),
        Key::Grantor(cell, id) => format!("{GRANTORS_PREFIX}{cell}/{}", id.incarnation),
        Key::Terms => TERMS_KEY.to_owned(),
    }
}

/// Reads a store key; none if it does not belong to the fence.
///
/// # Errors
///
/// [`InvalidRecord::RecordKey`] if the prefix is known and the rest is not valid.
pub fn parse_key(key: &str) -> Option<Result<Key, InvalidRecord>> {
    if key == TERMS_KEY {
        return Some(Ok(Key::Terms));
    }
    let good = |name: &str| check_name(name).is_ok();
    let parsed = if let Some(cell) = key.strip_prefix(AUTHORITY_PREFIX) {
        good(cell).then(|| Key::Authority(Name::from(cell)))
    } else if let Some(rest) = key.strip_prefix(SESSIONS_PREFIX) {
        let parts = rest.split_once('/');
        let id = parts.and_then(|(zone, name)| Some((zone, session_id(name)?)));
        id.filter(|(zone, id)| **zone == *id.zone)
            .map(|(_, id)| Key::Session(id))
    } else if let Some(rest) = key.strip_prefix(GRANTORS_PREFIX) {
        let parts = rest.split_once('/').filter(|(cell, _)| good(cell));
        parts.and_then(|(cell, name)| Some(Key::Grantor(Name::from(cell), session_id(name)?)))
    } else {
        return None;
    };
    Some(parsed.ok_or(InvalidRecord::RecordKey))
}

/// The incarnation of a zone with this number.
pub fn incarnation(zone: &str, number: u64) -> Name {
    Name::from(format!("{zone}-{number:016x}"))
}

/// Reads the name of an incarnation.
pub fn session_id(incarnation: &str) -> Option<SessionId> {
    let (zone, digits) = incarnation.rsplit_once('-')?;
    let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let good = check_name(zone).is_ok() && digits.len() == 16 && digits.bytes().all(hexadecimal);
    good.then(|| SessionId {
        zone: Name::from(zone),
        incarnation: Name::from(incarnation),
    })
}

/// [`Authority`] as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// The store in which it was written, in hexadecimal. In another store, restored from a backup,
    /// the copy is invalid.
    pub store: String,
    pub epoch: u64,
    pub owners: Vec<String>,
    #[serde(default)]
    pub standby: Vec<String>,
    pub state: StateName,
    /// Set while the cell is fenced.
    #[serde(default, rename = "move", skip_serializing_if = "Option::is_none")]
    pub moving: Option<MoveRecord>,
    /// The incarnations whose grants may still be under way; `*`: any incarnation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsettled: Vec<String>,
    /// For this long after a replica has seen the record, the cell does not move because another
    /// zone serves it better.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hold_ms: u64,
}

/// [`AuthorityState`] by name; the move stands in a field of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateName {
    Active,
    Fencing,
    Settling,
}

/// [`Move`] as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    pub id: String,
    pub to: Vec<String>,
    pub cause: Cause,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub epoch_min: u64,
    /// For how long the new owners keep the cell although another zone serves it better.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hold_ms: u64,
}

impl From<&Authority> for AuthorityRecord {
    fn from(authority: &Authority) -> Self {
        let (state, moving) = match &authority.state {
            AuthorityState::Active => (StateName::Active, None),
            AuthorityState::Settling => (StateName::Settling, None),
            AuthorityState::Fencing(next) => (StateName::Fencing, Some(MoveRecord::from(next))),
        };
        AuthorityRecord {
            store: format!("{:016x}", authority.store),
            epoch: authority.epoch,
            owners: texts(&authority.owners),
            standby: texts(&authority.standby),
            state,
            moving,
            unsettled: match &authority.unsettled {
                Unsettled::Unknown => vec![UNKNOWN_PAST.to_owned()],
                Unsettled::Of(ids) => ids.iter().map(|id| id.incarnation.to_string()).collect(),
            },
            hold_ms: authority.hold / US_PER_MS,
        }
    }
}

impl From<&Move> for MoveRecord {
    fn from(next: &Move) -> Self {
        MoveRecord {
            id: next.id.to_string(),
            to: texts(&next.to),
            cause: next.cause,
            reason: next.reason.to_string(),
            epoch_min: next.epoch_min,
            hold_ms: next.hold / US_PER_MS,
        }
    }
}

impl AuthorityRecord {
    /// Reads the value of a store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::Record`] if the value is not such JSON, or a field is out of range.
    pub fn parse(value: &[u8]) -> Result<Authority, InvalidRecord> {
        let wrong = |what: &str| InvalidRecord::Record(what.to_owned());
        let record: AuthorityRecord = serde_json::from_slice(value)
            .map_err(|error| InvalidRecord::Record(error.to_string()))?;
        if record.epoch > EPOCH_MAX {
            return Err(wrong("epoch: above the maximum"));
        }
        let store = u64::from_str_radix(&record.store, 16).map_err(|_| wrong("store"))?;
        let state = match (record.state, record.moving) {
            (StateName::Active, _) => AuthorityState::Active,
            (StateName::Settling, _) => AuthorityState::Settling,
            (StateName::Fencing, Some(moving)) => AuthorityState::Fencing(Move {
                id: Name::from(moving.id),
                to: names(moving.to)?,
                cause: moving.cause,
                reason: Name::from(moving.reason),
                epoch_min: moving.epoch_min,
                hold: moving.hold_ms.saturating_mul(US_PER_MS),
            }),
            (StateName::Fencing, None) => return Err(wrong("fencing, but no move")),
        };
        let unknown = record.unsettled.iter().any(|id| id == UNKNOWN_PAST);
        let unsettled = match unknown {
            true => Unsettled::Unknown,
            false => {
                let ids = record.unsettled.iter().map(|id| session_id(id));
                let ids: Option<_> = ids.collect();
                Unsettled::Of(ids.ok_or_else(|| wrong("unsettled: not an incarnation"))?)
            }
        };
        Ok(Authority {
            store,
            epoch: record.epoch,
            owners: names(record.owners)?,
            standby: names(record.standby)?,
            state,
            unsettled,
            hold: record.hold_ms.saturating_mul(US_PER_MS),
        })
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// The content of a session's record. The existence of its key alone shows that the session lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// `host:process id`, for operators.
    #[serde(default)]
    pub process: String,
    /// The number of the zone's proxies that were connected to this replica, to hold grants, at the
    /// last put. A change between none and some is put at once. None if the replica does not report
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxies: Option<u32>,
    /// The relation of its configuration to the agreed terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<SessionTerms>,
    /// The address for other replicas; none if they do not, or if the field cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerRecord>,
}

/// A process's view of the agreed terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionTerms {
    /// The revision of the record that it has seen.
    pub revision: u64,
    pub configured: Configured,
}

/// Which of the agreed terms the configuration matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Configured {
    Current,
    Next,
    /// Neither: the replica grants nothing, and takes no step of a move.
    Other,
}

/// A grantor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantorRecord {
    /// The revision of the terms that it registered under; 0: it knows no terms.
    #[serde(default)]
    pub terms: u64,
}

impl GrantorRecord {
    /// Reads the value of a store key. An unreadable record comes from a version without terms.
    pub fn parse(value: &[u8]) -> GrantorRecord {
        serde_json::from_slice(value).unwrap_or_default()
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// How a replica reaches another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerRecord {
    /// `host:port`.
    pub address: String,
    /// The name in its certificate, if it uses TLS.
    pub server_name: String,
    /// Authenticates a stream from this incarnation.
    pub secret: Secret,
}

/// Random bytes that only readers of the store can see.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret([u8; 32]);

impl Secret {
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("(secret)")
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> String {
        secret.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Secret {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Secret, &'static str> {
        let wrong = "secret: not 64 hexadecimal digits";
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong)?;
        }
        Ok(Secret(bytes))
    }
}

impl SessionRecord {
    /// Reads the value of a store key. A session lives even if its record is unreadable: such a
    /// record counts as empty.
    pub fn parse(value: &[u8]) -> SessionRecord {
        serde_json::from_slice(value).unwrap_or_default()
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// The outcome of a move, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    pub cell: String,
    pub from: Vec<String>,
    pub to: Vec<String>,
    pub cause: Cause,
    #[serde(default)]
    pub reason: String,
    /// The epoch of the new owners, once there is one.
    #[serde(default)]
    pub epoch: Option<u64>,
    pub steps: Vec<OperationStep>,
}

/// One step of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStep {
    /// `begun`, `moved`, `settled`, `aborted`.
    pub step: String,
    /// The incarnation that took the step.
    pub by: String,
    /// By the wall clock of its machine.
    pub at_unix_ms: u64,
}

impl OperationRecord {
    /// Reads the value of a store key.
    ///
    /// # Errors
    ///
    /// [`InvalidRecord::Record`] if the value is not such JSON.
    pub fn parse(value: &[u8]) -> Result<OperationRecord, InvalidRecord> {
        serde_json::from_slice(value).map_err(|error| InvalidRecord::Record(error.to_string()))
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// The structs consist of strings and numbers, which always serialise.
fn to_json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

fn is_zero(span: &u64) -> bool {
    *span == 0
}

fn texts(names: &[Name]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn names(texts: Vec<String>) -> Result<Vec<Name>, InvalidRecord> {
    let good = texts.iter().all(|text| check_name(text).is_ok());
    match good {
        true => Ok(texts.into_iter().map(Name::from).collect()),
        false => Err(InvalidRecord::Record("a zone's name".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn id(number: u64) -> SessionId {
        SessionId {
            zone: "sh-a".into(),
            incarnation: incarnation("sh-a", number),
        }
    }

    #[test]
    fn keys_come_back_as_they_went() {
        for key in [
            Key::Authority("main".into()),
            Key::Session(id(7)),
            Key::Grantor("main".into(), id(u64::MAX)),
        ] {
            assert_eq!(parse_key(&store_key(&key)), Some(Ok(key)));
        }
        for bad in [
            "authority/",
            "authority/a/b",
            "sessions/sh-b/sh-a-0000000000000007",
            "sessions/sh-a/sh-a-7",
            "grantors/main/sh-a",
            "grantors/sh-a-0000000000000007",
        ] {
            let key = format!("/tidegate/v1/{bad}");
            assert_eq!(
                parse_key(&key),
                Some(Err(InvalidRecord::RecordKey)),
                "{key}"
            );
        }
        assert_eq!(parse_key("/tidegate/v1/instances/a/b/c"), None);
    }

    #[test]
    fn sessions_come_back_as_they_went_and_never_show_their_secret() {
        let record = SessionRecord {
            process: "host:7".to_owned(),
            proxies: Some(3),
            terms: None,
            peer: Some(PeerRecord {
                address: "10.0.0.1:18000".to_owned(),
                server_name: "tidegate".to_owned(),
                secret: Secret::new([0xa5; 32]),
            }),
        };
        let json = record.to_json();
        assert_eq!(SessionRecord::parse(&json), record);
        assert!(String::from_utf8(json).unwrap().contains(&"a5".repeat(32)));
        assert!(!format!("{record:?}").contains("a5"), "{record:?}");
        let old = SessionRecord::parse(br#"{"process": "host:7"}"#);
        assert_eq!(old.peer, None, "a replica of an earlier version");
        for bad in ["", "a5", &"x".repeat(64), &"ä".repeat(32)] {
            let json =
                format!(r#"{{"peer": {{"address": "", "server_name": "", "secret": "{bad}"}}}}"#);
            let record = SessionRecord::parse(json.as_bytes());
            assert_eq!(record, SessionRecord::default(), "{bad}");
        }
    }

    #[test]
    fn authorities_come_back_as_they_went_and_bad_ones_are_refused() {
        let next = Move {
            id: "main-8".into(),
            to: vec!["sh-b".into()],
            cause: Cause::SessionLost,
            reason: "a fire".into(),
            epoch_min: 3,
            hold: 60_000_000,
        };
        for state in [
            AuthorityState::Active,
            AuthorityState::Settling,
            AuthorityState::Fencing(next),
        ] {
            for unsettled in [
                Unsettled::none(),
                Unsettled::Unknown,
                Unsettled::Of(BTreeSet::from([id(1), id(2)])),
            ] {
                let authority = Authority {
                    store: u64::MAX,
                    epoch: 7,
                    owners: vec!["sh-a".into()],
                    standby: vec!["sh-b".into(), "bj-c".into()],
                    state: state.clone(),
                    unsettled,
                    hold: 600_000_000,
                };
                let json = AuthorityRecord::from(&authority).to_json();
                assert_eq!(AuthorityRecord::parse(&json), Ok(authority));
            }
        }
        for bad in [
            "",
            "[]",
            r#"{"store": "x", "epoch": 1, "owners": [], "state": "active"}"#,
            r#"{"store": "1", "epoch": 1, "owners": [], "state": "fencing"}"#,
            r#"{"store": "1", "epoch": 1, "owners": ["A B"], "state": "active"}"#,
            r#"{"store": "1", "epoch": 1, "owners": [], "state": "active", "unsettled": ["q"]}"#,
        ] {
            assert!(AuthorityRecord::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
