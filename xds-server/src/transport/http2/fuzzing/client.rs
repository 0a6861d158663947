//! The client's side: what it has said, and what it may be sent because of that.

use std::collections::BTreeMap;

use super::{
    super::{
        frame::{HEAD_BYTES, Head, PAYLOAD_BYTES_MAX, flag, kind, setting},
        hpack,
    },
    side::Act,
};

const FIRST_WINDOW_BYTES: i64 = 65_535;
const PREFACE_BYTES: usize = 24;

/// What it knows of a stream that it has opened.
struct Stream {
    window: i64,
    /// What is to come of the answer.
    queued: usize,
    /// The answer was ended, as far as the server is concerned.
    is_finished: bool,
    /// Nothing more may come of it.
    has_ended: bool,
    /// One side has broken it off.
    is_reset: bool,
}

pub(super) struct Client {
    /// What was said and is no whole frame.
    partial: Vec<u8>,
    has_begun: bool,
    window: i64,
    streams_window: i64,
    streams: BTreeMap<u32, Stream>,
    last_stream: u32,
    has_said_goodbye: bool,
}

impl Default for Client {
    fn default() -> Client {
        Client {
            partial: Vec::new(),
            has_begun: false,
            window: FIRST_WINDOW_BYTES,
            streams_window: FIRST_WINDOW_BYTES,
            streams: BTreeMap::new(),
            last_stream: 0,
            has_said_goodbye: false,
        }
    }
}

impl Client {
    /// Remembers what was said, in as much as it opens streams and windows. Where it is wrong the server says no more anyway.
    pub(super) fn says(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        if !self.has_begun && self.partial.len() >= PREFACE_BYTES {
            self.partial.drain(..PREFACE_BYTES);
            self.has_begun = true;
        }
        while self.has_begun
            && let Some(head) = self.partial.first_chunk()
            && let head = Head::read(head)
            && self.partial.len() >= HEAD_BYTES + head.payload_len
        {
            let frame: Vec<u8> = self
                .partial
                .drain(..HEAD_BYTES + head.payload_len)
                .collect();
            self.says_frame(head, &frame[HEAD_BYTES..]);
        }
    }

    fn says_frame(&mut self, head: Head, payload: &[u8]) {
        let is_new = head.stream % 2 == 1 && head.stream > self.last_stream;
        match head.kind {
            kind::HEADERS if is_new => {
                self.last_stream = head.stream;
                let stream = Stream {
                    window: self.streams_window,
                    queued: 0,
                    is_finished: false,
                    has_ended: false,
                    is_reset: false,
                };
                self.streams.insert(head.stream, stream);
            }
            kind::RST_STREAM => {
                if let Some(stream) = self.streams.get_mut(&head.stream) {
                    stream.is_reset = true;
                }
            }
            kind::WINDOW_UPDATE if payload.len() == 4 => {
                let by = i64::from(number(payload) & (u32::MAX >> 1));
                match self.streams.get_mut(&head.stream) {
                    Some(stream) => stream.window += by,
                    None if head.stream == 0 => self.window += by,
                    None => {}
                }
            }
            kind::SETTINGS if head.stream == 0 && !head.has(flag::ACK) => {
                for one in payload.chunks_exact(6) {
                    if one[..2] == setting::INITIAL_WINDOW_SIZE.to_be_bytes() {
                        let window = i64::from(number(&one[2..]));
                        for stream in self.streams.values_mut() {
                            stream.window += window - self.streams_window;
                        }
                        self.streams_window = window;
                    }
                }
            }
            _ => {}
        }
    }

    /// The server has done this, so the client will hear of it.
    pub(super) fn expects(&mut self, act: Act) {
        let (Act::Send(id, _) | Act::Respond(id) | Act::Finish(id, _)) = act else {
            return;
        };
        let stream = self.streams.get_mut(&id).expect("a stream it has opened");
        match act {
            Act::Send(_, len) => stream.queued += len,
            _ => stream.is_finished = true,
        }
    }

    /// Takes what the server sends, whole frames, and insists that it may.
    pub(super) fn hears(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let head = Head::read(bytes.first_chunk().expect("a head"));
            assert!(head.payload_len <= PAYLOAD_BYTES_MAX);
            let (frame, rest) = bytes.split_at(HEAD_BYTES + head.payload_len);
            self.hears_frame(head, &frame[HEAD_BYTES..]);
            bytes = rest;
        }
    }

    fn hears_frame(&mut self, head: Head, payload: &[u8]) {
        let len = payload.len();
        match head.kind {
            kind::SETTINGS => assert!(head.stream == 0 && len.is_multiple_of(6)),
            kind::PING => assert!(head.stream == 0 && len == 8),
            kind::GOAWAY => {
                assert!(head.stream == 0 && len == 8 && !self.has_said_goodbye);
                self.has_said_goodbye = true;
            }
            kind::WINDOW_UPDATE => {
                assert!(len == 4 && number(payload) > 0);
                assert!(head.stream == 0 || self.streams.contains_key(&head.stream));
            }
            kind::RST_STREAM => {
                assert_eq!(len, 4);
                let stream = self.streams.get_mut(&head.stream);
                stream.expect("a stream it has opened").is_reset = true;
            }
            kind::HEADERS => {
                assert!(head.has(flag::END_HEADERS) && len > 0);
                let mut decoder = hpack::Decoder::default();
                decoder.decode(payload, |_, _| {}).expect("fields");
                self.hears_of(head, 0);
            }
            kind::DATA => self.hears_of(head, len),
            _ => panic!("nobody sends {head:?}"),
        }
    }

    /// A part of an answer.
    fn hears_of(&mut self, head: Head, len: usize) {
        assert!(!self.has_said_goodbye);
        let stream = self.streams.get_mut(&head.stream);
        let stream = stream.expect("a stream it has opened");
        assert!(!stream.has_ended, "something comes after the end");
        stream.has_ended = head.has(flag::END_STREAM);
        stream.queued = stream.queued.checked_sub(len).expect("what was sent");
        if len > 0 {
            let window = stream.window.min(self.window);
            assert!(len as i64 <= window, "{len} bytes for a window of {window}");
        }
        stream.window -= len as i64;
        self.window -= len as i64;
    }

    /// Nothing waits that could be sent.
    pub(super) fn check_all_heard(&self) {
        for (id, stream) in &self.streams {
            if stream.is_reset {
                continue;
            }
            let window = stream.window.min(self.window);
            let waits = stream.queued > 0 && window > 0;
            assert!(!waits, "{} bytes wait on {id}", stream.queued);
            let ends = stream.is_finished && stream.queued == 0;
            assert!(!ends || stream.has_ended, "the end of {id} waits");
        }
    }

    /// The streams that are not over for it.
    pub(super) fn unanswered(&self) -> Vec<u32> {
        let open = self.streams.iter();
        let open = open.filter(|(_, stream)| !stream.is_reset);
        open.map(|(id, _)| *id).collect()
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four"))
}
