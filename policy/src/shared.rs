//! A list whose copies share their common parts.
//!
//! A plan changes in one of many thousand services while requests are still decided by the previous
//! rules. The new rules differ from them only in that service. The standard library has no
//! persistent list, and the existing crates need `std`.

use alloc::{sync::Arc, vec::Vec};

/// How many items form a chunk. With twenty thousand items, setting one copies about as many
/// pointers on both levels.
pub const CHUNK: usize = 128;

/// Items in chunks of [`CHUNK`]. A copy costs one pointer, a change of one item two short lists of
/// pointers.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared<T>(Arc<Vec<Chunk<T>>>);

/// A chunk of items. Copies share it until one of its items changes.
pub type Chunk<T> = Arc<Vec<Arc<T>>>;

impl<T> Shared<T> {
    /// The item at `index`.
    pub fn get(&self, index: usize) -> Option<&T> {
        let chunk = self.0.get(index / CHUNK)?;
        chunk.get(index % CHUNK).map(Arc::as_ref)
    }

    /// Replaces the item at `index`; nothing without one.
    pub fn set(&mut self, index: usize, item: T) {
        if self.get(index).is_none() {
            return;
        }
        let chunk = Arc::make_mut(&mut self.0).get_mut(index / CHUNK);
        let slot = chunk.and_then(|chunk| Arc::make_mut(chunk).get_mut(index % CHUNK));
        if let Some(slot) = slot {
            *slot = Arc::new(item);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.0
            .iter()
            .flat_map(|chunk| chunk.iter().map(Arc::as_ref))
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|chunk| chunk.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The chunks, in order.
    pub fn chunks(&self) -> &[Chunk<T>] {
        &self.0
    }
}

impl<T> FromIterator<T> for Shared<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Shared<T> {
        let mut items = items.into_iter().map(Arc::new).peekable();
        let mut chunks = Vec::new();
        while items.peek().is_some() {
            chunks.push(Arc::new(items.by_ref().take(CHUNK).collect()));
        }
        Shared(Arc::new(chunks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_copies_as_they_were_and_shares_the_rest_with_them() {
        let len = 2 * CHUNK + 1;
        let before: Shared<usize> = (0..len).collect();
        let mut after = before.clone();
        after.set(CHUNK, 7);
        after.set(len, 7);
        assert!(before.iter().copied().eq(0..len));
        assert!(
            after
                .iter()
                .copied()
                .eq((0..len).map(|n| if n == CHUNK { 7 } else { n }))
        );
        assert_eq!(
            (after.len(), after.get(len), after.get(CHUNK)),
            (len, None, Some(&7))
        );
        let shared = before.chunks().iter().zip(after.chunks());
        let shared = shared.map(|(a, b)| Arc::ptr_eq(a, b));
        assert!(shared.eq([true, false, true]));
        assert!(Shared::<u8>::from_iter([]).is_empty());
    }
}
