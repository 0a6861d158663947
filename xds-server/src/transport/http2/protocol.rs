//! What both sides of a connection have agreed on. Pure: no sockets, no clock.

use std::{
    mem,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, Response};

use super::{
    Gone, LIST_BYTES_MAX, RESETS_MAX, STREAMS_MAX, WINDOW_BYTES,
    frame::{self, HEAD_BYTES, Head, PAYLOAD_BYTES_MAX, Reason, U31_MAX, flag, kind, setting},
    hpack,
    request::RequestHead,
    stream::{Exceeded, ReceiveWindow, SendWindow, Sending, Stream, TooWide},
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

/// What is wrong with a frame.
#[derive(Debug)]
enum Fault {
    Connection(Reason),
    Stream(u32, Reason),
}

impl From<Exceeded> for Fault {
    fn from(_: Exceeded) -> Fault {
        Fault::Connection(Reason::FlowControlError)
    }
}

impl From<hpack::Invalid> for Fault {
    fn from(_: hpack::Invalid) -> Fault {
        Fault::Connection(Reason::CompressionError)
    }
}

const PROTOCOL_ERROR: Fault = Fault::Connection(Reason::ProtocolError);
const FRAME_SIZE_ERROR: Fault = Fault::Connection(Reason::FrameSizeError);

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

    /// Takes in what came, in pieces of any length.
    pub(crate) fn receive(&mut self, mut input: &[u8]) {
        let received = loop {
            if self.is_over {
                return;
            }
            match self.receive_one(&mut input) {
                Ok(true) => {}
                other => break other,
            }
        };
        if let Err(Fault::Connection(reason)) = received {
            self.end(reason);
        }
    }

    /// Takes in the next frame. Whether there may be another; else all of `input` is used up.
    fn receive_one(&mut self, input: &mut &[u8]) -> Result<bool, Fault> {
        let mut partial = mem::take(&mut self.partial);
        // A few times at most: the head says how much more there is.
        while !partial.is_empty() {
            let missing = self.unit_len(&partial)? - partial.len();
            if missing == 0 {
                self.take_unit(&partial)?;
                return Ok(true);
            }
            if input.is_empty() {
                self.partial = partial;
                return Ok(false);
            }
            let (more, rest) = input.split_at(missing.min(input.len()));
            partial.extend_from_slice(more);
            *input = rest;
        }
        let len = self.unit_len(input)?;
        let Some((unit, rest)) = input.split_at_checked(len) else {
            self.partial = input.to_vec();
            return Ok(false);
        };
        *input = rest;
        self.take_unit(unit)?;
        Ok(true)
    }

    /// How long what begins with `bytes` is, as far as they say.
    fn unit_len(&self, bytes: &[u8]) -> Result<usize, Fault> {
        if self.expects == Expects::Preface {
            let is_preface = bytes.iter().zip(PREFACE).all(|(is, should)| is == should);
            return if is_preface {
                Ok(PREFACE.len())
            } else {
                Err(PROTOCOL_ERROR)
            };
        }
        let Some(head) = bytes.first_chunk() else {
            return Ok(HEAD_BYTES);
        };
        let head = Head::read(head);
        if head.payload_len > PAYLOAD_BYTES_MAX {
            return Err(FRAME_SIZE_ERROR);
        }
        Ok(HEAD_BYTES + head.payload_len)
    }

    /// Takes in the preface or a frame.
    fn take_unit(&mut self, unit: &[u8]) -> Result<(), Fault> {
        if self.expects == Expects::Preface {
            self.expects = Expects::Settings;
            return Ok(());
        }
        let (head, payload) = unit.split_first_chunk().ok_or(FRAME_SIZE_ERROR)?;
        match self.take(Head::read(head), payload) {
            Err(Fault::Stream(stream, reason)) => {
                self.count_reset()?;
                self.reset(stream, reason);
                Ok(())
            }
            other => other,
        }
    }

    fn take(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if self.expects == Expects::Settings {
            if head.kind != kind::SETTINGS || head.has(flag::ACK) {
                return Err(PROTOCOL_ERROR);
            }
            self.expects = Expects::Frames;
        }
        // Not the answer to a ping alone: that waits behind all that a client has not read yet.
        self.is_silent = false;
        if self.block.is_some() && head.kind != kind::CONTINUATION {
            return Err(PROTOCOL_ERROR);
        }
        match head.kind {
            kind::DATA => self.take_data(head, payload),
            kind::HEADERS => self.take_headers(head, payload),
            kind::CONTINUATION => self.take_continuation(head, payload),
            kind::RST_STREAM => self.take_reset(head, payload),
            kind::SETTINGS => self.take_settings(head, payload),
            kind::PING => self.take_ping(head, payload),
            kind::WINDOW_UPDATE => self.take_window_update(head, payload),
            kind::PUSH_PROMISE => Err(PROTOCOL_ERROR),
            kind::PRIORITY if head.stream == 0 => Err(PROTOCOL_ERROR),
            // Not of the stream, which may not be open: only what is can be broken off.
            kind::PRIORITY if payload.len() != 5 => Err(FRAME_SIZE_ERROR),
            // A client that says good-bye closes the connection itself.
            kind::GOAWAY if head.stream != 0 => Err(PROTOCOL_ERROR),
            kind::GOAWAY if payload.len() < 8 => Err(FRAME_SIZE_ERROR),
            _ => Ok(()),
        }
    }

    fn take_data(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        self.check_opened(head.stream)?;
        let data = frame::without_padding(head, payload).ok_or(PROTOCOL_ERROR)?;
        self.receive_window.receive(payload.len())?;
        // What is not kept for a reader is as good as read.
        let mut unread = payload.len() - data.len();
        let mut fault = Ok(());
        match self.stream(head.stream) {
            Some(stream) if stream.has_ended => {
                unread = payload.len();
                fault = Err(Fault::Stream(head.stream, Reason::StreamClosed));
            }
            Some(stream) if !stream.is_reset => {
                stream.receive_window.receive(payload.len())?;
                if stream.reader.is_gone {
                    unread = payload.len();
                } else if !data.is_empty() {
                    stream.receive(data);
                }
                if head.has(flag::END_STREAM) {
                    stream.end();
                }
            }
            // It was broken off, which the client did not know yet.
            _ => unread = payload.len(),
        }
        self.free(head.stream, unread);
        fault
    }

    fn take_headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream.is_multiple_of(2) {
            return Err(PROTOCOL_ERROR);
        }
        let mut fields = frame::without_padding(head, payload).ok_or(PROTOCOL_ERROR)?;
        if head.has(flag::PRIORITY) {
            fields = fields.split_at_checked(5).ok_or(FRAME_SIZE_ERROR)?.1;
        }
        let ends_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.take_fields(head.stream, ends_stream, fields);
        }
        self.block = Some(Box::new(Block {
            stream: head.stream,
            ends_stream,
            fields: fields.to_vec(),
            frames_len: HEAD_BYTES + payload.len(),
        }));
        Ok(())
    }

    fn take_continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let block = self.block.take_if(|block| block.stream == head.stream);
        let mut block = block.ok_or(PROTOCOL_ERROR)?;
        block.frames_len += HEAD_BYTES + payload.len();
        if block.frames_len > 2 * LIST_BYTES_MAX {
            return Err(Fault::Connection(Reason::EnhanceYourCalm));
        }
        block.fields.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.take_fields(block.stream, block.ends_stream, &block.fields);
        }
        self.block = Some(block);
        Ok(())
    }

    /// Takes in a whole list of fields: a request, or what stands after one.
    fn take_fields(&mut self, id: u32, ends_stream: bool, fields: &[u8]) -> Result<(), Fault> {
        let mut request = RequestHead::default();
        let decoder = &mut self.decoder;
        decoder.decode(fields, |name, value| request.field(name, value))?;
        if id <= self.last_stream {
            return match self.stream(id) {
                // Perhaps it was broken off, and the client did not know yet. That is not so for long.
                None => self.count_reset(),
                Some(stream) if stream.is_reset => self.count_reset(),
                Some(stream) if stream.has_ended => Err(Fault::Stream(id, Reason::StreamClosed)),
                Some(_) if !ends_stream => Err(Fault::Stream(id, Reason::ProtocolError)),
                Some(stream) => {
                    stream.end();
                    Ok(())
                }
            };
        }
        self.last_stream = id;
        if self.streams.len() >= STREAMS_MAX {
            self.tidy_up();
        }
        if self.streams.len() >= STREAMS_MAX {
            return Err(Fault::Stream(id, Reason::RefusedStream));
        }
        let request = request.finish();
        let request = request.map_err(|reason| Fault::Stream(id, reason))?;
        let window = SendWindow::new(self.streams_send_bytes);
        if self.streams.is_empty() {
            // As a rule it is the only one.
            self.streams.reserve_exact(1);
        }
        self.streams.push(Stream::new(id, ends_stream, window));
        self.requests.push((id, request));
        Ok(())
    }

    fn take_reset(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        self.check_opened(head.stream)?;
        if payload.len() != 4 {
            return Err(FRAME_SIZE_ERROR);
        }
        self.count_reset()?;
        self.break_off(head.stream);
        Ok(())
    }

    fn take_settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(PROTOCOL_ERROR);
        }
        if head.has(flag::ACK) {
            return if payload.is_empty() {
                Ok(())
            } else {
                Err(FRAME_SIZE_ERROR)
            };
        }
        let (settings, []) = payload.as_chunks() else {
            return Err(FRAME_SIZE_ERROR);
        };
        for &[i0, i1, v0, v1, v2, v3] in settings {
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                setting::ENABLE_PUSH if value > 1 => return Err(PROTOCOL_ERROR),
                setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                    return Err(PROTOCOL_ERROR);
                }
                setting::INITIAL_WINDOW_SIZE => self.set_streams_window(value)?,
                // The others are about what is never done here.
                _ => {}
            }
        }
        frame::put(&mut self.answers, kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    /// Streams that are open already change by as much. See RFC 9113, section 6.9.2.
    fn set_streams_window(&mut self, bytes: u32) -> Result<(), Fault> {
        let too_wide = Fault::Connection(Reason::FlowControlError);
        if bytes > U31_MAX {
            return Err(too_wide);
        }
        let by = i64::from(bytes) - i64::from(self.streams_send_bytes);
        self.streams_send_bytes = bytes;
        let mut streams = self.streams.iter_mut().filter(|stream| !stream.is_reset);
        let changed = streams.try_for_each(|stream| stream.send_window.change(by));
        changed.map_err(|TooWide| too_wide)
    }

    fn take_ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(PROTOCOL_ERROR);
        }
        if payload.len() != 8 {
            return Err(FRAME_SIZE_ERROR);
        }
        if !head.has(flag::ACK) {
            frame::put(&mut self.answers, kind::PING, flag::ACK, 0, payload);
        }
        Ok(())
    }

    fn take_window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let by: [u8; 4] = payload.try_into().map_err(|_| FRAME_SIZE_ERROR)?;
        let by = u32::from_be_bytes(by) & U31_MAX;
        if head.stream == 0 {
            if by == 0 {
                return Err(PROTOCOL_ERROR);
            }
            let changed = self.send_window.change(i64::from(by));
            return changed.map_err(|TooWide| Fault::Connection(Reason::FlowControlError));
        }
        self.check_opened(head.stream)?;
        let Ok(stream) = self.open_stream(head.stream) else {
            return Ok(());
        };
        if by == 0 {
            return Err(Fault::Stream(head.stream, Reason::ProtocolError));
        }
        let changed = stream.send_window.change(i64::from(by));
        changed.map_err(|TooWide| Fault::Stream(head.stream, Reason::FlowControlError))
    }

    /// Errors: frames of this kind may not come on a stream that the client has not opened.
    fn check_opened(&self, stream: u32) -> Result<(), Fault> {
        if stream == 0 || stream > self.last_stream || stream.is_multiple_of(2) {
            return Err(PROTOCOL_ERROR);
        }
        Ok(())
    }

    /// Errors: it has been too many. What a stream costs before it is broken off is the client's to spend, but not at will.
    fn count_reset(&mut self) -> Result<(), Fault> {
        self.resets += 1;
        if self.resets > RESETS_MAX {
            return Err(Fault::Connection(Reason::EnhanceYourCalm));
        }
        Ok(())
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
