//! The agent's port behind the same doors as the control plane's: TLS with client certificates or plain text, bounded
//! connections and bodies, deadlines.

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

/// Makes a server of the agent's port. Errors on files that cannot be used.
pub fn serve(tcp: TcpListener, listen: &config::Listen, router: Router) -> anyhow::Result<Serving> {
    let metrics = Metrics::default();
    let acceptor = match &listen.tls {
        None => Acceptor::plain(),
        Some(files) => {
            let files = TlsFiles {
                cert: files.cert.clone(),
                key: files.key.clone(),
                client_ca: files.client_ca.clone(),
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
