//! tonic's services on our connections.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::future::{Either, select};
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tonic::{body::Body, service::Routes};
use tower_service::Service;

use super::{
    Pieces,
    http2::{Gone, Received, Responder},
};

/// The most that waits for a client that does not take it.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

/// Answers a request as `routes` say.
pub(super) async fn call(mut routes: Routes, request: Request<Received>, responder: Responder) {
    let request = request.map(|received| Body::new(RequestBody(received)));
    let answer = async {
        let ready = poll_fn(|context| Service::<Request<Body>>::poll_ready(&mut routes, context));
        let Ok(()): Result<(), Infallible> = ready.await;
        let Ok(response): Result<_, Infallible> = routes.call(request).await;
        response
    };
    let Some(response) = unless_gone(&responder, answer).await else {
        return;
    };
    let (head, body) = response.into_parts();
    let head = http::Response::from_parts(head, ());
    // Where anything fails from here on the client is gone.
    let _ = if body.is_end_stream() {
        responder.respond(&head)
    } else {
        respond(responder, &head, body).await
    };
}

/// What becomes of `work`; none if the client leaves before.
async fn unless_gone<T>(responder: &Responder, work: impl Future<Output = T>) -> Option<T> {
    let gone = pin!(poll_fn(|context| responder.poll_gone(context)));
    match select(gone, pin!(work)).await {
        Either::Left(((), _)) => None,
        Either::Right((done, _)) => Some(done),
    }
}

async fn respond(
    responder: Responder,
    head: &http::Response<()>,
    mut body: Body,
) -> Result<(), Gone> {
    responder.begin(head)?;
    // Ends with the body, or with the client.
    loop {
        let frame = unless_gone(&responder, body.frame()).await;
        match frame.ok_or(Gone)? {
            None => return responder.finish(None),
            // tonic tells what fails in the trailers.
            Some(Err(_)) => return Err(Gone),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    poll_fn(|context| responder.poll_room(QUEUE_BYTES_MAX, context)).await?;
                    responder.send(Pieces::from(data))?;
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return responder.finish(Some(&trailers));
                }
            },
        }
    }
}

/// What a client sends, for tonic.
struct RequestBody(Received);

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let data = ready!(self.0.poll_data(context));
        Poll::Ready(data.map(|data| match data {
            Ok(data) => Ok(Frame::data(data)),
            Err(Gone) => Err(tonic::Status::cancelled("the client is gone")),
        }))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
