//! TLS in the harness: a client that presents a certificate, and a TLS front for an instance.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certificates::{CERTIFICATE, KEY, TRUSTED};
use crate::client::{Reply, Request};

/// One TLS connection for sequential requests.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    authority: String,
}

impl Connection {
    /// Connects to `address`, requests `server_name` and verifies it by the CAs in `trusted`, a
    /// directory of [`Ca::issue`](crate::certificates::Ca::issue). `own` is such a directory with
    /// the client's certificate. The bytes of `preface` are sent in plaintext before the handshake.
    pub async fn open(
        address: SocketAddr,
        server_name: &str,
        trusted: &Path,
        own: Option<&Path>,
        preface: &[u8],
    ) -> Result<Connection> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(trusted)?);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_auth_cert(chain(own)?, key(own)?)?,
        };
        let mut tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        tcp.write_all(preface).await?;
        let name = ServerName::try_from(server_name.to_owned())?;
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        let driver = tokio::spawn(async move {
            // The request sees the error.
            let _ = connection.await;
        });
        Ok(Connection {
            sender,
            driver,
            authority: server_name.to_owned(),
        })
    }

    /// Sends a request and reads the answer.
    pub async fn send(&mut self, request: Request) -> Result<Reply> {
        self.sender.ready().await?;
        let mut wire = hyper::Request::new(Full::new(request.body));
        *wire.method_mut() = request.method;
        *wire.uri_mut() = request.path.parse()?;
        *wire.headers_mut() = request.headers;
        let host = self.authority.parse()?;
        wire.headers_mut().insert(hyper::header::HOST, host);
        let (head, body) = self.sender.send_request(wire).await?.into_parts();
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Terminates TLS and forwards the content. Dropping it drops all its connections.
pub struct Front {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Front {
    /// Presents the certificate in `directory`, requires one of the CAs there, and connects to
    /// `to`.
    pub async fn start(directory: &Path, to: SocketAddr) -> Result<Front> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(roots(directory)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.build()?)
            .with_single_cert(chain(directory)?, key(directory)?)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(pass(acceptor.clone(), near, to));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Front { address, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // The task owns all connections.
        self.accepting.abort();
    }
}

/// An error on a connection concerns only the peer.
async fn pass(acceptor: TlsAcceptor, near: TcpStream, to: SocketAddr) {
    let Ok(mut near) = acceptor.accept(near).await else {
        return;
    };
    if let Ok(mut far) = TcpStream::connect(to).await {
        let _ = copy_bidirectional(&mut near, &mut far).await;
    }
}

fn roots(directory: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(&read(directory, TRUSTED)?) {
        roots.add(ca?)?;
    }
    Ok(roots)
}

fn chain(directory: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(directory, CERTIFICATE)?;
    let chain = CertificateDer::pem_slice_iter(&pem);
    Ok(chain.collect::<Result<_, _>>()?)
}

fn key(directory: &Path) -> Result<PrivateKeyDer<'static>> {
    Ok(PrivateKeyDer::from_pem_slice(&read(directory, KEY)?)?)
}

fn read(directory: &Path, file: &str) -> Result<Vec<u8>> {
    let path = directory.join(file);
    fs::read(&path).with_context(|| path.display().to_string())
}
