//! The one door between the messages of guests and the domain. Whatever comes in gives a message
//! or an error, never a panic.

use alloc::{string::String, vec::Vec};

use miniz_oxide::{deflate::compress_to_vec, inflate::decompress_to_vec_with_limit};
use policy::{
    Route,
    fence::{HolderId, Name},
    guest::Mode,
    shard::key_digest,
    topology::check_name,
};
use prost::{Message, bytes::Bytes};

use crate::{
    decode::{InvalidPolicy, decode_route},
    encode::encode_route,
    fence::NODE_BYTES_MAX,
    wire,
};

/// The most pieces of a policy.
pub const PIECES_MAX: usize = 4_096;
/// The longest piece, in bytes.
pub const PIECE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest policy, in bytes.
pub const POLICY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most routes in a guest's lists, each.
pub const LISTED_MAX: usize = 256;
/// The most problems that a guest tells, and the longest one, in bytes.
pub const PROBLEMS_MAX: usize = 16;
pub const PROBLEM_BYTES_MAX: usize = 512;

/// A message of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestSays {
    Hello(Hello),
    /// A sign of life is wanted.
    Poll,
}

/// How a guest introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub holder: HolderId,
    pub zone: Name,
    /// For people.
    pub node: String,
    pub mode: Mode,
    /// The longest that the host's routes let an admitted write live, in milliseconds.
    pub drain_ms: Option<u64>,
    pub unfenced: Vec<Route>,
    pub classes: Vec<Route>,
    /// Digests of the pieces that the process holds.
    pub held: Vec<u64>,
    /// For people.
    pub problems: Vec<String>,
}

/// A message of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicySays {
    Piece(Piece),
    Current(Current),
}

/// A part of the bytes of a policy, compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// [`digest`] of the bytes.
    pub digest: u64,
    /// How many bytes there are.
    pub size: usize,
    deflated: Bytes,
}

/// The policy, as the pieces that it consists of, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Current {
    pub pieces: Vec<u64>,
    /// [`digest`] of all bytes.
    pub digest: u64,
}

/// Why bytes are no message. Every variant names the field.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidMessage {
    #[error("not a message of guests: {0}")]
    Malformed(prost::DecodeError),
    #[error("{field}: missing")]
    Missing { field: &'static str },
    #[error("hello.holder: {0} bytes, where 16 are needed")]
    Holder(usize),
    #[error("hello.zone: {0:?} is no name")]
    Zone(String),
    #[error("hello.node: longer than {NODE_BYTES_MAX} bytes")]
    Node,
    #[error("hello.mode: {0} is no mode of this version")]
    Mode(i32),
    #[error("{field}: {found} entries, and {max} are allowed")]
    TooMany {
        field: &'static str,
        found: usize,
        max: usize,
    },
    #[error("hello.problems: one is longer than {PROBLEM_BYTES_MAX} bytes")]
    Problem,
    #[error("{field}: {error}")]
    Route {
        field: &'static str,
        error: InvalidPolicy,
    },
    #[error("piece.size: {0} bytes, and {PIECE_BYTES_MAX} are allowed")]
    Size(usize),
    #[error("piece: its bytes are not those of its digest")]
    Bytes,
}

/// XXH64 with seed 0.
pub fn digest(bytes: &[u8]) -> u64 {
    key_digest(bytes)
}

/// For data that is sent once and read by every worker of every proxy.
const LEVEL: u8 = 6;

impl Piece {
    /// Compresses a part of a policy.
    pub fn compress(bytes: &[u8]) -> Piece {
        Piece {
            digest: digest(bytes),
            size: bytes.len(),
            deflated: compress_to_vec(bytes, LEVEL).into(),
        }
    }

    /// A piece as it is stored: what [`Piece::deflated`] gave.
    pub fn stored(digest: u64, size: usize, deflated: Vec<u8>) -> Piece {
        Piece {
            digest,
            size,
            deflated: deflated.into(),
        }
    }

    /// The compressed bytes.
    pub fn deflated(&self) -> &[u8] {
        &self.deflated
    }

    /// The bytes. They are checked: no more than [`PIECE_BYTES_MAX`], and those of the digest.
    ///
    /// # Errors
    ///
    /// [`InvalidMessage::Size`] and [`InvalidMessage::Bytes`].
    pub fn bytes(&self) -> Result<Vec<u8>, InvalidMessage> {
        if self.size > PIECE_BYTES_MAX {
            return Err(InvalidMessage::Size(self.size));
        }
        let bytes = decompress_to_vec_with_limit(&self.deflated, self.size);
        let bytes = bytes.map_err(|_| InvalidMessage::Bytes)?;
        match bytes.len() == self.size && digest(&bytes) == self.digest {
            true => Ok(bytes),
            false => Err(InvalidMessage::Bytes),
        }
    }
}

impl GuestSays {
    /// The bytes of one message.
    pub fn encode(&self) -> Vec<u8> {
        wire::GuestMessage::from(self).encode_to_vec()
    }
}

impl PolicySays {
    /// Reads one message.
    ///
    /// # Errors
    ///
    /// [`InvalidMessage`] names the field.
    pub fn decode(bytes: &[u8]) -> Result<PolicySays, InvalidMessage> {
        let message = wire::PolicyMessage::decode(bytes).map_err(InvalidMessage::Malformed)?;
        PolicySays::try_from(message)
    }

    /// The bytes of one message.
    pub fn encode(&self) -> Vec<u8> {
        wire::PolicyMessage::from(self).encode_to_vec()
    }
}

impl TryFrom<wire::GuestMessage> for GuestSays {
    type Error = InvalidMessage;

    fn try_from(message: wire::GuestMessage) -> Result<Self, InvalidMessage> {
        use wire::guest_message::Message;
        match message.message {
            Some(Message::Hello(hello)) => Ok(GuestSays::Hello(hello.try_into()?)),
            Some(Message::Poll(wire::Poll {})) => Ok(GuestSays::Poll),
            None => Err(InvalidMessage::Missing { field: "message" }),
        }
    }
}

impl TryFrom<wire::GuestHello> for Hello {
    type Error = InvalidMessage;

    fn try_from(hello: wire::GuestHello) -> Result<Self, InvalidMessage> {
        let found = hello.holder.len();
        let holder: [u8; 16] =
            (hello.holder.try_into()).map_err(|_| InvalidMessage::Holder(found))?;
        // A guest that cannot find its zone says why.
        let is_without = hello.zone.is_empty() && !hello.problems.is_empty();
        if !is_without && check_name(&hello.zone).is_err() {
            return Err(InvalidMessage::Zone(hello.zone));
        }
        if hello.node.len() > NODE_BYTES_MAX {
            return Err(InvalidMessage::Node);
        }
        at_most("hello.held", hello.held.len(), PIECES_MAX)?;
        at_most("hello.problems", hello.problems.len(), PROBLEMS_MAX)?;
        let mut problems = hello.problems.iter();
        if problems.any(|problem| problem.len() > PROBLEM_BYTES_MAX) {
            return Err(InvalidMessage::Problem);
        }
        Ok(Hello {
            holder: HolderId(u128::from_be_bytes(holder)),
            zone: Name::from(hello.zone),
            node: hello.node,
            mode: match wire::GuestMode::try_from(hello.mode) {
                Ok(wire::GuestMode::Fence) => Mode::Fence,
                Ok(wire::GuestMode::Route) => Mode::Route,
                Ok(wire::GuestMode::Unspecified) | Err(_) => {
                    return Err(InvalidMessage::Mode(hello.mode));
                }
            },
            drain_ms: Some(hello.drain_ms).filter(|ms| *ms != 0),
            unfenced: routes("hello.unfenced", hello.unfenced)?,
            classes: routes("hello.classes", hello.classes)?,
            held: hello.held,
            problems: hello.problems,
        })
    }
}

fn at_most(field: &'static str, found: usize, max: usize) -> Result<(), InvalidMessage> {
    match found > max {
        true => Err(InvalidMessage::TooMany { field, found, max }),
        false => Ok(()),
    }
}

fn routes(field: &'static str, routes: Vec<wire::Route>) -> Result<Vec<Route>, InvalidMessage> {
    at_most(field, routes.len(), LISTED_MAX)?;
    let routes = routes.into_iter().map(decode_route);
    let routes = routes.collect::<Result<_, _>>();
    routes.map_err(|error| InvalidMessage::Route { field, error })
}

impl TryFrom<wire::PolicyMessage> for PolicySays {
    type Error = InvalidMessage;

    fn try_from(message: wire::PolicyMessage) -> Result<Self, InvalidMessage> {
        use wire::policy_message::Message;
        match message.message {
            Some(Message::Piece(piece)) => {
                let size = piece.size as usize;
                if size > PIECE_BYTES_MAX {
                    return Err(InvalidMessage::Size(size));
                }
                Ok(PolicySays::Piece(Piece {
                    digest: piece.digest,
                    size,
                    deflated: piece.deflated,
                }))
            }
            Some(Message::Current(current)) => {
                at_most("current.pieces", current.pieces.len(), PIECES_MAX)?;
                Ok(PolicySays::Current(Current {
                    pieces: current.pieces,
                    digest: current.digest,
                }))
            }
            None => Err(InvalidMessage::Missing { field: "message" }),
        }
    }
}

impl From<&GuestSays> for wire::GuestMessage {
    fn from(says: &GuestSays) -> Self {
        use wire::guest_message::Message;
        let message = match says {
            GuestSays::Hello(hello) => Message::Hello(hello.into()),
            GuestSays::Poll => Message::Poll(wire::Poll {}),
        };
        wire::GuestMessage {
            message: Some(message),
        }
    }
}

impl From<&Hello> for wire::GuestHello {
    fn from(hello: &Hello) -> Self {
        wire::GuestHello {
            holder: hello.holder.0.to_be_bytes().to_vec(),
            zone: String::from(&*hello.zone),
            node: hello.node.clone(),
            mode: match hello.mode {
                Mode::Fence => wire::GuestMode::Fence,
                Mode::Route => wire::GuestMode::Route,
            }
            .into(),
            drain_ms: hello.drain_ms.unwrap_or_default(),
            unfenced: hello.unfenced.iter().map(encode_route).collect(),
            classes: hello.classes.iter().map(encode_route).collect(),
            held: hello.held.clone(),
            problems: hello.problems.clone(),
        }
    }
}

impl From<&PolicySays> for wire::PolicyMessage {
    fn from(says: &PolicySays) -> Self {
        use wire::policy_message::Message;
        let message = match says {
            PolicySays::Piece(piece) => Message::Piece(wire::Piece {
                digest: piece.digest,
                // Bounded far below.
                size: piece.size as u32,
                deflated: piece.deflated.clone(),
            }),
            PolicySays::Current(current) => Message::Current(wire::Current {
                pieces: current.pieces.clone(),
                digest: current.digest,
            }),
        };
        wire::PolicyMessage {
            message: Some(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_is_what_was_compressed() {
        let bytes = b"orders orders orders orders".repeat(100);
        let piece = Piece::compress(&bytes);
        assert!(piece.deflated().len() * 10 < bytes.len());
        assert_eq!(piece.bytes(), Ok(bytes.clone()));
        let says = PolicySays::Piece(piece.clone());
        assert_eq!(PolicySays::decode(&says.encode()), Ok(says));
        for wrong in [
            Piece::stored(piece.digest ^ 1, piece.size, piece.deflated.to_vec()),
            Piece::stored(piece.digest, piece.size - 1, piece.deflated.to_vec()),
            Piece::stored(piece.digest, piece.size + 1, piece.deflated.to_vec()),
            Piece::stored(piece.digest, piece.size, vec![]),
        ] {
            assert_eq!(wrong.bytes(), Err(InvalidMessage::Bytes));
        }
        let huge = Piece::stored(0, PIECE_BYTES_MAX + 1, vec![]);
        assert_eq!(huge.bytes(), Err(InvalidMessage::Size(PIECE_BYTES_MAX + 1)));
    }

    fn hello() -> wire::GuestHello {
        wire::GuestHello {
            holder: vec![7; 16],
            zone: "a".into(),
            node: "gw".into(),
            mode: 1,
            ..wire::GuestHello::default()
        }
    }

    #[test]
    fn a_hello_is_read_as_it_was_written() {
        let read = Hello::try_from(hello()).unwrap();
        assert_eq!(wire::GuestHello::from(&read), hello());
        let says = GuestSays::Hello(read);
        let message = wire::GuestMessage::decode(&*says.encode()).unwrap();
        assert_eq!(GuestSays::try_from(message), Ok(says));
    }

    #[test]
    fn a_refusal_names_the_field() {
        let check = |change: fn(&mut wire::GuestHello), error: &str| {
            let mut hello = hello();
            change(&mut hello);
            assert_eq!(Hello::try_from(hello).unwrap_err().to_string(), error);
        };
        check(
            |h| h.holder = vec![],
            "hello.holder: 0 bytes, where 16 are needed",
        );
        check(|h| h.zone = "A B".into(), "hello.zone: \"A B\" is no name");
        check(
            |h| h.node = "x".repeat(257),
            "hello.node: longer than 256 bytes",
        );
        check(|h| h.mode = 9, "hello.mode: 9 is no mode of this version");
        check(
            |h| h.held = vec![0; 4_097],
            "hello.held: 4097 entries, and 4096 are allowed",
        );
        check(
            |h| h.unfenced = vec![wire::Route::default(); 257],
            "hello.unfenced: 257 entries, and 256 are allowed",
        );
        check(
            |h| h.problems = vec!["x".repeat(513)],
            "hello.problems: one is longer than 512 bytes",
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = PolicySays::decode(&bytes);
            let message = wire::GuestMessage::decode(&*bytes);
            let _ = message.map(GuestSays::try_from);
        }

        #[test]
        fn no_compressed_bytes_make_it_panic(digest: u64, size in 0_usize..10_000, deflated: Vec<u8>) {
            let _ = Piece::stored(digest, size, deflated).bytes();
        }
    }
}
