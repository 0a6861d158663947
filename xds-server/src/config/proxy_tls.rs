//! TLS of the proxies: the certificates that their listeners present and require, and how they
//! connect to instances and to each other.
//!
//! Certificates and keys stay on the proxies' machines, or come from an SDS server that the proxies
//! know. This configuration only names them.

use std::path::Path;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{ConfigError, validate::Validator};

/// TLS of a listener (Envoy's `DownstreamTlsContext`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownstreamTls {
    /// Never empty. At most one without `hosts`.
    pub certificates: Vec<ServerCertificate>,
    /// Whose certificates clients may present; none asks for none.
    pub trusted_ca: Option<TrustedCa>,
    /// Refuses connections of clients without a certificate.
    pub require_client_certificate: bool,
}

/// A certificate of a listener, for the server names (SNI) of `hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCertificate {
    /// Lower case; `*.example.com` stands for all names below. Empty: every name that no other certificate has.
    pub hosts: Vec<String>,
    pub certificate: TlsCertificate,
}

/// TLS towards instances (Envoy's `UpstreamTlsContext`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    pub trusted_ca: TrustedCa,
    /// The instance's certificate must have one of these: DNS names, or URIs such as SPIFFE IDs. Never empty.
    pub subject_alt_names: Vec<String>,
    pub sni: Option<String>,
    /// The proxy's own certificate.
    pub certificate: Option<TlsCertificate>,
}

/// Where a proxy finds a certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsCertificate {
    /// PEM files on the proxy's machine.
    Files {
        cert: String,
        key: String,
    },
    Sds(SdsSecret),
}

/// Where a proxy finds the certificates of CAs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustedCa {
    /// A PEM file on the proxy's machine.
    File(String),
    Sds(SdsSecret),
}

/// A secret of a secret discovery service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdsSecret {
    /// A cluster of the proxy's bootstrap that leads to the service (gRPC).
    pub cluster: String,
    pub name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDownstreamTls {
    certificates: Vec<Spanned<RawServerCertificate>>,
    trusted_ca: Option<Spanned<RawTrustedCa>>,
    require_client_certificate: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstreamTls {
    trusted_ca: Spanned<RawTrustedCa>,
    subject_alt_names: Spanned<Vec<String>>,
    sni: Option<Spanned<String>>,
    certificate: Option<Spanned<RawCertificate>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServerCertificate {
    #[serde(default)]
    hosts: Vec<String>,
    cert: Option<String>,
    key: Option<String>,
    sds: Option<RawSds>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCertificate {
    cert: Option<String>,
    key: Option<String>,
    sds: Option<RawSds>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrustedCa {
    file: Option<String>,
    sds: Option<RawSds>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSds {
    cluster: String,
    name: String,
}

impl Validator<'_> {
    pub(super) fn downstream_tls(
        &self,
        field: &str,
        at: &Spanned<RawDownstreamTls>,
    ) -> Result<DownstreamTls, ConfigError> {
        let raw = &at.value;
        let trusted_ca = raw
            .trusted_ca
            .as_ref()
            .map(|ca| self.trusted_ca(&format!("{field}.trusted_ca"), ca))
            .transpose()?;
        let require_client_certificate = match &raw.require_client_certificate {
            None => trusted_ca.is_some(),
            Some(at) if at.value && trusted_ca.is_none() => {
                let message = "nothing says which CA to trust: add `trusted_ca`";
                return Err(self.error(
                    at,
                    &format!("{field}.require_client_certificate"),
                    message,
                ));
            }
            Some(at) => at.value,
        };
        if raw.certificates.is_empty() {
            let message = "empty: name at least one certificate";
            return Err(self.error(at, &format!("{field}.certificates"), message));
        }
        let mut certificates: Vec<ServerCertificate> = Vec::with_capacity(raw.certificates.len());
        for (index, at) in raw.certificates.iter().enumerate() {
            let field = format!("{field}.certificates[{index}]");
            let certificate = self.server_certificate(&field, at)?;
            if let Some(clash) = clash(&certificates, &certificate) {
                return Err(self.error(at, &format!("{field}.hosts"), clash));
            }
            certificates.push(certificate);
        }
        Ok(DownstreamTls {
            certificates,
            trusted_ca,
            require_client_certificate,
        })
    }

    pub(super) fn upstream_tls(
        &self,
        field: &str,
        at: &Spanned<RawUpstreamTls>,
    ) -> Result<UpstreamTls, ConfigError> {
        let raw = &at.value;
        let names = &raw.subject_alt_names;
        let names_field = format!("{field}.subject_alt_names");
        if names.value.is_empty() {
            let message = "empty: without a name to compare, any certificate of the CA would do";
            return Err(self.error(names, &names_field, message));
        }
        let is_uri = |name: &&String| name.contains("://");
        if let Some(bad) = (names.value.iter())
            .find(|name| name.is_empty() || !is_uri(name) && !is_host_name(name))
        {
            let message = format!(
                "{bad:?}: neither a DNS name nor a URI such as spiffe://example.org/orders"
            );
            return Err(self.error(names, &names_field, message));
        }
        let sni = match &raw.sni {
            Some(at) if !is_host_name(&at.value) => {
                let message = format!("{:?} is no DNS name", at.value);
                return Err(self.error(at, &format!("{field}.sni"), message));
            }
            Some(at) => Some(at.value.clone()),
            None => names.value.iter().find(|name| !is_uri(name)).cloned(),
        };
        let certificate = raw.certificate.as_ref().map(|at| {
            let RawCertificate { cert, key, sds } = &at.value;
            self.certificate(&format!("{field}.certificate"), at, cert, key, sds)
        });
        Ok(UpstreamTls {
            trusted_ca: self.trusted_ca(&format!("{field}.trusted_ca"), &raw.trusted_ca)?,
            subject_alt_names: names.value.clone(),
            sni,
            certificate: certificate.transpose()?,
        })
    }

    fn server_certificate(
        &self,
        field: &str,
        at: &Spanned<RawServerCertificate>,
    ) -> Result<ServerCertificate, ConfigError> {
        let RawServerCertificate {
            hosts,
            cert,
            key,
            sds,
        } = &at.value;
        let hosts: Vec<String> = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let below = |host: &str| host.strip_prefix("*.").unwrap_or(host).to_owned();
        if let Some(bad) = hosts.iter().find(|host| !is_host_name(&below(host))) {
            let message =
                format!("{bad:?}: a DNS name, or `*.` and one; leave `hosts` out for all others");
            return Err(self.error(at, &format!("{field}.hosts"), message));
        }
        Ok(ServerCertificate {
            hosts,
            certificate: self.certificate(field, at, cert, key, sds)?,
        })
    }

    fn certificate<T>(
        &self,
        field: &str,
        at: &Spanned<T>,
        cert: &Option<String>,
        key: &Option<String>,
        sds: &Option<RawSds>,
    ) -> Result<TlsCertificate, ConfigError> {
        match (cert, key, sds) {
            (Some(cert), Some(key), None) => {
                self.absolute(at, &format!("{field}.cert"), cert)?;
                self.absolute(at, &format!("{field}.key"), key)?;
                let directory = |path: &str| Path::new(path).parent().map(Path::to_owned);
                if directory(cert) != directory(key) {
                    let message = "certificate and key lie in two directories: Envoy watches one, and must see both change together";
                    return Err(self.error(at, &format!("{field}.key"), message));
                }
                Ok(TlsCertificate::Files {
                    cert: cert.clone(),
                    key: key.clone(),
                })
            }
            (None, None, Some(sds)) => Ok(TlsCertificate::Sds(self.sds(field, at, sds)?)),
            _ => Err(self.error(at, field, "name `cert` and `key`, or `sds`")),
        }
    }

    fn trusted_ca(
        &self,
        field: &str,
        at: &Spanned<RawTrustedCa>,
    ) -> Result<TrustedCa, ConfigError> {
        match (&at.value.file, &at.value.sds) {
            (Some(file), None) => {
                self.absolute(at, &format!("{field}.file"), file)?;
                Ok(TrustedCa::File(file.clone()))
            }
            (None, Some(sds)) => Ok(TrustedCa::Sds(self.sds(field, at, sds)?)),
            _ => Err(self.error(at, field, "name a `file`, or `sds`")),
        }
    }

    fn sds<T>(&self, field: &str, at: &Spanned<T>, sds: &RawSds) -> Result<SdsSecret, ConfigError> {
        if sds.cluster.is_empty() || sds.name.is_empty() {
            let message = "name a `cluster` of the proxies' bootstrap and the secret's `name`";
            return Err(self.error(at, &format!("{field}.sds"), message));
        }
        Ok(SdsSecret {
            cluster: sds.cluster.clone(),
            name: sds.name.clone(),
        })
    }

    /// Files are watched by their directory, so that renewed ones count, and proxies run anywhere.
    fn absolute<T>(&self, at: &Spanned<T>, field: &str, path: &str) -> Result<(), ConfigError> {
        let has_name = Path::new(path).file_name().is_some();
        if path.starts_with('/') && has_name && !path.contains(char::is_control) {
            return Ok(());
        }
        let message = format!("{path:?}: name a file on the proxies' machines from `/` on");
        Err(self.error(at, field, message))
    }
}

/// Why a certificate cannot stand beside those before it.
fn clash(before: &[ServerCertificate], certificate: &ServerCertificate) -> Option<String> {
    if certificate.hosts.is_empty() && before.iter().any(|other| other.hosts.is_empty()) {
        return Some("two certificates are for all other hosts: name the hosts of one".to_owned());
    }
    let mut taken: Vec<&String> = before.iter().flat_map(|other| &other.hosts).collect();
    for host in &certificate.hosts {
        if taken.contains(&host) {
            return Some(format!("{host:?} has a certificate already"));
        }
        taken.push(host);
    }
    None
}

/// A DNS name by RFC 1123, without a trailing dot.
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}
