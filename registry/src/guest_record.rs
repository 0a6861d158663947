//! The lists of guests, as they were heard last, under `/tidegate/v1/guests/<zone>/<guest>`.
//!
//! A guest without a policy decides by its lists, so a service is fenced only after the lists that
//! let its writes pass are gone. A guest that is away may come back: its record stays until the same
//! guest comes without lists, or an operator deletes it.

use policy::{Class, ClassRule, Route, RouteMatch, listed::Lists};
use serde::{Deserialize, Serialize};

/// The prefix of the lists of guests.
pub const GUESTS_PREFIX: &str = "/tidegate/v1/guests/";

/// The lists of one guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unfenced: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    classes: Vec<Entry>,
}

/// A route, in the form of a guest's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grpc: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    class: Option<ClassName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reads: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ClassName {
    Read,
    Write,
}

/// A guest: the zone in which it has proven to stand, and its identity, or its node id where it has
/// none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestKey {
    pub zone: String,
    pub guest: String,
}

impl GuestKey {
    /// The key in the store. Bytes of the name that are not letters, digits or `-._~` are escaped as
    /// in a URI (RFC 3986).
    pub fn store_key(&self) -> String {
        let mut key = format!("{GUESTS_PREFIX}{}/", self.zone);
        for byte in self.guest.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    key.push(char::from(byte));
                }
                _ => key.push_str(&format!("%{byte:02X}")),
            }
        }
        key
    }

    /// Reads a key of the store; none if it is not one of a guest.
    pub fn parse(key: &str) -> Option<GuestKey> {
        let (zone, escaped) = key.strip_prefix(GUESTS_PREFIX)?.split_once('/')?;
        let mut bytes = vec![];
        let mut rest = escaped.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            if *first == b'%' {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = after.get(2..)?;
            } else {
                bytes.push(*first);
                rest = after;
            }
        }
        Some(GuestKey {
            zone: zone.to_owned(),
            guest: String::from_utf8(bytes).ok()?,
        })
    }
}

impl GuestRecord {
    pub fn new(lists: &Lists) -> GuestRecord {
        let entries = |routes: &[Route]| routes.iter().map(Entry::of).collect();
        GuestRecord {
            unfenced: entries(&lists.unfenced),
            classes: entries(&lists.classes),
        }
    }

    /// Entries without a path are left out: nobody writes them.
    pub fn lists(&self) -> Lists {
        let routes = |entries: &[Entry]| entries.iter().filter_map(Entry::route).collect();
        Lists {
            unfenced: routes(&self.unfenced),
            classes: routes(&self.classes),
        }
    }

    /// Reads a value of the store; none if it is unreadable.
    pub fn read(value: &[u8]) -> Option<GuestRecord> {
        serde_json::from_slice(value).ok()
    }

    /// The value to store.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Entry {
    fn of(route: &Route) -> Entry {
        let (prefix, grpc) = match &route.matches {
            RouteMatch::Prefix(prefix) => (Some(prefix.clone()), None),
            RouteMatch::Grpc(name) => (None, Some(name.clone())),
        };
        let (class, reads) = match &route.class {
            ClassRule::ByMethod => (None, vec![]),
            ClassRule::Always(Class::Read) => (Some(ClassName::Read), vec![]),
            ClassRule::Always(Class::Write) => (Some(ClassName::Write), vec![]),
            ClassRule::GrpcReads(reads) => (None, reads.clone()),
        };
        Entry {
            host: route.host.clone(),
            prefix,
            grpc,
            class,
            reads,
        }
    }

    fn route(&self) -> Option<Route> {
        let matches = match (&self.prefix, &self.grpc) {
            (Some(prefix), _) => RouteMatch::Prefix(prefix.clone()),
            (None, Some(name)) => RouteMatch::Grpc(name.clone()),
            (None, None) => return None,
        };
        let class = match (self.class, self.reads.is_empty()) {
            (Some(ClassName::Read), _) => ClassRule::Always(Class::Read),
            (Some(ClassName::Write), _) => ClassRule::Always(Class::Write),
            (None, true) => ClassRule::ByMethod,
            (None, false) => ClassRule::GrpcReads(self.reads.clone()),
        };
        Some(Route {
            host: self.host.clone(),
            matches,
            class,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_lists() {
        let route = |matches, class| Route {
            host: "*".to_owned(),
            matches,
            class,
        };
        let prefix = |text: &str| RouteMatch::Prefix(text.to_owned());
        let lists = Lists {
            unfenced: vec![route(prefix("/metrics"), ClassRule::ByMethod)],
            classes: vec![
                route(prefix("/search"), ClassRule::Always(Class::Read)),
                route(prefix("/buy"), ClassRule::Always(Class::Write)),
                route(
                    RouteMatch::Grpc("shop.Orders".to_owned()),
                    ClassRule::GrpcReads(vec!["Get".to_owned()]),
                ),
            ],
        };
        let json = GuestRecord::new(&lists).to_json();
        assert_eq!(GuestRecord::read(&json).unwrap().lists(), lists);
        assert_eq!(GuestRecord::default().to_json(), b"{}");
        for bad in [
            &b""[..],
            b"7",
            br#"{"unfenced": 7}"#,
            br#"{"classes": [7]}"#,
        ] {
            assert_eq!(GuestRecord::read(bad), None);
        }
        let without_path = br#"{"unfenced": [{"host": "*"}]}"#;
        assert!(GuestRecord::read(without_path).unwrap().lists().is_empty());
    }

    #[test]
    fn any_name_fits_into_a_key() {
        for guest in [
            "front",
            "spiffe://shop/ns/a/sa/front",
            "sidecar~10.0.0.1~ä/%2F",
        ] {
            let key = GuestKey {
                zone: "shanghai-a".to_owned(),
                guest: guest.to_owned(),
            };
            let stored = key.store_key();
            let name = stored.rsplit('/').next().unwrap();
            assert!(name.is_ascii(), "{stored}");
            assert_eq!(GuestKey::parse(&stored), Some(key));
        }
        for bad in [
            "",
            "/tidegate/v1/guests/a",
            "/tidegate/v1/guests/a/%",
            "/tidegate/v1/guests/a/%f",
        ] {
            assert_eq!(GuestKey::parse(bad), None, "{bad}");
        }
    }
}
