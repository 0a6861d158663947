//! tonic's services on our connections.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::future::{Either, select};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Request};
use http_body::{Body as _, Frame as BodyFrame, SizeHint};
use http_body_util::BodyExt;
use tonic::{body::Body, service::Routes};
use tower_service::Service;

use super::Frame;

/// The most that waits for a client that does not take it.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Answers a request as `routes` say.
pub(super) async fn call(
    mut routes: Routes,
    request: Request<RecvStream>,
    mut respond: SendResponse<Frame>,
) {
    let request = request.map(|stream| Body::new(RequestBody(stream)));
    let ready = poll_fn(|context| Service::<Request<Body>>::poll_ready(&mut routes, context));
    let Ok(()): Result<(), Infallible> = ready.await;
    let Ok(response): Result<_, Infallible> = routes.call(request).await;
    let (head, body) = response.into_parts();
    let is_empty = body.is_end_stream();
    let head = http::Response::from_parts(head, ());
    // Where anything fails from here on, the client is gone.
    let Ok(mut stream) = respond.send_response(head, is_empty) else {
        return;
    };
    if is_empty {
        return;
    }
    let _ = send(&mut stream, body).await;
}

/// The client has gone, or the body has failed, which tonic tells in the trailers.
struct Ended;

async fn send(stream: &mut SendStream<Frame>, mut body: Body) -> Result<(), Ended> {
    // Ends with the body, or with the client.
    loop {
        let frame = {
            let gone = std::pin::pin!(poll_fn(|context| stream.poll_reset(context)));
            match select(gone, body.frame()).await {
                Either::Left(_) => return Err(Ended),
                Either::Right((frame, _)) => frame,
            }
        };
        match frame {
            None => return stream.send_data(Frame::default(), true).map_err(|_| Ended),
            Some(Err(_)) => return Err(Ended),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => send_data(stream, data).await?,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return stream.send_trailers(trailers).map_err(|_| Ended);
                }
            },
        }
    }
}

/// Hands `data` over as the client takes it.
async fn send_data(stream: &mut SendStream<Frame>, mut data: Bytes) -> Result<(), Ended> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len().min(BUFFER_BYTES_MAX));
        let granted = poll_fn(|context| stream.poll_capacity(context)).await;
        let granted = granted.and_then(Result::ok).ok_or(Ended)?;
        let part = data.split_to(granted.min(data.len()));
        stream
            .send_data(Frame::from(part), false)
            .map_err(|_| Ended)?;
    }
    Ok(())
}

/// What a client sends, for tonic.
struct RequestBody(RecvStream);

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(context)) {
            Some(Ok(data)) => {
                // It fails only where the stream is over, which the next turn finds.
                let _ = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(BodyFrame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers: Result<Option<HeaderMap>, _> = ready!(self.0.poll_trailers(context));
                Poll::Ready(trailers.transpose().map(|it| it.map(BodyFrame::trailers)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
