//! Handshakes with real certificates, on real sockets.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, string::Ia5String,
};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_rustls::{
    TlsConnector, client,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::*;
use crate::{
    conditions::Code,
    metrics::{Metrics, PortReasonLabel, ResultLabel},
    net::access::Identity,
    net::connections::{Admission, Limits, Listener, Refusals},
    net::tls::TlsFiles,
    wall_clock::unix_ms,
};

struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap());
        Ca {
            issuer: issuer.unwrap(),
        }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate and key, as PEM.
    fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_with(CertificateParams::default(), names)
    }

    /// The same, valid from and until so many seconds from now.
    fn issue_for(&self, names: &[&str], from_s: i64, until_s: i64) -> (String, String) {
        let now_s = i64::try_from(unix_ms() / 1_000).unwrap();
        let at = |s| time::OffsetDateTime::from_unix_timestamp(now_s + s).unwrap();
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = (at(from_s), at(until_s));
        self.issue_with(params, names)
    }

    fn issue_with(&self, mut params: CertificateParams, names: &[&str]) -> (String, String) {
        params.subject_alt_names = (names.iter())
            .map(|name| {
                let text = Ia5String::try_from(*name).unwrap();
                match name.contains("://") {
                    true => SanType::URI(text),
                    false => SanType::DnsName(text),
                }
            })
            .collect();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Files of a server called `localhost`.
fn write(directory: &Path, ca: &Ca, client_ca: &Ca) -> TlsFiles {
    let (cert, key) = ca.issue(&["localhost"]);
    let file = |name: &str, text: String| -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    TlsFiles {
        cert: file("cert.pem", cert),
        key: file("key.pem", key),
        client_ca: file("ca.pem", client_ca.pem()),
        guest_ca: None,
    }
}

fn connector(server_ca: &Ca, own: Option<(String, String)>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let ca = server_ca.pem();
    (roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    TlsConnector::from(Arc::new(config))
}

/// The results of one connection at both ends.
async fn connect(
    acceptor: &Acceptor,
    connector: &TlsConnector,
) -> (
    io::Result<client::TlsStream<TcpStream>>,
    Result<(Stream, Peer), AcceptError>,
) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connecting = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        connector.connect(name, tcp).await
    };
    let accepting = async {
        let (tcp, address) = listener.accept().await.unwrap();
        acceptor.accept(tcp, address).await
    };
    tokio::join!(connecting, accepting)
}

fn caller(accepted: Result<(Stream, Peer), AcceptError>) -> Caller {
    accepted.map(|(_, peer)| peer.caller).unwrap()
}

#[tokio::test]
async fn the_names_in_a_certificate_are_the_callers() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, other) = (Ca::new(), Ca::new());
    let files = write(directory.path(), &ca, &ca);
    let tls = Tls::start(files, Metrics::default()).unwrap();
    let (xds, admin) = (tls.acceptor(Port::Xds), tls.acceptor(Port::Admin));
    let known = connector(&ca, Some(ca.issue(&["spiffe://mesh/zone/a", "a.example"])));
    let named = Caller::Named(Arc::new(Identity {
        uris: vec!["spiffe://mesh/zone/a".to_owned()],
        dns: vec!["a.example".to_owned()],
    }));
    assert_eq!(caller(connect(&xds, &known).await.1), named);
    assert_eq!(caller(connect(&admin, &known).await.1), named);
    // A certificate is asked for on both ports, and required on one.
    let nobody = connector(&ca, None);
    let refused = connect(&xds, &nobody).await.1;
    assert!(matches!(refused, Err(AcceptError::Handshake(_))));
    assert_eq!(caller(connect(&admin, &nobody).await.1), Caller::Anonymous);
    for acceptor in [&xds, &admin] {
        let stranger = connector(&ca, Some(other.issue(&["spiffe://mesh/zone/a"])));
        let refused = connect(acceptor, &stranger).await.1;
        assert!(matches!(refused, Err(AcceptError::Handshake(_))));
    }
}

#[tokio::test]
async fn a_certificate_of_the_guests_ca_makes_a_guest_on_the_port_of_proxies_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, mesh, other) = (Ca::new(), Ca::new(), Ca::new());
    let guest_ca = directory.path().join("guests.pem");
    fs::write(&guest_ca, mesh.pem()).unwrap();
    let files = TlsFiles {
        guest_ca: Some(guest_ca),
        ..write(directory.path(), &ca, &ca)
    };
    let tls = Tls::start(files, Metrics::default()).unwrap();
    let (xds, admin) = (tls.acceptor(Port::Xds), tls.acceptor(Port::Admin));
    let name = "spiffe://mesh/ns/shop/sa/front";
    let identity = Arc::new(Identity {
        uris: vec![name.to_owned()],
        dns: vec![],
    });
    let guest = connector(&ca, Some(mesh.issue(&[name])));
    let own = connector(&ca, Some(ca.issue(&[name])));
    let accepted = connect(&xds, &guest).await.1;
    assert_eq!(caller(accepted), Caller::Guest(Arc::clone(&identity)));
    let accepted = connect(&xds, &own).await.1;
    assert_eq!(caller(accepted), Caller::Named(identity));
    let stranger = connector(&ca, Some(other.issue(&[name])));
    for (acceptor, connector) in [(&xds, &stranger), (&admin, &guest)] {
        let refused = connect(acceptor, connector).await.1;
        assert!(matches!(refused, Err(AcceptError::Handshake(_))));
    }
}

/// Waits for an effect of the follower, which comes within seconds.
async fn eventually(what: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(20), async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("it did not come about");
}

#[tokio::test]
async fn new_files_count_for_new_connections_and_bad_ones_for_none() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (Ca::new(), Ca::new());
    let files = write(directory.path(), &old, &old);
    let metrics = Metrics::default();
    let tls = Tls::start(files.clone(), metrics.clone()).unwrap();
    let acceptor = tls.acceptor(Port::Xds);
    let reloads = |result| {
        let label = ResultLabel { result };
        metrics.tls_reloads.get_or_create(&label).get()
    };
    let of_old = connector(&old, Some(old.issue(&["a"])));
    let (client, server) = connect(&acceptor, &of_old).await;
    let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());

    // A key that is not the certificate's, as a writer that is not done yet leaves behind.
    fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    eventually(|| reloads("error") == 1).await;
    assert_eq!(metrics.tls_current.get(), 0);
    assert!(metrics.conditions.holds(Code::TlsFilesUnusable));
    assert!(connect(&acceptor, &of_old).await.1.is_ok());

    write(directory.path(), &new, &new);
    eventually(|| reloads("ok") == 1).await;
    assert_eq!(metrics.tls_current.get(), 1);
    assert!(!metrics.conditions.holds(Code::TlsFilesUnusable));
    let of_new = connector(&new, Some(new.issue(&["a"])));
    assert!(connect(&acceptor, &of_new).await.1.is_ok());
    assert!(connect(&acceptor, &of_old).await.1.is_err());
    // Open connections go on.
    server.write_all(b"still here").await.unwrap();
    server.flush().await.unwrap();
    let mut heard = [0; 10];
    let read = tokio::io::AsyncReadExt::read_exact(&mut client, &mut heard);
    assert_eq!(read.await.unwrap(), 10);

    fs::remove_file(&files.cert).unwrap();
    eventually(|| reloads("error") == 2).await;
    assert!(connect(&acceptor, &of_new).await.1.is_ok());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let good = write(directory.path(), &ca, &ca);
    let at = |name: &str| directory.path().join(name);
    fs::write(at("empty"), "").unwrap();
    fs::write(
        at("garbage"),
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    fs::write(
        at("no.der"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let (cert, key, client_ca) = (good.cert.clone(), good.key.clone(), good.client_ca.clone());
    let with = |cert: PathBuf, key: PathBuf, client_ca: PathBuf| TlsFiles {
        cert,
        key,
        client_ca,
        guest_ca: None,
    };
    for (files, expected) in [
        (
            with(at("none"), key.clone(), client_ca.clone()),
            "listen.tls.cert: {}/none cannot be read: ",
        ),
        (
            with(at("empty"), key.clone(), client_ca.clone()),
            "listen.tls.cert: {}/empty has no certificate in PEM",
        ),
        (
            with(at("garbage"), key.clone(), client_ca.clone()),
            "listen.tls.cert: {}/garbage is no PEM file with certificates: ",
        ),
        (
            with(at("no.der"), key.clone(), client_ca.clone()),
            "listen.tls.cert: {}/no.der: the certificate cannot be read: ",
        ),
        (
            with(cert.clone(), cert.clone(), client_ca.clone()),
            "listen.tls.key: {}/cert.pem is no PEM file with a private key: ",
        ),
        (
            with(cert.clone(), key.clone(), at("empty")),
            "listen.tls.client_ca: {}/empty has no certificate in PEM",
        ),
        (
            with(client_ca, key, cert),
            "listen.tls: certificate {}/ca.pem and key {}/key.pem cannot be used together: ",
        ),
    ] {
        let credentials = files::Contents::read(&files).and_then(|read| read.credentials(&files));
        let error = credentials.err().expect(expected).to_string();
        let expected = expected.replace("{}", &directory.path().display().to_string());
        assert!(error.starts_with(&expected), "{error}");
    }
}

/// A port with TLS whose connections are counted, and say nothing.
async fn silent(files: TlsFiles, limits: Limits) -> (SocketAddr, Admission, Metrics) {
    let metrics = Metrics::default();
    let tls = Tls::start(files, metrics.clone()).unwrap();
    let tcp = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let admission = Admission::new(limits);
    let listener = Listener {
        tcp,
        port: Port::Xds,
        acceptor: tls.acceptor(Port::Xds),
        admission: admission.clone(),
        refusals: Refusals::default(),
        metrics: metrics.clone(),
    };
    tokio::spawn(listener.serve(async move |stream, _| {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    }));
    (address, admission, metrics)
}

fn refused(metrics: &Metrics, reason: &'static str) -> u64 {
    let label = PortReasonLabel {
        port: "xds",
        reason,
    };
    metrics.connections_refused.get_or_create(&label).get()
}

#[tokio::test]
async fn handshakes_that_never_end_hold_up_nobody_and_are_ended() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let files = write(directory.path(), &ca, &ca);
    let (address, admission, metrics) = silent(files, Limits::default()).await;
    // Bytes of a real beginning, one after the other, and nothing at all.
    let mut slow = Vec::new();
    for n in 0..100 {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            tcp.write_all(&[0x16, 0x03, 0x01][..1 + n % 3])
                .await
                .unwrap();
        }
        slow.push(tcp);
    }
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(&[0xff; 4096]).await.unwrap();
    eventually(|| refused(&metrics, "handshake") == 1).await;

    let tcp = TcpStream::connect(address).await.unwrap();
    let connector = connector(&ca, Some(ca.issue(&["a"])));
    let name = ServerName::try_from("localhost").unwrap();
    let mut served = connector.connect(name, tcp).await.unwrap();
    served.write_all(b"echo").await.unwrap();
    let mut heard = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut served, &mut heard)
        .await
        .unwrap();
    assert_eq!(&heard, b"echo");

    // Only the one that speaks is left.
    eventually(|| admission.taken() == 1).await;
    assert_eq!(refused(&metrics, "handshake_timeout"), 100);
    drop(served);
    eventually(|| admission.taken() == 0).await;
}

#[tokio::test]
async fn one_name_has_its_part_of_the_connections_and_others_theirs() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let files = write(directory.path(), &ca, &ca);
    let limits = Limits {
        connections: 4,
        per_client: 3,
    };
    let (address, admission, metrics) = silent(files, limits).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(TcpStream::connect(address).await.unwrap());
    }
    eventually(|| admission.taken() == 3).await;
    let _more = TcpStream::connect(address).await.unwrap();
    eventually(|| refused(&metrics, "too_many_of_client") == 1).await;
    drop(open);
    eventually(|| admission.taken() == 0).await;
}

#[tokio::test]
async fn a_certificate_that_ends_soon_or_has_ended_is_a_condition_until_it_is_renewed() {
    const DAY: i64 = 24 * 3_600;
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let files = write(directory.path(), &ca, &ca);
    let metrics = Metrics::default();
    let _tls = Tls::start(files.clone(), metrics.clone()).unwrap();
    let renew = |from_s, until_s| {
        let (cert, key) = ca.issue_for(&["localhost"], from_s, until_s);
        fs::write(&files.cert, cert).unwrap();
        fs::write(&files.key, key).unwrap();
    };
    let holds = |code| metrics.conditions.holds(code);
    let (soon, ended) = (Code::CertificateEndsSoon, Code::CertificateEnded);
    for (from_s, until_s, is_soon, is_ended) in [
        (-80 * DAY, 10 * DAY, true, false),
        (-80 * DAY, -DAY, false, true),
        (-80 * DAY, 20 * DAY, false, false),
        // A short life is renewed by a machine.
        (-DAY / 2, DAY / 2, false, false),
        (-DAY, DAY / 10, true, false),
        (-DAY, 300 * DAY, false, false),
    ] {
        renew(from_s, until_s);
        eventually(|| holds(soon) == is_soon && holds(ended) == is_ended).await;
    }
}

#[tokio::test]
async fn other_replicas_are_told_a_name_that_the_certificate_has() {
    let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let files = write(directory.path(), &ca, &ca);
    let told = |names: &[&str], host: &str| {
        let (cert, key) = ca.issue(names);
        fs::write(&files.cert, cert).unwrap();
        fs::write(&files.key, key).unwrap();
        let tls = Tls::start(files.clone(), Metrics::default()).unwrap();
        tls.dialer().own_name(host)
    };
    let names = ["*.pods.mesh", "tidegate", "cp-1.mesh", "spiffe://mesh/cp"];
    for (host, name) in [
        ("cp-1.mesh", "cp-1.mesh"),
        ("cp-7.pods.mesh", "cp-7.pods.mesh"),
        // Neither is in it. A pattern is no name.
        ("10.0.0.1", "tidegate"),
        ("cp-2.mesh", "tidegate"),
    ] {
        assert_eq!(told(&names, host), name, "{host}");
    }
    let without = ["spiffe://mesh/cp"];
    assert_eq!(told(&without, "10.0.0.1"), "10.0.0.1");
    assert_eq!(Dialer::plain().own_name("10.0.0.1"), "10.0.0.1");
}
