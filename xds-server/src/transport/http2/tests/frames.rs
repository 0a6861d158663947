//! Frames as such.

use super::*;

#[test]
fn who_does_not_speak_http2_is_sent_away_at_the_first_wrong_byte() {
    for (says, is_over) in [
        (&b"PRI * HTTP/2.0\r\n"[..], false),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false),
        (b"G", true),
        (b"PRI * HTTP/1", true),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\t", true),
    ] {
        for piece_len in [1, says.len()] {
            let mut protocol = Protocol::new();
            says.chunks(piece_len)
                .for_each(|piece| protocol.receive(piece));
            assert_eq!(protocol.is_over(), is_over, "{says:?}");
            assert!(!protocol.has_begun());
        }
    }
}

#[test]
fn settings_come_first() {
    let mut protocol = Protocol::new();
    let by = WINDOW_BYTES - 65_535;
    let expected = [Sent::Settings, Sent::Window { stream: 0, by }];
    assert_eq!(sent(&mut protocol), expected);
    for (first, begins) in [
        (frame(kind::SETTINGS, 0, 0, &[]), true),
        (frame(kind::SETTINGS, flag::ACK, 0, &[]), false),
        (frame(kind::PING, 0, 0, &[0; 8]), false),
        (open(1), false),
    ] {
        let mut protocol = Protocol::new();
        protocol.receive(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        protocol.receive(&first);
        assert_eq!(protocol.has_begun(), begins, "{first:?}");
        assert_eq!(protocol.is_over(), !begins, "{first:?}");
    }
}

#[test]
fn a_frame_of_a_length_that_cannot_be_ends_the_connection() {
    for (kind, flags, stream, len) in [
        (kind::DATA, 0, 1, 16_385),
        (kind::HEADERS, flag::END_HEADERS | flag::PRIORITY, 3, 4),
        (kind::PRIORITY, 0, 1, 4),
        (kind::PRIORITY, 0, 3, 6),
        (kind::RST_STREAM, 0, 1, 3),
        (kind::SETTINGS, 0, 0, 5),
        (kind::SETTINGS, flag::ACK, 0, 6),
        (kind::PING, 0, 0, 7),
        (kind::PING, flag::ACK, 0, 9),
        (kind::GOAWAY, 0, 0, 7),
        (kind::WINDOW_UPDATE, 0, 0, 3),
        (kind::WINDOW_UPDATE, 0, 1, 5),
        (0x42, 0, 1, 16_385),
    ] {
        let wrong = frame(kind, flags, stream, &vec![0; len]);
        check_ends(&[open(1), wrong], Reason::FrameSizeError);
    }
    check(&[open(1), data(1, 16_384)], &[]);
}

/// Streams that were never opened, the connection instead of a stream, a stream instead of the connection, and streams that
/// only a server could open.
#[test]
fn a_frame_where_it_cannot_be_ends_the_connection() {
    for (kind, len, streams) in [
        (kind::DATA, 1, &[0, 2, 3][..]),
        (kind::HEADERS, 0, &[0, 2]),
        (kind::PRIORITY, 5, &[0]),
        (kind::RST_STREAM, 4, &[0, 2, 3]),
        (kind::SETTINGS, 0, &[1]),
        (kind::PUSH_PROMISE, 8, &[0, 1, 3]),
        (kind::PING, 8, &[1]),
        (kind::GOAWAY, 8, &[1]),
        (kind::WINDOW_UPDATE, 4, &[2, 3]),
        (kind::CONTINUATION, 0, &[0, 1, 3]),
    ] {
        for stream in streams {
            let wrong = frame(kind, flag::END_HEADERS, *stream, &vec![1; len]);
            check_ends(&[open(1), wrong], Reason::ProtocolError);
        }
    }
}

#[test]
fn what_nobody_knows_or_needs_is_ignored() {
    for ignored in [
        frame(0x42, 0xff, 0, &[1, 2, 3]),
        frame(0x42, 0xff, 77, &[]),
        frame(kind::PRIORITY, 0, 1, &[0; 5]),
        frame(kind::PRIORITY, 0, 77, &[0; 5]),
        frame(kind::GOAWAY, 0, 0, &[0; 9]),
        frame(kind::SETTINGS, flag::ACK, 0, &[]),
        frame(kind::PING, flag::ACK, 0, &[0; 8]),
    ] {
        check(&[open(1), ignored], &[]);
    }
    check(&[set(0x42, 7)], &[Sent::SettingsAck]);
}

#[test]
fn settings_have_values_that_can_be() {
    for (setting, value, why) in [
        (setting::ENABLE_PUSH, 2, Reason::ProtocolError),
        (setting::MAX_FRAME_SIZE, 16_383, Reason::ProtocolError),
        (setting::MAX_FRAME_SIZE, 1 << 24, Reason::ProtocolError),
        (
            setting::INITIAL_WINDOW_SIZE,
            1 << 31,
            Reason::FlowControlError,
        ),
    ] {
        check_ends(&[set(setting, value)], why);
    }
    for (setting, value) in [
        (setting::ENABLE_PUSH, 1),
        (setting::MAX_FRAME_SIZE, 16_384),
        (setting::MAX_FRAME_SIZE, (1 << 24) - 1),
        (setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1),
        (setting::MAX_CONCURRENT_STREAMS, u32::MAX),
    ] {
        check(&[set(setting, value)], &[Sent::SettingsAck]);
    }
}

#[test]
fn padding_is_no_longer_than_its_frame() {
    for (kind, stream) in [(kind::DATA, 1), (kind::HEADERS, 3)] {
        for payload in [&[][..], &[1], &[3, 0, 0]] {
            let wrong = frame(kind, flag::PADDED, stream, payload);
            check_ends(&[open(1), wrong], Reason::ProtocolError);
        }
    }
    let all = flag::END_HEADERS | flag::PADDED | flag::PRIORITY;
    let fields = [&[2, 0, 0, 0, 0, 0][..], &FIELDS, &[0, 0]].concat();
    check(&[frame(kind::HEADERS, all, 1, &fields)], &[]);
}

#[test]
fn a_list_of_fields_may_come_in_several_frames() {
    let [first, second, third] = FIELDS;
    let mut protocol = begun();
    protocol.receive(&frame(kind::HEADERS, flag::END_STREAM, 1, &[first]));
    protocol.receive(&frame(kind::CONTINUATION, 0, 1, &[]));
    protocol.receive(&frame(kind::CONTINUATION, 0, 1, &[second]));
    assert!(protocol.requests().is_empty());
    let last = frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[third]);
    protocol.receive(&last);
    let requests = protocol.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].1.method(), http::Method::POST);
    // What its first frame said of the end counts.
    assert!(matches!(
        protocol.poll_data(1, &noop()),
        std::task::Poll::Ready(None)
    ));
}

#[test]
fn nothing_comes_between_the_frames_of_a_list() {
    let begun = frame(kind::HEADERS, 0, 3, &FIELDS);
    for between in [
        data(1, 1),
        open(5),
        open(3),
        frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]),
        frame(kind::PING, 0, 0, &[0; 8]),
        frame(0x42, 0, 0, &[]),
    ] {
        check_ends(&[open(1), begun.clone(), between], Reason::ProtocolError);
    }
}

#[test]
fn a_list_without_end_ends_the_connection() {
    for len in [0, 1, 1000, 16_384] {
        let mut protocol = begun();
        protocol.receive(&frame(kind::HEADERS, 0, 1, &FIELDS));
        let more = frame(kind::CONTINUATION, 0, 1, &vec![0x82; len]);
        let mut bytes = 0;
        while !protocol.is_over() {
            protocol.receive(&more);
            bytes += more.len();
            assert!(bytes <= 3 * LIST_BYTES_MAX, "it takes no end");
            assert!(protocol.holds().partial_bytes <= 2 * LIST_BYTES_MAX);
        }
        let reason = Reason::EnhanceYourCalm;
        let farewell = Sent::Goaway {
            last_stream: 0,
            reason,
        };
        assert_eq!(sent(&mut protocol), [farewell]);
    }
}

#[test]
fn what_is_no_list_of_fields_ends_the_connection() {
    // A field that is not in the table, half a string, and a table that is too large.
    for fields in [&[0xff, 0x70][..], &[0x00, 0x05, b'x'], &[0x3f, 0xff, 0x7f]] {
        let flags = flag::END_HEADERS;
        for stream in [1, 3] {
            let wrong = frame(kind::HEADERS, flags, stream, fields);
            check_ends(&[open(1), wrong], Reason::CompressionError);
        }
    }
}

/// One field is remembered, and then named over and over: two bytes for four thousand.
#[test]
fn a_list_that_unfolds_without_measure_ends_the_connection() {
    let mut fields = FIELDS.to_vec();
    fields.extend_from_slice(&[0x40, 0x7f, 0xa1, 0x1e]);
    fields.extend_from_slice(&[b'x'; 4000]);
    fields.push(0);
    let remember = frame(kind::HEADERS, flag::END_HEADERS, 1, &fields);
    for again in [&[0xbe][..], &[0x0f, 0x2f, 0x00]] {
        let fields = [&FIELDS[..], &again.repeat(4000)].concat();
        let bomb = frame(kind::HEADERS, flag::END_HEADERS, 3, &fields);
        check_ends(&[remember.clone(), bomb], Reason::CompressionError);
    }
}
