//! gRPC on HTTP/2, for thousands of streams that all receive each change.
//!
//! Discovery streams are served on `h2` itself: a connection and all its streams are one task,
//! which writes shared bytes without copying them. With tonic each stream would have its own tasks,
//! a queue between them, and a buffer in which every response is encoded anew. All other services
//! use tonic, on the same connections.
//!
//! Clients are not trusted. The costs of one client are bounded:
//!
//! | of | at most |
//! | --- | --- |
//! | streams of a connection | 100; a connection without a stream ends within a minute |
//! | streams that a client resets | 1,000 in 30 seconds (rapid reset) |
//! | responses under way on a connection | 200 |
//! | a request | 32 MiB; 60 seconds once it has begun |
//! | incomplete requests of all clients | 256 MiB for those below 1 MiB, as much for longer ones; a request that exceeds it is rejected |
//! | a silent client | 10 seconds for HTTP/2 and for the first request, 60 seconds for a sign of life |
//!
//! `transport/tests/frames.rs` lists the known attacks, each with its test.

mod connection;
mod frame;
mod grpc;
mod http2;
mod partial_messages;
mod tonic_services;
mod wakers;

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};
use tonic::service::Routes;

pub use frame::Pieces;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use grpc::Messages;
pub(crate) use grpc::PREFIX_BYTES;
pub use grpc::{Incoming, Outgoing};
pub use http2::Gone;
use partial_messages::Budget;

/// A gRPC service whose streams are a part of their connection's task.
pub trait StreamService: Send + Sync + 'static {
    /// A method of the service.
    type Method;
    /// The other end of a connection. tonic's services find it in the extensions of a request.
    type Peer: Clone + Send + Sync + 'static;

    /// The method at a request's path; none for a path of another service.
    fn method(&self, path: &str) -> Option<Self::Method>;

    /// Serves a stream to its end.
    fn serve(
        &self,
        method: Self::Method,
        peer: Self::Peer,
        requests: Incoming,
        responses: Outgoing,
    ) -> impl Future<Output = ()> + Send + 'static;
}

/// The services of a port.
pub struct Services<S> {
    /// Served on HTTP/2 directly.
    pub streams: S,
    /// Served by tonic.
    pub others: Routes,
    budget: Budget,
    drain: Drain,
}

/// Ends the connections of a server that stops soon, gracefully. Cheap to clone.
///
/// A client opens new streams on a connection that it has, so behind one address (a Kubernetes
/// Service) it would never reach another server while this one lives.
#[derive(Clone, Debug, Default)]
pub struct Drain(watch::Sender<bool>);

impl Drain {
    /// Sends GOAWAY on all connections, and on each new one: their open streams go on, and clients
    /// open further ones elsewhere (RFC 9113, section 6.8).
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    async fn begun(self) {
        // It lives as long as the sender in `self`.
        let _ = self.0.subscribe().wait_for(|begun| *begun).await;
    }
}

impl<S: StreamService> Services<S> {
    /// Serves `streams` and `others`.
    pub fn new(streams: S, others: Routes) -> Services<S> {
        Services {
            streams,
            others,
            budget: Budget::default(),
            drain: Drain::default(),
        }
    }

    /// To end all connections of these services.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }
}

/// Serves a connection to its end. Errors end it, and are logged at level debug.
pub async fn serve<Io, S>(io: Io, peer: S::Peer, services: Arc<Services<S>>)
where
    S: StreamService,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection::serve(io, peer, services).await;
}

/// Accepts plaintext connections, and serves each in its own task, until it is dropped. For a port
/// that strangers reach, accept connections yourself, with TLS and a limit, and [`serve`] them.
///
/// # Errors
///
/// Those of [`TcpListener::accept`], which end it.
pub async fn listen<S>(listener: TcpListener, services: Services<S>) -> io::Result<()>
where
    S: StreamService<Peer = ()>,
{
    let services = Arc::new(services);
    loop {
        let (tcp, _) = listener.accept().await?;
        // Without it small messages are only delayed: that is no reason to reject a client.
        let _ = tcp.set_nodelay(true);
        tokio::spawn(serve(tcp, (), Arc::clone(&services)));
    }
}

#[cfg(test)]
mod tests;
