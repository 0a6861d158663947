//! How a replica proves its incarnation: by the secret in its session's record, without sending it.
//!
//! The opening of a stream proves the sessions of both sides ([`Opening`]). That does not suffice
//! against an attacker on the path. It could forward the opening, drop the beats and acknowledge
//! them itself, so that a session would count as acknowledged although no replica received its beats.
//! So every later message is proved too ([`Speaking`], [`Hearing`]). Its key is derived from both
//! secrets and unique to the stream, and it covers the sending side, a rising number, and the
//! content.

use hmac::{Hmac, Mac};
use protos::peers::{Nonce, PROOF_BYTES, Proved};
use registry::authority::Secret;
use ring::rand::{SecureRandom, SystemRandom};
use sha2::Sha256;

/// The side that sends a proof, so that a message cannot be reflected to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Caller,
    Called,
}

impl Side {
    const fn label(self) -> &'static [u8] {
        match self {
            Side::Caller => b"caller",
            Side::Called => b"called",
        }
    }

    const fn other(self) -> Side {
        match self {
            Side::Caller => Side::Called,
            Side::Called => Side::Caller,
        }
    }
}

/// The opening messages of both sides of a stream.
pub(super) struct Opening<'a> {
    /// The names of two incarnations.
    pub(super) from: &'a str,
    pub(super) to: &'a str,
    /// The caller's and the callee's.
    pub(super) nonces: [Nonce; 2],
}

impl Opening<'_> {
    pub(super) fn prove(&self, side: Side, secret: &Secret) -> Vec<u8> {
        let code = self.code(side.label(), secret.as_bytes());
        code.finalize().into_bytes().to_vec()
    }

    /// Compares in constant time.
    pub(super) fn proves(&self, side: Side, secret: &Secret, proof: &[u8]) -> bool {
        let code = self.code(side.label(), secret.as_bytes());
        code.verify_slice(proof).is_ok()
    }

    /// The proofs that `side` sends from now on, and those that it expects. `secrets` are the
    /// caller's and the callee's.
    pub(super) fn messages(&self, side: Side, secrets: [&Secret; 2]) -> (Speaking, Hearing) {
        // Fixed lengths, so that no other two secrets have this key.
        let both = secrets.map(Secret::as_bytes).concat();
        let key = self.code(b"messages", &both).finalize().into_bytes();
        let key = keyed(&key);
        let speaking = Speaking {
            key: key.clone(),
            side,
            number: 0,
        };
        let hearing = Hearing {
            key,
            side: side.other(),
            number: 0,
        };
        (speaking, hearing)
    }

    fn code(&self, label: &[u8], key: &[u8]) -> Hmac<Sha256> {
        let mut code = keyed(key);
        let [caller, called] = &self.nonces;
        let (from, to) = (self.from.as_bytes(), self.to.as_bytes());
        for part in [b"tidegate.v1.Peers", label, from, to, caller, called] {
            with_length(&mut code, part);
        }
        code
    }
}

/// The messages of one side of a stream.
pub(super) struct Speaking {
    key: Hmac<Sha256>,
    side: Side,
    /// The number of the last message.
    number: u64,
}

impl Speaking {
    pub(super) fn prove(&mut self, round: u64) -> Proved {
        self.number = self.number.saturating_add(1);
        let code = message(&self.key, self.side, self.number, round);
        Proved {
            round,
            number: self.number,
            proof: <[u8; PROOF_BYTES]>::from(code.finalize().into_bytes()),
        }
    }
}

/// The messages of the other side.
pub(super) struct Hearing {
    key: Hmac<Sha256>,
    /// The sending side.
    side: Side,
    /// The number of the last message.
    number: u64,
}

impl Hearing {
    /// The round, if the other side has sent it now and not before. Compares in constant time.
    pub(super) fn hear(&mut self, said: &Proved) -> Result<u64, Doubt> {
        let code = message(&self.key, self.side, said.number, said.round);
        code.verify_slice(&said.proof)
            .map_err(|_| Doubt::Unproved)?;
        if said.number <= self.number {
            return Err(Doubt::Repeated);
        }
        self.number = said.number;
        Ok(said.round)
    }
}

/// Why a message is rejected, which ends the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum Doubt {
    #[error("the caller does not know the secret of its claimed session")]
    Caller,
    #[error("another process answers at that address: it does not know the session's secret")]
    Called,
    #[error("a message without the other side's proof")]
    Unproved,
    #[error("a repeated message")]
    Repeated,
}

impl Doubt {
    /// For metrics.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Doubt::Caller => "caller",
            Doubt::Called => "called",
            Doubt::Unproved => "unproved",
            Doubt::Repeated => "repeated",
        }
    }
}

fn message(key: &Hmac<Sha256>, side: Side, number: u64, round: u64) -> Hmac<Sha256> {
    let mut code = key.clone();
    with_length(&mut code, side.label());
    code.update(&number.to_be_bytes());
    code.update(&round.to_be_bytes());
    code
}

/// After its length, so that no other parts form the same text.
fn with_length(code: &mut Hmac<Sha256>, part: &[u8]) {
    code.update(&(part.len() as u64).to_be_bytes());
    code.update(part);
}

/// HMAC accepts keys of any length: it hashes keys that are longer than a block.
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::new_from_slice(key) {
        Ok(code) => code,
        Err(_) => Hmac::new(&Default::default()),
    }
}

/// Random bytes. Without system randomness nothing can be proved, and the caller gives up.
pub(super) fn draw_nonce() -> Option<Nonce> {
    let mut nonce = Nonce::default();
    SystemRandom::new().fill(&mut nonce).ok()?;
    Some(nonce)
}

/// A secret that cannot be guessed. Waits for the system's randomness, like every such call on
/// Linux.
pub fn draw_secret() -> Secret {
    let mut bytes = [0; 32];
    let random = SystemRandom::new();
    while random.fill(&mut bytes).is_err() {
        std::thread::yield_now();
    }
    Secret::new(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening<'a>(from: &'a str, to: &'a str, nonces: [Nonce; 2]) -> Opening<'a> {
        Opening { from, to, nonces }
    }

    const NONCES: [Nonce; 2] = [[1; 16], [2; 16]];

    fn secrets() -> [Secret; 2] {
        [Secret::new([7; 32]), Secret::new([8; 32])]
    }

    /// Made by `testdata/proved.py`, another implementation of RFC 2104.
    const GOLDEN: &str = include_str!("testdata/proved.txt");

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn proofs_are_those_of_the_reference_implementation() {
        let this = opening("a-1", "b-1", NONCES);
        let [caller, called] = secrets();
        let speaking = |side| this.messages(side, [&caller, &called]).0;
        let mut says = (speaking(Side::Caller), speaking(Side::Called));
        says.1.number = 2;
        let (beat, heard) = (says.0.prove(9), says.1.prove(u64::MAX));
        let lines = [
            format!("caller {}", hex(&this.prove(Side::Caller, &caller))),
            format!("called {}", hex(&this.prove(Side::Called, &called))),
            format!("caller 1 9 {}", hex(&beat.proof)),
            format!("called 3 {} {}", u64::MAX, hex(&heard.proof)),
        ];
        assert_eq!(lines.join("\n"), GOLDEN.trim_end());
    }

    #[test]
    fn only_the_secret_proves_and_only_for_this_opening_and_side() {
        let this = opening("a-1", "b-1", NONCES);
        let [secret, other] = secrets();
        let proof = this.prove(Side::Caller, &secret);
        assert!(this.proves(Side::Caller, &secret, &proof));
        assert!(!this.proves(Side::Called, &secret, &proof), "sent back");
        assert!(!this.proves(Side::Caller, &other, &proof));
        assert!(!this.proves(Side::Caller, &secret, &[]));
        for another in [
            opening("a-1b", "-1", NONCES),
            opening("a-1", "b-1", [[1; 16], [3; 16]]),
            opening("a-1", "b-1", [[2; 16], [1; 16]]),
        ] {
            assert!(!another.proves(Side::Caller, &secret, &proof), "repeated");
        }
        assert_ne!(draw_secret(), draw_secret());
        assert_ne!(draw_nonce(), draw_nonce());
    }

    #[test]
    fn a_message_counts_once_on_its_stream_and_as_it_was_said() {
        let this = opening("a-1", "b-1", NONCES);
        let [caller, called] = secrets();
        let secrets = [&caller, &called];
        let (mut calls, mut answered) = this.messages(Side::Caller, secrets);
        let (mut answers, mut heard) = this.messages(Side::Called, secrets);
        let (first, second) = (calls.prove(7), calls.prove(8));
        assert_eq!(heard.hear(&first), Ok(7));
        assert_eq!(heard.hear(&first), Err(Doubt::Repeated));
        assert_eq!(heard.hear(&second), Ok(8));
        assert_eq!(heard.hear(&first), Err(Doubt::Repeated), "an older one");
        assert_eq!(
            answered.hear(&first),
            Err(Doubt::Unproved),
            "sent back as an answer"
        );
        let answer = answers.prove(7);
        assert_eq!(heard.hear(&answer), Err(Doubt::Unproved));
        for changed in [
            Proved { round: 8, ..answer },
            Proved {
                number: 2,
                ..answer
            },
            Proved {
                proof: [0; 32],
                ..answer
            },
        ] {
            assert_eq!(answered.hear(&changed), Err(Doubt::Unproved));
        }
        // On another stream, and with another secret on either side.
        let later = opening("a-1", "b-1", [[1; 16], [3; 16]]);
        let stranger = Secret::new([9; 32]);
        for (opening, secrets) in [
            (&later, secrets),
            (&this, [&stranger, &called]),
            (&this, [&caller, &stranger]),
            (&this, [&called, &caller]),
        ] {
            let (_, mut answered) = opening.messages(Side::Caller, secrets);
            assert_eq!(answered.hear(&answer), Err(Doubt::Unproved));
        }
        assert_eq!(answered.hear(&answer), Ok(7));
    }
}
