//! Who comes in, and how the port is served: HTTP/1.1, each client within its deadlines.

use std::time::Duration;

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::{RawPathParams, Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use registry::record::RECORD_BYTES_MAX;
use tracing::debug;

use super::{Admin, Problem};
use crate::{
    access::{Caller, NotPermitted},
    connections::Listener,
    tls::{Peer, Stream},
};

/// How long a client may take for a request's headers, and as long again for its body. Between two requests, too.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves what comes in, until it is dropped.
pub async fn serve(listener: Listener, router: Router) {
    listener
        .serve(move |stream, peer| converse(stream, router.clone().layer(Extension(peer))))
        .await;
}

async fn converse(stream: Stream, router: Router) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "connection ended");
    }
}

/// Has the whole body before a handler runs: bytes that drip hold up nothing but their own connection, and not for long.
pub(super) async fn receive(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(REQUEST_TIMEOUT, to_bytes(body, RECORD_BYTES_MAX)).await;
    let (status, detail) = match body {
        Ok(Ok(body)) => return next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(Err(error)) => {
            let detail = format!("at most {RECORD_BYTES_MAX} bytes are taken: {error}");
            (StatusCode::PAYLOAD_TOO_LARGE, detail)
        }
        Err(_) => {
            let detail = format!("the body did not come within {REQUEST_TIMEOUT:?}");
            (StatusCode::REQUEST_TIMEOUT, detail)
        }
    };
    Problem { status, detail }.into_response()
}

/// For what only shows something.
pub(super) async fn readers(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    admin.gate.rules().read(&caller(&request))?;
    Ok(next.run(request).await)
}

/// For what operators do. Reading is for readers.
pub(super) async fn operators(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (rules, caller) = (admin.gate.rules(), caller(&request));
    rules.read(&caller)?;
    if is_write(&request) {
        rules.operate(&caller)?;
    }
    Ok(next.run(request).await)
}

/// For instances, and the leases that they are on. Reading is for readers.
pub(super) async fn registrars(
    State(admin): State<Admin>,
    path: RawPathParams,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (rules, caller) = (admin.gate.rules(), caller(&request));
    rules.read(&caller)?;
    if is_write(&request) {
        // As the handler reads it.
        match path.iter().find(|(name, _)| *name == "zone") {
            Some((_, zone)) => rules.register(&caller, zone)?,
            None => admin.gate.lease(&caller)?,
        }
    }
    Ok(next.run(request).await)
}

fn is_write(request: &Request) -> bool {
    !matches!(*request.method(), Method::GET | Method::HEAD)
}

/// Where nobody says who it is, it is nobody.
fn caller(request: &Request) -> Caller {
    let peer = request.extensions().get::<Peer>();
    peer.map_or(Caller::Anonymous, |peer| peer.caller.clone())
}

impl From<NotPermitted> for Problem {
    fn from(error: NotPermitted) -> Problem {
        Problem {
            status: StatusCode::FORBIDDEN,
            detail: error.to_string(),
        }
    }
}
