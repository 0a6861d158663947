//! Connections to other replicas, encrypted or not.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{client::verify_server_name, pki_types::ServerName, server::ParsedCertificate},
};
use tower_service::Service;

use super::{files::Credentials, identity};

/// Opens connections: with the certificate in use, and to those that show one of the configured CA. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    /// None: plain text.
    pub(super) tls: Option<watch::Receiver<Arc<Credentials>>>,
}

impl Dialer {
    /// In plain text.
    pub fn plain() -> Dialer {
        Dialer { tls: None }
    }

    /// The name by which others are to know the own certificate: `host` where it has that, else its first DNS name. Without
    /// either, and in plain text, `host`.
    pub fn own_name(&self, host: &str) -> String {
        let Some(credentials) = &self.tls else {
            return host.to_owned();
        };
        let credentials = credentials.borrow();
        let has = |name: &str| {
            let certificate = ParsedCertificate::try_from(&credentials.certificate);
            let name = ServerName::try_from(name);
            let both = certificate.ok().zip(name.ok());
            both.is_some_and(|(certificate, name)| verify_server_name(&certificate, &name).is_ok())
        };
        if has(host) {
            return host.to_owned();
        }
        let identity = identity::read(&credentials.certificate).unwrap_or_default();
        // A pattern is no name that a server could be asked for.
        let name = identity.dns.into_iter().find(|name| has(name));
        name.unwrap_or_else(|| host.to_owned())
    }

    /// For tonic: leads to `host:port`, whose certificate has this name.
    pub fn to(&self, address: &str, server_name: &str) -> Connector {
        Connector {
            dialer: self.clone(),
            address: address.to_owned(),
            server_name: server_name.to_owned(),
        }
    }
}

/// Leads to one address for every URI.
#[derive(Clone)]
pub struct Connector {
    dialer: Dialer,
    address: String,
    server_name: String,
}

/// A connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<Box<dyn Io>>> {
        let tcp = TcpStream::connect(&self.address).await?;
        // Beats are short, and late ones are worth nothing.
        tcp.set_nodelay(true)?;
        let Some(credentials) = self.dialer.tls else {
            return Ok(TokioIo::new(Box::new(tcp)));
        };
        let config = Arc::clone(&credentials.borrow().client);
        let name = ServerName::try_from(self.server_name).map_err(io::Error::other)?;
        let tls = TlsConnector::from(config).connect(name, tcp).await?;
        Ok(TokioIo::new(Box::new(tls)))
    }
}

impl Service<http::Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}
