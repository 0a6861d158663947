//! Stable mappings from a request's key to a bucket, or to a zone.

/// The 64-bit digest of a shard key: XXH64 with seed 0.
///
/// Part of the contract with storage that shards by the same key: it never changes.
pub fn key_digest(key: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(key, 0)
}

/// The same digest of bytes in several parts.
pub fn digest_of_parts<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> u64 {
    let mut hash = xxhash_rust::xxh64::Xxh64::new(0);
    parts.into_iter().for_each(|part| hash.update(part));
    hash.digest()
}

/// Jump consistent hash: a bucket in `0..buckets` for `key`; 0 when `buckets` is 0 or 1.
///
/// When the number of buckets grows from n to n + 1, about 1/(n + 1) of the keys move, all of them
/// to the new bucket. Source: Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash
/// Algorithm", 2014, figure 1.
pub fn jump_hash(key: u64, buckets: u32) -> u32 {
    let (mut state, mut bucket, mut next) = (key, 0_u32, 0_u64);
    // Terminates: `next` doubles on average with every turn.
    while next < u64::from(buckets) {
        // `next` is below `buckets`, so the cast is exact.
        bucket = next as u32;
        state = state
            .wrapping_mul(2_862_933_555_777_941_757)
            .wrapping_add(1);
        let stretch = (1_u64 << 31) as f64 / ((state >> 33) + 1) as f64;
        next = ((f64::from(bucket) + 1.0) * stretch) as u64;
    }
    bucket
}

/// The distance from the candidate `name` to `key`; the nearest of several candidates owns it.
///
/// Weighted rendezvous hashing: the distance depends only on the pair and the weight, and
/// candidates own keys in proportion to their weights. Jump hash would not do: it can only remove
/// the last bucket, and any zone may fail. Source: Schindelhauer and Schomaker, "Weighted
/// Distributed Hash Tables", 2005, the logarithmic method.
pub fn rendezvous_distance(key: u64, name: &[u8], weight: u32) -> u64 {
    let draw = xxhash_rust::xxh64::xxh64(name, key).max(1);
    // -log2 of a uniform draw from (0, 1) is distributed exponentially, and so at most 64 here.
    let exponential = (64 << LOG2_FRACTION_BITS) - log2_fixed(draw);
    // Shifted by 30 it is below 2^60. So a division by any weight keeps enough bits to distinguish
    // candidates.
    (exponential << 30) / u64::from(weight.max(1))
}

const LOG2_FRACTION_BITS: u32 = 24;

/// log2 of `value`, which is not 0, with [`LOG2_FRACTION_BITS`]. In integers, because `core` has no
/// logarithm, and because every replica and proxy must get the same one.
fn log2_fixed(value: u64) -> u64 {
    let zeros = value.leading_zeros();
    // 1.0 to 2.0, with 31 bits after the point.
    let mut mantissa = (value << zeros) >> 32;
    let mut log = u64::from(63 - zeros);
    // Squaring doubles the logarithm: its next bit is whether the square is 2.0 or more.
    for _ in 0..LOG2_FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 31;
        let carry = mantissa >> 32;
        mantissa >>= carry;
        log = (log << 1) | carry;
    }
    log
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn logarithms_are_those_of_floating_point() {
        for value in [1, 2, 3, 7, 1_000_003, 1 << 40, u64::MAX >> 1, u64::MAX] {
            let fixed = log2_fixed(value) as f64 / f64::from(1 << LOG2_FRACTION_BITS);
            assert!(
                (fixed - (value as f64).log2()).abs() < 1e-6,
                "{value}: {fixed}"
            );
        }
    }

    /// Lines of `key buckets bucket`, made by `testdata/jump_hash.py`, the paper's listing in
    /// another language.
    const GOLDEN: &str = include_str!("../testdata/jump_hash.txt");

    #[test]
    fn agrees_with_the_reference_implementation() {
        let mut lines = 0;
        for line in GOLDEN.lines() {
            let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            let [key, buckets, bucket] = numbers[..] else {
                panic!("three numbers in {line:?}");
            };
            assert_eq!(
                u64::from(jump_hash(key, buckets as u32)),
                bucket,
                "key {key}, buckets {buckets}"
            );
            lines += 1;
        }
        assert!(lines > 100, "only {lines} golden vectors");
    }

    #[test]
    fn digests_are_those_of_xxh64() {
        // From the specification's own test vectors: the empty input and "abc", seed 0.
        assert_eq!(key_digest(b""), 0xef46_db37_51d8_e999);
        assert_eq!(key_digest(b"abc"), 0x44bc_2cf5_ad77_0999);
        let parts = [&b"a"[..], b"", b"bc"];
        assert_eq!(digest_of_parts(parts), key_digest(b"abc"));
    }

    #[test]
    fn degenerate_bucket_counts_give_the_first_bucket() {
        assert_eq!(jump_hash(7, 0), 0);
        assert_eq!(jump_hash(7, 1), 0);
    }

    #[test]
    fn a_new_bucket_takes_its_share_and_nothing_else_moves() {
        let keys = (0..10_000_u64).map(|n| key_digest(&n.to_le_bytes()));
        let moved = keys
            .map(|key| (jump_hash(key, 10), jump_hash(key, 11)))
            .filter(|(before, after)| before != after)
            .inspect(|(_, after)| assert_eq!(*after, 10))
            .count();
        assert!((700..=1_120).contains(&moved), "{moved} of 10,000 moved");
    }
}
