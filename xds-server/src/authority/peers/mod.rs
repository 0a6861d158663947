//! How replicas hear each other: beats of sessions and their acknowledgements, directly between
//! processes.
//!
//! `policy::fence::round` gives them their meaning. This module may lose, delay and repeat them.
//! The store's session records say where the others are, and have a secret for each incarnation,
//! with which both ends of a stream prove their sessions, and every message (`proof`). `calls`
//! opens a stream to each other session, `service` answers those of others. `trouble` reports
//! faults of streams.

mod calls;
mod proof;
mod service;
#[cfg(test)]
mod tests;
mod trouble;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use policy::fence::SessionId;
use registry::authority::{PeerRecord, Secret};
use tokio::sync::{mpsc, watch};
use tonic::Status;

pub use proof::draw_secret;
pub use service::{PeersService, service};

use self::trouble::Trouble;
use crate::{metrics::Metrics, net::tls::Dialer};

/// Messages of others that may wait for the engine.
const MESSAGES_MAX: usize = 1_024;
/// The longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// The longest that the other side may take to prove its session.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// From one session to another. It may be lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    pub from: SessionId,
    pub to: SessionId,
    pub says: Says,
}

/// See [`policy::fence::Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Says {
    Beat(u64),
    Heard(u64),
}

/// The sessions that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// Those that this process speaks for.
    pub own: BTreeMap<SessionId, Secret>,
    /// Those of other processes that can be reached.
    pub others: BTreeMap<SessionId, PeerRecord>,
}

/// How messages leave this process.
pub trait Post: Send + Sync + 'static {
    /// Sends a message, or loses it. Does not wait.
    fn send(&self, message: Message);

    /// From now on these are the sessions.
    fn follow(&self, roster: Roster);
}

/// The engine's side of its peers.
pub struct Peers {
    pub post: Arc<dyn Post>,
    pub messages: mpsc::Receiver<Message>,
    /// Where others reach this process; none where they do not.
    pub reach: Option<Reach>,
    /// A secret that cannot be guessed.
    pub secret: Box<dyn FnMut() -> Secret + Send>,
}

/// Where a process is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `host:port`.
    pub address: String,
    /// The name that its certificate has.
    pub server_name: String,
}

impl Reach {
    /// The address by which others reach the listener on `bound`: at `advertise`, else there; at
    /// the address of the route to `towards` where it listens on every address.
    pub fn of(
        bound: SocketAddr,
        advertise: Option<&str>,
        server_name: Option<&str>,
        towards: &[String],
    ) -> Reach {
        let address = advertise.map_or_else(
            || {
                let mut address = bound;
                if let Some(ip) = towards.iter().find_map(|endpoint| route_to(endpoint))
                    && bound.ip().is_unspecified()
                {
                    address.set_ip(ip);
                }
                address.to_string()
            },
            str::to_owned,
        );
        let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        Reach {
            server_name: server_name.map_or(host, str::to_owned),
            address,
        }
    }
}

/// The own address on the way to `http://host:port`. Sends no packet.
fn route_to(endpoint: &str) -> Option<IpAddr> {
    let host = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, host)| host);
    let host = host.trim_end_matches('/');
    ["0.0.0.0:0", "[::]:0"].into_iter().find_map(|any| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(host).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

/// Loses everything: for a process that is the only one.
struct Nobody;

impl Post for Nobody {
    fn send(&self, _: Message) {}

    fn follow(&self, _: Roster) {}
}

impl Peers {
    /// For a process that is the only one.
    pub fn none() -> Peers {
        Peers {
            post: Arc::new(Nobody),
            messages: mpsc::channel(1).1,
            reach: None,
            secret: Box::new(draw_secret),
        }
    }

    /// Peers over the network, and the address by which others reach them.
    pub fn start(reach: Reach, dialer: Dialer, metrics: Metrics) -> (Peers, Network) {
        let (received, messages) = mpsc::channel(MESSAGES_MAX);
        let network = Network {
            roster: watch::Sender::new(Arc::default()),
            calls: Links::default(),
            answers: Links::default(),
            received,
            trouble: Trouble::new(metrics),
        };
        tokio::spawn(calls::run(network.clone(), dialer));
        let peers = Peers {
            post: Arc::new(network.clone()),
            messages,
            reach: Some(reach),
            secret: Box::new(draw_secret),
        };
        (peers, network)
    }
}

/// The streams between this process and others. Copies are the same ones.
#[derive(Clone)]
pub struct Network {
    roster: watch::Sender<Arc<Roster>>,
    /// On which beats go out.
    calls: Links,
    /// On which the beats of others are acknowledged.
    answers: Links,
    received: mpsc::Sender<Message>,
    trouble: Trouble,
}

impl Network {
    /// A network that leads nowhere, for a process that is the only one.
    pub fn none() -> Network {
        Network {
            roster: watch::Sender::new(Arc::default()),
            calls: Links::default(),
            answers: Links::default(),
            received: mpsc::channel(1).0,
            trouble: Trouble::new(Metrics::default()),
        }
    }

    /// Hands a message to the engine. While that is busy the stream waits, so that the newest
    /// message is not the one that is lost.
    async fn receive(&self, message: Message) -> Result<(), Status> {
        let received = self.received.send(message).await;
        received.map_err(|_| Status::unavailable("this process is ending"))
    }
}

impl Post for Network {
    fn send(&self, message: Message) {
        let Message { from, to, says } = message;
        match says {
            Says::Beat(round) => self.calls.send(&(from, to), round),
            Says::Heard(round) => self.answers.send(&(to, from), round),
        }
    }

    fn follow(&self, roster: Roster) {
        self.roster.send_if_modified(|now| {
            let changed = **now != roster;
            if changed {
                *now = Arc::new(roster);
            }
            changed
        });
    }
}

/// The caller and the called.
type Pair = (SessionId, SessionId);

/// Open streams, and for each the newest round that is to go out on it: a round says all that those
/// before it said, so on a slow stream the newest takes the place of one that waits.
#[derive(Clone, Default)]
struct Links(Arc<Mutex<BTreeMap<Pair, watch::Sender<u64>>>>);

impl Links {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Pair, watch::Sender<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, pair: &Pair, round: u64) {
        if let Some(link) = self.all().get(pair) {
            link.send_replace(round);
        }
    }

    /// Opens a stream in place of an older one, which ends by that.
    fn open(&self, pair: Pair) -> Open {
        let (link, rounds) = watch::channel(0);
        self.all().insert(pair.clone(), link);
        Open {
            links: self.clone(),
            pair,
            rounds,
        }
    }
}

/// An open stream; closed when it is dropped.
struct Open {
    links: Links,
    pair: Pair,
    rounds: watch::Receiver<u64>,
}

impl Open {
    /// Waits for room on the stream, and then for a round: the newest that was sent by then. An
    /// error where the stream is to end.
    async fn next<'o, T>(
        &mut self,
        out: &'o mpsc::Sender<T>,
    ) -> Result<(mpsc::Permit<'o, T>, u64), Status> {
        let room = out.reserve().await;
        let room = room.map_err(|_| Status::cancelled("the other side is gone"))?;
        let sent = self.rounds.changed().await;
        sent.map_err(|_| Status::aborted("another stream was opened"))?;
        Ok((room, *self.rounds.borrow_and_update()))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut all = self.links.all();
        // The only sender is there, as long as no other stream was opened in place of this one.
        if self.rounds.has_changed().is_ok() {
            all.remove(&self.pair);
        }
    }
}
