//! TLS towards the control plane's admin interface, for the agent and for operators, and towards
//! etcd.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Whose certificates servers must show. No other CA is trusted.
    pub ca: PathBuf,
    /// Certificate and key to show.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    #[error("{file} cannot be read: {error}")]
    Read { file: String, error: std::io::Error },
    #[error("{file} is no PEM file: {error}")]
    Pem { file: String, error: pem::Error },
    #[error("{file} has no certificate in PEM")]
    Empty { file: String },
    #[error("{file} cannot be used: {error}")]
    Unusable { file: String, error: rustls::Error },
}

/// Trusts no CA: for `http://` alone.
pub(crate) fn plain() -> ClientConfig {
    let config = builder().with_root_certificates(RootCertStore::empty());
    config.with_no_client_auth()
}

/// Reads the files.
pub(crate) fn config(files: &Files) -> Result<ClientConfig, HttpsError> {
    Contents::read(files)?.config(files)
}

/// The contents of the files.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    ca: Vec<u8>,
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Contents {
    pub(crate) fn read(files: &Files) -> Result<Contents, HttpsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| HttpsError::Read {
                file: path.display().to_string(),
                error,
            })
        };
        let own = files.own.as_ref();
        Ok(Contents {
            ca: read(&files.ca)?,
            own: own
                .map(|(cert, key)| Ok((read(cert)?, read(key)?)))
                .transpose()?,
        })
    }

    pub(crate) fn ca(&self) -> &[u8] {
        &self.ca
    }

    /// Certificate and key.
    pub(crate) fn own(&self) -> Option<&(Vec<u8>, Vec<u8>)> {
        self.own.as_ref()
    }

    pub(crate) fn config(&self, files: &Files) -> Result<ClientConfig, HttpsError> {
        let unusable = |path: &Path| {
            let file = path.display().to_string();
            |error| HttpsError::Unusable { file, error }
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca, &self.ca)? {
            roots.add(certificate).map_err(unusable(&files.ca))?;
        }
        let builder = builder().with_root_certificates(roots);
        Ok(match (&files.own, &self.own) {
            (Some((cert_file, key_file)), Some((cert, key))) => {
                let key = PrivateKeyDer::from_pem_slice(key);
                let key = key.map_err(|error| HttpsError::Pem {
                    file: key_file.display().to_string(),
                    error,
                })?;
                builder
                    .with_client_auth_cert(certificates(cert_file, cert)?, key)
                    .map_err(unusable(cert_file))?
            }
            _ => builder.with_no_client_auth(),
        })
    }
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions, which this crate's tests show")
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, HttpsError> {
    let file = path.display().to_string();
    match CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>() {
        Ok(all) if all.is_empty() => Err(HttpsError::Empty { file }),
        Ok(all) => Ok(all),
        Err(error) => Err(HttpsError::Pem { file, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_is_named_with_its_fault() {
        // It does not panic.
        plain();
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        let files = Files {
            ca: ca.clone(),
            own: None,
        };
        let error = |files: &Files| config(files).err().unwrap().to_string();
        assert!(error(&files).starts_with(&format!("{} cannot be read: ", ca.display())));
        std::fs::write(&ca, "").unwrap();
        assert_eq!(
            error(&files),
            format!("{} has no certificate in PEM", ca.display())
        );
    }
}
