//! One connection, with everything on it, as one task.

use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use h2::{Ping, PingPong, RecvStream, server::SendResponse};
use http::{Method, Request, header};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tonic::Status;
use tracing::debug;

use super::{Frame, Incoming, Outgoing, Services, bridge};
use crate::tls::Peer;

/// How long a client may take to speak HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a client is asked for a sign of life. One that does not answer until the next time is gone, so that the stream
/// of a proxy that vanished without a word is freed. One that has no stream by then is sent away.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How many streams a client may have open on a connection. A proxy has one for each kind of resource at most, and a few.
pub(super) const STREAMS_MAX: u32 = 100;
/// The longest list of headers of a request, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves a connection to its end.
pub(super) async fn serve<Io>(io: Io, peer: Peer, services: Arc<Services>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX);
    let handshake = timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Frame>(io));
    let Ok(Ok(mut connection)) = handshake.await else {
        debug!("a connection that does not speak HTTP/2");
        return;
    };
    let Some(ping_pong) = connection.ping_pong() else {
        // It is taken once.
        return;
    };
    let mut life = SignsOfLife::new(ping_pong);
    let mut ticks = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tasks: FuturesUnordered<Task> = FuturesUnordered::new();
    loop {
        tokio::select! {
            // The streams first: what they have to say is then written by the turn of the connection that follows.
            biased;
            Some(()) = tasks.next(), if !tasks.is_empty() => {}
            request = connection.accept() => match request {
                Some(Ok((request, respond))) => {
                    tasks.push(answer(&services, &peer, request, respond));
                }
                Some(Err(error)) => {
                    debug!(%error, "connection ended");
                    return;
                }
                None => return,
            },
            () = life.sign(), if life.awaited => {}
            _ = ticks.tick() => {
                if tasks.is_empty() {
                    connection.graceful_shutdown();
                }
                if life.ask().is_err() {
                    debug!("a client does not answer any more");
                    return;
                }
            }
        }
    }
}

fn answer(
    services: &Arc<Services>,
    peer: &Peer,
    mut request: Request<RecvStream>,
    respond: SendResponse<Frame>,
) -> Task {
    let Some(method) = services.ads.method(request.uri().path()) else {
        request.extensions_mut().insert(peer.clone());
        return bridge::call(services.others.clone(), request, respond).boxed();
    };
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
    let begun = if request.method() == Method::POST && is_grpc {
        Outgoing::begin(respond)
    } else {
        let status = Status::internal("a POST of content type application/grpc is expected");
        // Where it fails the client is gone.
        let _ = Outgoing::refuse(respond, &status);
        return std::future::ready(()).boxed();
    };
    match begun {
        Ok(responses) => {
            let requests = Incoming::new(request.into_body());
            services
                .ads
                .serve(method, peer.caller.clone(), requests, responses)
                .boxed()
        }
        Err(_) => std::future::ready(()).boxed(),
    }
}

/// HTTP/2's pings.
struct SignsOfLife {
    ping_pong: PingPong,
    awaited: bool,
}

/// The last ping was never answered.
struct Lifeless;

impl SignsOfLife {
    fn new(ping_pong: PingPong) -> SignsOfLife {
        SignsOfLife {
            ping_pong,
            awaited: false,
        }
    }

    fn ask(&mut self) -> Result<(), Lifeless> {
        if self.awaited || self.ping_pong.send_ping(Ping::opaque()).is_err() {
            return Err(Lifeless);
        }
        self.awaited = true;
        Ok(())
    }

    async fn sign(&mut self) {
        // An error ends the connection, which its own turn finds.
        let answered = poll_fn(|context| self.ping_pong.poll_pong(context)).await;
        self.awaited = answered.is_err();
    }
}
