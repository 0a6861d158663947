//! One connection, with everything on it, as one task.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;
use h2::{
    Ping, PingPong, RecvStream,
    server::{Connection, SendResponse},
};
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
    let Some(mut connection) = shake_hands(io).await else {
        debug!("a connection that does not speak HTTP/2");
        return;
    };
    let Some(ping_pong) = connection.ping_pong() else {
        // It is taken once.
        return;
    };
    let served = Served {
        connection,
        life: SignsOfLife::new(ping_pong),
        tasks: Vec::new(),
        peer,
        services,
    };
    served.run().await;
}

/// Memory that only the handshake needs is not kept by what follows.
async fn shake_hands<Io>(io: Io) -> Option<Connection<Io, Frame>>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX);
    let handshake = timeout(HANDSHAKE_TIMEOUT, builder.handshake(io)).await;
    handshake.ok()?.ok()
}

/// A connection that speaks HTTP/2.
struct Served<Io: AsyncRead + AsyncWrite + Unpin> {
    connection: Connection<Io, Frame>,
    life: SignsOfLife,
    /// One for each stream. There are a few at most, as a rule one, so that asking each of them costs less than knowing which
    /// of them has something to do.
    tasks: Vec<Task>,
    peer: Peer,
    services: Arc<Services>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Served<Io> {
    async fn run(mut self) {
        let mut ticks = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll_fn(|context| {
            // Ends with nothing more to do: then each of these has said whom to wake.
            loop {
                // The streams first: what they have to say is then written by the turn of the connection that follows.
                self.tasks
                    .retain_mut(|task| task.as_mut().poll(context).is_pending());
                if let Poll::Ready(next) = self.connection.poll_accept(context) {
                    match next {
                        Some(Ok((request, respond))) => self.answer(request, respond),
                        Some(Err(error)) => {
                            debug!(%error, "connection ended");
                            return Poll::Ready(());
                        }
                        None => return Poll::Ready(()),
                    }
                    continue;
                }
                self.life.poll_sign(context);
                if ticks.poll_tick(context).is_pending() {
                    return Poll::Pending;
                }
                if self.tasks.is_empty() {
                    self.connection.graceful_shutdown();
                }
                if self.life.ask().is_err() {
                    debug!("a client does not answer any more");
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }

    fn answer(&mut self, request: Request<RecvStream>, respond: SendResponse<Frame>) {
        let task = answer(&self.services, &self.peer, request, respond);
        self.tasks.push(task);
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

    fn poll_sign(&mut self, context: &mut Context<'_>) {
        if self.awaited {
            // An error ends the connection, which its own turn finds.
            self.awaited = !matches!(self.ping_pong.poll_pong(context), Poll::Ready(Ok(_)));
        }
    }
}
