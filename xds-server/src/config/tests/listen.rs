//! Access to the ports.

use super::*;

const TLS: &str = "tls: {cert: c.pem, key: k.pem, client_ca: ca.pem}";

#[test]
fn plain_text_is_for_loopback_unless_it_is_asked_for() {
    for (listen, expected) in [
        ("", (false, false)),
        ("xds: '127.9.9.9:1', admin: '[::1]:2'", (false, false)),
        ("admin: '[::ffff:127.0.0.1]:2'", (false, false)),
        (
            "xds: '0.0.0.0:1', admin: '0.0.0.0:2', plaintext: [xds, admin]",
            (false, false),
        ),
        (&format!("xds: '0.0.0.0:1', {TLS}"), (true, true)),
        (
            &format!("xds: '0.0.0.0:1', admin: '0.0.0.0:2', {TLS}, plaintext: [admin]"),
            (true, false),
        ),
    ] {
        let listen = with(&format!("listen: {{{listen}}}")).unwrap().listen;
        assert_eq!(
            (listen.xds.is_tls, listen.admin.is_tls),
            expected,
            "{listen:?}"
        );
    }
    for (listen, expected) in [
        (
            "xds: '0.0.0.0:1'",
            "listen.xds: 0.0.0.0:1 is not loopback, and would speak plain text with every client that reaches it: add `listen.tls`, or permit that with `listen.plaintext: [xds]`",
        ),
        (
            "xds: '[::]:1', admin: '10.0.0.1:2', plaintext: [xds]",
            "listen.admin: 10.0.0.1:2 is not loopback, and would speak plain text with every client that reaches it: add `listen.tls`, or permit that with `listen.plaintext: [admin]`",
        ),
        (
            &format!("{TLS}, plaintext: [xds, admin]"),
            "listen.tls: no port uses it: take one out of `listen.plaintext`, or leave `tls` out",
        ),
        (
            "tls: {cert: c.pem, key: k.pem}",
            "listen.tls: missing field `client_ca`",
        ),
        (
            "limits: {per_client: 0}",
            "listen.limits: numbers from 1: 0 would reject every client",
        ),
    ] {
        let error = with(&format!("listen: {{{listen}}}")).expect_err(expected);
        assert_eq!(error.to_string(), format!("mesh.yaml:1: {expected}"));
    }
}

#[test]
fn access_is_read_and_its_contradictions_are_refused() {
    let read = |access: &str| with(&format!("listen: {{{TLS}}}\naccess: {{{access}}}"));
    let access = read(
        "proxies: [{match: 'gw.{zone}', zones: [beijing-c], roles: [sidecar]}], operators: [{match: ops}]",
    );
    let access = access.unwrap().mesh.access;
    let proxies = access.proxies.as_ref().unwrap();
    assert_eq!(proxies[0].zones, Some(vec!["beijing-c".to_owned()]));
    assert_eq!(proxies[0].roles, Some(vec![crate::snapshot::Role::Sidecar]));
    assert_eq!(access.registrars, None);
    assert_eq!(access.operators.as_ref().map(Vec::len), Some(1));
    for (access, expected) in [
        (
            "proxies: [{match: a}, {match: 'a*'}]",
            "access.proxies[1].match: \"a*\": `*` stands for a whole path segment or label, not for a part of one",
        ),
        (
            "proxies: [{match: a, zones: [mars]}]",
            "access.proxies[0].zones: there is no zone \"mars\"",
        ),
        (
            "proxies: []",
            "access.proxies: empty, which permits no client: add a rule, or leave it out to permit every client with a certificate",
        ),
        (
            "proxies: [{match: a, roles: []}]",
            "access.proxies[0].match: empty `zones` or `roles` permit nothing: leave them out for all",
        ),
        (
            "registrars: [{match: 'a.{role}'}]",
            "access.registrars[0].match: roles are for proxies: leave them out here",
        ),
        (
            "operators: [{match: 'a.{zone}'}]",
            "access.operators[0].match: operators belong to no zone: leave zones out here",
        ),
    ] {
        let error = read(access).expect_err(expected);
        assert_eq!(error.to_string(), format!("mesh.yaml:2: {expected}"));
    }
    let error = with("access: {proxies: [{match: a}]}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "mesh.yaml:1: access.proxies: listen.xds speaks plain text, where no client presents a certificate: configure `listen.tls` for it, or leave this out"
    );
}

#[test]
fn the_address_for_other_replicas_is_one_host_and_port() {
    let listen = |fields: &str| with(&format!("listen: {{{fields}}}")).map(|config| config.listen);
    let good = listen("advertise: 'cp-1.tidegate:18000', advertise_name: tidegate").unwrap();
    assert_eq!(good.advertise.as_deref(), Some("cp-1.tidegate:18000"));
    assert_eq!(good.advertise_name.as_deref(), Some("tidegate"));
    assert!(listen("advertise: '[2001:db8::1]:18000'").is_ok());
    for bad in [
        "0.0.0.0:18000",
        "[::]:18000",
        "cp-1",
        "cp-1:0",
        "cp-1:x",
        ":18000",
        "a/b:1",
    ] {
        let error = listen(&format!("advertise: '{bad}'")).expect_err(bad);
        let expected = "mesh.yaml:1: listen.advertise: not `host:port` of one host: other replicas connect to it";
        assert_eq!(error.to_string(), expected, "{bad}");
    }
    let error = listen("advertise_name: 'a b'").unwrap_err().to_string();
    assert!(error.contains("listen.advertise_name"), "{error}");
}
