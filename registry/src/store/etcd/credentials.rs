//! What a client shows to etcd, and whose certificates it trusts.

use std::fmt;

use etcd_client::{Certificate, Identity, TlsOptions};

/// How a client proves to etcd who it is. The default is plain text without a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdCredentials {
    /// For endpoints of the form `https://host:port`. None: `http://host:port`.
    pub tls: Option<EtcdTls>,
    /// None: etcd has no users, or takes the common name of the client's certificate.
    pub user: Option<EtcdUser>,
}

/// TLS towards etcd, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// Whose certificates members must show. No other CA is trusted.
    pub ca: Vec<u8>,
    /// The client's certificate and its key; none if etcd asks for none.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in the members' certificates; by default the host of each endpoint.
    pub server_name: Option<String>,
}

/// A user of etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    pub name: String,
    pub password: String,
}

impl EtcdTls {
    pub(super) fn options(&self) -> TlsOptions {
        let options = TlsOptions::new().ca_certificate(Certificate::from_pem(&self.ca));
        let options = match &self.own {
            Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key)),
            None => options,
        };
        match &self.server_name {
            Some(name) => options.domain_name(name),
            None => options,
        }
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls")
            .field("own", &self.own.is_some())
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdUser")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_key_nor_password_is_printed() {
        let credentials = EtcdCredentials {
            tls: Some(EtcdTls {
                ca: b"the CA".to_vec(),
                own: Some((b"the certificate".to_vec(), b"the key".to_vec())),
                server_name: None,
            }),
            user: Some(EtcdUser {
                name: "tidegate".to_owned(),
                password: "the password".to_owned(),
            }),
        };
        assert_eq!(
            format!("{credentials:?}"),
            "EtcdCredentials { tls: Some(EtcdTls { own: true, server_name: None, .. }), user: Some(EtcdUser { name: \"tidegate\", .. }) }"
        );
    }
}
