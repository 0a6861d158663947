//! The connections of a port, and their limits: one client that opens connections without end takes
//! nothing away from others.

mod admission;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use crate::{
    log_budget::Budget,
    metrics::{Metrics, PortLabel, PortReasonLabel},
    net::access::Caller,
    net::tls::{AcceptError, Acceptor, HANDSHAKE_TIMEOUT, Peer, Port, Stream},
};

pub use admission::{Admission, ConnectionPermit, Full, Limits};

/// How long to wait when no connection can be taken, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that listens, with its requirements for clients.
pub struct Listener {
    pub tcp: TcpListener,
    pub port: Port,
    pub acceptor: Acceptor,
    pub admission: Admission,
    pub metrics: Metrics,
    pub refusals: Refusals,
}

/// How many refused connections may still be logged, by reason: anybody can have one refused, as often as they like.
#[derive(Default)]
pub struct Refusals(Mutex<Budget<&'static str>>);

impl Refusals {
    /// How many were not logged before this one; none where this one is not to be logged either.
    fn log(&self, reason: &'static str) -> Option<u64> {
        let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        budget.take(reason, Instant::now())
    }
}

/// Why a connection was refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Full(#[from] Full),
    #[error("too many handshakes at once")]
    Busy,
    #[error(transparent)]
    Accept(#[from] AcceptError),
}

impl Refusal {
    const fn reason(&self) -> &'static str {
        match self {
            Refusal::Full(Full::Total { .. }) => "too_many",
            Refusal::Full(Full::Client { .. }) => "too_many_of_client",
            Refusal::Busy => "busy",
            Refusal::Accept(AcceptError::Late) => "handshake_timeout",
            Refusal::Accept(AcceptError::Handshake(_)) => "handshake",
            Refusal::Accept(AcceptError::Certificate(_)) => "certificate",
        }
    }

    /// Whether an operator should see it. Anybody can connect and leave, and health checks do.
    fn is_remarkable(&self) -> bool {
        match self {
            Refusal::Full(_) | Refusal::Busy | Refusal::Accept(AcceptError::Certificate(_)) => true,
            // A fault that rustls finds, as with the certificate.
            Refusal::Accept(AcceptError::Handshake(error)) => {
                error.kind() == io::ErrorKind::InvalidData
            }
            Refusal::Accept(AcceptError::Late) => false,
        }
    }
}

impl Listener {
    /// Plain text and no limits but the defaults.
    pub fn plain(tcp: TcpListener, port: Port) -> Listener {
        Listener {
            tcp,
            port,
            acceptor: Acceptor::plain(),
            admission: Admission::new(Limits::default()),
            metrics: Metrics::default(),
            refusals: Refusals::default(),
        }
    }

    /// Has each connection served in a task of its own, until this is dropped. Connections that are open then go on until their
    /// clients leave.
    pub async fn serve<S, F>(self, serve: S)
    where
        S: Fn(Stream, Peer) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send,
    {
        let (this, serve) = (Arc::new(self), Arc::new(serve));
        loop {
            let (tcp, address) = match this.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Before anything is spent on it.
            let place = match this.admission.enter(address.ip()) {
                Ok(place) => place,
                Err(full) => {
                    this.refused(address, &full.into());
                    continue;
                }
            };
            // It only delays small messages; that it cannot be had is no reason to refuse a client.
            let _ = tcp.set_nodelay(true);
            let (this, serve) = (Arc::clone(&this), Arc::clone(&serve));
            tokio::spawn(async move {
                let mut open = Open::new(place, &this);
                // On the heap: it is over soon, and the task has the size of its largest part for as long as it lasts.
                let begun = Box::pin(this.begin(tcp, address, &mut open.place)).await;
                match begun {
                    Ok((stream, peer)) => serve(stream, peer).await,
                    Err(refusal) => this.refused(address, &refusal),
                }
            });
        }
    }

    async fn begin(
        &self,
        tcp: tokio::net::TcpStream,
        address: std::net::SocketAddr,
        place: &mut ConnectionPermit,
    ) -> Result<(Stream, Peer), Refusal> {
        let turn = timeout(HANDSHAKE_TIMEOUT, place.turn()).await;
        let turn = turn.map_err(|_| Refusal::Busy)?;
        let (stream, peer) = self.acceptor.accept(tcp, address).await?;
        drop(turn);
        if let Caller::Named(identity) | Caller::Guest(identity) = &peer.caller {
            place.identify(identity)?;
        }
        Ok((stream, peer))
    }

    fn refused(&self, address: std::net::SocketAddr, refusal: &Refusal) {
        let (port, reason) = (self.port.as_str(), refusal.reason());
        let label = PortReasonLabel { port, reason };
        self.metrics.connections_refused.get_or_create(&label).inc();
        let remarkable = refusal.is_remarkable();
        match remarkable.then(|| self.refusals.log(reason)).flatten() {
            Some(suppressed) => {
                warn!(%address, port, reason, suppressed, error = %refusal, "connection refused");
            }
            None => debug!(%address, port, reason, error = %refusal, "connection refused"),
        }
    }
}

/// Counts a connection for as long as it is open.
struct Open {
    place: ConnectionPermit,
    metrics: Metrics,
    label: PortLabel,
}

impl Open {
    fn new(place: ConnectionPermit, listener: &Listener) -> Open {
        let port = listener.port.as_str();
        let open = Open {
            place,
            metrics: listener.metrics.clone(),
            label: PortLabel { port },
        };
        open.metrics.connections.get_or_create(&open.label).inc();
        open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.get_or_create(&self.label).dec();
    }
}
