//! Bytes for the wire.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

/// Bytes in several pieces, which are written together and never copied.
#[derive(Debug, Default)]
pub struct Pieces {
    /// None is empty.
    pieces: VecDeque<Bytes>,
    remaining: usize,
}

impl Pieces {
    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.remaining += piece.len();
            self.pieces.push_back(piece);
        }
    }

    pub(super) fn append(&mut self, mut more: Pieces) {
        if self.pieces.is_empty() {
            *self = more;
        } else {
            self.remaining += more.remaining;
            self.pieces.append(&mut more.pieces);
        }
    }

    /// Moves the first `count` bytes, of which there have to be so many, to the end of `to`.
    pub(super) fn move_to(&mut self, count: usize, to: &mut Pieces) {
        assert!(count <= self.remaining, "moved beyond the end");
        self.remaining -= count;
        let mut missing = count;
        while missing > 0
            && let Some(mut piece) = self.pieces.pop_front()
        {
            if piece.len() > missing {
                self.pieces.push_front(piece.split_off(missing));
            }
            missing -= piece.len();
            to.push(piece);
        }
        if self.pieces.is_empty() {
            // Not to keep memory for nothing.
            self.pieces = VecDeque::new();
        }
    }
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
        fn nothing_is_lost_however_it_is_cut(
            sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
            steps in prop::collection::vec(1..20usize, 1..9),
        ) {
            let whole = sent.concat();
            let mut from = Pieces::default();
            for piece in &sent {
                from.append(Pieces::from(Bytes::copy_from_slice(piece)));
            }
            let mut to = Pieces::default();
            for step in steps.iter().cycle() {
                if !from.has_remaining() {
                    break;
                }
                from.move_to(from.remaining().min(*step), &mut to);
                prop_assert_eq!(from.remaining() + to.remaining(), whole.len());
            }
            let mut received = Vec::new();
            for step in steps.iter().cycle() {
                if !to.has_remaining() {
                    break;
                }
                let len = to.chunk().len().min(*step);
                received.extend_from_slice(&to.chunk()[..len]);
                to.advance(len);
            }
            prop_assert_eq!(received, whole);
        }
    }
}
