//! Bytes for the wire.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

/// Bytes in several pieces, which are written together without being copied.
#[derive(Debug, Default)]
pub struct Pieces {
    /// None is empty.
    pieces: VecDeque<Bytes>,
    remaining: usize,
}

impl From<VecDeque<Bytes>> for Pieces {
    fn from(mut pieces: VecDeque<Bytes>) -> Pieces {
        pieces.retain(|piece| !piece.is_empty());
        let remaining = pieces.iter().map(Bytes::len).sum();
        Pieces { pieces, remaining }
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Pieces {
        Pieces::from(VecDeque::from([bytes]))
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pairs = slices.iter_mut().zip(&self.pieces);
        pairs
            .map(|(slice, piece)| *slice = IoSlice::new(piece))
            .count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced beyond the end");
        self.remaining -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
        self.pieces = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_is_lost_however_it_is_taken(
            sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
            steps in prop::collection::vec(1..20usize, 1..9),
        ) {
            let whole = sent.concat();
            let mut pieces = Pieces::from(sent.into_iter().map(Bytes::from).collect::<VecDeque<_>>());
            let mut taken = Vec::new();
            for step in steps.iter().cycle() {
                prop_assert_eq!(pieces.remaining() + taken.len(), whole.len());
                if !pieces.has_remaining() {
                    break;
                }
                let mut slices = [IoSlice::new(&[]); 4];
                let count = pieces.chunks_vectored(&mut slices);
                let seen = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
                let len = seen.len().min(*step);
                taken.extend_from_slice(&seen[..len]);
                pieces.advance(len);
            }
            prop_assert_eq!(taken, whole);
        }
    }
}
