//! How many connections may be open, in all and of one client.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::net::access::Identity;

/// How many handshakes are made at once. Each takes tens of kilobytes, and computing time.
const HANDSHAKES_MAX: usize = 512;
/// How many of them are one address's, so that none that never ends them holds up all others.
const HANDSHAKES_OF_ADDRESS_MAX: usize = HANDSHAKES_MAX / 2;

/// How many connections a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub connections: usize,
    /// Of one address (with IPv6: one network of 64 bits), and with certificates of the same names. Thousands of proxies may stand
    /// behind one address or share a name.
    pub per_client: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 20_000,
            per_client: 10_000,
        }
    }
}

/// Why there is no place for a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("{max} connections are open, which are all that `listen.limits.connections` permits")]
    Total { max: usize },
    #[error(
        "{max} connections of this client are open, which are all that `listen.limits.per_client` permits"
    )]
    Client { max: usize },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Client {
    Address(IpAddr),
    Identity(Arc<Identity>),
}

impl Client {
    /// A client with one IPv6 address has as many as it likes.
    fn at(address: IpAddr) -> Client {
        Client::Address(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            v4 => v4,
        })
    }
}

/// Counts connections. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Limits,
    handshakes: Semaphore,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    /// Those that have connections.
    clients: HashMap<Client, Count>,
}

struct Count {
    connections: usize,
    handshakes: Arc<Semaphore>,
}

impl Admission {
    pub fn new(limits: Limits) -> Admission {
        Admission {
            shared: Arc::new(Shared {
                limits,
                handshakes: Semaphore::new(HANDSHAKES_MAX),
                counts: Mutex::default(),
            }),
        }
    }

    /// Takes a place for a connection; it is free again when the place is dropped.
    pub fn enter(&self, address: IpAddr) -> Result<ConnectionPermit, Full> {
        let max = self.shared.limits.connections;
        let mut counts = self.shared.counts();
        if counts.total >= max {
            return Err(Full::Total { max });
        }
        let client = Client::at(address);
        let handshakes = counts.take(&client, self.shared.limits.per_client)?;
        counts.total += 1;
        drop(counts);
        Ok(ConnectionPermit {
            shared: Arc::clone(&self.shared),
            address: client,
            identity: None,
            handshakes,
        })
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.shared.counts().total
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Every change is complete when the lock is given back: a panic elsewhere cannot have left it half done.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn take(&mut self, client: &Client, max: usize) -> Result<Arc<Semaphore>, Full> {
        let count = self.clients.entry(client.clone()).or_insert_with(|| Count {
            connections: 0,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_OF_ADDRESS_MAX)),
        });
        if count.connections >= max {
            return Err(Full::Client { max });
        }
        count.connections += 1;
        Ok(Arc::clone(&count.handshakes))
    }

    fn give_back(&mut self, client: &Client) {
        if let Some(count) = self.clients.get_mut(client) {
            count.connections -= 1;
            if count.connections == 0 {
                self.clients.remove(client);
            }
        }
    }
}

/// A connection's place.
pub struct ConnectionPermit {
    shared: Arc<Shared>,
    address: Client,
    identity: Option<Client>,
    handshakes: Arc<Semaphore>,
}

/// A turn for a handshake; it is over when this is dropped.
pub struct HandshakePermit<'p> {
    _permits: [Option<SemaphorePermit<'p>>; 2],
}

impl ConnectionPermit {
    /// Waits for a turn: first among those of the address, so that they do not hold up others.
    pub async fn turn(&self) -> HandshakePermit<'_> {
        // They fail only when closed, and they never are.
        let of_address = self.handshakes.acquire().await.ok();
        let of_all = self.shared.handshakes.acquire().await.ok();
        HandshakePermit {
            _permits: [of_address, of_all],
        }
    }

    /// Counts the connection as this client's, too.
    pub fn identify(&mut self, identity: &Arc<Identity>) -> Result<(), Full> {
        debug_assert!(self.identity.is_none(), "a client has one identity");
        let client = Client::Identity(Arc::clone(identity));
        let max = self.shared.limits.per_client;
        self.shared.counts().take(&client, max)?;
        self.identity = Some(client);
        Ok(())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut counts = self.shared.counts();
        counts.total -= 1;
        counts.give_back(&self.address);
        if let Some(identity) = &self.identity {
            counts.give_back(identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize, per_client: usize) -> Admission {
        Admission::new(Limits {
            connections,
            per_client,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn named(name: &str) -> Arc<Identity> {
        Arc::new(Identity {
            dns: vec![name.to_owned()],
            ..Identity::default()
        })
    }

    #[test]
    fn one_address_takes_no_more_than_its_part_and_all_no_more_than_there_is() {
        let admission = admission(3, 2);
        let first = admission.enter(ip("10.0.0.1")).unwrap();
        let _second = admission.enter(ip("::ffff:10.0.0.1")).unwrap();
        let third = admission.enter(ip("10.0.0.1")).err();
        assert_eq!(third, Some(Full::Client { max: 2 }));
        let _other = admission.enter(ip("10.0.0.2")).unwrap();
        let fourth = admission.enter(ip("10.0.0.3")).err();
        assert_eq!(fourth, Some(Full::Total { max: 3 }));
        drop(first);
        assert!(admission.enter(ip("10.0.0.1")).is_ok());
        assert_eq!(admission.taken(), 2);
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let admission = admission(9, 1);
        let _first = admission.enter(ip("2001:db8:1:2::1")).unwrap();
        assert!(admission.enter(ip("2001:db8:1:2:ffff::9")).is_err());
        assert!(admission.enter(ip("2001:db8:1:3::1")).is_ok());
    }

    #[test]
    fn one_name_takes_no_more_than_its_part_wherever_it_comes_from() {
        let admission = admission(9, 1);
        let mut first = admission.enter(ip("10.0.0.1")).unwrap();
        first.identify(&named("a")).unwrap();
        let mut second = admission.enter(ip("10.0.0.2")).unwrap();
        let refused = second.identify(&named("a"));
        assert_eq!(refused, Err(Full::Client { max: 1 }));
        drop(second);
        drop(first);
        assert!(admission.shared.counts().clients.is_empty());
        let mut third = admission.enter(ip("10.0.0.2")).unwrap();
        assert_eq!(third.identify(&named("a")), Ok(()));
    }

    #[tokio::test]
    async fn handshakes_of_one_address_hold_up_no_other() {
        use futures::FutureExt;
        use tokio::task::unconstrained;
        let admission = admission(10_000, 10_000);
        let place = |address| admission.enter(ip(address)).unwrap();
        let slow: Vec<_> = (0..HANDSHAKES_OF_ADDRESS_MAX + 1)
            .map(|_| place("10.0.0.1"))
            .collect();
        let (last, slow) = slow.split_last().unwrap();
        let mut turns = Vec::new();
        for place in slow {
            turns.push(place.turn().await);
        }
        assert!(unconstrained(last.turn()).now_or_never().is_none());
        assert!(
            unconstrained(place("10.0.0.2").turn())
                .now_or_never()
                .is_some()
        );
        turns.pop();
        assert!(unconstrained(last.turn()).now_or_never().is_some());
    }
}
