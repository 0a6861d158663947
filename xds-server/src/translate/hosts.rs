//! Virtual hosts in the pieces in which they change.
//!
//! Services may share a host, for example thousands of services with paths on `*`. When one has new
//! plans its own routes are encoded anew; the others' bytes are shared.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3::{Route, VirtualHost};
use policy::{Rules, Service, ServiceId};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, message},
};

use xds::resource::Piece;

/// The virtual hosts of one local zone, by host.
pub type VirtualHosts = BTreeMap<String, Host>;

/// A virtual host, encoded as an entry of `RouteConfiguration.virtual_hosts`.
///
/// The first routes share one piece with the head: most hosts have no others, and the cost of a
/// table is its number of pieces.
#[derive(Clone, Debug)]
pub struct Host {
    /// The fields before the routes.
    before: Vec<u8>,
    /// The entry's tag and length, the fields before the routes, and Envoy's routes for the first
    /// of the rules' routes.
    head: Piece,
    /// The position of the first routes in the head.
    first_at: usize,
    /// Envoy's routes for the rules' other routes, in the order in which they are tried.
    others: Vec<Piece>,
    /// The fields after the routes, if there are any.
    tail: Option<Piece>,
    /// How many bytes follow the head.
    behind_len: usize,
}

/// The numbers of the fields in `envoy/config/route/v3/route.proto` and `route_components.proto`.
mod field {
    /// In `RouteConfiguration`.
    pub(super) const VIRTUAL_HOSTS: u32 = 2;
    /// In `VirtualHost`.
    pub(super) const ROUTES: u32 = 3;
}

impl Host {
    fn new(
        before: &VirtualHost,
        mut routes: impl Iterator<Item = Bytes>,
        tail: Option<&Piece>,
    ) -> Host {
        let first = routes.next().unwrap_or_default();
        let mut host = Host {
            before: before.encode_to_vec(),
            head: Piece::of(Bytes::new()),
            first_at: 0,
            others: routes.map(Piece::of).collect(),
            tail: tail.cloned(),
            behind_len: 0,
        };
        host.behind_len = host.behind().map(|piece| piece.bytes.len()).sum();
        host.begin_with(&first);
        host
    }

    /// Replaces Envoy's routes for one of the rules' routes.
    fn put(&mut self, place: usize, routes: Bytes) {
        let Some(at) = place.checked_sub(1) else {
            self.begin_with(&routes);
            return;
        };
        if let Some(slot) = self.others.get_mut(at) {
            self.behind_len = self.behind_len - slot.bytes.len() + routes.len();
            *slot = Piece::of(routes);
            let first = self.head.bytes.slice(self.first_at..);
            self.begin_with(&first);
        }
    }

    /// Builds the head without sharing it yet: bytes get their reference counter when they are
    /// first shared. So a table that shares all heads finds the counters side by side in memory
    /// when it is rebuilt.
    fn begin_with(&mut self, first: &[u8]) {
        let len = self.before.len() + first.len() + self.behind_len;
        let mut head = Vec::new();
        encode_key(field::VIRTUAL_HOSTS, WireType::LengthDelimited, &mut head);
        encode_varint(len as u64, &mut head);
        head.extend_from_slice(&self.before);
        self.first_at = head.len();
        head.extend_from_slice(first);
        head.shrink_to_fit();
        self.head = Piece::of(head);
    }

    fn behind(&self) -> impl Iterator<Item = &Piece> {
        self.others.iter().chain(&self.tail)
    }

    /// The entry.
    pub fn entry(&self) -> impl Iterator<Item = &Piece> {
        [&self.head].into_iter().chain(self.behind())
    }

    /// The message in the entry: its first piece, and the following ones.
    pub fn message(&self) -> (Piece, impl Iterator<Item = &Piece>) {
        (self.head.message(), self.behind())
    }
}

/// How a virtual host is built from rules.
pub(super) trait Translation {
    /// The fields before its routes.
    fn before(&self, host: &str) -> VirtualHost;

    /// The fields after its routes, the same for all hosts.
    fn behind(&self) -> VirtualHost;

    /// Envoy's routes for a service's route. They depend on the plans of this service only.
    fn routes(&self, id: ServiceId, service: &Service, route: &policy::Route) -> Vec<Route>;
}

/// The virtual hosts of all of `rules`.
pub(super) fn of_rules(rules: &Rules, translation: &impl Translation) -> VirtualHosts {
    let behind = translation.behind().encode_to_vec();
    let tail = (!behind.is_empty()).then(|| Piece::of(behind));
    let hosts = rules.hosts().map(|(host, routes)| {
        let routes =
            routes.map(|(id, service, route)| encode(translation.routes(id, service, route)));
        let before = translation.before(host);
        (host.to_owned(), Host::new(&before, routes, tail.as_ref()))
    });
    hosts.collect()
}

/// Applies new plans of these services; returns the changed hosts.
pub(super) fn replan<'h>(
    hosts: &'h mut VirtualHosts,
    rules: &Rules,
    replanned: &[ServiceId],
    translation: &impl Translation,
) -> Vec<(&'h str, &'h Host)> {
    let mut touched = BTreeSet::new();
    for id in replanned {
        for (place, service, route) in rules.placed_routes(*id) {
            if let Some(host) = hosts.get_mut(&route.host) {
                host.put(place, encode(translation.routes(*id, service, route)));
                touched.insert(route.host.as_str());
            }
        }
    }
    let touched = touched.into_iter();
    touched
        .filter_map(|name| hosts.get_key_value(name))
        .map(|(name, host)| (name.as_str(), host))
        .collect()
}

/// As entries of `VirtualHost.routes`.
fn encode(routes: Vec<Route>) -> Bytes {
    let mut bytes = Vec::new();
    message::encode_repeated(field::ROUTES, &routes, &mut bytes);
    bytes.shrink_to_fit();
    Bytes::from(bytes)
}
