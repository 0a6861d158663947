//! A CA for etcd and its clients.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    SanType,
};
use registry::store::EtcdTls;

pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new() -> Ca {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Ca(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    /// What a client with a certificate of this name needs.
    pub(crate) fn client(&self, name: &str) -> EtcdTls {
        EtcdTls {
            ca: self.0.pem().into_bytes(),
            own: Some(self.issue(name)),
            server_name: None,
        }
    }

    /// Certificate and key of a member on loopback, as files, in its arguments.
    pub(crate) fn arguments_of_a_member(&self, directory: &Path) -> Vec<OsString> {
        let (certificate, key) = self.issue("etcd");
        let ca = self.0.pem().into_bytes();
        let files = [
            ("--cert-file", "etcd.crt", certificate),
            ("--key-file", "etcd.key", key),
            ("--trusted-ca-file", "ca.crt", ca),
        ];
        let mut arguments = vec![OsString::from("--client-cert-auth")];
        for (argument, name, bytes) in files {
            let file = directory.join(name);
            fs::write(&file, bytes).expect("a file");
            arguments.extend([argument.into(), file.into()]);
        }
        arguments
    }

    fn issue(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (
            certificate.pem().into_bytes(),
            key.serialize_pem().into_bytes(),
        )
    }
}
