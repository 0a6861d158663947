//! The port for proxies: gRPC on HTTP/2.
//!
//! There are thousands of discovery streams, and each change goes to all. So they are served on `h2` itself: a connection and
//! all its streams are one task, which writes shared bytes without copying them. With tonic each stream would have tasks of
//! its own, a queue between them, and a buffer in which every response is encoded anew. All other services are tonic's, on the
//! same connections.

mod bridge;
mod connection;
mod frame;
mod grpc;
mod http2;
mod partial_messages;
mod wakers;

use std::sync::Arc;

use tonic::service::Routes;

use crate::{access::Caller, connections::Listener};

pub use frame::Pieces;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use grpc::Messages;
pub(crate) use grpc::PREFIX_BYTES;
pub use grpc::{Incoming, Outgoing};
pub use http2::Gone;
use partial_messages::Budget;

/// A gRPC service whose streams are a part of their connection's task.
pub trait StreamService: Send + Sync + 'static {
    /// One of its methods.
    type Method;

    /// The method at a request's path; none for a path of another service.
    fn method(&self, path: &str) -> Option<Self::Method>;

    /// Serves a stream to its end.
    fn serve(
        &self,
        method: Self::Method,
        caller: Caller,
        requests: Incoming,
        responses: Outgoing,
    ) -> impl Future<Output = ()> + Send + 'static;
}

/// The services of a port.
pub struct Services<S> {
    /// Served on HTTP/2 itself.
    pub streams: S,
    /// Served by tonic.
    pub others: Routes,
    budget: Budget,
}

impl<S: StreamService> Services<S> {
    pub fn new(streams: S, others: Routes) -> Services<S> {
        Services {
            streams,
            others,
            budget: Budget::default(),
        }
    }
}

/// Serves what comes in, until it is dropped. Connections that are open then go on until their clients leave.
pub async fn serve<S: StreamService>(listener: Listener, services: Services<S>) {
    let services = Arc::new(services);
    let serve = move |stream, peer| connection::serve(stream, peer, Arc::clone(&services));
    listener.serve(serve).await;
}

#[cfg(test)]
mod tests;
