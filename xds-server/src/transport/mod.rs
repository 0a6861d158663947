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

use crate::{ads::service::Ads, connections::Listener};

pub use frame::Pieces;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use grpc::Messages;
pub(crate) use grpc::{Incoming, Outgoing, PREFIX_BYTES};
pub(crate) use http2::Gone;
use partial_messages::Budget;

/// What is served.
pub struct Services {
    pub ads: Ads,
    /// Everything but discovery.
    pub others: Routes,
    budget: Budget,
}

impl Services {
    pub fn new(ads: Ads, others: Routes) -> Services {
        Services {
            ads,
            others,
            budget: Budget::default(),
        }
    }
}

/// Serves what comes in, until it is dropped. Connections that are open then go on until their clients leave.
pub async fn serve(listener: Listener, services: Services) {
    let services = Arc::new(services);
    let serve = move |stream, peer| connection::serve(stream, peer, Arc::clone(&services));
    listener.serve(serve).await;
}

#[cfg(test)]
mod tests;
