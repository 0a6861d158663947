//! The transport of a simulated proxy: plaintext or TLS.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use e2e::certificates::{CERTIFICATE, KEY, TRUSTED};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// The name in the server's certificate.
pub(super) const SERVER_NAME: &str = "tidegate";

/// The security of a proxy's connection.
#[derive(Clone)]
pub(super) enum Security {
    PlainText,
    Tls(Arc<ClientConfig>),
}

impl Security {
    /// With the certificates of a directory. Every handshake is a full one, like after a restart of
    /// the server.
    pub(super) fn tls(directory: &Path) -> Result<Security> {
        let mut roots = RootCertStore::empty();
        for ca in CertificateDer::pem_file_iter(directory.join(TRUSTED))? {
            roots.add(ca?)?;
        }
        let chain = CertificateDer::pem_file_iter(directory.join(CERTIFICATE))?;
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(directory.join(KEY))?;
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = config.with_client_auth_cert(chain, key)?;
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Security::Tls(Arc::new(config)))
    }
}

/// A connection. Reads and writes fail with `WouldBlock` if its socket would.
pub(super) enum Link {
    PlainText(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Link {
    pub(super) fn new(tcp: TcpStream, security: &Security) -> Result<Link> {
        let Security::Tls(config) = security else {
            return Ok(Link::PlainText(tcp));
        };
        let name = ServerName::try_from(SERVER_NAME)?;
        let connection = ClientConnection::new(Arc::clone(config), name);
        let connection = connection.context("a TLS connection")?;
        Ok(Link::Tls(Box::new(StreamOwned::new(connection, tcp))))
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Link::PlainText(tcp) => tcp,
            Link::Tls(tls) => tls.get_ref(),
        }
    }

    /// Whether received data may be buffered that the socket does not report any more.
    pub(super) fn may_have_more(&self) -> bool {
        matches!(self, Link::Tls(_))
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Link::PlainText(tcp) => tcp.read(buffer),
            Link::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Link::PlainText(tcp) => tcp.write(bytes),
            // Before the handshake has ended they wait for it.
            Link::Tls(tls) => {
                let written = tls.conn.writer().write(bytes)?;
                while tls.conn.wants_write() {
                    tls.conn.write_tls(&mut tls.sock)?;
                }
                Ok(written)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Link::PlainText(tcp) => tcp.flush(),
            Link::Tls(tls) => tls.flush(),
        }
    }
}
