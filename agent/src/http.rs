//! The HTTP client of the agent and of operators: one request, a deadline, a bounded answer.
//!
//! It follows no redirect and asks no proxy of the environment: both would send a change, or its
//! answer, elsewhere than the operator said.

use std::error::Error;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use registry::causes::in_one_line;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode, redirect};
use tokio::time::timeout;
use tokio_rustls::rustls::{self, ClientConfig};

use crate::https::{self, Files, HttpsError};

/// How long an unused connection is kept. Shorter than servers keep theirs, so that few requests
/// meet a closed one.
const IDLE_MAX: Duration = Duration::from_secs(2);

/// Sends requests. Cheap to clone: copies share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: reqwest::Client,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("an answer of more than {0} bytes")]
    TooLong(usize),
    /// Its own text says no more than that a request failed, so its causes stand alone.
    #[error("{}", .0.source().map_or_else(|| .0.to_string(), in_one_line))]
    Broken(#[source] reqwest::Error),
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Failure {
        Failure::Broken(error)
    }
}

impl Failure {
    /// Whether no connection opened, so that nothing was sent.
    pub fn is_unsent(&self) -> bool {
        matches!(self, Failure::Broken(error) if error.is_connect() || error.is_builder())
    }

    /// Whether `https://` met a port that speaks no TLS, but plain text.
    pub fn is_plain_text(&self) -> bool {
        self.has_cause(|cause| {
            let error = cause.downcast_ref::<rustls::Error>();
            matches!(error, Some(rustls::Error::InvalidMessage(_)))
        })
    }

    /// Whether the answer is not HTTP.
    pub fn is_no_http(&self) -> bool {
        self.has_cause(|cause| {
            let error = cause.downcast_ref::<hyper::Error>();
            error.is_some_and(hyper::Error::is_parse)
        })
    }

    fn has_cause(&self, is_it: impl Fn(&(dyn Error + 'static)) -> bool) -> bool {
        let Failure::Broken(error) = self else {
            return false;
        };
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(cause) = next {
            if is_it(cause) {
                return true;
            }
            // An I/O error passes over the error that it holds when it is asked for its source.
            let io = cause.downcast_ref::<std::io::Error>();
            next = match io.and_then(std::io::Error::get_ref) {
                Some(held) => Some(held),
                None => cause.source(),
            };
        }
        false
    }
}

impl Client {
    /// For `http://` alone: it trusts no CA.
    pub fn plain() -> Client {
        Client::over(https::plain())
    }

    /// For `https://` too.
    ///
    /// # Errors
    ///
    /// The files cannot be used; the error names the file.
    pub fn with_tls(files: &Files) -> Result<Client, HttpsError> {
        https::config(files).map(Client::over)
    }

    pub(crate) fn over(config: ClientConfig) -> Client {
        let inner = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .http1_only()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .pool_idle_timeout(IDLE_MAX)
            .build()
            .expect("rustls is reqwest's own version, which this crate's tests show");
        Client { inner }
    }

    /// The answer, whatever its status. An answer of more than `bytes_max` is an error.
    ///
    /// # Errors
    ///
    /// There is no answer; see [`Failure`].
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        body: impl Into<Bytes>,
        within: Duration,
        bytes_max: usize,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let is_read = method == Method::GET;
        let mut request = self.inner.request(method, url).body(body.into());
        // Control planes demand it, also without a body: see `cross_origin`.
        if !is_read {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let answered = timeout(within, async {
            let mut answer = request.send().await?;
            let mut body = BytesMut::new();
            while let Some(piece) = answer.chunk().await? {
                if piece.len() > bytes_max.saturating_sub(body.len()) {
                    return Err(Failure::TooLong(bytes_max));
                }
                body.extend_from_slice(&piece);
            }
            Ok((answer.status(), body.freeze()))
        });
        answered.await.unwrap_or(Err(Failure::Timeout(within)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const BYTES_MAX: usize = 10;

    /// The result of a request to a server that says this, and keeps the connection.
    async fn answer(said: &str, within: Duration) -> Result<(StatusCode, Bytes), Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/here", listener.local_addr().unwrap());
        let said = said.replace("{url}", &url);
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4_096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(said.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        };
        let client = Client::plain();
        tokio::select! {
            answer = client.send(Method::GET, &url, "", within, BYTES_MAX) => answer,
            () = serve => unreachable!("it serves until the answer is there"),
        }
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer() {
        let moved = "HTTP/1.1 307 Go\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n";
        let (status, body) = answer(moved, Duration::from_secs(20)).await.unwrap();
        assert_eq!((status.as_u16(), body.len()), (307, 0));
    }

    #[tokio::test]
    async fn an_answer_is_bounded_in_length_and_in_time() {
        let patience = Duration::from_secs(20);
        let of = |length: usize| {
            let body = "x".repeat(length);
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
        };
        let (_, body) = answer(&of(BYTES_MAX), patience).await.unwrap();
        assert_eq!(body.len(), BYTES_MAX);
        let long = answer(&of(BYTES_MAX + 1), patience).await.unwrap_err();
        assert!(matches!(long, Failure::TooLong(BYTES_MAX)), "{long}");
        // The end of the body does not come.
        let half = of(BYTES_MAX).replace("xx", "");
        let late = answer(&half, Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(late, Failure::Timeout(_)), "{late}");
        assert!(!late.is_unsent());
    }

    #[tokio::test]
    async fn a_failure_says_its_cause_and_whether_something_was_sent() {
        let within = Duration::from_secs(20);
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", closed.local_addr().unwrap());
        drop(closed);
        let client = Client::plain();
        let refused = client.send(Method::POST, &url, "", within, 0).await;
        let refused = refused.unwrap_err();
        assert!(refused.is_unsent());
        let told = refused.to_string();
        assert!(told.contains("Connection refused"), "{told}");
        let garbage = answer("SSH-2.0\r\n\r\n", within).await.unwrap_err();
        assert!(garbage.is_no_http() && !garbage.is_unsent(), "{garbage}");
    }
}
