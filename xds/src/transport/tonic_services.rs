//! tonic's services on this module's connections.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::{Either, select};
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tonic::{body::Body, service::Routes};
use tower_service::Service;

use super::{
    PREFIX_BYTES, Pieces,
    http2::{Gone, Received, Responder},
    partial_messages::{Budget, Unfinished},
};

/// The most data that waits for a client to read it.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

/// Answers a request by `routes`.
pub(super) async fn call(
    mut routes: Routes,
    request: Request<Received>,
    mut responder: Responder,
    budget: Budget,
) {
    let request = request.map(|received| {
        Body::new(RequestBody {
            received,
            message: Outline::default(),
            unfinished: Unfinished::new(budget),
        })
    });
    let answer = async {
        let ready = poll_fn(|context| Service::<Request<Body>>::poll_ready(&mut routes, context));
        let Ok(()): Result<(), Infallible> = ready.await;
        let Ok(response): Result<_, Infallible> = routes.call(request).await;
        response
    };
    let Some(response) = unless_gone(&mut responder, answer).await else {
        return;
    };
    let (head, body) = response.into_parts();
    let head = http::Response::from_parts(head, ());
    // From here on only a disconnected client makes this fail.
    let _ = if body.is_end_stream() {
        responder.respond(head)
    } else {
        respond(responder, head, body).await
    };
}

/// The outcome of `work`; none if the client disconnects before.
async fn unless_gone<T>(responder: &mut Responder, work: impl Future<Output = T>) -> Option<T> {
    let gone = pin!(poll_fn(|context| responder.poll_gone(context)));
    match select(gone, pin!(work)).await {
        Either::Left(((), _)) => None,
        Either::Right((done, _)) => Some(done),
    }
}

async fn respond(
    mut responder: Responder,
    head: http::Response<()>,
    mut body: Body,
) -> Result<(), Gone> {
    responder.begin(head)?;
    // Ends with the body, or with the client.
    loop {
        let frame = unless_gone(&mut responder, body.frame()).await;
        match frame.ok_or(Gone)? {
            None => return responder.finish(None),
            // tonic reports failures in the trailers.
            Some(Err(_)) => return Err(Gone),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => send(&mut responder, data).await?,
                Err(frame) => return responder.finish(frame.into_trailers().ok()),
            },
        }
    }
}

/// Hands over data as the client reads it. No more data is produced meanwhile, to bound it.
async fn send(responder: &mut Responder, mut data: Bytes) -> Result<(), Gone> {
    while !data.is_empty() {
        let wanted = data.len().min(QUEUE_BYTES_MAX);
        let room = poll_fn(|context| responder.poll_room(wanted, context)).await?;
        responder.send(Pieces::from(data.split_to(room)))?;
    }
    Ok(())
}

/// The messages of a client, for tonic.
struct RequestBody {
    received: Received,
    message: Outline,
    unfinished: Unfinished,
}

/// How much of a message has arrived that tonic assembles.
#[derive(Default)]
struct Outline {
    prefix: [u8; PREFIX_BYTES],
    /// How many of its bytes have arrived, including the prefix.
    come: usize,
}

impl Outline {
    /// Follows the arriving bytes; returns how many of them wait for the rest of their message.
    fn follow(&mut self, mut data: &[u8]) -> usize {
        while !data.is_empty() {
            if let Some(missing) = self.prefix.get_mut(self.come..) {
                let len = missing.len().min(data.len());
                missing[..len].copy_from_slice(&data[..len]);
                self.come += len;
                data = &data[len..];
            }
            if self.come >= PREFIX_BYTES {
                let [_, len @ ..] = self.prefix;
                let message_len = PREFIX_BYTES + u32::from_be_bytes(len) as usize;
                let len = (message_len - self.come).min(data.len());
                self.come += len;
                data = &data[len..];
                if self.come == message_len {
                    self.come = 0;
                }
            }
        }
        self.come
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        match this.received.poll_data(context) {
            Poll::Ready(Some(Ok(data))) => {
                let waiting = this.message.follow(&data);
                let within = this.unfinished.follow(waiting);
                Poll::Ready(Some(within.map(|()| Frame::data(data))))
            }
            Poll::Ready(Some(Err(Gone))) => {
                let gone = tonic::Status::cancelled("the client is gone");
                Poll::Ready(Some(Err(gone)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let late = this.unfinished.poll_late(context);
                late.map(|late| Some(Err(late)))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_waits_is_known_however_messages_are_cut(
            lens in prop::collection::vec(0..50usize, 1..8),
            step in 1..40usize,
        ) {
            let mut bytes = Vec::new();
            let mut waiting = Vec::new();
            for len in lens {
                waiting.extend(1..PREFIX_BYTES + len);
                waiting.push(0);
                bytes.push(0);
                bytes.extend_from_slice(&(len as u32).to_be_bytes());
                bytes.extend(vec![7; len]);
            }
            let mut outline = Outline::default();
            let mut end = 0;
            for piece in bytes.chunks(step) {
                end += piece.len();
                prop_assert_eq!(outline.follow(piece), waiting[end - 1]);
            }
        }
    }
}
