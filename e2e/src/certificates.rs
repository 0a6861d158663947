//! Certificates, and the TLS configuration of servers.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    SanType, date_time_ymd,
};
use serde_json::{Value, json};

/// The files that [`Ca::issue`] writes.
pub const CERTIFICATE: &str = "tls.crt";
pub const KEY: &str = "tls.key";
pub const TRUSTED: &str = "ca.crt";

/// A CA.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new(name: &str) -> Result<Ca> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Ca(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Puts [`CERTIFICATE`], [`KEY`] and [`TRUSTED`] into a directory, each by renaming a finished
    /// file. `name` is a URI, an IP address or a DNS name. `trusted` are the CAs in the last.
    pub fn issue(&self, directory: &Path, name: &str, trusted: &[&Ca]) -> Result<()> {
        self.sign(directory, name, trusted, CertificateParams::default())
    }

    /// As [`issue`](Ca::issue), for a certificate that has ended.
    pub fn issue_expired(&self, directory: &Path, name: &str, trusted: &[&Ca]) -> Result<()> {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(2024, 1, 1);
        self.sign(directory, name, trusted, params)
    }

    fn sign(
        &self,
        directory: &Path,
        name: &str,
        trusted: &[&Ca],
        mut params: CertificateParams,
    ) -> Result<()> {
        // A certificate with its issuer's name would count as self-signed.
        params.distinguished_name = DistinguishedName::new();
        let text = Ia5String::try_from(name)?;
        params.subject_alt_names = vec![match (name.parse(), name.contains("://")) {
            (Ok(address), _) => SanType::IpAddress(address),
            (Err(_), true) => SanType::URI(text),
            (Err(_), false) => SanType::DnsName(text),
        }];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        let cas: String = trusted.iter().map(|ca| ca.0.pem()).collect();
        fs::create_dir_all(directory)?;
        for (file, text) in [
            (CERTIFICATE, certificate.pem()),
            (KEY, key.serialize_pem()),
            (TRUSTED, cas),
        ] {
            let partial = directory.join(format!("{file}.partial"));
            fs::write(&partial, text)?;
            fs::rename(&partial, directory.join(file))?;
        }
        Ok(())
    }
}

/// The control plane's `listen`, with the certificates of a directory. `plaintext` lists the ports
/// without TLS.
pub fn listen(directory: &Path, plaintext: &[&str]) -> Value {
    json!({
        "tls": {
            "cert": directory.join(CERTIFICATE),
            "key": directory.join(KEY),
            "client_ca": directory.join(TRUSTED),
        },
        "plaintext": plaintext,
    })
}
