//! Virtual hosts in the pieces in which they change.
//!
//! Services may share a host, thousands of them where all have paths on `*`. When one has new plans its own routes are encoded
//! anew; the others' bytes are shared.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::route::v3::{Route, VirtualHost};
use policy::{Rules, Service, ServiceId};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, message},
};

use crate::resource::Piece;

/// The virtual hosts of one viewing zone, by host.
pub type VirtualHosts = BTreeMap<String, Host>;

/// A virtual host, encoded as an entry of `RouteConfiguration.virtual_hosts`.
#[derive(Clone, Debug)]
pub struct Host {
    /// The fields before the routes.
    before: Vec<u8>,
    /// The entry's tag and length, and these fields.
    head: Piece,
    /// What became of each of the rules' routes, in the order in which they are tried.
    routes: Vec<Piece>,
    /// The fields behind the routes, if there are any.
    tail: Option<Piece>,
}

/// The numbers of the fields in `envoy/config/route/v3/route.proto` and `route_components.proto`.
mod field {
    /// Of `RouteConfiguration`.
    pub(super) const VIRTUAL_HOSTS: u32 = 2;
    /// Of `VirtualHost`.
    pub(super) const ROUTES: u32 = 3;
}

impl Host {
    fn new(around: Around, routes: Vec<Piece>) -> Host {
        let tail = around.behind.encode_to_vec();
        let mut host = Host {
            before: around.before.encode_to_vec(),
            head: Piece::of(Vec::new()),
            routes,
            tail: (!tail.is_empty()).then(|| Piece::of(tail)),
        };
        host.begin();
        host
    }

    /// Makes the head that belongs before the routes.
    fn begin(&mut self) {
        let behind = self.behind().map(|piece| piece.bytes.len());
        let len = self.before.len() + behind.sum::<usize>();
        let mut head = Vec::new();
        encode_key(field::VIRTUAL_HOSTS, WireType::LengthDelimited, &mut head);
        encode_varint(len as u64, &mut head);
        head.extend_from_slice(&self.before);
        self.head = Piece::of(head);
    }

    fn behind(&self) -> impl Iterator<Item = &Piece> + Clone {
        self.routes.iter().chain(&self.tail)
    }

    /// The entry.
    pub fn entry(&self) -> impl Iterator<Item = &Piece> + Clone {
        [&self.head].into_iter().chain(self.behind())
    }

    /// The message in the entry: its first piece, and those behind.
    pub fn message(&self) -> (Piece, impl Iterator<Item = &Piece> + Clone) {
        (self.head.message(), self.behind())
    }
}

/// What stands around the routes of a virtual host.
pub(super) struct Around {
    pub(super) before: VirtualHost,
    pub(super) behind: VirtualHost,
}

/// How a virtual host is made of rules.
pub(super) trait Translation {
    /// All but its routes.
    fn around(&self, host: &str) -> Around;

    /// What becomes of a service's route. It follows from the plans of this service alone.
    fn routes(&self, id: ServiceId, service: &Service, route: &policy::Route) -> Vec<Route>;
}

/// The virtual hosts of all of `rules`.
pub(super) fn of_rules(rules: &Rules, translation: &impl Translation) -> VirtualHosts {
    let hosts = rules.hosts().map(|(host, routes)| {
        let routes =
            routes.map(|(id, service, route)| encode(translation.routes(id, service, route)));
        let around = translation.around(host);
        (host.to_owned(), Host::new(around, routes.collect()))
    });
    hosts.collect()
}

/// Follows new plans of these services; gives the hosts that are others now.
pub(super) fn replan<'h>(
    hosts: &'h mut VirtualHosts,
    rules: &Rules,
    replanned: &[ServiceId],
    translation: &impl Translation,
) -> Vec<(&'h str, &'h Host)> {
    let mut touched = BTreeSet::new();
    for id in replanned {
        for (place, service, route) in rules.placed_routes(*id) {
            let host = hosts.get_mut(&route.host);
            if let Some(slot) = host.and_then(|host| host.routes.get_mut(place)) {
                *slot = encode(translation.routes(*id, service, route));
                touched.insert(route.host.as_str());
            }
        }
    }
    for name in &touched {
        if let Some(host) = hosts.get_mut(*name) {
            host.begin();
        }
    }
    let touched = touched.into_iter();
    touched
        .filter_map(|name| hosts.get_key_value(name))
        .map(|(name, host)| (name.as_str(), host))
        .collect()
}

/// As entries of `VirtualHost.routes`.
fn encode(routes: Vec<Route>) -> Piece {
    let mut bytes = Vec::new();
    message::encode_repeated(field::ROUTES, &routes, &mut bytes);
    bytes.shrink_to_fit();
    Piece::of(bytes)
}
