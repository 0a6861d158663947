//! Numbers by which requests are shared out, without a call into the proxy for each.

use std::cell::Cell;

/// SplitMix64 (Steele, Lea, Flood, 2014): any start gives evenly spread numbers.
pub struct Draws(Cell<u64>);

impl From<u64> for Draws {
    fn from(start: u64) -> Draws {
        Draws(Cell::new(start))
    }
}

impl Draws {
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_the_reference_implementation() {
        // <https://prng.di.unimi.it/splitmix64.c>, from 0.
        let draws = Draws::from(0);
        let first = [draws.next(), draws.next(), draws.next()];
        assert_eq!(
            first,
            [
                0xe220_a839_7b1d_cdaf,
                0x6e78_9e6a_a1b9_65f4,
                0x06c4_5d18_8009_454f
            ]
        );
    }
}
