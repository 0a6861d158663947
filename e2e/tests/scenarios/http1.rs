//! An HTTP/1.1-only instance, with behaviour of servers that the sample upstream lacks.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use e2e::mesh::Mesh;
use e2e::registry::{Instance, InstanceName};
use futures::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// By the end of the path: `/status/N` answers with status N, `/slow/MS` takes that long,
/// `/quiet/MS` begins its answer at once and ends it after that time. It accepts upgrades and
/// echoes all bytes afterwards. Any other request is read to its end and measured.
pub(crate) struct Http1 {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Http1 {
    pub(crate) async fn start() -> Result<Http1> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&connections)));
        Ok(Http1 {
            address,
            connections,
            accepting,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of open connections.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Registers it as an instance of a service.
    pub(crate) async fn register(&self, mesh: &Mesh, service: &str, zone: &str) -> Result<()> {
        register(mesh, service, zone, "http1", self.address).await
    }
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Registers the server at `address` as an instance of a service.
pub(crate) async fn register(
    mesh: &Mesh,
    service: &str,
    zone: &str,
    instance: &str,
    address: SocketAddr,
) -> Result<()> {
    let name = InstanceName::new(service, zone, instance);
    let put = mesh
        .registry()
        .put(&name, &Instance::at(address), None)
        .await?;
    ensure!(put.status.is_success(), "{}", put.text());
    Ok(())
}

async fn accept(listener: TcpListener, open: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let open = Arc::clone(&open);
        connections.spawn(async move {
            open.fetch_add(1, Ordering::SeqCst);
            let server = http1::Builder::new();
            let connection = server.serve_connection(TokioIo::new(stream), service_fn(answer));
            // An error on a connection concerns only the peer.
            let _ = connection.with_upgrades().await;
            open.fetch_sub(1, Ordering::SeqCst);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let mut path = request.uri().path().rsplit('/');
    let (number, what) = (path.next().unwrap_or_default(), path.next());
    let number = number.parse::<u16>().unwrap_or(0);
    let pause = Duration::from_millis(number.into());
    let mut response = Response::new(whole(Bytes::new()));
    if let Some(protocol) = request.headers().get(UPGRADE).cloned() {
        tokio::spawn(async move {
            let Ok(upgraded) = hyper::upgrade::on(&mut request).await else {
                return;
            };
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, "upgrade".parse().expect("a header's value"));
        return Ok(response);
    }
    match what {
        Some("status") => *response.status_mut() = StatusCode::from_u16(number).expect("a status"),
        Some("slow") => sleep(pause).await,
        Some("quiet") => {
            let parts = stream::iter(["first", "last"]).then(move |part| async move {
                if part == "last" {
                    sleep(pause).await;
                }
                Ok(Frame::data(Bytes::from(part)))
            });
            *response.body_mut() = StreamBody::new(parts).boxed_unsync();
        }
        _ => {
            let headers: HashMap<_, _> = (request.headers().iter())
                .map(|(name, value)| (name.to_string(), lossy(value.as_bytes())))
                .collect();
            let version = format!("{:?}", request.version());
            let length = match request.into_body().collect().await {
                Ok(body) => body.to_bytes().len(),
                Err(_) => return Ok(response),
            };
            let seen = json!({ "length": length, "version": version, "headers": headers });
            *response.body_mut() = whole(seen.to_string().into());
        }
    }
    Ok(response)
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server's answer to a raw request.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Said {
    /// The `reason` of a body of problem details.
    pub(crate) fn reason(&self) -> Result<String> {
        let text = &self.text;
        ensure!(
            text.contains("content-type: application/problem+json"),
            "{text}"
        );
        let from = text.find("\r\n\r\n").context("no body")?;
        let body = text[from..].trim_matches(['\r', '\n']);
        let problem: Value = serde_json::from_str(body).with_context(|| text.clone())?;
        ensure!(problem["status"] == self.status, "{problem}");
        let reason = problem["reason"].as_str();
        Ok(reason.context("no reason")?.to_owned())
    }
}

/// Sends bytes over a new connection, and reads until its end.
pub(crate) async fn say(to: SocketAddr, request: &str, within: Duration) -> Result<Said> {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let text = lossy(&answer);
        let status = text.split(' ').nth(1).context("no status")?;
        Ok(Said {
            status: status.parse().with_context(|| text.clone())?,
            text,
        })
    };
    let said = tokio::time::timeout(within, exchange).await;
    let said = said.with_context(|| format!("no end within {within:?}"));
    said.flatten().with_context(|| request.to_owned())
}
