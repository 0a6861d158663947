//! The agent's port, with the same protection as the control plane's: TLS with client certificates
//! or plaintext, bounded connections and bodies, deadlines.

use agent::{Serving, config};
use axum::Router;
use futures::FutureExt;
use tokio::net::TcpListener;

use crate::{
    admin,
    metrics::Metrics,
    net::connections::{Admission, Limits, Listener, Refusals},
    net::tls::TlsFiles,
    net::tls::{Acceptor, Port, Tls},
};

/// Creates the server of the agent's port. Fails if a file cannot be used.
pub fn serve(tcp: TcpListener, listen: &config::Listen, router: Router) -> anyhow::Result<Serving> {
    let metrics = Metrics::default();
    let acceptor = match &listen.tls {
        None => Acceptor::plain(),
        Some(files) => {
            let files = TlsFiles {
                cert: files.cert.clone(),
                key: files.key.clone(),
                client_ca: files.client_ca.clone(),
                guest_ca: None,
            };
            Tls::start(files, metrics.clone())?.acceptor(Port::Admin)
        }
    };
    let listener = Listener {
        tcp,
        port: Port::Admin,
        acceptor,
        admission: Admission::new(Limits::default()),
        refusals: Refusals::default(),
        metrics,
    };
    Ok(admin::serve(listener, admin::guarded(router)).boxed())
}
