//! HTTP/2 by the `h2` crate: its limits, and the two halves of a stream.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    server::{Builder, SendResponse},
};
use http::{HeaderMap, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Pieces;

/// How many streams a client may have open on a connection. A proxy has at most one for each kind
/// of resource, and a few more.
pub(super) const STREAMS_MAX: usize = 100;
/// The longest header list of a request, by HPACK's count.
const LIST_BYTES_MAX: u32 = 16 * 1024;
/// How much a client may send before it is read, on a stream and on all streams of a connection
/// together.
const WINDOW_BYTES: u32 = 256 * 1024;
/// How many streams a client may reset, or open in vain, between two ticks.
pub(super) const RESETS_MAX: u32 = 1000;

/// How much is read from a client before other connections have their turn.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The options of a connection. `h2` itself bounds the rest: streams that are reset before they are
/// accepted (20 at once), streams that it has to reset (1,024 on a connection), empty DATA frames
/// (100 on a connection), and CONTINUATION frames. It answers a PING or SETTINGS before it reads
/// the next frame.
pub(super) fn options() -> Builder {
    let mut options = Builder::new();
    options
        .max_concurrent_streams(STREAMS_MAX as u32)
        .max_header_list_size(LIST_BYTES_MAX)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        // The most memory for the accounting of small frames, besides their bytes.
        .data_frame_budget(WINDOW_BYTES as usize);
    options
}

/// The activity of a client since the last tick, and in this turn.
#[derive(Debug, Default)]
pub(super) struct Activity {
    has_sent: AtomicBool,
    resets: AtomicU32,
    turn_bytes: AtomicUsize,
}

impl Activity {
    /// Begins a turn, after other connections had theirs.
    pub(super) fn begin_turn(&self) {
        self.turn_bytes.store(0, Relaxed);
    }

    /// Begins a new period. Returns whether the client sent anything in the previous one.
    pub(super) fn tick(&self) -> bool {
        self.resets.store(0, Relaxed);
        self.has_sent.swap(false, Relaxed)
    }

    pub(super) fn count_reset(&self) {
        self.resets.fetch_add(1, Relaxed);
    }

    pub(super) fn has_too_many_resets(&self) -> bool {
        self.resets.load(Relaxed) > RESETS_MAX
    }
}

/// A socket that records every arrival of bytes. The answer to a PING does not suffice as a sign of
/// life: it waits behind everything that the client has not read yet.
pub(super) struct Watched<Io> {
    io: Io,
    activity: Arc<Activity>,
}

impl<Io> Watched<Io> {
    pub(super) fn new(io: Io, activity: Arc<Activity>) -> Watched<Io> {
        Watched { io, activity }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.activity.turn_bytes.load(Relaxed) >= READ_BYTES_MAX {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            self.activity.has_sent.store(true, Relaxed);
            self.activity.turn_bytes.fetch_add(bytes, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The client has reset the stream, or the connection has ended.
#[derive(Debug)]
pub struct Gone;

impl From<h2::Error> for Gone {
    fn from(_: h2::Error) -> Gone {
        Gone
    }
}

/// The client's half of a stream. Once it is dropped, further data is discarded.
pub(crate) struct Received {
    stream: RecvStream,
}

impl Received {
    pub(super) fn new(stream: RecvStream) -> Received {
        Received { stream }
    }

    /// The next data; none at the end.
    pub(crate) fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Gone>>> {
        let data = ready!(self.stream.poll_data(context));
        if let Some(Ok(data)) = &data {
            // Fails only if the stream has ended, which the next turn detects.
            let _ = self.stream.flow_control().release_capacity(data.len());
        }
        Poll::Ready(data.map(|data| Ok(data?)))
    }
}

/// The server's half of a stream. If it is dropped before the response has ended, the stream is
/// reset.
pub(crate) struct Responder {
    half: Half,
    activity: Arc<Activity>,
}

enum Half {
    Head(SendResponse<Pieces>),
    Body(SendStream<Pieces>),
}

impl Responder {
    pub(super) fn new(response: SendResponse<Pieces>, activity: Arc<Activity>) -> Responder {
        Responder {
            half: Half::Head(response),
            activity,
        }
    }

    /// Begins the response.
    pub(crate) fn begin(&mut self, response: Response<()>) -> Result<(), Gone> {
        let Half::Head(head) = &mut self.half else {
            return Err(Gone);
        };
        self.half = Half::Body(head.send_response(response, false)?);
        Ok(())
    }

    /// Responds with headers only.
    pub(crate) fn respond(mut self, response: Response<()>) -> Result<(), Gone> {
        if let Half::Head(head) = &mut self.half {
            head.send_response(response, true)?;
        }
        Ok(())
    }

    fn body(&mut self) -> Result<&mut SendStream<Pieces>, Gone> {
        match &mut self.half {
            Half::Body(body) => Ok(body),
            Half::Head(_) => Err(Gone),
        }
    }

    /// Hands over data. It waits until the client reads it, so the caller bounds the amount.
    pub(crate) fn send(&mut self, data: Pieces) -> Result<(), Gone> {
        Ok(self.body()?.send_data(data, false)?)
    }

    /// Ready when the client accepts more: how much of the `wanted` bytes.
    pub(crate) fn poll_room(
        &mut self,
        wanted: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, Gone>> {
        let body = self.body()?;
        body.reserve_capacity(wanted);
        // `poll_capacity` reports each increase only once.
        let room = match body.capacity() {
            0 => ready!(body.poll_capacity(context)).ok_or(Gone)??,
            room => room,
        };
        Poll::Ready(Ok(room.min(wanted)))
    }

    /// Ready when the client has gone.
    pub(crate) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_reset(context).map(|_| ())
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<Result<h2::Reason, h2::Error>> {
        match &mut self.half {
            Half::Head(head) => head.poll_reset(context),
            Half::Body(body) => body.poll_reset(context),
        }
    }

    /// Ends the response, after the waiting messages.
    pub(crate) fn finish(mut self, trailers: Option<HeaderMap>) -> Result<(), Gone> {
        let body = self.body()?;
        match trailers.filter(|trailers| !trailers.is_empty()) {
            Some(trailers) => body.send_trailers(trailers)?,
            None => body.send_data(Pieces::default(), true)?,
        }
        Ok(())
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        // However the response ended: by now the client, or an error of its own, has reset the
        // stream.
        if let Poll::Ready(Ok(_)) = self.poll_reset(&mut context) {
            self.activity.count_reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Endless;

    impl AsyncRead for Endless {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            buffer.initialize_unfilled().fill(0);
            buffer.set_filled(buffer.capacity());
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_client_that_sends_without_end_is_read_in_turns() {
        let activity = Arc::new(Activity::default());
        let mut client = Watched::new(Endless, Arc::clone(&activity));
        let mut read = || {
            let mut context = Context::from_waker(Waker::noop());
            let mut bytes = [0; 8 * 1024];
            let mut turn_bytes = 0;
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                if Pin::new(&mut client)
                    .poll_read(&mut context, &mut buffer)
                    .is_pending()
                {
                    return turn_bytes;
                }
                turn_bytes += buffer.filled().len();
                assert!(turn_bytes < 100 * READ_BYTES_MAX, "there is no end");
            }
        };
        assert_eq!(read(), READ_BYTES_MAX);
        assert_eq!(read(), 0, "the same turn");
        activity.begin_turn();
        assert_eq!(read(), READ_BYTES_MAX);
    }
}
