//! Hops: writes that a gateway forwards to the gateways of another zone, and their authentication.
//!
//! The forwarding gateway signs the write ([`Keys::sign`]); the receiving one verifies the
//! signature ([`Keys::vouch`]). The secret itself never travels with a request. The header,
//! [`FORWARDED`](crate::headers::FORWARDED), has the form
//!
//! ```text
//! v1;t=<time bucket>;k=<key id>;m=<HMAC-SHA256 (RFC 2104), in hexadecimal>
//! ```
//!
//! The signature covers method, authority, path, cell, epoch and time bucket. It does not cover the
//! body, and anyone on the path can replay it while its bucket is valid. A replay gains nothing: a
//! signed hop is decided anew like every other write. The signature only proves that the write must
//! not be forwarded again, and the epoch that the other zone knew; that epoch concerns this one
//! request.

use alloc::{format, string::String, vec::Vec};
use core::fmt;

use data_encoding::HEXLOWER;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The length of a time bucket, in microseconds of the wall clock. A signature is valid in its own
/// bucket, the one before and the one after. So it is valid for at most two bucket lengths, and
/// across clocks that differ by up to one.
pub const BUCKET_US: u64 = 10_000_000;

/// The version, which begins every header.
const VERSION: &str = "v1";
/// How many bytes of the digest identify a key.
const KEY_ID_BYTES: usize = 4;
const MAC_BYTES: usize = 32;

/// The subject of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'r> {
    pub method: &'r [u8],
    pub authority: &'r [u8],
    /// Including the query.
    pub path: &'r [u8],
    pub cell: &'r str,
    /// The epoch with which the write is forwarded.
    pub epoch: u64,
}

/// The secrets of a mesh's gateways. The first one signs and all of them verify, so that they can
/// be rotated one by one.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Vec<Key>);

#[derive(Clone, PartialEq, Eq)]
struct Key {
    secret: String,
    id: [u8; KEY_ID_BYTES],
}

/// The most secrets at a time.
pub const KEYS_MAX: usize = 2;

/// Why secrets were rejected. No variant contains one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    #[error("use 16 to 128 letters, digits, '-' and '_'")]
    Secret,
    #[error("{0} secrets: use one, or two while one replaces the other")]
    Count(usize),
    #[error("the two secrets are the same")]
    Same,
}

impl Keys {
    /// Checks secrets.
    ///
    /// # Errors
    ///
    /// [`InvalidKeys`] for too many secrets, for two that are the same, or for one with bytes or a
    /// length that is not allowed.
    pub fn new(secrets: Vec<String>) -> Result<Keys, InvalidKeys> {
        if secrets.is_empty() || secrets.len() > KEYS_MAX {
            return Err(InvalidKeys::Count(secrets.len()));
        }
        if !secrets.iter().all(|secret| is_secret(secret)) {
            return Err(InvalidKeys::Secret);
        }
        if let [first, second] = &secrets[..]
            && first == second
        {
            return Err(InvalidKeys::Same);
        }
        let key = |secret: String| Key {
            id: id_of(&secret),
            secret,
        };
        Ok(Keys(secrets.into_iter().map(key).collect()))
    }

    /// The secrets, to send them to a gateway.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.secret.as_str())
    }

    /// The header of a write that is forwarded in this time bucket.
    pub fn sign(&self, claim: &Claim<'_>, bucket: u64) -> String {
        let Some(key) = self.0.first() else {
            return String::new();
        };
        let id = HEXLOWER.encode(&key.id);
        let code = HEXLOWER.encode(&key.mac(claim, bucket).finalize().into_bytes());
        format!("{VERSION};t={bucket};k={id};m={code}")
    }

    /// Whether this header was made by [`sign`](Keys::sign) for the same claim, with one of these
    /// secrets, in the time bucket `bucket` or an adjacent one. The comparison of signatures takes
    /// constant time.
    pub fn vouch(&self, claim: &Claim<'_>, header: &[u8], bucket: u64) -> bool {
        let Some(signed) = Signed::parse(header) else {
            return false;
        };
        signed.bucket.abs_diff(bucket) <= 1
            && (self.0.iter())
                .filter(|key| key.id == signed.key_id)
                .any(|key| {
                    let mac = key.mac(claim, signed.bucket);
                    mac.verify_slice(&signed.code).is_ok()
                })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} secrets)", self.0.len())
    }
}

impl Key {
    fn mac(&self, claim: &Claim<'_>, bucket: u64) -> Hmac<Sha256> {
        let mut mac = mac_of(&self.secret);
        // Each field follows its length, so that no two claims have the same bytes.
        for field in [
            VERSION.as_bytes(),
            claim.method,
            claim.authority,
            claim.path,
            claim.cell.as_bytes(),
        ] {
            mac.update(&(field.len() as u64).to_be_bytes());
            mac.update(field);
        }
        mac.update(&claim.epoch.to_be_bytes());
        mac.update(&bucket.to_be_bytes());
        mac
    }
}

/// HMAC accepts keys of any length: it hashes keys that are longer than a block.
fn mac_of(secret: &str) -> Hmac<Sha256> {
    match Hmac::new_from_slice(secret.as_bytes()) {
        Ok(mac) => mac,
        Err(_) => Hmac::new(&Default::default()),
    }
}

/// Identifies a key, and reveals no more of it than a signature does.
fn id_of(secret: &str) -> [u8; KEY_ID_BYTES] {
    let mut mac = mac_of(secret);
    mac.update(b"tidegate hop key id");
    let digest = mac.finalize().into_bytes();
    let mut id = [0; KEY_ID_BYTES];
    for (to, from) in id.iter_mut().zip(digest) {
        *to = from;
    }
    id
}

fn is_secret(secret: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (16..=128).contains(&secret.len()) && secret.bytes().all(allowed)
}

/// A well-formed header.
struct Signed {
    bucket: u64,
    key_id: [u8; KEY_ID_BYTES],
    code: [u8; MAC_BYTES],
}

impl Signed {
    fn parse(header: &[u8]) -> Option<Signed> {
        let mut parts = header.split(|b| *b == b';');
        let version = parts.next()?;
        let bucket = parts.next()?.strip_prefix(b"t=")?;
        let key_id = parts.next()?.strip_prefix(b"k=")?;
        let code = parts.next()?.strip_prefix(b"m=")?;
        if version != VERSION.as_bytes() || parts.next().is_some() {
            return None;
        }
        Some(Signed {
            bucket: number(bucket)?,
            key_id: hex(key_id)?,
            code: hex(code)?,
        })
    }
}

fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    HEXLOWER.decode(text).ok()?.try_into().ok()
}

/// A number in decimal digits alone.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// The keys by which a proxy signs and checks hops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HopKeys {
    /// The control plane has not sent them yet.
    #[default]
    Untold,
    /// This proxy forwards nothing: it is no gateway, or there are no secrets.
    Withheld,
    Held {
        keys: Keys,
        /// The current time bucket.
        bucket: u64,
    },
}

impl HopKeys {
    /// Whether this proxy can sign.
    pub fn signer(&self) -> Signer {
        match self {
            HopKeys::Untold => Signer::Untold,
            HopKeys::Withheld => Signer::Withheld,
            HopKeys::Held { .. } => Signer::Holds,
        }
    }

    /// The header of a write that is forwarded now; none without a key.
    pub fn sign(&self, claim: &Claim<'_>) -> Option<String> {
        match self {
            HopKeys::Held { keys, bucket } => Some(keys.sign(claim, *bucket)),
            HopKeys::Untold | HopKeys::Withheld => None,
        }
    }

    /// Whether the header proves that another gateway forwards this write.
    pub fn vouch(&self, claim: &Claim<'_>, header: &[u8]) -> bool {
        match self {
            HopKeys::Held { keys, bucket } => keys.vouch(claim, header, *bucket),
            HopKeys::Untold | HopKeys::Withheld => false,
        }
    }
}

/// Whether a proxy can sign hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signer {
    /// It cannot yet, but perhaps soon.
    #[default]
    Untold,
    /// It cannot: clients whose writes belong to other zones receive the owner's name instead.
    Withheld,
    Holds,
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::{borrow::ToOwned, string::ToString};

    use proptest::{collection::vec as vec_of, prelude::*, sample::Index};

    use super::*;

    const OLD: &str = "old-secret-of-the-mesh";
    const NEW: &str = "new-secret-of-the-mesh";

    fn keys(secrets: &[&str]) -> Keys {
        Keys::new(secrets.iter().map(ToString::to_string).collect()).unwrap()
    }

    const CLAIM: Claim<'_> = Claim {
        method: b"POST",
        authority: b"shop.example",
        path: b"/orders?x=1",
        cell: "main",
        epoch: 7,
    };

    /// Made by `policy/testdata/hop.py`, another implementation of RFC 2104.
    const GOLDEN: &str = include_str!("../testdata/hop.txt");

    #[test]
    fn a_signature_is_that_of_the_reference_implementation() {
        assert_eq!(keys(&[OLD]).sign(&CLAIM, 178_000_000), GOLDEN.trim_end());
        assert!(keys(&[OLD]).vouch(&CLAIM, GOLDEN.trim_end().as_bytes(), 178_000_000));
    }

    #[test]
    fn a_signature_counts_for_its_claim_alone() {
        let header = keys(&[OLD]).sign(&CLAIM, 5);
        let vouched = |claim: &Claim<'_>| keys(&[OLD]).vouch(claim, header.as_bytes(), 5);
        assert!(vouched(&CLAIM));
        for other in [
            Claim {
                method: b"PUT",
                ..CLAIM
            },
            Claim {
                authority: b"shop.exampl",
                ..CLAIM
            },
            Claim {
                path: b"/orders?x=2",
                ..CLAIM
            },
            Claim {
                cell: "other",
                ..CLAIM
            },
            Claim { epoch: 8, ..CLAIM },
            // The same bytes, split into other fields.
            Claim {
                authority: b"shop.example/",
                path: b"orders?x=1",
                ..CLAIM
            },
        ] {
            assert!(!vouched(&other), "{other:?}");
        }
    }

    #[test]
    fn a_signature_is_over_two_buckets_later() {
        let header = keys(&[OLD]).sign(&CLAIM, 5);
        let vouched = |bucket| keys(&[OLD]).vouch(&CLAIM, header.as_bytes(), bucket);
        assert_eq!(
            (3..8).map(vouched).collect::<Vec<_>>(),
            [false, true, true, true, false]
        );
        assert!(!keys(&[OLD]).vouch(&CLAIM, header.replace("t=5", "t=6").as_bytes(), 6));
    }

    #[test]
    fn secrets_are_replaced_one_by_one() {
        let by_old = keys(&[OLD]).sign(&CLAIM, 5);
        let by_both = keys(&[NEW, OLD]).sign(&CLAIM, 5);
        let vouches =
            |secrets: &[&str], header: &str| keys(secrets).vouch(&CLAIM, header.as_bytes(), 5);
        // The first one signs; both verify.
        assert!(vouches(&[NEW, OLD], &by_old) && vouches(&[NEW, OLD], &by_both));
        assert!(vouches(&[NEW], &by_both) && !vouches(&[OLD], &by_both));
        assert!(!vouches(&[NEW], &by_old));
    }

    #[test]
    fn bad_secrets_are_refused_and_none_is_shown() {
        let made = |secrets: &[&str]| Keys::new(secrets.iter().map(|s| (*s).to_owned()).collect());
        assert_eq!(made(&["short"]), Err(InvalidKeys::Secret));
        assert_eq!(made(&["0123456789 abcdef"]), Err(InvalidKeys::Secret));
        assert_eq!(made(&[]), Err(InvalidKeys::Count(0)));
        assert_eq!(
            made(&[OLD, NEW, "another-one-of-them"]),
            Err(InvalidKeys::Count(3))
        );
        assert_eq!(made(&[OLD, OLD]), Err(InvalidKeys::Same));
        let held = HopKeys::Held {
            keys: keys(&[OLD]),
            bucket: 1,
        };
        assert_eq!(
            std::format!("{held:?}"),
            "Held { keys: Keys(1 secrets), bucket: 1 }"
        );
    }

    #[test]
    fn without_keys_nothing_is_signed_or_believed() {
        let header = keys(&[OLD]).sign(&CLAIM, 5);
        for none in [HopKeys::Untold, HopKeys::Withheld] {
            assert_eq!(none.sign(&CLAIM), None);
            assert!(!none.vouch(&CLAIM, header.as_bytes()));
        }
        let held = HopKeys::Held {
            keys: keys(&[OLD]),
            bucket: 5,
        };
        assert!(held.vouch(&CLAIM, held.sign(&CLAIM).unwrap().as_bytes()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_count(header in vec_of(any::<u8>(), 0..120)) {
            prop_assert!(!keys(&[OLD]).vouch(&CLAIM, &header, 0));
        }

        #[test]
        fn no_damage_counts(at: Index, byte: u8, cut: Index) {
            let good = keys(&[OLD]).sign(&CLAIM, 1_000).into_bytes();
            let mut bad = good.clone();
            let at = at.index(bad.len());
            bad[at] = byte;
            prop_assert_eq!(keys(&[OLD]).vouch(&CLAIM, &bad, 1_000), bad == good);
            let short = &good[..cut.index(good.len())];
            prop_assert!(!keys(&[OLD]).vouch(&CLAIM, short, 1_000));
            let twice = [good.clone(), good.clone()].concat();
            prop_assert!(!keys(&[OLD]).vouch(&CLAIM, &twice, 1_000));
        }
    }
}
