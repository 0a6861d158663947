//! The names in a client's certificate.

use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_cert::{
    Certificate,
    der::{self, Decode},
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::net::access::Identity;

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

/// When a certificate ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    /// In seconds since 1970.
    pub(super) not_after_s: u64,
    /// From then on it ends soon: two weeks before, or a sixth of its life where that is less.
    /// Automatic renewal comes before that.
    pub(super) soon_s: u64,
}

/// A certificate that has to be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With the time that is left.
    Soon(String),
    Ended,
}

/// Two weeks.
const SOON_S_MAX: u64 = 14 * 24 * 3_600;

impl End {
    /// The first end in a PEM file; none if it has no readable certificate.
    pub(crate) fn first_of(pem: &[u8]) -> Option<End> {
        let certificates = CertificateDer::pem_slice_iter(pem).flatten();
        certificates.filter_map(|one| End::of(&one).ok()).min()
    }

    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<End, UnreadableCertificate> {
        let certificate = Certificate::from_der(certificate)?;
        let validity = certificate.tbs_certificate().validity();
        let begin_s = validity.not_before.to_unix_duration().as_secs();
        let not_after_s = validity.not_after.to_unix_duration().as_secs();
        let life_s = not_after_s.saturating_sub(begin_s);
        Ok(End {
            not_after_s,
            soon_s: not_after_s.saturating_sub(SOON_S_MAX.min(life_s / 6)),
        })
    }

    /// Whether it ends soon, or has ended; none if there is time.
    pub(crate) fn ending(self, now_s: u64) -> Option<Ending> {
        let left_s = self.not_after_s.saturating_sub(now_s);
        if left_s == 0 {
            return Some(Ending::Ended);
        }
        let (days, hours) = (left_s / 86_400, left_s % 86_400 / 3_600);
        (now_s >= self.soon_s).then(|| Ending::Soon(format!("in {days} d {hours} h")))
    }
}
