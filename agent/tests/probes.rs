//! Each kind of probe against real servers: good ones, and every way in which one can be bad.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent::config::{Config, InstanceConfig};
use agent::health::ProbeVerdict;
use agent::instances::{Instances, Known};
use agent::metrics::Metrics;
use agent::probe::{Probe, ProbeError, build};
use agent::prober::Prober;
use e2e::wait::{PATIENCE, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const HTTP: &str = "{http: {path: /healthz, expect: '200-299'}}";
const GRPC: &str = "{grpc: {service: shop.v1.Orders}}";
const TCP: &str = "{tcp: {}}";

/// A typical configuration of an instance at `address`.
fn configured(address: SocketAddr, probe: &str) -> InstanceConfig {
    let text = format!(
        "zone: a\nregistry: {{http: ['http://127.0.0.1:1']}}\ninstances:\n  - {{service: s, instance: i, address: {}, port: {}, probe: {probe}}}\n",
        address.ip(),
        address.port()
    );
    let config = Config::parse("agent.yaml", &text).unwrap();
    config.instances.into_iter().next().unwrap()
}

/// One look, as the prober takes it, with a short deadline.
async fn look(address: SocketAddr, probe: &str) -> Result<(), ProbeError> {
    let probe: Arc<dyn Probe> = build(&configured(address, probe).probe);
    let after = Duration::from_millis(500);
    let outcome = timeout(after, probe.look()).await;
    outcome.unwrap_or(Err(ProbeError::Timeout { after }))
}

#[track_caller]
fn failed(outcome: Result<(), ProbeError>, code: &str, text: &str) {
    let error = outcome.expect_err(code);
    assert_eq!(error.code(), code, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A server that does `serve` with every connection, in parallel, until the test ends.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Reads some of a request and answers with these bytes.
async fn answering(bytes: &'static [u8]) -> SocketAddr {
    server(move |mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
    })
    .await
}

/// Accepts, and never says a word.
async fn hanging() -> SocketAddr {
    server(async |stream| {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    listener().await.1
}

#[tokio::test]
async fn http_takes_the_status_that_is_expected_and_no_other() {
    let ok = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(look(ok, HTTP).await, Ok(()));
    let empty = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(look(empty, HTTP).await, Ok(()));
    let failing = answering(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    failed(look(failing, HTTP).await, "status", "status 503");
    let moved = answering(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n").await;
    failed(look(moved, HTTP).await, "status", "status 302");
    assert_eq!(look(moved, "{http: {}}").await, Ok(()));
}

#[tokio::test]
async fn http_sends_path_and_host() {
    let address = server(async |mut stream| {
        let mut request = vec![0; 4096];
        let read = stream.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
        let good = request.starts_with("get /up?deep=1 http/1.1\r\n")
            && request.contains("host: shop.example.com\r\n");
        let status = if good { "200 OK" } else { "400 Bad Request" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let probe = "{http: {path: '/up?deep=1', host: shop.example.com}}";
    assert_eq!(look(address, probe).await, Ok(()));
}

#[tokio::test]
async fn http_tells_in_which_way_a_server_is_bad() {
    failed(
        look(nobody().await, HTTP).await,
        "refused",
        "connection refused",
    );
    failed(
        look(hanging().await, HTTP).await,
        "timeout",
        "no answer within 500 ms",
    );
    let garbage = answering(b"\x16\x03\x01\x02\x00garbage\r\n\r\n").await;
    failed(look(garbage, HTTP).await, "bad_answer", "malformed answer");
    let closed = answering(b"").await;
    failed(look(closed, HTTP).await, "bad_answer", "malformed answer");
}

#[tokio::test]
async fn http_waits_for_no_body_and_reads_no_endless_head() {
    let drip = server(async |mut stream| {
        for byte in b"HTTP/1.1 200 OK\r\n".iter().cycle() {
            let _ = stream.write_all(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    failed(look(drip.await, HTTP).await, "timeout", "no answer");
    let endless_head = server(async |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    failed(look(endless_head.await, HTTP).await, "bad_answer", "");
    let endless_body = server(async |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    assert_eq!(look(endless_body.await, HTTP).await, Ok(()));
}

#[tokio::test]
async fn tcp_asks_for_a_connection_only() {
    assert_eq!(look(hanging().await, TCP).await, Ok(()));
    failed(
        look(nobody().await, TCP).await,
        "refused",
        "connection refused",
    );
}

#[tokio::test]
async fn grpc_takes_a_service_that_serves_and_no_other() {
    let (reporter, service) = tonic_health::server::health_reporter();
    let (listener, address) = listener().await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    failed(
        look(address, GRPC).await,
        "not_serving",
        "does not know \"shop.v1.Orders\"",
    );
    assert_eq!(look(address, "{grpc: {}}").await, Ok(()));
    use tonic_health::ServingStatus::{NotServing, Serving};
    reporter.set_service_status("shop.v1.Orders", Serving).await;
    assert_eq!(look(address, GRPC).await, Ok(()));
    reporter
        .set_service_status("shop.v1.Orders", NotServing)
        .await;
    failed(look(address, GRPC).await, "not_serving", "NOT_SERVING");
}

#[tokio::test]
async fn grpc_tells_in_which_way_a_server_is_bad() {
    failed(
        look(nobody().await, GRPC).await,
        "refused",
        "connection refused",
    );
    failed(look(hanging().await, GRPC).await, "timeout", "no answer");
    let http1 = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    failed(look(http1, GRPC).await, "bad_answer", "malformed answer");
    let (listener, address) = listener().await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let (_, other) = tonic_health::server::health_reporter();
    // A gRPC server that has the service under another name only.
    let other = tonic::service::interceptor::InterceptedService::new(other, |_| {
        Err(tonic::Status::unimplemented("no such service"))
    });
    let server = tonic::transport::Server::builder().add_service(other);
    tokio::spawn(server.serve_with_incoming(incoming));
    failed(
        look(address, GRPC).await,
        "not_serving",
        "no gRPC health service",
    );
}

#[tokio::test]
async fn a_look_that_is_given_up_or_done_closes_its_connection() {
    let (opened, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, counting) = (Arc::clone(&opened), Arc::clone(&open));
    let hangs = server(move |mut stream| {
        let (opened, open) = (Arc::clone(&counted), Arc::clone(&counting));
        async move {
            opened.fetch_add(1, Ordering::Relaxed);
            open.fetch_add(1, Ordering::Relaxed);
            // Says nothing, and listens until the other side closes.
            while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
            open.fetch_sub(1, Ordering::Relaxed);
        }
    })
    .await;
    for probe in [HTTP, GRPC] {
        failed(look(hangs, probe).await, "timeout", "no answer");
    }
    assert_eq!(look(hangs, TCP).await, Ok(()));
    let closed = eventually(PATIENCE, "all three to be closed", async || {
        let (opened, open) = (opened.load(Ordering::Relaxed), open.load(Ordering::Relaxed));
        anyhow::ensure!(opened == 3 && open == 0, "{open} of {opened} are open");
        Ok(())
    });
    closed.await.unwrap();
}

/// Starts a prober for each of these instances and returns their table.
fn probe_all(configs: &[InstanceConfig], metrics: &Metrics) -> Instances {
    let known = configs
        .iter()
        .map(|config| (config.key.clone(), Known::new(config.record.clone())));
    let instances = Instances::new(known.collect());
    for config in configs {
        let prober = Prober {
            key: config.key.clone(),
            role: config.role.clone(),
            probe: build(&config.probe),
            pace: config.pace,
        };
        tokio::spawn(prober.run(instances.clone(), metrics.clone()));
    }
    instances
}

#[tokio::test]
async fn many_that_hang_do_not_delay_the_verdict_about_one_that_answers() {
    let hangs = hanging().await;
    let mut configs = Vec::new();
    for n in 0..100 {
        let mut config = configured(hangs, HTTP);
        config.key.instance = format!("hangs-{n}");
        configs.push(config);
    }
    let good = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    configs.push(configured(good, HTTP));
    let good_key = configs[100].key.clone();

    let metrics = Metrics::default();
    let instances = probe_all(&configs, &metrics);
    let mut table = instances.subscribe();
    let first = table.wait_for(|table| table.values().any(|known| known.verdict.is_some()));
    let first = timeout(PATIENCE, first).await.unwrap().unwrap().clone();
    assert_eq!(first[&good_key].verdict, Some(ProbeVerdict::Healthy));
    let all = table.wait_for(|table| table.values().all(|known| known.verdict.is_some()));
    let all = timeout(PATIENCE, all).await.unwrap().unwrap().clone();
    let unhealthy = all
        .values()
        .filter(|known| known.verdict == Some(ProbeVerdict::Unhealthy));
    let reasons: Vec<_> = unhealthy.map(|known| known.reason.clone()).collect();
    assert_eq!(
        reasons,
        vec![Some("no answer within 200 ms".to_owned()); 100]
    );
}

#[tokio::test]
async fn an_instance_that_ends_is_unhealthy_and_one_that_comes_back_is_healthy() {
    let (listener, address) = listener().await;
    let metrics = Metrics::default();
    let instances = probe_all(&[configured(address, TCP)], &metrics);
    let becomes = async |verdict: ProbeVerdict, reason: Option<&str>| {
        let mut table = instances.subscribe();
        let known = table.wait_for(|table| {
            table
                .values()
                .all(|known| known.verdict == Some(verdict) && known.reason.as_deref() == reason)
        });
        timeout(PATIENCE, known).await.unwrap().unwrap();
    };
    becomes(ProbeVerdict::Healthy, None).await;
    drop(listener);
    becomes(ProbeVerdict::Unhealthy, Some("connection refused")).await;
    let _again = TcpListener::bind(address).await.unwrap();
    becomes(ProbeVerdict::Healthy, None).await;

    let shown = eventually(PATIENCE, "the metrics", async || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry())?;
        let labels = r#"az="a",role="instance",probe="tcp",service="s",instance="i""#;
        for line in [
            format!("health_probe_status{{{labels}}} 1\n"),
            format!("health_probe_duration_seconds_count{{{labels}}} "),
            format!("health_probe_failures_total{{{labels},reason=\"refused\"}} "),
        ] {
            anyhow::ensure!(text.contains(&line), "{line} is not in\n{text}");
        }
        Ok(())
    });
    shown.await.unwrap();
}
