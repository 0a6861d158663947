//! An HTTP client that reuses connections and hides nothing: no retries, no redirects, every status
//! is a [`Reply`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long one request may take. Only a hung server takes so long.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The version of HTTP that a [`Client`] speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    /// With prior knowledge, without TLS.
    Http2,
}

/// A client with its pool of connections. Clones share the pool.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<HttpConnector, Full<Bytes>>,
}

/// A request, without its target.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// After how long its client disconnects, if earlier than by default: for loads.
    pub patience: Option<Duration>,
}

/// Any response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The response of the sample upstream: its name and the request that arrived there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    pub service: String,
    pub zone: String,
    pub instance: String,
    pub method: String,
    pub path: String,
    /// Lower case; several of one name are joined by `", "`.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn new(method: Method, path: &str) -> Request {
        Request {
            method,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            patience: None,
        }
    }

    /// A read.
    pub fn get(path: &str) -> Request {
        Request::new(Method::GET, path)
    }

    /// A write, with a small body.
    pub fn post(path: &str) -> Request {
        let mut request = Request::new(Method::POST, path);
        request.body = Bytes::from_static(b"{}");
        request
    }

    /// Adds a header; an existing one of the same name stays.
    ///
    /// # Panics
    /// On an invalid header: the caller wrote it in a test.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Request {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header's name");
        let value = HeaderValue::from_bytes(value.as_ref()).expect("a header's value");
        self.headers.append(name, value);
        self
    }

    /// Sets the time after which a load's client disconnects.
    pub fn patience(mut self, patience: Duration) -> Request {
        self.patience = Some(patience);
        self
    }

    /// Names the request's home: a zone or a region.
    pub fn home(self, place: &str) -> Request {
        self.header("x-region-id", place)
    }

    pub fn json(mut self, body: &Value) -> Request {
        self.body = body.to_string().into();
        self.header(CONTENT_TYPE.as_str(), "application/json")
    }
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first header of this name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The JSON body of a success.
    pub fn json<T: for<'de> Deserialize<'de>>(&self) -> Result<T> {
        ensure!(self.status.is_success(), "{}: {}", self.status, self.text());
        serde_json::from_slice(&self.body).with_context(|| self.text())
    }

    /// The echo of the sample upstream.
    pub fn echo(&self) -> Result<Echo> {
        self.json()
    }

    /// The reason of a rejection (RFC 9457 problem details).
    pub fn refusal(&self) -> Result<String> {
        let content_type = self.header("content-type").unwrap_or_default();
        ensure!(
            content_type == "application/problem+json",
            "{} {content_type:?}: {}",
            self.status,
            self.text()
        );
        let problem: Value = serde_json::from_slice(&self.body)?;
        let status = problem["status"].as_u64();
        ensure!(status == Some(self.status.as_u16().into()), "{problem}");
        let reason = problem["reason"].as_str();
        Ok(reason.context("a problem without a reason")?.to_owned())
    }
}

impl Client {
    pub fn new(version: Version) -> Client {
        let mut connector = HttpConnector::new();
        // Each small request waits for its response.
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(TIMEOUT));
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .http2_only(version == Version::Http2)
            // A request on a closed connection is a failure that a test has to see.
            .retry_canceled_requests(false)
            .build(connector);
        Client { inner }
    }

    /// An error means that there was no response.
    pub async fn send(&self, to: SocketAddr, request: &Request) -> Result<Reply> {
        let what = || format!("{} {} to {to}", request.method, request.path);
        tokio::time::timeout(TIMEOUT, self.exchange(to, request))
            .await
            .with_context(|| format!("no answer within {TIMEOUT:?}"))
            .flatten()
            .with_context(what)
    }

    async fn exchange(&self, to: SocketAddr, request: &Request) -> Result<Reply> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(to.to_string())
            .path_and_query(&request.path)
            .build()?;
        let mut wire = hyper::Request::new(Full::new(request.body.clone()));
        *wire.method_mut() = request.method.clone();
        *wire.uri_mut() = uri;
        *wire.headers_mut() = request.headers.clone();
        let (head, body) = self.inner.request(wire).await?.into_parts();
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }
}
