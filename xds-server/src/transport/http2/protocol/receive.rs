//! What comes in: bytes, cut into frames, and what each kind of frame means.

use std::mem;

use super::{
    super::{
        LIST_BYTES_MAX, RESETS_MAX, STREAMS_MAX,
        frame::{self, HEAD_BYTES, Head, PAYLOAD_BYTES_MAX, Reason, U31_MAX, flag, kind, setting},
        hpack,
        request::RequestHead,
        stream::{Exceeded, SendWindow, Stream, TooWide},
    },
    Block, Expects, PREFACE, Protocol,
};

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

impl Protocol {
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
}
