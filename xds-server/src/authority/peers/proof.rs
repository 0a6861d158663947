//! How a replica proves that it speaks for an incarnation: with the secret in its session's record, which it does not send.

use protos::peers::Nonce;
use registry::authority::Secret;
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

/// Who proves something, so that no proof can be sent back to the one that made it.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Caller,
    Called,
}

/// What both sides of a stream have said.
pub(super) struct Opening<'a> {
    /// The names of two incarnations.
    pub(super) from: &'a str,
    pub(super) to: &'a str,
    /// That of the caller, and that of the called.
    pub(super) nonces: [Nonce; 2],
}

impl Opening<'_> {
    pub(super) fn prove(&self, side: Side, secret: &Secret) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        hmac::sign(&key, &self.text(side)).as_ref().to_vec()
    }

    /// Compares in constant time.
    pub(super) fn proves(&self, side: Side, secret: &Secret, proof: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        hmac::verify(&key, &self.text(side), proof).is_ok()
    }

    fn text(&self, side: Side) -> Vec<u8> {
        let side: &[u8] = match side {
            Side::Caller => b"caller",
            Side::Called => b"called",
        };
        let [caller, called] = &self.nonces;
        let parts = [
            b"tidegate.v1.Peers",
            side,
            self.from.as_bytes(),
            self.to.as_bytes(),
            caller,
            called,
        ];
        // With lengths, so that no two openings have one text.
        let with_length = |part: &[u8]| [&(part.len() as u64).to_be_bytes()[..], part].concat();
        parts.into_iter().flat_map(with_length).collect()
    }
}

/// Random bytes. Where the system has none, nothing can be proved: the caller gives up.
pub(super) fn draw_nonce() -> Option<Nonce> {
    let mut nonce = Nonce::default();
    SystemRandom::new().fill(&mut nonce).ok()?;
    Some(nonce)
}

/// A secret that nobody can guess. Waits for the system's randomness, as everything on Linux does that needs it.
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

    #[test]
    fn only_the_secret_proves_and_only_for_this_opening_and_side() {
        let opening = |from, to, nonces| Opening { from, to, nonces };
        let this = opening("a-1", "b-1", [[1; 16], [2; 16]]);
        let (secret, other) = (Secret::new([7; 32]), Secret::new([8; 32]));
        let proof = this.prove(Side::Caller, &secret);
        assert!(this.proves(Side::Caller, &secret, &proof));
        assert!(!this.proves(Side::Called, &secret, &proof), "sent back");
        assert!(!this.proves(Side::Caller, &other, &proof));
        assert!(!this.proves(Side::Caller, &secret, &[]));
        for another in [
            opening("a-1b", "-1", [[1; 16], [2; 16]]),
            opening("a-1", "b-1", [[1; 16], [3; 16]]),
            opening("a-1", "b-1", [[2; 16], [1; 16]]),
        ] {
            assert!(!another.proves(Side::Caller, &secret, &proof), "repeated");
        }
        assert_ne!(draw_secret(), draw_secret());
        assert_ne!(draw_nonce(), draw_nonce());
    }
}
