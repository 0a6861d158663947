//! One stream, and how much may be sent on it.

use std::task::{Context, Waker};

use bytes::{Buf, Bytes};

use super::{
    WINDOW_BYTES,
    frame::{self, Head, PAYLOAD_BYTES_MAX, U31_MAX, flag, kind},
};
use crate::transport::Pieces;

/// How much a client may still send. See RFC 9113, section 5.2.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    open: usize,
    /// Of what came, what was read and the client was not told of.
    freed: usize,
}

/// More came than may.
pub(super) struct Exceeded;

impl ReceiveWindow {
    pub(super) fn new() -> ReceiveWindow {
        ReceiveWindow {
            open: WINDOW_BYTES as usize,
            freed: 0,
        }
    }

    pub(super) fn receive(&mut self, len: usize) -> Result<(), Exceeded> {
        self.open = self.open.checked_sub(len).ok_or(Exceeded)?;
        Ok(())
    }

    /// There is room for `len` bytes again. What the client is to be told, once that is worth a frame.
    pub(super) fn free(&mut self, len: usize) -> Option<u32> {
        self.freed += len;
        if self.freed < WINDOW_BYTES as usize / 2 {
            return None;
        }
        let freed = std::mem::take(&mut self.freed);
        self.open += freed;
        Some(freed as u32)
    }

    /// What may come now, or once the client was told so.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn whole(&self) -> usize {
        self.open + self.freed
    }
}

/// How much a client may be sent. It may be less than nothing where the client has thought better of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i64);

/// A window of more bytes than there may be.
pub(super) struct TooWide;

impl SendWindow {
    pub(super) fn new(bytes: u32) -> SendWindow {
        SendWindow(i64::from(bytes))
    }

    pub(super) fn change(&mut self, by: i64) -> Result<(), TooWide> {
        self.0 += by;
        if self.0 > i64::from(U31_MAX) {
            return Err(TooWide);
        }
        Ok(())
    }

    fn open(self) -> usize {
        self.0.max(0) as usize
    }

    fn send(&mut self, len: usize) {
        self.0 -= len as i64;
    }
}

/// How far the answer is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// There may be more.
    Open,
    /// What is queued is the last, but for these trailers.
    Ending { trailers: Option<Vec<u8>> },
    /// All of it is on its way.
    Ended,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// The client has said all.
    pub(super) has_ended: bool,
    /// One side has broken it off. Nothing more is sent, and nothing that comes counts.
    pub(super) is_reset: bool,
    pub(super) receive_window: ReceiveWindow,
    received: Vec<u8>,
    pub(super) reader: Reader,
    pub(super) sending: Sending,
    pub(super) send_window: SendWindow,
    queue: Pieces,
    pub(super) writer: Writer,
}

/// Whoever reads what the client sends.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) is_gone: bool,
    waker: Option<Waker>,
}

/// Whoever answers.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) is_gone: bool,
    waker: Option<Waker>,
}

fn note(waker: &mut Option<Waker>, context: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(context.waker()),
        None => *waker = Some(context.waker().clone()),
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Stream {
    pub(super) fn new(id: u32, has_ended: bool, send_window: SendWindow) -> Stream {
        Stream {
            id,
            has_ended,
            is_reset: false,
            receive_window: ReceiveWindow::new(),
            received: Vec::new(),
            reader: Reader::default(),
            sending: Sending::Open,
            send_window,
            queue: Pieces::default(),
            writer: Writer::default(),
        }
    }

    /// Takes in what came; what is to be read is not copied again.
    pub(super) fn receive(&mut self, data: &[u8]) {
        if self.received.is_empty() {
            self.received = data.to_vec();
        } else {
            self.received.extend_from_slice(data);
        }
        wake(&mut self.reader.waker);
    }

    pub(super) fn end(&mut self) {
        self.has_ended = true;
        wake(&mut self.reader.waker);
    }

    /// All that came and was not read.
    pub(super) fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.received))
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn received(&self) -> usize {
        self.received.len()
    }

    pub(super) fn has_data(&self) -> bool {
        !self.received.is_empty()
    }

    pub(super) fn wake_on_data(&mut self, context: &Context<'_>) {
        note(&mut self.reader.waker, context);
    }

    pub(super) fn wake_on_room(&mut self, context: &Context<'_>) {
        note(&mut self.writer.waker, context);
    }

    pub(super) fn reset(&mut self) {
        self.is_reset = true;
        self.queue = Pieces::default();
        wake(&mut self.reader.waker);
        wake(&mut self.writer.waker);
    }

    /// Puts more at the end of what is to be sent.
    pub(super) fn send(&mut self, more: Pieces) {
        self.queue.append(more);
    }

    /// What waits until the client takes it, in bytes.
    pub(super) fn queued(&self) -> usize {
        self.queue.remaining()
    }

    /// Moves to `out` what the windows allow, until there are `bytes_max` in it.
    pub(super) fn fill(&mut self, connection: &mut SendWindow, out: &mut Pieces, bytes_max: usize) {
        if self.is_reset {
            return;
        }
        while self.queue.has_remaining() {
            let window = self.send_window.open().min(connection.open());
            let len = self.queue.remaining().min(window).min(PAYLOAD_BYTES_MAX);
            if len == 0 || out.remaining() >= bytes_max {
                return;
            }
            let is_last =
                len == self.queue.remaining() && self.sending == Sending::Ending { trailers: None };
            out.push(self.data_head(len, is_last));
            self.queue.move_to(len, out);
            self.send_window.send(len);
            connection.send(len);
            if is_last {
                self.sending = Sending::Ended;
            }
            wake(&mut self.writer.waker);
        }
        if let Sending::Ending { trailers } = &mut self.sending {
            match trailers.take() {
                None => out.push(self.data_head(0, true)),
                Some(trailers) => {
                    let mut frames = Vec::new();
                    frame::put_headers(&mut frames, self.id, &trailers, true);
                    out.push(Bytes::from(frames));
                }
            }
            self.sending = Sending::Ended;
        }
    }

    fn data_head(&self, payload_len: usize, is_last: bool) -> Bytes {
        let head = Head {
            payload_len,
            kind: kind::DATA,
            flags: if is_last { flag::END_STREAM } else { 0 },
            stream: self.id,
        };
        Bytes::copy_from_slice(&head.bytes())
    }
}
