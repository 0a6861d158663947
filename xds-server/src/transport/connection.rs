//! One connection, with everything on it, as one task.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use bytes::Buf;
use futures::FutureExt;
use http::{Method, Request, header};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tonic::Status;
use tracing::debug;

use super::{
    Incoming, Outgoing, Pieces, Services,
    bell::{Bell, House},
    bridge,
    http2::{Lifeless, Link, Protocol, Received, Responder},
};
use crate::tls::Peer;

/// How long a client may take to speak HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a client is asked for a sign of life. One that does not answer until the next time is gone, so that the stream
/// of a proxy that vanished without a word is freed. One that has no stream by then is sent away.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How often streams and connection may wake each other before other connections have their turn.
const TURNS_MAX: usize = 16;
/// What is read at once: more than one frame.
const READ_BYTES: usize = 32 * 1024;
/// How many pieces are written at once.
const PIECES_MAX: usize = 64;

thread_local! {
    /// What all connections read into, one after another: one that says nothing takes no memory.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves a connection to its end.
pub(super) async fn serve<Io>(io: Io, peer: Peer, services: Arc<Services>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let house = Arc::new(House::default());
    let for_connection = Bell::of(&house);
    let to_connection = Waker::from(Arc::clone(&for_connection));
    let served = Served {
        wire: Wire {
            io,
            link: Link::new(Protocol::new(), to_connection),
            out: Pieces::default(),
        },
        tasks: Vec::new(),
        for_tasks: Bell::of(&house),
        for_connection,
        house,
        peer,
        services,
    };
    served.run().await;
}

struct Served<Io> {
    wire: Wire<Io>,
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
        let mut alarm = pin!(sleep(HANDSHAKE_TIMEOUT));
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
                    let polled = self.poll_connection(alarm.as_mut(), &mut context);
                    if let Poll::Ready(ended) = polled {
                        if let Err(why) = ended {
                            debug!(%why, "connection ended");
                        }
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
    fn poll_connection(
        &mut self,
        mut alarm: Pin<&mut Sleep>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Ended>> {
        if self.wire.poll_write(context)?.is_ready() && self.wire.link.protocol().is_over() {
            return self.wire.poll_shutdown(context);
        }
        if self.wire.poll_read(context)?.is_ready() {
            self.answer_requests();
            // There may be more, once the streams have had their turn.
            context.waker().wake_by_ref();
        }
        while alarm.as_mut().poll(context).is_ready() {
            let mut protocol = self.wire.link.protocol();
            if !protocol.has_begun() {
                return Poll::Ready(Err(Ended::Late));
            }
            protocol.tick()?;
            alarm.as_mut().reset(Instant::now() + PING_INTERVAL);
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn answer_requests(&mut self) {
        let requests = self.wire.link.protocol().requests();
        for (id, request) in requests {
            let (received, responder) = self.wire.link.stream(id);
            let request = request.map(|()| received);
            let task = answer(&self.services, &self.peer, request, responder);
            self.tasks.push(task);
            self.for_tasks.wake_by_ref();
        }
    }
}

/// Why a connection ends that did not have to.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the client does not speak HTTP/2")]
    Late,
    #[error("the client does not answer any more")]
    Lifeless,
}

impl From<Lifeless> for Ended {
    fn from(_: Lifeless) -> Ended {
        Ended::Lifeless
    }
}

/// The socket, and what both sides have agreed on.
struct Wire<Io> {
    io: Io,
    link: Arc<Link>,
    /// What is on its way.
    out: Pieces,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Wire<Io> {
    /// Ready when there is nothing to be written.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Ends with what the client takes, and its windows allow.
        loop {
            if !self.out.has_remaining() {
                self.link.protocol().fill(&mut self.out);
            }
            if !self.out.has_remaining() {
                return Pin::new(&mut self.io).poll_flush(context);
            }
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            let count = self.out.chunks_vectored(&mut slices);
            let write = Pin::new(&mut self.io).poll_write_vectored(context, &slices[..count]);
            match ready!(write)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.out.advance(written),
            }
        }
    }

    /// Ready when something was read.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.link.protocol().wants_more() {
            return Poll::Pending;
        }
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.io).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.link.protocol().receive(buffer.filled());
            Poll::Ready(Ok(()))
        })
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        Pin::new(&mut self.io)
            .poll_shutdown(context)
            .map_err(Ended::Io)
    }
}

impl<Io> Drop for Wire<Io> {
    fn drop(&mut self) {
        // Who reads a request elsewhere learns that there is no more.
        self.link.protocol().close();
    }
}

fn answer(
    services: &Arc<Services>,
    peer: &Peer,
    mut request: Request<Received>,
    responder: Responder,
) -> Task {
    let Some(method) = services.ads.method(request.uri().path()) else {
        request.extensions_mut().insert(peer.clone());
        let others = services.others.clone();
        return bridge::call(others, request, responder, services.room.clone()).boxed();
    };
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
    let begun = if request.method() == Method::POST && is_grpc {
        Outgoing::begin(responder)
    } else {
        let status = Status::internal("a POST of content type application/grpc is expected");
        // Where it fails the client is gone.
        let _ = Outgoing::refuse(responder, &status);
        return std::future::ready(()).boxed();
    };
    match begun {
        Ok(responses) => {
            let requests = Incoming::new(request.into_body(), services.room.clone());
            services
                .ads
                .serve(method, peer.caller.clone(), requests, responses)
                .boxed()
        }
        Err(_) => std::future::ready(()).boxed(),
    }
}
