//! One connection with all its streams, as one task.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::FutureExt;
use h2::{Ping, PingPong, Reason, server::SendResponse};
use http::{Method, Request, header};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};
use tonic::Status;
use tracing::debug;

use super::{
    Incoming, Outgoing, Pieces, Services, StreamService,
    http2::{self, Activity, Received, Responder, STREAMS_MAX, Watched},
    tonic_services,
    wakers::{PartWaker, TaskWaker},
};

/// How long a client may take to speak HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a client is pinged. A client that does not answer before the next ping is gone. So the
/// stream of a proxy that vanished is freed. A connection without a stream by then is closed.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How often streams and connection may wake each other before other connections have their turn.
const TURNS_MAX: usize = 16;
/// How many streams may be answered at once: all open ones, and as many that the client has reset
/// but whose tasks have not noticed.
const TASKS_MAX: usize = 2 * STREAMS_MAX;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

type Connection<Io> = h2::server::Connection<Watched<Io>, Pieces>;

/// Serves a connection to its end.
pub(super) async fn serve<Io, S>(io: Io, peer: S::Peer, services: Arc<Services<S>>)
where
    S: StreamService,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let io = Watched::new(io, Arc::clone(&activity));
    // Boxed: the memory that only the handshake needs is not kept.
    let served = match Box::pin(shake_hands(io)).await {
        Ok((connection, ping_pong)) => {
            let task_waker = Arc::new(TaskWaker::default());
            let served = Served {
                connection,
                ping_pong,
                activity,
                is_leaving: false,
                drain: Some(services.drain().begun().boxed()),
                tasks: Vec::new(),
                tasks_waker: PartWaker::of(&task_waker),
                connection_waker: PartWaker::of(&task_waker),
                task_waker,
                peer,
                services,
            };
            served.run().await
        }
        Err(error) => Err(error),
    };
    if let Err(why) = served {
        debug!(%why, "connection ended");
    }
}

async fn shake_hands<Io>(io: Watched<Io>) -> Result<(Connection<Io>, PingPong), Ended>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = http2::options().handshake(io);
    let handshake = timeout(HANDSHAKE_TIMEOUT, handshake).await;
    let mut connection = handshake.map_err(|_| Ended::Late)??;
    // Fails only if it was taken before.
    let ping_pong = connection.ping_pong().ok_or(Ended::Lifeless)?;
    Ok((connection, ping_pong))
}

/// A connection whose client speaks HTTP/2.
struct Served<Io, S: StreamService> {
    connection: Connection<Io>,
    ping_pong: PingPong,
    activity: Arc<Activity>,
    /// The client was notified that the connection ends.
    is_leaving: bool,
    /// Ready when the server stops soon; none once that was told.
    drain: Option<Task>,
    /// One for each stream. There are few, usually one, so polling each of them costs less than
    /// tracking which of them is ready.
    tasks: Vec<Task>,
    tasks_waker: Arc<PartWaker>,
    connection_waker: Arc<PartWaker>,
    task_waker: Arc<TaskWaker>,
    peer: S::Peer,
    services: Arc<Services<S>>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin, S: StreamService> Served<Io, S> {
    async fn run(mut self) -> Result<(), Ended> {
        let mut alarm = pin!(sleep(PING_INTERVAL));
        let task_waker = Arc::clone(&self.task_waker);
        let (tasks_waker, connection_waker) = (
            Arc::clone(&self.tasks_waker),
            Arc::clone(&self.connection_waker),
        );
        let to_tasks = Waker::from(Arc::clone(&tasks_waker));
        let to_connection = Waker::from(Arc::clone(&connection_waker));
        poll_fn(|context| {
            self.activity.begin_turn();
            task_waker.begin_turn(context.waker());
            for _ in 0..TURNS_MAX {
                if tasks_waker.take() {
                    self.poll_tasks(&mut Context::from_waker(&to_tasks));
                }
                // The streams' messages are then written in the same turn.
                if connection_waker.take() {
                    let mut context = Context::from_waker(&to_connection);
                    let polled = self.poll_connection(alarm.as_mut(), &mut context);
                    if polled.is_ready() {
                        return polled;
                    }
                }
                if tasks_waker.is_woken() || connection_waker.is_woken() {
                    continue;
                }
                task_waker.sleep();
                if !tasks_waker.is_woken() && !connection_waker.is_woken() {
                    return Poll::Pending;
                }
                task_waker.begin_turn(context.waker());
            }
            // Other connections have to have their turn as well.
            task_waker.sleep();
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn poll_tasks(&mut self, context: &mut Context<'_>) {
        let tasks = &mut self.tasks;
        tasks.retain_mut(|task| task.as_mut().poll(context).is_pending());
        if self.activity.has_too_many_resets() {
            self.connection_waker.wake_by_ref();
        }
    }

    /// Ready when the connection has ended.
    fn poll_connection(
        &mut self,
        mut alarm: Pin<&mut Sleep>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Ended>> {
        // Ends when no part is ready: then each has stored its waker.
        loop {
            if self.activity.has_too_many_resets() {
                self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            let accepted = pin!(self.connection.accept()).poll(context)?;
            match accepted {
                Poll::Ready(Some((request, response))) => {
                    self.answer(request, response);
                    continue;
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            if self.begins_to_drain(context) {
                continue;
            }
            if alarm.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.tick(context)?;
            alarm.as_mut().reset(Instant::now() + PING_INTERVAL);
        }
    }

    /// Tells the client once that the server stops soon.
    fn begins_to_drain(&mut self, context: &mut Context<'_>) -> bool {
        let begins = |drain: &mut Task| drain.as_mut().poll(context).is_ready();
        if !self.drain.as_mut().is_some_and(begins) {
            return false;
        }
        self.drain = None;
        self.is_leaving = true;
        self.connection.graceful_shutdown();
        true
    }

    /// Pings the client, and closes the connection if it has no stream.
    fn tick(&mut self, context: &mut Context<'_>) -> Result<(), Ended> {
        let is_idle = self.tasks.is_empty();
        if !self.activity.tick() || (is_idle && self.is_leaving) {
            return Err(Ended::Lifeless);
        }
        if is_idle {
            self.is_leaving = true;
            self.connection.graceful_shutdown();
        } else {
            // The answer to the last ping makes room for the next one. While one is under way,
            // another would be useless.
            let _ = self.ping_pong.poll_pong(context);
            let _ = self.ping_pong.send_ping(Ping::opaque());
        }
        Ok(())
    }

    fn answer(&mut self, request: Request<h2::RecvStream>, mut response: SendResponse<Pieces>) {
        if self.tasks.len() >= TASKS_MAX {
            self.activity.count_reset();
            response.send_reset(Reason::REFUSED_STREAM);
            return;
        }
        let responder = Responder::new(response, Arc::clone(&self.activity));
        let request = request.map(Received::new);
        let task = answer(&self.services, &self.peer, request, responder);
        self.tasks.push(task);
        self.tasks_waker.wake_by_ref();
    }
}

/// Why the server ends a connection.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Http2(#[from] h2::Error),
    #[error("the client does not speak HTTP/2")]
    Late,
    #[error("the client does not answer any more")]
    Lifeless,
}

fn answer<S: StreamService>(
    services: &Arc<Services<S>>,
    peer: &S::Peer,
    mut request: Request<Received>,
    responder: Responder,
) -> Task {
    let Some(method) = services.streams.method(request.uri().path()) else {
        request.extensions_mut().insert(peer.clone());
        let others = services.others.clone();
        return tonic_services::call(others, request, responder, services.budget.clone()).boxed();
    };
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
    let begun = if request.method() == Method::POST && is_grpc {
        Outgoing::begin(responder)
    } else {
        let status = Status::internal("a POST of content type application/grpc is expected");
        // Fails only if the client is gone.
        let _ = Outgoing::refuse(responder, &status);
        return std::future::ready(()).boxed();
    };
    match begun {
        Ok(responses) => {
            let requests = Incoming::new(request.into_body(), services.budget.clone());
            services
                .streams
                .serve(method, peer.clone(), requests, responses)
                .boxed()
        }
        Err(_) => std::future::ready(()).boxed(),
    }
}
