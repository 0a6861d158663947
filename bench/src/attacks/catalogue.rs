//! The known attacks. `xds/src/transport/tests/frames.rs` has a test for most of them.

use std::time::Duration;

use super::ZONE;
use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PAYLOAD_BYTES_MAX, PING, PRIORITY,
    SETTINGS, UNKNOWN, WINDOW_UPDATE, begin_message, discovery, field, frame, introduce, open,
    reset,
};

/// The batch size of attackers that send as fast as they can: few system calls, and frequent checks
/// of the clock.
const BATCH: usize = 1_000;
/// As many as the server permits on a connection.
const STREAMS: u32 = 100;
/// The pause of a client that has finished sending.
const SILENCE: Duration = Duration::from_millis(100);
/// No client needs a message of this size, and the server accepts it.
const LONG_MESSAGE_BYTES: u32 = 0xff_0000;
/// The claimed and the sent bytes of each of many unfinished messages.
const UNFINISHED: (u32, usize) = (0x10_0000, 16_000);

/// A misbehaving client.
pub(super) struct Attack {
    pub(super) name: &'static str,
    /// The number of concurrent connections. One that the server closes reconnects at once.
    pub(super) connections: usize,
    /// It never reads the server's answers.
    pub(super) is_deaf: bool,
    /// Its bytes after the preface.
    pub(super) first: fn() -> Vec<u8>,
    /// Its later bytes, repeatedly.
    pub(super) next: fn(u32) -> Vec<u8>,
    /// The pause between two writes.
    pub(super) pause: Duration,
}

/// The floor: no attack.
pub(super) static IDLE: Attack = Attack {
    connections: 0,
    ..attack("idle", nothing, silence)
};

pub(super) static ATTACKS: [Attack; 18] = [
    attack("rapid_reset_burst", nothing, |n| {
        streams(n, |stream| [open(stream), reset(stream)].concat())
    }),
    Attack {
        pause: Duration::from_millis(1),
        ..attack("rapid_reset_paced", introduced, |n| {
            let next = 2 * n + 3;
            [introduce(next, ZONE), reset(next - 2)].concat()
        })
    },
    attack("malformed", nothing, |n| {
        let no_path = [0x83, 0x86];
        streams(n, |stream| frame(HEADERS, END_HEADERS, stream, &no_path))
    }),
    attack("ping", nothing, |_| {
        frame(PING, 0, 0, &[0; 8]).repeat(BATCH)
    }),
    Attack {
        connections: 100,
        is_deaf: true,
        ..attack("ping_deaf", nothing, |_| {
            frame(PING, 0, 0, &[0; 8]).repeat(BATCH)
        })
    },
    attack("settings", nothing, |_| {
        frame(SETTINGS, 0, 0, &[]).repeat(BATCH)
    }),
    Attack {
        connections: 100,
        is_deaf: true,
        ..attack("settings_deaf", nothing, |_| {
            frame(SETTINGS, 0, 0, &[]).repeat(BATCH)
        })
    },
    // Each value makes the server go through all streams.
    attack(
        "settings_window",
        || streams(0, open),
        |_| {
            let windows = (0..500).map(|n: u32| {
                let window = (65_535 + n).to_be_bytes();
                frame(SETTINGS, 0, 0, &[&[0, 4], &window[..]].concat())
            });
            windows.collect::<Vec<_>>().concat()
        },
    ),
    attack(
        "continuation",
        || frame(HEADERS, 0, 1, &discovery()),
        |_| frame(CONTINUATION, 0, 1, &field(32, &[b'x'; 100]).repeat(100)),
    ),
    // One field is put into the dynamic table, and then referenced repeatedly: a byte for a
    // hundred.
    attack("hpack_bomb", nothing, |n| {
        let remembered = [&[0x40 | 32, 100], &[b'x'; 100][..]].concat();
        let newest = 0x80 | 62;
        let fields = [discovery(), remembered, vec![newest; 8_000]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &fields)
    }),
    attack("empty_data", introduced, |_| {
        frame(DATA, 0, 1, &[]).repeat(BATCH)
    }),
    attack(
        "small_data",
        || {
            let begun = frame(DATA, 0, 1, &begin_message(UNFINISHED.0));
            [open(1), begun].concat()
        },
        |_| frame(DATA, 0, 1, b"x").repeat(BATCH / 10),
    ),
    attack("window_update", introduced, |_| {
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(BATCH)
    }),
    attack("unknown", introduced, |_| {
        frame(UNKNOWN, 0, 1, &[0; 1_000]).repeat(BATCH / 10)
    }),
    attack("priority", introduced, |_| {
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(BATCH)
    }),
    Attack {
        connections: 200,
        is_deaf: true,
        pause: SILENCE,
        ..attack("silent", introduced, silence)
    },
    Attack {
        connections: 20,
        pause: SILENCE,
        ..attack(
            "unfinished",
            || {
                streams(0, |stream| {
                    let (claimed, sent) = UNFINISHED;
                    let begun = [&begin_message(claimed)[..], &vec![0; sent]].concat();
                    [open(stream), frame(DATA, 0, stream, &begun)].concat()
                })
            },
            silence,
        )
    },
    attack(
        "long_request",
        || {
            let begun = frame(DATA, 0, 1, &begin_message(LONG_MESSAGE_BYTES));
            [open(1), begun].concat()
        },
        |_| frame(DATA, 0, 1, &[0; PAYLOAD_BYTES_MAX]),
    ),
];

/// A few clients that send as fast as they can, and read.
const fn attack(name: &'static str, first: fn() -> Vec<u8>, next: fn(u32) -> Vec<u8>) -> Attack {
    Attack {
        name,
        connections: 4,
        is_deaf: false,
        first,
        next,
        pause: Duration::ZERO,
    }
}

fn nothing() -> Vec<u8> {
    Vec::new()
}

fn silence(_: u32) -> Vec<u8> {
    Vec::new()
}

fn introduced() -> Vec<u8> {
    introduce(1, ZONE)
}

/// The same on the `n`th hundred of streams.
fn streams(n: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    let streams = (STREAMS * n..STREAMS * (n + 1)).map(|index| each(2 * index + 1));
    streams.collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Without valid frames every attack would be the same.
    #[test]
    fn an_attack_is_whole_frames_that_a_server_has_to_take() {
        for attack in &ATTACKS {
            for bytes in [(attack.first)(), (attack.next)(0), (attack.next)(7)] {
                let mut rest = &bytes[..];
                while let Some((head, after)) = rest.split_first_chunk::<9>() {
                    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    assert!(len <= PAYLOAD_BYTES_MAX, "{}: {len}", attack.name);
                    rest = after.get(len..).expect(attack.name);
                }
                assert!(rest.is_empty(), "{}", attack.name);
            }
        }
    }

    #[test]
    fn each_attack_has_a_name_of_its_own() {
        let all = ATTACKS.iter().chain([&IDLE]).map(|attack| attack.name);
        let names: BTreeSet<_> = all.collect();
        assert_eq!(names.len(), ATTACKS.len() + 1);
    }
}
