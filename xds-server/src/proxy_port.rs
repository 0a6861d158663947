//! The port for proxies: discovery on [`xds::transport`], and the other services on tonic.

use std::sync::Arc;

use xds::transport::{self, Services, StreamService};

use crate::net::{connections::Listener, tls::Peer};

/// Serves connections, until it is dropped. Open connections then continue until their clients
/// leave.
pub async fn serve<S>(listener: Listener, services: Services<S>)
where
    S: StreamService<Peer = Peer>,
{
    let services = Arc::new(services);
    let serve = move |stream, peer| transport::serve(stream, peer, Arc::clone(&services));
    listener.serve(serve).await;
}

#[cfg(test)]
mod tests;
