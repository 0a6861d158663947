//! How much may come, and how much may be sent.

use std::task::Poll;

use super::*;

/// How much data is sent on each stream.
fn lens(sent: &[Sent]) -> Vec<(u32, usize)> {
    let mut lens: Vec<(u32, usize)> = Vec::new();
    for frame in sent {
        let (Sent::Data { stream, len } | Sent::LastData { stream, len }) = frame else {
            continue;
        };
        match lens.last_mut() {
            Some((last, sum)) if last == stream => *sum += len,
            _ => lens.push((*stream, *len)),
        }
    }
    lens
}

fn bytes(len: usize) -> Pieces {
    Pieces::from(Bytes::from(vec![7; len]))
}

/// As many frames as fill a window.
fn window(stream: u32) -> Vec<Vec<u8>> {
    vec![data(stream, 16_384); WINDOW_BYTES as usize / 16_384]
}

#[test]
fn who_sends_more_than_a_stream_may_is_sent_away() {
    let mut frames = vec![open(1)];
    frames.extend(window(1));
    check(&frames, &[]);
    frames.push(data(1, 0));
    check(&frames, &[]);
    frames.push(data(1, 1));
    check_ends(&frames, Reason::FlowControlError);
}

#[test]
fn who_sends_more_than_all_streams_may_is_sent_away() {
    let mut frames = vec![open(1), open(3)];
    for _ in 0..8 {
        frames.extend([data(1, 16_384), data(3, 16_384)]);
    }
    check(&frames, &[]);
    let mut protocol = begun();
    protocol.receive(&frames.concat());
    assert_eq!(protocol.holds().received_bytes, WINDOW_BYTES as usize);
    frames.push(data(3, 1));
    check_ends(&frames, Reason::FlowControlError);
}

#[test]
fn what_was_read_may_come_again() {
    let (link, connection) = linked(&[open(1)]);
    let (received, _responder) = link.stream(1);
    for _ in 0..3 {
        link.protocol().receive(&window(1).concat());
        assert_eq!(sent(&mut link.protocol()), [], "nothing was read");
        assert!(!connection.woken());
        let Poll::Ready(Some(Ok(data))) = received.poll_data(&noop()) else {
            panic!("data");
        };
        assert_eq!(data.len(), WINDOW_BYTES as usize);
        assert!(connection.woken(), "there is something to be sent");
        let by = WINDOW_BYTES;
        let expected = [
            Sent::Window { stream: 0, by },
            Sent::Window { stream: 1, by },
        ];
        assert_eq!(sent(&mut link.protocol()), expected);
    }
    // Not for each little piece; and not for a stream on which no more comes.
    link.protocol().receive(&data(1, 16_384));
    assert!(received.poll_data(&noop()).is_ready());
    assert!(!connection.woken());
    link.protocol().receive(&window(1)[1..].concat());
    link.protocol().receive(&last_data(1, 0));
    assert!(received.poll_data(&noop()).is_ready());
    let by = WINDOW_BYTES;
    assert_eq!(sent(&mut link.protocol()), [Sent::Window { stream: 0, by }]);
}

/// The client may fill the window over and over, and whatever becomes of the stream it is not stuck.
#[test]
fn what_nobody_reads_may_come_again() {
    let half = || window(1)[..8].to_vec();
    // Its reader left before or after it came; it was broken off before or after, by the client or the server; it is forgotten.
    type Act = fn(&Arc<Link>);
    let drop_reader: Act = |link| drop(link.stream(1).0);
    let drop_both: Act = |link| drop(link.stream(1));
    let by_client: Act = |link| link.protocol().receive(&reset(1));
    let by_server: Act = |link| link.protocol().receive(&widen(1, 0));
    for (name, act) in [
        ("no reader", drop_reader),
        ("nobody", drop_both),
        ("by the client", by_client),
        ("by the server", by_server),
    ] {
        let (link, _) = linked(&[open(1)]);
        link.protocol().receive(&half().concat());
        act(&link);
        for _ in 0..5 {
            link.protocol().receive(&half().concat());
            let holds = link.protocol().holds();
            assert_eq!(holds.received_bytes, 0, "{name}");
            assert_eq!(holds.window_bytes, WINDOW_BYTES as usize, "{name}");
            sent(&mut link.protocol());
            assert!(!link.protocol().is_over(), "{name}");
        }
    }
    // After its end it may not come at all, but this is no matter of other streams.
    let mut frames = vec![ask(1)];
    frames.extend(half());
    let mut protocol = begun();
    protocol.receive(&frames.concat());
    assert_eq!(protocol.holds().window_bytes, WINDOW_BYTES as usize);
}

#[test]
fn padding_is_as_good_as_read() {
    let (link, _) = linked(&[open(1)]);
    let padded = [&[255][..], &[7; 1], &[0; 255]].concat();
    let padded = frame(kind::DATA, flag::PADDED, 1, &padded);
    for _ in 0..600 {
        link.protocol().receive(&padded);
    }
    let holds = link.protocol().holds();
    assert_eq!(holds.received_bytes, 600);
    assert_eq!(holds.window_bytes, WINDOW_BYTES as usize - 600);
    let by = 128 * 1024;
    let expected = [
        Sent::Window { stream: 0, by },
        Sent::Window { stream: 1, by },
    ];
    assert_eq!(sent(&mut link.protocol()), expected);
}

#[test]
fn no_more_is_sent_than_the_client_takes() {
    let mut protocol = begun();
    protocol.receive(&open(1));
    protocol.send(1, bytes(200_000)).expect("open");
    assert_eq!(lens(&sent(&mut protocol)), [(1, 65_535)]);
    protocol.receive(&widen(1, 10));
    assert_eq!(sent(&mut protocol), [], "the connection's is empty");
    protocol.receive(&widen(0, 7));
    assert_eq!(lens(&sent(&mut protocol)), [(1, 7)]);
    protocol.receive(&widen(0, 100));
    assert_eq!(lens(&sent(&mut protocol)), [(1, 3)], "the stream's is");
    let frames = {
        protocol.receive(&[widen(0, 100_000), widen(1, 100_000)].concat());
        sent(&mut protocol)
    };
    assert_eq!(lens(&frames), [(1, 100_000)]);
    assert!(
        frames.iter().all(
            |frame| matches!(frame, Sent::Data { len, .. } if *len <= frame::PAYLOAD_BYTES_MAX)
        )
    );
}

#[test]
fn an_update_by_nothing_is_an_error() {
    check_ends(&[widen(0, 0)], Reason::ProtocolError);
    let broken_off = [Sent::Reset(1, Reason::ProtocolError)];
    check(&[open(1), widen(1, 0)], &broken_off);
    // The first bit means nothing.
    check(&[open(1), widen(1, 1 << 31)], &broken_off);
}

#[test]
fn a_window_that_is_too_wide_is_an_error() {
    let most = (1 << 31) - 1;
    let rest = most - 65_535;
    check(&[open(1), widen(0, rest), widen(1, rest)], &[]);
    check_ends(&[widen(0, rest), widen(0, 1)], Reason::FlowControlError);
    let broken_off = [Sent::Reset(1, Reason::FlowControlError)];
    check(&[open(1), widen(1, rest), widen(1, 1)], &broken_off);
    // By the window of all streams; those that come later have nothing to do with it.
    let wider = set(setting::INITIAL_WINDOW_SIZE, 65_536);
    check_ends(&[open(1), widen(1, rest), wider], Reason::FlowControlError);
    let widest = set(setting::INITIAL_WINDOW_SIZE, most);
    let broken_off = [Sent::SettingsAck, Sent::Reset(1, Reason::FlowControlError)];
    check(&[widest, open(1), widen(1, 1)], &broken_off);
}

#[test]
fn a_window_may_become_less_than_nothing() {
    let first = |bytes| set(setting::INITIAL_WINDOW_SIZE, bytes);
    let mut protocol = begun();
    protocol.receive(&[open(1), widen(0, 1 << 20)].concat());
    protocol.send(1, bytes(200_000)).expect("open");
    assert_eq!(lens(&sent(&mut protocol)), [(1, 65_535)]);
    protocol.receive(&first(0));
    assert_eq!(sent(&mut protocol), [Sent::SettingsAck]);
    // 65,535 bytes less than nothing.
    protocol.receive(&widen(1, 65_535));
    assert_eq!(sent(&mut protocol), []);
    protocol.receive(&widen(1, 1));
    assert_eq!(lens(&sent(&mut protocol)), [(1, 1)]);
    protocol.receive(&first(5));
    assert_eq!(lens(&sent(&mut protocol)), [(1, 5)]);
    // To and fro, as often as one likes.
    for _ in 0..100 {
        protocol.receive(&[first(0), first((1 << 31) - 1), first(5)].concat());
    }
    assert_eq!(lens(&sent(&mut protocol)), []);
    // A stream that comes now begins with it, and an end needs no window.
    protocol.receive(&[open(3), first(0), open(5)].concat());
    protocol.send(3, bytes(9)).expect("open");
    protocol.finish(5, None).expect("open");
    let expected = [Sent::SettingsAck, Sent::LastData { stream: 5, len: 0 }];
    assert_eq!(sent(&mut protocol), expected);
}

/// Both have much to send, and the client takes little at a time.
#[test]
fn streams_take_turns() {
    let mut protocol = begun();
    let frames = [open(1), open(3), open(5), widen(0, 1 << 30)];
    protocol.receive(&frames.concat());
    for stream in [1, 3, 5] {
        protocol.receive(&widen(stream, 1 << 30));
        protocol.send(stream, bytes(1 << 20)).expect("open");
    }
    let mut turns = Vec::new();
    for _ in 0..9 {
        let mut out = Pieces::default();
        protocol.fill(&mut out);
        let bytes = out.copy_to_bytes(out.remaining());
        turns.extend(lens(&read(&bytes)).into_iter().map(|(stream, _)| stream));
    }
    for three in turns.chunks(3) {
        assert_eq!(three, &turns[..3], "{turns:?}");
    }
    turns[..3].sort_unstable();
    assert_eq!(turns[..3], [1, 3, 5]);
}

#[test]
fn streams_take_turns_where_the_connections_window_is_narrow() {
    let mut protocol = begun();
    protocol.receive(&[open(1), open(3)].concat());
    protocol.send(1, bytes(65_535)).expect("open");
    assert_eq!(lens(&sent(&mut protocol)), [(1, 65_535)]);
    let mut turns = Vec::new();
    for stream in [1, 3] {
        protocol.receive(&widen(stream, 1 << 20));
        protocol.send(stream, bytes(1 << 20)).expect("open");
    }
    for _ in 0..6 {
        protocol.receive(&widen(0, 1000));
        turns.extend(lens(&sent(&mut protocol)));
    }
    let both = [(3, 1000), (1, 1000)];
    assert_eq!(turns, both.repeat(3));
}
