//! What both sides of a connection have agreed on. Pure: no sockets, no clock.
//!
//! [`receive`] is what comes in; here is the rest: what those who answer do, and what goes out.

mod receive;

use std::{
    mem,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, Response};

use super::{
    Gone, LIST_BYTES_MAX, STREAMS_MAX, WINDOW_BYTES,
    frame::{self, Reason, kind, setting},
    hpack,
    stream::{ReceiveWindow, SendWindow, Sending, Stream},
};
use crate::transport::Pieces;

/// What a client says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The window that both sides begin with.
const FIRST_WINDOW_BYTES: u32 = 65_535;
/// What is put at most on its way to the client before it has taken some of it. Resources are not copied for that.
const OUT_BYTES_MAX: usize = 64 * 1024;
/// How much may wait of what the protocol itself has to answer, before nothing more is read: a client that asks and does not
/// listen.
const ANSWERS_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Preface,
    /// The first frame.
    Settings,
    Frames,
}

/// The beginning of a list of fields that goes on in the next frame.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends_stream: bool,
    fields: Vec<u8>,
    /// The bytes of the frames, their heads included: empty ones count, too.
    frames_len: usize,
}

/// The client has not answered the last ping.
#[derive(Debug)]
pub(crate) struct Lifeless;

#[derive(Debug)]
pub(crate) struct Protocol {
    expects: Expects,
    /// A frame that has not come in whole.
    partial: Vec<u8>,
    block: Option<Box<Block>>,
    decoder: hpack::Decoder,
    /// In order of their identifiers. There are a few at most, as a rule one.
    streams: Vec<Stream>,
    /// The last that the client has opened.
    last_stream: u32,
    /// The stream that was the last to send. The next one goes first.
    turn: u32,
    requests: Vec<(u32, Request<()>)>,
    /// Frames that wait to be sent: all but those with data, and the trailers after them.
    answers: Vec<u8>,
    receive_window: ReceiveWindow,
    send_window: SendWindow,
    /// What the window of a new stream is.
    streams_send_bytes: u32,
    resets: u32,
    /// Nothing has come since the last tick.
    is_silent: bool,
    is_over: bool,
}

impl Protocol {
    /// A connection of which nothing has come yet. Its first frames wait to be sent.
    pub(crate) fn new() -> Protocol {
        let mut answers = Vec::new();
        frame::put_settings(
            &mut answers,
            &[
                (setting::MAX_CONCURRENT_STREAMS, STREAMS_MAX as u32),
                (setting::INITIAL_WINDOW_SIZE, WINDOW_BYTES),
                (setting::MAX_HEADER_LIST_SIZE, LIST_BYTES_MAX as u32),
            ],
        );
        let wider = WINDOW_BYTES - FIRST_WINDOW_BYTES;
        frame::put_u32(&mut answers, kind::WINDOW_UPDATE, 0, wider);
        Protocol {
            expects: Expects::Preface,
            partial: Vec::new(),
            block: None,
            decoder: hpack::Decoder::default(),
            streams: Vec::new(),
            last_stream: 0,
            turn: 0,
            requests: Vec::new(),
            answers,
            receive_window: ReceiveWindow::new(),
            send_window: SendWindow::new(FIRST_WINDOW_BYTES),
            streams_send_bytes: FIRST_WINDOW_BYTES,
            resets: 0,
            is_silent: false,
            is_over: false,
        }
    }

    /// The client speaks HTTP/2.
    pub(crate) fn has_begun(&self) -> bool {
        self.expects == Expects::Frames
    }

    /// Nothing more is read, and once what waits is sent, there is nothing more to do.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        let at = self.streams.binary_search_by_key(&id, |stream| stream.id);
        at.ok().map(|at| &mut self.streams[at])
    }

    /// A stream on which something can still be sent.
    fn open_stream(&mut self, id: u32) -> Result<&mut Stream, Gone> {
        let stream = self.stream(id).filter(|stream| !stream.is_reset);
        stream.ok_or(Gone)
    }

    /// There is room again for `len` bytes that came on a stream.
    fn free(&mut self, id: u32, len: usize) {
        let of_connection = self.receive_window.free(len);
        let goes_on = |stream: &&mut Stream| !stream.is_reset && !stream.has_ended;
        let stream = self.stream(id).filter(goes_on);
        let of_stream = stream.and_then(|stream| stream.receive_window.free(len));
        for (stream, freed) in [(0, of_connection), (id, of_stream)] {
            if let Some(freed) = freed {
                frame::put_u32(&mut self.answers, kind::WINDOW_UPDATE, stream, freed);
            }
        }
    }

    /// Breaks a stream off, and tells the client.
    fn reset(&mut self, id: u32, reason: Reason) {
        frame::put_u32(&mut self.answers, kind::RST_STREAM, id, reason as u32);
        self.break_off(id);
    }

    fn break_off(&mut self, id: u32) {
        if let Some(stream) = self.stream(id) {
            stream.reset();
            let unread = stream.take().len();
            self.free(id, unread);
        }
    }

    /// Ends the connection once what waits is sent.
    fn end(&mut self, reason: Reason) {
        if !self.is_over {
            frame::put_goaway(&mut self.answers, self.last_stream, reason);
            self.close();
        }
    }

    /// The connection is no more.
    pub(crate) fn close(&mut self) {
        self.is_over = true;
        for stream in &mut self.streams {
            stream.reset();
        }
    }

    /// The requests that have come, with their streams.
    pub(crate) fn requests(&mut self) -> Vec<(u32, Request<()>)> {
        mem::take(&mut self.requests)
    }

    /// Whether more should be read.
    pub(crate) fn wants_more(&self) -> bool {
        !self.is_over && self.answers.len() < ANSWERS_BYTES_MAX
    }

    /// To be called at a steady pace: asks the client for a sign of life, and sends one away that has no stream.
    ///
    /// Errors: nothing has come since the last time, or has not even taken its farewell.
    pub(crate) fn tick(&mut self) -> Result<(), Lifeless> {
        if self.is_silent || self.is_over {
            return Err(Lifeless);
        }
        self.resets = 0;
        if self.streams.is_empty() {
            self.end(Reason::NoError);
        } else {
            self.is_silent = true;
            frame::put(&mut self.answers, kind::PING, 0, 0, b"tidegate");
        }
        Ok(())
    }

    /// Whether there is something that [`Protocol::fill`] has to look at at once.
    pub(crate) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Moves to `out` what can be sent; nothing where enough waits there already.
    pub(crate) fn fill(&mut self, out: &mut Pieces) {
        if out.remaining() >= OUT_BYTES_MAX {
            return;
        }
        self.tidy_up();
        out.push(Bytes::from(mem::take(&mut self.answers)));
        let first = self
            .streams
            .partition_point(|stream| stream.id <= self.turn);
        let (before, after) = self.streams.split_at_mut(first);
        for stream in after.iter_mut().chain(before) {
            let waiting = out.remaining();
            stream.fill(&mut self.send_window, out, OUT_BYTES_MAX);
            if out.remaining() > waiting {
                self.turn = stream.id;
            }
        }
    }

    /// Lets go of the streams that are over for both sides.
    fn tidy_up(&mut self) {
        let answered = |stream: &&Stream| {
            let is_done = stream.sending == Sending::Ended && stream.reader.is_gone;
            is_done && !stream.has_ended && !stream.is_reset
        };
        // What else the client may have to say, nobody hears.
        while let Some(id) = self.streams.iter().find(answered).map(|stream| stream.id) {
            self.reset(id, Reason::NoError);
        }
        self.streams.retain(|stream| {
            let is_over = stream.is_reset || (stream.sending == Sending::Ended && stream.has_ended);
            !(is_over && stream.reader.is_gone && stream.writer.is_gone)
        });
    }

    /// What has come on a stream; none at its end.
    pub(super) fn poll_data(
        &mut self,
        id: u32,
        context: &Context<'_>,
    ) -> Poll<Option<Result<Bytes, Gone>>> {
        let stream = match self.open_stream(id) {
            Ok(stream) => stream,
            Err(Gone) => return Poll::Ready(Some(Err(Gone))),
        };
        if stream.has_data() {
            let data = stream.take();
            self.free(id, data.len());
            return Poll::Ready(Some(Ok(data)));
        }
        if stream.has_ended {
            return Poll::Ready(None);
        }
        stream.wake_on_data(context);
        Poll::Pending
    }

    /// Nobody reads any more.
    pub(super) fn stop_reading(&mut self, id: u32) {
        if let Some(stream) = self.stream(id) {
            stream.reader.is_gone = true;
            let unread = stream.take().len();
            self.free(id, unread);
        }
    }

    /// Begins to answer, or answers with a head alone.
    pub(super) fn respond(
        &mut self,
        id: u32,
        response: &Response<()>,
        is_all: bool,
    ) -> Result<(), Gone> {
        let stream = self.open_stream(id)?;
        if is_all {
            stream.sending = Sending::Ended;
        }
        let mut fields = Vec::new();
        hpack::put_status(&mut fields, response.status());
        put_fields(&mut fields, response.headers());
        frame::put_headers(&mut self.answers, id, &fields, is_all);
        Ok(())
    }

    /// Puts data at the end of what is to be sent.
    pub(super) fn send(&mut self, id: u32, data: Pieces) -> Result<(), Gone> {
        self.open_stream(id)?.send(data);
        Ok(())
    }

    /// Ready when less than `bytes_max` wait to be sent.
    pub(super) fn poll_room(
        &mut self,
        id: u32,
        bytes_max: usize,
        context: &Context<'_>,
    ) -> Poll<Result<(), Gone>> {
        match self.open_stream(id) {
            Ok(stream) if stream.queued() >= bytes_max => {
                stream.wake_on_room(context);
                Poll::Pending
            }
            other => Poll::Ready(other.map(|_| ())),
        }
    }

    /// Ready when nothing can be sent any more.
    pub(super) fn poll_gone(&mut self, id: u32, context: &Context<'_>) -> Poll<()> {
        match self.open_stream(id) {
            Ok(stream) => {
                stream.wake_on_room(context);
                Poll::Pending
            }
            Err(Gone) => Poll::Ready(()),
        }
    }

    /// Ends the answer after what waits to be sent.
    pub(super) fn finish(&mut self, id: u32, trailers: Option<&HeaderMap>) -> Result<(), Gone> {
        let trailers = trailers.filter(|trailers| !trailers.is_empty());
        let trailers = trailers.map(|trailers| {
            let mut fields = Vec::new();
            put_fields(&mut fields, trailers);
            fields
        });
        self.open_stream(id)?.sending = Sending::Ending { trailers };
        Ok(())
    }

    /// Nobody answers any more. An answer that has no end is broken off.
    pub(super) fn stop_writing(&mut self, id: u32) {
        let Some(stream) = self.stream(id) else {
            return;
        };
        stream.writer.is_gone = true;
        if stream.sending == Sending::Open && !stream.is_reset {
            self.reset(id, Reason::Cancel);
        }
    }
}

/// What a connection holds at a moment.
#[cfg(any(test, feature = "fuzzing"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holds {
    pub(super) streams: usize,
    /// What came and was not read.
    pub(super) received_bytes: usize,
    /// What the client may send beyond that, on all streams together: at once, or when it will have been told so.
    pub(super) window_bytes: usize,
    /// What came of a frame, or of a list of fields.
    pub(super) partial_bytes: usize,
    pub(super) answers_bytes: usize,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Protocol {
    pub(super) fn holds(&self) -> Holds {
        let block = self.block.as_ref().map_or(0, |block| block.fields.len());
        Holds {
            streams: self.streams.len(),
            received_bytes: self.streams.iter().map(Stream::received).sum(),
            window_bytes: self.receive_window.whole(),
            partial_bytes: self.partial.len() + block,
            answers_bytes: self.answers.len(),
        }
    }
}

fn put_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        hpack::put_field(out, name.as_str(), value.as_bytes());
    }
}
