//! Access checks for the admin port, and its HTTP/1.1 server with deadlines for each client.

use std::time::Duration;

use agent::cross_origin::{self, CrossOrigin};
use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::{RawPathParams, Request, State},
    http::{Method, StatusCode},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use registry::record::RECORD_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::{Admin, Problem};
use crate::{
    net::access::{Access, Caller, NotPermitted},
    net::connections::Listener,
    net::tls::Peer,
};

/// How long a client may take for a request's headers, again for its body, and between two
/// requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves connections, until it is dropped.
pub async fn serve(listener: Listener, router: Router) {
    listener
        .serve(move |stream, peer| converse(stream, router.clone().layer(Extension(peer))))
        .await;
}

async fn converse<Io>(stream: Io, router: Router)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "connection ended");
    }
}

/// The same access checks for another port: with TLS, all requests but probes need a certificate.
pub(crate) fn guarded(router: Router) -> Router {
    router
        .layer(from_fn(receive))
        .layer(from_fn(own_pages))
        .layer(from_fn(certified))
}

async fn certified(request: Request, next: Next) -> Result<Response, Problem> {
    let is_probe = ["/healthz", "/readyz"].contains(&request.uri().path());
    if !is_probe {
        Access::default().read(&Peer::of(request.extensions()))?;
    }
    Ok(next.run(request).await)
}

/// Reads the whole body before a handler runs: a slow body delays only its own connection, and not
/// for long.
pub(super) async fn receive(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(REQUEST_TIMEOUT, to_bytes(body, RECORD_BYTES_MAX)).await;
    let (status, detail) = match body {
        Ok(Ok(body)) => return next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(Err(error)) => {
            let detail = format!("at most {RECORD_BYTES_MAX} bytes are accepted: {error}");
            (StatusCode::PAYLOAD_TOO_LARGE, detail)
        }
        Err(_) => {
            let detail = format!("the body did not arrive within {REQUEST_TIMEOUT:?}");
            (StatusCode::REQUEST_TIMEOUT, detail)
        }
    };
    Problem::new(status, detail).into_response()
}

/// Rejects requests that a browser may have sent for a foreign page.
pub(super) async fn own_pages(request: Request, next: Next) -> Result<Response, Problem> {
    let is_tls = !matches!(Peer::of(request.extensions()), Caller::Plain);
    cross_origin::check(request.method(), request.headers(), is_tls)?;
    Ok(next.run(request).await)
}

impl From<CrossOrigin> for Problem {
    fn from(error: CrossOrigin) -> Problem {
        Problem::new(error.status(), error)
    }
}

/// For read-only requests.
pub(super) async fn readers(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    admin.rules.rules().read(&Peer::of(request.extensions()))?;
    Ok(next.run(request).await)
}

/// For operators' changes. Read-only requests need a reader.
pub(super) async fn operators(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (rules, caller) = (admin.rules.rules(), Peer::of(request.extensions()));
    rules.read(&caller)?;
    if is_write(&request) {
        rules.operate(&caller)?;
    }
    Ok(next.run(request).await)
}

/// For instances and their leases. Read-only requests need a reader.
pub(super) async fn registrars(
    State(admin): State<Admin>,
    path: RawPathParams,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (rules, caller) = (admin.rules.rules(), Peer::of(request.extensions()));
    rules.read(&caller)?;
    if is_write(&request) {
        // Parsed like in the handler.
        match path.iter().find(|(name, _)| *name == "zone") {
            Some((_, zone)) => rules.register(&caller, zone)?,
            None => admin.rules.lease(&caller)?,
        }
    }
    Ok(next.run(request).await)
}

fn is_write(request: &Request) -> bool {
    !matches!(*request.method(), Method::GET | Method::HEAD)
}

impl From<NotPermitted> for Problem {
    fn from(error: NotPermitted) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, error)
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Bytes, routing::post};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{Instant, sleep, timeout},
    };

    use super::*;

    /// The response to a client that sends these bytes, one each second, and the time until it.
    async fn drip(bytes: &[u8]) -> (String, Duration) {
        let router = Router::new()
            .route(
                "/",
                post(async |body: Bytes| format!("{} bytes", body.len())),
            )
            .layer(from_fn(receive));
        let (client, server) = duplex(1 << 20);
        let (mut reader, mut writer) = tokio::io::split(client);
        let began = Instant::now();
        let serving = tokio::spawn(converse(server, router));
        let dripping = async {
            for byte in bytes {
                if writer.write_all(&[*byte]).await.is_err() {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
            std::future::pending().await
        };
        let mut answer = String::new();
        tokio::select! {
            read = reader.read_to_string(&mut answer) => drop(read.expect("text")),
            () = dripping => {}
        }
        let ended = timeout(Duration::from_secs(60), serving).await;
        ended.expect("it ends").expect("it does not panic");
        (answer, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_drips_is_sent_away() {
        for head in ["", "POST / HTTP/1.1\r\nhost: x\r\nx: "] {
            let (answer, after) = drip(head.as_bytes()).await;
            assert!(!answer.contains("200"), "{answer}");
            assert!(after <= Duration::from_secs(11), "{after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_a_body_byte_by_byte_is_told_so() {
        let router = Router::new()
            .route(
                "/",
                post(async |body: Bytes| format!("{} bytes", body.len())),
            )
            .layer(from_fn(receive));
        let (mut client, server) = duplex(1 << 20);
        let serving = tokio::spawn(converse(server, router));
        let head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n";
        client.write_all(head).await.unwrap();
        client.write_all(b"123").await.unwrap();
        let mut answer = vec![0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 408");
        drop(client);
        serving.await.unwrap();
    }
}
