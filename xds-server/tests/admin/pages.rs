//! Foreign web pages: an operator's browser makes no changes for them.

use xds_server::net::access::Caller;

use super::Fixture;

/// Every route that changes something, and the read-only one that uses POST.
const CHANGES: [(&str, &str); 11] = [
    ("POST", "/v1/explain"),
    ("PUT", "/v1/intents/sh-a"),
    ("DELETE", "/v1/intents/sh-a"),
    ("POST", "/v1/failback/sh-a"),
    ("POST", "/v1/cells/main/move"),
    ("POST", "/v1/cells/main/override"),
    ("POST", "/v1/confirm"),
    ("PUT", "/v1/instances/orders/sh-a/1"),
    ("DELETE", "/v1/instances/orders/sh-a/1"),
    ("POST", "/v1/leases"),
    ("POST", "/v1/leases/1/keepalive"),
];

#[tokio::test]
async fn requests_of_a_browser_for_a_foreign_page_are_rejected_on_every_route() {
    let fixture = Fixture::start("").await;
    let host = ("host", "127.0.0.1:18001");
    let json = ("content-type", "application/json");
    for (method, path) in CHANGES {
        let sent = async |headers: &[(&str, &str)]| {
            let sent = fixture
                .send(Caller::Plain, method, path, headers, "{}")
                .await;
            sent.status.as_u16()
        };
        let evil = ("origin", "https://evil.example");
        assert_eq!(sent(&[host, evil, json]).await, 403, "{method} {path}");
        let form = ("content-type", "text/plain");
        if method != "DELETE" {
            assert_eq!(sent(&[host, form]).await, 415, "{method} {path}");
            assert_eq!(sent(&[host]).await, 415, "{method} {path}");
        }
        let own = ("origin", "http://127.0.0.1:18001");
        for headers in [&[host, json][..], &[host, own, json]] {
            let status = sent(headers).await;
            assert!(![403, 415].contains(&status), "{method} {path}: {status}");
        }
    }
    // Reads and probes still work.
    for path in ["/readyz", "/v1/zones", "/v1/instances"] {
        let evil = [host, ("origin", "https://evil.example")];
        let answer = fixture.send(Caller::Plain, "GET", path, &evil, "").await;
        answer.is(200);
    }
}
