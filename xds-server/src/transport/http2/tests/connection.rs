//! A connection as a whole.

use super::*;

fn ping() -> Vec<u8> {
    frame(kind::PING, 0, 0, b"01234567")
}

fn pong() -> Vec<u8> {
    frame(kind::PING, flag::ACK, 0, b"tidegate")
}

#[test]
fn settings_and_pings_are_answered() {
    let answers = [
        Sent::Pong(b"01234567".to_vec()),
        Sent::SettingsAck,
        Sent::SettingsAck,
    ];
    let settings = frame(kind::SETTINGS, 0, 0, &[]);
    let more = set(setting::MAX_FRAME_SIZE, 1 << 20);
    check(&[ping(), settings, more], &answers);
}

#[test]
fn who_asks_and_does_not_listen_is_not_read_any_more() {
    let empty = frame(kind::SETTINGS, 0, 0, &[]);
    for asks in [ping(), empty] {
        let mut protocol = begun();
        let at_once = asks.repeat(32 * 1024 / asks.len());
        let turns = (0..).take_while(|_| {
            let wants_more = protocol.wants_more();
            if wants_more {
                protocol.receive(&at_once);
            }
            wants_more
        });
        assert!(turns.count() <= 3);
        assert!(protocol.holds().answers_bytes <= 128 * 1024);
        assert!(!protocol.is_over());
        // Once it listens it is read again.
        sent(&mut protocol);
        assert!(protocol.wants_more());
    }
}

#[test]
fn a_farewell_names_the_last_stream() {
    let (link, _) = linked(&[open(1), open(7)]);
    let (_received, responder) = link.stream(7);
    link.protocol().receive(&[data(9, 1), ping()].concat());
    let farewell = Sent::Goaway {
        last_stream: 7,
        reason: Reason::ProtocolError,
    };
    assert_eq!(sent(&mut link.protocol()), [farewell]);
    assert!(!link.protocol().wants_more());
    // Nothing more comes of it.
    link.protocol().receive(&[ping(), open(11)].concat());
    assert!(responder.send(Pieces::from(Bytes::from("x"))).is_err());
    drop((_received, responder));
    drop(link.stream(1));
    assert_eq!(sent(&mut link.protocol()), []);
    assert_eq!(link.protocol().holds().streams, 0);
}

#[test]
fn who_shows_no_sign_of_life_is_gone() {
    let mut protocol = begun();
    protocol.receive(&open(1));
    // A client that is slow to read what it was sent has the ping behind that.
    for sign in [pong(), widen(0, 1), data(1, 1)] {
        protocol.tick().expect("alive");
        assert_eq!(sent(&mut protocol), [Sent::Ping]);
        protocol.receive(&sign);
    }
    protocol.tick().expect("alive");
    protocol.receive(&pong()[..5]);
    protocol.tick().expect_err("gone");
}

#[test]
fn who_has_no_stream_is_sent_away() {
    let mut protocol = begun();
    protocol.tick().expect("alive");
    let farewell = Sent::Goaway {
        last_stream: 0,
        reason: Reason::NoError,
    };
    assert_eq!(sent(&mut protocol), [farewell]);
    assert!(protocol.is_over());
    // It has had its time.
    protocol.tick().expect_err("over");
}
