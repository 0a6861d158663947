//! Header maps as the proxy-wasm ABI encodes them.
//!
//! All numbers are 32-bit little-endian: the count of pairs, then for each pair the sizes of its
//! name and value, then for each pair its name, a zero byte, its value, a zero byte. An empty map
//! may also be no bytes at all.
//!
//! The SDK's decoder copies every name and value and panics on what it does not like; this one
//! borrows and says no.

use policy::{Headers, Presented};

/// The headers of one request, borrowed from their encoding.
#[derive(Debug)]
pub struct HeaderMap<'m> {
    pairs: Vec<(&'m [u8], &'m [u8])>,
}

impl<'m> HeaderMap<'m> {
    /// None unless every byte is accounted for: a map that is only half understood could hide a
    /// header.
    pub fn parse(bytes: &'m [u8]) -> Option<HeaderMap<'m>> {
        if bytes.is_empty() {
            return Some(HeaderMap { pairs: vec![] });
        }
        let (count, bytes) = bytes.split_first_chunk()?;
        let count = size(*count)?;
        let (sizes, mut texts) = bytes.split_at_checked(count.checked_mul(SIZES_BYTES)?)?;
        // The sizes were there, so the capacity is less than what the proxy itself holds for these
        // headers.
        let mut pairs = Vec::with_capacity(count);
        let (numbers, _) = sizes.as_chunks();
        let (sizes, _) = numbers.as_chunks();
        for [name, value] in sizes {
            let name = take_text(&mut texts, size(*name)?)?;
            let value = take_text(&mut texts, size(*value)?)?;
            pairs.push((name, value));
        }
        texts.is_empty().then_some(HeaderMap { pairs })
    }

    /// The names, each as often as it stands in the request.
    pub fn names(&self) -> impl Iterator<Item = &'m [u8]> {
        self.pairs.iter().map(|(name, _)| *name)
    }
}

impl Headers for HeaderMap<'_> {
    fn get(&self, name: &str) -> Presented<'_> {
        let mut values = self
            .pairs
            .iter()
            .filter(|(candidate, _)| *candidate == name.as_bytes())
            .map(|(_, value)| *value);
        match (values.next(), values.next()) {
            (None, _) => Presented::Absent,
            (Some(value), None) => Presented::Once(value),
            (Some(_), Some(_)) => Presented::Repeated,
        }
    }
}

/// The sizes of one pair.
const SIZES_BYTES: usize = 8;

fn size(number: [u8; 4]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(number)).ok()
}

/// Takes `size` bytes and the zero byte after them from the front of `texts`.
fn take_text<'m>(texts: &mut &'m [u8], size: usize) -> Option<&'m [u8]> {
    let (text, rest) = texts.split_at_checked(size)?;
    *texts = rest.strip_prefix(b"\0")?;
    Some(text)
}

/// Encodes a map; none if a size does not fit into 32 bits.
pub fn encode(pairs: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)]) -> Option<Vec<u8>> {
    encode_all(
        pairs
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref())),
    )
}

/// The same, of pairs that stand elsewhere.
pub fn encode_all<'m>(
    pairs: impl ExactSizeIterator<Item = (&'m [u8], &'m [u8])> + Clone,
) -> Option<Vec<u8>> {
    let number = |size: usize| Some(u32::try_from(size).ok()?.to_le_bytes());
    let texts = pairs
        .clone()
        .map(|(name, value)| name.len() + value.len() + 2);
    let size = 4 + pairs.len() * SIZES_BYTES + texts.sum::<usize>();
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(&number(pairs.len())?);
    for (name, value) in pairs.clone() {
        bytes.extend_from_slice(&number(name.len())?);
        bytes.extend_from_slice(&number(value.len())?);
    }
    for (name, value) in pairs {
        for text in [name, value] {
            bytes.extend_from_slice(text);
            bytes.push(0);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    const TWO: &[u8] = b"\x02\0\0\0\x07\0\0\0\x03\0\0\0\x01\0\0\0\0\0\0\0:method\0GET\0a\0\0";

    #[test]
    fn reads_what_envoy_writes() {
        let map = HeaderMap::parse(TWO).unwrap();
        assert_eq!(map.get(":method"), Presented::Once(b"GET"));
        assert_eq!(map.get("a"), Presented::Once(b""));
        assert_eq!(map.get("b"), Presented::Absent);
        assert_eq!(
            encode(&[(":method", "GET"), ("a", "")]).as_deref(),
            Some(TWO)
        );
    }

    #[test]
    fn an_empty_map_has_two_forms() {
        for empty in [&b""[..], b"\0\0\0\0"] {
            assert_eq!(HeaderMap::parse(empty).unwrap().names().count(), 0);
        }
    }

    #[test]
    fn a_map_with_any_byte_missing_or_over_is_refused() {
        for end in 1..TWO.len() {
            assert!(HeaderMap::parse(&TWO[..end]).is_none(), "{end} bytes");
        }
        assert!(HeaderMap::parse(&[TWO, b"\0"].concat()).is_none());
        assert!(HeaderMap::parse(&[0xff; 64]).is_none(), "4 billion pairs");
    }

    #[test]
    fn a_repeated_header_is_never_taken_for_a_single_one() {
        let bytes = encode(&[("a", "1"), ("b", "2"), ("a", "1")]).unwrap();
        let map = HeaderMap::parse(&bytes).unwrap();
        assert_eq!(map.get("a"), Presented::Repeated);
        assert_eq!(map.get("b"), Presented::Once(b"2"));
    }

    proptest! {
        #[test]
        fn any_map_comes_back_as_it_was(pairs: Vec<(Vec<u8>, Vec<u8>)>) {
            let bytes = encode(&pairs).unwrap();
            let map = HeaderMap::parse(&bytes).unwrap();
            let back: Vec<_> = map.pairs.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(back, pairs);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = HeaderMap::parse(&bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(
            pairs: Vec<(Vec<u8>, Vec<u8>)>,
            damage in vec((any::<Index>(), any::<u8>()), 1..4),
            cut: Index,
        ) {
            let mut bytes = encode(&pairs).unwrap();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = HeaderMap::parse(&bytes);
            let _ = HeaderMap::parse(&bytes[..cut.index(bytes.len())]);
        }
    }
}
