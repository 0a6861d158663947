//! The one door between the messages of replicas to each other and the domain.

use alloc::{string::String, vec::Vec};

use crate::wire;

/// Random bytes, of which a stream takes some from each side.
pub type Nonce = [u8; 16];

/// A message of the replica that opened the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallerSays {
    /// The names of two incarnations: the caller, and the called one.
    Hello {
        from: String,
        to: String,
        nonce: Nonce,
    },
    Proof(Vec<u8>),
    Beat(Proved),
}

/// A message of the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalledSays {
    Welcome { nonce: Nonce, proof: Vec<u8> },
    Heard(Proved),
}

/// A round, and that one side of a stream has said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proved {
    pub round: u64,
    /// Counts the messages of this side on this stream, from 1.
    pub number: u64,
    pub proof: [u8; PROOF_BYTES],
}

/// Why a message is none. Every variant names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPeerMessage {
    #[error("message: missing")]
    Missing,
    #[error("{field}: missing")]
    MissingField { field: &'static str },
    #[error("{field}: {found} bytes, where {wanted} are needed")]
    Length {
        field: &'static str,
        found: usize,
        wanted: usize,
    },
    #[error("{field}: longer than {NAME_BYTES_MAX} bytes")]
    Name { field: &'static str },
}

/// The longest name of an incarnation, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// The length of a proof, in bytes.
pub const PROOF_BYTES: usize = 32;

impl TryFrom<wire::PeerRequest> for CallerSays {
    type Error = InvalidPeerMessage;

    fn try_from(request: wire::PeerRequest) -> Result<Self, InvalidPeerMessage> {
        use wire::peer_request::Message;
        Ok(match request.message.ok_or(InvalidPeerMessage::Missing)? {
            Message::Hello(hello) => CallerSays::Hello {
                from: name("hello.from", hello.from)?,
                to: name("hello.to", hello.to)?,
                nonce: exactly("hello.nonce", &hello.nonce)?,
            },
            Message::Proof(proof) => {
                let proof: [u8; PROOF_BYTES] = exactly("proof.proof", &proof.proof)?;
                CallerSays::Proof(proof.to_vec())
            }
            Message::Beat(beat) => CallerSays::Beat(proved("beat.proved", beat.proved)?),
        })
    }
}

impl TryFrom<wire::PeerResponse> for CalledSays {
    type Error = InvalidPeerMessage;

    fn try_from(response: wire::PeerResponse) -> Result<Self, InvalidPeerMessage> {
        use wire::peer_response::Message;
        Ok(match response.message.ok_or(InvalidPeerMessage::Missing)? {
            Message::Welcome(welcome) => {
                let proof: [u8; PROOF_BYTES] = exactly("welcome.proof", &welcome.proof)?;
                CalledSays::Welcome {
                    nonce: exactly("welcome.nonce", &welcome.nonce)?,
                    proof: proof.to_vec(),
                }
            }
            Message::Heard(heard) => CalledSays::Heard(proved("heard.proved", heard.proved)?),
        })
    }
}

impl From<CallerSays> for wire::PeerRequest {
    fn from(says: CallerSays) -> Self {
        use wire::peer_request::Message;
        let message = match says {
            CallerSays::Hello { from, to, nonce } => Message::Hello(wire::PeerHello {
                from,
                to,
                nonce: nonce.to_vec(),
            }),
            CallerSays::Proof(proof) => Message::Proof(wire::PeerProof { proof }),
            CallerSays::Beat(proved) => Message::Beat(wire::PeerBeat {
                proved: Some(proved.into()),
            }),
        };
        wire::PeerRequest {
            message: Some(message),
        }
    }
}

impl From<CalledSays> for wire::PeerResponse {
    fn from(says: CalledSays) -> Self {
        use wire::peer_response::Message;
        let message = match says {
            CalledSays::Welcome { nonce, proof } => Message::Welcome(wire::PeerWelcome {
                nonce: nonce.to_vec(),
                proof,
            }),
            CalledSays::Heard(proved) => Message::Heard(wire::PeerHeard {
                proved: Some(proved.into()),
            }),
        };
        wire::PeerResponse {
            message: Some(message),
        }
    }
}

impl From<Proved> for wire::Proved {
    fn from(proved: Proved) -> Self {
        wire::Proved {
            round: proved.round,
            number: proved.number,
            proof: proved.proof.to_vec(),
        }
    }
}

fn proved(field: &'static str, proved: Option<wire::Proved>) -> Result<Proved, InvalidPeerMessage> {
    let proved = proved.ok_or(InvalidPeerMessage::MissingField { field })?;
    Ok(Proved {
        round: proved.round,
        number: proved.number,
        proof: exactly("proved.proof", &proved.proof)?,
    })
}

fn name(field: &'static str, name: String) -> Result<String, InvalidPeerMessage> {
    match name.len() <= NAME_BYTES_MAX {
        true => Ok(name),
        false => Err(InvalidPeerMessage::Name { field }),
    }
}

fn exactly<const N: usize>(
    field: &'static str,
    bytes: &[u8],
) -> Result<[u8; N], InvalidPeerMessage> {
    bytes.try_into().map_err(|_| InvalidPeerMessage::Length {
        field,
        found: bytes.len(),
        wanted: N,
    })
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use super::*;

    #[test]
    fn messages_come_back_as_they_went_and_bad_ones_are_refused() {
        let hello = CallerSays::Hello {
            from: "a-1".into(),
            to: "b-1".into(),
            nonce: [7; 16],
        };
        let proved = Proved {
            round: u64::MAX,
            number: 7,
            proof: [1; 32],
        };
        for says in [
            hello,
            CallerSays::Proof(vec![1; 32]),
            CallerSays::Beat(proved),
        ] {
            let request = wire::PeerRequest::from(says.clone());
            assert_eq!(CallerSays::try_from(request), Ok(says));
        }
        let welcome = CalledSays::Welcome {
            nonce: [7; 16],
            proof: vec![1; 32],
        };
        for says in [welcome, CalledSays::Heard(proved)] {
            let response = wire::PeerResponse::from(says.clone());
            assert_eq!(CalledSays::try_from(response), Ok(says));
        }
        let short = wire::PeerRequest::from(CallerSays::Proof(vec![1; 31]));
        let error = CallerSays::try_from(short).unwrap_err().to_string();
        assert_eq!(error, "proof.proof: 31 bytes, where 32 are needed");
        let unproved = wire::PeerRequest {
            message: Some(wire::peer_request::Message::Beat(wire::PeerBeat {
                proved: None,
            })),
        };
        let error = CallerSays::try_from(unproved).unwrap_err().to_string();
        assert_eq!(error, "beat.proved: missing");
        let mut short = wire::Proved::from(proved);
        short.proof.pop();
        let short = wire::PeerResponse {
            message: Some(wire::peer_response::Message::Heard(wire::PeerHeard {
                proved: Some(short),
            })),
        };
        let error = CalledSays::try_from(short).unwrap_err().to_string();
        assert_eq!(error, "proved.proof: 31 bytes, where 32 are needed");
        let long = wire::PeerRequest::from(CallerSays::Hello {
            from: "a".repeat(NAME_BYTES_MAX + 1),
            to: String::new(),
            nonce: [0; 16],
        });
        assert!(CallerSays::try_from(long).is_err());
        let empty = wire::PeerResponse { message: None };
        assert_eq!(
            CalledSays::try_from(empty),
            Err(InvalidPeerMessage::Missing)
        );
    }
}
