//! Those who answer: what they say comes through, in order, and they do not sleep for ever.

use std::task::Poll;

use http::{HeaderMap, HeaderValue, Response};

use super::*;

fn trailers() -> HeaderMap {
    let zero = HeaderValue::from_static("0");
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), zero)])
}

fn bytes(len: usize) -> Pieces {
    Pieces::from(Bytes::from(vec![7; len]))
}

/// What is sent on the stream once `answer` has answered, and how many streams there are then.
#[track_caller]
fn check_answer(request: Vec<u8>, answer: fn(Received, Responder), expected: &[Sent]) {
    let (link, connection) = linked(&[request]);
    let (received, responder) = link.stream(1);
    answer(received, responder);
    assert!(connection.woken(), "there is something to be sent");
    assert_eq!(sent(&mut link.protocol()), expected);
    assert_eq!(link.protocol().holds().streams, 0);
}

#[test]
fn trailers_come_after_all_data() {
    let answer = |_: Received, responder: Responder| {
        responder.begin(&Response::new(())).expect("open");
        responder.send(bytes(20_000)).expect("open");
        responder.send(bytes(3)).expect("open");
        responder.finish(Some(&trailers())).expect("open");
    };
    let expected = [
        Sent::Fields { stream: 1 },
        Sent::Data {
            stream: 1,
            len: 16_384,
        },
        Sent::Data {
            stream: 1,
            len: 3619,
        },
        Sent::LastFields { stream: 1 },
    ];
    check_answer(ask(1), answer, &expected);
}

#[test]
fn a_beginning_is_sent_before_there_is_anything_to_say() {
    let (link, connection) = linked(&[open(1)]);
    let (_received, responder) = link.stream(1);
    responder.begin(&Response::new(())).expect("open");
    assert!(connection.woken());
    assert_eq!(sent(&mut link.protocol()), [Sent::Fields { stream: 1 }]);
}

#[test]
fn an_answer_without_trailers_ends_with_its_data() {
    let answer = |_: Received, responder: Responder| {
        responder.begin(&Response::new(())).expect("open");
        responder.send(bytes(3)).expect("open");
        responder.finish(None).expect("open");
    };
    let expected = [
        Sent::Fields { stream: 1 },
        Sent::LastData { stream: 1, len: 3 },
    ];
    check_answer(ask(1), answer, &expected);
}

#[test]
fn no_trailers_are_an_end_as_well() {
    let answer = |_: Received, responder: Responder| {
        responder.begin(&Response::new(())).expect("open");
        responder.finish(Some(&HeaderMap::new())).expect("open");
    };
    let expected = [
        Sent::Fields { stream: 1 },
        Sent::LastData { stream: 1, len: 0 },
    ];
    check_answer(ask(1), answer, &expected);
}

#[test]
fn who_is_answered_early_is_told_to_stop() {
    let answer = |received: Received, responder: Responder| {
        responder.respond(&Response::new(())).expect("open");
        drop(received);
    };
    let expected = [
        Sent::LastFields { stream: 1 },
        Sent::Reset(1, Reason::NoError),
    ];
    check_answer(open(1), answer, &expected);
    // After all of the answer.
    let answer = |_: Received, responder: Responder| {
        responder.send(bytes(3)).expect("open");
        responder.finish(Some(&trailers())).expect("open");
    };
    let expected = [
        Sent::Data { stream: 1, len: 3 },
        Sent::LastFields { stream: 1 },
        Sent::Reset(1, Reason::NoError),
    ];
    check_answer(open(1), answer, &expected);
}

/// The client may have more to say to somebody who has already answered.
#[test]
fn who_is_answered_early_may_go_on_while_somebody_reads() {
    let (link, _) = linked(&[open(1)]);
    let (received, responder) = link.stream(1);
    responder.respond(&Response::new(())).expect("open");
    let expected = [Sent::LastFields { stream: 1 }];
    assert_eq!(sent(&mut link.protocol()), expected);
    link.protocol().receive(&last_data(1, 3));
    let read = received.poll_data(&noop());
    assert!(matches!(read, Poll::Ready(Some(Ok(data))) if data.len() == 3));
    assert!(matches!(received.poll_data(&noop()), Poll::Ready(None)));
    drop(received);
    assert_eq!(sent(&mut link.protocol()), []);
    assert_eq!(link.protocol().holds().streams, 0);
}

#[test]
fn an_answer_that_is_dropped_is_broken_off() {
    let answer = |received: Received, responder: Responder| drop((received, responder));
    let broken_off = [Sent::Reset(1, Reason::Cancel)];
    check_answer(open(1), answer, &broken_off);
    check_answer(ask(1), answer, &broken_off);
    // What waited is not sent any more.
    let answer = |_: Received, responder: Responder| {
        responder.begin(&Response::new(())).expect("open");
        responder.send(bytes(3)).expect("open");
    };
    let expected = [Sent::Fields { stream: 1 }, broken_off[0].clone()];
    check_answer(ask(1), answer, &expected);
}

/// A stream that the client does not take stays until it does, or breaks it off; nobody has to wait for that.
#[test]
fn an_answer_that_is_complete_outlives_those_who_gave_it() {
    for (end, expected) in [
        (widen(1, 3), vec![Sent::LastData { stream: 1, len: 3 }]),
        (reset(1), vec![]),
    ] {
        let (link, _) = linked(&[set(setting::INITIAL_WINDOW_SIZE, 0), ask(1)]);
        let (received, responder) = link.stream(1);
        responder.send(bytes(3)).expect("open");
        responder.finish(None).expect("open");
        drop(received);
        assert_eq!(sent(&mut link.protocol()), [Sent::SettingsAck]);
        assert_eq!(link.protocol().holds().streams, 1);
        link.protocol().receive(&end);
        assert_eq!(sent(&mut link.protocol()), expected);
        assert_eq!(link.protocol().holds().streams, 0);
    }
}

#[test]
fn who_reads_is_woken_by_whatever_ends_the_wait() {
    type Says = fn(&mut Protocol);
    let says: [Says; 6] = [
        |protocol| protocol.receive(&data(1, 1)),
        |protocol| protocol.receive(&last_data(1, 0)),
        |protocol| protocol.receive(&ask(1)),
        |protocol| protocol.receive(&reset(1)),
        |protocol| protocol.receive(&data(9, 1)),
        |protocol| protocol.close(),
    ];
    for says in says {
        let (link, _) = linked(&[open(1)]);
        let (received, _responder) = link.stream(1);
        let (reader, waker) = counter();
        let context = Context::from_waker(&waker);
        assert!(received.poll_data(&context).is_pending());
        link.protocol().receive(&data(1, 0));
        assert!(!reader.woken());
        says(&mut link.protocol());
        assert!(reader.woken());
        assert!(received.poll_data(&context).is_ready());
    }
}

#[test]
fn who_writes_is_woken_by_room_and_by_the_end() {
    type Says = fn(&mut Protocol);
    let says: [Says; 5] = [
        |protocol| protocol.receive(&widen(1, 1)),
        |protocol| protocol.receive(&set(setting::INITIAL_WINDOW_SIZE, 1)),
        |protocol| protocol.receive(&reset(1)),
        |protocol| protocol.receive(&data(9, 1)),
        |protocol| protocol.close(),
    ];
    for (nth, says) in says.into_iter().enumerate() {
        let (link, _) = linked(&[set(setting::INITIAL_WINDOW_SIZE, 0), open(1)]);
        let (_received, responder) = link.stream(1);
        responder.send(bytes(10)).expect("open");
        let (writer, waker) = counter();
        let context = Context::from_waker(&waker);
        assert!(responder.poll_room(11, &context).is_ready());
        assert!(responder.poll_room(10, &context).is_pending());
        sent(&mut link.protocol());
        assert!(!writer.woken());
        says(&mut link.protocol());
        sent(&mut link.protocol());
        assert!(writer.woken());
        let is_gone = nth >= 2;
        let room = responder.poll_room(10, &context);
        assert!(matches!(room, Poll::Ready(got) if got.is_err() == is_gone));
        assert_eq!(responder.poll_gone(&context).is_ready(), is_gone);
        assert_eq!(responder.send(bytes(1)).is_err(), is_gone);
    }
}

#[test]
fn who_waits_for_the_client_to_go_is_woken_when_it_does() {
    for end in [reset(1), data(9, 1)] {
        let (link, _) = linked(&[ask(1)]);
        let (_received, responder) = link.stream(1);
        let (writer, waker) = counter();
        let context = Context::from_waker(&waker);
        assert!(responder.poll_gone(&context).is_pending());
        link.protocol().receive(&end);
        assert!(writer.woken());
        assert!(responder.poll_gone(&context).is_ready());
        assert!(responder.begin(&Response::new(())).is_err());
    }
}
