//! One connection, with everything on it, as one task.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
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
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout},
};
use tonic::Status;
use tracing::debug;

use super::{
    Frame, Incoming, Outgoing, Services,
    bell::{Bell, House},
    bridge,
};
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

/// How often streams and connection may wake each other before other connections have their turn.
const TURNS_MAX: usize = 16;

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
    let house = Arc::new(House::default());
    let served = Served {
        connection,
        for_tasks: Bell::of(&house),
        for_connection: Bell::of(&house),
        house,
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
    for_tasks: Arc<Bell>,
    for_connection: Arc<Bell>,
    house: Arc<House>,
    peer: Peer,
    services: Arc<Services>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Served<Io> {
    async fn run(mut self) {
        let mut ticks = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let house = Arc::clone(&self.house);
        let (for_tasks, for_connection) = (
            Arc::clone(&self.for_tasks),
            Arc::clone(&self.for_connection),
        );
        let to_tasks = Waker::from(Arc::clone(&for_tasks));
        let to_connection = Waker::from(Arc::clone(&for_connection));
        poll_fn(|context| {
            house.wake_up(context.waker());
            for _ in 0..TURNS_MAX {
                if for_tasks.answer() {
                    let mut context = Context::from_waker(&to_tasks);
                    let tasks = &mut self.tasks;
                    tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
                }
                // What the streams have to say is then written in the same turn.
                if for_connection.answer() {
                    let mut context = Context::from_waker(&to_connection);
                    if self.poll_connection(&mut ticks, &mut context).is_ready() {
                        return Poll::Ready(());
                    }
                }
                if for_tasks.has_rung() || for_connection.has_rung() {
                    continue;
                }
                house.fall_asleep();
                if !for_tasks.has_rung() && !for_connection.has_rung() {
                    return Poll::Pending;
                }
                house.wake_up(context.waker());
            }
            // Others have to have their turn as well.
            house.fall_asleep();
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Ready when the connection is over.
    fn poll_connection(&mut self, ticks: &mut Interval, context: &mut Context<'_>) -> Poll<()> {
        // Ends with nothing more to do: then each of these has said whom to wake.
        loop {
            match self.connection.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.answer(request, respond);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    debug!(%error, "connection ended");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {}
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
    }

    fn answer(&mut self, request: Request<RecvStream>, respond: SendResponse<Frame>) {
        let task = answer(&self.services, &self.peer, request, respond);
        self.tasks.push(task);
        self.for_tasks.wake_by_ref();
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
