//! TLS of the proxies.

use super::*;

const FILES: &str = "cert: /certs/tls.crt, key: /certs/tls.key";

fn listeners(tls: &str) -> String {
    format!("listeners: {{gateway: {{address: 0.0.0.0, port: 8443, tls: {tls}}}}}\nservices:\n")
}

fn gateway(tls: &str) -> Result<DownstreamTls, ConfigError> {
    let text = GOOD.replace("services:\n", &listeners(tls));
    let listeners = Config::parse("mesh.yaml", &text)?.mesh.listeners;
    Ok(listeners.gateway.tls.expect("TLS"))
}

fn upstream(tls: &str) -> Result<UpstreamTls, ConfigError> {
    let text = GOOD.replace(
        "  - name: web\n",
        &format!("  - name: web\n    tls: {tls}\n"),
    );
    let mut services = Config::parse("mesh.yaml", &text)?.mesh.services;
    Ok(services.remove(1).tls.expect("TLS"))
}

#[test]
fn a_listener_presents_a_certificate_for_each_host() {
    let tls = gateway(&format!(
        "{{certificates: [{{hosts: [Shop.example, '*.shop.example'], {FILES}}}, {{sds: {{cluster: spire, name: web}}}}]}}"
    ))
    .expect("two certificates");
    assert_eq!(
        tls.certificates[0].hosts,
        ["shop.example", "*.shop.example"]
    );
    let sds = SdsSecret {
        cluster: "spire".to_owned(),
        name: "web".to_owned(),
    };
    assert_eq!(tls.certificates[1].certificate, TlsCertificate::Sds(sds));
    assert!(!tls.require_client_certificate);
}

#[test]
fn a_trusted_ca_requires_certificates_of_clients_unless_told_otherwise() {
    let ca = "trusted_ca: {file: /certs/ca.crt}";
    let demanded = gateway(&format!("{{certificates: [{{{FILES}}}], {ca}}}"));
    assert!(demanded.expect("good").require_client_certificate);
    let optional = gateway(&format!(
        "{{certificates: [{{{FILES}}}], {ca}, require_client_certificate: false}}"
    ));
    assert!(!optional.expect("good").require_client_certificate);
}

#[test]
fn bad_tls_of_a_listener_is_refused_with_what_to_do() {
    for (bad, expected) in [
        (
            "{certificates: []}",
            "tls.certificates: empty: name at least one certificate",
        ),
        (
            "{certificates: [{cert: /a.crt}]}",
            "tls.certificates[0]: name `cert` and `key`, or `sds`",
        ),
        (
            "{certificates: [{cert: a.crt, key: /a.key}]}",
            "tls.certificates[0].cert: \"a.crt\": name a file on the proxies' machines from `/` on",
        ),
        (
            "{certificates: [{cert: /a/a.crt, key: /b/a.key}]}",
            "tls.certificates[0].key: certificate and key lie in two directories: Envoy watches one, and must see both change together",
        ),
        (
            "{certificates: [{cert: /a.crt, key: /a.key}, {cert: /b.crt, key: /b.key}]}",
            "tls.certificates[1].hosts: two certificates are for all other hosts: name the hosts of one",
        ),
        (
            "{certificates: [{hosts: [a.b, A.b], cert: /a.crt, key: /a.key}]}",
            "tls.certificates[0].hosts: \"a.b\" has a certificate already",
        ),
        (
            "{certificates: [{hosts: ['*'], cert: /a.crt, key: /a.key}]}",
            "tls.certificates[0].hosts: \"*\": a DNS name, or `*.` and one; leave `hosts` out for all others",
        ),
        (
            "{certificates: [{cert: /a.crt, key: /a.key}], require_client_certificate: true}",
            "tls.require_client_certificate: nothing says which CA to trust: add `trusted_ca`",
        ),
        (
            "{certificates: [{cert: /a.crt, key: /a.key}], trusted_ca: {}}",
            "tls.trusted_ca: name a `file`, or `sds`",
        ),
        (
            "{certificates: [{sds: {cluster: '', name: a}}]}",
            "tls.certificates[0].sds: name a `cluster` of the proxies' bootstrap and the secret's `name`",
        ),
    ] {
        let error = gateway(bad).expect_err(expected);
        assert_eq!(
            error.to_string(),
            format!("mesh.yaml:7: listeners.gateway.{expected}")
        );
    }
}

#[test]
fn instances_are_verified_by_a_ca_and_a_name() {
    let tls = upstream(
        "{trusted_ca: {file: /certs/ca.crt}, subject_alt_names: ['spiffe://x/web', web.internal]}",
    )
    .expect("good");
    // Text that is no host name is no server name either.
    assert_eq!(tls.sni.as_deref(), Some("web.internal"));
    for (bad, expected) in [
        (
            "{trusted_ca: {file: /ca.crt}, subject_alt_names: []}",
            "subject_alt_names: empty: without a name to compare, any certificate of the CA would do",
        ),
        (
            "{trusted_ca: {file: /ca.crt}, subject_alt_names: ['a b']}",
            "subject_alt_names: \"a b\": neither a DNS name nor a URI such as spiffe://example.org/orders",
        ),
        (
            "{trusted_ca: {file: /ca.crt}, subject_alt_names: [a], sni: ''}",
            "sni: \"\" is no DNS name",
        ),
    ] {
        let error = upstream(bad).expect_err(expected);
        assert_eq!(
            error.to_string(),
            format!("mesh.yaml:14: services[1].tls.{expected}")
        );
    }
}
