//! TLS on our ports: each client is asked for a certificate, and the names in it are known from
//! then on.

mod dial;
mod files;
mod follow;
mod identity;
mod stream;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::UnixTime, server::danger::ClientCertVerifier},
};

use crate::{net::access::Caller, wall_clock::unix_ms};

pub use dial::{Connector, Dialer};
use files::Credentials;
pub use files::{TlsError, TlsFiles};
pub(crate) use follow::ENDS_EVERY;
pub use follow::Tls;
pub use identity::UnreadableCertificate;
pub(crate) use identity::{End, Ending};
pub use stream::Stream;

/// How long a client may take for its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that is connected, for the extensions of its requests. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    pub caller: Caller,
}

impl Peer {
    /// The caller of a request with these extensions. Without a peer it is anonymous.
    pub fn of(extensions: &http::Extensions) -> Caller {
        let peer = extensions.get::<Peer>();
        peer.map_or(Caller::Anonymous, |peer| peer.caller.clone())
    }
}

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("no handshake within {HANDSHAKE_TIMEOUT:?}")]
    Late,
    /// No TLS, no certificate where one is required, or none of the configured CA.
    #[error("{0}")]
    Handshake(io::Error),
    #[error(transparent)]
    Certificate(#[from] UnreadableCertificate),
}

/// The ports, by their requirements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// HTTP/2, and never without a certificate.
    Xds,
    /// HTTP/1.1. A client without a certificate is [`Caller::Anonymous`]: probes have none.
    Admin,
}

impl Port {
    pub const fn as_str(self) -> &'static str {
        match self {
            Port::Xds => "xds",
            Port::Admin => "admin",
        }
    }
}

/// Verifies the certificates of clients.
type Verifier = Arc<dyn ClientCertVerifier>;

/// Makes TLS or plain connections of the sockets that a port accepts. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    /// None: plain text.
    tls: Option<(watch::Receiver<Arc<Credentials>>, Port)>,
}

impl Acceptor {
    /// Takes all clients, in plain text.
    pub fn plain() -> Acceptor {
        Acceptor { tls: None }
    }

    /// Makes the handshake, within [`HANDSHAKE_TIMEOUT`].
    pub async fn accept(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
    ) -> Result<(Stream, Peer), AcceptError> {
        let Some((config, own)) = self.config() else {
            let caller = Caller::Plain;
            return Ok((Stream::Plain(tcp), Peer { address, caller }));
        };
        let handshake = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp));
        let tls = handshake.await.map_err(|_| AcceptError::Late)?;
        let tls = tls.map_err(AcceptError::Handshake)?;
        let (_, connection) = tls.get_ref();
        let certificates = connection.peer_certificates().unwrap_or_default();
        let caller = match certificates.split_first() {
            Some((leaf, others)) => {
                let identity = Arc::new(identity::read(leaf)?);
                let now = UnixTime::since_unix_epoch(Duration::from_millis(unix_ms()));
                let is_own = |own: Verifier| own.verify_client_cert(leaf, others, now).is_ok();
                match own.is_none_or(is_own) {
                    true => Caller::Named(identity),
                    false => Caller::Guest(identity),
                }
            }
            None => Caller::Anonymous,
        };
        Ok((Stream::Tls(Box::new(tls)), Peer { address, caller }))
    }

    /// None for plain text. With guests' certificates also the verifier of our own.
    fn config(&self) -> Option<(Arc<ServerConfig>, Option<Verifier>)> {
        let (credentials, port) = self.tls.as_ref()?;
        let credentials = credentials.borrow();
        Some(match port {
            Port::Xds => (Arc::clone(&credentials.xds), credentials.own.clone()),
            Port::Admin => (Arc::clone(&credentials.admin), None),
        })
    }
}
