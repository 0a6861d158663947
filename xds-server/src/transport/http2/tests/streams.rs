//! What becomes of a client's streams.

use super::*;

fn ids(protocol: &mut Protocol) -> Vec<u32> {
    let requests = protocol.requests();
    requests.into_iter().map(|(id, _)| id).collect()
}

/// Lets go of a stream as if it had been answered in whole.
fn answer(link: &Arc<Link>, stream: u32) {
    let (_received, responder) = link.stream(stream);
    responder
        .respond(&http::Response::new(()))
        .expect("it is open");
}

/// Nobody answers what has come.
fn drop_requests(link: &Arc<Link>) {
    let requests = link.protocol().requests();
    for (id, _) in requests {
        drop(link.stream(id));
    }
}

#[test]
fn trailers_end_a_request() {
    check(&[open(1), data(1, 5), ask(1)], &[]);
    let mut protocol = begun();
    protocol.receive(&[open(1), ask(1)].concat());
    assert_eq!(ids(&mut protocol), [1]);
    assert!(protocol.poll_data(1, &noop()).is_ready());
    // They are the last.
    let broken_off = [Sent::Reset(1, Reason::ProtocolError)];
    check(&[open(1), open(1)], &broken_off);
}

#[test]
fn nothing_comes_after_the_end() {
    for end in [ask(1), [open(1), ask(1)].concat(), {
        [open(1), last_data(1, 3)].concat()
    }] {
        for more in [data(1, 0), last_data(1, 3), open(1), ask(1)] {
            let broken_off = [Sent::Reset(1, Reason::StreamClosed)];
            check(&[end.clone(), more], &broken_off);
        }
        // These are about the answer.
        check(&[end.clone(), widen(1, 1)], &[]);
        check(&[end, reset(1)], &[]);
    }
}

#[test]
fn what_comes_on_a_stream_that_was_broken_off_is_ignored() {
    let more = [
        data(1, 3),
        last_data(1, 3),
        open(1),
        ask(1),
        widen(1, 0),
        widen(1, u32::MAX >> 1),
        reset(1),
        frame(kind::PRIORITY, 0, 1, &[0; 5]),
    ];
    for frame in &more {
        // By the client, whose word is still in somebody's hands; and by the server.
        check(&[open(1), reset(1), frame.clone()], &[]);
        let broken_off = [Sent::Reset(1, Reason::ProtocolError)];
        check(&[open(1), widen(1, 0), frame.clone()], &broken_off);
    }
    // And where nobody remembers it.
    let (link, _) = linked(&[open(1), reset(1)]);
    drop(link.stream(1));
    let mut protocol = link.protocol();
    sent(&mut protocol);
    assert_eq!(protocol.holds().streams, 0);
    protocol.receive(&more.concat());
    assert_eq!(sent(&mut protocol), []);
    assert_eq!(protocol.holds().window_bytes, WINDOW_BYTES as usize);
}

/// A later change of all windows is no matter of a stream that is no more.
#[test]
fn a_stream_that_was_broken_off_has_no_window() {
    let frames = [
        open(1),
        widen(1, (1 << 31) - 1),
        set(setting::INITIAL_WINDOW_SIZE, 65_536),
    ];
    let expected = [Sent::Reset(1, Reason::FlowControlError), Sent::SettingsAck];
    check(&frames, &expected);
}

#[test]
fn a_stream_is_never_opened_again() {
    let mut protocol = begun();
    protocol.receive(&[open(5), open(3), open(1)].concat());
    assert_eq!(ids(&mut protocol), [5]);
    protocol.receive(&[reset(5), open(5), ask(5)].concat());
    assert!(ids(&mut protocol).is_empty());
    protocol.receive(&open((1 << 31) - 1));
    assert_eq!(ids(&mut protocol), [(1 << 31) - 1]);
    assert_eq!(sent(&mut protocol), []);
}

#[test]
fn a_request_that_is_none_is_refused_and_others_go_on() {
    // No path; and a list that is too long.
    let mut long = FIELDS.to_vec();
    for _ in 0..3 {
        long.extend_from_slice(&[0x00, 0x01, b'x', 0x7f, 0xa1, 0x3e]);
        long.extend_from_slice(&[b'y'; 8096]);
    }
    let long = [
        frame(kind::HEADERS, 0, 1, &long[..10_000]),
        frame(kind::CONTINUATION, flag::END_HEADERS, 1, &long[10_000..]),
    ];
    for (wrong, why) in [
        (
            frame(kind::HEADERS, flag::END_HEADERS, 1, &FIELDS[..2]),
            Reason::ProtocolError,
        ),
        (long.concat(), Reason::EnhanceYourCalm),
    ] {
        let mut protocol = begun();
        protocol.receive(&[wrong, data(1, 100), open(3)].concat());
        assert_eq!(ids(&mut protocol), [3]);
        assert_eq!(sent(&mut protocol), [Sent::Reset(1, why)]);
        assert_eq!(protocol.holds().streams, 1);
    }
}

#[test]
fn one_stream_too_many_is_refused() {
    let ids = (0..STREAMS_MAX as u32).map(|nth| 2 * nth + 1);
    let (link, _) = linked(&ids.clone().map(open).collect::<Vec<_>>());
    let next = STREAMS_MAX as u32 * 2 + 1;
    let mut protocol = link.protocol();
    // Broken off is not over: whoever answers is still at it.
    protocol.receive(&[reset(1), open(next), data(next, 100)].concat());
    let refused = [Sent::Reset(next, Reason::RefusedStream)];
    assert_eq!(sent(&mut protocol), refused);
    assert_eq!(protocol.requests().len(), STREAMS_MAX);
    assert_eq!(protocol.holds().streams, STREAMS_MAX);
    drop(protocol);
    drop(link.stream(1));
    let mut protocol = link.protocol();
    protocol.receive(&open(next + 2));
    assert_eq!(protocol.requests().len(), 1);
    assert_eq!(sent(&mut protocol), []);
}

/// Even if nothing was written in between.
#[test]
fn a_stream_that_is_over_takes_no_place() {
    let ids = (0..STREAMS_MAX as u32).map(|nth| 2 * nth + 1);
    let (link, _) = linked(&ids.clone().map(ask).collect::<Vec<_>>());
    for id in ids {
        answer(&link, id);
    }
    let mut protocol = link.protocol();
    protocol.requests();
    protocol.receive(&open(STREAMS_MAX as u32 * 2 + 1));
    assert_eq!(protocol.requests().len(), 1);
    assert_eq!(protocol.holds().streams, 1);
}

#[test]
fn who_breaks_off_streams_without_end_is_sent_away() {
    let (link, _) = linked(&[]);
    for nth in 0..=RESETS_MAX {
        assert!(!link.protocol().is_over(), "after {nth}");
        let stream = 2 * nth + 1;
        link.protocol()
            .receive(&[open(stream), reset(stream)].concat());
        drop_requests(&link);
        assert!(link.protocol().holds().streams <= STREAMS_MAX);
        sent(&mut link.protocol());
    }
    assert!(link.protocol().is_over());
}

/// The client does what makes the server break them off.
#[test]
fn who_has_streams_broken_off_without_end_is_sent_away() {
    type Provoke = fn(u32) -> Vec<u8>;
    let ways: [Provoke; 5] = [
        |id| [ask(id), data(id, 1)].concat(),
        |id| [open(id), open(id)].concat(),
        |id| [open(id), widen(id, 0)].concat(),
        |id| [open(id), widen(id, (1 << 31) - 1)].concat(),
        |id| frame(kind::HEADERS, flag::END_HEADERS, id, &[]),
    ];
    for provoke in ways {
        let (link, _) = linked(&[]);
        let count = (0..2 * RESETS_MAX).find(|nth| {
            link.protocol().receive(&provoke(2 * nth + 1));
            drop_requests(&link);
            sent(&mut link.protocol());
            link.protocol().is_over()
        });
        assert_eq!(count, Some(RESETS_MAX));
    }
}

#[test]
fn now_and_then_a_stream_may_be_broken_off() {
    let mut protocol = begun();
    protocol.receive(&open(1));
    for _ in 0..3 {
        protocol.receive(&reset(1).repeat(RESETS_MAX as usize));
        protocol.receive(&frame(kind::PING, flag::ACK, 0, &[0; 8]));
        assert!(!protocol.is_over());
        protocol.tick().expect("alive");
    }
}
