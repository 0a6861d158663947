//! The protocol, rule by rule, as RFC 9113 has it, and what keeps a client from taking more than its share. What any run of
//! frames must keep is in [`super::fuzzing`].
//!
//! | rule | test |
//! | --- | --- |
//! | 3.4: the preface comes first | [`frames::who_does_not_speak_http2_is_sent_away_at_the_first_wrong_byte`] |
//! | 3.4: then SETTINGS, from both sides | [`frames::settings_come_first`] |
//! | 4.2: lengths that cannot be | [`frames::a_frame_of_a_length_that_cannot_be_ends_the_connection`] |
//! | 4.3, 6.10: lists of fields in several frames | [`frames::a_list_of_fields_may_come_in_several_frames`], [`frames::nothing_comes_between_the_frames_of_a_list`] |
//! | ... without end (CONTINUATION flood) | [`frames::a_list_without_end_ends_the_connection`] |
//! | ... that are none | [`frames::what_is_no_list_of_fields_ends_the_connection`] |
//! | ... few bytes that stand for many (HPACK bomb) | [`frames::a_list_that_unfolds_without_measure_ends_the_connection`] |
//! | 5.1, 6: kinds on streams where they cannot be | [`frames::a_frame_where_it_cannot_be_ends_the_connection`] |
//! | 5.5: kinds that nobody knows | [`frames::what_nobody_knows_or_needs_is_ignored`] |
//! | 6.1, 6.2: padding | [`frames::padding_is_no_longer_than_its_frame`], [`flow::padding_is_as_good_as_read`] |
//! | 6.5.2: values that cannot be | [`frames::settings_have_values_that_can_be`] |
//! | 5.1: half-closed streams | [`streams::nothing_comes_after_the_end`] |
//! | ... closed ones | [`streams::what_comes_on_a_stream_that_was_broken_off_is_ignored`], [`streams::a_stream_that_was_broken_off_has_no_window`] |
//! | 5.1.1: identifiers go up, and are not used again | [`streams::a_stream_is_never_opened_again`] |
//! | 5.1.2: so many streams and no more | [`streams::one_stream_too_many_is_refused`], [`streams::a_stream_that_is_over_takes_no_place`] |
//! | 5.4.2: an error of a stream is no error of others | [`streams::a_request_that_is_none_is_refused_and_others_go_on`] |
//! | 8.1: trailers | [`streams::trailers_end_a_request`], [`answers::trailers_come_after_all_data`], [`answers::no_trailers_are_an_end_as_well`] |
//! | 8.1: an answer before the request has ended | [`answers::who_is_answered_early_is_told_to_stop`] |
//! | Streams opened in vain (rapid reset, and the server made to do it) | [`streams::who_breaks_off_streams_without_end_is_sent_away`], [`streams::who_has_streams_broken_off_without_end_is_sent_away`], [`streams::now_and_then_a_stream_may_be_broken_off`] |
//! | 5.2, 6.9: no more comes than may | [`flow::who_sends_more_than_a_stream_may_is_sent_away`], [`flow::who_sends_more_than_all_streams_may_is_sent_away`] |
//! | ... and what was read, or will not be, may come again | [`flow::what_was_read_may_come_again`], [`flow::what_nobody_reads_may_come_again`] |
//! | 6.9: no more is sent than may | [`flow::no_more_is_sent_than_the_client_takes`] |
//! | 6.9: no updates by nothing | [`flow::an_update_by_nothing_is_an_error`] |
//! | 6.9.1: no window beyond 2^31-1 | [`flow::a_window_that_is_too_wide_is_an_error`] |
//! | 6.9.2: another first window, and negative ones | [`flow::a_window_may_become_less_than_nothing`] |
//! | All streams have their turn | [`flow::streams_take_turns`], [`flow::streams_take_turns_where_the_connections_window_is_narrow`] |
//! | 6.5.3, 6.7: answers to SETTINGS and PING | [`connection::settings_and_pings_are_answered`] |
//! | ... from one that does not listen (ping and settings floods) | [`connection::who_asks_and_does_not_listen_is_not_read_any_more`] |
//! | 6.8: GOAWAY | [`connection::a_farewell_names_the_last_stream`] |
//! | A client shows signs of life, and has a stream | [`connection::who_shows_no_sign_of_life_is_gone`], [`connection::who_has_no_stream_is_sent_away`] |
//! | Nobody sleeps for ever | the rest of [`answers`] |

mod answers;
mod connection;
mod flow;
mod frames;
mod streams;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

use bytes::{Buf, Bytes};

use super::{
    frame::{HEAD_BYTES, Head, Reason, flag, kind, put, setting},
    *,
};
use crate::transport::Pieces;

/// POST, http, and /.
const FIELDS: [u8; 3] = [0x83, 0x86, 0x84];

/// What the client is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sent {
    Data { stream: u32, len: usize },
    LastData { stream: u32, len: usize },
    Fields { stream: u32 },
    LastFields { stream: u32 },
    Reset(u32, Reason),
    Settings,
    SettingsAck,
    Ping,
    Pong(Vec<u8>),
    Goaway { last_stream: u32, reason: Reason },
    Window { stream: u32, by: u32 },
}

impl Sent {
    fn read(head: Head, payload: &[u8]) -> Sent {
        let stream = head.stream;
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four"));
        match (head.kind, head.has(flag::END_STREAM)) {
            (kind::DATA, false) => Sent::Data {
                stream,
                len: payload.len(),
            },
            (kind::DATA, true) => Sent::LastData {
                stream,
                len: payload.len(),
            },
            (kind::HEADERS, false) => Sent::Fields { stream },
            (kind::HEADERS, true) => Sent::LastFields { stream },
            (kind::RST_STREAM, _) => Sent::Reset(stream, reason(number(0))),
            (kind::SETTINGS, false) => Sent::Settings,
            (kind::SETTINGS, true) => Sent::SettingsAck,
            (kind::PING, false) => Sent::Ping,
            (kind::PING, true) => Sent::Pong(payload.to_vec()),
            (kind::GOAWAY, _) => Sent::Goaway {
                last_stream: number(0),
                reason: reason(number(4)),
            },
            (kind::WINDOW_UPDATE, _) => Sent::Window {
                stream,
                by: number(0),
            },
            _ => panic!("nobody sends {head:?}"),
        }
    }
}

fn reason(code: u32) -> Reason {
    let known = [
        Reason::NoError,
        Reason::ProtocolError,
        Reason::FlowControlError,
        Reason::StreamClosed,
        Reason::FrameSizeError,
        Reason::RefusedStream,
        Reason::Cancel,
        Reason::CompressionError,
        Reason::EnhanceYourCalm,
    ];
    let known = known.into_iter().find(|reason| *reason as u32 == code);
    known.expect("a reason")
}

/// Counts how often it was woken.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Counter {
    /// Whether it was woken since the last time.
    fn woken(&self) -> bool {
        self.0.swap(0, SeqCst) > 0
    }
}

fn counter() -> (Arc<Counter>, Waker) {
    let counter = Arc::new(Counter::default());
    (Arc::clone(&counter), Waker::from(counter))
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, flags, stream, payload);
    bytes
}

/// A request that goes on.
fn open(stream: u32) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS, stream, &FIELDS)
}

/// A request that is all.
fn ask(stream: u32) -> Vec<u8> {
    let flags = flag::END_HEADERS | flag::END_STREAM;
    frame(kind::HEADERS, flags, stream, &FIELDS)
}

fn data(stream: u32, len: usize) -> Vec<u8> {
    frame(kind::DATA, 0, stream, &vec![7; len])
}

fn last_data(stream: u32, len: usize) -> Vec<u8> {
    frame(kind::DATA, flag::END_STREAM, stream, &vec![7; len])
}

fn reset(stream: u32) -> Vec<u8> {
    let reason = Reason::Cancel as u32;
    frame(kind::RST_STREAM, 0, stream, &reason.to_be_bytes())
}

fn widen(stream: u32, by: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn set(setting: u16, value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::put_settings(&mut bytes, &[(setting, value)]);
    bytes
}

/// A connection that has begun, with nothing under way.
fn begun() -> Protocol {
    let mut protocol = Protocol::new();
    protocol.receive(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    protocol.receive(&frame(kind::SETTINGS, 0, 0, &[]));
    sent(&mut protocol);
    protocol
}

/// The same, as those hold it who answer; and whether the connection was woken.
fn linked(frames: &[Vec<u8>]) -> (Arc<Link>, Arc<Counter>) {
    let (counter, waker) = counter();
    let mut protocol = begun();
    protocol.receive(&frames.concat());
    (Link::new(protocol, waker), counter)
}

/// What is sent, until there is nothing more.
fn sent(protocol: &mut Protocol) -> Vec<Sent> {
    let mut bytes = Vec::new();
    let mut out = Pieces::default();
    loop {
        protocol.fill(&mut out);
        if !out.has_remaining() {
            break;
        }
        bytes.extend_from_slice(&out.copy_to_bytes(out.remaining()));
    }
    read(&bytes)
}

fn read(mut bytes: &[u8]) -> Vec<Sent> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let head = Head::read(bytes.first_chunk().expect("a head"));
        let (frame, rest) = bytes.split_at(HEAD_BYTES + head.payload_len);
        frames.push(Sent::read(head, &frame[HEAD_BYTES..]));
        bytes = rest;
    }
    frames
}

/// What comes of `frames`.
#[track_caller]
fn check(frames: &[Vec<u8>], expected: &[Sent]) {
    let mut protocol = begun();
    protocol.receive(&frames.concat());
    assert_eq!(sent(&mut protocol), expected, "{frames:?}");
}

/// The connection ends with the last of `frames`.
#[track_caller]
fn check_ends(frames: &[Vec<u8>], why: Reason) {
    let (last, before) = frames.split_last().expect("frames");
    let mut protocol = begun();
    protocol.receive(&before.concat());
    assert!(!protocol.is_over(), "before the last of {frames:?}");
    protocol.receive(last);
    assert!(protocol.is_over(), "with the last of {frames:?}");
    let farewell = sent(&mut protocol).pop().expect("a farewell");
    let Sent::Goaway { reason, .. } = farewell else {
        panic!("a farewell, not {farewell:?}");
    };
    assert_eq!(reason, why, "{frames:?}");
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
