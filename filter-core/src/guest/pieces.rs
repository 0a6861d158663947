//! The policy as the workers of a process share it: compressed pieces, and a list of those that
//! make up the present one.
//!
//! The elected worker writes pieces first and the list last, so that a list never names a piece
//! that was not there. Each worker reads the list on its ticks, and of the pieces only those that
//! it has not decompressed yet. A piece stands in a slot, since shared values are never removed: a
//! policy takes as many slots as it has pieces. A reader that meets another piece in a slot than
//! the list says waits for the next list.

use std::{collections::BTreeMap, sync::Arc};

use protos::guest::{Current, PIECES_MAX, POLICY_BYTES_MAX, Piece, digest};

use crate::fence::{
    ledger::{take, take_u64},
    process::{self, Process},
};

/// The place of one zone's policy in the shared data. A process may have guests of several
/// configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    /// Of the policy that this control plane gives to this zone.
    pub fn new(control_plane: &str, zone: &str) -> Place {
        let scope = digest(format!("{control_plane}\n{zone}").as_bytes());
        Place(format!("tidegate/guest/1/{scope:016x}/"))
    }

    fn current(&self) -> String {
        format!("{}current", self.0)
    }

    fn slot(&self, at: usize) -> String {
        format!("{}{at}", self.0)
    }

    /// The pieces that the present list names, as far as they are there.
    pub fn held(&self, process: &mut (impl Process + ?Sized)) -> Vec<Piece> {
        let current = self.list(process).unwrap_or_default();
        let slots = current.pieces.iter().enumerate();
        slots
            .filter_map(|(at, digest)| {
                let piece = self.piece(at, process)?;
                (piece.digest == *digest).then_some(piece)
            })
            .collect()
    }

    /// Makes these pieces the present policy. False where one is missing, or the proxy fails; then
    /// the policy before stays.
    pub fn publish(
        &self,
        current: &Current,
        pieces: &BTreeMap<u64, Piece>,
        process: &mut (impl Process + ?Sized),
    ) -> bool {
        let all: Option<Vec<&Piece>> = current.pieces.iter().map(|at| pieces.get(at)).collect();
        let Some(all) = all else {
            return false;
        };
        for (at, piece) in all.into_iter().enumerate() {
            let fresh = encode(piece);
            let put = process::change(process, &self.slot(at), |value| {
                let is_there = value.is_some_and(|value| value == fresh);
                Some(((!is_there).then(|| fresh.clone()), ()))
            });
            if put.is_none() {
                return false;
            }
        }
        let list = encode_list(current);
        let put = process::change(process, &self.current(), |value| {
            let is_there = value.is_some_and(|value| value == list);
            Some(((!is_there).then(|| list.clone()), ()))
        });
        put.is_some()
    }

    fn list(&self, process: &mut (impl Process + ?Sized)) -> Option<Current> {
        let (value, _) = process.get(&self.current()).ok()??;
        decode_list(&value)
    }

    fn piece(&self, at: usize, process: &mut (impl Process + ?Sized)) -> Option<Piece> {
        let (value, _) = process.get(&self.slot(at)).ok()??;
        decode(value)
    }
}

fn encode(piece: &Piece) -> Vec<u8> {
    let mut bytes = piece.digest.to_le_bytes().to_vec();
    bytes.extend((piece.size as u64).to_le_bytes());
    bytes.extend(piece.deflated());
    bytes
}

fn decode(value: Vec<u8>) -> Option<Piece> {
    let rest = &mut &*value;
    let digest = take_u64(rest)?;
    let size = usize::try_from(take_u64(rest)?).ok()?;
    Some(Piece::stored(digest, size, rest.to_vec()))
}

fn encode_list(current: &Current) -> Vec<u8> {
    let numbers = std::iter::once(&current.digest).chain(&current.pieces);
    numbers.flat_map(|number| number.to_le_bytes()).collect()
}

fn decode_list(mut bytes: &[u8]) -> Option<Current> {
    let rest = &mut bytes;
    let digest = take_u64(rest)?;
    let mut pieces = Vec::new();
    while !rest.is_empty() && pieces.len() < PIECES_MAX {
        pieces.push(u64::from_le_bytes(take(rest)?));
    }
    rest.is_empty().then_some(Current { pieces, digest })
}

/// One worker's copy of the policy's bytes, for one guest.
#[derive(Debug, Default)]
pub struct Assembly {
    /// The list that [`Assembly::read`] looked at last.
    seen: Current,
    /// The decompressed pieces of the last policy.
    pieces: BTreeMap<u64, Arc<[u8]>>,
}

/// The outcome of a look at the shared policy.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// There is none, or the same as before.
    Nothing,
    /// The bytes of another policy.
    Fresh(Vec<u8>),
    /// The list names pieces that are not there, or are damaged.
    Torn,
}

impl Assembly {
    /// Looks at the shared policy.
    pub fn read(&mut self, place: &Place, process: &mut (impl Process + ?Sized)) -> Look {
        let Some(current) = place.list(process) else {
            return Look::Nothing;
        };
        if current == self.seen {
            return Look::Nothing;
        }
        let mut pieces = BTreeMap::new();
        let mut bytes = Vec::new();
        for (at, digest) in current.pieces.iter().enumerate() {
            let known = self.pieces.get(digest).map(Arc::clone);
            let Some(piece) = known.or_else(|| fetch(place, at, *digest, process)) else {
                return Look::Torn;
            };
            if bytes.len() + piece.len() > POLICY_BYTES_MAX {
                return Look::Torn;
            }
            bytes.extend_from_slice(&piece);
            pieces.insert(*digest, piece);
        }
        if digest(&bytes) != current.digest {
            return Look::Torn;
        }
        self.pieces = pieces;
        self.seen = current;
        Look::Fresh(bytes)
    }
}

fn fetch(
    place: &Place,
    at: usize,
    digest: u64,
    process: &mut (impl Process + ?Sized),
) -> Option<Arc<[u8]>> {
    let piece = place.piece(at, process)?;
    let bytes = (piece.digest == digest).then(|| piece.bytes().ok())??;
    Some(Arc::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::testing::Fake;

    fn pieces(texts: &[&str]) -> (Current, BTreeMap<u64, Piece>) {
        let pieces: Vec<Piece> = texts
            .iter()
            .map(|text| Piece::compress(text.as_bytes()))
            .collect();
        let current = Current {
            pieces: pieces.iter().map(|piece| piece.digest).collect(),
            digest: digest(texts.concat().as_bytes()),
        };
        (
            current,
            pieces
                .into_iter()
                .map(|piece| (piece.digest, piece))
                .collect(),
        )
    }

    fn fresh(text: &str) -> Look {
        Look::Fresh(text.as_bytes().to_vec())
    }

    #[test]
    fn every_worker_reads_the_policy_that_was_published_last() {
        let mut fake = Fake::default();
        let place = Place::new("tidegate", "a");
        let (mut one, mut two) = (Assembly::default(), Assembly::default());
        assert_eq!(one.read(&place, &mut fake), Look::Nothing);
        let (current, all) = pieces(&["head", "orders", "tail"]);
        assert!(place.publish(&current, &all, &mut fake));
        assert_eq!(one.read(&place, &mut fake), fresh("headorderstail"));
        assert_eq!(one.read(&place, &mut fake), Look::Nothing);
        // A piece less, and one in another slot.
        let (current, all) = pieces(&["head2", "tail"]);
        assert!(place.publish(&current, &all, &mut fake));
        assert_eq!(one.read(&place, &mut fake), fresh("head2tail"));
        assert_eq!(two.read(&place, &mut fake), fresh("head2tail"));
        let held: Vec<u64> = place
            .held(&mut fake)
            .iter()
            .map(|piece| piece.digest)
            .collect();
        assert_eq!(held, current.pieces);
        let other = Place::new("tidegate", "b");
        assert_eq!(two.read(&other, &mut fake), Look::Nothing);
    }

    #[test]
    fn a_policy_with_a_missing_piece_is_not_published() {
        let mut fake = Fake::default();
        let place = Place::new("tidegate", "a");
        let (current, mut all) = pieces(&["head", "tail"]);
        all.remove(&current.pieces[1]);
        assert!(!place.publish(&current, &all, &mut fake));
        assert_eq!(Assembly::default().read(&place, &mut fake), Look::Nothing);
    }

    #[test]
    fn a_reader_of_a_half_written_policy_keeps_its_own() {
        let mut fake = Fake::default();
        let place = Place::new("tidegate", "a");
        let (old, all) = pieces(&["head", "tail"]);
        assert!(place.publish(&old, &all, &mut fake));
        // The writer died between the pieces and the list.
        let (_, new) = pieces(&["head", "other"]);
        let other = Piece::compress(b"other");
        fake.put(&place.slot(1), &encode(&new[&other.digest]));
        assert_eq!(Assembly::default().read(&place, &mut fake), Look::Torn);
        assert_eq!(place.held(&mut fake).len(), 1);
        // The next writer completes it.
        assert!(place.publish(&old, &all, &mut fake));
        assert_eq!(
            Assembly::default().read(&place, &mut fake),
            fresh("headtail")
        );
    }

    #[test]
    fn damaged_values_are_no_policy() {
        let mut fake = Fake::default();
        let place = Place::new("tidegate", "a");
        for list in [&b""[..], b"1234567", b"123456789", &[0; 8 * 5_000]] {
            fake.put(&place.current(), list);
            assert_eq!(Assembly::default().read(&place, &mut fake), Look::Nothing);
        }
        let (current, all) = pieces(&["head"]);
        assert!(place.publish(&current, &all, &mut fake));
        for slot in [&b""[..], &[7; 15], &[7; 40]] {
            fake.put(&place.slot(0), slot);
            assert_eq!(Assembly::default().read(&place, &mut fake), Look::Torn);
        }
    }
}
