//! One gRPC stream on HTTP/2: messages in, frames out. See gRPC's "gRPC over HTTP2".

use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use tonic::Status;

use super::{
    Pieces,
    http2::{Gone, Received, Responder},
    partial_messages::{Budget, Unfinished},
};

/// Each message has a prefix: a byte that says whether it is compressed, and its length in four.
pub(crate) const PREFIX_BYTES: usize = 5;

/// The longest request. A reconnecting proxy with a hundred thousand clusters names each of them
/// twice.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Splits a stream of bytes into messages. Memory is allocated for received bytes, never for a
/// promised length.
#[derive(Debug)]
pub(crate) struct Messages {
    /// As it arrived; empty while `partial` has bytes. Most messages arrive in one piece and are
    /// not copied.
    whole: Bytes,
    /// The beginning of an incomplete message.
    partial: BytesMut,
    message_bytes_max: usize,
}

impl Messages {
    pub(crate) fn new(message_bytes_max: usize) -> Messages {
        Messages {
            whole: Bytes::new(),
            partial: BytesMut::new(),
            message_bytes_max,
        }
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        if self.whole.is_empty() && self.partial.is_empty() {
            self.whole = bytes;
        } else {
            self.stash();
            self.partial.extend_from_slice(&bytes);
        }
    }

    /// The next complete message. Fails if the bytes are no message, or one that is too long.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let in_pieces = !self.partial.is_empty();
        let waiting: &[u8] = if in_pieces {
            &self.partial
        } else {
            &self.whole
        };
        let Some(len) = self.message_len(waiting)? else {
            self.stash();
            return Ok(None);
        };
        if !in_pieces {
            self.whole.advance(PREFIX_BYTES);
            return Ok(Some(self.whole.split_to(len)));
        }
        self.partial.advance(PREFIX_BYTES);
        let message = self.partial.split_to(len).freeze();
        if self.partial.is_empty() {
            // So that the memory of a long message is not kept for the life of the stream.
            self.partial = BytesMut::new();
        }
        Ok(Some(message))
    }

    /// How many bytes wait for the rest of their message.
    fn waiting(&self) -> usize {
        self.partial.len()
    }

    /// The length of the message at the start of `waiting`; none if it is not complete.
    fn message_len(&self, waiting: &[u8]) -> Result<Option<usize>, Status> {
        let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [compressed, len @ ..] = *prefix;
        if compressed != 0 {
            return Err(Status::unimplemented(
                "compressed messages are not supported: switch compression off for this cluster",
            ));
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > self.message_bytes_max {
            return Err(Status::resource_exhausted(format!(
                "a message of {len} bytes; at most {} are accepted",
                self.message_bytes_max
            )));
        }
        Ok((len <= rest.len()).then_some(len))
    }

    /// Keeps the beginning of a message, and frees the larger buffer that it arrived in.
    fn stash(&mut self) {
        self.partial.extend_from_slice(&self.whole);
        self.whole = Bytes::new();
    }
}

/// The messages of a client.
pub struct Incoming {
    received: Received,
    messages: Messages,
    unfinished: Unfinished,
}

impl Incoming {
    pub(crate) fn new(received: Received, budget: Budget) -> Incoming {
        Incoming {
            received,
            messages: Messages::new(MESSAGE_BYTES_MAX),
            unfinished: Unfinished::new(budget),
        }
    }

    /// The next message; none after the end, or if the client is gone. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        // Ends with the received data.
        loop {
            let next = self.messages.next()?;
            self.unfinished.follow(self.messages.waiting())?;
            if next.is_some() {
                return Poll::Ready(Ok(next));
            }
            match self.received.poll_data(context) {
                Poll::Ready(Some(Ok(data))) => self.messages.push(data),
                Poll::Ready(Some(Err(Gone)) | None) => return Poll::Ready(Ok(None)),
                Poll::Pending => return self.unfinished.poll_late(context).map(Err),
            }
        }
    }
}

/// The messages to a client.
pub struct Outgoing {
    responder: Responder,
}

impl Outgoing {
    /// Begins the response.
    pub(crate) fn begin(mut responder: Responder) -> Result<Outgoing, Gone> {
        responder.begin(head())?;
        Ok(Outgoing { responder })
    }

    /// Responds with an error only.
    pub(crate) fn refuse(responder: Responder, status: &Status) -> Result<(), Gone> {
        let mut head = head();
        head.headers_mut().extend(trailers(status));
        responder.respond(head)
    }

    /// Hands over a message. The connection holds it until the client reads it, so the sender
    /// bounds the number of messages.
    pub(crate) fn send(&mut self, message: Pieces) -> Result<(), Gone> {
        self.responder.send(message)
    }

    /// Ends the stream.
    pub(crate) fn finish(self, status: &Status) -> Result<(), Gone> {
        self.responder.finish(Some(trailers(status)))
    }
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    head.headers_mut().insert(header::CONTENT_TYPE, grpc);
    head
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let code = HeaderValue::from(status.code() as i32);
    trailers.insert(HeaderName::from_static("grpc-status"), code);
    if let Ok(message) = HeaderValue::try_from(escaped(status.message())) {
        trailers.insert(HeaderName::from_static("grpc-message"), message);
    }
    trailers
}

/// Escapes only the bytes that a header cannot hold, so that Envoy's log shows the message
/// unchanged.
fn escaped(message: &str) -> String {
    let escape = |byte: u8| match byte {
        b'%' | ..b' ' | 0x7f.. => format!("%{byte:02X}"),
        _ => char::from(byte).to_string(),
    };
    message.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            bytes.push(0);
            bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
            bytes.extend_from_slice(message);
        }
        bytes
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_they_are_cut(
            sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
            step in 1..40usize,
        ) {
            let mut messages = Messages::new(50);
            let mut received = Vec::new();
            for piece in framed(&sent).chunks(step) {
                messages.push(Bytes::copy_from_slice(piece));
                while let Some(message) = messages.next().expect("all is well") {
                    received.push(message.to_vec());
                }
            }
            prop_assert_eq!(received, sent);
            prop_assert!(messages.partial.is_empty() && messages.whole.is_empty());
        }
    }

    #[test]
    fn a_message_is_escaped_where_it_has_to_be() {
        let status = Status::not_found("no zone \"ü\":\n100 % wrong");
        let trailers = trailers(&status);
        assert_eq!(trailers["grpc-status"], "5");
        let expected = "no zone \"%C3%BC\":%0A100 %25 wrong";
        assert_eq!(trailers["grpc-message"], expected);
    }

    #[test]
    fn what_is_too_long_or_compressed_is_an_error_before_it_has_come() {
        let mut messages = Messages::new(50);
        messages.push(Bytes::from_static(&[0, 0, 0, 0, 51]));
        let error = messages.next().expect_err("too long");
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        let mut messages = Messages::new(50);
        messages.push(Bytes::from_static(&[1, 0, 0, 0, 1, 7]));
        let error = messages.next().expect_err("compressed");
        assert_eq!(error.code(), tonic::Code::Unimplemented);
    }
}
