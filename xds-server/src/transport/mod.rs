//! The port for proxies: gRPC on HTTP/2.
//!
//! Discovery streams are served on [`h2`] itself, since there are thousands of them and each change goes to all: a connection
//! and all its streams are one task, which writes shared bytes without copying them. tonic, which has a task for each of
//! them, a queue between, and a buffer for each encoding, takes twice the CPU time and four times the memory for that. All
//! other services are tonic's, on the same connections.

mod bridge;
mod connection;
mod frame;
mod grpc;

use std::{sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tonic::service::Routes;
use tracing::warn;

use crate::ads::service::Ads;

pub use frame::Frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use grpc::Messages;
pub(crate) use grpc::{Gone, Incoming, Outgoing, PREFIX_BYTES};

/// How long to wait when no connection can be taken, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is served.
pub struct Services {
    pub ads: Ads,
    /// Everything but discovery.
    pub others: Routes,
}

/// Serves what comes in, until it is dropped. Connections that are open then go on until their clients leave.
pub async fn serve(listener: TcpListener, services: Services) {
    let services = Arc::new(services);
    loop {
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                warn!(%error, "cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // It only delays small messages; that it cannot be had is no reason to refuse a proxy.
        let _ = tcp.set_nodelay(true);
        tokio::spawn(connection::serve(tcp, Arc::clone(&services)));
    }
}

#[cfg(test)]
mod tests;
