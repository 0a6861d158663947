//! Beats of sessions and their acknowledgements, sent directly between replicas.
//!
//! `policy::fence::round` gives them their meaning. This module may lose, delay and repeat them.
//! The store's session records have the replicas' addresses, and a secret for each incarnation.
//! With these secrets both ends of a stream prove their sessions, and every message (`proof`).
//! `calls` opens a stream to each other session, `service` answers those of others. `trouble`
//! reports faults of streams.

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

/// The most messages of others that may wait for the engine.
const MESSAGES_MAX: usize = 1_024;
/// The longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// The longest that the other side may take to prove its session.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// A message from one session to another. It may be lost.
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

/// The existing sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// The sessions of this process.
    pub own: BTreeMap<SessionId, Secret>,
    /// The reachable sessions of other processes.
    pub others: BTreeMap<SessionId, PeerRecord>,
}

/// The outgoing side of the network.
pub trait Post: Send + Sync + 'static {
    /// Sends a message, or loses it. Does not wait.
    fn send(&self, message: Message);

    /// Replaces the list of sessions.
    fn follow(&self, roster: Roster);
}

/// The engine's side of its peers.
pub struct Peers {
    pub post: Arc<dyn Post>,
    pub messages: mpsc::Receiver<Message>,
    /// The address for other replicas; none if they do not connect.
    pub reach: Option<Reach>,
    /// Draws a secret that cannot be guessed.
    pub secret: Box<dyn FnMut() -> Secret + Send>,
}

/// The address of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `host:port`.
    pub address: String,
    /// The name in its certificate.
    pub server_name: String,
}

impl Reach {
    /// The address at which others reach the listener on `bound`: `advertise` if set, otherwise its
    /// own address. If it listens on every address, the address of the route to `towards`.
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

/// The local address on the route to `http://host:port`. Sends no packet.
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

/// Loses everything: for the only process of a mesh.
struct Nobody;

impl Post for Nobody {
    fn send(&self, _: Message) {}

    fn follow(&self, _: Roster) {}
}

impl Peers {
    /// For the only process of a mesh.
    pub fn none() -> Peers {
        Peers {
            post: Arc::new(Nobody),
            messages: mpsc::channel(1).1,
            reach: None,
            secret: Box::new(draw_secret),
        }
    }

    /// Peers over the network, reachable at `reach`.
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

/// The streams between this process and others. Clones share them.
#[derive(Clone)]
pub struct Network {
    roster: watch::Sender<Arc<Roster>>,
    /// The streams on which beats are sent.
    calls: Links,
    /// The streams on which the beats of others are acknowledged.
    answers: Links,
    received: mpsc::Sender<Message>,
    trouble: Trouble,
}

impl Network {
    /// A network without connections, for the only process of a mesh.
    pub fn none() -> Network {
        Network {
            roster: watch::Sender::new(Arc::default()),
            calls: Links::default(),
            answers: Links::default(),
            received: mpsc::channel(1).0,
            trouble: Trouble::new(Metrics::default()),
        }
    }

    /// Passes a message to the engine. If the engine is busy the stream waits, so that the newest
    /// message is not lost.
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

/// Caller and callee.
type Pair = (SessionId, SessionId);

/// Open streams, each with the newest round to send. A round covers all earlier ones, so on a slow
/// stream the newest replaces a waiting one.
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

    /// Opens a stream; an older one of the same pair ends.
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
    /// Waits for room on the stream, and then for a round: the newest one at that moment. Fails if
    /// the stream has to end.
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
        // The only sender exists, unless another stream was opened in place of this one.
        if self.rounds.has_changed().is_ok() {
            all.remove(&self.pair);
        }
    }
}
