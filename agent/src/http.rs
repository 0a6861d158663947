//! A small HTTP client: one request, a deadline, a bounded body.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use crate::https::{self, Connector};

/// How long an unused connection is kept. Shorter than servers keep theirs, so that few requests
/// meet a closed one.
const IDLE_MAX: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct Client {
    inner: legacy::Client<Connector, Full<Bytes>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Broken(String),
}

impl Client {
    /// For `http://` alone.
    pub(crate) fn new() -> Client {
        Client::over(https::plain())
    }

    pub(crate) fn over(connector: Connector) -> Client {
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        Client { inner }
    }

    /// The answer, whatever its status. A body over `bytes_max` is an error.
    pub(crate) async fn send(
        &self,
        method: Method,
        uri: Uri,
        body: Vec<u8>,
        within: Duration,
        bytes_max: usize,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        // Control planes demand it, also without a body: see `cross_origin`.
        let json = HeaderValue::from_static("application/json");
        if method != Method::GET {
            request.headers_mut().insert(CONTENT_TYPE, json);
        }
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let answered = timeout(within, async {
            let response = self.inner.request(request).await;
            let response =
                response.map_err(|error| Failure::Broken(crate::probe::chain(&error)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), bytes_max)
                .collect()
                .await;
            let body = body.map_err(|error| Failure::Broken(error.to_string()))?;
            Ok((status, body.to_bytes()))
        });
        answered.await.unwrap_or(Err(Failure::Timeout(within)))
    }
}
