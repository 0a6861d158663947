//! The names in a client's certificate.

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::{self, Decode},
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::access::Identity;

/// A certificate whose fields cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate cannot be read: {0}")]
pub struct UnreadableCertificate(#[from] der::Error);

/// The names of a certificate.
pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Identity, UnreadableCertificate> {
    let certificate = Certificate::from_der(certificate)?;
    let names = (certificate.tbs_certificate()).get_extension::<SubjectAltName>()?;
    let mut identity = Identity::default();
    for name in names.into_iter().flat_map(|(_, names)| names.0) {
        match name {
            GeneralName::UniformResourceIdentifier(uri) => identity.uris.push(uri.to_string()),
            GeneralName::DnsName(name) => identity.dns.push(name.to_string()),
            _ => {}
        }
    }
    Ok(identity)
}

/// When a certificate ends, in seconds since 1970.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Result<u64, UnreadableCertificate> {
    let certificate = Certificate::from_der(certificate)?;
    let validity = certificate.tbs_certificate().validity();
    Ok(validity.not_after.to_unix_duration().as_secs())
}
