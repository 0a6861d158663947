//! From PEM files to the credentials of a handshake.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{
        NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
};

use super::identity::{End, UnreadableCertificate};

/// PEM files, which are followed while the control plane runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and the intermediate ones up to a CA that clients know.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Whose certificates clients must show.
    pub client_ca: PathBuf,
    /// The CA of the mesh that guests run in. Its certificates open the streams of guests alone.
    pub guest_ca: Option<PathBuf>,
}

/// Why the files cannot be used: the file, and its fault.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("listen.tls.{field}: {file} cannot be read: {error}")]
    Read {
        field: &'static str,
        file: String,
        error: std::io::Error,
    },
    #[error("listen.tls.{field}: {file} is no PEM file with {wanted}: {error}")]
    Pem {
        field: &'static str,
        file: String,
        error: pem::Error,
        wanted: &'static str,
    },
    #[error("listen.tls.{field}: {file} has no certificate in PEM")]
    Empty { field: &'static str, file: String },
    #[error("listen.tls.{field}: {file}: {error}")]
    Certificate {
        field: &'static str,
        file: String,
        error: UnreadableCertificate,
    },
    #[error("listen.tls.{field}: {file} has a certificate that cannot be a CA's: {error}")]
    Ca {
        field: &'static str,
        file: String,
        error: rustls::Error,
    },
    #[error("listen.tls.client_ca: {file}: {error}")]
    Verifier {
        file: String,
        error: VerifierBuilderError,
    },
    #[error("listen.tls: certificate {cert} and key {key} cannot be used together: {error}")]
    Pair {
        cert: String,
        key: String,
        error: rustls::Error,
    },
}

/// The content of the files.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
    guest_ca: Option<Vec<u8>>,
}

/// The credentials of handshakes.
pub(super) struct Credentials {
    /// For clients with a certificate of the CA.
    pub(super) xds: Arc<ServerConfig>,
    /// Knows the certificates of `client_ca` from those of `guest_ca`, if there is one.
    pub(super) own: Option<Arc<dyn ClientCertVerifier>>,
    /// For clients without one, too.
    pub(super) admin: Arc<ServerConfig>,
    /// For connections to other replicas: they show a certificate of the same CA.
    pub(super) client: Arc<ClientConfig>,
    /// The server's certificate.
    pub(super) certificate: CertificateDer<'static>,
    /// When it ends.
    pub(super) cert_end: End,
    /// When the first of the CA's certificates ends.
    pub(super) client_ca_end: End,
    /// The same of the guests' CA.
    pub(super) guest_ca_end: Option<End>,
}

impl Contents {
    /// Reads the files.
    pub(super) fn read(files: &TlsFiles) -> Result<Contents, TlsError> {
        let read = |field, path: &Path| {
            std::fs::read(path).map_err(|error| TlsError::Read {
                field,
                file: path.display().to_string(),
                error,
            })
        };
        Ok(Contents {
            cert: read("cert", &files.cert)?,
            key: read("key", &files.key)?,
            client_ca: read("client_ca", &files.client_ca)?,
            guest_ca: match &files.guest_ca {
                Some(path) => Some(read("guest_ca", path)?),
                None => None,
            },
        })
    }

    /// Checks that they belong together, and makes the credentials of handshakes.
    pub(super) fn credentials(&self, files: &TlsFiles) -> Result<Credentials, TlsError> {
        let chain = certificates("cert", &files.cert, &self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| TlsError::Pem {
            field: "key",
            file: files.key.display().to_string(),
            error,
            wanted: "a private key",
        })?;
        let cas = certificates("client_ca", &files.client_ca, &self.client_ca)?;
        // The server's own stands first; those between it and the root follow.
        let certificate = chain.first().cloned().ok_or_else(|| TlsError::Empty {
            field: "cert",
            file: files.cert.display().to_string(),
        })?;
        let cert_end = first_end("cert", &files.cert, chain.iter().take(1))?;
        let client_ca_end = first_end("client_ca", &files.client_ca, cas.iter())?;

        let provider = Arc::new(ring::default_provider());
        let own = Arc::new(roots("client_ca", &files.client_ca, cas)?);
        let verifier_error = |error| TlsError::Verifier {
            file: files.client_ca.display().to_string(),
            error,
        };
        let verifier = |roots: &Arc<RootCertStore>| {
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider))
        };
        let strict = verifier(&own).build().map_err(verifier_error)?;
        let lenient = verifier(&own).allow_unauthenticated().build();
        let lenient = lenient.map_err(verifier_error)?;
        let (proxies, guest_ca_end) = match (&files.guest_ca, &self.guest_ca) {
            (Some(path), Some(text)) => {
                let cas = certificates("guest_ca", path, text)?;
                let end = first_end("guest_ca", path, cas.iter())?;
                let mut all = roots("guest_ca", path, cas)?;
                all.extend(own.roots.iter().cloned());
                let all = verifier(&Arc::new(all)).build().map_err(verifier_error)?;
                (all, Some(end))
            }
            _ => (Arc::clone(&strict), None),
        };
        let unpaired = |error| TlsError::Pair {
            cert: files.cert.display().to_string(),
            key: files.key.display().to_string(),
            error,
        };
        let config = |verifier, protocol: &[u8]| {
            server_config(&provider, verifier, &chain, &key, protocol).map_err(unpaired)
        };
        let client = client_config(&provider, own, &chain, &key).map_err(unpaired)?;
        Ok(Credentials {
            xds: config(proxies, b"h2")?,
            own: guest_ca_end.is_some().then_some(strict),
            admin: config(lenient, b"http/1.1")?,
            client,
            certificate,
            cert_end,
            client_ca_end,
            guest_ca_end,
        })
    }
}

/// The store of these certificates of CAs.
fn roots(
    field: &'static str,
    path: &Path,
    cas: Vec<CertificateDer<'static>>,
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in cas {
        (roots.add(certificate)).map_err(|error| TlsError::Ca {
            field,
            file: path.display().to_string(),
            error,
        })?;
    }
    Ok(roots)
}

fn certificates(
    field: &'static str,
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = path.display().to_string();
    match CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>() {
        Ok(all) if all.is_empty() => Err(TlsError::Empty { field, file }),
        Ok(all) => Ok(all),
        Err(error) => Err(TlsError::Pem {
            field,
            file,
            error,
            wanted: "certificates",
        }),
    }
}

/// When the first of them ends.
fn first_end<'c>(
    field: &'static str,
    path: &Path,
    certificates: impl Iterator<Item = &'c CertificateDer<'static>>,
) -> Result<End, TlsError> {
    let ends = certificates.map(End::of);
    let ends: Result<Vec<End>, _> = ends.collect();
    let ends = ends.map_err(|error| TlsError::Certificate {
        field,
        file: path.display().to_string(),
        error,
    })?;
    let first = ends.into_iter().min();
    first.ok_or_else(|| TlsError::Empty {
        field,
        file: path.display().to_string(),
    })
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // As for the server.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = vec![protocol.to_vec()];
    // A resumed session does not show its certificate again, and would outlive a CA that was taken away. Connections are
    // long, so there is nothing to win.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
