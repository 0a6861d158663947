//! HTTP/1.1: a GET, and whether the status is one of those expected.
//!
//! Every look has a connection of its own. A kept one would stay good while the listener is gone,
//! or while the accept queue is full, and that is what new requests meet. The status decides; of
//! the body nothing is waited for, and of the head at most [`HEAD_BYTES_MAX`] are read.
//!
//! By hyper and not by [`crate::http::Client`], which hides the connection: here the address and
//! the `host` header are two settings, a refused connection has a code of its own, the head has a
//! bound, and dropping the look closes the socket at once.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::pin;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use registry::causes::in_one_line;
use tokio::net::TcpStream;

use super::{Probe, ProbeError};

/// The longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The request, and the expected answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    pub address: SocketAddr,
    pub path: PathAndQuery,
    pub host: HeaderValue,
    /// Redirects are not followed: their status counts.
    pub expect: Vec<RangeInclusive<u16>>,
}

/// Sends a GET.
pub struct HttpProbe {
    options: HttpOptions,
}

impl HttpProbe {
    pub fn new(options: HttpOptions) -> HttpProbe {
        HttpProbe { options }
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.options.path.clone().into();
        let headers = request.headers_mut();
        headers.insert(HOST, self.options.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static("tidegate-agent"));
        // The server closes, so that the TIME_WAIT of a connection per look is not all on this
        // side.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        request
    }
}

#[async_trait]
impl Probe for HttpProbe {
    fn kind(&self) -> &'static str {
        "http"
    }

    async fn look(&self) -> Result<(), ProbeError> {
        let stream = TcpStream::connect(self.options.address)
            .await
            .map_err(|error| ProbeError::connecting(&error))?;
        let bad_answer = |error: hyper::Error| ProbeError::BadAnswer(in_one_line(&error));
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(bad_answer)?;
        let mut response = pin!(sender.send_request(self.request()));
        // In this task, not in one of its own: dropping this future closes the connection.
        let answer = tokio::select! {
            biased;
            answer = &mut response => answer,
            // It ended, perhaps with the answer.
            _ = connection => response.await,
        };
        let status = answer.map_err(bad_answer)?.status().as_u16();
        let expected = self
            .options
            .expect
            .iter()
            .any(|range| range.contains(&status));
        if expected {
            Ok(())
        } else {
            Err(ProbeError::Status(status))
        }
    }
}
