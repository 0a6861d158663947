//! A connection under whatever a client may send, and whatever those who answer may do meanwhile, from a script of bytes: for
//! the fuzzer, and for the tests.
//!
//! All is played twice, once with the client's bytes as they come and once cut into pieces: it must make no difference.

mod client;
mod side;

use crate::script::Script;

use super::{
    frame::{self, Reason, flag, kind, setting},
    *,
};
use client::Client;
use side::{Act, Ending, Side};

/// Lists of fields that requests choose from: a request, one that is remembered and named again, none, and no list at all.
const FIELDS: [&[u8]; 5] = [
    &[0x83, 0x86, 0x84],
    &[0x83, 0x86, 0x84, 0x40, 0x01, b'x', 0x02, b'y', b'z'],
    &[0x83, 0x86, 0x84, 0xbe],
    &[0x83],
    &[0x80],
];
/// By how much windows change, and what they are.
const WINDOWS: [u32; 8] = [1, 100, 16_384, 65_535, 1 << 20, 1 << 28, 0, frame::U31_MAX];

/// Plays a script. Panics if the connection does, or breaks a promise: more data than the client takes, frames that are none,
/// memory without bound, somebody who sleeps for ever, a window that does not come back, a stream that is never forgotten.
pub fn play(script: &[u8]) {
    let mut player = Player {
        script: Script(script),
        whole: Side::new(),
        cut: Side::new(),
        client: Client::default(),
        next_stream: 1,
        is_tame: false,
        is_wild: false,
        listens: true,
    };
    player.play();
}

struct Player<'s> {
    script: Script<'s>,
    whole: Side,
    cut: Side,
    client: Client,
    next_stream: u32,
    /// The client does little that ends the connection: else most are over soon.
    is_tame: bool,
    /// Bytes have come that are perhaps no frames.
    is_wild: bool,
    /// The client takes what is sent.
    listens: bool,
}

impl Player<'_> {
    fn play(&mut self) {
        let manner = self.script.byte();
        self.is_tame = !manner.is_multiple_of(4);
        if !manner.is_multiple_of(16) {
            let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            frame::put_settings(&mut hello, &[]);
            self.receive(&hello);
        }
        while !self.script.0.is_empty() {
            self.step();
            if self.listens {
                self.send();
            }
            self.check();
        }
        self.calm_down();
    }

    fn step(&mut self) {
        match self.script.byte() % 16 {
            0 | 1 if self.is_tame => self.open(1),
            0 => {
                self.is_wild = true;
                let bytes = self.script.bytes();
                self.receive(bytes);
            }
            1 => {
                let (kind, flags) = (self.script.byte() % 12, self.script.byte());
                let stream = u32::from(self.script.byte()) % (self.next_stream + 2);
                let payload = self.script.bytes();
                self.receive_frame(kind, flags, stream, payload);
            }
            2 | 3 => self.open(1),
            4 => {
                let count = self.script.byte() % 128;
                self.open(count);
            }
            5 | 6 => self.receive_data(),
            7 => {
                let of_all = self.script.byte().is_multiple_of(2);
                let stream = if of_all { 0 } else { self.stream() };
                let by = self.window();
                self.receive_frame(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
            }
            8 => {
                let mut settings = Vec::new();
                let window = self.window();
                frame::put_settings(&mut settings, &[(setting::INITIAL_WINDOW_SIZE, window)]);
                self.receive(&settings);
            }
            9 => {
                let stream = self.stream();
                let reason = Reason::Cancel as u32;
                self.receive_frame(kind::RST_STREAM, 0, stream, &reason.to_be_bytes());
            }
            10 => self.listens = !self.listens,
            11 => {
                let pong = self.script.byte();
                if pong.is_multiple_of(2) {
                    self.receive_frame(kind::PING, flag::ACK, 0, &[0; 8]);
                }
                self.act(Act::Tick);
            }
            _ => {
                let (stream, what, len) = (self.stream(), self.script.byte(), self.script.byte());
                let len = usize::from(len) * 256;
                self.act(match what % 10 {
                    0 | 1 => Act::Read(stream),
                    2 => Act::StopReading(stream),
                    3 => Act::Respond(stream),
                    4 | 5 => Act::Send(stream, len),
                    6 => Act::AwaitRoom(stream, len + 1),
                    7 => Act::AwaitGone(stream),
                    8 => Act::Finish(
                        stream,
                        [Ending::Plain, Ending::NoTrailers, Ending::Trailers][len % 3],
                    ),
                    _ => Act::StopWriting(stream),
                });
            }
        }
    }

    /// One of the streams that were opened.
    fn stream(&mut self) -> u32 {
        let count = (self.next_stream / 2).max(1);
        2 * (u32::from(self.script.byte()) % count) + 1
    }

    fn window(&mut self) -> u32 {
        let count = self.choices(WINDOWS.len());
        WINDOWS[usize::from(self.script.byte()) % count]
    }

    /// How many of so many there are to choose from: the last ones end the connection.
    fn choices(&self, count: usize) -> usize {
        if self.is_tame { count - 2 } else { count }
    }

    fn open(&mut self, count: u8) {
        let (how, split) = (self.script.byte(), self.script.byte());
        let fields = FIELDS[usize::from(how) % 16 % self.choices(FIELDS.len())];
        let ends_stream = if how & 64 == 0 { 0 } else { flag::END_STREAM };
        for _ in 0..count {
            let stream = self.next_stream;
            self.next_stream += 2;
            if split.is_multiple_of(4) {
                let (first, second) = fields.split_at(1);
                self.receive_frame(kind::HEADERS, ends_stream, stream, first);
                self.receive_frame(kind::CONTINUATION, flag::END_HEADERS, stream, second);
            } else {
                let flags = ends_stream | flag::END_HEADERS;
                self.receive_frame(kind::HEADERS, flags, stream, fields);
            }
        }
    }

    fn receive_data(&mut self) {
        let stream = self.stream();
        let (how, len) = (
            self.script.byte(),
            usize::from(self.script.byte() % 64) * 256,
        );
        // Its first byte is the length of the padding where there is some.
        let payload = vec![how; len];
        let flags = how & (flag::END_STREAM | flag::PADDED);
        for _ in 0..how % 20 {
            self.receive_frame(kind::DATA, flags & flag::PADDED, stream, &payload);
        }
        self.receive_frame(kind::DATA, flags, stream, &payload);
    }

    fn receive_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, kind, flags, stream, payload);
        self.receive(&bytes);
    }

    fn receive(&mut self, bytes: &[u8]) {
        if !self.whole.wants_more() {
            return;
        }
        let piece_len = 1 + usize::from(self.script.byte()) * 37;
        let of_whole = self.whole.receive([bytes]);
        let of_cut = self.cut.receive(bytes.chunks(piece_len));
        assert_eq!(of_whole, of_cut, "requests depend on pieces");
        self.client.says(bytes);
    }

    fn act(&mut self, act: Act) {
        let of_whole = self.whole.act(act);
        let of_cut = self.cut.act(act);
        assert_eq!(of_whole, of_cut, "{act:?} depends on pieces");
        if of_whole == Ok(()) {
            self.client.expects(act);
        }
    }

    fn send(&mut self) {
        let bytes = self.whole.send();
        assert_eq!(bytes, self.cut.send(), "what is sent depends on pieces");
        self.client.hears(&bytes);
        if !self.whole.is_over() {
            self.client.check_all_heard();
        }
    }

    fn check(&self) {
        for side in [&self.whole, &self.cut] {
            let holds = side.holds();
            assert!(holds.streams <= STREAMS_MAX);
            let window = WINDOW_BYTES as usize;
            assert!(holds.received_bytes <= window);
            assert!(holds.partial_bytes <= 4 * LIST_BYTES_MAX);
            assert!(holds.answers_bytes <= 128 * 1024);
            if !side.is_over() {
                let whole = holds.window_bytes + holds.received_bytes;
                assert_eq!(whole, window, "some of the window is lost");
            }
            side.check_sleepers();
        }
    }

    /// Nobody answers any more, and the client breaks off what is left.
    fn calm_down(&mut self) {
        self.send();
        for stream in 0..self.next_stream {
            self.act(Act::StopReading(stream));
            self.act(Act::StopWriting(stream));
        }
        self.send();
        for stream in self.client.unanswered() {
            let reason = Reason::Cancel as u32;
            self.receive_frame(kind::RST_STREAM, 0, stream, &reason.to_be_bytes());
        }
        self.send();
        self.check();
        if self.is_wild {
            // Perhaps that was taken for the rest of something else.
            self.whole.close();
            self.cut.close();
            self.send();
        }
        let holds = self.whole.holds();
        assert_eq!(holds.streams, 0, "a stream is never forgotten");
        assert_eq!(holds.received_bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn no_client_breaks_a_connection(script in prop::collection::vec(any::<u8>(), 0..400)) {
            super::play(&script);
        }
    }
}
